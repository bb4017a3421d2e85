"Checks of lesson 00."

import functools
import math

import numpy as np

from cmdp_nbdev.widgets.purse import correction_cost

from . import exercise, need

PRICE = math.log(2)  # nats of a certain correction of an undecided teacher
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
        " grpo: its heaps stand near 0.1, 0.8 and 1.5. These are multiples of log 2 and"
        " one tenth more, the small change of all other tokens."
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


PURSES = (  # how often the teacher is right at each step, and what may be spent
    ((0.5, 0.5, 0.5), 0.8),
    ((0.9, 0.5, 0.2), 0.8),
    ((0.3, 0.6), 0.5),
    ((0.05, 0.8, 0.5, 0.5), 1.2),
    ((0.5, 0.9), 3.0),
)


def at_price(q: np.ndarray, price: float) -> np.ndarray:
    "The p that maximise sum log p - price * kl(p, q): where 1/p = price * (odds, log)."
    low, high = q.copy(), np.ones_like(q)
    for _ in range(45):
        p = (low + high) / 2
        with np.errstate(divide="ignore"):
            rises = 1 / p > price * (np.log(p / (1 - p)) - np.log(q / (1 - q)))
        low, high = np.where(rises, p, low), np.where(rises, high, p)
    return low


@functools.cache
def best_division(q: tuple[float, ...], d: float) -> float:
    "The best chance to be right at all steps: the price is found by bisection."
    q, low, high = np.array(q), 1e-6, 1e6
    for _ in range(50):
        price = math.sqrt(low * high)
        p = at_price(q, price)
        spends = sum(map(correction_cost, p, q))
        low, high = (price, high) if spends > d else (low, price)
    return float(at_price(q, high).prod())


@exercise(
    hint=(
        "Equal shares are best for equal steps only. Where the teacher is right nine"
        " times of ten, 0.1 nats make a step certain, so give what it cannot use to the"
        " others. Or let the computer look: move a little from one step to another as"
        " long as the product grows."
    )
)
def divide(function) -> str:
    scores = []
    for q, d in PURSES:
        p = function(list(q), d)
        need(p is not None, "it returns nothing: a function needs a `return`")
        p = [float(x) for x in p]
        given = f"q = {list(q)}, d = {d}"
        need(
            len(p) == len(q),
            f"for {given} it returns {len(p)} numbers instead of {len(q)}",
        )
        need(
            all(0 <= x <= 1 for x in p),
            f"for {given} it returns {np.round(p, 3).tolist()}: probabilities lie"
            " between 0 and 1",
        )
        spent = sum(map(correction_cost, p, q))
        need(
            spent <= d + 1e-3,
            f"for {given} it spends {spent:.3f} nats: the purse is overdrawn",
        )
        scores.append(min(math.prod(p) / best_division(q, d), 1.0))
    worst = min(range(len(PURSES)), key=scores.__getitem__)
    q, d = PURSES[worst]
    score = float(np.mean(scores))
    need(
        score >= 0.95,
        f"score {score:.1%}; the worst is q = {list(q)}, d = {d}, with"
        f" {scores[worst]:.0%} of what is possible there",
    )
    return f"Score {score:.1%} of the best possible, over {len(PURSES)} purses."
