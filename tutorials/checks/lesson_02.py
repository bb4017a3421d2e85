"Checks of lesson 02."

import math

import torch

from cmdp_nbdev.budget import Budget, satisfaction_interval

from . import exercise, need

PADDED = -1.0  # what stands behind the end: nothing may read it
RATES = (
    ([[0.15, 0.15], [0.05] * 4, [0.3, 0.0, 0.0, 0.0], [0.08]], 0.1),
    ([[0.5], [0.05] * 3], 0.1),
    ([[0.25, 0.25]], 0.25),
)


@exercise(
    hint=(
        "Let one completion spend nothing at all. How much may the others spend, so"
        " that the mean of all 100 is still 0.8?"
    )
)
def most(answer) -> str:
    need(
        isinstance(answer, int) and 0 <= answer <= 100,
        f"the answer is a whole number from 0 to 100, got {answer!r}",
    )
    right = max(
        k for k in range(101) if k * (0.8 + 1e-6) / 100 <= 0.8
    )  # k spend a little more than 0.8, the others nothing
    need(
        answer != 50,
        "a mean is not a median: it says nothing about how many lie on each side of it",
    )
    need(answer <= right, f"if all {answer} spend more than 0.8, so does their mean")
    need(
        answer >= right,
        f"{answer} is possible, but more are too: let {right} spend"
        f" {0.8 * 100 / right:.3f} nats each and the others nothing. The mean is"
        " still 0.8",
    )
    return (
        f"{right}: a mean within the limit allows all but one to break it. To see a"
        " mean that misleads in the other direction, move `budget d` of the panel to"
        " *mean spent*."
    )


@exercise(
    hint=(
        "Start a list with the limit. For every cost, append the last entry minus the"
        " cost. How long is the list at the end?"
    )
)
def remaining(function) -> str:
    for costs, limit in (
        ([0.25, 0.5, 0.125], 1.0),
        ([0.0, 1.0, 0.25], 0.5),
        ([0.5], 0.5),
    ):
        got = function(list(costs), limit)
        right = (
            Budget(limit)
            .remaining(torch.tensor([costs]), torch.ones(1, len(costs)))[0]
            .tolist()
        )
        need(
            got is not None,
            "it returns nothing: a function without `return` returns None",
        )
        got = [float(x) for x in got]
        returned = [round(x, 3) for x in got]
        example = f"for costs {costs} and limit {limit} it returns {returned}"

        def same(y):
            return len(got) == len(y) and all(abs(a - b) < 1e-9 for a, b in zip(got, y))

        spent = [limit - z for z in right]
        need(
            not same(right[1:]),
            f"{example}: z_0 is missing, what there is before the first token",
        )
        need(
            not same(right[:-1]),
            f"{example}: what is left after the last token is missing, and that one"
            " decides whether the limit was kept",
        )
        need(
            not same(spent) and not same(spent[1:]),
            f"{example}: this is what has been spent, not what is left",
        )
        need(
            not same([limit + s for s in spent]),
            f"{example}: the sign is wrong, the budget grows with every token",
        )
        need(
            same(right) or not same([max(z, 0.0) for z in right]),
            f"{example}: it stops at 0, and so it hides whether the limit was broken,"
            " and by how much",
        )
        need(same(right), f"{example}; it should be {[round(z, 3) for z in right]}")
    return (
        "This is the line in the middle picture of the panel: it starts at d, and below"
        " zero the limit is broken."
    )


def share(x) -> float:
    "Share of True."
    return float(x.double().mean())


@exercise(
    hint=(
        "What is the unit of what `Budget(limit)` adds up, and what is the unit of the"
        " limit? There is an aggregate for this. If you write it by hand: by how many"
        " tokens do you divide?"
    )
)
def rate(function) -> str:
    right = []
    got = []
    wrong = {
        k: []
        for k in ("sum", "padded", "unmasked", "pooled", "prefix", "strict", "over")
    }
    for rows, limit in RATES:
        T = max(map(len, rows))
        cost = torch.tensor([r + [PADDED] * (T - len(r)) for r in rows])
        mask = torch.tensor([[1] * len(r) + [0] * (T - len(r)) for r in rows])
        got.append(function(cost.clone(), mask.clone(), limit))
        need(
            got[-1] is not None,
            "it returns nothing: a function without `return` returns None",
        )
        got[-1] = float(got[-1])
        total, mean = (cost * mask).sum(-1), Budget(limit, "mean").spent(cost, mask)
        right.append(share(mean <= limit))
        for k, x in {
            "sum": total <= limit,
            "padded": total / T <= limit,
            "unmasked": cost.mean(-1) <= limit,
            "pooled": total.sum() / mask.sum() <= limit,
            "prefix": Budget(limit, "prefix_mean").spent(cost, mask) <= limit,
            "strict": mean < limit,
            "over": mean > limit,
        }.items():
            wrong[k].append(share(x))

    def same(y):
        return all(abs(a - b) < 1e-6 for a, b in zip(got, y))

    need(
        not same(wrong["sum"]),
        f"for completions {RATES[0][0]} and limit {RATES[0][1]} it returns {got[0]}: it"
        " compares a sum, in nats per completion, with a limit in nats per token",
    )
    need(
        not same(wrong["padded"]),
        f"it divides by the width of the batch, {max(map(len, RATES[0][0]))}, instead"
        " of by the length of each completion: short ones look cheap",
    )
    need(
        not same(wrong["unmasked"]),
        "it reads the costs behind the end of a completion, which are padding",
    )
    need(
        not same(wrong["pooled"]),
        "it asks the question about the average of the whole batch; it must be asked of"
        " each completion",
    )
    need(
        not same(wrong["prefix"]),
        "this is the worst mean of any beginning; asked was the mean of the whole"
        " completion",
    )
    need(
        not same(wrong["strict"]),
        "a completion that spends exactly the limit keeps it (<=, not <)",
    )
    need(not same(wrong["over"]), "this is the share that breaks the limit")
    need(
        same(right),
        f"for completions {RATES[0][0]} and limit {RATES[0][1]} it returns {got[0]};"
        f" {right[0]} of them keep it",
    )
    return (
        "Costs and limit now have the same unit, and every completion is asked. The"
        " first bug would not have raised an error in a training run either."
    )


@exercise(
    hint=(
        "The interval's lower end is close to 1 - 3.69/n if nothing breaks the limit."
        " Or try numbers with satisfaction_interval(n, n)."
    )
)
def enough(answer) -> str:
    need(
        isinstance(answer, int) and answer > 0,
        f"the answer is a whole number of completions, got {answer!r}",
    )
    right = next(n for n in range(1, 10_000) if satisfaction_interval(n, n)[0] >= 0.99)
    low = satisfaction_interval(answer, answer)[0]
    one_sided = math.log(0.05) / math.log(0.99)
    need(
        abs(answer - one_sided) > 3,
        "this is the rule of three, for a one-sided bound; the two-sided interval of"
        f" {answer} completions begins at {low:.4f}",
    )
    need(
        answer != 100,
        "that one in a hundred may break the limit does not mean that a hundred"
        f" completions can show it: their interval begins at {low:.4f}",
    )
    need(
        low >= 0.99,
        f"the interval of {answer} completions begins at {low:.4f}, which is below"
        " 0.99",
    )
    need(
        answer <= 1.05 * right,
        f"{answer} is enough, but you need fewer: the interval already begins at 0.99"
        f" with about {round(right, -2)}",
    )
    return (
        f"{right} are enough, if not one of them breaks the limit. The panel prints the"
        " interval under the satisfaction rate: it has 400 completions."
    )
