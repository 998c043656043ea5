"""Truncated importance weights, for completions that were sampled from mu and not quite from q, which is trained.

An engine with weights of its own samples from a mu that differs from the trainer's q by arithmetic, or by weights that
are a step old. With D_t the terms of the loss at token t, which are functions of the tokens BEFORE t,

    E[y ~ q] sum_t D_t  =  E[y ~ mu] sum_t w_t D_t,        w_t = prod over s < t of q(y_s) / mu(y_s)

exactly: a divergence over the vocabulary at t has been summed over y_t already, so that the ratio of y_t itself has no
place in w_t. (Policy gradients weigh token t by its own ratio, since their term at t is a function of y_t.) The product
over many tokens varies much, hence the truncation min(w_t, cap): biased, with a bounded variance (Ionides 2008,
Truncated Importance Sampling). The weights are constants: no gradient goes through them.

In a game each turn is a completion by itself; the ratios of earlier turns are left out.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def importance_weights(log_q_T: Tensor, log_mu_T: Tensor, example_T: Tensor, cap: float) -> Tensor:
    """The weight of each token's terms, min(w_t, cap), (T,).

    Args:
        log_q_T: log-probability in nats of each completion token under the student that is trained, (T,).
        log_mu_T: the same under what sampled it, (T,).
        example_T: index of the completion each token belongs to, (T,); a completion's tokens lie together, in order.
        cap: largest weight, positive.
    """
    ratio_T = log_q_T - log_mu_T
    before_T = ratio_T.cumsum(0) - ratio_T  # over all tokens in front, those of other completions too
    is_first_T = torch.ones_like(example_T, dtype=torch.bool)
    is_first_T[1:] = example_T[1:] != example_T[:-1]
    completion_T = is_first_T.cumsum(0) - 1
    own_T = before_T - before_T[is_first_T][completion_T]
    return own_T.exp().clamp(max=cap)
