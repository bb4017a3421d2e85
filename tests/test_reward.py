"Task rewards and the paper's modified reward."

import asyncio
import functools
import math
import types

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import TrainerState

from cmdp_nbdev.budget import Budget
from cmdp_nbdev.mdp import Rollout
from cmdp_nbdev.reward import (
    call_cost,
    call_reward,
    constrained_reward,
    first_violation_reward,
    function_names,
    length_cost,
    modified_reward,
    smooth_gate,
    step_gate,
    task_rewards,
    trl_arguments,
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


def two():
    "Two completions of three tokens, the second cut off."
    return Rollout(
        *torch.ones(4, 2, 3, dtype=torch.int64),
        terminated=torch.tensor([True, False]),
        prompts=["a", "b"],
        completions=["x", "xyz"],
        columns=dict(answer=["x", "y"]),
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
    default = modified_reward(R, spent, limit, n)  # phi is what was spent
    torch.testing.assert_close(default, modified_reward(R, spent, limit, n, spent))


def test_modified_reward_by_hand():
    "The paper's, Sauté's, and a smooth gate at the limit: half of 0, half of -(1 + 1)."
    R, spent = torch.tensor([1.0, 0.0, 1.0, 1.0]), torch.tensor([0.2, 1.0, 1.2, 5.0])
    paper = modified_reward(R, spent, 1.0, n=2.0)
    torch.testing.assert_close(paper, torch.tensor([1.0, 0.0, -3.2, -7.0]))
    saute = modified_reward(R, spent, 1.0, n=2.0, phi=0.0)
    torch.testing.assert_close(saute, torch.tensor([1.0, 0.0, -2.0, -2.0]))
    smooth = modified_reward(R, spent, 1.0, gate=smooth_gate(spent, 1.0, 0.1))
    torch.testing.assert_close(smooth[1], torch.tensor(-1.0))


@given(st.floats(0, 10), st.floats(0.1, 3))
def test_worse_violations_are_worse(limit, n):
    "phi orders violations by size, and any violation is worse than failing the task."
    spent = limit + torch.linspace(0.01, 20, 50, dtype=torch.float64)
    value = modified_reward(torch.ones_like(spent), spent, limit, n)
    assert (value.diff() < 0).all() and (value < 0).all()


@given(spends, st.floats(0, 10), st.floats(0.01, 2))
def test_smooth_gate(spent, limit, width):
    "Monotone, one half at the limit, and the step in the limit of no width."
    spent = torch.tensor(sorted(spent), dtype=torch.float64)
    assert (smooth_gate(spent, limit, width).diff() >= 0).all()
    assert smooth_gate(torch.tensor([limit]), limit, width).item() == 0.5
    clear = (spent - limit).abs() > 1e-3
    narrow, step = smooth_gate(spent, limit, 1e-6), step_gate(spent, limit)
    torch.testing.assert_close(narrow[clear], step[clear])


def test_gates_by_hand():
    "The limit itself is inside; a gate without width is a step and must be asked for as one."
    spent = torch.tensor([0.2, 1.0, 1.2, 5.0])
    step, narrow = step_gate(spent, 1.0), smooth_gate(spent, 1.0, 1e-4)
    assert step.tolist() == [0, 0, 1, 1]
    torch.testing.assert_close(smooth_gate(spent, 1.0, 0.1)[1], torch.tensor(0.5))
    torch.testing.assert_close(narrow[[0, 2, 3]], step[[0, 2, 3]])
    with pytest.raises(ValueError, match="width"):
        smooth_gate(spent, 1.0, 0.0)
    with pytest.raises(ValueError, match="gate width must be > 0"):
        smooth_gate(torch.ones(2), 1.0, torch.tensor([0.1, 0.0]))


def lengths_to_mask(lengths, T):
    return (torch.arange(T) < lengths).long()


KINDS = st.sampled_from([("sum", 0), ("prefix_mean", 0), ("prefix_mean", 2)])


@given(st.integers(0, 10_000), st.floats(0, 3), KINDS)
def test_first_violation_reward_sums_to_the_trajectory_reward(seed, limit, kind):
    "Moving the penalty to the step that caused it must not change its size, nor touch padding."
    g = torch.Generator().manual_seed(seed)
    cost = torch.rand(5, 4, generator=g, dtype=torch.float64)
    mask = lengths_to_mask(torch.randint(1, 5, (5, 1), generator=g), 4)
    R = torch.rand(5, generator=g, dtype=torch.float64)
    budget = Budget(limit, *kind)
    spent = budget.spent(cost, mask)
    steps = first_violation_reward(R, cost, mask, budget, 2.0, spent)
    torch.testing.assert_close(steps.sum(-1), modified_reward(R, spent, limit, 2.0))
    assert ((steps != 0).sum(-1) <= 1).all()
    assert (steps[mask == 0] == 0).all()


def test_first_violation_reward_by_hand():
    "Over at once, over with the second token, never over (the last column is padding there)."
    cost = torch.tensor([[0.6, 0.0, 0.3], [0.2, 0.4, 0.5], [0.1, 0.1, 9.0]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 1], [1, 1, 0]])
    one, budget = torch.ones(3), Budget(0.5)
    steps = first_violation_reward(one, cost, mask, budget, n=2.0)
    expected = torch.tensor([[-2.6, 0, 0], [0, -2.6, 0], [0, 1.0, 0]])
    torch.testing.assert_close(steps, expected)
    spent = budget.spent(cost, mask)
    whole = first_violation_reward(one, cost, mask, budget, phi=spent).sum(-1)
    torch.testing.assert_close(whole, modified_reward(one, spent, 0.5))


def test_a_constant_penalty_has_no_direction():
    "One state, two tokens, everybody over budget: without phi the student stays where it is."
    teacher = torch.tensor([0.8, 0.2], dtype=torch.float64)
    theta = torch.tensor([-1.0, 1.5], dtype=torch.float64, requires_grad=True)
    p = theta.softmax(0)
    kl = (p * (theta.log_softmax(0) - teacher.log())).sum()
    assert kl > 0.3
    penalty = -p.sum()  # n = 1 for both actions
    (constant,) = torch.autograd.grad(penalty, theta, retain_graph=True)
    torch.testing.assert_close(constant, torch.zeros_like(constant), rtol=0, atol=1e-12)
    (graded,) = torch.autograd.grad(penalty - kl, theta)
    assert graded.norm() > 0.1


def test_negative_penalty_is_refused():
    "A negative penalty would reward violations."
    with pytest.raises(ValueError, match="penalty n must be >= 0, got -1"):
        modified_reward(torch.ones(1), torch.ones(1), 0.5, n=-1)


def test_columns_and_ids_reach_the_function():
    "Reward functions written for TRL read columns, ids and lengths; all arrive, unpadded."
    seen = {}

    def f(prompts, completions, completion_ids, answer, **kwargs):
        seen.update(locals())
        return [0.0] * 3

    call_reward(f, rollout(answer=["1", "2", "3"], level=[1, 2, 3]))
    assert seen["completion_ids"] == [[4, 1], [1], [4, 5]]
    assert seen["answer"] == ["1", "2", "3"] and seen["kwargs"]["level"] == [1, 2, 3]
    assert seen["prompts"] == ["p", "q", "r"] and seen["completions"] == ["a", "b", "c"]


def test_callable_objects_and_missing_kwargs():
    "A reward model wrapped in an object, or a function without **kwargs, works as well."

    class Judge:
        def __call__(self, completions):
            return torch.tensor([1.0, 2.0, 3.0])

    assert call_reward(Judge(), rollout(other=[0, 0, 0])).tolist() == [1, 2, 3]


def test_weights_and_none():
    "None means `does not apply`: it neither counts as 0 nor hides the other functions."

    def f(completions):
        return [1.0, None, 3.0]

    def g(completions):
        return [10.0, 20.0, None]

    def not_the_first(completions):
        return [None, 1.0, 1.0]

    total, each = task_rewards([f, g], rollout((True,) * 3), [2.0, 0.5])
    assert total.tolist() == [7.0, 10.0, 6.0]
    assert each[1, 0].isnan() and each[2, 1].isnan()
    total, _ = task_rewards([not_the_first], rollout((True,) * 3))
    assert total[0].isnan() and total[1:].tolist() == [1, 1]


def test_task_rewards_by_hand():
    "Two functions and their weights, and a completion that was cut off."

    def exact(prompts, completions, answer, **kwargs):
        return [float(c == a) for c, a in zip(completions, answer)]

    def short(completions):
        return [None if len(c) == 1 else -1.0 for c in completions]

    total, each = task_rewards([exact, short], two(), weights=[1.0, 0.5], truncated_reward=None)
    assert total.tolist() == [1.0, -0.5] and each[0, 1].isnan()
    total, _ = task_rewards([exact], two(), truncated_reward=-2.0)
    assert total.tolist() == [1.0, -2.0]  # cut off: never silently scored as finished


@pytest.mark.parametrize(
    "truncated_reward,expected", [(0.0, [1, 1, 0]), (-2.0, [1, 1, -2]), (None, [1, 1, 1])]
)
def test_truncated_completions(truncated_reward, expected):
    "A completion that was cut off must never silently earn what a finished one earns."

    def one(completions):
        return [1.0] * 3

    total, _ = task_rewards([one], rollout(), truncated_reward=truncated_reward)
    assert total.tolist() == expected


@pytest.mark.parametrize(
    "f,error,match",
    [
        (lambda completions: 1 / 0, RuntimeError, "ZeroDivisionError"),
        (lambda completions: [1.0], ValueError, "3 completions, got 1"),
        (lambda completions: 1.0, ValueError, "got float"),
        (lambda completions: None, ValueError, "got NoneType"),
        (lambda completions: [1.0, float("inf"), 0.0], ValueError, "finite"),
        (lambda completions: [1.0, math.nan, 0.0], ValueError, "returned nan.*finite"),
        (lambda completions, gold: [1.0] * 3, ValueError, "asks for gold"),
        (lambda completions: ["a", "b", "c"], (ValueError, TypeError), "reward function"),
    ],
)
def test_bad_reward_functions(f, error, match):
    "A bug in a user's function must be named, not become a strange loss."
    with pytest.raises(error, match=match):
        call_reward(f, rollout())


def test_costs_by_hand():
    "One number is charged at the last token, a list token by token; the lengths must fit."

    def ones(completion_ids):
        return [[float(i == 1) for i in ids] for ids in completion_ids]

    def too_short(completions):
        return [[1.0], [1.0]]

    assert call_cost(length_cost, two()).tolist() == [[0, 0, 3], [0, 0, 3]]
    assert call_cost(ones, two()).sum(-1).tolist() == [3, 3]
    with pytest.raises(ValueError, match="1 numbers for a completion of 3 tokens"):
        call_cost(too_short, two())


def test_constrained_reward_by_hand():
    "The second completion is half a budget over."
    lengths = {"length": torch.tensor([3.0, 6.0, 4.0])}
    got = constrained_reward(torch.ones(3), lengths, {"length": 4.0}, n=2.0)
    torch.testing.assert_close(got, torch.tensor([1.0, -2.5, 1.0]))


# ----------------------------------------------------- functions as TRL calls them


class Judge:
    "A client that belongs to the event loop it was first used in."

    loop = None

    async def __call__(self, completions):
        self.loop = self.loop or asyncio.get_running_loop()
        assert self.loop is asyncio.get_running_loop()
        return await asyncio.gather(*(self.ask(c) for c in completions))

    async def ask(self, text):
        await asyncio.sleep(0)
        return float(len(text))


async def fails(completions):
    raise TimeoutError("the server")


def test_coroutines():
    "Also where a loop is running already, as in a notebook; a client may keep its connection."
    judge = Judge()
    plain = call_reward(judge, two()).tolist()
    assert plain == [float(len(c)) for c in two().completions]

    async def notebook():
        return [call_reward(f, two()).tolist() for f in (judge, functools.partial(judge))]

    assert asyncio.run(notebook()) == [plain, plain]
    with pytest.raises(RuntimeError, match="'fails' raised TimeoutError: the server"):
        call_reward(fails, two())
    assert call_cost(judge, two()).sum(-1).tolist() == plain


def test_what_trl_passes():
    "The state of the training, and two functions to log with."

    def f(completions, trainer_state, log_metric, log_extra, **columns):
        log_metric("progress", trainer_state.global_step / trainer_state.max_steps)
        log_extra("text", completions)
        return [0.0] * len(completions)

    assert call_reward(f, two()).tolist() == [0, 0]
    logged = {}
    state = TrainerState(global_step=3, max_steps=4)
    for _ in range(2):
        call_reward(f, two(), trl_arguments(state, logged))
    assert logged == {"progress": [0.75, 0.75]}
    taken = lambda completions, log_metric: log_metric("loss", 1.0)  # noqa: E731
    with pytest.raises(RuntimeError, match="an update has a 'loss' already"):
        call_reward(taken, two())


@pytest.mark.parametrize(
    "values",
    [np.array([1, 2]), torch.tensor([[1], [2]]), [np.array(1), torch.tensor([2.0])], (True, 2)],
    ids=["array", "column", "scalars", "bool and int"],
)
def test_numbers_of_all_kinds(values):
    assert call_reward(lambda completions: values, two()).tolist() == [1, 2]


def test_a_row_of_numbers_is_no_reward():
    with pytest.raises(ValueError, match="a reward must be a number"):
        call_reward(lambda completions: torch.ones(2, 2), two())


def test_every_function_has_a_name_of_its_own():
    f, g = (lambda completions: [0.0] * len(completions) for _ in range(2))
    f_2 = types.SimpleNamespace(__name__="<lambda>_2")
    assert function_names([f, g, functools.partial(functools.partial(f)), f_2]) == [
        "<lambda>",
        "<lambda>_2",
        "<lambda>_3",
        "<lambda>_2_2",
    ]
    assert function_names([Judge(), Judge(), f]) == ["Judge", "Judge_2", "<lambda>"]
