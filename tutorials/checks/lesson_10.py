"Checks of lesson 10."

import math
from dataclasses import asdict, replace

import torch

from cmdp_nbdev.budget import Budget, satisfaction_interval
from cmdp_nbdev.run import check_resumable
from cmdp_nbdev.trainer import CMDPConfig

from . import exercise, need

CHANGES = {
    "seed": 1,
    "learning_rate": 1e-4,
    "warmup_steps": 20,
    "budget_quantile": 0.9,
    "save_steps": 10,
    "logging_steps": 5,
    "output_dir": "elsewhere",
}


def refused(name: str) -> bool:
    "Whether the lesson's run refuses to continue with another value of this setting."
    args = CMDPConfig(
        distill_steps=30, budget_quantile=0.8, max_steps=70, save_steps=35
    )
    try:
        check_resumable(
            asdict(args),
            asdict(replace(args, **{name: CHANGES[name]})),
            "checkpoint-35",
        )
    except ValueError:
        return True
    return False


@exercise(
    hint=(
        "Ask of each: would update 36 move other weights than in the run that was never"
        " stopped? The learning rate rises over warmup_steps and falls after them."
    )
)
def change(answer) -> str:
    need(
        not isinstance(answer, str) and set(answer) <= set(CHANGES),
        f"give a set with some of the names {', '.join(CHANGES)}; got {answer!r}",
    )
    truth = {name for name in CHANGES if refused(name)}
    need(
        not (extra := set(answer) - truth),
        f"{', '.join(sorted(extra))}: decides what is written where and when, and no"
        " weight depends on it, so it may change",
    )
    need(
        not (missing := truth - set(answer)),
        f"{', '.join(sorted(missing))} missing: another value moves other weights (a"
        " longer warm-up also shifts the schedule of the learning rate)",
    )
    return (
        "The trainer names every difference that it refuses. See it: new_trainer(work /"
        " 'killed', seed=1).train(resume_from_checkpoint='auto')."
    )


@exercise(
    hint=(
        "The mean of equal numbers does not depend on how many there are. The sum is"
        " number times price."
    )
)
def lengths(answer) -> str:
    need(
        isinstance(answer, (tuple, list))
        and len(answer) == 2
        and all(isinstance(a, (set, frozenset)) for a in answer),
        f"give two sets of lengths, (mean, sum); got {answer!r}",
    )
    truth = []
    for budget in (Budget(0.35, "mean"), Budget(20.0)):
        truth.append(
            {
                t
                for t in (20, 60, 200)
                if not budget.violated(torch.full((1, t), 0.3), torch.ones(1, t)).any()
            }
        )
    mean, total = map(set, answer)
    need(
        (mean, total) != (truth[1], truth[0]),
        "the other way round: the first set is for the mean",
    )
    need(
        mean == truth[0],
        "the mean: 0.3 nats at every token is 0.3 nats per token, however many"
        " there are",
    )
    need(
        total == truth[1],
        "the sum: multiply 0.3 by the number of tokens, and compare with 20",
    )
    return (
        "Under the mean the long completion may spend 70 nats, more than three times"
        " what the sum allows to any. In the cell `mean`, put your own lengths into the"
        " loop."
    )


@exercise(
    hint=(
        "Cut the text at its last #. If there is none, there is no answer. Compare the"
        " whole rest, not a part of it."
    )
)
def reward(function) -> str:
    def ask(texts, final):
        return function(
            prompts=["x"] * len(texts),
            completions=texts,
            final=final,
            num_flawed=[0] * len(texts),
        )

    for answer, other, work in (
        ("7", "1", "3+8=1;1*7=7"),
        ("12", "2", "3+9=12;12*1=12"),
    ):
        got = ask(
            [
                f"{work}#{answer}",
                f"{work}#{other}",
                work,
                f"{work}#{answer}",
                f"{work}#{other}#{answer}",
                f"{work}#{answer}#{other}",
                f"#{answer}{other}",
                f"#{other}{answer}",
            ],
            [answer] * 3 + [None] + [answer] * 4,
        )
        need(
            isinstance(got, list) and len(got) == 8,
            f"it must return a list with one entry for each completion; got {got!r}",
        )
        need(
            got[3] is None,
            "where `final` is None the reward must be None (no verdict), not"
            f" {got[3]!r}: 0.0 would say that the answer is wrong",
        )
        need(
            all(isinstance(x, (int, float)) for i, x in enumerate(got) if i != 3),
            f"rewards are numbers, got {got!r}",
        )
        need(
            got[0] == 1 and got[4] == 1,
            f"{work + '#' + answer!r} is right for {answer!r} and got {got[0]}; what"
            " counts stands after the last #",
        )
        need(
            got[1] == 0,
            f"{work + '#' + other!r} answers {other}, not {answer}, and got {got[1]}:"
            " the digits may stand anywhere in the work, and being mentioned is not an"
            " answer. A student learns to mention everything",
        )
        need(
            got[2] == 0,
            f"{work!r} has no #, so it gives no answer, and got {got[2]}: unfinished"
            " work is not right",
        )
        need(
            got[5] == 0,
            f"two answers in one text: the last one counts, and {other} is not"
            f" {answer}",
        )
        need(
            got[6] == 0 and got[7] == 0,
            f"{other + answer!r} is not {answer!r}: compare all that stands after the"
            " #, not how it begins or ends",
        )
    return (
        "Such rewards are found by students faster than by people. Read completions"
        " with a high reward before you trust it."
    )


@exercise(
    hint=(
        "satisfaction_interval(n, n) has the lower end that you need. It rises with n:"
        " count upwards, or solve (1 - 0.95)/2 = (1 - bound)^n."
    )
)
def needed(function) -> str:
    for bound in (0.05, 0.01, 0.2):
        got, n = function(bound), 1
        while 1 - satisfaction_interval(n, n)[0] > bound:
            n += 1
        need(
            isinstance(got, (int, float)) and got == int(got),
            f"it must return a whole number, got {got!r}",
        )

        def reached(m):
            return 1 - satisfaction_interval(int(m), int(m))[0]

        def near(x):
            return abs(got - x) <= 1

        need(
            got == n or not near(1 / bound),
            f"{got} completions without a violation certify only {reached(got):.3f}: a"
            f" rate of one in {round(1 / bound)} is not seen at all in"
            f" {round(1 / bound)} completions more than a third of the time",
        )
        need(
            got == n
            or not (near(3 / bound) or near(math.log(0.05) / math.log(1 - bound))),
            f"{got} is the rule of three: a bound that is wrong in 5% of all cases."
            " Ours is the lower end of a two-sided 95% interval, wrong in 2.5%; at"
            f" {got} it is {reached(got):.4f}",
        )
        need(
            got >= n,
            f"{got} completions certify only {reached(got):.4f}, more than {bound}",
        )
        need(
            got == n,
            f"{got} are enough, but not the smallest number: {n} certify"
            f" {reached(n):.4f} already",
        )
    return (
        "Halve the bound and the number doubles. In the picture, follow the solid line"
        " to 1%."
    )
