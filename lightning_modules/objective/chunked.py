"""Sums over tokens of functions of next-token distributions, a chunk of tokens at a time, gradient included.

`sum_over_tokens` projects C tokens of every view onto the vocabulary, has a term and its gradient in the logits
computed (`fused` has the closed forms), multiplies that gradient back through the head and goes on to the next chunk.
Nothing of size (T x V) ever exists: what is kept for the backward pass is the gradient in the hidden states, (T, H),
and, where a head is trained, that in its weight, summed in float32 whatever the data type. The backward pass only
scales them.

Heads. A plain ``nn.Linear`` is multiplied here, over the tokenizer's columns alone. Any other module (an adapter on the
head, one with hooks) is called, and autograd goes through it within the chunk: the same bound, except that a trained
weight inside costs one more buffer of its own size. Views may have different heads of different hidden sizes.

Ranks may differ in tokens and chunks, for nothing here communicates, but for ZeRO-3: a head that it has spread over the
ranks is whole only while its module is being called. The whole sum is then run AS that call (`_within`): DeepSpeed's
hooks gather each head once forward and once backward, however many chunks there are.

Shape suffixes as in `divergences`, and: C tokens of a chunk, H hidden size (of the view's own model).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lightning_modules.objective.divergences import Support, top_columns

CHUNK_BYTES = {"cpu": 5 * 2**28, "cuda": 5 * 2**28}
"""Budget of a chunk's (C x V) buffers in bytes, by device: 1.25 GiB, 367 tokens at V = 151,936. Each product with the
head reads all of it once per chunk, so that small chunks are slow."""

BUFFERS_PER_CHUNK = 6
"""(C x V) buffers of four bytes that are alive at once, at most: measured, 4 for OPD and 3 for NCA over the full
vocabulary, 5 for `symmetric`, 6 for the generalised JSD."""

CHUNK_TOKENS = {"cpu": 256}
"""Tokens of a chunk at most, by device. On a CPU more of them take memory and save no time: 1,792 tokens at V = 49,152
took 15.9 s in chunks of 128, 14.5 s of 256, 14.4 s of 512, 13.5 s of 896 (medians of three, beside other work)."""

HEAD_ROWS_BYTES = 2**26
"""Size of the blocks in which a chunk's gradient in a low-precision head is added to the float32 sum."""


def tokens_per_chunk(device: torch.device, vocab_size: int) -> int:
    """Tokens that are projected at once: as many as `CHUNK_BYTES` and `CHUNK_TOKENS` allow, at least one."""
    budget = CHUNK_BYTES.get(device.type, CHUNK_BYTES["cuda"])
    within_budget = max(1, budget // (4 * BUFFERS_PER_CHUNK * vocab_size))
    return min(within_budget, CHUNK_TOKENS.get(device.type, within_budget))


@dataclass(frozen=True, slots=True)
class Projection:
    """A view's distributions at T tokens: hidden states, and the head that makes logits of them."""

    hidden_TH: Tensor
    head: nn.Module
    vocab_size: int
    """Entries of the tokenizer; further columns of the head are padding and are cut off."""
    takes_gradient: bool = True
    """False: neither the hidden states nor the head get any."""
    top_k: int = 0
    """Number of likeliest tokens at each position that the terms want to know, over the whole vocabulary."""

    def logits(self) -> Tensor:
        """All logits at once, (T, V)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.takes_gradient):
            logits_TV: Tensor = self.head(self.hidden_TH)[..., : self.vocab_size]
        return logits_TV

    def constant(self) -> Projection:
        """The same view, stopped."""
        return replace(self, hidden_TH=self.hidden_TH.detach(), takes_gradient=False)


@dataclass(frozen=True, slots=True)
class Chunk:
    """C tokens of every view."""

    tokens: slice
    """Where they lie among the T tokens."""
    log_p: list[Tensor]
    """Log-probabilities over the support, (C, K), in the order of the views. Whoever reads them may overwrite them."""
    columns_CK: Tensor | None
    """The support; None: the full vocabulary."""
    top: list[Tensor | None]
    """Of each view the columns of its `top_k` likeliest tokens, (C, k)."""


Terms = Callable[[Chunk], tuple[list[Tensor], list[Tensor | None]]]
"""From a chunk to (statistics, each with C rows and the term to be summed first; and for each view the term's gradient
in the logits over the support, (C, K), or None)."""


def sum_over_tokens(
    views: Sequence[Projection],
    terms: Terms,
    *,
    support: Support,
    temperature: float,
    columns_TK: Tensor | None = None,
    weight_T: Tensor | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Sum of weight_t * term_t over all tokens, differentiable once, and the statistics of all tokens without gradient.

    Args:
        views: what is projected; the gradient reaches those that take it, and the heads' parameters.
        terms: the maths of one chunk.
        support: over which columns the distributions are.
        temperature: divides all logits.
        columns_TK: columns of a truncated support; None: the first view's largest.
        weight_T: constant weight of each token; None: 1.
    """
    vocab_size = views[0].vocab_size
    # Those that take gradient come last: `_within` runs the sum as the call of the last one.
    spread = {view.head: view for view in sorted(views, key=lambda view: view.takes_gradient) if is_spread(view.head)}

    def run(views: Sequence[Projection]) -> tuple[Tensor, ...]:
        heads: dict[nn.Module, _LinearHead | _ModuleHead] = {}
        for view in sorted(views, key=lambda view: not view.takes_gradient):
            if view.head not in heads:
                heads[view.head] = _as_head(view.head, vocab_size, trains=view.takes_gradient)
        inputs = [view.hidden_TH for view in views if view.takes_gradient]
        inputs += [parameter for head in heads.values() for parameter in head.parameters]
        with_gradient = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)
        job = _Job(views, heads, terms, support, temperature, columns_TK, weight_T, with_gradient)
        summed: tuple[Tensor, ...] = _SumOverTokens.apply(job, *inputs)
        return summed

    total, *statistics = _within(list(spread), views, run)
    return total, statistics


