"Checks of lesson 04."

import torch

from cmdp_nbdev.budget import Budget
from cmdp_nbdev.model import default_pair
from cmdp_nbdev.rollout import Sampling, encode_prompts, sample
from cmdp_nbdev.theory.augmentation import (
    AugmentedPolicy,
    action_costs,
    augmented_law,
    saute_reward,
    saute_state,
)
from cmdp_nbdev.theory.tabular import law, random_tree
from cmdp_nbdev.theory.told import BudgetAware

from . import exercise, need

COSTS = (
    ([0.1, 0.4, 0.2], 1.0, 0.5),
    ([0.3, 0.05, 0.6, 0.1], 0.8, 0.9),
    ([0.2, 0.2], 0.5, 1.0),
)
STEPS = (
    ([0.0, 0.0, 0.0, 1.0], [0.3, 0.05, 0.6, 0.1], 0.8, 1.0),
    ([0.0, 0.0, 1.0], [0.1, 0.1, 0.9], 0.8, 2.0),
    ([0.0, 0.0, 1.0], [0.5, 0.25, 0.25], 1.0, 3.0),
)  # the last one spends the limit exactly


@exercise(
    hint=(
        "What must be known before a token is drawn, so that the student can be told z?"
        " And what is there to tell before the first one?"
    )
)
def passes(answer) -> str:
    need(
        isinstance(answer, int),
        f"the answer is a whole number of passes, got {answer!r}",
    )
    student, teacher, tokenizer = default_pair()
    calls = []
    hook = teacher.register_forward_hook(lambda *_: calls.append(1))
    told = BudgetAware(student, teacher, Budget(0.8))
    prompt_ids, prompt_mask = encode_prompts(["3+8*7-2="], tokenizer)
    reader = told.reader(prompt_ids, prompt_mask, 1, {})
    sample(reader, [], tokenizer.pad_token_id, Sampling(max_completion_length=20))
    hook.remove()
    need(
        answer != 0,
        "that is the plain student. The told one has to know z before each token, and z"
        " is made of divergences from the teacher",
    )
    need(
        answer != 1,
        "one pass reads the prompt. But what is left changes with every token that is"
        " written",
    )
    need(
        answer == len(calls),
        f"it ran {len(calls)} times: each token is charged by the teacher's"
        " distribution in its state, and there are 20 such states",
    )
    return (
        "Counted just now. Change the prompts in the cell `deploy`: the passes follow"
        " the longest completion of the batch, and they never become fewer than one for"
        " each token."
    )


@exercise(
    hint=(
        "Begin the list with the limit. Then, for each cost: subtract it from the last"
        " entry first, divide by gamma after that, append."
    )
)
def meter(function) -> str:
    for cost, limit, gamma in COSTS:
        right = saute_state(
            torch.tensor([cost], dtype=torch.float64),
            torch.ones(1, len(cost)),
            limit,
            gamma,
        )[0].tolist()
        got = function(cost, limit, gamma)
        need(
            got is not None,
            "it returns nothing: a function without `return` returns None",
        )
        got = [float(x) for x in got]

        def same(other):
            return len(got) == len(other) and all(
                abs(a - b) < 1e-9 for a, b in zip(got, other)
            )

        def wrong(step):
            z = [limit]
            for c in cost:
                z.append(step(z[-1], c))
            return z

        need(
            not same(right[1:]),
            "the gauge is updated before the first token is written: z_0, the full"
            " limit, is missing",
        )
        need(
            len(got) == len(right),
            f"{len(cost)} tokens have {len(right)} readings, one before each token and"
            f" one at the end; it returns {len(got)}",
        )
        need(
            gamma == 1 or not same(wrong(lambda z, c: (z - c) * gamma)),
            f"with gamma = {gamma} it multiplies; a discount makes what is left count"
            " for more later, so it divides",
        )
        need(
            gamma == 1 or not same(wrong(lambda z, c: z / gamma - c)),
            "the discount is applied at the wrong step: the token is paid first, then"
            " what is left is divided",
        )
        need(
            gamma == 1 or not same(wrong(lambda z, c: z - c)),
            f"it ignores gamma = {gamma}",
        )
        need(
            gamma == 1 or not same(wrong(lambda z, c: z - gamma * c)),
            "gamma acts on what is left, not on the cost alone",
        )
        need(
            not same(wrong(lambda z, c: (z + c) / gamma)),
            "the sign of the cost: spending must lower what is left",
        )
        need(
            same(right),
            f"for costs {cost}, limit {limit}, gamma {gamma} it returns"
            f" {[round(x, 3) for x in got]}",
        )
    return (
        "For gamma = 1 this is the middle picture of the panel: lower `budget d`, and"
        " every line starts lower and falls by the same amounts."
    )


