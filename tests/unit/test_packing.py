"""One copy of a shared context gives the numbers of many, and micro-batches lose nothing."""

from __future__ import annotations

import copy
from functools import partial
from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from lightning_modules import packing
from lightning_modules.objective.consistency import token_terms
from lightning_modules.objective.divergences import Support
from lightning_modules.packing import (
    PAIRS_PER_TOKEN,
    PrefixCache,
    Rollout,
    completion_hidden_states,
    lay_out,
    plan_micro_batches,
    prefix_keys_values,
)
from lightning_modules.scoring import ViewScorer
from lightning_modules.teachers import Teacher, TeacherSpec

VOCABULARY = 50
PAD = 7
FAMILIES = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}


def tiny_model(family: str = "llama"):
    config = FAMILIES[family](
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=256,
        tie_word_embeddings=family == "llama",
        pad_token_id=PAD,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).train()


OBJECTIVE = partial(
    token_terms,
    consistency="no_context_anchor",
    beta=1.0,
    support=Support(),
    temperature=1.0,
    adaptive_tau=0.5,
)
MODEL = {family: tiny_model(family) for family in FAMILIES}

ids = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=6)


@st.composite
def batches(draw):
    prefix = draw(st.lists(st.integers(0, VOCABULARY - 1), min_size=0, max_size=12))
    rows = draw(st.lists(st.tuples(ids, ids), min_size=1, max_size=4))
    return prefix, [[*prefix, *question] for question, _ in rows], [completion for _, completion in rows]


def one_by_one(model, prompts, completions):
    """The definition: every example alone, in full; the position before each completion token."""
    hidden = []
    for prompt, completion in zip(prompts, completions, strict=True):
        states = model.base_model(torch.tensor([[*prompt, *completion]]), use_cache=False).last_hidden_state[0]
        hidden.append(states[len(prompt) - 1 : len(prompt) + len(completion) - 1])
    return torch.cat(hidden)


def gradients(model, hidden):
    weight = torch.linspace(-1, 1, hidden.numel()).view_as(hidden)
    parameters = [p for n, p in model.named_parameters() if "lm_head" not in n]
    return torch.autograd.grad((hidden * weight).sum(), parameters)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batch=batches())
