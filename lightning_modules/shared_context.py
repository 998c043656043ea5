"""Attention over one copy of a shared context: exact, without a mask, with the models' own code.

One packed row holds everything that a micro-batch has to run, and no padding:

    c c c c c c | q q q y y | q q y y y y | q y        1 row of P + T tokens
    context       suffix 1    suffix 2      suffix 3   positions 0..P-1, then P.. for each suffix

It is ONE ordinary forward of the decoder, with explicit position ids. Embeddings, norms, linear layers (LoRA or not),
gradient checkpointing and ZeRO see a row of tokens and nothing else; what is particular happens in the attention
function, which transformers lets us register (`NAME`) and which gets the cut of the row (`PackedRow`) as a keyword:

1. context tokens attend causally to the context;
2. all T suffix tokens attend to the context's unexpanded keys and values: one call without a mask. With grouped-query
   heads the queries of a group are lined up as further queries of their one key-value head, so nothing is repeated;
3. each suffix attends causally to itself: one batched call, right-padded inside it only.

2 and 3 are softmaxes over disjoint keys, o_1, o_2 with log-normalisers l_1, l_2; the softmax over the union is

    l = log(e^l_1 + e^l_2),  o = e^(l_1 - l) o_1 + e^(l_2 - l) o_2.

The backward pass of a flash kernel recomputes its probabilities as e^(q.k - l) and needs o only for the row sums
do.o; given the MERGED o and l it returns exactly this part's share of the gradients of the union, so each part's own
kernel is called once more and the shares of dq are added. The context's keys and values get the suffixes' gradient
summed over all rows, as autograd goes on through the same row into the context's tokens.

Without the row's keyword, `shared_context_attention` is transformers' sdpa, number for number: switching a model's
attention to `NAME` changes nothing for generate, caches and padded batches.

What the other ways cost (P context tokens, N suffixes, T suffix tokens, k key-value bytes a token and layer):

- expanding the context's keys and values over N rows: N * P * k bytes a layer, again for the concatenation with the
  suffix's, and once more repeated for grouped-query heads, all kept for the backward pass; gradient checkpointing
  switches the cache off that it lives in. Here: P * k.
- FlexAttention with a block mask over the packed row: the same sums, on CUDA by a compiled kernel of about this cost;
  it has no backward pass on CPU, where a dense mask would take (P + T)^2 scores per head.
- each row in full: N * P tokens through every layer in place of P.

Orders of magnitude (CPU seconds and GiB of a forward and backward pass over P tokens and 16 suffixes of 112, layers of
SmolLM2-135M's shape, float32): P = 512, six layers: 5.7 and 0.94 here, 6.2 and 1.11 expanded; P = 2,048, two layers:
5.8 and 0.53 here, 5.2 and 0.85 expanded. The gain over expansion is memory, and that checkpointing works; time is about
equal on CPU.

A model that does not move (frozen teacher) may bring the context's keys and values from `packing.PrefixCache`; the row
then holds the suffixes alone. Without that cache every view is exactly one forward, on every rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from lightning_modules.attention_kernels import flash_backward, flash_forward

NAME = "shared_context"
"""Under which transformers knows the attention function."""

FAMILIES = ("llama", "qwen2", "qwen3")
"""`config.model_type` of the models whose attention is plain causal attention throughout (SmolLM is a llama)."""

KeysValues = list[tuple[Tensor, Tensor]]
"""Keys and values of a prefix, layer by layer, each (1, heads, P, head size)."""


@dataclass(frozen=True, slots=True, eq=False)
class PackedRow:
    """How a packed row is cut: `context_length` tokens of the shared context, then suffixes of `lengths` tokens."""

    context_length: int
    """0: there is no context, or `keys_values` brings it."""
    lengths: tuple[int, ...]
    """Tokens of each suffix, in order; N of them, together T."""
    places: Tensor | None
    """Place of each suffix token in N rows padded to the longest, flattened, (T,); None: all have one length."""
    keys_values: KeysValues | None = None
    """The context's keys and values, computed before."""

    @classmethod
    def of(
        cls,
        context_length: int,
        lengths: Sequence[int],
        device: torch.device | str,
        keys_values: KeysValues | None = None,
    ) -> PackedRow:
        """A row on `device`."""
        longest = max(lengths)
        if min(lengths) == longest:
            return cls(context_length, tuple(lengths), None, keys_values)
        places = torch.cat([torch.arange(length) + row * longest for row, length in enumerate(lengths)])
        return cls(context_length, tuple(lengths), places.to(device), keys_values)

    def runs(self) -> Iterator[tuple[slice, PackedRow]]:
        """The tokens that attend causally to themselves: the context's, if it is in the row, and the suffixes'."""
        if self.context_length:
            yield slice(0, self.context_length), PackedRow(0, (self.context_length,), None)
        yield slice(self.context_length, None), self

    def pad(self, packed: Tensor) -> Tensor:
        """(T, heads, ...) -> (N, heads, S, ...), zeros at the right of short rows."""
        num_rows, longest = len(self.lengths), max(self.lengths)
        if self.places is not None:
            padded = packed.new_zeros(num_rows * longest, *packed.shape[1:])
            packed = padded.index_copy_(0, self.places, packed)
        return packed.unflatten(0, (num_rows, longest)).transpose(1, 2)

    def pack(self, padded: Tensor) -> Tensor:
        """(N, heads, S, ...) -> (T, heads, ...): the inverse of `pad`."""
        packed = padded.transpose(1, 2).flatten(0, 1)
        return packed if self.places is None else packed.index_select(0, self.places)


