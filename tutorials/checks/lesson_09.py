"Checks of lesson 09."

import math

import numpy as np
import torch

from . import exercise, need

STEPS = (0.0001, 0.001, 0.01, 0.1)


@exercise(
    hint=(
        "Next to 1.0, bfloat16 knows 1.0078 and nothing in between. A sum is rounded to"
        " the nearer one."
    )
)
def steps(answer) -> str:
    need(
        not isinstance(answer, str) and set(answer) <= set(STEPS),
        f"give a set with some of the numbers {', '.join(map(str, STEPS))}; got"
        f" {answer!r}",
    )
    one = torch.ones((), dtype=torch.bfloat16)
    truth = {s for s in STEPS if one + torch.tensor(s, dtype=torch.bfloat16) != one}
    need(
        not (extra := set(answer) - truth),
        f"{', '.join(map(str, sorted(extra)))}: less than half of the gap between two"
        " neighbouring numbers, so it is rounded away",
    )
    need(
        not (missing := truth - set(answer)),
        f"{', '.join(map(str, sorted(missing)))} missing: more than half of the gap of"
        " 0.0078, so the sum is another number (not exactly the right one)",
    )
    return (
        "A weight of 0.01 has a gap a hundred times as small, so small weights move"
        " where large ones do not. Try other rates in the cell `wrong`."
    )


@exercise(
    hint=(
        "A completion is right if its reward is 1 and it ended by itself. All"
        " completions are in the denominator."
    )
)
def accuracy(function) -> str:
    for rewards, ended in (
        ([1.0, 1.0, 0.0, 1.0, 0.0], [True, False, True, True, False]),
        ([1.0, 0.0, 1.0, 1.0], [False, False, True, True]),
    ):
        r, e = np.array(rewards), np.array(ended)
        got, right = float(function(r, e)), float((r * e).mean())
        need(
            not math.isclose(got, r.mean()),
            f"{got:.2f} counts texts that were cut off as right answers; a student that"
            " never stops would profit",
        )
        need(
            not math.isclose(got, r[e].mean()),
            f"{got:.2f} leaves the truncated ones out of the count: then a student gets"
            " better by rambling where it is unsure",
        )
        need(
            math.isclose(got, right),
            f"for rewards {rewards} and terminated {ended} it is {right:.2f}, got"
            f" {got}",
        )
    return (
        "`evaluate` does the same, and reports `truncated_rate`. Shorten"
        " max_completion_length in the cell `before`, and see both move."
    )


@exercise(hint="Two sums over everything, and one division at the end.")
def share(function) -> str:
    for costs, chosen in (
        ([[1.0, 0.0, 3.0], [2.0, 4.0]], [[True, False, False], [True, True]]),
        (
            [[0.5], [0.0, 4.0, 1.0, 1.0], [0.5, 1.0]],
            [[False], [True, True, False, False], [False, True]],
        ),
    ):
        got = float(function(costs, chosen))
        inside = [
            sum(c for c, k in zip(row, keep) if k) for row, keep in zip(costs, chosen)
        ]
        right = sum(inside) / sum(map(sum, costs))
        need(
            not math.isclose(
                got, sum(i / sum(row) for i, row in zip(inside, costs)) / len(costs)
            ),
            f"{got:.3f} is the mean of the shares of the completions: one that spends"
            " hardly anything then counts as much as one that spends most",
        )
        need(
            not math.isclose(got, sum(map(sum, chosen)) / sum(map(len, chosen))),
            f"{got:.3f} is the share of the tokens, not of the nats",
        )
        need(
            not math.isclose(got, sum(inside)),
            f"{got:.3f} are the nats on the chosen tokens; asked is their share of all"
            " nats",
        )
        need(
            math.isclose(got, right),
            f"for costs {costs} and chosen {chosen} it is {right:.3f}, got {got}",
        )
    return (
        "In the cell `kinds` this is the middle column. The mean of shares answers"
        " another question: what a typical completion does."
    )
