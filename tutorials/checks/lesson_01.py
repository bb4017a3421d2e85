"Checks of lesson 01."

import torch

from cmdp_nbdev.cost import token_divergence, token_logps
from cmdp_nbdev.mdp import completion_mask
from cmdp_nbdev.model import default_pair
from cmdp_nbdev.rollout import completion_logits, given_rollout

from . import exercise, need

MASKS = (
    ([5, 6, 1, 0, 0], [1]),
    ([1, 0, 0], [1]),
    ([5, 6, 7], [1]),
    ([5, 1, 1, 1], [1]),
    ([4, 9, 5, 1, 0], [1, 9]),
)  # ids and the ids that end
SUMS = (([1.0, 2.0, 4.0], 0.5), ([0.0, 0.0, 0.0, 1.0], 0.9), ([3.0, -1.0], 0.25))


@exercise(
    hint=(
        "Look at the formula of c_t again. Over which tokens does its sum run, and does"
        " the token that was drawn occur in it?"
    )
)
def same_state(answer) -> str:
    need(
        isinstance(answer, (int, float)),
        f"the answer is a number of nats, got {answer!r}",
    )
    student, teacher, tokenizer = default_pair()
    rollout = given_rollout(tokenizer, ["3+8*7-2="] * 2, ["3+8=1;1*7=7", "3+8=1;1*7=8"])
    with torch.no_grad():
        p, q = completion_logits(student, rollout), completion_logits(teacher, rollout)
    cost = token_divergence(p, q)[:, 10]
    drawn = [token_logps(x, rollout.completion_ids)[:, 10] for x in (p, q)]
    truth, log_ratio, surprisal = (
        float(x[0] - x[1]) for x in (cost, drawn[0] - drawn[1], -drawn[0])
    )
    need(
        abs(abs(answer) - abs(log_ratio)) > 0.02,
        "this is the difference of the log-ratios of the two characters. The cost is"
        " the KL of the whole distributions in the state",
    )
    need(
        abs(abs(answer) - abs(surprisal)) > 0.02,
        "this compares how probable the two characters are. The cost is the KL of the"
        " whole distributions in the state",
    )
    need(
        abs(answer - truth) < 1e-3,
        "both characters are written in the same state, and a state has one cost: here"
        f" {float(cost[0]):.3f} nats",
    )
    return (
        f"Same state, same cost: {float(cost[0]):.3f} nats for both. In the microscope"
        " put `token` on a digit after `=`: the cost is that of all bars together,"
        " whichever was drawn."
    )


@exercise(
    hint=(
        "Go through the ids from the left and write 1 for each. Once you have written"
        " the 1 of an id that ends, everything after it is 0."
    )
)
def mask(function) -> str:
    for ids, ends in MASKS:
        got = function(ids, ends)
        right = completion_mask(torch.tensor([ids]), ends)[0].tolist()
        need(
            got is not None,
            "it returns nothing: a function without `return` returns None",
        )
        got, first = [int(x) for x in got], right.index(0) if 0 in right else len(ids)
        need(
            len(got) == len(ids),
            f"{ids} has {len(ids)} ids, the mask {len(got)} entries",
        )
        ended = ids[first - 1] in ends
        need(
            not ended or got != [int(k < first - 1) for k in range(len(ids))],
            f"for {ids} it excludes EOS: {got}. Stopping is an action too, and it is"
            " charged",
        )
        need(
            ended or any(got),
            f"for {ids} it finds no EOS and masks everything; a completion that was cut"
            f" off has {len(ids)} actions",
        )
        last = max((k for k, i in enumerate(ids) if i in ends), default=len(ids) - 1)
        need(
            last == first - 1 or got != [int(k <= last) for k in range(len(ids))],
            f"for {ids} with ends {ends} it goes on after the first end, up to the last"
            " one. Some models pad with EOS, so only the first one counts",
        )
        need(
            got == right,
            f"for {ids} with ends {ends} it returns {got}; the actions are {right}",
        )
    return (
        "Every action is charged, EOS included, and nothing after it."
        " `mdp.completion_mask` does this for a whole batch."
    )


