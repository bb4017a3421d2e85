"Checks of lesson 08."

import math

import numpy as np
import torch
from scipy.stats import t as student_t

from cmdp_nbdev.budget import Budget
from cmdp_nbdev.methods import METHODS
from cmdp_nbdev.objective import Batch, Signal

from . import exercise, need

NAMES = {"grpo", "soft", "saute", "cmdp", "hinge", "cmdp-rate"}


def advantages(name: str, rewards: list[float], spent: list[float]) -> list[float]:
    "The signal of a method for completions of one prompt, one token each, at 0.8 nats."
    cost, prompt = torch.tensor(spent).unsqueeze(-1), torch.zeros(len(rewards))
    one = torch.ones_like(cost)
    batch = Batch(torch.tensor(rewards), prompt, one, -one, -one, {"divergence": cost})
    method = METHODS[name]
    settings = {"scale_rewards": "none"} if "scale_rewards" in method.settings else {}
    signal = method(batch, Budget(0.8), {}, **settings)
    return signal.advantage.reshape(len(rewards), -1)[:, 0].tolist()


@exercise(
    hint=(
        "The baseline of a completion is the mean over its group. Ask for each method:"
        " is the budget inside the reward that is compared, or only in the multiplier?"
    )
)
def equal(answer) -> str:
    need(
        not isinstance(answer, str) and set(answer) <= NAMES,
        f"give a set with some of the names {', '.join(sorted(NAMES))}; got {answer!r}",
    )
    truth = {
        name
        for name in NAMES
        if any(abs(a) > 1e-6 for a in advantages(name, [1.0] * 4, [0.3, 0.5, 1.2, 1.5]))
    }
    need(
        not (extra := set(answer) - truth),
        f"{', '.join(sorted(extra))}: judged by the reward alone, and all rewards are"
        " equal, so nobody is above the mean; the budget is only in the multiplier",
    )
    need(
        not (missing := truth - set(answer)),
        f"{', '.join(sorted(missing))} missing: these lower the reward of a completion"
        " that is over, so the rewards of the group differ although all answers are"
        " right",
    )
    return (
        "A method that keeps the budget out of the reward learns nothing from the"
        " advantages here, and everything from the multiplier. See it with ask(name,"
        " batch_of([1.0] * 4, [0.3, 0.5, 1.2, 1.5])), or set `method` in the live"
        " trainer of lesson 07 to grpo and to hinge, and compare advantage_abs in"
        " live.history."
    )


@exercise(
    hint=(
        "Three steps: where does the charge begin, how far is each completion beyond"
        " that point (never less than 0: clamp(min=0)), and which way does a penalty"
        " move the reward?"
    )
)
def margin(function) -> str:
    for limit, coef, share, spent in (
        (1.0, 2.0, 0.8, [0.2, 0.9, 1.8]),
        (0.5, 3.0, 0.6, [0.1, 0.45, 2.0]),
    ):
        rewards, spent = torch.tensor([1.0, 1.0, 0.0]), torch.tensor(spent)
        got = function(rewards, spent, limit, coef, share)
        need(
            isinstance(got, torch.Tensor) and got.shape == rewards.shape,
            "it must return one reward for each completion, a tensor of shape (3,);"
            f" got {got!r}",
        )
        beyond = (spent - share * limit).clamp(min=0)
        right = rewards - coef * beyond
        low, middle, high = got.tolist()
        need(
            high < 0,
            "the sign of the penalty: a wrong answer over the limit must end up below"
            " its task reward of 0, or the student is paid for leaving the budget",
        )
        need(
            low < 1.0001,
            "a completion below the margin is paid for spending less: without"
            " clamp(min=0) the unspent nats become a reward, and the student copies the"
            " teacher",
        )
        need(
            abs(low - 1) < 1e-4,
            "below the margin the reward must stay as it is: subtract only what lies"
            " beyond margin times limit",
        )
        need(
            not torch.allclose(
                got, rewards - coef * (spent - share).clamp(min=0), atol=1e-4
            )
            or limit == 1,
            "the margin is a share of the limit: the charge begins at margin times"
            " limit, and `margin` alone has no unit",
        )
        need(
            middle < 0.9999,
            "between margin and limit nothing was charged: the charge begins at margin"
            " times limit, not at the limit",
        )
        need(
            not torch.allclose(got, rewards - beyond, atol=1e-4),
            "the charge is coef for each nat beyond margin times limit; here coef has"
            " no effect",
        )
        need(
            not torch.allclose(
                got, rewards - coef * (spent > share * limit), atol=1e-4
            ),
            "this charges the same for every violation; a constant does not tell a"
            " runaway from a small excess. It is coef for each nat beyond",
        )
        need(
            torch.allclose(got, right, atol=1e-4),
            f"for spent {spent.tolist()}, limit {limit}, coef {coef} and margin {share}"
            f" the rewards are {right.tolist()}, not {got.tolist()}",
        )
    return (
        "To train it, put it into a method like `ramp`: see `hinge` in"
        " nbs/05_methods, which also gives it a multiplier."
    )


