"""The objective against a reference in plain float64 Python, and against hand-worked cases."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_modules.objective.consistency import (
    CoefficientSchedule,
    Consistency,
    ObjectiveSettings,
    ViewLogits,
    adaptive_weight,
    separate_anchor,
    token_terms,
)
from lightning_modules.objective.divergences import Support, cross_entropy, distillation_divergence, entropy, kl

VARIANTS = get_args(Consistency)
LN2, LN3 = math.log(2), math.log(3)


# ---- the reference: loops over lists of floats, nothing shared with the code under test


def softmax(logits: list[float]) -> list[float]:
    top = max(logits)
    weights = [math.exp(z - top) for z in logits]
    return [w / sum(weights) for w in weights]


def ref_kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def ref_support(logits: list[list[float]], kind: str, k: int) -> list[list[float]]:
    """Distributions of several views over the support of the first."""
    full = [softmax(view) for view in logits]
    if kind == "full" or k >= len(logits[0]):
        return full
    kept = sorted(range(len(logits[0])), key=lambda v: -logits[0][v])[:k]
    if kind == "top_k":
        return [[p[v] / sum(p[u] for u in kept) for v in kept] for p in full]
    return [[*[p[v] for v in kept], sum(p[v] for v in range(len(p)) if v not in kept)] for p in full]


def ref_divergence(q: list[float], f: list[float], beta: float) -> float:
    if beta in (0.0, 1.0):
        return ref_kl(q, f) if beta == 1.0 else ref_kl(f, q)
    m = [beta * b + (1 - beta) * a for a, b in zip(q, f, strict=True)]
    return beta * ref_kl(f, m) + (1 - beta) * ref_kl(q, m)


def ref_consistency(variant: str, q_x, q_c, f, anchor) -> float:
    if variant in ("no_context_anchor", "adaptive_anchor"):
        return ref_kl(q_x, q_c)
    if variant == "dual_opd":
        return ref_kl(q_c, f)
    if variant == "symmetric":
        return (ref_kl(q_x, q_c) + ref_kl(q_c, q_x)) / 2
    return ref_kl(anchor, q_c)


def random_views(seed: int, tokens: int = 5, vocabulary: int = 11, dtype=torch.float64) -> ViewLogits:
    generator = torch.Generator().manual_seed(seed)
    x, f, c, a = (2 * torch.randn(tokens, vocabulary, generator=generator, dtype=dtype) for _ in range(4))
    return ViewLogits(x.requires_grad_(), f, c.requires_grad_(), a)


@pytest.mark.parametrize(
    ("variant", "beta", "kind", "temperature"),
    list(itertools.product(VARIANTS, (0.0, 0.3, 1.0), ("full", "top_k", "top_k_tail"), (1.0, 0.7))),
)
def test_every_variant_equals_the_reference(variant, beta, kind, temperature):
    views, example_T, tau = random_views(3), torch.tensor([0, 0, 0, 1, 1]), 0.8
    terms = token_terms(
        views,
        example_T,
        consistency=variant,
        beta=beta,
        support=Support(kind, 4),
        temperature=temperature,
        adaptive_tau=tau,
    )
    logits = [
        views.student_no_context_TV,
        views.teacher_with_context_TV,
        views.student_with_context_TV,
        views.anchor_TV,
    ]
    rows = [ref_support([(view.detach()[t] / temperature).tolist() for view in logits], kind, 4) for t in range(5)]
    opd = [ref_divergence(q_x, f, beta) for q_x, f, _, _ in rows]
    np.testing.assert_allclose(terms.opd_T.detach(), opd, rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(terms.entropy_T, [-sum(p * math.log(p) for p in q_x) for q_x, *_ in rows], rtol=1e-10)
    if variant == "none":
        assert terms.consistency_T is None
        return
    nca = [ref_consistency(variant, q_x, q_c, f, a) for q_x, f, q_c, a in rows]
    np.testing.assert_allclose(terms.consistency_T.detach(), nca, rtol=1e-10, atol=1e-13)
    reverse = [ref_kl(q_x, f) for q_x, f, _, _ in rows]
    means = [sum(reverse[:3]) / 3] * 3 + [sum(reverse[3:]) / 2] * 2
    expected = [math.exp(-m / tau) if variant == "adaptive_anchor" else 1.0 for m in means]
    np.testing.assert_allclose(terms.weight_T, expected, rtol=1e-10)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_cross_entropy_equals_its_definition_and_leaves_the_second_term_as_it_is(variant, temperature):
    views, example_T, tokens = random_views(5), torch.tensor([0, 0, 0, 1, 1]), [3, 0, 10, 3, 7]
    given_ids = replace(views, completion_T=torch.tensor(tokens))
    terms = token_terms(
        given_ids, example_T, consistency=variant, temperature=temperature, distillation="cross_entropy"
    )
    rows = [softmax((row / temperature).tolist()) for row in views.student_no_context_TV.detach()]
    np.testing.assert_allclose(
        terms.opd_T.detach(), [-math.log(q[y]) for q, y in zip(rows, tokens, strict=True)], rtol=1e-10
    )
    (gradient,) = torch.autograd.grad(terms.opd_T.sum(), views.student_no_context_TV, retain_graph=True)
    onehot = [[float(v == y) for v in range(11)] for y in tokens]
    np.testing.assert_allclose(gradient, (np.array(rows) - onehot) / temperature, rtol=1e-10, atol=1e-12)
    other = token_terms(views, example_T, consistency=variant, temperature=temperature)
    if variant != "none":
        torch.testing.assert_close(terms.consistency_T, other.consistency_T, rtol=0, atol=0)
    torch.testing.assert_close(terms.weight_T, other.weight_T, rtol=0, atol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_cross_entropy_asks_for_the_teacher_only_where_the_second_term_does(variant):
    settings = ObjectiveSettings(variant, distillation="cross_entropy")
    views = replace(random_views(5), completion_T=torch.arange(5), teacher_with_context_TV=None)
    if settings.needs_teacher:
        assert variant in ("dual_opd", "adaptive_anchor")
        with pytest.raises(AssertionError):
            settings.token_terms(views, torch.zeros(5, dtype=torch.long))
    else:
        assert settings.token_terms(views, torch.zeros(5, dtype=torch.long)).opd_T.shape == (5,)
    assert ObjectiveSettings(variant).needs_teacher


# ---- two tokens by hand


def test_cross_entropy_by_hand():
    q = torch.tensor([[0.75, 0.25], [0.5, 0.5]], dtype=torch.float64)
    torch.testing.assert_close(
        cross_entropy(q.log(), torch.tensor([1, 0])), torch.tensor([2 * LN2, LN2], dtype=torch.float64)
    )


def test_kl_of_two_tokens_by_hand():
    p, q = torch.tensor([[0.5, 0.5]], dtype=torch.float64), torch.tensor([[0.75, 0.25]], dtype=torch.float64)
    # KL(p||q) = 1/2 ln(1/2 / 3/4) + 1/2 ln(1/2 / 1/4) = ln 2 - ln(3) / 2
    assert kl(p.log(), q.log()).item() == pytest.approx(LN2 - LN3 / 2, rel=1e-12)
    # KL(q||p) = 3/4 ln(3/2) + 1/4 ln(1/2) = 3/4 ln 3 - ln 2
    assert kl(q.log(), p.log()).item() == pytest.approx(0.75 * LN3 - LN2, rel=1e-12)
    assert entropy(p.log()).item() == pytest.approx(LN2, rel=1e-12)


def test_beta_names_the_directions_as_trl_does():
    student, teacher = torch.tensor([[0.5, 0.5]]).double().log(), torch.tensor([[0.75, 0.25]]).double().log()
    assert distillation_divergence(student, teacher, 1.0).item() == pytest.approx(LN2 - LN3 / 2)  # KL(student||teacher)
    assert distillation_divergence(student, teacher, 0.0).item() == pytest.approx(
        0.75 * LN3 - LN2
    )  # KL(teacher||student)
    # beta 1/2: m = (5/8, 3/8); 1/2 KL(f||m) + 1/2 KL(q||m)
    by_hand = 0.5 * (0.75 * math.log(6 / 5) + 0.25 * math.log(2 / 3)) + 0.5 * (
        0.5 * math.log(4 / 5) + 0.5 * math.log(4 / 3)
    )
    assert distillation_divergence(student, teacher, 0.5).item() == pytest.approx(by_hand)


def test_top_k_renormalises_and_the_tail_keeps_the_rest():
    logits = torch.tensor([[0.5, 0.25, 0.125, 0.125]], dtype=torch.float64).log()
    columns = Support("top_k", 2).columns(logits)
    assert columns.tolist() == [[0, 1]]
    torch.testing.assert_close(
        Support("top_k", 2).log_probabilities(logits, columns).exp(),
        torch.tensor([[2 / 3, 1 / 3]], dtype=torch.float64),
    )
    torch.testing.assert_close(
        Support("top_k_tail", 2).log_probabilities(logits, columns).exp(),
        torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64),
    )


@given(seed=st.integers(0, 10_000), k=st.integers(1, 10))
def test_truncated_divergences_are_divergences(seed, k):
    views = random_views(seed)
    logits = (views.student_no_context_TV.detach(), views.teacher_with_context_TV)
    values = {}
    for kind in ("full", "top_k", "top_k_tail"):
        support = Support(kind, k)
        columns = support.columns(logits[0])
        values[kind] = kl(*(support.log_probabilities(z, columns) for z in logits))
    assert all((v >= -1e-12).all() for v in values.values())
    assert (values["top_k_tail"] <= values["full"] + 1e-12).all()  # data processing inequality


def test_a_support_as_wide_as_the_vocabulary_is_exact():
    views = random_views(0)
    exact = token_terms(views, torch.zeros(5, dtype=torch.long), consistency="symmetric")
    for kind in ("top_k", "top_k_tail"):
        wide = token_terms(views, torch.zeros(5, dtype=torch.long), consistency="symmetric", support=Support(kind, 11))
        torch.testing.assert_close(wide.opd_T, exact.opd_T)
        torch.testing.assert_close(wide.consistency_T, exact.consistency_T)


# ---- where gradients go


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v != "none"])
@pytest.mark.parametrize("kind", ["full", "top_k", "top_k_tail"])
def test_gradient_isolation_is_exact(variant, kind):
    def grads(pick):
        views = random_views(1)
        terms = token_terms(views, torch.tensor([0, 0, 1, 1, 1]), consistency=variant, support=Support(kind, 4))
        x, c = views.student_no_context_TV, views.student_with_context_TV
        return torch.autograd.grad(pick(terms).sum(), (x, c), allow_unused=True)

    opd_x, opd_c = grads(lambda terms: terms.opd_T)
    assert opd_x.abs().max() > 0
    assert opd_c is None
    nca_x, nca_c = grads(lambda terms: terms.weight_T * terms.consistency_T)
    assert nca_c.abs().max() > 0
    if variant == "symmetric":
        assert nca_x.abs().max() > 0
    else:
        assert nca_x is None


def test_gradients_have_the_closed_forms():
    """dOPD/dz_x = q_x (log q_x - log f - KL), dNCA/dz_c = q_c - q_x, in the softmax's logits."""
    views = random_views(2)
    terms = token_terms(views, torch.zeros(5, dtype=torch.long), consistency="no_context_anchor")
    x, c = views.student_no_context_TV, views.student_with_context_TV
    grad_x, grad_c = torch.autograd.grad((terms.opd_T + terms.consistency_T).sum(), (x, c))
    log_x, log_c, log_f = (
        x.detach().log_softmax(-1),
        c.detach().log_softmax(-1),
        views.teacher_with_context_TV.log_softmax(-1),
    )
    q_x = log_x.exp()
    torch.testing.assert_close(grad_x, q_x * (log_x - log_f - (q_x * (log_x - log_f)).sum(-1, keepdim=True)))
    torch.testing.assert_close(grad_c, log_c.exp() - q_x)