def is_spread(module: nn.Module) -> bool:
    """Whether ZeRO-3 has spread the module's weights over the ranks; its parameters carry a `ds_id` then."""
    return any(hasattr(parameter, "ds_id") for parameter in module.parameters())


def _within(
    heads: Sequence[nn.Module],
    views: Sequence[Projection],
    run: Callable[[Sequence[Projection]], tuple[Tensor, ...]],
) -> tuple[Tensor, ...]:
    """Run the sum while `heads` are being called, each within the one before it; the last may take gradient."""
    if not heads:
        return run(views)
    head, *inner = heads
    mine = [i for i, view in enumerate(views) if view.head is head and view.takes_gradient]
    results: list[tuple[Tensor, ...]] = []

    def forward(*hidden: Tensor) -> tuple[Tensor, ...]:
        # The hidden states that come in are others than those handed over: DeepSpeed has tied its hooks to them.
        given = dict(zip(mine, hidden, strict=False))
        results.append(
            _within(inner, [replace(v, hidden_TH=given.get(i, v.hidden_TH)) for i, v in enumerate(views)], run)
        )
        # Hooks for the backward pass are tied to what comes out: none for a head that takes no gradient.
        return results[0] if mine else ()

    own = head.__dict__.get("forward")
    head.forward = forward
    try:
        out: tuple[Tensor, ...] = head(*(views[i].hidden_TH for i in mine))
    finally:
        del head.forward
        if own is not None:
            head.forward = own
    return out if mine else results[0]


