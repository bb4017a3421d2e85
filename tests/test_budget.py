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
    row_budget,
    running_spend,
    satisfaction_interval,
    spend_weights,
    suggest_budget,
)

BUDGETS = [("sum", 0), ("mean", 0), ("prefix_mean", 0), ("prefix_mean", 2), ("prefix_mean", 9)]
SEEDS = st.integers(0, 10_000)
COST = torch.tensor([[0.6, 0.0, 0.3], [0.2, 0.4, 9.0]])
MASK = torch.tensor([[1, 1, 1], [1, 1, 0]])


def close(got, expected, atol=1e-6):
    torch.testing.assert_close(got, torch.tensor(expected), rtol=0, atol=atol)


def batch(seed, B=6, T=5):
    "Random costs with NaN in the padding, and masks of every length."
    g = torch.Generator().manual_seed(seed)
    mask = (torch.arange(T) < torch.randint(1, T + 1, (B, 1), generator=g)).long()
    cost = torch.rand(B, T, generator=g, dtype=torch.float64)
    return cost.masked_fill(mask == 0, torch.nan), mask


def reference(costs: list[float], aggregate: str, burn_in: int):
    "Spent budget of one trajectory, and (step, value) of all that is judged, by the definitions."
    sums = [sum(costs[: t + 1]) for t in range(len(costs))]
    means = [s / (t + 1) for t, s in enumerate(sums)]
    if aggregate == "sum":
        return sums[-1], list(enumerate(sums))
    if aggregate == "mean":
        return means[-1], []
    judged = [(t, m) for t, m in enumerate(means) if t + 1 > burn_in]
    judged = judged or [(len(costs) - 1, means[-1])]
    return max(m for _, m in judged), judged


def test_running_spend_by_hand():
    "Sum, mean and worst mean; the padding repeats the total; a burn-in forgives the start."
    close(running_spend(COST, MASK), [[0.6, 0.6, 0.9], [0.2, 0.6, 0.6]])
    assert (running_spend(COST, 0 * MASK, "mean") == 0).all()  # an empty row spends nothing
    close(running_spend(COST, MASK, "mean"), [[0.6, 0.3, 0.3], [0.2, 0.3, 0.3]])
    for burn_in, worst in ((0, [0.6, 0.3]), (1, [0.3, 0.3])):
        close(running_spend(COST, MASK, "prefix_mean", burn_in)[:, -1], worst)
    shorter_than_the_burn_in = running_spend(COST, MASK, "prefix_mean", burn_in=9)
    close(shorter_than_the_burn_in[:, -1], [0.3, 0.3])


def test_budget_by_hand():
    "Spent, left, violated and scaled, for one limit and for a limit per trajectory."
    budget = Budget(0.5)
    close(budget.spent(COST, MASK), [0.9, 0.6])
    close(budget.remaining(COST, MASK), [[0.5, -0.1, -0.1, -0.4], [0.5, 0.3, -0.1, -0.1]])
    assert budget.violated(COST, MASK).tolist() == [True, True]
    assert Budget(torch.tensor([1.0, 0.5])).violated(COST, MASK).tolist() == [False, True]
    assert Budget(0.9).violated(torch.tensor([[0.9]]), torch.ones(1, 1)).tolist() == [False]
    assert budget.scaled(0.8).limit == pytest.approx(0.4)


def test_limits_of_rows():
    "A dataset's own limits replace the one of the run; a row without a limit is named."
    budget = Budget(0.5)
    assert row_budget(budget, {}) == budget
    assert row_budget(budget, {}, factor=0.25) == budget.scaled(0.25) != budget
    assert row_budget(budget, {"budget": [1, 0.5]}, factor=2.0).limit.tolist() == [2.0, 1.0]
    with pytest.raises(ValueError, match="row 1"):
        row_budget(budget, {"budget": [1.0, None]})


def test_first_violation_by_hand():
    "The first step over the limit, -1 where there is none, and no answer for a terminal mean."
    assert first_violation(Budget(0.5), COST, MASK).tolist() == [0, 1]
    assert first_violation(Budget(5.0), COST, MASK).tolist() == [-1, -1]
    with pytest.raises(ValueError, match="no first violating step"):
        first_violation(Budget(1.0, "mean"), COST, MASK)


