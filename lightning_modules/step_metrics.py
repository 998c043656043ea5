"""What a training step reports, by the names it is logged under."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from lightning_modules.rollout.episodes import Episode, GameCounts, all_turns, count_games


def step_metrics(
    sums: Mapping[str, float],
    num_tokens: float,
    episodes: Sequence[Episode],
    sum_over_ranks: Callable[[float], float],
    *,
    coef: float,
    gradient_norm: float,
    learning_rate: float,
    logprob_gap: float | None,
    elapsed_s: float,
) -> dict[str, float]:
    """The metrics of one optimizer step.

    Args:
        sums: the terms of the loss, summed over this rank's tokens.
        num_tokens: completion tokens of the step, on all ranks.
        episodes: what this rank trained on.
        sum_over_ranks: adds up a number of every rank.
        coef: weight of the consistency term.
        gradient_norm: before clipping.
        learning_rate: that the step was made with.
        logprob_gap: see `RolloutEngine.logprob_gap`.
        elapsed_s: of the step, in seconds.
    """
    turns = all_turns(episodes)
    num_turns = sum_over_ranks(len(turns))
    num_clipped = sum_over_ranks(sum(not turn.completion.finished for turn in turns))
    num_with_context = sum_over_ranks(sum(episode.view == "with_context" for episode in episodes))
    metrics = {f"train/{name}": sum_over_ranks(value) / num_tokens for name, value in sums.items()}
    metrics |= {
        "train/consistency_coef": coef,
        "train/gradient_norm": gradient_norm,
        "train/learning_rate": learning_rate,
        "completions/mean_length": num_tokens / num_turns,
        "completions/clipped_ratio": num_clipped / num_turns,
        "rollout/with_context_ratio": num_with_context / sum_over_ranks(len(episodes)),
    }
    if logprob_gap is not None:
        metrics["rollout/logprob_gap"] = logprob_gap
    metrics |= GameCounts(*map(sum_over_ranks, count_games(episodes))).metrics()
    return metrics | {"throughput/tokens_per_s": num_tokens / elapsed_s, "throughput/step_s": elapsed_s}