@dataclass(frozen=True, slots=True)
class _Job:
    views: Sequence[Projection]
    heads: dict[nn.Module, _LinearHead | _ModuleHead]
    terms: Terms
    support: Support
    temperature: float
    columns_TK: Tensor | None
    weight_T: Tensor | None
    with_gradient: bool

    def run(self) -> tuple[list[Tensor], list[Tensor | None]]:
        """The statistics of all tokens, and the summed term's gradients in the order of the function's inputs."""
        first = self.views[0]
        num_tokens = len(first.hidden_TH)
        gradients_TH = {
            i: torch.empty_like(view.hidden_TH)
            for i, view in enumerate(self.views)
            if view.takes_gradient and self.with_gradient
        }
        most = tokens_per_chunk(first.hidden_TH.device, first.vocab_size)
        step = math.ceil(num_tokens / math.ceil(num_tokens / most))  # chunks of equal size: no small, slow last one
        parts = []
        for start in range(0, num_tokens, step):
            parts.append(self._run_chunk(slice(start, min(start + step, num_tokens)), gradients_TH))
        statistics = [torch.cat(column) for column in zip(*parts, strict=True)]
        sums = [total for head in self.heads.values() for total in head.gradients()] if self.with_gradient else []
        return statistics, [*gradients_TH.values(), *sums]

    def _run_chunk(self, tokens: slice, gradients_TH: dict[int, Tensor]) -> list[Tensor]:
        columns = None if self.columns_TK is None else self.columns_TK[tokens]
        projected, log_p, top = [], [], []
        for i, view in enumerate(self.views):
            hidden, logits = self.heads[view.head].project(view.hidden_TH[tokens], i in gradients_TH)
            if i == 0 and columns is None:
                columns = self.support.columns(logits)
            top.append(top_columns(logits, view.top_k) if view.top_k else None)
            log_p.append(self._log_probabilities(logits.detach(), columns))
            # Only the graph of a module, and the tail's gradient, want the logits again.
            keeps = i in gradients_TH and (logits.requires_grad or self.support.kind == "top_k_tail")
            projected.append((hidden, logits if keeps else None))
            del logits
        statistics, gradients = self.terms(Chunk(tokens, log_p, columns, top))
        log_p.clear()
        for i, gradient in enumerate(gradients):
            gradients[i] = None  # freed as soon as it has been multiplied back
            if gradient is None or i not in gradients_TH:
                continue
            if self.weight_T is not None:
                gradient.mul_(self.weight_T[tokens, None])
            hidden_CH, logits_CV = projected[i]
            gradient_CV = self._logit_gradient(gradient, logits_CV, columns)
            del gradient
            gradients_TH[i][tokens] = self.heads[self.views[i].head].pull_back(hidden_CH, logits_CV, gradient_CV)
            del gradient_CV
        return statistics

    def _log_probabilities(self, logits_CV: Tensor, columns_CK: Tensor | None) -> Tensor:
        if self.temperature != 1.0:
            logits_CV = logits_CV / self.temperature
        return self.support.log_probabilities(logits_CV, columns_CK)

    def _logit_gradient(self, gradient_CK: Tensor, logits_CV: Tensor | None, columns_CK: Tensor | None) -> Tensor:
        """From the gradient over the support to that in the head's logits, (C, V)."""
        gradient_CK = gradient_CK if self.temperature == 1.0 else gradient_CK.div_(self.temperature)
        if columns_CK is None:
            return gradient_CK
        num_rows, num_columns = columns_CK.shape
        if self.support.kind == "top_k":
            dense = gradient_CK.new_zeros(num_rows, self.views[0].vocab_size)
            return dense.scatter_(-1, columns_CK, gradient_CK)
        # The tail's logit is the log-sum of the rest: its gradient goes to the rest by their shares of the tail.
        assert logits_CV is not None
        rest = logits_CV.detach().to(gradient_CK.dtype) / self.temperature
        dense = rest.scatter_(-1, columns_CK, -torch.inf).softmax(-1).mul_(gradient_CK[:, num_columns:])
        return dense.scatter_(-1, columns_CK, gradient_CK[:, :num_columns])


class _SumOverTokens(torch.autograd.Function):
    """The sum, with gradients formed in the forward pass."""

    @staticmethod
    def forward(ctx: Any, job: _Job, *inputs: Tensor) -> tuple[Tensor, ...]:
        statistics, gradients = job.run()
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(*statistics)
        term_T = statistics[0] if job.weight_T is None else job.weight_T * statistics[0]
        return (term_T.sum(), *statistics)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        # In place, for a head's gradient is large. Autograd notices if a retained graph is run backward again.
        gradients = ctx.saved_tensors
        if upstream is None:
            return (None, *[None] * len(gradients))
        return (None, *(None if gradient is None else gradient.mul_(upstream) for gradient in gradients))


def _as_head(head: nn.Module, vocab_size: int, *, trains: bool) -> _LinearHead | _ModuleHead:
    # Hooks must see their module called; those of ZeRO-3 do (`_within`).
    has_hooks = bool(head._forward_hooks or head._forward_pre_hooks) and not is_spread(head)
    is_plain = type(head) is nn.Linear and not has_hooks
    return (_LinearHead if is_plain else _ModuleHead)(head, vocab_size, trains)


