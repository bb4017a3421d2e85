"Checks of lesson 05."

import torch

from cmdp_nbdev.objective import group_advantage
from cmdp_nbdev.reward import modified_reward

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
        f"the dearest would get a negative advantage (about {ordered:.1f}) if it were"
        " paid less than the others. With a constant penalty all are paid the same",
    )
    need(
        answer <= 0,
        "a positive advantage would make the dearest completion more probable",
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
            f"only n is subtracted, D is added: {got:+.2f}. The dearer the violation,"
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


@exercise(
    hint=(
        "Which groups have a standard deviation of zero, or none? Such a group cannot"
        " tell its completions apart, so it has nothing to say."
    )
)
def single(function) -> str:
    rewards = torch.tensor(
        [1.0, 0.0, 0.0, 1.0, 1.0, -2.0, -1.0, -3.0, 0.5], dtype=torch.float64
    )
    for groups in (
        [0, 0, 0, 1, 1, 2, 2, 2, 3],
        [5, 5, 0, 0, 0, 7, 7, 7, 7],
        list(range(9)),
    ):
        ids = torch.tensor(groups)
        got = function(rewards.clone(), ids)
        need(
            isinstance(got, torch.Tensor) and got.shape == rewards.shape,
            "it should return a tensor with one advantage for each completion",
        )
        alone = (ids[:, None] == ids).sum(1) == 1
        need(
            not got[alone].isnan().any(),
            "a group of one still gives NaN: the standard deviation of a single number"
            " is 0/0",
        )
        need(
            got.isfinite().all(),
            "a group whose rewards are all equal still gives NaN or infinity: 0/0",
        )
        need(
            (got[alone].abs() < 1e-6).all(),
            f"a group of one gets {got[alone].tolist()}. It has no baseline of its own,"
            " so it says nothing about good or bad: its advantage is 0",
        )
        for group in ids.unique():
            rows = ids == group
            centred = rewards[rows] - rewards[rows].mean()
            need(
                got[rows].sum().abs() < 1e-6,
                f"the advantages {[round(x, 2) for x in got[rows].tolist()]} of one"
                " prompt do not sum to zero: each group is compared with its own mean,"
                " or easy prompts look good and hard ones bad",
            )
            ratio = got[rows][centred.abs() > 1e-9] / centred[centred.abs() > 1e-9]
            need(
                not len(ratio)
                or (ratio > 0).all()
                and float(ratio.max() / ratio.min()) < 1 + 1e-6,
                "within a group the advantages must be the centred rewards divided by"
                " one positive number",
            )
            if len(ratio):
                need(
                    abs(float(ratio[0]) * float(rewards[rows].std()) - 1) < 0.3,
                    "in a group whose rewards differ, the standard deviation is still"
                    " what divides (a small offset is fine)",
                )
    return (
        "Groups that cannot compare are silent. The library also adds a share of the"
        " batch's standard deviation, so that nearly equal groups do not explode, and"
        " logs frac_reward_zero_std."
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
