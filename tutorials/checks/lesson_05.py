"Checks of lesson 05."

import functools

import torch

from cmdp_nbdev.budget import Budget
from cmdp_nbdev.objective import group_advantage
from cmdp_nbdev.reward import modified_reward
from cmdp_nbdev.theory.tabular import hard_optimum, law, one_state

from . import exercise, need

PAID = (
    (1.0, 0.3, 0.8, 1.0),
    (0.0, 0.3, 0.8, 1.0),
    (1.0, 0.8, 0.8, 2.0),
    (1.0, 2.5, 0.8, 2.0),
    (0.0, 1.1, 1.0, 0.0),
)  # reward, spent, limit, n


@exercise(
    hint=(
        "Every completion is paid -20. What is the mean of the group, and how far is"
        " each completion from it?"
    )
)
def constant(answer) -> str:
    need(isinstance(answer, (int, float)), f"the answer is a number, got {answer!r}")
    spent = torch.arange(1.0, 9.0)

    def paid(phi):
        return modified_reward(torch.ones(8), spent, 0.8, n=20.0, phi=phi)

    truth, ordered = (
        float(group_advantage(paid(phi), torch.zeros(8))[-1]) for phi in (0.0, None)
    )
    need(
        abs(answer + 20) > 1e-6,
        "-20 is what it is paid. An advantage is the distance from the mean of the"
        " group",
    )
    need(
        abs(answer + 28) > 1e-6 and not -3 < answer < 0,
        f"the most expensive would get a negative advantage (about {ordered:.1f}) if it"
        " were paid less than the others. Here all are paid the same",
    )
    need(
        answer <= 0,
        "a positive advantage would make the most expensive completion more probable",
    )
    need(
        abs(answer - truth) < 1e-6,
        f"the advantage is {truth:g}: paid minus the mean of the group, and all are"
        " paid the same",
    )
    return (
        "Zero, for all eight, whatever n is. In the MultiplierView choose `saute`, the"
        " constant penalty: its multiplier is zero as well, so such a group has no"
        " gradient at all."
    )


@exercise(
    hint=(
        "Two cases. Inside: the task reward, unchanged. Outside: a negative number, the"
        " more negative the more was spent."
    )
)
def paid(function) -> str:
    for reward, spent, limit, n in PAID:
        right = float(
            modified_reward(torch.tensor([reward]), torch.tensor([spent]), limit, n)[0]
        )
        got = function(reward, spent, limit, n)
        need(
            got is not None,
            "it returns nothing: a function without `return` returns None",
        )
        got = float(got)
        is_(
            got,
            right,
            n + spent,
            spent > limit,
            f"the sign of the penalty: a completion over budget would earn {got:+.2f},"
            " and the student would learn to overspend",
        )
        is_(
            got,
            right,
            -n + spent,
            spent > limit,
            f"only n is subtracted, D is added: {got:+.2f}. The larger the violation,"
            " the more it would earn",
        )
        is_(
            got,
            right,
            -n,
            spent > limit,
            "the penalty is constant. Without D a group that is over as a whole has no"
            " gradient",
        )
        is_(
            got,
            right,
            reward - (n + spent),
            spent > limit,
            "the task reward is kept outside. That is a price for violations, not the"
            " paper's reward: being right does not count over budget",
        )
        is_(
            got,
            right,
            -(n + spent - limit),
            spent > limit,
            "this charges the excess D - d; the paper's term is D itself",
        )
        is_(
            got,
            right,
            -(n + spent),
            spent == limit,
            "spending exactly the limit keeps the budget (<=, not <)",
        )
        is_(
            got,
            right,
            reward - spent,
            spent <= limit,
            "divergence inside the budget is free; only the limit counts",
        )
        need(
            abs(got - right) < 1e-5,
            f"for reward {reward:g}, spent {spent:g}, limit {limit:g}, n = {n:g} it"
            f" returns {got:g}, not {right:g}",
        )
    return (
        "Two cases, and a jump between them. In the BudgetPanel, n moves the branch on"
        " the right of the limit up and down."
    )


def is_(got: float, right: float, wrong: float, when: bool, why: str) -> None:
    "Refuse the answer `wrong` with a reason, where it differs from the right one."
    need(not (when and abs(wrong - right) > 1e-6 and abs(got - wrong) < 1e-5), why)


WALKS = (
    ([0.1, 0.3, 0.5, 0.2], 0.8),
    ([0.1, 0.9, 0.05, 0.05], 0.8),
    ([0.4, 0.4, 0.0, 0.3], 0.8),
    ([0.2, 0.1, 0.1], 0.8),
    ([1.0, 0.0], 0.5),
)  # costs of the states, limit


