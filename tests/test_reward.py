"Task rewards and the paper's modified reward."

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cmdp_nbdev.budget import Budget
from cmdp_nbdev.mdp import Rollout
from cmdp_nbdev.reward import (
    call_reward,
    first_violation_reward,
    modified_reward,
    smooth_gate,
    step_gate,
    task_rewards,
)


def rollout(terminated=(True, True, False), **columns):
    "Three completions of two tokens; the middle one has a single token."
    ids = torch.tensor([[4, 1], [1, 0], [4, 5]])
    return Rollout(
        ids,
        torch.ones_like(ids),
        ids,
        torch.tensor([[1, 1], [1, 0], [1, 1]]),
        torch.tensor(terminated),
        prompts=["p", "q", "r"],
        completions=["a", "b", "c"],
        columns=columns,
    )


spends = st.lists(st.floats(0, 50), min_size=1, max_size=8)


@given(spends, st.floats(0, 10), st.floats(0, 5), st.floats(0, 5))
def test_modified_reward_case_by_case(spent, limit, n, coef):
    "The paper's definition: R inside, -(n + phi) outside, nothing in between."
    spent = torch.tensor(spent, dtype=torch.float64)
    R = torch.arange(len(spent), dtype=torch.float64)
    got = modified_reward(R, spent, limit, n, coef * spent)
    for r, s, v in zip(R.tolist(), spent.tolist(), got.tolist()):
        assert v == pytest.approx(r if s <= limit else -(n + coef * s))
    torch.testing.assert_close(
        modified_reward(R, spent, limit, n), modified_reward(R, spent, limit, n, spent)
    )  # phi defaults to what was spent


@given(st.floats(0, 10), st.floats(0.1, 3))
def test_worse_violations_are_worse(limit, n):
    "phi is there so that a large violation is worse than a small one, and any violation worse than failing the task."
    spent = limit + torch.linspace(0.01, 20, 50, dtype=torch.float64)
    value = modified_reward(torch.ones_like(spent), spent, limit, n)
    assert (value.diff() < 0).all() and (value < 0).all()


@given(spends, st.floats(0, 10), st.floats(0.01, 2))
def test_smooth_gate(spent, limit, width):
    "Monotone, one half at the limit, and the step in the limit of no width."
    spent = torch.tensor(sorted(spent), dtype=torch.float64)
    gate = smooth_gate(spent, limit, width)
    assert (gate.diff() >= 0).all() and smooth_gate(
        torch.tensor([limit]), limit, width
    ).item() == 0.5
    clear = (spent - limit).abs() > 1e-3
    torch.testing.assert_close(
        smooth_gate(spent, limit, 1e-6)[clear], step_gate(spent, limit)[clear]
    )


@given(
    st.integers(0, 10_000),
    st.floats(0, 3),
    st.sampled_from([("sum", 0), ("prefix_mean", 0), ("prefix_mean", 2)]),
)
def test_first_violation_reward_sums_to_the_trajectory_reward(seed, limit, kind):
    "Moving the penalty to the step that caused it must not change its size, nor touch padding."
    g = torch.Generator().manual_seed(seed)
    cost, mask = (
        torch.rand(5, 4, generator=g, dtype=torch.float64),
        (torch.arange(4) < torch.randint(1, 5, (5, 1), generator=g)).long(),
    )
    R, budget = torch.rand(5, generator=g, dtype=torch.float64), Budget(limit, *kind)
    spent = budget.spent(cost, mask)
    steps = first_violation_reward(R, cost, mask, budget, 2.0, spent)
    torch.testing.assert_close(steps.sum(-1), modified_reward(R, spent, limit, 2.0))
    assert ((steps != 0).sum(-1) <= 1).all() and (steps[mask == 0] == 0).all()


def test_negative_penalty_is_refused():
    "A negative penalty would reward violations."
    with pytest.raises(ValueError, match="penalty n must be >= 0, got -1"):
        modified_reward(torch.ones(1), torch.ones(1), 0.5, n=-1)


def test_columns_and_ids_reach_the_function():
    "Reward functions written for TRL read columns, ids and lengths; all must arrive, without padding."
    seen = {}

    def f(prompts, completions, completion_ids, answer, **kwargs):
        seen.update(locals())
        return [0.0] * 3

    call_reward(f, rollout(answer=["1", "2", "3"], level=[1, 2, 3]))
    assert (
        seen["completion_ids"] == [[4, 1], [1], [4, 5]]
        and seen["answer"] == ["1", "2", "3"]
        and seen["kwargs"]["level"] == [1, 2, 3]
    )
    assert seen["prompts"] == ["p", "q", "r"] and seen["completions"] == ["a", "b", "c"]


def test_callable_objects_and_missing_kwargs():
    "A reward model wrapped in an object, or a function without **kwargs, works as well."

    class Judge:
        def __call__(self, completions):
            return torch.tensor([1.0, 2.0, 3.0])

    assert call_reward(Judge(), rollout(other=[0, 0, 0])).tolist() == [1, 2, 3]


def test_weights_and_none():
    "None means `does not apply`: it neither counts as 0 in the sum nor hides the other functions."

    def f(completions):
        return [1.0, None, 3.0]

    def g(completions):
        return [10.0, 20.0, None]

    total, each = task_rewards([f, g], rollout((True,) * 3), [2.0, 0.5])
    assert total.tolist() == [7.0, 10.0, 6.0] and each[1, 0].isnan() and each[2, 1].isnan()
    total, _ = task_rewards([lambda completions: [None, 1.0, 1.0]], rollout((True,) * 3))
    assert total[0].isnan() and total[1:].tolist() == [1, 1]


@pytest.mark.parametrize(
    "truncated_reward,expected", [(0.0, [1, 1, 0]), (-2.0, [1, 1, -2]), (None, [1, 1, 1])]
)
def test_truncated_completions(truncated_reward, expected):
    "A completion that was cut off must never silently earn what a finished one earns."
    assert (
        task_rewards([lambda completions: [1.0] * 3], rollout(), truncated_reward=truncated_reward)[
            0
        ].tolist()
        == expected
    )


@pytest.mark.parametrize(
    "f,error,match",
    [
        (lambda completions: 1 / 0, RuntimeError, "ZeroDivisionError"),
        (lambda completions: [1.0], ValueError, "3 completions, got 1"),
        (lambda completions: 1.0, ValueError, "got float"),
        (lambda completions: None, ValueError, "got NoneType"),
        (lambda completions: [1.0, float("inf"), 0.0], ValueError, "finite"),
        (lambda completions, gold: [1.0] * 3, ValueError, "asks for gold"),
        (lambda completions: ["a", "b", "c"], (ValueError, TypeError), "reward function"),
    ],
)
def test_bad_reward_functions(f, error, match):
    "A bug in a user's function must be named, not become a strange loss."
    with pytest.raises(error, match=match):
        call_reward(f, rollout())