# -------------------------------------------------------------------------------------------------- in transformers


def shares_contexts(model: PreTrainedModel) -> bool:
    """Whether the model can run packed rows; if so, its attention is switched to `NAME`, which changes no number."""
    if obstacle(model) is not None:
        return False
    if model.config._attn_implementation != NAME:
        model.set_attn_implementation(NAME)
    return True


def obstacle(model: PreTrainedModel) -> str | None:
    """Why the model can't run packed rows; None: it can."""
    config = model.config
    if config.model_type not in FAMILIES:
        return f"its family {config.model_type!r} is none of {', '.join(FAMILIES)}"
    if config._attn_implementation not in ("sdpa", NAME):
        return f"attn_implementation is {config._attn_implementation!r}, not 'sdpa'"
    if any(kind != "full_attention" for kind in getattr(config, "layer_types", None) or ()):
        return "some of its layers attend to a sliding window"
    if config.attention_dropout:
        return f"its attention_dropout is {config.attention_dropout}, not 0"
    rope_type = (config.rope_parameters or {}).get("rope_type")
    if rope_type in ("dynamic", "longrope"):
        return f"its rotary embedding ({rope_type}) depends on the longest sequence of a batch"
    return None


@cache  # once per model and reason, not once per micro-batch
def warn_unshared(name: str, reason: str) -> None:
    """Tell the user that contexts are run once per example, and why."""
    rank_zero_warn(f"Model {name!r} runs a shared context once per example, not once per micro-batch: {reason}.")


def run_packed(decoder: nn.Module, input_ids: Tensor, row: PackedRow) -> Tensor:
    """Hidden states (P + T, H) of a packed row.

    Args:
        decoder: the part of a model for which `shares_contexts` holds that maps ids to hidden states.
        input_ids: (P + T,); (T,) where `row.keys_values` brings the context.
        row: its cut.
    """
    start = row.context_length if row.keys_values is None else row.keys_values[0][0].shape[2]
    runs = [torch.arange(row.context_length), *(torch.arange(start, start + length) for length in row.lengths)]
    output = decoder(
        input_ids[None],
        position_ids=torch.cat(runs)[None].to(input_ids.device),
        # A mask of four dimensions is taken as prepared and handed on; without one transformers would see that the
        # positions start again and build a dense mask over the whole row.
        attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=input_ids.device),
        use_cache=False,
        packed_row=row,
    )
    hidden: Tensor = output.last_hidden_state[0]
    return hidden


