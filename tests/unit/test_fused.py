"""The fused objective equals the reference on all logits: value and gradient, for every variant and support."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import get_args

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_modules.objective import chunked
from lightning_modules.objective.chunked import Projection, tokens_per_chunk
from lightning_modules.objective.consistency import Consistency, ObjectiveSettings, ViewLogits, separate_anchor
from lightning_modules.objective.divergences import Support
from lightning_modules.objective.fused import consistency_term, distillation, token_importance

VARIANTS = get_args(Consistency)
VOCABULARY = 11


def known(*values_T: Tensor | None) -> list[Tensor]:
    return [value_T.detach() for value_T in values_T if value_T is not None]


class Case:
    """Hidden states of the four views and two heads, wider than the vocabulary and of different hidden sizes."""

    def __init__(self, num_tokens: int = 7, dtype: torch.dtype = torch.float64, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

        self.head, self.teacher_head = nn.Linear(6, 13, dtype=dtype), nn.Linear(4, 12, bias=False, dtype=dtype)
        for parameter in (*self.head.parameters(), *self.teacher_head.parameters()):
            parameter.data = random(*parameter.shape)
        self.hidden = [random(num_tokens, 6).requires_grad_(), random(num_tokens, 6).requires_grad_()]
        self.constants = [random(num_tokens, 4), random(num_tokens, 4)]
        cuts = torch.randint(0, 3, (num_tokens,), generator=generator).cumsum(0)
        self.example_T = torch.unique(cuts, return_inverse=True)[1]
        self.completion_T = torch.randint(0, VOCABULARY, (num_tokens,), generator=generator)
        self.sampler_log_p_T = -random(num_tokens).abs()

    def views(self) -> list[Projection]:
        """q_x, q_c, f and the anchor."""
        student = [Projection(hidden, self.head, VOCABULARY) for hidden in self.hidden]
        return student + [Projection(hidden, self.teacher_head, VOCABULARY) for hidden in self.constants]

    def fused(self, objective: ObjectiveSettings, coef: float) -> tuple[Tensor, list[Tensor]]:
        q_x, q_c, f, anchor = self.views()
        f = f if objective.needs_teacher else None
        cap, importance_T = objective.importance_weight_cap, None
        if cap is not None:
            importance_T = token_importance(q_x, self.completion_T, self.sampler_log_p_T, self.example_T, cap)
        first = distillation(q_x, f, objective, self.completion_T, importance_T)
        if objective.consistency == "none":
            return first.loss, known(first.opd_T, first.entropy_T, first.overlap_T, importance_T)
        if separate_anchor(objective.consistency) is None:
            anchor = None
        stopped = q_x if objective.consistency == "symmetric" else q_x.constant()
        second = consistency_term(first, stopped, q_c, f, anchor, self.example_T, objective, importance_T)
        overlaps = first.overlap_T, second.overlap_T
        terms = known(first.opd_T, first.entropy_T, *overlaps, importance_T, second.consistency_T, second.weight_T)
        return first.loss + coef * second.loss, terms

    def reference(self, objective: ObjectiveSettings, coef: float) -> tuple[Tensor, list[Tensor]]:
        q_x, q_c, f, anchor = (view.logits() for view in self.views())
        f = f if objective.needs_teacher else None
        views = ViewLogits(q_x, f, q_c, anchor, self.completion_T, self.sampler_log_p_T)
        terms = objective.token_terms(views, self.example_T)
        second = () if terms.consistency_T is None else (terms.consistency_T, terms.weight_T)
        overlaps = terms.overlap_teacher_T, terms.overlap_views_T
        return terms.loss_T(coef).sum(), known(terms.opd_T, terms.entropy_T, *overlaps, terms.importance_T, *second)

    def gradients(self, loss: Tensor) -> list[Tensor | None]:
        """Of the hidden states of both views and the head, under an upstream factor."""
        parameters = [*self.hidden, *self.head.parameters(), *self.teacher_head.parameters()]
        for parameter in parameters:
            parameter.grad = None
        (0.37 * loss).backward()
        return [parameter.grad for parameter in parameters]


def assert_equal(case: Case, objective: ObjectiveSettings, **tolerance: float) -> None:
    for implementations in zip(case.fused(objective, 0.6), case.reference(objective, 0.6), strict=True):
        torch.testing.assert_close(*implementations, **tolerance)
    ours, theirs = (case.gradients(run(objective, 0.6)[0]) for run in (case.fused, case.reference))
    # The teacher's head is trainable here, and must be left alone by both.
    assert [g is None for g in ours] == [g is None for g in theirs]
    for our, their in zip(ours, theirs, strict=True):
        if our is not None:
            torch.testing.assert_close(our, their, **tolerance)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(chunked, "tokens_per_chunk", lambda device, vocab_size: 3)


objectives = st.builds(
    ObjectiveSettings,
    consistency=st.sampled_from(VARIANTS),
    beta=st.sampled_from([0.0, 0.25, 0.9, 1.0]),
    support=st.builds(
        Support,
        kind=st.sampled_from(["full", "top_k", "top_k_tail"]),
        k=st.integers(1, VOCABULARY + 1),  # as wide as the vocabulary, and wider
    ),
    temperature=st.sampled_from([1.0, 0.7, 2.0]),
    adaptive_tau=st.sampled_from([0.5, 3.0]),
    overlap_top_k=st.integers(0, VOCABULARY + 1),
    importance_weight_cap=st.sampled_from([None, 0.8, 3.0]),
) | st.builds(
    ObjectiveSettings,
    consistency=st.sampled_from(VARIANTS),
    temperature=st.sampled_from([1.0, 0.7, 2.0]),
    adaptive_tau=st.sampled_from([0.5, 3.0]),
    distillation=st.just("cross_entropy"),
    overlap_top_k=st.integers(0, 4),
)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    objective=objectives,
    num_tokens=st.integers(1, 9),
    chunk=st.integers(1, 10),
    trains_head=st.booleans(),
    is_plain=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_equals_the_reference(monkeypatch, objective, num_tokens, chunk, trains_head, is_plain, seed):
    monkeypatch.setattr(chunked, "tokens_per_chunk", lambda device, vocab_size: chunk)
    case = Case(num_tokens, seed=seed)
    case.head.requires_grad_(trains_head)
    if not is_plain:  # a hook is enough to have the module called, with autograd through it
        case.head.register_forward_hook(lambda module, inputs, output: None)
    assert_equal(case, objective, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", ["full", "top_k_tail"])
def test_every_variant_in_float32(variant, kind):
    case = Case(dtype=torch.float32)
    assert_equal(case, ObjectiveSettings(variant, 1.0, Support(kind, 4)), rtol=2e-5, atol=2e-5)
    if kind == "full":
        assert_equal(case, ObjectiveSettings(variant, distillation="cross_entropy"), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("distillation_term", ["kl", "cross_entropy"])
@pytest.mark.parametrize("is_autocast", [True, False])
def test_bf16_is_as_near_to_float32_as_the_reference_is(variant, distillation_term, is_autocast):
    objective = ObjectiveSettings(variant, distillation=distillation_term)
    case = Case(64, torch.float32 if is_autocast else torch.bfloat16)
    exact = Case(64, torch.float32)
    with torch.no_grad():  # the same numbers, rounded
        for own, low in zip(tensors(exact), tensors(case), strict=True):
            own.copy_(low)
    truth = exact.gradients(exact.reference(objective, 0.6)[0])
    errors = []
    for run in (case.fused, case.reference):
        with torch.autocast("cpu", torch.bfloat16) if is_autocast else nullcontext():
            loss, terms = run(objective, 0.6)
        assert all(term_T.dtype == torch.float32 for term_T in terms)
        gradients = case.gradients(loss)
        errors.append(
            [
                float((low.float() - true).norm() / true.norm())
                for low, true in zip(gradients, truth, strict=True)
                if true is not None
            ]
        )
    for ours, theirs in zip(*errors, strict=True):
        assert ours < max(1.5 * theirs, 1e-3)


def tensors(case: Case) -> list[Tensor]:
    return [*case.hidden, *case.constants, *case.head.parameters(), *case.teacher_head.parameters()]


def test_an_adapter_on_the_head_is_trained():
    """LoRA as peft writes it: a module of its own around the frozen head."""
    peft = pytest.importorskip("peft")

    class Model(nn.Module):
        def __init__(self, head: nn.Linear) -> None:
            super().__init__()
            self.lm_head = head

        def forward(self, hidden: Tensor) -> Tensor:
            return self.lm_head(hidden)

    case = Case()
    model = peft.get_peft_model(Model(case.head), peft.LoraConfig(r=2, target_modules=["lm_head"]))
    case.head = model.base_model.model.lm_head.double()
    with torch.no_grad():
        for name, parameter in case.head.named_parameters():
            if "lora_B" in name:  # zero at the start: then nothing would reach A
                parameter.copy_(torch.randn_like(parameter))
    assert sum(parameter.requires_grad for parameter in case.head.parameters()) == 2
    assert_equal(case, ObjectiveSettings("symmetric", 0.5), rtol=1e-10, atol=1e-10)


def test_a_tied_head_gets_both_of_its_gradients():
    embedding, ids = nn.Embedding(VOCABULARY, 6, dtype=torch.float64), torch.tensor([1, 4, 4, 0, 9])
    head = nn.Linear(6, VOCABULARY, bias=False, dtype=torch.float64)
    head.weight = embedding.weight
    f = Projection(torch.randn(5, 6, dtype=torch.float64), head, VOCABULARY)
    objective = ObjectiveSettings("none")
    distillation(Projection(embedding(ids).tanh(), head, VOCABULARY), f, objective).loss.backward()
    ours, embedding.weight.grad = embedding.weight.grad, None
    views = ViewLogits(head(embedding(ids).tanh()), f.constant().logits())
    objective.token_terms(views, torch.zeros(5, dtype=torch.long)).opd_T.sum().backward()
    torch.testing.assert_close(ours, embedding.weight.grad)


@pytest.mark.parametrize("reentrant", [True, False])
def test_inside_gradient_checkpointing(reentrant):
    case = Case()
    objective = ObjectiveSettings("symmetric")
    expected = case.gradients(case.fused(objective, 0.6)[0])

    def loss(*hidden: Tensor) -> Tensor:
        case.hidden, kept = list(hidden), case.hidden
        value = case.fused(objective, 0.6)[0]
        case.hidden = kept
        return value

    for ours, theirs in zip(
        case.gradients(checkpoint(loss, *case.hidden, use_reentrant=reentrant)), expected, strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_without_gradients_only_the_values_are_computed():
    case = Case()
    with torch.no_grad():
        loss, terms = case.fused(ObjectiveSettings(), 0.6)
    assert not loss.requires_grad
    torch.testing.assert_close([loss, *terms], [v.detach() for v in flat(case.reference(ObjectiveSettings(), 0.6))])


def flat(result: tuple[Tensor, list[Tensor]]) -> list[Tensor]:
    return [result[0], *result[1]]


def test_nothing_but_the_loss_carries_gradient():
    case = Case()
    q_x, q_c, f, _ = case.views()
    first = distillation(q_x, f, ObjectiveSettings())
    second = consistency_term(first, q_x.constant(), q_c, f, None, case.example_T, ObjectiveSettings())
    assert first.loss.requires_grad
    assert second.loss.requires_grad
    for statistic in (first.opd_T, first.kl_T, first.entropy_T, second.consistency_T, second.weight_T):
        assert not statistic.requires_grad


def test_the_second_term_needs_nothing_of_the_first_ones_graph():
    """The order that a training step runs: a backward pass between the two terms, with the same gradients."""
    case, objective = Case(), ObjectiveSettings("adaptive_anchor")
    together = case.gradients(case.fused(objective, 1.0)[0])
    for parameter in (*case.hidden, *case.head.parameters()):
        parameter.grad = None
    q_x, q_c, f, _ = case.views()
    first = distillation(q_x, f, objective)
    (0.37 * first.loss).backward()
    second = consistency_term(first, q_x.constant(), q_c, f, None, case.example_T, objective)
    (0.37 * second.loss).backward()
    apart = [parameter.grad for parameter in (*case.hidden, *case.head.parameters())]
    for ours, theirs in zip(apart, together, strict=False):
        torch.testing.assert_close(ours, theirs)


def test_a_graph_is_run_backward_once():
    """The gradients are scaled in place: a second pass would scale them twice, so it is refused."""
    case = Case()
    loss, _ = case.fused(ObjectiveSettings("none"), 0.0)
    (2.0 * loss).backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="inplace operation"):
        (2.0 * loss).backward()


def test_a_missing_anchor_is_named():
    case = Case()
    q_x, q_c, f, _ = case.views()
    objective = ObjectiveSettings("ema_anchor")
    first = distillation(q_x, f, objective)
    with pytest.raises(ValueError, match=r"ema_anchor.*needs a separate anchor"):
        consistency_term(first, q_x, q_c, f, None, case.example_T, objective)


@pytest.mark.parametrize("kind", ["full", "top_k", "top_k_tail"])
def test_no_chunk_ever_holds_more_tokens_than_it_may(monkeypatch, kind):
    """The bound on memory: no head sees more tokens at once, in either term."""
    case, seen = Case(20), []
    for head in (case.head, case.teacher_head):
        head.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    case.fused(ObjectiveSettings("symmetric", support=Support(kind, 4)), 0.5)
    assert max(seen) == 3
    # Over a truncated support f is kept; symmetric gradients need both student views again.
    assert sum(seen) == 4 * 20


def test_fine_tuning_projects_the_student_alone_in_chunks():
    case, seen = Case(20), []
    for head in (case.head, case.teacher_head):
        head.register_forward_hook(lambda module, inputs, output: seen.append((module, len(output))))
    case.fused(ObjectiveSettings("none", distillation="cross_entropy"), 0.0)
    assert {module for module, _ in seen} == {case.head}
    assert max(length for _, length in seen) == 3
    assert sum(length for _, length in seen) == 20


def test_the_chunk_follows_the_budget(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setitem(chunked.CHUNK_BYTES, "cuda", 2 * chunked.CHUNK_BYTES["cpu"])
    assert tokens_per_chunk(cpu, 1_000) == chunked.CHUNK_TOKENS["cpu"]
    monkeypatch.delitem(chunked.CHUNK_TOKENS, "cpu")
    for vocab_size in (1_000, 49_152, 151_936):
        size = tokens_per_chunk(cpu, vocab_size)
        per_token = 4 * vocab_size * chunked.BUFFERS_PER_CHUNK
        assert size * per_token <= chunked.CHUNK_BYTES["cpu"] < (size + 1) * per_token
        assert 2 * size <= tokens_per_chunk(cuda, vocab_size) <= 2 * size + 1
    assert tokens_per_chunk(cpu, 10**12) == 1


def test_extreme_logits_stay_finite():
    case = Case()
    with torch.no_grad():
        case.head.weight *= 1e4
        case.teacher_head.weight *= 1e4
    for kind in ("full", "top_k", "top_k_tail"):
        loss, _ = case.fused(replace(ObjectiveSettings("symmetric"), support=Support(kind, 1)), 0.5)
        assert torch.isfinite(loss)
        assert all(torch.isfinite(g).all() for g in case.gradients(loss) if g is not None)


def spread(head: nn.Linear) -> list[str]:
    """Make a head like ZeRO-3 does: its weights are there while it is being called, forward or backward."""
    calls, whole = [], {name: parameter.detach().clone() for name, parameter in head.named_parameters()}

    def gather(*_):
        calls.append("call")
        for name, parameter in head.named_parameters():
            parameter.data.copy_(whole[name])

    def release(*_):
        for parameter in head.parameters():
            parameter.data.fill_(torch.nan)

    for parameter in head.parameters():
        parameter.ds_id = 0
    head.register_forward_pre_hook(gather)
    head.register_forward_hook(release)
    release()
    return calls


@pytest.mark.parametrize("variant", VARIANTS)
def test_heads_that_zero3_has_spread_are_called_once_for_all_chunks(variant):
    objective = ObjectiveSettings(consistency=variant)
    case, other = Case(), Case()
    expected = [*other.fused(objective, 0.6)[1], *other.gradients(other.fused(objective, 0.6)[0])]
    calls = [spread(head) for head in (case.head, case.teacher_head)]
    loss, terms = case.fused(objective, 0.6)
    num_terms = 1 if variant == "none" else 2
    assert len(calls[0]) == num_terms  # not once per chunk: there are three
    assert len(calls[1]) == {"dual_opd": 2, "ema_anchor": 2, "teacher_no_context_anchor": 2}.get(variant, 1)
    for our, their in zip([*terms, *case.gradients(loss)], expected, strict=True):
        assert (our is None) == (their is None)
        if our is not None:
            torch.testing.assert_close(our, their)
