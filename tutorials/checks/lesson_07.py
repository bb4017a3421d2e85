"Checks of lesson 07."

import tempfile

import torch

from cmdp_nbdev.cost import token_logps
from cmdp_nbdev.model import default_pair
from cmdp_nbdev.objective import Signal, group_advantage, signal_loss
from cmdp_nbdev.rollout import Sampling, completion_logits, generate
from cmdp_nbdev.widgets.live import live_setup

from . import exercise, need

NAMES = (
    "reward",
    "accuracy",
    "satisfaction_rate",
    "accuracy_within_budget",
    "spent_mean",
)
GROUPS = [[1, 1, 1, 1], [0, 0, 0, 0], [1, 0, 1, 0], [1, 1, 1, 0]]


@exercise(
    hint=(
        "Metrics describe the batch before the weights move. Do the two students write"
        " different completions in their first update? And which of the names ask"
        " about d?"
    )
)
def limit(answer) -> str:
    need(
        isinstance(answer, (set, list, tuple)) and set(answer) <= set(NAMES),
        f"give a set with some of the names {', '.join(NAMES)}; got {answer!r}",
    )
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        wide = live_setup(one, budget=0.8).step()
        tight = live_setup(two, budget=0.3).step()
    truth = {k for k in NAMES if wide[k] != tight[k]}
    need(
        not (same := set(answer) - truth),
        f"{', '.join(sorted(same))}: the same student with the same seed writes the"
        " same completions in both runs, and this does not ask about d",
    )
    need(
        not (missing := truth - set(answer)),
        f"{', '.join(sorted(missing))} is missing: it counts the completions within d,"
        " and the same completions are judged by another d",
    )
    return (
        "Only what is defined by d moves at once. In the live trainer: `one step`, move"
        " `budget d` to 0.3, `one step`, and compare the last two entries of"
        " live.history."
    )


@exercise(
    hint=(
        "The advantage of a completion is its reward minus the mean of its own group."
        " When is that 0?"
    )
)
def silent(answer) -> str:
    need(
        isinstance(answer, int),
        f"the answer is a whole number of completions, got {answer!r}",
    )
    rewards = torch.tensor(GROUPS, dtype=torch.float32).flatten()
    ids = torch.arange(len(GROUPS)).repeat_interleave(4)
    truth = int((group_advantage(rewards, ids) == 0).sum())
    wrong_ones = sum(r == 0 for g in GROUPS for r in g)
    equal = sum(len(set(g)) == 1 for g in GROUPS)
    need(
        answer != wrong_ones or wrong_ones == truth,
        "a wrong answer is not one without advantage: below its group's mean it gets a"
        " negative one. Count the completions that equal the mean of their group",
    )
    need(
        answer != equal,
        f"{equal} is the number of groups; asked is how many completions they have",
    )
    need(
        answer != 0,
        "the baseline is the mean of the group, not of the batch: where all four"
        " rewards are equal, each of them is the mean",
    )
    need(
        answer == truth,
        "count the completions whose reward equals the mean of their own group;"
        f" {answer} are not",
    )
    return (
        "Half of the groups are silent: frac_reward_zero_std is 0.5. In the live"
        " trainer set `method` to grpo, press `one step`, and read"
        " live.history[-1]['frac_reward_zero_std'] and ['advantage_abs']."
    )


def instance(seed: int, lengths: list[int]) -> tuple:
    "advantage, multiplier, logp, cost and mask of completions of these lengths."
    g = torch.Generator().manual_seed(seed)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).float()

    def draw(*shape):
        return torch.rand(*shape, generator=g)

    return (
        2 * draw(len(lengths)) - 1,
        draw(*mask.shape) + 0.1,
        (-draw(*mask.shape)).requires_grad_(),
        draw(*mask.shape).requires_grad_(),
        mask,
    )


