"Checks of lesson 06."

import torch
from torch.autograd.functional import jacobian

from cmdp_nbdev.cost import token_divergence
from cmdp_nbdev.mdp import to_go
from cmdp_nbdev.theory.tabular import law, random_tree

from . import exercise, need


def _student(seed: int):
    tree = random_tree(seed)
    table = (
        tree.teacher
        + torch.randn(
            tree.teacher.shape,
            generator=torch.Generator().manual_seed(seed),
            dtype=torch.float64,
        )
    ).requires_grad_()
    return tree, table, law(tree, table)


def _gap(a, b) -> float:
    return float((a - b).norm() / b.norm())


@exercise(
    hint=(
        "Two terms: the costs themselves, summed, with their gradient; and for each"
        " token log-probability times what is spent AFTER it, as a plain number"
        " (.detach())."
    )
)
def surrogate(function) -> str:
    for seed in range(3):
        tree, table, p = _student(seed)
        value = function(p.logp, p.cost)
        need(
            value is not None and value.shape == (len(tree.rewards),),
            f"one number per trajectory: expected shape ({len(tree.rewards)},), got"
            f" {None if value is None else tuple(value.shape)}",
        )

        def grad(x):
            return torch.autograd.grad(
                (p.prob.detach() * x).sum(), table, retain_graph=True, allow_unused=True
            )[0]

        need(value.requires_grad, "it has no gradient: everything in it is detached")
        got = grad(value)
        full = torch.autograd.grad(p.expect(p.cost.sum(-1)), table, retain_graph=True)[
            0
        ]
        after = to_go(p.cost, tree.mask) - p.cost
        before = p.cost.cumsum(-1)
        classic = [
            (
                to_go(p.cost, tree.mask).detach() * p.logp,
                (
                    "this is the exact-KL trap: the divergence only as a detached"
                    " reward; the pathwise part, the gradient of the costs themselves,"
                    " is missing"
                ),
            ),
            (
                p.cost.sum(-1, keepdim=True).detach() * p.logp,
                (
                    "this is the exact-KL trap: the divergence only as a detached"
                    " reward; the pathwise part, the gradient of the costs themselves,"
                    " is missing"
                ),
            ),
            (
                p.cost,
                (
                    "only the pathwise part: it holds the visited texts fixed, and does"
                    " not see that another token leads to cheaper texts"
                ),
            ),
            (
                p.cost - after.detach() * p.logp,
                (
                    "the sign of the score part is wrong: a loss is minimised, so"
                    " costly continuations must become less probable"
                ),
            ),
            (
                p.cost + after * p.logp,
                (
                    "the costs in the score part must be plain numbers (.detach());"
                    " otherwise their gradient is counted a second time"
                ),
            ),
            (
                p.cost + before.detach() * p.logp,
                (
                    "it multiplies a token's log-probability with what was spent up to"
                    " it; a token can change only what comes after"
                ),
            ),
            (
                (p.cost + after.detach() * p.logp) / tree.depth,
                (
                    "a mean over tokens is not the sum: the budget is on the sum along"
                    " the trajectory"
                ),
            ),
        ]
        for wrong, why in classic:
            need(_gap(got, grad(wrong.sum(-1))) > 1e-6, why)
        need(
            _gap(got, full) < 1e-6,
            f"its mean gradient is off by {_gap(got, full):.0%} from the gradient of"
            " the expected cost",
        )
    return (
        "Its mean gradient is exact on every tree, although no log-probability of a"
        " whole trajectory was differentiated. In the library: multiplier 1 and"
        " advantage minus the later costs."
    )


@exercise(
    hint=(
        "The table of estimators has one sampled estimate that is right as a loss."
        " Which derivative does it have with respect to the log-ratio?"
    )
)
def loss(function) -> str:
    for seed in range(3):
        g = torch.Generator().manual_seed(seed)
        teacher = torch.randn(1, 5, generator=g, dtype=torch.float64).log_softmax(-1)
        logits = torch.randn(1, 5, generator=g, dtype=torch.float64).requires_grad_()
        logp = logits.log_softmax(-1)
        value = function(logp, teacher)
        need(
            value is not None and value.shape == logp.shape,
            "one number per token: the shape of logp",
        )

        def grad(x):
            return torch.autograd.grad(x, logits, retain_graph=True, allow_unused=True)[
                0
            ]

        need(
            value.requires_grad,
            "it has no gradient: as a loss the estimate itself must be differentiated",
        )
        got = grad((logp.detach().exp() * value).sum())
        right = grad(token_divergence(logits, teacher).sum())
        need(
            _gap(got, grad(token_divergence(logits, teacher, kind="forward_kl").sum()))
            > 1e-6,
            "k3 as a loss: its mean gradient is that of the FORWARD KL, though its"
            " value estimates the reverse KL",
        )
        need(
            float(got.norm()) > 1e-8,
            "its mean gradient is zero: k1 as a loss does nothing but noise, because"
            " the mean of grad log pi is 0",
        )
        need(
            _gap(got, right) < 1e-6,
            f"its mean gradient is off by {_gap(got, right):.0%} from that of the"
            " reverse KL",
        )
    return (
        "The mean of l times grad log pi is the gradient of the reverse KL, although"
        " the mean of the value is not the reverse KL: the reverse of k3."
    )


