"""Who samples what, by the draw itself: determinism, share, and which view is trained."""

from __future__ import annotations

from collections import Counter

import pytest

from datamodules.example import Example
from lightning_modules.objective.consistency import ObjectiveSettings
from lightning_modules.objective.divergences import Support
from lightning_modules.packing import Rollout, plan_micro_batches
from lightning_modules.rollout.engine import Completion, SamplingSpec
from lightning_modules.rollout.engines import EngineSpec
from lightning_modules.rollout.episodes import Turn
from lightning_modules.rollout.sources import RolloutSpec, check_method
from lightning_modules.views import PromptPair


def examples(number: int) -> list[Example]:
    return [Example(f"item-{i}", ({"role": "user", "content": "?"},), "c", "") for i in range(number)]


def test_the_draw_belongs_to_the_example_whatever_is_beside_it():
    spec, items = RolloutSpec(context_share=0.5), examples(200)
    whole = spec.views(items, seed=3, step=7)
    assert spec.views(items[::-1], seed=3, step=7) == whole[::-1]
    # Cut into ranks' shares.
    assert [spec.views(items[rank::2], seed=3, step=7) for rank in (0, 1)] == [whole[0::2], whole[1::2]]


def test_the_draw_changes_with_seed_step_and_repetition():
    spec, items = RolloutSpec(context_share=0.5), examples(200)
    drawn = [spec.views(items, seed, step) for seed, step in ((0, 0), (0, 1), (1, 0), (1, 1))]
    repeated = spec.views([item for item in items for _ in range(2)], 0, 0)
    drawn.append(repeated[1::2])
    assert repeated[0::2] == drawn[0]
    for i, ours in enumerate(drawn):
        for theirs in drawn[:i]:
            same = sum(a == b for a, b in zip(ours, theirs, strict=True))
            assert 60 < same < 140  # independent fair coins: 100 of 200, standard deviation 7


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
def test_the_share_is_met(share):
    spec, items = RolloutSpec(context_share=share), examples(100)
    counts = Counter(view for step in range(40) for view in spec.views(items, 0, step))
    # 4,000 draws: five standard deviations of a share are at most 0.04.
    assert counts["with_context"] / 4_000 == pytest.approx(share, abs=0.04)


def test_the_ends_are_certain():
    items = examples(50)
    assert set(RolloutSpec().views(items, 0, 0)) == {"no_context"}
    assert set(RolloutSpec(context_share=1.0).views(items, 0, 0)) == {"with_context"}
    assert set(RolloutSpec("teacher").views(items, 0, 0)) == {"with_context"}


@pytest.mark.parametrize(
    ("spec", "view", "reads_context"),
    [
        (RolloutSpec(), "no_context", False),
        (RolloutSpec(context_share=0.5), "no_context", False),
        (RolloutSpec(context_share=0.5), "with_context", True),
        (RolloutSpec("teacher"), "with_context", False),  # the teacher read it, the student is to do without
    ],
)
def test_which_view_is_trained(spec, view, reads_context):
    turn = Turn(PromptPair("a", [1], [5, 1], 1, "x", "c x"), view, Completion([7], "y", True), valid=True)
    assert spec.training_rollout(turn) == Rollout([1], [5, 1], 1, [7], reads_context)


def test_a_micro_batch_trains_one_view():
    """Four rollouts of one context and two whose context nobody shares, half of each trained with it."""
    shared = [Rollout([i], [5, 6, i], 2, [9], bool(i % 2)) for i in range(4)]
    alone = [Rollout([4], [7, 7, 4], 2, [9], False), Rollout([5], [8, 8, 5], 2, [9], True)]
    plan = plan_micro_batches([*shared, *alone], None)
    assert sorted(map(sorted, plan)) == [[0, 2], [1, 3], [4], [5]]


@pytest.mark.parametrize(
    ("spec", "objective", "engine", "message"),
    [
        (
            RolloutSpec(),
            ObjectiveSettings("none", distillation="cross_entropy"),
            EngineSpec(),
            "distillation is 'cross_entropy', but rollouts.sampler is 'student'",
        ),
        (
            RolloutSpec(context_share=0.5),
            ObjectiveSettings("no_context_anchor"),
            EngineSpec(),
            "rollouts.context_share is 0.5, but consistency is 'no_context_anchor'",
        ),
        (
            RolloutSpec("teacher"),
            ObjectiveSettings("none"),
            EngineSpec("vllm"),
            "rollouts.sampler is 'teacher', but engine.kind is 'vllm'",
        ),
    ],
)
def test_what_no_equation_stands_for_is_refused(spec, objective, engine, message):
    with pytest.raises(ValueError, match=message):
        check_method(spec, objective, engine, SamplingSpec())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"context_share": 1.5}, r"rollouts\.context_share is 1\.5; it must be in \[0, 1\]"),
        ({"context_share": float("nan")}, r"rollouts\.context_share is nan; it must be in \[0, 1\]"),
        ({"sampler": "teacher", "context_share": 0.5}, r"context_share is 0\.5, but rollouts\.sampler is 'teacher'"),
    ],
)
def test_fields_are_checked(fields, message):
    with pytest.raises(ValueError, match=message):
        RolloutSpec(**fields)


def test_what_is_well_defined_is_allowed():
    for consistency in ("none", "no_context_anchor", "adaptive_anchor", "symmetric"):
        objective = ObjectiveSettings(consistency, 0.0, Support("top_k", 4))
        check_method(RolloutSpec("teacher"), objective, EngineSpec(), SamplingSpec(top_k=5))
    check_method(RolloutSpec(context_share=0.5), ObjectiveSettings("none", 0.5), EngineSpec("vllm"), SamplingSpec())


def test_importance_weights_are_for_plain_samples_of_another_engine():
    objective = ObjectiveSettings(importance_weight_cap=2.0)
    check_method(RolloutSpec(), objective, EngineSpec("vllm"), SamplingSpec())
    with pytest.raises(ValueError, match=r"importance_weight_cap is 2\.0, but engine\.kind is 'hf'"):
        check_method(RolloutSpec(), objective, EngineSpec(), SamplingSpec())
    for sampling in (SamplingSpec(temperature=0.7), SamplingSpec(top_p=0.9), SamplingSpec(top_k=20)):
        with pytest.raises(ValueError, match=r"importance_weight_cap is 2\.0, but sampling has temperature"):
            check_method(RolloutSpec(), objective, EngineSpec("vllm"), sampling)