@exercise(
    hint=(
        "Per token: multiplier * cost - advantage * logp, with advantage[:, None] to"
        " give every token its completion's advantage. Multiply with the mask, add up,"
        " divide by the number of ones in the mask."
    )
)
def loss(function) -> str:
    for seed, lengths in ((0, [3, 1, 4]), (1, [5, 2]), (2, [1, 1, 6, 2])):
        advantage, multiplier, logp, cost, mask = instance(seed, lengths)
        got = function(advantage, multiplier, logp, cost, mask)
        need(
            isinstance(got, torch.Tensor) and got.dim() == 0,
            "the loss is one number, a tensor without dimensions; got"
            f" {type(got).__name__}"
            + (
                f" of shape {tuple(got.shape)}" if isinstance(got, torch.Tensor) else ""
            ),
        )
        need(
            got.requires_grad,
            "the loss has no gradient: logp and cost must not be detached",
        )
        mine = [
            torch.zeros_like(x) if d is None else d
            for x, d in zip(
                (logp, cost), torch.autograd.grad(got, (logp, cost), allow_unused=True)
            )
        ]
        right = torch.autograd.grad(
            signal_loss(
                Signal(advantage, multiplier), logp, {"divergence": cost}, mask
            ),
            (logp, cost),
        )

        def near(a, b):
            return torch.allclose(a, b, atol=1e-6)

        need(
            not near(mine[0], -right[0]),
            "the sign of the advantage: a step down the gradient of this loss makes"
            " good completions *less* probable. A loss is minimised, so A log pi needs"
            " a minus",
        )
        need(
            not near(mine[1], -right[1]),
            "the sign of the penalty: this loss falls when the divergence grows, so the"
            " student is paid for leaving the teacher",
        )
        need(
            mine[0].abs().sum() > 0,
            "logp has no effect: the advantage must reach the log-probabilities of the"
            " tokens that were written",
        )
        need(
            mine[1].abs().sum() > 0,
            "the cost has no effect: it must stay in the loss with its gradient, times"
            " the multiplier",
        )
        need(
            all((m[mask == 0] == 0).all() for m in mine),
            "padding takes part: tokens after the end of a completion have a gradient."
            " Multiply with the mask",
        )
        need(
            not all(near(m, mask.sum() * r) for m, r in zip(mine, right)),
            "this is the sum over the tokens; the mean is asked for, or the step would"
            " grow with the batch",
        )
        need(
            not all(
                near(m * mask.numel(), r * mask.sum()) for m, r in zip(mine, right)
            ),
            "this divides by all places of the batch, padding included: one long"
            " completion would shrink everyone's step. Divide by mask.sum()",
        )
        own = mask.sum() / (len(lengths) * mask.sum(-1, keepdim=True))
        need(
            not all(near(m, own * r) for m, r in zip(mine, right)),
            "this takes the mean of each completion first: a token of a short"
            " completion then counts more than one of a long completion. Take one mean"
            " over all completion tokens",
        )
        need(
            all(near(m, r) for m, r in zip(mine, right)),
            "the gradient differs from that of signal_loss: the term of a token is"
            " multiplier * cost - advantage * logp",
        )
    return (
        "The gradient equals that of signal_loss. In the live trainer, press `one step`"
        " with method gkd and look at the multiplier: all advantages are 0, and only"
        " your first term is left."
    )


@exercise(
    hint=(
        "A causal model reads a token and predicts the NEXT one. At which position are"
        " the logits that chose the first completion token?"
    )
)
def shift(function) -> str:
    student, teacher, tokenizer = default_pair()
    for model, prompts, longest in (
        (student, ["3+8*7-2=", "1+1+1="][:1], 24),
        (teacher, ["4*9+6-1=", "7-2*8+3="], 32),
    ):
        sampling = Sampling(num_generations=3, max_completion_length=longest)
        seeded = torch.Generator().manual_seed(0)
        rollout = generate(
            student, tokenizer, prompts, sampling=sampling, generator=seeded
        )
        at = rollout.completion_mask.bool()
        ids = rollout.completion_ids
        T = rollout.completion_ids.shape[1]
        with torch.no_grad():
            got = function(model, rollout)
            right = token_logps(completion_logits(model, rollout), ids)
            every = model(
                rollout.input_ids, attention_mask=rollout.attention_mask
            ).logits
        is_tensor = isinstance(got, torch.Tensor)
        what = tuple(got.shape) if is_tensor else type(got).__name__
        need(
            is_tensor and got.shape == right.shape,
            f"asked is one number per completion token, {tuple(right.shape)}; got"
            f" {what}",
        )

        def near(x):
            return torch.allclose(got[at], x[at], atol=1e-4)

        need(
            not near(token_logps(every[:, -T:], ids)),
            "the logits at a token's own place have seen that token, and predict the"
            " one after it. So the tokens that the model itself wrote look unlikely:"
            f" {got[at].mean():.2f} nats each on average instead of"
            f" {right[at].mean():.2f}",
        )
        need(
            not near(token_logps(every[:, :T], ids)),
            "these are the logits of the prompt: the completion begins after it",
        )
        need(
            not near(every[:, -T - 1 : -1].gather(-1, ids[..., None])[..., 0]),
            "the place is right, but these are logits: without subtracting logsumexp"
            " they are no log-probabilities",
        )
        need(
            not near(right.exp()),
            "the place is right, but these are probabilities; asked are their"
            " logarithms",
        )
        need(
            near(right),
            "the numbers differ from token_logps(completion_logits(model, rollout),"
            " rollout.completion_ids)",
        )
    return (
        "One place earlier. completion_logits does the same, and a test compares it"
        " with the log-probabilities noted while sampling: do that with every new"
        " model."
    )
