"Properties of the per-token cost."

import math
import warnings
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cmdp_nbdev import cost as module
from cmdp_nbdev.cost import (
    COSTS,
    KINDS,
    RESOLUTION,
    Cost,
    DenseRows,
    Head,
    HiddenRows,
    TopKRows,
    align_vocab,
    check_top_k,
    chunk_rows,
    kl,
    merge_rest,
    register_cost,
    sampled_divergence,
    score_tokens,
    token_cost,
    token_divergence,
    token_logps,
    top_k,
    warn_cropped,
    with_floor,
)
from cmdp_nbdev.mdp import masked

SETTINGS = [
    ("reverse_kl", 0.5),
    ("forward_kl", 0.5),
    ("jsd", 0.1),
    ("jsd", 0.5),
    ("jsd", 0.0),
    ("jsd", 1.0),
]


def logits(seed, *shape, scale=3.0, dtype=torch.float64):
    return scale * torch.randn(
        *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype)


@given(st.integers(0, 10_000), st.sampled_from(SETTINGS), st.sampled_from([0.1, 1.0, 10.0]))
def test_non_negative_and_zero_only_for_equal_distributions(seed, setting, scale):
    """A negative cost would let a student earn budget; a zero cost between different models
    would make the budget meaningless."""
    s, t = logits(seed, 2, 3, 7, scale=scale), logits(seed + 1, 2, 3, 7, scale=scale)
    kind, beta = setting
    value = token_divergence(s, t, kind, beta)
    assert (value > 0).all()
    shifted = t + 5.0  # the same distribution under other logits
    assert token_divergence(shifted, t, kind, beta).abs().max() < 1e-12


@given(st.integers(0, 10_000))
def test_kl_equals_torch(seed):
    "Costs must be comparable with those of any other library."
    s, t = logits(seed, 2, 3, 7), logits(seed + 1, 2, 3, 7)

    def kl(p, q):
        return torch.nn.functional.kl_div(
            q.log_softmax(-1), p.log_softmax(-1), reduction="none", log_target=True
        ).sum(-1)

    torch.testing.assert_close(token_divergence(s, t, "reverse_kl"), kl(s, t))
    torch.testing.assert_close(token_divergence(s, t, "forward_kl"), kl(t, s))
    beta = 0.3
    mix = (beta * t.softmax(-1) + (1 - beta) * s.softmax(-1)).log()
    torch.testing.assert_close(
        token_divergence(s, t, "jsd", beta), beta * kl(t, mix) + (1 - beta) * kl(s, mix)
    )


