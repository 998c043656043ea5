"""Who samples what a step trains on, and which of the student's views is trained on it: the method and its baselines.

y is a completion of the prompt x, c its context, f the teacher with the context. The distillation term is that of
`objective.consistency`; "on q" says which of the student's views it trains.

    method                            y is sampled from               trained on   settings
    on-policy distillation            q_x, the student without c      q_x          the defaults (arXiv:2606.11627)
    off-policy context distillation   f, the teacher with c           q_x          sampler teacher, beta 0
    fine-tuning on teacher answers    f, the teacher with c           q_x          sampler teacher, cross_entropy
    random context dropout            q_c with probability p, else    q_c, else    context_share p
                                      q_x                             q_x

The draw of context dropout is a function of (seed, step, example, number of the rollout) and of nothing else: neither
micro-batches nor ranks nor a resumed run change it. Games are played to their end in one view.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from datamodules.example import Example
from lightning_modules.objective.consistency import ObjectiveSettings
from lightning_modules.packing import Rollout
from lightning_modules.rollout.engine import SamplingSpec
from lightning_modules.rollout.engines import EngineSpec
from lightning_modules.rollout.episodes import Turn
from lightning_modules.views import View

Sampler = Literal["student", "teacher"]


@dataclass(frozen=True)
class RolloutSpec:
    """Who samples the rollouts."""

    sampler: Sampler = "student"
    """``student``: on-policy; ``teacher``: off-policy, the teacher answers with the context, and the student is trained
    on that without it."""
    context_share: float = 0.0
    """Probability of an example that the student samples its rollout WITH the context, and is trained in that view
    (random context dropout); in [0, 1]."""

    def __post_init__(self) -> None:
        """Check that the fields fit together.

        Raises:
            ValueError: naming the field.
        """
        if not 0.0 <= self.context_share <= 1.0:
            raise ValueError(f"rollouts.context_share is {self.context_share}; it must be in [0, 1].")
        if self.context_share and self.sampler == "teacher":
            raise ValueError(
                f"rollouts.context_share is {self.context_share}, but rollouts.sampler is 'teacher', who always "
                "samples with the context; set one of them."
            )

    def views(self, examples: Sequence[Example], seed: int, step: int) -> list[View]:
        """Whose prompt each example's rollout of optimizer step `step` is sampled from.

        Args:
            examples: of the step; one that is in it several times has as many rollouts.
            seed: of the run, the same on every rank.
            step: 0-based.
        """
        if self.sampler == "teacher":
            return ["with_context"] * len(examples)
        if self.context_share == 0.0:
            return ["no_context"] * len(examples)
        views: list[View] = []
        seen: Counter[str] = Counter()
        for example in examples:
            entropy = [seed, step, seen[example.id], *example.id.encode()]
            drawn = np.random.default_rng(np.random.SeedSequence(entropy, spawn_key=(2,))).random()
            views.append("with_context" if drawn < self.context_share else "no_context")
            seen[example.id] += 1
        return views

    def training_rollout(self, turn: Turn) -> Rollout:
        """The token ids that the loss is made of: the student is trained in the view that it sampled from."""
        own_view = self.sampler == "student" and turn.view == "with_context"
        return replace(turn.rollout, student_reads_context=own_view)


def check_method(
    rollouts: RolloutSpec, objective: ObjectiveSettings, engine: EngineSpec, sampling: SamplingSpec
) -> None:
    """Refuse combinations that no equation stands for, and those that are not built.

    Raises:
        ValueError: naming both settings.
    """
    if objective.distillation == "cross_entropy" and rollouts.sampler == "student":
        raise ValueError(
            "distillation is 'cross_entropy', but rollouts.sampler is 'student': fitting the student to its own "
            "samples teaches nothing. Set rollouts.sampler to 'teacher'."
        )
    if rollouts.context_share and objective.consistency != "none":
        raise ValueError(
            f"rollouts.context_share is {rollouts.context_share}, but consistency is {objective.consistency!r}: a "
            "rollout that is trained with the context has no other view to be held to. Set consistency to 'none'."
        )
    if rollouts.sampler == "teacher" and engine.kind != "hf":
        raise ValueError(
            f"rollouts.sampler is 'teacher', but engine.kind is {engine.kind!r}, which holds the student's weights; "
            "only 'hf' samples from a teacher."
        )
    cap = objective.importance_weight_cap
    if cap is not None and engine.kind == "hf":
        raise ValueError(
            f"importance_weight_cap is {cap}, but engine.kind is 'hf', which samples with the trainer's own weights: "
            "all weights would be 1. Leave it out, or set engine.kind to vllm."
        )
    if cap is not None and (sampling.temperature, sampling.top_p, sampling.top_k) != (1.0, 1.0, 0):
        raise ValueError(
            f"importance_weight_cap is {cap}, but sampling has temperature {sampling.temperature}, top_p "
            f"{sampling.top_p} and top_k {sampling.top_k}: engines tell log-probabilities at temperature 1 over the "
            "whole vocabulary, not those that were sampled from. Sample at 1, 1 and 0, or leave the cap out."
        )
