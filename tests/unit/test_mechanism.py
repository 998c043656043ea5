"""Hidden states, gradients, weights and distributions against their definitions, one example at a time in float64."""

from __future__ import annotations

import copy
import math
from functools import partial

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from lightning_modules.adapters import LoRASpec, adapter_layers, add_adapters, factors
from lightning_modules.mechanism.gradients import GradientPair, TermGradients
from lightning_modules.mechanism.gradients import whole as whole_gradient
from lightning_modules.mechanism.parameter_groups import by_module, parameter_group
from lightning_modules.mechanism.positions import MEASURES, positions, token_measures
from lightning_modules.mechanism.similarity import layers_of, summed_cosines, visit_depths
from lightning_modules.mechanism.weights import weight_changes
from lightning_modules.mechanism.weights import whole as whole_change
from lightning_modules.objective.consistency import token_terms
from lightning_modules.objective.divergences import top_columns, top_k_overlap
from lightning_modules.packing import Rollout
from lightning_modules.scoring import ViewScorer
from lightning_modules.teachers import Teacher, TeacherSpec

FAMILIES = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
VOCABULARY = 50
TOKENS = 45
"""Of the tokenizer; the head's other columns are padding."""
TAU = 0.5
CONTEXT = [11, 12, 13, 14, 15]
ROLLOUTS = [
    Rollout([1, 2, 3], [*CONTEXT, 1, 2, 3], 5, [4, 5, 6, 7]),
    Rollout([1, 9], [*CONTEXT, 1, 9], 5, [8, 5]),
    Rollout([2, 9, 9, 1], [21, 22, 2, 9, 9, 1], 2, [3]),  # another context: a micro-batch of its own
]


def tiny_model(family="llama", seed=0, **changes):
    config = FAMILIES[family](
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
        initializer_range=0.3,
        **{"tie_word_embeddings": family == "llama"} | changes,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config).eval()


def scorer_of(student, teacher=None):
    holder = Teacher(TeacherSpec(kind="live"), student, None)
    holder.model = teacher
    return ViewScorer(student, holder, vocab_size=TOKENS, pad_id=0)


def sequences(rollout):
    """Both views' ids, and where each begins to predict the completion."""
    for prompt in (rollout.no_context_ids, rollout.with_context_ids):
        yield torch.tensor([[*prompt, *rollout.completion_ids]]), len(prompt) - 1


def stacked_states(model, ids, first):
    """The definition: all hidden states of the whole sequence, then the completion's positions: (L + 2, T, H)."""
    whole = copy.deepcopy(model).double().eval()
    with torch.no_grad():
        states = list(whole(ids, output_hidden_states=True, use_cache=False).hidden_states)  # the last one is normed
        whole.base_model.norm = nn.Identity()
        states.insert(-1, whole(ids, output_hidden_states=True, use_cache=False).hidden_states[-1])
    return torch.stack([state[0, first:-1] for state in states])


# ---- hidden states


@pytest.mark.parametrize("family", FAMILIES)
def test_cosines_are_those_of_the_stack_of_all_hidden_states(family):
    model = tiny_model(family)
    sums = torch.zeros(5, dtype=torch.float64)
    num_micro_batches = 0
    for _, no_context, with_context in scorer_of(model).micro_batches(ROLLOUTS, None):
        sums += summed_cosines(model, no_context, with_context)
        num_micro_batches += 1
    assert num_micro_batches == 2  # one that shares its context, and one that does not
    expected = torch.zeros_like(sums)
    for rollout in ROLLOUTS:
        x, c = (stacked_states(model, *view) for view in sequences(rollout))
        expected += nn.functional.cosine_similarity(x, c, dim=-1).sum(-1)
    torch.testing.assert_close(sums, expected, rtol=1e-5, atol=1e-5)
    assert expected[0] == pytest.approx(7)  # the same tokens have the same embeddings
    assert expected[1:].max() < 6.9  # and what follows differs: a hook at the wrong place would be seen


