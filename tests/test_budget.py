"The budget against a slow, obvious loop."

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from cmdp_nbdev.budget import (
    AGGREGATES,
    Budget,
    first_violation,
    running_spend,
    satisfaction_interval,
    spend_weights,
    suggest_budget,
)

BUDGETS = [("sum", 0), ("mean", 0), ("prefix_mean", 0), ("prefix_mean", 2), ("prefix_mean", 9)]


def batch(seed, B=6, T=5):
    "Random costs with NaN in the padding, and masks of every length."
    g = torch.Generator().manual_seed(seed)
    mask = (torch.arange(T) < torch.randint(1, T + 1, (B, 1), generator=g)).long()
    cost = torch.rand(B, T, generator=g, dtype=torch.float64)
    return cost.masked_fill(mask == 0, torch.nan), mask


def reference(
    costs: list[float], aggregate: str, burn_in: int
) -> tuple[float, list[tuple[int, float]]]:
    "Spent budget of one trajectory, and (step, value) of everything that is judged, by the definitions of the design."
    sums = [sum(costs[: t + 1]) for t in range(len(costs))]
    means = [s / (t + 1) for t, s in enumerate(sums)]
    if aggregate == "sum":
        return sums[-1], list(enumerate(sums))
    if aggregate == "mean":
        return means[-1], []
    judged = [(t, m) for t, m in enumerate(means) if t + 1 > burn_in] or [
        (len(costs) - 1, means[-1])
    ]
    return max(m for _, m in judged), judged


@pytest.mark.parametrize("aggregate,burn_in", BUDGETS)
@given(seed=st.integers(0, 10_000), limit=st.floats(0.0, 3.0))
def test_against_a_loop(aggregate, burn_in, seed, limit):
    "Spent, violated and the first violating step decide what every method does; they must be the stated definitions."
    cost, mask = batch(seed)
    budget = Budget(limit, aggregate, burn_in)
    spent, violated = budget.spent(cost, mask), budget.violated(cost, mask)
    for i, n in enumerate(mask.sum(-1).tolist()):
        value, judged = reference(cost[i, :n].tolist(), aggregate, burn_in)
        assert spent[i].item() == pytest.approx(value, abs=1e-12)
        assert violated[i].item() == (spent[i].item() > limit)
        if aggregate != "mean":
            over = [t for t, v in judged if v > limit + 1e-12]
            first = first_violation(budget, cost, mask)[i].item()
            if all(abs(v - limit) > 1e-9 for _, v in judged):
                assert first == (over[0] if over else -1)


@pytest.mark.parametrize("aggregate,burn_in", [b for b in BUDGETS if b[0] != "mean"])
@given(seed=st.integers(0, 10_000), limit=st.floats(0.0, 3.0))
def test_first_violation_agrees_with_violated_and_remaining(aggregate, burn_in, seed, limit):
    "A first violating step exists exactly for violators, lies inside the completion, and is where z first falls below zero."
    cost, mask = batch(seed)
    budget = Budget(limit, aggregate, burn_in)
    first, z = first_violation(budget, cost, mask), budget.remaining(cost, mask)
    assert torch.equal(first >= 0, budget.violated(cost, mask))
    assert (first < mask.sum(-1)).all()
    assert (
        z.shape == (len(cost), cost.shape[1] + 1)
        and (z[:, 0] == limit).all()
        and not z.isnan().any()
    )
    for i, t in enumerate(first.tolist()):
        below = (z[i, 1:] < 0).nonzero().flatten().tolist()
        assert (below[0] if below else -1) == t


@pytest.mark.parametrize("aggregate,burn_in", BUDGETS)
@given(seed=st.integers(0, 10_000))
def test_weights_are_the_derivative(aggregate, burn_in, seed):
    "The multiplier's share of each token must be the derivative of what is spent, or the budget's gradient is wrong."
    cost, mask = batch(seed)
    live = cost.nan_to_num().requires_grad_()
    budget = Budget(1.0, aggregate, burn_in)
    (truth,) = torch.autograd.grad(budget.spent(live, mask).sum(), live)
    weights = spend_weights(budget, cost, mask)
    torch.testing.assert_close(weights, truth)
    torch.testing.assert_close(
        (weights * cost.nan_to_num()).sum(-1), budget.spent(cost, mask)
    )  # linear in the costs


