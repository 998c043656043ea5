"""Micro-batches: how the completions of one optimizer step are cut up and laid out for the models.

One copy of a shared context. Examples that share a privileged context share the leading tokens of their with-context
prompts. Those tokens are run ONCE per micro-batch, with gradient; the suffixes (question and completion) attend to
them: `shared_context` tells how. Hidden states, loss and gradients are those of N full sequences, for P + T tokens of
work (T the suffixes' together) in place of N*P + T.

A view without a shared context runs as the same packed row with nothing before the suffixes, as padding costs more.
Models that can't run packed rows (`shared_context.obstacle`) run full rows, right-padded: under a causal mask no real
token ever attends to a later one, so right padding needs no mask of its own.

Micro-batches never split an example, hold the same examples for every view, and do not change the loss: every term is
summed over tokens and divided by the token count of the whole optimizer step.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from lightning_modules.models import decoder_of
from lightning_modules.shared_context import KeysValues, PackedRow, run_packed, shares_contexts

PAIRS_PER_TOKEN = 4_096
"""Attended pairs that cost as much as one token in the linear layers: parameters / (2 x hidden size x layers), which is
3,100 for SmolLM2-135M and 23,000 for Qwen3-8B. It only balances micro-batches, so one value does for all models."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """One completion with the two prompts that score it. All are token ids."""

    no_context_ids: Sequence[int]
    with_context_ids: Sequence[int]
    context_prefix_length: int
    completion_ids: Sequence[int]
    """Sampled tokens; of a finished completion the end token is the last."""
    student_reads_context: bool = False
    """Whether distillation trains the student's with-context view on it (context dropout), not the one without."""
    sampler_logprobs: Sequence[float] | None = None
    """See `rollout.engine.Completion.logprobs`."""

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
    lengths: tuple[int, ...]
    """Tokens of each suffix without padding; at least 2, as something predicts a first completion token."""

    def to(self, device: torch.device) -> ViewBatch:
        """The same on another device."""
        prefix_ids, suffix_ids = self.prefix_ids.to(device), self.suffix_ids.to(device)
        return ViewBatch(prefix_ids, suffix_ids, self.rows.to(device), self.columns.to(device), self.lengths)

    @property
    def completion_ids(self) -> Tensor:
        """The completion tokens, (T,)."""
        return self.suffix_ids[self.rows, self.columns + 1]


def sampler_log_probabilities(rollouts: Sequence[Rollout], device: torch.device) -> Tensor:
    """What the sampler said of the completion tokens of a micro-batch, (T,), in their order in its views.

    Raises:
        ValueError: if a sampler did not say.
    """
    if any(rollout.sampler_logprobs is None for rollout in rollouts):
        raise ValueError(
            "importance_weight_cap is set, but the rollout engine tells no log-probabilities of what it samples. Leave "
            "importance_weight_cap out: the engine's weights are the trainer's then, and all weights would be 1."
        )
    return torch.tensor([value for rollout in rollouts for value in rollout.sampler_logprobs or ()], device=device)


def common_prefix(rows: Sequence[Sequence[int]]) -> list[int]:
    """Longest run of leading tokens that all rows share."""
    low, high = min(map(list, rows)), max(map(list, rows))  # whatever the extremes of the order share, all share
    length = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    return list(low[:length])


def plan_micro_batches(
    rollouts: Sequence[Rollout], max_tokens: int | None, *, share_contexts: bool = True
) -> list[list[int]]:
    """Cut a step into micro-batches of indices.

    Rollouts that share a context come together, those of about equal length too, and never those that train different
    views. As few micro-batches as the budget allows are made of them, and the dearest of those is made as cheap as
    possible, so that they cost about the same:

        cost = tokens x PAIRS_PER_TOKEN + attended pairs
        tokens = P + sum of suffix lengths l,  pairs = P (P + 1) / 2 + sum of l P + l (l + 1) / 2

    for a context of P tokens, which is counted once. A single rollout over the budget gets a micro-batch of its own:
    nothing is dropped.

    Args:
        rollouts: the step's rollouts.
        max_tokens: budget of a micro-batch: tokens of its with-context view, the shared context counted once.
            None: no limit.
        share_contexts: False: the models run every row in full and padded, and so the tokens are counted.

    Raises:
        ValueError: if the budget is not positive.
    """
    if max_tokens is not None and max_tokens < 1:
        raise ValueError(f"max_tokens_per_micro_batch is {max_tokens}; it must be positive, or null for no limit.")
    groups: dict[tuple[bool, tuple[int, ...]], list[int]] = defaultdict(list)
    for index, rollout in enumerate(rollouts):
        groups[rollout.student_reads_context, rollout.context_prefix].append(index)
    # A context with a single rollout has nobody to share with: those are run together, in full.
    alone: dict[bool, list[int]] = {False: [], True: []}
    shared: list[tuple[int, list[int]]] = []
    for (reads_context, prefix), members in groups.items():
        if len(members) == 1 and prefix:
            alone[reads_context] += members
        else:
            shared.append((len(prefix), members))
    batches: list[list[int]] = []
    for prefix_length, members in [*shared, (0, alone[False]), (0, alone[True])]:
        if members:
            counted = prefix_length if share_contexts else 0
            batches.extend(_cut(rollouts, members, counted, max_tokens, is_padded=not share_contexts))
    return batches