def test_never_more_than_one_views_completion_states_are_kept():
    """Counted over every tensor that the comparison can reach: no stack, and no positions but the completion's."""
    model = tiny_model()
    rollouts = [Rollout([*range(20), n], [*range(30), *range(20), n], 30, [1, 2]) for n in range(2)]
    ((_, no_context, with_context),) = scorer_of(model).micro_batches(rollouts, None)
    alive = []
    kept = {}

    def keep(depth, states):
        kept[depth] = states
        assert states.shape == (4, 32)
        assert states.untyped_storage().nbytes() == 4 * 32 * 4  # a copy, not a view into all positions

    def compare(depth, states):
        assert states.shape == (4, 32)
        kept.pop(depth)
        alive.append(len(kept))

    with torch.no_grad():
        visit_depths(model, no_context, keep)
        visit_depths(model, with_context, compare)
    assert alive == [4, 3, 2, 1, 0]
    with torch.no_grad():
        visit_depths(model, no_context, keep)
    definition = torch.cat([stacked_states(model, *next(sequences(rollout))) for rollout in rollouts], dim=1)
    torch.testing.assert_close(torch.stack([*kept.values()]).double(), definition, rtol=1e-4, atol=1e-5)
    assert not model.base_model.layers[0]._forward_hooks
    assert not model.base_model.layers[0]._forward_pre_hooks


def test_hooks_are_gone_after_an_error(monkeypatch):
    model = tiny_model()
    ((_, no_context, _),) = scorer_of(model).micro_batches(ROLLOUTS[:1], None)

    def fail(depth, states):
        raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted"):
        visit_depths(model, no_context, fail)
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in layers_of(model))


def test_a_model_without_a_list_of_layers_is_refused():
    model = tiny_model()
    model.config.num_hidden_layers = 7
    with pytest.raises(ValueError, match="LlamaForCausalLM has no list of its 7 layers"):
        layers_of(model)


# ---- gradients


def reference_gradients(student, teacher, consistency):
    """Both terms from their definitions: every rollout alone and in full, in float64, by autograd.grad."""
    student, teacher = (copy.deepcopy(model).double() for model in (student, teacher))
    opd, nca, num_tokens = 0.0, 0.0, 0
    for rollout in ROLLOUTS:
        (x_ids, x_first), (c_ids, c_first) = sequences(rollout)
        q_x = student(x_ids, use_cache=False).logits[0, x_first:-1, :TOKENS].log_softmax(-1)
        q_c = student(c_ids, use_cache=False).logits[0, c_first:-1, :TOKENS].log_softmax(-1)
        f = teacher(c_ids, use_cache=False).logits[0, c_first:-1, :TOKENS].log_softmax(-1).detach()
        to_teacher = (q_x.exp() * (q_x - f)).sum()
        opd = opd + to_teacher
        if consistency == "symmetric":
            nca = nca + 0.5 * (q_x.exp() * (q_x - q_c)).sum() + 0.5 * (q_c.exp() * (q_c - q_x)).sum()
        else:
            weight = math.exp(-float(to_teacher.detach()) / len(q_x) / TAU) if consistency == "adaptive_anchor" else 1.0
            nca = nca + weight * (q_x.detach().exp() * (q_x.detach() - q_c)).sum()
        num_tokens += len(rollout.completion_ids)
    names, parameters = zip(*student.named_parameters(), strict=True)
    pairs = [
        torch.autograd.grad(term / num_tokens, parameters, retain_graph=True, allow_unused=True) for term in (opd, nca)
    ]
    return names, pairs


def expected_pair(opd, nca):
    a, b = (torch.cat([g.flatten() for g in gradients if g is not None]) for gradients in (opd, nca))
    return [float(a.norm()), float(b.norm()), float(a @ b / a.norm() / b.norm())]


def numbers(pair):
    return [pair.opd_norm, pair.nca_norm, pair.cosine]


@pytest.mark.parametrize(("family", "consistency"), [("llama", "adaptive_anchor"), ("qwen2", "symmetric")])
def test_gradients_are_those_of_the_definition(family, consistency):
    student, teacher = tiny_model(family), tiny_model(family, seed=1)
    teacher.requires_grad_(False)
    marked = student.base_model.layers[0].self_attn.q_proj.weight
    marked.grad = torch.ones_like(marked)
    scorer = scorer_of(student, teacher)
    gradients = TermGradients(student)
    for part, _, _ in scorer.micro_batches(ROLLOUTS, None):
        objective = partial(token_terms, consistency=consistency, adaptive_tau=TAU)
        gradients.add(scorer.terms(part, objective, with_consistency=True))
    assert gradients.num_tokens == 7
    groups = gradients.compare(7)

    names, (opd, nca) = reference_gradients(student, teacher, consistency)
    assert numbers(whole_gradient(groups.values())) == pytest.approx(expected_pair(opd, nca), rel=1e-3)
    assert len(groups) == 3 * 6 + (2 if family == "llama" else 3)  # an untied head is a group of its own
    for group, pair in groups.items():
        members = [i for i, name in enumerate(names) if parameter_group(name) == group]
        expected = expected_pair([opd[i] for i in members], [nca[i] for i in members])
        assert numbers(pair) == pytest.approx(expected, rel=1e-3, abs=1e-5), group
    assert torch.equal(marked.grad, torch.ones_like(marked))  # the training's own gradient is as it was
    others = [p.grad for p in student.parameters() if p is not marked]
    assert others == [None] * len(others)


