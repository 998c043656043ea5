"""Micro-batches: how the completions of one optimizer step are cut up and laid out for the models.

One copy of a shared context. Examples that share a privileged context share the leading tokens of their with-context
prompts. Those tokens are run ONCE per micro-batch, with gradient, as keys and values; the suffixes (question and
completion) attend to them:

    prefix  (1, P)    c c c c c c
    suffix  (N, S)                q q q y y .      right-padded; row i attends to all of the prefix and to itself
                                  q q y y y y

Keys and values are expanded over the N rows, and autograd sums the rows' gradients back into the one prefix. Hidden
states, loss and gradients are those of N full sequences, for P + N*S tokens of work in place of N*(P + S).

Where sharing does not apply (no context, one example only, gradient checkpointing: transformers switches the cache off
under it), full sequences are run. Right padding under a causal mask needs no mask of its own: no real token ever
attends to a later one.

Micro-batches never split an example, hold the same examples for every view, and do not change the loss: every term is
summed over tokens and divided by the token count of the whole optimizer step.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from lightning_modules.models import decoder_of

KeysValues = list[tuple[Tensor, Tensor]]
"""Keys and values of a prefix, layer by layer, each (1, heads, P, head size)."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """One completion with the two prompts that score it. All are token ids."""

    no_context_ids: Sequence[int]
    with_context_ids: Sequence[int]
    context_prefix_length: int
    completion_ids: Sequence[int]
    """Sampled tokens; of a finished completion the end token is the last."""

    @property
    def context_prefix(self) -> tuple[int, ...]:
        """The tokens shared by all rollouts with the same context."""
        return tuple(self.with_context_ids[: self.context_prefix_length])


@dataclass(frozen=True, slots=True)
class ViewBatch:
    """One view of a micro-batch, laid out for a model."""

    prefix_ids: Tensor
    """Shared leading tokens, (P,); empty where nothing is shared."""
    suffix_ids: Tensor
    """What follows them, (N, S), right-padded."""
    rows: Tensor
    """Row of each completion token, (T,)."""
    columns: Tensor
    """Column of the position that PREDICTS each completion token, (T,): the one before it."""


def common_prefix(rows: Sequence[Sequence[int]]) -> list[int]:
    """Longest run of leading tokens that all rows share."""
    low, high = min(map(list, rows)), max(map(list, rows))  # whatever the extremes of the order share, all share
    length = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    return list(low[:length])


def plan_micro_batches(rollouts: Sequence[Rollout], max_tokens: int | None) -> list[list[int]]:
    """Cut a step into micro-batches of indices.

    Rollouts that share a context come together, those of about equal length too. A single rollout over the budget
    gets a micro-batch of its own: nothing is dropped.

    Args:
        rollouts: the step's rollouts.
        max_tokens: budget of a micro-batch: padded tokens of its with-context view, the shared context counted once.
            None: no limit.

    Raises:
        ValueError: if the budget is not positive.
    """
    if max_tokens is not None and max_tokens < 1:
        raise ValueError(f"max_tokens_per_micro_batch is {max_tokens}; it must be positive, or null for no limit.")
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, rollout in enumerate(rollouts):
        groups[rollout.context_prefix].append(index)
    # A context with a single rollout has nobody to share with: those are run together, in full.
    alone = [members[0] for prefix, members in groups.items() if len(members) == 1 and prefix]
    shared = [(len(prefix), members) for prefix, members in groups.items() if len(members) > 1 or not prefix]
    batches: list[list[int]] = []
    for prefix_length, members in [*shared, (0, alone)]:
        batches.extend(_fill(rollouts, members, prefix_length, max_tokens))
    return batches


def _fill(
    rollouts: Sequence[Rollout], members: list[int], prefix_length: int, max_tokens: int | None
) -> list[list[int]]:
    def suffix_length(index: int) -> int:
        return len(rollouts[index].with_context_ids) - prefix_length + len(rollouts[index].completion_ids)

    batches: list[list[int]] = []
    batch: list[int] = []
    for index in sorted(members, key=suffix_length):  # ascending: the newest member is the longest
        if batch and max_tokens is not None and prefix_length + (len(batch) + 1) * suffix_length(index) > max_tokens:
            batches.append(batch)
            batch = []
        batch.append(index)
    return [*batches, batch] if batch else batches


def lay_out(
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    prefix: Sequence[int],
    pad_id: int,
    device: torch.device | str,
) -> ViewBatch:
    """Lay out one view of a micro-batch.

    Args:
        prompts: N prompts that all begin with `prefix` and are longer than it.
        completions: N completions of at least one token, appended as ids.
        prefix: shared leading tokens, or empty.
        pad_id: fills the right of short rows; never attended to, never trained.
        device: where the tensors go.
    """
    suffixes = [[*prompt[len(prefix) :], *completion] for prompt, completion in zip(prompts, completions, strict=True)]
    width = max(map(len, suffixes))
    ids = torch.tensor([row + [pad_id] * (width - len(row)) for row in suffixes], device=device)
    rows: list[int] = []
    columns: list[int] = []
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        first = len(prompt) - len(prefix) - 1
        assert first >= 0, "a prompt must be longer than the shared prefix"
        rows += [row] * len(completion)
        columns += range(first, first + len(completion))
    return ViewBatch(
        torch.tensor(list(prefix), dtype=torch.long, device=device),
        ids,
        torch.tensor(rows, device=device),
        torch.tensor(columns, device=device),
    )


def prefix_keys_values(model: PreTrainedModel, prefix_ids: Tensor) -> KeysValues:
    """Run a prefix (P,) once and return its keys and values; they carry gradient unless the caller is under no_grad."""
    cache = DynamicCache(config=model.config)
    decoder_of(model)(prefix_ids[None], past_key_values=cache, use_cache=True)
    return [(keys, values) for keys, values, *_ in cache]


def expanded_cache(keys_values: KeysValues, num_rows: int) -> DynamicCache:
    """A fresh cache in which `num_rows` rows see the same prefix. The given tensors are not modified."""
    return DynamicCache(
        [(keys.expand(num_rows, -1, -1, -1), values.expand(num_rows, -1, -1, -1)) for keys, values in keys_values]
    )


def completion_hidden_states(model: PreTrainedModel, batch: ViewBatch, keys_values: KeysValues | None = None) -> Tensor:
    """Hidden states that predict the completion tokens, (T, H).

    Args:
        model: causal language model.
        batch: the view.
        keys_values: keys and values of the batch's prefix if they are known already (frozen teacher); else they are
            computed here, with gradient where gradients are on.
    """
    if len(batch.prefix_ids) == 0:
        hidden = decoder_of(model)(batch.suffix_ids, use_cache=False).last_hidden_state
    else:
        keys_values = keys_values or prefix_keys_values(model, batch.prefix_ids)
        cache = expanded_cache(keys_values, len(batch.suffix_ids))
        hidden = decoder_of(model)(batch.suffix_ids, past_key_values=cache, use_cache=True).last_hidden_state
    states: Tensor = hidden[batch.rows, batch.columns]
    return states


class PrefixCache:
    """Keys and values of prefixes for a model that does not move (the frozen teacher), kept for the whole run.

    Bounded in tokens; the prefix that was used longest ago goes first.
    """

    def __init__(self, max_tokens: int = 32_768) -> None:
        """Keep at most `max_tokens` tokens of prefixes; a longer single prefix is computed anew each time."""
        self.max_tokens = max_tokens
        self._kept: OrderedDict[tuple[int, ...], KeysValues] = OrderedDict()

    def get(self, model: PreTrainedModel, prefix_ids: Tensor) -> KeysValues:
        """Keys and values of `prefix_ids` (P,) under `model`, without gradient."""
        key = tuple(prefix_ids.tolist())
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        with torch.no_grad():
            keys_values = prefix_keys_values(model, prefix_ids)
        if len(key) <= self.max_tokens:
            self._kept[key] = keys_values
            while sum(map(len, self._kept)) > self.max_tokens:
                self._kept.popitem(last=False)
        return keys_values