@exercise(
    hint=(
        "What does `.detach()` remove here that the reward alone never had? D depends"
        " on the weights in two ways, through what is sampled and through the"
        " distributions themselves."
    )
)
def penalised(function) -> str:
    for seed, lam in ((0, 0.5), (1, 2.0), (2, 1.0)):
        tree, table, p = _student(seed)
        R, D = tree.rewards, p.cost.sum(-1)
        value = function(p.logp, p.cost, R, lam)
        need(
            value is not None and value.shape == R.shape,
            f"one number per trajectory: expected shape ({len(R)},), got"
            f" {None if value is None else tuple(value.shape)}",
        )
        need(value.requires_grad, "it has no gradient: everything in it is detached")

        def grad(x):
            return torch.autograd.grad(
                (p.prob.detach() * x).sum(), table, retain_graph=True
            )[0]

        got = grad(value)
        right = torch.autograd.grad(-p.expect(R - lam * D), table, retain_graph=True)[0]
        logp, pay = p.logp.sum(-1), (R - lam * D).detach()
        classic = [
            (
                -pay * logp,
                (
                    "the exact divergence is in the reward only, and detached: the"
                    " exact-KL trap. What pulls the distributions themselves is missing"
                ),
            ),
            (
                -pay * logp - lam * D,
                (
                    "the sign of the pathwise part: this is a loss, so divergence is"
                    " added to it"
                ),
            ),
            (
                -R * logp + lam * D,
                (
                    "the divergence left the advantage: its pathwise part alone does"
                    " not see that another token leads to costlier texts"
                ),
            ),
            (
                -(R - lam * D) * logp,
                (
                    "the advantage carries a gradient now: the cost is differentiated"
                    " inside the product with log-probabilities, which is neither of"
                    " the two parts"
                ),
            ),
            (
                -pay * logp + D,
                (
                    "the pathwise part needs the weight lam as well, or the two parts"
                    " belong to different objectives"
                ),
            ),
            (
                -pay * logp + lam * p.cost.mean(-1),
                "the mean over tokens is not the sum; the score part has the sum",
            ),
        ]
        for wrong, why in classic:
            need(_gap(got, right) < 1e-6 or _gap(got, grad(wrong)) > 1e-6, why)
        need(
            _gap(got, right) < 1e-6,
            f"its mean gradient is off by {_gap(got, right):.0%} from that of the"
            " objective",
        )
    return (
        "Advantage R - lam D, and lam times D with its gradient: this is `soft` with"
        " complete=True. In the widget above, `soft` shows both parts: blue bars are"
        " the pathwise one."
    )


def _spread(tree, table, loss) -> tuple[torch.Tensor, float]:
    "Mean gradient of a loss (law -> (B,)) over trajectories, and its exact variance."
    table = table.detach()
    each = jacobian(lambda x: loss(law(tree, x)), table).flatten(1)
    weights = law(tree, table).prob
    mean = weights @ each
    return mean, float(weights @ (each - mean).square().sum(-1))


@exercise(
    hint=(
        "A policy gradient may subtract from its weight anything that does not depend"
        " on the token (line 3 of the proof says why). What is spent later on average,"
        " in this state, is such a number: a baseline."
    )
)
def quiet(function) -> str:
    removed = []
    for seed in range(3):
        tree, table, p = _student(seed)

        def theirs(p, tree=tree):
            return function(p.logp, p.cost, tree.nodes, p.prob.detach())

        def known(p, tree=tree):
            later = to_go(p.cost, tree.mask) - p.cost
            return p.cost.sum(-1) + (later.detach() * p.logp).sum(-1)

        value = theirs(p)
        need(
            value is not None and value.shape == (len(tree.rewards),),
            f"one number per trajectory: expected shape ({len(tree.rewards)},), got"
            f" {None if value is None else tuple(value.shape)}",
        )
        need(value.requires_grad, "it has no gradient: everything in it is detached")
        (right, before), (got, after) = (
            _spread(tree, table, f) for f in (known, theirs)
        )
        need(
            _gap(got, right) < 1e-6,
            f"on tree {seed} it is wrong on average: its mean is off by"
            f" {_gap(got, right):.0%} of the true gradient",
        )
        removed.append(1 - after / before)
    score = sum(removed) / len(removed)
    shares = ", ".join(f"{share:.0%}" for share in removed)
    need(
        score >= 0.2,
        f"it is right on average; score {score:.0%} (on the three trees {shares})",
    )
    return f"Score {score:.0%} of the variance removed (on the three trees {shares})."