def test_a_cosine_with_a_zero_gradient_is_none():
    assert GradientPair(1.0, 0.0, 0.0).cosine is None
    assert GradientPair(math.inf, 1.0, 1.0).cosine is None
    assert GradientPair(math.nan, 1.0, math.nan).cosine is None
    assert GradientPair(2.0, 3.0, -6.0).cosine == -1.0


def test_ranks_gradients_are_put_together_even_where_a_rank_has_none():
    gradients = TermGradients(nn.Linear(2, 1, bias=False))
    gradients.opd = [torch.tensor([[3.0, 4.0]])]
    gradients.replace(lambda gradient: gradient + torch.tensor([[0.0, 1.0]]))  # what the other rank found
    (pair,) = gradients.compare(2).values()
    assert pair == GradientPair(math.sqrt(9 + 25) / 2, 0.5, 5 / 4)


# ---- weights


def test_weight_changes_by_hand():
    before = tiny_model("qwen3", tie_word_embeddings=False)
    after = copy.deepcopy(before)
    with torch.no_grad():
        after.model.layers[1].self_attn.k_proj.weight.mul_(1.5)
        after.model.layers[1].mlp.up_proj.weight.add_(0.25)
        after.lm_head.weight.mul_(1.25)
    groups = weight_changes(after, before)
    by_name = {(group.layer, group.module): change for group, change in groups.items()}
    assert set(by_name) == {
        *((layer, m) for layer in (1, 2, 3) for m in ("q_proj", "k_proj", "v_proj", "o_proj", "mlp", "norms")),
        *((None, module) for module in ("embeddings", "norms", "head")),
    }
    assert by_name[2, "k_proj"].relative == pytest.approx(0.5, rel=1e-5)
    assert by_name[None, "head"].relative == pytest.approx(0.25, rel=1e-5)
    mlp = before.model.layers[1].mlp
    size = sum(p.square().sum().item() for p in mlp.parameters()) ** 0.5
    assert by_name[2, "mlp"].change == pytest.approx(0.25 * mlp.up_proj.weight.numel() ** 0.5, rel=1e-5)
    assert by_name[2, "mlp"].relative == pytest.approx(by_name[2, "mlp"].change / size, rel=1e-5)
    assert [key for key, change in by_name.items() if change.change] == [(2, "k_proj"), (2, "mlp"), (None, "head")]
    whole = whole_change(groups.values())
    flat = [torch.cat([p.detach().flatten() for p in m.parameters()]).double() for m in (before, after)]
    assert whole.relative == pytest.approx(float((flat[1] - flat[0]).norm() / flat[0].norm()), rel=1e-5)
    assert whole.num_parameters == len(flat[0])
    keys = whole_change(by_module(groups)["k_proj"])
    sizes = [layer.self_attn.k_proj.weight.norm().item() for layer in before.model.layers]
    assert keys.relative == pytest.approx(0.5 * sizes[1] / math.hypot(*sizes), rel=1e-5)


def test_rounding_to_the_student_s_data_type_is_no_change():
    """ZeRO in bf16 holds the student in bfloat16; the one that is loaded again to compare with is float32."""
    before = tiny_model("qwen3", tie_word_embeddings=True)
    student = copy.deepcopy(before).bfloat16()
    assert all(change.change == 0.0 for change in weight_changes(student, before).values())
    with torch.no_grad():
        student.model.layers[0].mlp.up_proj.weight.mul_(2.0)
    changed = {(group.layer, group.module): change.change for group, change in weight_changes(student, before).items()}
    assert [place for place, change in changed.items() if change] == [(1, "mlp")]