def shared_context_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    packed_row: PackedRow | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of one layer, as transformers calls it: sdpa, unless a packed row is being run.

    Args:
        module: the attention layer.
        query: (1, query heads, P + T, head size) with positions applied.
        key: (1, key-value heads, P + T, head size), likewise.
        value: as `key`.
        attention_mask: of no meaning for a packed row.
        scaling: of the scores; None: 1 / sqrt(head size).
        packed_row: the cut of the row.
        kwargs: whatever else transformers hands to sdpa.

    Returns:
        The output (1, P + T, query heads, head size), and no weights.
    """
    if packed_row is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    known = None if packed_row.keys_values is None else packed_row.keys_values[cast(int, module.layer_idx)]
    states = (_as_autocast(states)[0].transpose(0, 1) for states in (query, key, value))
    context = (None, None) if known is None else map(_as_autocast, known)
    output: Tensor = _PackedAttention.apply(*states, *context, packed_row, scale)
    return output[None], None


AttentionInterface.register(NAME, shared_context_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def _as_autocast(states: Tensor) -> Tensor:
    """What autocast does to the inputs of sdpa; to ours it would do nothing."""
    kind = states.device.type
    return states.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else states


# ------------------------------------------------------------------------------------------------------- arithmetic


class _PackedAttention(torch.autograd.Function):
    """The module docstring's three parts in one call: nothing is kept twice for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        known_key: Tensor | None,
        known_value: Tensor | None,
        row: PackedRow,
        scale: float,
    ) -> Tensor:
        """(P + T, query heads, head size) from (P + T, heads, head size); what is known is (1, heads, P, head size)."""
        num_groups = query.shape[1] // key.shape[1]
        output = torch.empty_like(query, memory_format=torch.contiguous_format)
        lse = query.new_empty(query.shape[:2], dtype=torch.promote_types(query.dtype, torch.float32))
        extras: list[tuple[Any, ...]] = []
        for tokens, part in row.runs():
            keys, values = (part.pad(states[tokens].repeat_interleave(num_groups, 1)) for states in (key, value))
            own_output, own_lse, extra = flash_forward(part.pad(query[tokens]), keys, values, True, scale)
            output[tokens], lse[tokens] = part.pack(own_output), part.pack(own_lse)
            extras.append(extra)
        context = _context(key, value, known_key, known_value, row)
        if context is not None:
            suffixes = slice(row.context_length, None)
            folded = _fold(query[suffixes], num_groups)
            context_output, context_lse, extra = flash_forward(folded, *context, False, scale)
            own_lse = lse[suffixes]
            other_lse = _unfold(context_lse, len(own_lse))
            union = torch.logaddexp(own_lse, other_lse)
            own_share, share = (own_lse - union).exp()[..., None], (other_lse - union).exp()[..., None]
            output[suffixes] = own_share * output[suffixes] + share * _unfold(context_output, len(own_lse))
            lse[suffixes] = union
            extras.append(extra)
        ctx.save_for_backward(query, key, value, known_key, known_value, output, lse)
        ctx.row, ctx.scale, ctx.extras = row, scale, extras
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Each part's kernel once more, with the merged output and log-normaliser."""
        row, scale, extras = ctx.row, ctx.scale, iter(ctx.extras)
        query, key, value, known_key, known_value, output, lse = ctx.saved_tensors
        num_groups = query.shape[1] // key.shape[1]
        # Shares are added in the kernels' data type, which may be wider than the states'.
        sums: list[list[Tensor]] = []
        for tokens, part in row.runs():
            keys, values = (part.pad(states[tokens].repeat_interleave(num_groups, 1)) for states in (key, value))
            rows, queries, outputs, normalisers = (part.pad(states[tokens]) for states in (grad, query, output, lse))
            shares = flash_backward(rows, queries, keys, values, outputs, normalisers, True, scale, next(extras))
            d_query, d_key, d_value = map(part.pack, shares)
            sums.append([d_query, *(states.unflatten(1, (-1, num_groups)).sum(2) for states in (d_key, d_value))])
        context = _context(key, value, known_key, known_value, row)
        d_known: list[Tensor | None] = [None, None]
        if context is not None:
            suffixes = slice(row.context_length, None)
            folded = (_fold(states[suffixes], num_groups) for states in (grad, query, output, lse))
            rows, queries, outputs, normalisers = folded
            shares = flash_backward(rows, queries, *context, outputs, normalisers, False, scale, next(extras))
            sums[-1][0] = sums[-1][0] + _unfold(shares[0], len(query) - row.context_length)
            if known_key is None:
                d_key, d_value = (share[0].transpose(0, 1) for share in shares[1:])
                sums[0][1:] = [sums[0][1] + d_key, sums[0][2] + d_value]
            else:
                d_known = [share.to(grad.dtype) for share in shares[1:]]
        d_states = (torch.cat(parts).to(grad.dtype) for parts in zip(*sums, strict=True))
        return *d_states, *d_known, None, None


def _context(
    key: Tensor, value: Tensor, known_key: Tensor | None, known_value: Tensor | None, row: PackedRow
) -> tuple[Tensor, Tensor] | None:
    """What the suffixes attend to beside themselves, (1, key-value heads, P, head size)."""
    if known_key is not None and known_value is not None:
        return known_key, known_value
    if not row.context_length:
        return None
    own_key, own_value = (states[: row.context_length].transpose(0, 1)[None] for states in (key, value))
    return own_key, own_value


def _fold(packed: Tensor, num_groups: int) -> Tensor:
    """(T, query heads, ...) -> (1, key-value heads, groups * T, ...): a group's queries, one head after another."""
    grouped = packed.unflatten(1, (-1, num_groups)).movedim(0, 2)
    return grouped.flatten(1, 2)[None]


def _unfold(folded: Tensor, num_tokens: int) -> Tensor:
    """The inverse of `_fold`, for `num_tokens` = T."""
    return folded[0].unflatten(1, (-1, num_tokens)).movedim(2, 0).flatten(1, 2)
