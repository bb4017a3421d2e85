"Checks of lesson 00."

import math

import numpy as np

from . import exercise, need

PRICE = math.log(
    2
)  # a certain correction where the teacher is right half of the time, nats
SPENT = ([0.1, 0.2, 5.0], [0.8, 0.8, 0.9, 3.0], [0.0, 0.4])


@exercise(
    hint=(
        "One certain correction costs log 2 nats, the last line of the table of prices."
        " How often does that go into 1.5?"
    )
)
def corrections(answer) -> str:
    need(
        isinstance(answer, int),
        f"the answer is a whole number of corrections, got {answer!r}",
    )
    right = math.floor(1.5 / PRICE)
    need(
        answer != round(1.5 / 0.5),
        "1.5 / 0.5 divides by the teacher's probability; a correction costs -log of"
        " that probability, in nats",
    )
    need(
        answer <= right,
        f"{answer} corrections cost {answer * PRICE:.2f} nats, more than 1.5",
    )
    need(
        answer >= right,
        f"{answer} corrections cost {answer * PRICE:.2f} nats, and another one still"
        f" fits: {(answer + 1) * PRICE:.2f}",
    )
    return (
        "Two cost 1.39 nats. In the panel, put d on 1.5 and look at the histogram of"
        " grpo: its heaps stand at multiples of log 2."
    )


@exercise(
    hint=(
        "Ask the question of every completion, s <= limit, and take the share of those"
        " that say yes."
    )
)
def satisfaction(function) -> str:
    for spent in SPENT:
        got, right = function(spent, 0.8), float(np.mean([s <= 0.8 for s in spent]))
        need(
            got is not None,
            "it returns nothing: a function without `return` returns None",
        )
        need(
            not isinstance(got, (bool, np.bool_)),
            "it says yes or no about the average; the budget is a rule for each"
            " completion, so the answer is a share",
        )
        need(
            abs(got - (1 - right)) > 1e-9 or abs(right - 0.5) < 1e-9,
            f"for {spent} it returns {got:.2f}: this is the share that breaks the"
            " limit",
        )
        need(
            abs(got - np.mean([s < 0.8 for s in spent])) > 1e-9
            or abs(got - right) < 1e-9,
            f"for {spent} it returns {got:.2f}: a completion that spends exactly the"
            " limit keeps it (<=, not <)",
        )
        need(
            abs(got - right) < 1e-9,
            f"for {spent} and limit 0.8 it returns {got}, but {right:.2f} of them"
            " keep it",
        )
    return "Every completion is asked, and a runaway counts once, however far it runs."


@exercise(
    hint=(
        "The share of completions below a limit is a quantile of what they spend."
        " `share * max(spent)` depends on one completion only: the dearest."
    )
)
def limit(function) -> str:
    rng = np.random.default_rng(0)
    for spent in (
        rng.exponential(0.5, 400).tolist(),
        [*rng.uniform(0, 1, 400).tolist(), 60.0],
    ):
        for share in (0.9, 0.5):
            got = function(spent, share)
            kept = float(np.mean(np.array(spent) <= got))
            need(
                abs(got - share * max(spent)) > 1e-6,
                "it still scales the dearest completion: with one runaway of"
                f" {max(spent):.0f} nats the limit is {got:.1f}, and {kept:.0%} keep it"
                f" instead of {share:.0%}",
            )
            need(
                abs(got - share * float(np.mean(spent))) > 1e-6
                and abs(got - float(np.mean(spent))) > 1e-6,
                "the mean is no quantile: how many completions keep it depends on the"
                " shape of the distribution",
            )
            need(
                abs(got - np.quantile(spent, 1 - share)) > 1e-6 or share == 0.5,
                f"only {kept:.0%} keep this limit: it is the quantile of 1 - share",
            )
            need(
                abs(kept - share) < 0.02,
                f"{kept:.1%} of the completions keep the limit {got:.2f}; asked was"
                f" {share:.0%}",
            )
    return (
        "A quantile does not care how far the runaways run. suggest_budget does the"
        " same with your own records."
    )