@exercise(
    hint=(
        "Which z decides about token t: the one before it, or the one after it? Follow"
        " the second completion of the first section with a pencil."
    )
)
def order(function) -> str:
    for reward, cost, limit, n in STEPS:
        rows = [torch.tensor([x], dtype=torch.float64) for x in (reward, cost)]
        z = saute_state(rows[1], torch.ones(1, len(cost)), limit)
        mask = torch.ones(1, len(cost))
        right = saute_reward(rows[0], z, mask, n)[0].tolist()
        got = function(list(reward), list(cost), limit, n)
        need(
            got is not None,
            "it returns nothing: a function without `return` returns None",
        )
        got = [float(x) for x in got]

        def same(other):
            return len(got) == len(other) and all(
                abs(a - b) < 1e-9 for a, b in zip(got, other)
            )

        early = [r if x >= 0 else -n for r, x in zip(reward, z[0].tolist())]
        need(
            same(right) or not same(early),
            f"for costs {cost} and limit {limit} it gives {got}: z is read before the"
            " token is paid, so the token that breaks the budget goes free, and a last"
            " token always does",
        )
        need(
            same(right) or not same([n if x == -n else x for x in right]),
            f"the sign of the penalty: overspending would earn +{n:g}",
        )
        need(
            same(right)
            or not same(
                [r if x > 1e-12 else -n for r, x in zip(reward, z[0, 1:].tolist())]
            ),
            "who spends exactly the limit has kept it: z = 0 is allowed",
        )
        first = next((t for t, x in enumerate(right) if x == -n), len(right))
        need(
            same(right)
            or not same([-n if t == first else r for t, r in enumerate(reward)]),
            "it punishes one token only; all later ones are over budget too, and the"
            " reward at the end is lost",
        )
        need(same(right), f"for costs {cost} and limit {limit} it gives {got}")
    return (
        "Pay, then read. In the first section, the reward of the second completion"
        " turns at its third token, the one that costs 0.6."
    )


@exercise(
    hint=(
        "Walk through the tree from the start with z = limit. At each history: ask"
        " rows, keep the answer, let it pay, hand what is left to all children."
    )
)
def plain(function) -> str:
    for seed, (vocab, depth) in enumerate(((3, 3), (2, 4), (2, 3))):
        tree = random_tree(seed, vocab, depth)
        limit = 0.5
        g = torch.Generator().manual_seed(seed)
        policy = AugmentedPolicy(
            2
            * torch.randn(
                len(tree.teacher), 4, vocab, generator=g, dtype=torch.float64
            ),
            torch.tensor([-0.2, 0.1, 0.3], dtype=torch.float64),
        )

        def rows(node, z):
            return policy.rows(
                torch.tensor([node]), torch.tensor([float(z)], dtype=torch.float64)
            )[0].softmax(-1)

        def cost(node, p):
            return float(
                action_costs(
                    torch.as_tensor(p).double().log()[None], tree.teacher[[node]]
                )[0, 0]
            )

        got = function(rows, cost, limit, vocab, depth)
        need(
            isinstance(got, dict),
            "it should return a dict from histories to probabilities, got"
            f" {type(got).__name__}",
        )
        nodes = range(len(tree.teacher))
        need(
            set(got) >= set(nodes),
            f"with {vocab} tokens and depth {depth} there are {len(nodes)} histories, 0"
            f" to {len(nodes) - 1}; it has {sorted(got)[:5]} ... ({len(got)})",
        )
        table = torch.stack([torch.as_tensor(got[k]).double() for k in nodes])
        truth, z = augmented_law(tree, policy, limit)

        def same(prob):
            return bool((law(tree, table.log()).prob - prob).abs().max() < 1e-9)

        def law_at(left):
            rows = []
            for k in nodes:
                z_k = torch.tensor([left(k)], dtype=torch.float64)
                rows.append(policy.rows(torch.tensor([k]), z_k)[0])
            return law(tree, torch.stack(rows)).prob

        after = {
            int(k): float(z[i, t + 1])
            for i, path in enumerate(tree.nodes)
            for t, k in enumerate(path)
        }
        need(
            not same(law_at(lambda k: limit)),
            "every history gets the row for the full budget: the gauge is never read"
            " again after the start",
        )
        need(
            not same(law_at(lambda k: after[k])),
            "each history is told what is left after its own token; it has to decide"
            " with what is left before it",
        )
        need(
            same(truth.prob),
            f"on tree {seed} the completions do not have the probabilities that the"
            " told policy gives them; is what is left handed on along each path"
            " separately?",
        )
    return (
        "No gauge, the same law. That was the proof of Theorem A, as code. In the"
        " picture with the slider, k = 3 shows the z that your walk computed: one for"
        " each history."
    )