def _cut(
    rollouts: Sequence[Rollout], members: list[int], prefix_length: int, max_tokens: int | None, *, is_padded: bool
) -> list[list[int]]:
    """Cut rollouts of one context, by length, into the fewest batches, the dearest of them as cheap as possible."""
    lengths = {
        index: len(rollouts[index].with_context_ids) - prefix_length + len(rollouts[index].completion_ids)
        for index in members
    }
    ordered = sorted(members, key=lengths.__getitem__)  # ascending: the last of a batch is its longest
    sums = [0, *accumulate(lengths[index] for index in ordered)]
    squares = [0, *accumulate(lengths[index] ** 2 for index in ordered)]

    def load(start: int, stop: int) -> tuple[int, int]:
        """Tokens and cost of the batch ordered[start:stop]."""
        longest, num_rows = lengths[ordered[stop - 1]], stop - start
        total = num_rows * longest if is_padded else sums[stop] - sums[start]
        square = num_rows * longest**2 if is_padded else squares[stop] - squares[start]
        pairs = prefix_length * (prefix_length + 1) // 2 + total * prefix_length + (square + total) // 2
        return prefix_length + total, (prefix_length + total) * PAIRS_PER_TOKEN + pairs

    def fill(max_cost: float) -> list[tuple[int, int]]:
        """Batches as full as the budget and the cost allow."""
        cuts = [0]
        for stop in range(2, len(ordered) + 1):
            tokens, cost = load(cuts[-1], stop)
            if cost > max_cost or (max_tokens is not None and tokens > max_tokens):
                cuts.append(stop - 1)
        return list(pairwise([*cuts, len(ordered)]))

    best = fill(float("inf"))
    low, high = 0, max(load(*batch)[1] for batch in best)  # a limit that is too low, and one that is high enough
    while len(best) > 1 and high - low > 1:
        middle = (low + high) // 2
        tried = fill(middle)
        if len(tried) == len(best) and max(load(*batch)[1] for batch in tried) <= middle:
            best, high = tried, middle
        else:
            low = middle
    return [ordered[start:stop] for start, stop in best]


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
        tuple(map(len, suffixes)),
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
        keys_values: keys and values of the batch's prefix if they are known already (frozen teacher); else the prefix
            is run here, with gradient where gradients are on.
    """
    if not shares_contexts(model):
        return _padded_hidden_states(model, batch)
    # The last token of a suffix predicts nothing that is asked for.
    lengths = [length - 1 for length in batch.lengths]
    prefix_ids = batch.prefix_ids if keys_values is None else batch.prefix_ids[:0]
    device, width = batch.suffix_ids.device, batch.suffix_ids.shape[1]
    places = torch.cat([torch.arange(length) + row * width for row, length in enumerate(lengths)]).to(device)
    ids = torch.cat([prefix_ids, batch.suffix_ids.flatten()[places]])
    row = PackedRow.of(len(prefix_ids), lengths, device, keys_values)
    starts = torch.tensor([0, *lengths[:-1]]).cumsum(0).to(device) + len(prefix_ids)
    states: Tensor = run_packed(decoder_of(model), ids, row)[starts[batch.rows] + batch.columns]
    return states


def completion_places(model: PreTrainedModel, batch: ViewBatch) -> tuple[Tensor, Tensor]:
    """Row and column, (T,) each, of the same positions in what the decoder runs over when no keys are known."""
    if not shares_contexts(model):
        return batch.rows, batch.columns + len(batch.prefix_ids)
    lengths = [0, *(length - 1 for length in batch.lengths[:-1])]
    starts = torch.tensor(lengths).cumsum(0).to(batch.rows.device) + len(batch.prefix_ids)
    return torch.zeros_like(batch.rows), starts[batch.rows] + batch.columns


def _padded_hidden_states(model: PreTrainedModel, batch: ViewBatch) -> Tensor:
    """The same from full rows, (N, P + S)."""
    prefix_ids = batch.prefix_ids.expand(len(batch.suffix_ids), -1)
    ids = torch.cat([prefix_ids, batch.suffix_ids], dim=1)
    hidden = decoder_of(model)(ids, use_cache=False).last_hidden_state
    states: Tensor = hidden[batch.rows, batch.columns + prefix_ids.shape[1]]
    return states


class PrefixCache:
    """Keys and values of prefixes for a model that does not move (the frozen teacher), kept for the whole run.

    Bounded in tokens; the prefix that was used longest ago goes first. One token takes 2 x layers x key-value heads x
    head size x bytes of the data type: in bfloat16 23 kB with SmolLM2-135M (0.75 GB for 32,768 tokens), 147 kB with
    Qwen3-8B (4.8 GB). Everything is dropped the moment a weight of the model was written to or the model has moved to
    another device.

    Under ZeRO-3 a pass over a prefix is a collective, and ranks miss different prefixes: there `prepare` runs what a
    step needs, all ranks as many passes, and `get` runs nothing.
    """

    def __init__(self, max_tokens: int = 32_768, max_over_ranks: Callable[[int], int] | None = None) -> None:
        """Keep at most `max_tokens` tokens of prefixes; 0: nothing.

        Args:
            max_tokens: the bound.
            max_over_ranks: largest of all ranks' numbers, where all ranks must run as many passes; None: they need not.
        """
        self.max_tokens, self.max_over_ranks = max_tokens, max_over_ranks
        self._kept: OrderedDict[tuple[int, ...], KeysValues] = OrderedDict()
        self._state: object = None

    def prepare(self, model: PreTrainedModel, prefixes: Iterable[tuple[int, ...]]) -> None:
        """Have the prefixes of a step, as many as the bound allows, before its first `get`; all ranks together.

        Without ranks that must agree it does nothing: `get` runs what it misses.
        """
        if self.max_over_ranks is None or not self.max_tokens or not shares_contexts(model):
            return
        self._drop_if_changed(model, model.device)
        wanted: list[tuple[int, ...]] = []
        for key in dict.fromkeys(prefixes):
            if key and sum(map(len, wanted)) + len(key) <= self.max_tokens:
                wanted.append(key)
        for key in wanted:
            if key in self._kept:
                self._kept.move_to_end(key)
        missing = [key for key in wanted if key not in self._kept]
        for number in range(self.max_over_ranks(len(missing))):
            if number < len(missing):
                self._run(model, torch.tensor(missing[number], device=model.device))
            else:  # another rank misses more
                with torch.no_grad():
                    prefix_keys_values(model, torch.zeros(1, dtype=torch.long, device=model.device))

    def get(self, model: PreTrainedModel, prefix_ids: Tensor) -> KeysValues | None:
        """Keys and values of `prefix_ids` (P,) under `model`, without gradient.

        Returns:
            None for a prefix that is empty or over the bound, and for a model that can't run packed rows: a separate
            pass over the prefix would only cost then. Where ranks must agree, also for one that was not prepared.
        """
        key = tuple(prefix_ids.tolist())
        if not 0 < len(key) <= self.max_tokens or not shares_contexts(model):
            return None
        if self.max_over_ranks is not None:
            return self._kept.get(key)
        self._drop_if_changed(model, prefix_ids.device)
        if key not in self._kept:
            self._run(model, prefix_ids)
        self._kept.move_to_end(key)
        return self._kept[key]

    def _drop_if_changed(self, model: PreTrainedModel, device: torch.device) -> None:
        # In-place writes (an optimizer, a moving average, load_state_dict) count up a tensor's version.
        state = (id(model), device, sum(parameter._version for parameter in model.parameters()))
        if state != self._state:
            self._kept.clear()
            self._state = state

    def _run(self, model: PreTrainedModel, prefix_ids: Tensor) -> None:
        """Run a prefix and keep it; what was used longest ago makes room."""
        with torch.no_grad():
            self._kept[tuple(prefix_ids.tolist())] = prefix_keys_values(model, prefix_ids)
        while sum(map(len, self._kept)) > self.max_tokens:
            self._kept.popitem(last=False)