@exercise(
    hint=(
        "Add up as you go. At a state, ask whether what is spent so far and its own"
        " cost exceed the limit. From the first that does, every cost is KL(mu || mu)."
    )
)
def fall_back(function) -> str:
    for cost, limit in WALKS:
        got = function(list(cost), limit)
        need(got is not None, "it returns nothing: a function needs a `return`")
        got, given = [float(x) for x in got], f"for {cost} and limit {limit}"
        need(
            len(got) == len(cost),
            f"{given} it returns {len(got)} costs instead of {len(cost)}",
        )
        spent = list(torch.tensor(cost, dtype=torch.float64).cumsum(0))
        first = next((t for t, s in enumerate(spent) if s > limit + 1e-9), len(cost))
        strict = next((t for t, s in enumerate(spent) if s >= limit - 1e-9), len(cost))
        right = cost[:first] + [0.0] * (len(cost) - first)

        def same(x):
            return len(x) == len(got) and all(abs(a - b) < 1e-6 for a, b in zip(x, got))

        need(
            same(right) or not same(cost),
            f"{given} it changes nothing, and the limit is broken at state {first}",
        )
        need(
            same(right) or not same(cost[:strict] + [0.0] * (len(cost) - strict)),
            f"{given} it falls back although exactly the limit is spent: that is"
            " allowed",
        )
        need(
            same(right)
            or not same(cost[: first + 1] + [0.0] * (len(cost) - first - 1)),
            f"{given} it falls back one state too late: the cost of state {first} is"
            " what breaks the limit, and it belongs to the state",
        )
        once = [0.0 if t == first else c for t, c in enumerate(cost)]
        need(
            same(right) or not same(once),
            f"{given} it falls back in one state and then goes on as before. The"
            " teacher writes from there on",
        )
        need(
            sum(got) <= limit + 1e-6,
            f"{given} it still spends {sum(got):.2f}",
        )
        need(same(right), f"{given} it should return {right}, got {got}")
    return (
        "Nothing that kept the limit was touched, and nothing breaks it any more."
        " `project_to_teacher` does this on a whole tree."
    )


@exercise(
    hint=(
        "Draw coef * (D - d)+ against D. What is its slope left of the limit, and what"
        " is it to the right, near and far?"
    )
)
def hinge(function) -> str:
    for limit, coef in ((0.8, 3.0), (0.3, 1.0), (1.5, 0.5)):
        spent = torch.tensor(
            [0.1, 0.29, 0.5, 0.81, 1.6, 4.0], dtype=torch.float64, requires_grad=True
        )
        (right,) = torch.autograd.grad(
            (coef * (spent - limit).clamp(min=0)).sum(), spent
        )
        got = function(spent.detach(), limit, coef)
        need(
            isinstance(got, torch.Tensor) and got.shape == spent.shape,
            "it should return a tensor with one multiplier for each completion",
        )
        got, D = got.double(), spent.detach()

        def same(other):
            return torch.allclose(got, other, atol=1e-9)

        need(
            not same(coef * (D - limit).clamp(min=0)),
            "this is the value of the hinge. Times D it is charged twice: a completion"
            f" with 4 nats and limit {limit:g} is pulled with {float(got[-1]):.1f}"
            f" instead of {coef:g}",
        )
        need(
            not same(torch.full_like(D, coef)),
            "completions inside the budget are pulled as well: that is the fixed price"
            " of lesson 3",
        )
        need(
            not same(coef * (D <= limit).double()),
            "the wrong side: it pulls those that keep the budget and lets the"
            " others go",
        )
        need(not same((D > limit).double()) or coef == 1, "the coefficient is missing")
        need(
            not same(-right),
            "the sign: the multiplier stands in a loss, and a positive one lowers D",
        )
        need(
            same(right),
            f"for limit {limit:g} and coef {coef:g} it returns"
            f" {[round(x, 2) for x in got.tolist()]}, the slope is"
            f" {[round(x, 2) for x in right.tolist()]}",
        )
    return (
        "A multiplier is a slope. Choose `hinge` in the MultiplierView and move `coef`:"
        " flat at zero, then flat at coef."
    )


TEACHERS = ((0.2, 0.3), (0.4, 0.2), (0.1, 0.4))  # right with this probability; limit


@functools.cache
def best_within(q: float, d: float) -> float:
    "The value of the best student of such a teacher."
    return float(hard_optimum(one_state(q), d).value)


def climb(pay, q: float, d: float) -> list[tuple[float, bool]]:
    "Value, and within the budget or not, of the last 100 of 300 steps on a pay."
    tree, budget = one_state(q), Budget(d)
    logits = torch.tensor([[0.2, 0.8]], dtype=torch.float64).log()
    found = []
    for _ in range(300):
        p = law(tree, logits.requires_grad_())
        value, over = (float(x.detach()) for x in (p.value(), p.violation(budget)))
        found.append((value, over < 0.5))
        paid = pay(tree.rewards, p.spent(budget), d)
        (step,) = torch.autograd.grad(p.expect(paid), logits)
        logits = (logits + 0.2 * step).detach()
    return found[-100:]


@exercise(
    hint=(
        "What makes it chatter is a jump at d: let the pull begin a little inside, and"
        " grow. `soft_gate` above scores 94%. How close to the limit may its middle be,"
        " and how narrow may it become, before it chatters again?"
    )
)
def design(function) -> str:
    scores = []
    for q, d in TEACHERS:
        best = best_within(q, d)
        steps = climb(function, q, d)
        scores.append(sum(min(v / best, 1.0) for v, within in steps if within) / 100)
    shares = ", ".join(f"{score:.0%}" for score in scores)
    score = sum(scores) / len(scores)
    need(score >= 0.95, f"score {score:.1%} (at the three teachers {shares})")
    return f"Score {score:.1%} (at the three teachers {shares})."