def test_no_gradient_ever_reaches_teacher_or_anchor():
    for variant in VARIANTS:
        views = random_views(4)
        views.teacher_with_context_TV.requires_grad_()
        views.anchor_TV.requires_grad_()
        terms = token_terms(views, torch.zeros(5, dtype=torch.long), consistency=variant)
        loss = terms.opd_T.sum() + (0 if terms.consistency_T is None else (terms.weight_T * terms.consistency_T).sum())
        loss.backward()
        assert views.teacher_with_context_TV.grad is None
        assert views.anchor_TV.grad is None


# ---- the rest


@pytest.mark.parametrize("variant", VARIANTS)
def test_agreeing_views_cost_nothing(variant):
    logits = torch.randn(6, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    views = ViewLogits(logits, logits, logits, logits)
    terms = token_terms(views, torch.zeros(6, dtype=torch.long), consistency=variant)
    assert terms.opd_T.abs().max() < 1e-12
    if terms.consistency_T is not None:
        assert terms.consistency_T.abs().max() < 1e-12
        torch.testing.assert_close(terms.weight_T, torch.ones(6, dtype=torch.float64))


def test_low_precision_logits_are_summed_in_float32():
    views = random_views(5, dtype=torch.float32)
    low = ViewLogits(
        *(
            v.detach().bfloat16()
            for v in (
                views.student_no_context_TV,
                views.teacher_with_context_TV,
                views.student_with_context_TV,
                views.anchor_TV,
            )
        )
    )
    high = ViewLogits(
        *(
            v.float()
            for v in (
                low.student_no_context_TV,
                low.teacher_with_context_TV,
                low.student_with_context_TV,
                low.anchor_TV,
            )
        )
    )
    index = torch.zeros(5, dtype=torch.long)
    a, b = (token_terms(v, index, consistency="no_context_anchor") for v in (low, high))
    assert a.opd_T.dtype == torch.float32
    torch.testing.assert_close(a.opd_T, b.opd_T)


def test_extreme_logits_stay_finite():
    logits = torch.tensor([[1e4, 0.0, -1e4]])
    views = ViewLogits(logits.clone().requires_grad_(), logits.flip(-1), logits.flip(-1).requires_grad_())
    for kind in ("full", "top_k", "top_k_tail"):
        terms = token_terms(views, torch.zeros(1, dtype=torch.long), consistency="symmetric", support=Support(kind, 1))
        (terms.opd_T + terms.consistency_T).sum().backward()
        assert torch.isfinite(terms.opd_T).all()
        assert torch.isfinite(views.student_no_context_TV.grad).all()


def test_adaptive_weight_is_per_example_and_stopped():
    kl_T = torch.tensor([0.2, 0.4, 3.0], requires_grad=True)
    weight = adaptive_weight(kl_T, torch.tensor([0, 0, 1]), tau=0.5)
    assert not weight.requires_grad
    torch.testing.assert_close(weight, torch.tensor([math.exp(-0.6), math.exp(-0.6), math.exp(-6.0)]))


def test_anchor_variants_need_their_anchor():
    views = random_views(6)
    without = ViewLogits(views.student_no_context_TV, views.teacher_with_context_TV, views.student_with_context_TV)
    for variant in VARIANTS:
        if separate_anchor(variant) is not None:
            with pytest.raises(ValueError, match="anchor"):
                token_terms(without, torch.zeros(5, dtype=torch.long), consistency=variant)


def test_coefficient_schedule():
    assert [CoefficientSchedule(0.5).at(s) for s in (0, 1, 99)] == [0.5, 0.5, 0.5]
    assert [CoefficientSchedule(0.5, 10, 10).at(s) for s in (0, 9, 10, 15, 20, 21)] == [0, 0, 0, 0.25, 0.5, 0.5]
    assert [CoefficientSchedule(0.5, 3).at(s) for s in (2, 3)] == [0, 0.5]


def test_support_refuses_no_columns():
    with pytest.raises(ValueError, match=r"support\.k is 0"):
        Support("top_k", 0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"beta": 1.5}, r"beta is 1\.5; it must be at least 0\.0 and at most 1\.0"),
        ({"temperature": 0.0}, r"loss_temperature is 0\.0; it must be positive"),
        ({"adaptive_tau": -1.0}, r"adaptive_tau is -1\.0; it must be positive"),
        ({"distillation": "cross_entropy", "beta": 0.0}, r"beta is 0\.0, but distillation is 'cross_entropy'"),
        (
            {"distillation": "cross_entropy", "support": Support("top_k")},
            r"support\.kind is 'top_k', but distillation is 'cross_entropy'",
        ),
    ],
)
def test_settings_refuse_what_has_no_meaning(fields, message):
    with pytest.raises(ValueError, match=message):
        ObjectiveSettings(**fields)