@pytest.mark.parametrize("aggregate,burn_in", BUDGETS)
@given(seed=SEEDS, limit=st.floats(0.0, 3.0))
def test_against_a_loop(aggregate, burn_in, seed, limit):
    "Spent, violated and the first violating step decide what every method does."
    cost, mask = batch(seed)
    budget = Budget(limit, aggregate, burn_in)
    spent, violated = budget.spent(cost, mask), budget.violated(cost, mask)
    for i, n in enumerate(mask.sum(-1).tolist()):
        value, judged = reference(cost[i, :n].tolist(), aggregate, burn_in)
        assert spent[i].item() == pytest.approx(value, abs=1e-12)
        assert violated[i].item() == (spent[i].item() > limit)
        if aggregate == "mean":
            continue
        over = [t for t, v in judged if v > limit + 1e-12]
        first = first_violation(budget, cost, mask)[i].item()
        if all(abs(v - limit) > 1e-9 for _, v in judged):
            assert first == (over[0] if over else -1)


@pytest.mark.parametrize("aggregate,burn_in", [b for b in BUDGETS if b[0] != "mean"])
@given(seed=SEEDS, limit=st.floats(0.0, 3.0))
def test_first_violation_agrees_with_violated_and_remaining(aggregate, burn_in, seed, limit):
    "It exists exactly for violators, inside the completion, where z first falls below zero."
    cost, mask = batch(seed)
    budget = Budget(limit, aggregate, burn_in)
    first, z = first_violation(budget, cost, mask), budget.remaining(cost, mask)
    assert torch.equal(first >= 0, budget.violated(cost, mask))
    assert (first < mask.sum(-1)).all()
    assert z.shape == (len(cost), cost.shape[1] + 1)
    assert (z[:, 0] == limit).all() and not z.isnan().any()
    for i, t in enumerate(first.tolist()):
        below = (z[i, 1:] < 0).nonzero().flatten().tolist()
        assert (below[0] if below else -1) == t


@pytest.mark.parametrize("aggregate,burn_in", BUDGETS)
@given(seed=SEEDS)
def test_weights_are_the_derivative(aggregate, burn_in, seed):
    "The multiplier's share of each token, or the budget's gradient is wrong."
    cost, mask = batch(seed)
    live = cost.nan_to_num().requires_grad_()
    budget = Budget(1.0, aggregate, burn_in)
    (truth,) = torch.autograd.grad(budget.spent(live, mask).sum(), live)
    weights = spend_weights(budget, cost, mask)
    torch.testing.assert_close(weights, truth)
    linear = (weights * cost.nan_to_num()).sum(-1)
    torch.testing.assert_close(linear, budget.spent(cost, mask))


@pytest.mark.parametrize("aggregate,burn_in", BUDGETS)
def test_weights_to_the_last_digits(aggregate, burn_in):
    "Every length from one token to the whole row, against autograd."
    g = torch.Generator().manual_seed(0)
    cost = torch.rand(6, 5, generator=g, dtype=torch.float64, requires_grad=True)
    mask = (torch.arange(5) < torch.tensor([5, 4, 3, 2, 1, 5])[:, None]).long()
    budget = Budget(1.0, aggregate, burn_in)
    (truth,) = torch.autograd.grad(budget.spent(cost, mask).sum(), cost)
    weights = spend_weights(budget, cost.detach(), mask)
    torch.testing.assert_close(weights, truth, rtol=0, atol=1e-12)


@pytest.mark.parametrize("aggregate,burn_in", BUDGETS)
@given(seed=SEEDS, extra=st.integers(1, 4))
def test_padding_changes_nothing(aggregate, burn_in, seed, extra):
    "Padding to a longer neighbour must not change what a completion has spent."
    cost, mask = batch(seed)

    def pad(x, v):
        return torch.cat([x, torch.full((len(x), extra), v, dtype=x.dtype)], 1)

    narrow = running_spend(cost, mask, aggregate, burn_in)
    wide = running_spend(pad(cost, torch.nan), pad(mask, 0), aggregate, burn_in)
    assert torch.equal(narrow[:, -1], wide[:, -1])


@given(st.integers(1, 400), st.floats(0, 1), st.sampled_from([0.5, 0.9, 0.95, 0.999]))
def test_interval_is_clopper_pearson(n, share, level):
    "The interval beside a satisfaction rate must be the exact one that reviewers expect."
    k = round(share * n)
    exact = binomtest(k, n).proportion_ci(level, method="exact")
    low, high = satisfaction_interval(k, n, level)
    assert low == pytest.approx(exact.low, abs=1e-12)
    assert high == pytest.approx(exact.high, abs=1e-12)
    outcomes = [True] * k + [False] * (n - k)
    assert satisfaction_interval(outcomes, level=level) == (low, high)
    assert satisfaction_interval(torch.tensor(outcomes), level=level) == (low, high)


