"Checks of lesson 03."

from dataclasses import replace

import numpy as np
import torch

from cmdp_nbdev.budget import Budget
from cmdp_nbdev.methods import METHODS
from cmdp_nbdev.objective import Batch
from cmdp_nbdev.theory.tabular import one_state, soft_optimum, three_answers

from . import exercise, need

STEPS = (
    (1.0, [2.0, 1.0, 0.0, 3.0], 0.5, 0.1),
    (0.5, [0.1, 0.2], 0.8, 0.2),
    (0.01, [0.0, 0.25], 1.0, 0.1),
    (0.3, [0.0, 0.0, 8.0], 1.0, 0.5),
)  # price, spent, limit, learning rate
STUDENTS = (
    (
        {
            3.0: [0.1] * 10,
            1.0: [0.1] * 8 + [0.9] * 2,
            0.3: [0.1] * 6 + [0.9] * 4,
            0.1: [0.9] * 10,
        },
        0.5,
        0.8,
    ),
    ({0.5: [0.5] * 4, 2.0: [0.5] * 3 + [40.0], 1.0: [0.5] * 2 + [1.5] * 2}, 0.5, 0.75),
    ({1.0: [0.2, 2.0], 4.0: [0.2, 1.8]}, 1.0, 0.9),
    ({0.2: [0.0] * 9 + [9.5], 0.4: [0.0] * 9 + [20.0]}, 1.0, 0.85),
)


@exercise(
    hint=(
        "What is an answer worth at a price? Write it down for a and for g. At the"
        " price where the best answer changes, the two are worth the same."
    )
)
def switch(answer) -> str:
    need(isinstance(answer, (int, float)), f"the answer is a number, got {answer!r}")
    tree = three_answers()
    (a, b, g), (ra, rb, rg) = (-tree.teacher[0]).tolist(), tree.rewards.tolist()
    right = (rg - ra) / (g - a)
    need(
        abs(answer - (g - a) / (rg - ra)) > 0.02,
        "this is nats per reward; a price is reward per nat, the inverse",
    )
    need(
        abs(answer - (rb - ra) / (b - a)) > 0.01
        and abs(answer - (rg - rb) / (g - b)) > 0.01,
        "this is the slope to or from b, and b is not best at any price; compare a and"
        " g directly",
    )
    need(
        abs(answer - right) < 0.006,
        f"at the price {answer:.3f}, a is worth {ra - answer * a:.3f} and g"
        f" {rg - answer * g:.3f}: they do not tie",
    )
    return (
        "This is the slope of the chord from a to g, the dashed line of the tree"
        " explorer. In the explorer, move `budget d` along it: the mixture changes, the"
        " price stays the same."
    )


@exercise(
    hint=(
        "What changes in the difference between a right and a wrong answer? Does it"
        " matter where zero is?"
    )
)
def scale(answer) -> str:
    need(isinstance(answer, (int, float)), f"the answer is a number, got {answer!r}")
    need(answer > 0, "a price is positive: divergence costs something")
    need(
        abs(answer - 3.5) > 1e-6 and abs(answer - 2.0) > 1e-6,
        "the right answer's reward alone does not decide. A number added to all rewards"
        " changes nothing once advantages are centred; what counts is the difference, 7"
        " - (-3)",
    )
    need(
        abs(answer - 0.5) > 1e-6,
        "centring removes what was added to all rewards, but not the factor: the"
        " difference between right and wrong is ten times what it was",
    )
    need(
        abs(answer - 0.05) > 1e-6,
        "wrong direction: rewards have grown, so at an old price divergence is too"
        " cheap already",
    )
    for q in (0.2, 0.6):
        before = soft_optimum(one_state(q), 0.5).logits
        after = soft_optimum(
            replace(
                one_state(q), rewards=torch.tensor([-3.0, 7.0], dtype=torch.float64)
            ),
            float(answer),
        ).logits
        gap = float((before.exp() - after.exp())[0, 1])
        need(
            abs(gap) < 0.01,
            f"with a teacher that is right with probability {q}, the student was right"
            f" with {float(before.exp()[0, 1]):.3f} and is now right with"
            f" {float(after.exp()[0, 1]):.3f}",
        )
    return (
        "The price follows the factor and ignores what was added. A limit in nats would"
        " not have to be touched."
    )