def test_shared_context_equals_each_example_alone(family, batch):
    prefix, prompts, completions = batch
    model = MODEL[family]
    shared = completion_hidden_states(model, lay_out(prompts, completions, prefix, PAD, "cpu"))
    unshared = completion_hidden_states(model, lay_out(prompts, completions, [], PAD, "cpu"))
    alone = one_by_one(model, prompts, completions)
    torch.testing.assert_close(shared, alone, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(unshared, alone, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(gradients(model, shared), gradients(model, alone), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * max(1.0, float(theirs.abs().max())))


def test_the_context_gets_its_gradient():
    """A prefix run without gradient would give another gradient; this test would see it."""
    model, prefix = MODEL["llama"], [1, 2, 3, 4, 5]
    prompts, completions = [[*prefix, 9], [*prefix, 8, 7]], [[3, 4], [5]]
    batch = lay_out(prompts, completions, prefix, PAD, "cpu")
    whole = gradients(model, completion_hidden_states(model, batch))
    with torch.no_grad():
        detached = prefix_keys_values(model, batch.prefix_ids)
    cut = gradients(model, completion_hidden_states(model, batch, detached))
    assert max(float((a - b).abs().max()) for a, b in zip(whole, cut, strict=True)) > 1e-3


def test_padding_id_equal_to_a_real_token_changes_nothing():
    model, prompts, completions = MODEL["llama"], [[1, PAD, 2], [3]], [[PAD, 4, PAD], [PAD]]
    a = completion_hidden_states(model, lay_out(prompts, completions, [], PAD, "cpu"))
    b = completion_hidden_states(model, lay_out(prompts, completions, [], 0, "cpu"))
    torch.testing.assert_close(a, b)


def test_layout_by_hand():
    batch = lay_out([[1, 2, 3], [1, 2, 4, 5]], [[6, 7], [8]], [1, 2], PAD, "cpu")
    assert batch.prefix_ids.tolist() == [1, 2]
    assert batch.suffix_ids.tolist() == [[3, 6, 7], [4, 5, 8]]
    # Token 6 is predicted at 3 (column 0), 7 at 6 (column 1), 8 at 5 (column 1).
    assert batch.rows.tolist() == [0, 0, 1]
    assert batch.columns.tolist() == [0, 1, 1]
    assert batch.completion_ids.tolist() == [6, 7, 8]


rollouts = st.builds(
    lambda prefix, question, completion: Rollout(question, [*range(prefix * 3), *question], prefix * 3, completion),
    st.integers(0, 3),
    ids,
    ids,
)


def tokens_and_cost(items, members, share_contexts):
    """The formula of `plan_micro_batches`, attended pairs counted one by one."""
    full = [len(items[i].with_context_ids) + len(items[i].completion_ids) for i in members]
    shared = len(items[members[0]].context_prefix)
    if not share_contexts:
        full, shared = [max(full)] * len(full), 0
    elif len({items[i].context_prefix for i in members}) > 1:
        shared = 0
    tokens = shared + sum(length - shared for length in full)
    pairs = sum(range(1, shared + 1)) + sum(sum(range(shared + 1, length + 1)) for length in full)
    return tokens, tokens * PAIRS_PER_TOKEN + pairs


@settings(deadline=None)
@given(st.lists(rollouts, min_size=1, max_size=20), st.one_of(st.none(), st.integers(1, 60)), st.booleans())
def test_micro_batches_hold_every_rollout_once_and_keep_the_budget(items, budget, share_contexts):
    plan = plan_micro_batches(items, budget, share_contexts=share_contexts)
    assert sorted(i for members in plan for i in members) == list(range(len(items)))
    for members in plan:
        assert members
        if budget is not None and len(members) > 1:
            assert tokens_and_cost(items, members, share_contexts)[0] <= budget


@settings(deadline=None)
@given(st.lists(st.integers(1, 9), min_size=2, max_size=7), st.integers(0, 9), st.integers(8, 40))
def test_the_dearest_micro_batch_is_as_cheap_as_a_cut_by_length_allows(lengths, num_context, budget):
    """Against every way to cut the sorted rollouts into the same number of micro-batches."""
    context = [*range(num_context)]
    items = [Rollout([0], [*context, 0], num_context, [0] * length) for length in sorted(lengths)]
    plan = plan_micro_batches(items, budget)

    def dearest(cuts):
        batches = [range(a, b) for a, b in pairwise([0, *cuts, len(items)])]
        loads = [tokens_and_cost(items, batch, True) for batch in batches]
        fits = all(len(batch) == 1 or tokens <= budget for batch, (tokens, _) in zip(batches, loads, strict=True))
        return max(cost for _, cost in loads) if fits else float("inf")

    all_cuts = combinations(range(1, len(items)), len(plan) - 1)
    assert max(tokens_and_cost(items, members, True)[1] for members in plan) == min(map(dearest, all_cuts))


def test_equal_rollouts_are_spread_evenly():
    """Filled to the brim these would be 5, 5, 5 and 1."""
    items = [Rollout([1], [5, 6, 1], 2, [2, 3]) for _ in range(16)]
    assert [len(members) for members in plan_micro_batches(items, 2 + 5 * 3)] == [4, 4, 4, 4]


@settings(max_examples=8, deadline=None)
@given(
    st.lists(rollouts, min_size=1, max_size=6),
    st.one_of(st.none(), st.integers(1, 60)),
    st.booleans(),
    st.sampled_from(["frozen", "live"]),
)
def test_loss_and_gradient_are_the_same_for_every_budget(items, budget, share_contexts, kind):
    """A step over several contexts, none at all, ragged lengths and one-token completions."""
    student = copy.deepcopy(MODEL["qwen3"])
    teacher = Teacher(TeacherSpec(kind), student, None)
    with torch.no_grad():  # a student that has moved away from its teacher
        for parameter in student.parameters():
            parameter.add_(0.05 * torch.linspace(-1, 1, parameter.numel()).view_as(parameter))

    def step(scorer, plan):
        student.zero_grad()
        total = torch.zeros(())
        for members in plan:
            loss = scorer.terms([items[i] for i in members], OBJECTIVE, with_consistency=True).loss_T(0.5).sum()
            loss.backward()
            total += loss.detach()
        return total, [parameter.grad.clone() for parameter in student.parameters()]

    ours = ViewScorer(student, teacher, vocab_size=VOCABULARY, pad_id=PAD, share_contexts=share_contexts)
    alone = ViewScorer(student, teacher, vocab_size=VOCABULARY, pad_id=PAD, share_contexts=False)
    loss, gradient = step(ours, ours.plan(items, budget))
    by_definition, reference = step(alone, [[i] for i in range(len(items))])
    torch.testing.assert_close(loss, by_definition, rtol=1e-5, atol=1e-5)
    for a, b in zip(gradient, reference, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * max(1.0, float(b.abs().max())))


def test_no_budget_is_one_micro_batch_per_context():
    items = [Rollout([1], [5, 6, 1], 2, [2]), Rollout([2], [5, 6, 2], 2, [2, 3]), Rollout([3], [8, 9, 3], 2, [1])]
    assert plan_micro_batches(items, None) == [[0, 1], [2]]
    with pytest.raises(ValueError, match="max_tokens_per_micro_batch is 0"):
        plan_micro_batches(items, 0)


def test_prefix_cache_forgets_the_oldest_and_equals_a_fresh_run():
    model, cache = MODEL["llama"], PrefixCache(max_tokens=6)
    first, second, third = torch.tensor([1, 2, 3]), torch.tensor([4, 5, 6]), torch.tensor([7, 8, 9])
    kept = cache.get(model, first)
    assert not kept[0][0].requires_grad
    assert cache.get(model, first) is kept
    cache.get(model, second)
    assert cache.get(model, first) is kept  # still there, and now the most recent
    cache.get(model, third)
    assert cache.get(model, first) is kept
    assert set(cache._kept) == {(7, 8, 9), (1, 2, 3)}
    fresh = prefix_keys_values(model, second)
    torch.testing.assert_close(cache.get(model, second)[0][0], fresh[0][0].detach())


def test_ranks_that_must_agree_run_as_many_passes(monkeypatch):
    model, asked = MODEL["llama"], []
    passes = []
    monkeypatch.setattr(packing, "prefix_keys_values", lambda m, ids: passes.append(ids.tolist()) or [(ids, ids)])

    def others_miss_three(own: int) -> int:
        asked.append(own)
        return max(own, 3)

    cache = PrefixCache(6, others_miss_three)
    cache.prepare(model, [(1, 2, 3), (), (1, 2, 3), (4, 5), (7, 8)])  # the third would be over the bound
    assert (asked, passes) == ([2], [[1, 2, 3], [4, 5], [0]])
    assert cache.get(model, torch.tensor([4, 5])) is not None
    assert cache.get(model, torch.tensor([7, 8])) is None  # `get` runs nothing, for the others would not
    cache.prepare(model, [(7, 8), (1, 2, 3)])
    assert (asked, passes[3:]) == ([2, 1], [[7, 8], [0], [0]])
    assert set(cache._kept) == {(1, 2, 3), (7, 8)}  # (4, 5) was used longest ago


def test_a_cached_prefix_is_not_changed_by_its_use():
    model, prefix = MODEL["llama"], [1, 2, 3]
    batch = lay_out([[*prefix, 4], [*prefix, 5]], [[6], [7]], prefix, PAD, "cpu")
    keys_values = PrefixCache().get(model, batch.prefix_ids)
    before = [k.clone() for k, _ in keys_values]
    once = completion_hidden_states(model, batch, keys_values)
    twice = completion_hidden_states(model, batch, keys_values)
    torch.testing.assert_close(once, twice, rtol=0, atol=0)
    for ours, theirs in zip(before, keys_values, strict=True):
        torch.testing.assert_close(ours, theirs[0], rtol=0, atol=0)