@exercise(
    hint=(
        "Write out G_1 for three steps by hand: which power of gamma stands before x_1?"
    )
)
def discounted(function) -> str:
    for x, gamma in SUMS:
        T = len(x)

        def total(weight):
            return [sum(weight(t, k) * x[k] for k in range(T)) for t in range(T)]

        got = function(x, gamma)

        def same(y):
            return all(abs(a - b) < 1e-9 for a, b in zip(got, y))

        need(
            got is not None and len(got) == T,
            f"it must return one number for each of the {T} steps",
        )
        right = total(lambda t, k: gamma ** (k - t) * (k >= t))
        returned = [round(float(y), 4) for y in got]
        example = f"for x = {x} and gamma = {gamma} it returns {returned}"
        wrong = [
            (
                lambda t, k: gamma**k * (k >= t),
                "the discount counts from the start of the completion instead of from"
                " t, so late tokens get a weight that shrinks",
            ),
            (
                lambda t, k: gamma ** (k - t + 1) * (k >= t),
                "the discount is applied one step too early: the token's own reward has"
                " the weight gamma ** 0 = 1",
            ),
            (
                lambda t, k: gamma ** (k - t) * (k > t),
                "the token's own step is missing: the sum starts at k = t",
            ),
            (
                lambda t, k: gamma ** abs(k - t),
                "the sum contains what was before t, which token t cannot change",
            ),
        ]
        for weight, why in wrong:
            need(same(right) or not same(total(weight)), f"{example}: {why}")
        need(same(right), f"{example}; it should be {[round(y, 4) for y in right]}")
    return (
        "The discount counts from the token on, so that G_t = x_t + gamma * G_(t+1)."
        " With gamma = 1 this is `mdp.to_go`, and no test at gamma = 1 would have found"
        " the bug."
    )


@exercise(
    hint=(
        "Logits at a position are about the next token. At which position are the"
        " logits for the first completion token? Which logits are not needed at all?"
    )
)
def shift(function) -> str:
    student, teacher, tokenizer = default_pair()
    for model, prompts, texts in (
        (student, ["3+8*7-2=", "1*2*3*4="], ["3+8=1;1*7=7", "1*2=2;2*3=6"]),
        (teacher, ["9-5="], ["9-5=4#4"]),
    ):
        rollout = given_rollout(tokenizer, prompts, texts)
        P = rollout.prompt_ids.shape[1]
        ids = rollout.completion_ids
        L = rollout.input_ids.shape[1]
        with torch.no_grad():
            got = function(model, rollout.input_ids, P)
            logits = model(input_ids=rollout.input_ids).logits
            right = token_logps(completion_logits(model, rollout), ids)
        need(
            isinstance(got, torch.Tensor),
            f"it must return a tensor, got {type(got).__name__}",
        )
        need(
            got.shape != (len(ids), L - 1) or P == 1,
            "it returns the prompt's tokens as well; the policy did not write those",
        )
        need(
            got.shape == right.shape,
            f"the shape must be {tuple(right.shape)}, one number for each completion"
            f" token, got {tuple(got.shape)}",
        )

        def same(x):
            return x.shape == got.shape and torch.allclose(got, x, atol=1e-3)

        need(
            not same(token_logps(logits[:, P:], ids)),
            "each token is judged by the logits at its own position, and those are"
            " about the token after it: off by one",
        )
        need(
            not same(logits[:, P - 1 : -1].gather(-1, ids[..., None])[..., 0]),
            "these are logits, not log-probabilities: normalise them, as token_logps"
            " does",
        )
        need(
            same(right),
            "the largest difference from the right values is"
            f" {float((got - right).abs().max()):.2f} nats",
        )
    return (
        "The logits for the first completion token stand at the last prompt token."
        " `rollout.completion_logits` takes care of that, and of padding."
    )
