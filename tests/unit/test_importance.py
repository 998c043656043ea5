"""Importance weights: the expectation they restore, by counting out every sequence; the truncation; a case by hand."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_modules.objective.consistency import ObjectiveSettings
from lightning_modules.objective.importance import importance_weights
from lightning_modules.packing import Rollout, sampler_log_probabilities

NUM_TOKENS, VOCABULARY = 3, 3


def test_by_hand():
    """Ratios 2, 1/4, 8 and 3, 5: products of those in front, and nothing of the completion before."""
    log_ratio_T = torch.tensor([2.0, 0.25, 8.0, 3.0, 5.0], dtype=torch.float64).log()
    log_mu_T = torch.full((5,), -1.0, dtype=torch.float64)
    example_T = torch.tensor([0, 0, 0, 1, 1])
    weights_T = importance_weights(log_mu_T + log_ratio_T, log_mu_T, example_T, cap=1.5)
    torch.testing.assert_close(weights_T, torch.tensor([1.0, 1.5, 0.5, 1.0, 1.5], dtype=torch.float64))


class Tree:
    """Next-token log-probabilities after every prefix of a tiny vocabulary."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        prefixes = [p for length in range(NUM_TOKENS) for p in itertools.product(range(VOCABULARY), repeat=length)]
        self.after = {p: torch.randn(VOCABULARY, generator=generator).double().log_softmax(-1) for p in prefixes}

    def log_p_T(self, sequence: tuple[int, ...]) -> torch.Tensor:
        return torch.stack([self.after[sequence[:t]][token] for t, token in enumerate(sequence)])


@pytest.mark.parametrize("seed", range(5))
def test_the_expectation_is_that_of_samples_from_the_student(seed):
    """E_q sum_t KL(q || f) = E_mu sum_t w_t KL(q || f), over all sequences; the unweighted mean over mu is another."""
    q, mu, f = Tree(seed), Tree(seed + 100), Tree(seed + 200)
    wanted = weighted = unweighted = 0.0
    for sequence in itertools.product(range(VOCABULARY), repeat=NUM_TOKENS):
        prefixes = [sequence[:t] for t in range(NUM_TOKENS)]
        kl_T = torch.stack([(q.after[p].exp() * (q.after[p] - f.after[p])).sum() for p in prefixes])
        log_q_T, log_mu_T = q.log_p_T(sequence), mu.log_p_T(sequence)
        weights_T = importance_weights(log_q_T, log_mu_T, torch.zeros(NUM_TOKENS, dtype=torch.long), cap=math.inf)
        wanted += float(log_q_T.sum().exp() * kl_T.sum())
        weighted += float(log_mu_T.sum().exp() * (weights_T * kl_T).sum())
        unweighted += float(log_mu_T.sum().exp() * kl_T.sum())
    assert weighted == pytest.approx(wanted, rel=1e-12)
    assert abs(unweighted - wanted) > 1e-3


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(0, 99), st.floats(0.1, 10.0))
def test_completions_are_weighed_one_by_one(lengths, seed, cap):
    generator = torch.Generator().manual_seed(seed)
    log_q_T, log_mu_T = (torch.randn(sum(lengths), generator=generator).double() for _ in range(2))
    example_T = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    weights_T = importance_weights(log_q_T, log_mu_T, example_T, cap)
    start = 0
    for length in lengths:
        product = 1.0
        for t in range(start, start + length):
            assert float(weights_T[t]) == pytest.approx(min(product, cap), rel=1e-9)
            product *= math.exp(log_q_T[t] - log_mu_T[t])
        start += length


def test_a_sampler_that_is_the_student_weighs_nothing():
    log_q_T = torch.randn(6)
    assert importance_weights(log_q_T, log_q_T, torch.tensor([0, 0, 0, 1, 1, 1]), 2.0).tolist() == [1.0] * 6


def test_what_the_sampler_said_is_asked_for():
    told, silent = Rollout([1], [2, 1], 1, [3, 4], sampler_logprobs=[-0.5, -0.25]), Rollout([1], [2, 1], 1, [3])
    assert sampler_log_probabilities([told, told], torch.device("cpu")).tolist() == [-0.5, -0.25, -0.5, -0.25]
    with pytest.raises(ValueError, match="importance_weight_cap is set, but the rollout engine tells no"):
        sampler_log_probabilities([told, silent], torch.device("cpu"))


def test_a_cap_is_positive():
    with pytest.raises(ValueError, match=r"importance_weight_cap is 0\.0; it must be positive"):
        ObjectiveSettings(importance_weight_cap=0.0)