@given(st.integers(0, 10_000), st.floats(1e-6, 0.5))
def test_floor_bounds_the_kl(seed, floor):
    "With a floor one token can never cost more than log(V/floor), however sure the teacher is."
    V = 7
    s, t = logits(seed, 4, V, scale=50.0), logits(seed + 1, 4, V, scale=50.0)
    for kind in ("reverse_kl", "forward_kl"):
        value = token_divergence(s, t, kind, floor=floor)
        assert value.isfinite().all() and (value <= math.log(V / floor) + 1e-6).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_logits_are_measured_in_float32(kind, dtype):
    "A budget measured in bfloat16 would be off by percents."
    s, t = logits(0, 2, 3, 50, dtype=dtype), logits(1, 2, 3, 50, dtype=dtype)
    value = token_divergence(s, t, kind)
    assert value.dtype == torch.float32
    torch.testing.assert_close(
        value.double(), token_divergence(s.double(), t.double(), kind), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("kind,beta", SETTINGS)
def test_impossible_tokens_give_no_nan(kind, beta):
    """Models that mask tokens with -inf (or have padded rows) would otherwise destroy the
    weights in one step."""
    s, t = logits(0, 1, 2, 5), logits(1, 1, 2, 5)
    s[..., 3:], t[..., 3:] = -torch.inf, -torch.inf
    s.requires_grad_(), t.requires_grad_()
    value = token_divergence(s, t, kind, beta)
    torch.testing.assert_close(value, token_divergence(s[..., :3], t[..., :3], kind, beta))
    value.sum().backward()
    assert s.grad.isfinite().all() and (s.grad[..., 3:] == 0).all() and s.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", ["reverse_kl", "jsd"])
def test_token_impossible_for_the_student_alone(kind):
    """A student that never says a token pays nothing for it under the reverse KL, and keeps
    finite gradients."""
    s, t = logits(0, 1, 2, 5), logits(1, 1, 2, 5)
    s[..., 0] = -torch.inf
    s.requires_grad_()
    value = token_divergence(s, t, kind)
    value.sum().backward()
    assert value.isfinite().all() and (value > 0).all() and s.grad.isfinite().all()


def test_token_impossible_for_the_teacher_alone():
    """The reverse KL is then truly infinite, which must be seen and not turned into a number; a
    floor makes it finite, with its gradient."""
    s, t = logits(0, 1, 2, 5), logits(1, 1, 2, 5)
    t[..., 0] = -torch.inf
    assert token_divergence(s, t).isinf().all()
    s.requires_grad_()
    value = token_divergence(s, t, floor=1e-6)
    value.sum().backward()
    assert value.isfinite().all() and s.grad.isfinite().all()
    assert token_divergence(s, t, "jsd").isfinite().all()


@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize("kind,beta", SETTINGS)
def test_masked_positions_are_inert(kind, beta, chunk_size):
    "Padding holds whatever the model computed there, NaN included; none of it may reach the loss."
    s, t = logits(0, 2, 3, 5), logits(1, 2, 3, 5)
    mask = torch.tensor([[1, 0, 1], [0, 1, 0]])
    clean = token_divergence(s, t, kind, beta, mask)
    for x in (s, t):
        x[mask == 0] = torch.nan
    s.requires_grad_()
    value = token_divergence(s, t, kind, beta, mask, chunk_size=chunk_size)
    torch.testing.assert_close(value, clean)
    assert (value[mask == 0] == 0).all()
    value.sum().backward()
    assert s.grad.isfinite().all() and (s.grad[mask == 0] == 0).all()


def test_all_masked_is_zero():
    "An empty row in a batch must not crash the run."
    s, t = logits(0, 1, 2, 5), logits(1, 1, 2, 5)
    assert token_divergence(s, t, mask=torch.zeros(1, 2)).tolist() == [[0.0, 0.0]]


@given(st.integers(0, 10_000), st.integers(1, 9), st.sampled_from(SETTINGS))
def test_chunking_changes_nothing(seed, chunk_size, setting):
    "`kl_chunk_size` saves memory; the numbers and gradients must stay."
    s, t = logits(seed, 2, 3, 7).requires_grad_(), logits(seed + 1, 2, 3, 7)
    a, b = (token_divergence(s, t, *setting, chunk_size=c) for c in (None, chunk_size))
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
    ga, gb = (torch.autograd.grad(x.square().sum(), s)[0] for x in (a, b))
    torch.testing.assert_close(ga, gb, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("student_has_more", [True, False])
def test_cropping_is_a_softmax_over_the_common_ids(student_has_more):
    """Vocabularies padded to different sizes are common; the cost must be that of the shared
    tokens, renormalised, with gradients on these only."""
    a, b = logits(0, 2, 3, 5), logits(1, 2, 3, 8)
    s, t = (b, a) if student_has_more else (a, b)
    s.requires_grad_()
    with pytest.warns(UserWarning, match="5 ids common.*probability mass"):
        value = token_divergence(s, t)
    torch.testing.assert_close(value, token_divergence(s[..., :5], t[..., :5]))
    value.sum().backward()
    assert (s.grad[..., 5:] == 0).all() and s.grad[..., :5].abs().sum() > 0
    torch.testing.assert_close(
        align_vocab(s, t)[2].item(),
        b.softmax(-1)[..., 5:].sum(-1).mean().item(),
        rtol=1e-5,
        atol=1e-7,
    )


def test_no_warning_for_unused_padding_rows():
    "Rows that no token uses have no mass; a warning on every step would hide the ones that matter."
    t = torch.cat([logits(1, 2, 3, 5), torch.full((2, 3, 3), -60.0)], -1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        token_divergence(logits(0, 2, 3, 5), t)


@given(st.integers(0, 10_000))
def test_sampled_estimators(seed):
    """k1 and k3 are unbiased for the KL, k3 and k2 never negative; the formulas are those of the
    literature."""
    s, t = logits(seed, 6).log_softmax(-1), logits(seed + 1, 6).log_softmax(-1)
    exact = (s.exp() * (s - t)).sum()
    for kind in ("k1", "k3"):
        torch.testing.assert_close(
            (s.exp() * sampled_divergence(s, t, kind, clip=1e9)).sum(), exact
        )
    torch.testing.assert_close(
        sampled_divergence(s, t, "k3", clip=1e9), (t - s).exp() - 1 - (t - s)
    )
    torch.testing.assert_close(sampled_divergence(s, t, "k2"), (s - t) ** 2 / 2)
    assert (sampled_divergence(s, t, "k3") >= 0).all()


def test_k3_stays_finite():
    "One token that the teacher loves and the student hates must not overflow the estimate."
    assert sampled_divergence(torch.tensor([-500.0]), torch.tensor([0.0]), "k3").isfinite().all()


def test_token_logps_of_half_precision():
    "Log-probabilities of bfloat16 logits must not be rounded to two digits."
    x, ids = logits(0, 2, 3, 50, dtype=torch.bfloat16), torch.tensor([[1, 2, 3], [4, 5, 6]])
    value = token_logps(x, ids, temperature=0.7)
    assert value.dtype == torch.float32
    torch.testing.assert_close(
        value, (x.float() / 0.7).log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    )


@pytest.mark.parametrize(
    "bad,match",
    [
        (dict(kind="tv"), "choose one of reverse_kl"),
        (dict(beta=1.5), r"beta must lie in \[0, 1\], got 1.5"),
        (dict(floor=-0.1), r"floor must lie in \[0, 1\)"),
        (dict(floor=1.0), "floor"),
        (dict(floor=0.1, kind="jsd"), "floor=0.1"),
    ],
)
def test_bad_settings(bad, match):
    "A typo must not silently select another cost."
    with pytest.raises(ValueError, match=match):
        token_divergence(logits(0, 1, 1, 3), logits(1, 1, 1, 3), **bad)


# ---- rows, registry and the object -------------------------------------------------------------


def test_cropping_loses_only_padding():
    "Real padding rows carry next to no mass; ten uniform ids cropped to five lose half."
    s, t = logits(0, 2, 3, 5), logits(1, 2, 3, 5)
    padded = torch.cat([t, torch.full((2, 3, 2), -40.0, dtype=t.dtype)], -1)
    _, cropped, lost = align_vocab(s, padded)
    assert torch.equal(cropped, t) and lost < 1e-12
    assert align_vocab(s, torch.zeros(2, 3, 10))[2].item() == pytest.approx(0.5)


def test_kl_of_rows_by_hand():
    "log 2 for half the support; infinite where the teacher forbids; bounded by a floor."
    p, q = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.25, 0.25, 0.5])
    assert kl(p.log(), q.log()).item() == pytest.approx(math.log(2))
    assert kl(q.log(), p.log()).item() == math.inf
    floored = with_floor(p.log(), 0.3).exp()
    torch.testing.assert_close(floored, torch.tensor([0.45, 0.45, 0.1]))
    assert kl(q.log(), with_floor(p.log(), 1e-3)) <= math.log(3 / 1e-3)


def test_divergences_against_torch_and_each_other():
    "The mixture's ends are the two KLs; with equal weights it is symmetric and at most log 2."
    x, y = logits(0, 4, 6, dtype=torch.float32), logits(1, 4, 6, dtype=torch.float32)
    p, q = (torch.distributions.Categorical(logits=v) for v in (x, y))
    want = torch.distributions.kl_divergence(p, q)
    for cost, a, b in (
        (Cost(), x, y),
        (Cost("jsd", beta=1.0), x, y),
        (Cost("forward_kl"), y, x),
        (Cost("jsd", beta=0.0), y, x),
    ):
        torch.testing.assert_close(cost(a, DenseRows(b)), want)
    there, back = Cost("jsd")(x, DenseRows(y)), Cost("jsd")(y, DenseRows(x))
    torch.testing.assert_close(there, back)
    assert there.max() <= math.log(2)


def test_token_cost_is_token_divergence_with_a_cost_in_hand():
    "Two ways to the same number; chunks, half precision and masks change nothing else."
    s, t = logits(0, 2, 3, 7, dtype=torch.float32), logits(1, 2, 3, 7, dtype=torch.float32)
    d, mask = token_divergence(s, t), torch.tensor([[1, 1, 0], [0, 1, 1]])
    assert d.shape == (2, 3) and d.dtype == torch.float32 and (d >= 0).all()
    torch.testing.assert_close(token_cost(s, t, None), d)
    torch.testing.assert_close(token_cost(s, t, None, mask), masked(d, mask))
    torch.testing.assert_close(token_divergence(s, t, chunk_size=4), d)
    torch.testing.assert_close(token_divergence(t, t), torch.zeros(2, 3), rtol=0, atol=1e-6)
    half = token_divergence(s.bfloat16(), t.bfloat16())
    torch.testing.assert_close(half, d, rtol=0.1, atol=0.1)


def test_masked_positions_may_hold_anything():
    "Neither value nor gradient may come from outside the mask."
    s, t = logits(0, 2, 3, 7, dtype=torch.float32), logits(1, 2, 3, 7, dtype=torch.float32)
    mask, bad = torch.tensor([[1, 1, 0], [0, 1, 1]]), s.clone()
    bad[0, 2], bad[1, 0] = float("nan"), float("inf")
    bad.requires_grad_()
    value = token_divergence(bad, t, mask=mask)
    torch.testing.assert_close(value, masked(token_divergence(s, t), mask))
    value.sum().backward()
    assert bad.grad.isfinite().all() and bad.grad[0, 2].eq(0).all()


def test_a_wrong_pair_warns_and_padding_does_not():
    "The warning must mean something."
    s, t = logits(0, 2, 3, 7, dtype=torch.float32), logits(1, 2, 3, 7, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        padded = torch.cat([t, torch.full((2, 3, 2), -40.0)], -1)
        torch.testing.assert_close(token_divergence(s, padded), token_divergence(s, t))
    with pytest.warns(UserWarning, match="are these two models a pair"):
        token_divergence(s, torch.zeros(2, 3, 10))


def test_sampled_estimators_have_the_right_mean():
    "k1 and k3 are unbiased, k2 is not."
    p, q = (logits(i, 1, 1, 4, scale=1.0) for i in (0, 1))
    lp, lq = p.log_softmax(-1), q.log_softmax(-1)
    exact = token_divergence(p, q)[0, 0].item()

    def mean(kind):
        return (lp.exp() * sampled_divergence(lp, lq, kind)).sum().item()

    assert mean("k1") == pytest.approx(exact) and mean("k3") == pytest.approx(exact)
    assert abs(mean("k2") - exact) > 1e-3
    two = torch.tensor([[2]])
    torch.testing.assert_close(token_logps(p, two), lp[..., 2])
    torch.testing.assert_close(token_logps(p, two, 2.0), (p / 2).log_softmax(-1)[..., 2])


def test_costs_of_the_sampled_token():
    "Log-ratio and surprisal by hand; the mean log-ratio over all actions is the KL."
    s, t = logits(0, 2, 3, 7), logits(1, 2, 3, 7)
    ids, mask = torch.tensor([[0, 1, 2], [3, 4, 5]]), torch.tensor([[1, 1, 0], [0, 1, 1]])
    ratio = token_logps(s, ids) - token_logps(t, ids)
    torch.testing.assert_close(token_cost(s, t, ids, None, Cost("log_ratio")), ratio)
    assert (ratio < 0).any()
    surprise = token_cost(s, t, ids, mask, Cost("surprisal"))
    torch.testing.assert_close(surprise, masked(-token_logps(t, ids), mask))
    every = [torch.full_like(ids, a) for a in range(7)]
    each = torch.stack([token_cost(s, t, a, None, Cost("log_ratio")) for a in every], -1)
    torch.testing.assert_close((s.softmax(-1) * each).sum(-1), token_divergence(s, t))
    floored = token_cost(s, t, ids, None, Cost("surprisal", floor=0.01))
    assert floored.max() <= math.log(7 / 0.01)


def test_the_square_law_of_the_temperature():
    "At high temperatures the cost falls with the square of the temperature."
    s, t = logits(0, 2, 3, 7, scale=1.0), logits(1, 2, 3, 7, scale=1.0)
    hot, hotter = (
        token_cost(s, t, None, None, Cost(student_temperature=tau, teacher_temperature=tau))
        for tau in (10.0, 100.0)
    )
    torch.testing.assert_close(hot / hotter / 100, torch.ones_like(hot), rtol=0.2, atol=0)


@pytest.mark.parametrize(
    "settings,match",
    [
        (dict(kind="k3"), "divergence kind 'k3' is unknown; choose one of reverse_kl"),
        (dict(beta=-0.1), r"beta must lie in \[0, 1\], got -0.1"),
        (dict(floor=1.0), r"floor must lie in \[0, 1\), got 1.0"),
        (dict(kind="jsd", floor=0.1), "floor=0.1 has no use with kind='jsd'"),
        (dict(student_temperature=0.0), "student_temperature must be a finite number > 0"),
        (dict(teacher_temperature=math.inf), "teacher_temperature must be a finite number > 0"),
        (dict(chunk_size=0), "chunk_size must be >= 1"),
    ],
)
def test_a_cost_refuses_nonsense(settings, match):
    "A typo must not silently measure something else."
    with pytest.raises(ValueError, match=match):
        Cost(**settings)


def test_the_cost_that_is_reported_beside():
    "Reverse KL at temperature 1 with the same floor; a cost that is just that is not asked twice."
    cost = Cost("jsd", beta=0.1, student_temperature=2.0, chunk_size=7)
    assert cost.reported == Cost(chunk_size=7) and cost.is_kl is False
    assert Cost(floor=0.1, beta=0.2).reported == Cost(floor=0.1) and Cost(floor=0.1).is_kl is True
    assert Cost(student_temperature=2.0).is_kl is Cost("forward_kl").is_kl is False
    assert cost.of("forward_kl") == Cost(
        "forward_kl", beta=0.1, student_temperature=2.0, chunk_size=7
    )


@pytest.fixture
def own_costs():
    "Undo what a test registers."
    before = dict(COSTS)
    yield COSTS
    COSTS.clear()
    COSTS.update(before)


def test_a_cost_of_ones_own(own_costs):
    "One function and one decorator; a name that is taken, or another gradient, is refused."

    @register_cost("total_variation", bounded=True)
    def total_variation(rows, cost):
        return (rows.student.exp() - rows.teacher.exp()).abs().sum(-1) / 2

    s, t = logits(0, 2, 3, 7), logits(1, 2, 3, 7)
    value = token_cost(s, t, None, None, Cost("total_variation", chunk_size=2))
    torch.testing.assert_close(value, (s.softmax(-1) - t.softmax(-1)).abs().sum(-1) / 2)
    assert Cost("total_variation").gradient == "full"
    with pytest.raises(ValueError, match="'total_variation' is registered already"):
        register_cost("total_variation")(lambda rows, cost: rows.student[:, 0])
    with pytest.raises(ValueError, match="gradient must be 'full', 'weighted' or 'none'"):
        register_cost("other", gradient="some")


def test_a_cost_of_ones_own_through_the_trainer(own_costs, make_trainer):
    "Registered, it is a budget: trained on, recorded token by token, and beside the exact KL."

    @register_cost("total_variation", bounded=True)
    def total_variation(rows, cost):
        return (rows.student.exp() - rows.teacher.exp()).abs().sum(-1) / 2

    trainer = make_trainer(divergence="total_variation", budget=0.5)
    metrics = trainer.step()
    result, records = trainer.evaluate(return_records=True)
    assert metrics["grad_norm"] > 0 and metrics["spent_mean"] != metrics["kl_mean"]
    assert all(0 <= c <= 1 for r in records for c in r["cost_per_token"])
    assert result["spent_mean"] != result["kl_mean"]


def test_scores_are_measured_once():
    "Log-probabilities at the sampling temperature, costs by name, and the exact KL beside them."
    s, t = logits(0, 2, 3, 7), logits(1, 2, 3, 9)
    ids, mask = torch.tensor([[0, 1, 2], [3, 4, 5]]), torch.ones(2, 3)
    costs = {"divergence": Cost("log_ratio"), "forward_kl": Cost("forward_kl")}
    score = score_tokens(s, t, ids, mask, costs, temperature=0.7)
    shared = t[..., :7]
    torch.testing.assert_close(score.logp, token_logps(s, ids, 0.7))
    torch.testing.assert_close(score.teacher_logp, token_logps(shared, ids))
    torch.testing.assert_close(score.kl, token_divergence(s, shared))
    torch.testing.assert_close(score.costs["forward_kl"], token_divergence(s, shared, "forward_kl"))
    assert set(score.costs) == set(costs)


def test_a_top_k_teacher_names_an_id_once():
    "Id 0 counts as any other, -1 is none and may come often; what is named adds up to one at most."
    third = torch.full((2, 1, 3), 1 / 3).log()
    second = torch.tensor([0.0, 1.0])[:, None, None]  # only the second position is wrong

    def ids(*last):
        return torch.tensor([[[0, 1, 2]], [last]])

    for fine in ((5, 0, 4), (-1, 3, -1)):
        check_top_k(ids(*fine), third)
    check_top_k(ids(0, -1, -1), torch.tensor([[[-2.0, -2, -2]], [[0.0, 3, 3]]]))
    for twice in (0, 7):
        with pytest.raises(ValueError, match=f"names id {twice} twice"):
            check_top_k(ids(twice, 3, twice), third)
    for over in (1.0015, 1.01):
        with pytest.raises(ValueError, match=f"probability of {over}"[:-1]):
            check_top_k(ids(5, 0, 4), third + second * math.log(over))
    check_top_k(ids(5, 0, 4), third + second * math.log(1.0005))  # rounding
    for wrong in (torch.zeros(2, 1, 2).long(), ids(5, 0, 4).double()):
        with pytest.raises(ValueError, match="names ids and as many log-probabilities"):
            check_top_k(wrong, third)


def shares(*rows):
    "Log-probabilities (1, n, k)."
    return torch.tensor([rows]).log()


def test_what_a_top_k_teacher_does_not_name_is_the_rest():
    "In numbers; where nothing is left a little stays, since 1 - sum is not known that well."
    rows = TopKRows(
        torch.tensor([[[3, 0], [1, -1], [2, 4]]]), shares([0.5, 0.2], [0.25, 9], [1, 0])
    )
    left = torch.tensor([[0.3, 0.75, RESOLUTION]])
    torch.testing.assert_close(rows.rest.exp(), left, rtol=1e-5, atol=1e-9)
    named = torch.tensor([[[0.5, 0.2], [0.25, 0], [1, 0]]])
    torch.testing.assert_close(rows.values.exp(), named)
    assert (
        rows.shape == (1, 3, 2) and rows.bound == "lower bound (teacher known by its top 2 tokens)"
    )
    (first, second), part = rows[0].split(2), rows[0][1:]
    assert first.ids.tolist() == [[3, 0], [1, -1]] and second.ids.tolist() == [[2, 4]]
    assert torch.equal(second.values, rows.values[0, 2:]) and second.rest == rows.rest[0, 2]
    assert torch.equal(part.rest, rows.rest[0, 1:]) and part.ids.tolist() == [[1, -1], [2, 4]]


def test_ids_that_nobody_has_leave_their_share_to_all_others():
    "Those from a size on, and holes; of a position that names no others nothing is left."
    ids = torch.tensor([[[3, 0], [1, 2], [4, 3]]])
    rows = TopKRows(ids, shares([0.5, 0.2], [0.25, 0.25], [0.5, 0.5]), shares(0.3, 0.5, 0.0)[0])
    kept = rows.only(3)
    assert kept.ids.tolist() == [[[-1, 0], [1, 2], [-1, -1]]] and kept.vocab_size == 3
    named = torch.tensor([[[0, 0.4], [0.25, 0.25], [0, 0]]])
    torch.testing.assert_close(kept.values.exp(), named)
    torch.testing.assert_close(kept.rest.exp(), torch.tensor([[0.6, 0.5, 0.0]]))
    holes = rows.only(None, (0, 4))
    assert holes.ids.tolist() == [[[3, -1], [1, 2], [-1, 3]]] and holes.vocab_size is None
    named = torch.tensor([[[0.625, 0], [0.25, 0.25], [0, 1]]])
    torch.testing.assert_close(holes.values.exp(), named)
    torch.testing.assert_close(holes.rest.exp(), torch.tensor([[0.375, 0.5, 0.0]]))
    assert rows.only(9).vocab_size == 9 and holes.only(5).only(7).vocab_size == 5


def test_the_rest_of_a_student_is_what_the_teacher_does_not_name():
    "One position and many ids, so that no axis can stand for another; -1 is impossible."
    logps = shares([0.1, 0.2, 0.3, 0.15, 0.25])[0]
    merged = merge_rest(logps, torch.tensor([[4, -1, 1]])).exp()
    torch.testing.assert_close(merged, torch.tensor([[0.25, 0.0, 0.2, 0.55]]))
    all_of_them = merge_rest(logps, torch.arange(5)[None])
    assert all_of_them[0, 5] == -math.inf and torch.equal(all_of_them[:, :5], logps)


def test_a_top_k_teacher_and_a_student_over_the_same_events():
    "By hand; ids that the student does not have are left out."
    student = shares([0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.1, 0.4])[0]
    rows = TopKRows(
        torch.tensor([[2, 7, 0], [1, 3, -1]]), shares([0.5, 0.25, 0.15], [0.6, 0.3, 9])[0]
    )
    met = rows.meet(student, torch.tensor([0, 3]), Cost())
    said = torch.tensor([[0.3, 0.0, 0.1, 0.6], [0.25, 0.4, 0.0, 0.35]])
    torch.testing.assert_close(met.student.exp(), said)
    teacher = torch.tensor([[0.5 / 0.75, 0.0, 0.15 / 0.75, 0.1 / 0.75], [0.6, 0.3, 0.0, 0.1]])
    torch.testing.assert_close(met.teacher.exp(), teacher)
    assert met.chosen.tolist() == [2, 1] and met.uniform is None
    floored = rows.meet(student, None, Cost(floor=0.1))
    uniform = torch.tensor([[0.25, 0.0, 0.25, 0.5], [0.25, 0.25, 0.0, 0.5]])
    torch.testing.assert_close(floored.uniform.exp(), uniform)
    assert floored.chosen is None
    all_named = TopKRows(torch.tensor([[2, 1, 0, 3]]), shares([0.5, 0.25, 0.15, 0.1])[0])
    assert all_named.rest.isfinite().all()  # 1 - sum may be rounding
    assert all_named.meet(student[:1], None, Cost()).teacher[0, -1] == -math.inf
    almost = TopKRows(torch.tensor([[2, 1, 0, 3]]), shares([0.5, 0.25, 0.15, 0.05])[0])
    kept = almost.meet(student[:1], None, Cost()).teacher[0, -1].exp().item()
    assert kept == pytest.approx(0.05)  # said, so an impossible event has to be paid for
    aligned, fewer, lost = rows.align(student)
    assert aligned.shape == (2, 4) and fewer.ids.tolist() == [[2, -1, 0], [1, 3, -1]] and lost == 0


def test_what_a_top_k_teacher_says_of_the_sampled_token():
    "Wherever it stands among the named; nothing outside the mask, where it need not be named."
    rows = TopKRows(
        torch.tensor([[[2, 7, 0], [5, 4, 3]]]), shares([0.5, 0.2, 0.1], [0.3, 0.2, 0.4])
    )
    ids, mask = torch.tensor([[0, 4]]), torch.tensor([[1, 1]])
    torch.testing.assert_close(rows.logps(ids, mask).exp(), torch.tensor([[0.1, 0.2]]))
    assert rows.index_of(ids).tolist() == [[2, 1]]
    ids, mask = torch.tensor([[7, 0]]), torch.tensor([[1, 0]])
    torch.testing.assert_close(rows.logps(ids, mask), shares([0.2], [1])[..., 0])
    with pytest.raises(ValueError, match="top 3 tokens leave out the sampled token 0"):
        rows.index_of(ids)
    with pytest.raises(ValueError, match="top 3 tokens leave out the sampled token 0"):
        rows.logps(ids, torch.ones(1, 2))


def test_the_top_k_of_logits():
    "The most probable, the sampled one in place of the last of them, and all others as the rest."
    said = shares([0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4])
    rows = top_k(said + 3.0, torch.tensor([[3, 0]]), 2)
    assert rows.ids.tolist() == [[[3, 2], [3, 0]]] and (rows.vocab_size, rows.k) == (4, 2)
    torch.testing.assert_close(rows.values.exp(), torch.tensor([[[0.4, 0.3], [0.4, 0.1]]]))
    torch.testing.assert_close(rows.rest.exp(), torch.tensor([[0.3, 0.5]]))
    everything = top_k(said, torch.tensor([[3, 0]]), 9)
    assert everything.shape == (1, 2, 4) and (everything.rest == -math.inf).all()
    assert everything.bound == "lower bound (teacher known by its top 9 tokens)"


def test_how_much_a_wrong_pair_loses(monkeypatch):
    "The mean over all positions, in pieces of unequal size; from 0.1% on it is said."
    monkeypatch.setattr(module, "chunk_rows", lambda *unused: 2)
    student = torch.zeros(1, 3, 4)

    def teacher(*lost):
        kept = (1 - torch.tensor([lost])).log()[..., None] - math.log(4)
        return torch.cat([kept.expand(1, len(lost), 4), torch.tensor([lost]).log()[..., None]], -1)

    with pytest.warns(UserWarning, match="the 4 ids common .* loses 30.0% of"):
        warn_cropped(DenseRows(student), DenseRows(teacher(0.5, 0.25, 0.15)))
    with pytest.warns(UserWarning, match="loses 30.0% of"):
        warn_cropped(DenseRows(teacher(0.15, 0.5, 0.25)), DenseRows(student))
    with pytest.warns(UserWarning, match="loses 0.1% of"):
        warn_cropped(DenseRows(student), DenseRows(teacher(0.0011, 0.0011, 0.0011)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_cropped(DenseRows(student), DenseRows(teacher(0.0009, 0.0009, 0.0009)))
        warn_cropped(DenseRows(student), top_k(student, torch.zeros(1, 3).long(), 2))


def test_a_chunk_is_a_part_of_the_memory(monkeypatch):
    "Of a GPU an 80th, if that is more than a CPU's 16 MB; at least 64 positions."
    memory = 80 * 160_000_000
    told = lambda device: SimpleNamespace(total_memory=memory)  # noqa: E731
    monkeypatch.setattr(torch.cuda, "get_device_properties", told)
    assert chunk_rows(100_000) == 64 and chunk_rows(1000) == 4000
    assert chunk_rows(1000, "cuda") == 40_000
    memory = 80
    assert chunk_rows(1000, "cuda") == 4000


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_gradients_of_a_head_are_summed_in_float32(dtype):
    "A thousand chunks of a bfloat16 head: summed up in bfloat16 they would stop growing."
    torch.manual_seed(0)
    head = torch.nn.Linear(2, 5).to(dtype)
    states = torch.ones(1, 600, 2).to(dtype)
    told = torch.zeros(1, 600).long(), torch.ones(1, 600)
    said = DenseRows(torch.randn(1, 1, 5).expand(1, 600, 5))

    def gradients(size):
        rows, costs = (
            HiddenRows(states, Head(head, 5, dtype)),
            {"divergence": Cost(chunk_size=size)},
        )
        loss = score_tokens(rows, said, *told, costs).costs["divergence"].sum()
        return torch.autograd.grad(loss, [head.weight, head.bias])

    one_by_one, at_once = gradients(1), gradients(600)
    exact = torch.nn.Linear(2, 5)
    exact.load_state_dict(head.state_dict())
    loss = token_cost(exact(states.float()), said, None).sum()
    for a, b, c in zip(one_by_one, at_once, torch.autograd.grad(loss, list(exact.parameters()))):
        assert a.dtype == dtype
        torch.testing.assert_close(a.float(), c, rtol=0.03, atol=0.03 * c.abs().max().item())
        torch.testing.assert_close(
            a.float(), b.float(), rtol=0.03, atol=0.03 * c.abs().max().item()
        )


def test_a_cost_without_a_gradient_in_chunks():
    "Surprisal knows no slope: zeros, and no error of autograd, closed form or not."
    s = logits(0, 1, 5, 7).requires_grad_()
    told = torch.zeros(1, 5).long(), torch.ones(1, 5)
    for floor in (0.0, 0.1):
        cost = Cost("surprisal", floor=floor, chunk_size=2)
        score = score_tokens(s, logits(1, 1, 5, 7), *told, {"divergence": cost})
        (found,) = torch.autograd.grad(score.costs["divergence"].sum(), s)
        assert found.shape == s.shape and not found.any()
    head, states = torch.nn.Linear(2, 7), torch.ones(1, 5, 2, requires_grad=True)
    rows = HiddenRows(states, Head(head, 7, torch.float32))
    score = score_tokens(rows, logits(1, 1, 5, 7), *told, {"divergence": cost})
    found = torch.autograd.grad(
        score.costs["divergence"].sum(), [states, *head.parameters()], allow_unused=True
    )
    assert not found[0].any() and found[1:] == (None, None)


def test_hidden_rows_are_logits_that_are_not_there_yet():
    "In parts and in pieces, without ids that have no token."
    head, states = torch.nn.Linear(2, 7), logits(0, 5, 2, dtype=torch.float32)
    rows = HiddenRows(states, Head(head, 7, torch.float32, vocab_size=6, holes=(2,)))
    whole = head(states)[:, :6].index_fill(1, torch.tensor(2), -1e4)
    assert rows.shape == whole.shape and torch.equal(rows.logits, whole)
    pieces = rows.split(2)
    assert [len(piece.states) for piece in pieces] == [2, 2, 1]
    torch.testing.assert_close(torch.cat([piece.logits for piece in pieces]), whole)
    torch.testing.assert_close(rows[1:3].logits, whole[1:3])
    assert HiddenRows(states[None], Head(head, 7, torch.float32)).shape == (1, 5, 7)
    ids, mask = torch.tensor([[5, 0, 1, 3, 4]]), torch.tensor([[1, 1, 0, 1, 1]])
    found = HiddenRows(states[None], rows.head).logps(ids, mask)
    expected = masked(whole.log_softmax(-1)[None].gather(-1, ids[..., None])[..., 0], mask)
    torch.testing.assert_close(found, expected)