@exercise(
    hint=(
        "What did the choice look at? A number that took part in the choice is the"
        " luckiest of several. Choose with one table, report with the other."
    )
)
def choose(function) -> str:
    rng, found = np.random.default_rng(0), 0
    while found < 3:
        validation = (rng.random((6, 40)) < 0.6).astype(float)
        test = (rng.random((6, 40)) < 0.6).astype(float)
        v = validation.mean(1)
        t = test.mean(1)
        both = (validation.mean(1) + test.mean(1)) / 2
        best, lucky = int(v.argmax()), int(t.argmax())
        if (
            len({best, lucky, int(both.argmax())}) < 3
            or np.sum(v == v.max()) > 1
            or abs(v[best] - t[best]) < 0.02
        ):
            continue  # an instance that tells the mistakes apart
        found += 1
        index, score = function(validation, test)
        need(
            index != lucky,
            f"it chooses setting {lucky} because of its test score: the reported"
            f" {score:.2f} is then the luckiest of {len(t)} numbers. On validation,"
            f" setting {best} is best",
        )
        need(
            index != int(both.argmax()),
            "the test table takes part in the choice, through the mean of both: a"
            " little luck is luck, too",
        )
        need(
            index == best,
            f"setting {best} has the highest accuracy on validation; it chose {index}",
        )
        need(
            abs(score - v[best]) > 1e-9,
            "the choice is right, but it reports the score that made the choice,"
            f" {v[best]:.2f}: the luckiest on validation. On test it has {t[best]:.2f}",
        )
        need(
            abs(score - t[best]) < 1e-9,
            "the accuracy to report is that of the chosen setting on test,"
            f" {t[best]:.2f}; got {score:.2f}",
        )
    return (
        "Now the reported number took no part in the choice. In the shoot-out, the line"
        " of fixed prices is drawn with hindsight: put `right picture at` to another"
        " budget, and another point of `soft` is the best one."
    )