@exercise(
    hint=(
        "The amount by which the mean is over the limit is mean - limit; it is negative"
        " if there is room. In which direction does the price move then, and what"
        " stops it?"
    )
)
def step(function) -> str:
    got = []
    right = []
    kinds = ("sign", "free", "hinge", "rate", "median", "total", "relative")
    wrong = {k: [] for k in kinds}
    for lam, spent, limit, lr in STEPS:
        got.append(function(lam, list(spent), limit, lr))
        need(
            got[-1] is not None,
            "it returns nothing: a function without `return` returns None",
        )
        x, state = torch.tensor(spent, dtype=torch.float64)[:, None], {"lam": lam}
        METHODS["dual"](
            Batch(
                torch.zeros(len(x)),
                torch.zeros(len(x)),
                torch.ones_like(x),
                -x,
                -x,
                {"divergence": x},
            ),
            Budget(limit),
            state,
            lr=lr,
        )  # the library's own step
        right.append(state["lam"])
        s = np.array(spent)
        for k, error in {
            "sign": limit - s.mean(),
            "free": s.mean() - limit,
            "hinge": np.maximum(s - limit, 0).mean(),
            "rate": (s > limit).mean(),
            "median": np.median(s) - limit,
            "total": s.sum() - limit,
            "relative": lam * (s.mean() - limit),
        }.items():
            wrong[k].append(
                lam + lr * error if k == "free" else max(0.0, lam + lr * error)
            )

    def same(y):
        return all(abs(float(a) - b) < 1e-9 for a, b in zip(got, y))

    off = [abs(float(a) - b) > 1e-9 for a, b in zip(got, right)]
    k = off.index(True) if any(off) else 0
    lam, spent, limit, lr = STEPS[k]
    example = (
        f"for price {lam}, spent {spent}, limit {limit} and lr {lr} it returns"
        f" {float(got[k]):.3f}"
    )
    need(
        not same(wrong["sign"]),
        f"{example}: the sign is wrong. Too much was spent, so divergence must become"
        " more expensive",
    )
    need(
        not same(wrong["free"]),
        f"with {STEPS[2][1]} spent and a limit of {STEPS[2][2]} the price becomes"
        f" {float(got[2]):.3f}: below zero, it would pay the student for leaving the"
        " teacher",
    )
    need(
        not same(wrong["hinge"]),
        f"{example}: only what is over the limit is counted, so cheap completions"
        " cannot compensate and the price never falls. That is another rule than a"
        " limit on the mean",
    )
    need(
        not same(wrong["rate"]),
        f"{example}: this counts how many are over the limit. That is a rule for the"
        " share of violations, not for the mean",
    )
    need(
        not same(wrong["median"]), f"{example}: a limit on the mean, not on the median"
    )
    need(
        not same(wrong["total"]),
        f"{example}: the sum over the batch is compared with a limit for one"
        " completion; take the mean",
    )
    need(
        not same(wrong["relative"]),
        f"{example} instead of {right[k]:.3f}: the step is multiplied by the price, so"
        " a price of 0 would stay there. λ moves by lr times the excess alone",
    )
    need(same(right), f"{example}; it should be {right[k]:.3f}")
    return (
        "So does the method `dual`. On the three answers this rule alternates between a"
        " and g: choose *mean only (price λ)* in the tree explorer to see where it ends"
        " on average."
    )


@exercise(
    hint=(
        "Take the student of price 1 in your head: most of its completions are cheap,"
        " one costs 40 nats. What does the mean say, what does the share within the"
        " limit say?"
    )
)
def choose(function) -> str:
    def read(ask, pick=min):
        return [
            pick(
                (lam for lam, s in students.items() if ask(np.array(s), limit, target)),
                default=None,
            )
            for students, limit, target in STUDENTS
        ]

    got = [
        function({k: list(v) for k, v in students.items()}, limit, target)
        for students, limit, target in STUDENTS
    ]
    right = read(lambda s, limit, target: (s <= limit).mean() >= target)
    k = next((k for k, (a, b) in enumerate(zip(got, right)) if a != b), 0)
    students, limit, target = STUDENTS[k]
    rates = "; ".join(
        f"price {lam:g} keeps it in {np.mean(np.array(s) <= limit):.0%}"
        for lam, s in students.items()
    )
    example = f"limit {limit}, target {target:.0%}: {rates}. It chooses {got[k]}"
    need(
        got != read(lambda s, limit, target: s.mean() <= limit),
        "it asks whether the average is within the limit, not each completion."
        f" {example}",
    )
    need(
        got != read(lambda s, limit, target: (s <= limit).mean() >= target, max),
        "it takes the largest price that is good enough, and so gives away reward."
        f" {example}",
    )
    need(
        got != read(lambda s, limit, target: (s < limit).mean() >= target),
        f"a completion that spends exactly the limit keeps it (<=, not <). {example}",
    )
    need(
        got != read(lambda s, limit, target: (s <= limit).mean() > target),
        f"exactly the target is enough (>=, not >). {example}",
    )
    need(
        got != read(lambda s, limit, target: (s <= limit).all()),
        f"asked was a share of at least the target, not all completions. {example}",
    )
    need(got == right, f"{example}; it should be {right[k]}")
    return (
        "Now the price is chosen by what each completion does. In the shoot-out, tick"
        " `soft` alone: this is the leftmost of its points that lies right of the line"
        " at 95%."
    )