@pytest.mark.parametrize("tie", [True, False])
def test_adapters_of_a_head_count_whether_or_not_it_is_tied(tie):
    before = tiny_model("qwen3", tie_word_embeddings=tie)
    student = copy.deepcopy(before)
    add_adapters(student, LoRASpec(r=2, alpha=4, target_modules=["q_proj", "lm_head"]), "tiny")
    with torch.no_grad():
        for layer in adapter_layers(student).values():
            for factor in factors(layer):
                factor.copy_(torch.randn(factor.shape, generator=torch.Generator().manual_seed(0)))
    groups = {(group.layer, group.module): change for group, change in weight_changes(student, before).items()}
    head = adapter_layers(student)["lm_head"]
    expected = 2.0 * torch.linalg.matrix_norm(factors(head)[1] @ factors(head)[0])
    assert groups[None, "head"].change == pytest.approx(float(expected), rel=1e-5)
    assert groups[None, "head"].initial == pytest.approx(float(before.lm_head.weight.norm()), rel=1e-5)
    assert groups[None, "embeddings"].change == 0.0


def test_another_model_is_no_initial_student():
    with pytest.raises(ValueError, match=r"has no parameter lm_head.weight of shape \(50, 32\)"):
        weight_changes(tiny_model(tie_word_embeddings=False), tiny_model(tie_word_embeddings=True))


@pytest.mark.parametrize(
    ("name", "layer", "module"),
    [
        ("model.layers.0.self_attn.q_proj.bias", 1, "q_proj"),
        ("model.layers.35.self_attn.k_norm.weight", 36, "norms"),
        ("model.layers.2.mlp.gate_proj.weight", 3, "mlp"),
        ("model.layers.2.post_attention_layernorm.weight", 3, "norms"),
        ("base_model.model.model.layers.4.self_attn.v_proj.lora_A.default.weight", 5, "v_proj"),
        ("transformer.h.1.attn.c_attn.weight", 2, "c_attn"),
        ("model.embed_tokens.weight", None, "embeddings"),
        ("model.norm.weight", None, "norms"),
        ("lm_head.weight", None, "head"),
    ],
)
def test_groups_of_parameters(name, layer, module):
    assert parameter_group(name) == (layer, module)


# ---- token positions


def test_token_measures_are_those_of_the_definition(monkeypatch):
    monkeypatch.setattr("lightning_modules.mechanism.positions.TOKENS_PER_KL_CHUNK", 4)  # chunks must not be seen
    student, teacher = tiny_model(), tiny_model(seed=1)
    scorer = scorer_of(student, teacher)
    found = {}
    for part, no_context, with_context in scorer.micro_batches(ROLLOUTS, None):
        measures = token_measures(scorer, no_context, with_context, top_k=5)
        places = positions(no_context.rows)
        assert places.tolist() == [t for rollout in part for t in range(len(rollout.completion_ids))]
        for row, place, values in zip(no_context.rows.tolist(), places.tolist(), measures, strict=True):
            found[ROLLOUTS.index(part[row]), place] = values
    assert len(found) == 7
    with torch.no_grad():
        for index, rollout in enumerate(ROLLOUTS):
            (x_ids, x_first), (c_ids, c_first) = sequences(rollout)
            x, c, f = (
                copy.deepcopy(model).double()(ids, use_cache=False).logits[0, first:-1, :TOKENS].softmax(-1)
                for model, ids, first in (
                    (student, x_ids, x_first),
                    (student, c_ids, c_first),
                    (teacher, c_ids, c_first),
                )
            )
            for t in range(len(rollout.completion_ids)):
                top = [set(sorted(range(TOKENS), key=lambda v, p=p: -p[t, v])[:5]) for p in (x, c)]
                expected = [
                    sum(p * math.log(p / q) for p, q in zip(x[t].tolist(), c[t].tolist(), strict=True)),
                    sum(p * math.log(p / q) for p, q in zip(x[t].tolist(), f[t].tolist(), strict=True)),
                    len(top[0] & top[1]) / 5,
                    -sum(p * math.log(p) for p in x[t].tolist()),
                    -sum(p * math.log(p) for p in c[t].tolist()),
                ]
                assert found[index, t].tolist() == pytest.approx(expected, rel=1e-3, abs=1e-5), (index, t)
    assert len(MEASURES) == 5


def test_overlap_by_hand():
    first = torch.tensor([[9.0, 8.0, 7.0, 0.0], [9.0, 8.0, 0.0, 1.0]])
    second = torch.tensor([[8.0, 9.0, 0.0, 7.0], [0.0, 1.0, 9.0, 8.0]])
    assert top_k_overlap(top_columns(first, 2), top_columns(second, 2)).tolist() == [1.0, 0.0]
    assert top_k_overlap(top_columns(first, 3), top_columns(second, 3)).tolist() == pytest.approx([2 / 3, 2 / 3])
    assert top_k_overlap(top_columns(first, 99), top_columns(second, 99)).tolist() == [1.0, 1.0]