class _LinearHead:
    """A plain linear head, multiplied here in the autocast type where autocast is on."""

    def __init__(self, head: nn.Module, vocab_size: int, trains: bool) -> None:
        weight, bias = head.weight, head.bias
        assert isinstance(weight, Tensor)
        device_type = weight.device.type
        is_autocast = torch.is_autocast_enabled(device_type)
        self.dtype = torch.get_autocast_dtype(device_type) if is_autocast else weight.dtype
        self.weight_VH = weight.detach()[:vocab_size].to(self.dtype)
        self.bias_V = bias.detach()[:vocab_size].to(self.dtype) if isinstance(bias, Tensor) else None
        own = (weight, bias) if trains else ()
        self.parameters = [p for p in own if isinstance(p, Tensor) and p.requires_grad]
        self._sums: list[Tensor] = []

    def project(self, hidden_CH: Tensor, with_gradient: bool) -> tuple[Tensor, Tensor]:
        hidden_CH = hidden_CH.detach().to(self.dtype)
        return hidden_CH, nn.functional.linear(hidden_CH, self.weight_VH, self.bias_V)

    def pull_back(self, hidden_CH: Tensor, logits_CV: Tensor | None, gradient_CV: Tensor) -> Tensor:
        """Gradient in the hidden states, (C, H); that in the parameters is added to their sums."""
        gradient_CV = gradient_CV.to(self.dtype)
        if not self._sums:
            self._sums = [torch.zeros_like(p, dtype=_wide(p.dtype)) for p in self.parameters]
        for total in self._sums:
            if total.ndim == 2:
                _add_product_(total[: len(self.weight_VH)], gradient_CV, hidden_CH)
            else:
                total[: len(self.weight_VH)] += gradient_CV.sum(0, dtype=total.dtype)
        return gradient_CV @ self.weight_VH

    def gradients(self) -> list[Tensor | None]:
        return [total.to(p.dtype) for total, p in zip(self._sums, self.parameters, strict=True)]


class _ModuleHead:
    """Any other head: called, with autograd through it."""

    def __init__(self, head: nn.Module, vocab_size: int, trains: bool) -> None:
        self.head, self.vocab_size = head, vocab_size
        self.parameters = [p for p in head.parameters() if p.requires_grad] if trains else []
        self._sums: list[Tensor | None] = [None] * len(self.parameters)

    def project(self, hidden_CH: Tensor, with_gradient: bool) -> tuple[Tensor, Tensor]:
        hidden_CH = hidden_CH.detach().requires_grad_(with_gradient)
        with torch.set_grad_enabled(with_gradient):
            return hidden_CH, self.head(hidden_CH)[..., : self.vocab_size]

    def pull_back(self, hidden_CH: Tensor, logits_CV: Tensor | None, gradient_CV: Tensor) -> Tensor:
        """Gradient in the hidden states, (C, H); that in the parameters is added to their sums."""
        assert logits_CV is not None
        hidden_gradient_CH, *others = torch.autograd.grad(
            logits_CV, [hidden_CH, *self.parameters], gradient_CV.to(logits_CV.dtype), allow_unused=True
        )
        for i, gradient in enumerate(others):
            if gradient is not None:
                total = self._sums[i]
                self._sums[i] = gradient.to(_wide(gradient.dtype)) if total is None else total.add_(gradient)
        return hidden_gradient_CH

    def gradients(self) -> list[Tensor | None]:
        return [None if t is None else t.to(p.dtype) for t, p in zip(self._sums, self.parameters, strict=True)]


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _add_product_(total_VH: Tensor, gradient_CV: Tensor, hidden_CH: Tensor) -> None:
    """Add gradient^T hidden to the total, where the total is wider than the factors in blocks of rows."""
    if total_VH.dtype == gradient_CV.dtype:
        total_VH.addmm_(gradient_CV.T, hidden_CH)
        return
    step = max(1, HEAD_ROWS_BYTES // (gradient_CV.element_size() * hidden_CH.shape[-1]))
    for start in range(0, len(total_VH), step):
        rows = slice(start, start + step)
        total_VH[rows] += gradient_CV[:, rows].T @ hidden_CH