def test_interval_by_published_numbers():
    "95 of 100; and no violation among n, where the lower end is about 1 - 3.7/n."
    assert satisfaction_interval(95, 100) == pytest.approx((0.8872, 0.9836), abs=1e-4)
    assert satisfaction_interval([True] * 10)[1] == 1.0
    assert satisfaction_interval(1000, 1000)[0] == pytest.approx(1 - 3.68e-3, abs=1e-4)


@pytest.mark.parametrize("args", [(5, 3), (-1, 3), (0, 0), ([],)])
def test_interval_refuses_impossible_counts(args):
    "An interval of nothing would look like a result."
    with pytest.raises(ValueError, match="satisfied"):
        satisfaction_interval(*args)


def test_interval_names_what_was_given():
    "The counts are in the message, and a level that is no probability is refused."
    with pytest.raises(ValueError, match="satisfied=5"):
        satisfaction_interval(5, 3)
    for level in (0, 1, 95):
        with pytest.raises(ValueError, match=f"level must lie strictly .* got {level}"):
            satisfaction_interval(1, 3, level)


@given(st.lists(st.floats(0, 100), min_size=20, max_size=200), st.floats(0.05, 0.95))
def test_suggested_budget_is_kept_by_about_that_share(spent, quantile):
    "This share of the distilled student's completions would keep the proposed limit."
    limit = suggest_budget(spent, quantile)
    assert np.mean(np.array(spent) <= limit + 1e-9) >= quantile - 1 / len(spent)
    assert np.mean(np.array(spent) < limit - 1e-9) <= quantile + 1 / len(spent)


def test_suggested_budget_by_hand():
    "A quantile of what was spent; nothing can be proposed from nothing."
    assert suggest_budget(range(101), 0.8) == pytest.approx(80.0)
    with pytest.raises(ValueError, match="non-empty"):
        suggest_budget([])


@pytest.mark.parametrize("limit", [-1, float("nan"), -0.0001, None, "1"])
def test_limit_must_be_a_non_negative_number(limit):
    "A negative or missing limit would call every completion a violation."
    with pytest.raises(ValueError, match="budget limit must be a number of nats >= 0"):
        Budget(limit)


@pytest.mark.parametrize("limits", [[1.0, -1.0], [1.0, float("nan")], [[1.0]]])
def test_every_limit_of_a_batch_must_be_one(limits):
    "One bad row, or a tensor of another shape, is as bad as one bad limit."
    with pytest.raises(ValueError, match=r"or a tensor \(B,\) of such numbers"):
        Budget(torch.tensor(limits))


def test_numpy_numbers_are_numbers():
    "A limit from `np.linspace` or a float32 array is a limit."
    assert Budget(np.float32(0.5)).limit == Budget(np.float64(0.5)).limit == 0.5
    assert Budget(np.int64(1)).limit / 2 == 0.5


@pytest.mark.parametrize(
    "kwargs,match",
    [
        (dict(aggregate="max"), "choose one of sum, mean, prefix_mean"),
        (dict(aggregate="median"), "choose one of"),
        (dict(burn_in=3), "burn_in.*prefix_mean.* only, got 3 with 'sum'"),
        (dict(aggregate="prefix_mean", burn_in=-1), "burn_in must be >= 0"),
    ],
)
def test_bad_budget(kwargs, match):
    "A budget that means nothing must not start a run."
    with pytest.raises(ValueError, match=match):
        Budget(1.0, **kwargs)


def test_the_limit_itself_is_allowed_and_infinity_never_binds():
    "Spending exactly d keeps the budget, for every aggregate; infinity is no constraint."
    cost, mask = torch.full((1, 4), 0.25), torch.ones(1, 4)
    for aggregate in AGGREGATES:
        limit = Budget(1.0, aggregate).spent(cost, mask).item()
        assert not Budget(limit, aggregate).violated(cost, mask).any()
        assert Budget(limit * 0.999, aggregate).violated(cost, mask).all()
        assert not Budget(float("inf"), aggregate).violated(cost * 1e30, mask).any()