@exercise(
    hint=(
        "Take the differences first, d = a - b, one for each seed. Then it is the"
        " interval of a mean: t times the standard deviation of d (ddof=1), divided by"
        " the square root of the number of seeds."
    )
)
def interval(function) -> str:
    for a, b in (
        ([0.90, 0.80, 0.95], [0.85, 0.77, 0.91]),
        ([0.70, 0.74, 0.71, 0.80, 0.65], [0.72, 0.73, 0.76, 0.81, 0.70]),
    ):
        a, b = np.array(a), np.array(b)
        mean, half = (float(x) for x in function(a, b))
        n, d = len(a), a - b
        t = student_t.ppf(0.975, n - 1)

        def near(x):
            return math.isclose(half, float(x), rel_tol=1e-6)

        need(
            not math.isclose(mean, -d.mean(), abs_tol=1e-9),
            "the sign: asked is a minus b",
        )
        need(
            math.isclose(mean, d.mean(), abs_tol=1e-9),
            f"the mean of the differences is {d.mean():.4f}, got {mean:.4f}",
        )
        apart = np.sqrt(a.var(ddof=1) / n + b.var(ddof=1) / n)
        need(
            not any(
                near(k * apart) for k in (t, 1.96, student_t.ppf(0.975, 2 * n - 2))
            ),
            "this adds the spreads of a and b as if they were independent. Both saw"
            f" the same seeds, and what is common cancels in the difference: {half:.3f}"
            f" instead of {t * d.std(ddof=1) / np.sqrt(n):.3f}",
        )
        need(
            not near(1.96 * d.std(ddof=1) / np.sqrt(n)),
            f"1.96 is for hundreds of seeds; the standard deviation of {n} numbers is"
            f" itself uncertain, and t_(n-1) = {t:.2f} allows for that",
        )
        need(
            not near(t * d.std(ddof=1)),
            "this is the spread of one difference; the mean of n of them varies less,"
            " by the square root of n",
        )
        need(
            not near(t * d.std() / np.sqrt(n)),
            "np.std divides by n unless you say ddof=1; with few seeds that is far too"
            " small",
        )
        need(
            near(t * d.std(ddof=1) / np.sqrt(n)),
            f"the half-width is {t * d.std(ddof=1) / np.sqrt(n):.4f}, got {half:.4f}",
        )
    return (
        "`compare` does this, and adds the luck of the prompts. With two seeds t is"
        " 12.7: choose `all methods` in the shoot-out of a study,"
        " ShootOut(list(runs.values())), and look for the longest bars: few seeds, or"
        " seeds that differ."
    )


def ask(method, rewards: list[float], spent: list[float]) -> tuple[list, list]:
    "Advantages and multipliers of a method's function, rewards only centred."
    cost, prompt = torch.tensor(spent).unsqueeze(-1), torch.zeros(len(rewards))
    one = torch.ones_like(cost)
    batch = Batch(torch.tensor(rewards), prompt, one, -one, -one, {"divergence": cost})
    signal = method(batch, Budget(0.8), {}, scale_rewards="none")
    need(
        isinstance(signal, Signal),
        f"it must return Signal(advantage, multiplier), not {type(signal).__name__}",
    )
    advantage = signal.advantage.reshape(len(rewards), -1)[:, 0]
    price = signal.multipliers["divergence"].reshape(len(rewards), -1)[:, 0]
    return advantage.tolist(), price.tolist()


@exercise(
    hint=(
        "Three rungs. First: `budget.spent(batch.cost, batch.mask)` is D of every"
        " completion, and `torch.where(D > d, -(1 + D), R)` the modified reward of"
        " lesson 05. Second: `group_advantage` turns a reward into an advantage."
        " Third: the multiplier is 1 on the tokens of completions that are over:"
        " `over.float()[:, None] * spend_weights(...)`, as in `ramp`."
    )
)
def paper(method) -> str:
    rewards, spent = [1.0, 1.0, 0.0, 0.0], [0.3, 1.2, 0.3, 1.9]
    advantage, price = ask(method, rewards, spent)
    need(
        abs(sum(advantage)) < 1e-4,
        "the advantages of a prompt add up to 0: compare with the group",
    )
    need(
        advantage[1] < advantage[2],
        "a right answer over the limit must be worth less than a wrong one inside",
    )
    need(
        advantage[3] < advantage[1] - 1e-4,
        "both completions over the limit get the same: without D in the penalty"
        " nothing tells 1.2 nats from 1.9",
    )
    need(
        price[0] == price[2] == 0,
        "inside the budget nothing is paid: the multiplier is 0 there",
    )
    need(
        min(price[1], price[3]) > 0,
        "what is over must be pulled back: its multiplier is above 0",
    )
    right = ask(METHODS["cmdp"].function, rewards, spent)
    for what, mine, its in zip(
        ("advantages", "multipliers"), (advantage, price), right
    ):
        need(
            np.allclose(mine, its, atol=1e-4),
            f"for rewards {rewards} and spent {spent} the {what} are"
            f" {np.round(its, 3).tolist()}, not {np.round(mine, 3).tolist()}",
        )
    return "These are the signals of `cmdp`. Now let it train, and beat it."