@pytest.mark.parametrize("aggregate,burn_in", BUDGETS)
@given(seed=st.integers(0, 10_000), extra=st.integers(1, 4))
def test_padding_changes_nothing(aggregate, burn_in, seed, extra):
    "Padding to a longer neighbour must not change what a completion has spent."
    cost, mask = batch(seed)

    def pad(x, v):
        return torch.cat([x, torch.full((len(x), extra), v, dtype=x.dtype)], 1)

    assert torch.equal(
        running_spend(cost, mask, aggregate, burn_in)[:, -1],
        running_spend(pad(cost, torch.nan), pad(mask, 0), aggregate, burn_in)[:, -1],
    )


@given(st.integers(1, 400), st.floats(0, 1), st.sampled_from([0.5, 0.9, 0.95, 0.999]))
def test_interval_is_clopper_pearson(n, share, level):
    "The interval beside a satisfaction rate must be the exact one that reviewers expect."
    k = round(share * n)
    exact = binomtest(k, n).proportion_ci(level, method="exact")
    low, high = satisfaction_interval(k, n, level)
    assert (low, high) == (
        pytest.approx(exact.low, abs=1e-12),
        pytest.approx(exact.high, abs=1e-12),
    )
    outcomes = [True] * k + [False] * (n - k)
    assert (
        satisfaction_interval(outcomes, level=level)
        == satisfaction_interval(torch.tensor(outcomes), level=level)
        == (low, high)
    )


@pytest.mark.parametrize("args", [(5, 3), (-1, 3), (0, 0), ([],)])
def test_interval_refuses_impossible_counts(args):
    "An interval of nothing would look like a result."
    with pytest.raises(ValueError, match="satisfied"):
        satisfaction_interval(*args)


@given(st.lists(st.floats(0, 100), min_size=20, max_size=200), st.floats(0.05, 0.95))
def test_suggested_budget_is_kept_by_about_that_share(spent, quantile):
    "The proposed limit must mean what it says: this share of the distilled student's completions would keep it."
    limit = suggest_budget(spent, quantile)
    assert np.mean(np.array(spent) <= limit + 1e-9) >= quantile - 1 / len(spent)
    assert np.mean(np.array(spent) < limit - 1e-9) <= quantile + 1 / len(spent)


@pytest.mark.parametrize("limit", [-1, float("nan"), -0.0001, None, "1"])
def test_limit_must_be_a_non_negative_number(limit):
    "A negative or missing limit would call every completion a violation."
    with pytest.raises(ValueError, match="budget limit must be a number of nats >= 0"):
        Budget(limit)


def test_numpy_numbers_are_numbers():
    "A limit from `np.linspace` or a float32 array is a limit."
    assert (
        Budget(np.float32(0.5)).limit
        == Budget(np.float64(0.5)).limit
        == Budget(np.int64(1)).limit / 2
    )


@pytest.mark.parametrize(
    "kwargs,match",
    [
        (dict(aggregate="max"), "choose one of sum, mean, prefix_mean"),
        (dict(burn_in=3), "burn_in.*prefix_mean.* only, got 3 with 'sum'"),
        (dict(aggregate="prefix_mean", burn_in=-1), "burn_in must be >= 0"),
    ],
)
def test_bad_budget(kwargs, match):
    "A budget that means nothing must not start a run."
    with pytest.raises(ValueError, match=match):
        Budget(1.0, **kwargs)


def test_the_limit_itself_is_allowed_and_infinity_never_binds():
    "Spending exactly d keeps the budget, for every aggregate; a budget of infinity is no constraint."
    cost, mask = torch.full((1, 4), 0.25), torch.ones(1, 4)
    for aggregate in AGGREGATES:
        limit = Budget(1.0, aggregate).spent(cost, mask).item()
        assert (
            not Budget(limit, aggregate).violated(cost, mask).any()
            and Budget(limit * 0.999, aggregate).violated(cost, mask).all()
        )
        assert not Budget(float("inf"), aggregate).violated(cost * 1e30, mask).any()
