"Every method against a loop written from its paper, and what the trainer makes of methods, costs and budgets."
import dataclasses
import json
import math
import re
from collections import deque

import pytest
import torch
from conftest import flat, gradients_of_step, read_lines, relative
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from cmdp_nbdev.budget import Budget, row_budget
from cmdp_nbdev.cli import main, parse_args
from cmdp_nbdev.divergence import token_cost, token_divergence, token_logps
from cmdp_nbdev.evaluate import evaluate
from cmdp_nbdev.mdp import Rollout, masked
from cmdp_nbdev.objective import METHODS, STD_OFFSET, Batch, Signal, group_advantage, register_method, signal_loss
from cmdp_nbdev.reward import call_cost, constrained_reward, length_cost
from cmdp_nbdev.rollout import BudgetAware, budget_share, completion_logits, generate, given_rollout
from cmdp_nbdev.task import chain_dataset, chain_reward, write_chain
from cmdp_nbdev.trainer import CMDPConfig

NAN, INF = float("nan"), float("inf")

# ---- signals against loops ------------------------------------------------------------------------------------------


def batch(seed, groups=3, size=4, T=5):
    "Random trajectories in float64 with NaN in the padding."
    g = torch.Generator().manual_seed(seed)
    B = groups * size
    mask = (torch.arange(T) < torch.randint(1, T + 1, (B, 1), generator=g)).long()
    table = lambda: torch.rand(B, T, generator=g, dtype=torch.float64).masked_fill(mask == 0, NAN)
    return Batch(torch.randint(0, 3, (B,), generator=g).double(), torch.arange(B) // size, mask, -table(), -table(), {"divergence": table()})


def spend(costs, aggregate, burn_in):
    "What one trajectory spends, and how much of a nat of each token counts, by the definitions of nbs/02_budget."
    means = [sum(costs[:t + 1]) / (t + 1) for t in range(len(costs))]
    if aggregate == "sum": return sum(costs), [1.0] * len(costs)
    if aggregate == "mean": return means[-1], [1 / len(costs)] * len(costs)
    judged = [t for t in range(len(costs)) if t + 1 > burn_in] or [len(costs) - 1]
    worst = max(judged, key=lambda t: means[t])
    return means[worst], [1 / (worst + 1) if t <= worst else 0.0 for t in range(len(costs))]


def std(xs):
    "Unbiased standard deviation of a list; 0 for fewer than two."
    m = sum(xs) / len(xs)
    return math.sqrt(sum((x - m) ** 2 for x in xs) / (len(xs) - 1)) if len(xs) > 1 else 0.0


def normalise(values, groups, kind):
    "Advantage and divisor of every value."
    advantages, scales = [], []
    for v, g in zip(values, groups):
        own = [w for w, h in zip(values, groups) if h == g]
        scale = {"group": std(own) + STD_OFFSET * std(values), "batch": std(values), "none": 1.0}[kind] or 1.0
        advantages.append((v - sum(own) / len(own)) / scale); scales.append(scale)
    return advantages, scales


class OmnisafePID:
    "omnisafe/common/pid_lagrange.py, with the first error as the start of the averages and the first multiplier as the start of the integral."
    def __init__(self, kp, ki, kd, ema, delay, init, top): self.kp, self.ki, self.kd, self.ema, self.i, self.top, self.p, self.ds = kp, ki, kd, ema, init, top, None, deque(maxlen=delay)

    def update(self, cost, limit):
        delta = cost - limit
        self.i = min(max(0.0, self.i + self.ki * delta), self.top)
        self.p = delta if self.p is None else self.ema * self.p + (1 - self.ema) * delta
        d = max(0.0, self.p - self.ds[0]) if self.ds else 0.0
        self.ds.append(self.p)
        return min(max(0.0, self.kp * self.p + self.i + self.kd * d), self.top)


def loop(name, b, budget, kind, memory, s):
    "Advantage and multiplier of every token by plain Python, from the formula of the method's source; `memory` is what the method carries along."
    lengths, R, groups = b.mask.sum(-1).tolist(), b.rewards.tolist(), b.group_ids.tolist()
    cut = lambda x: [row[:n] for row, n in zip(x.tolist(), lengths)]
    cost, logp, teacher = cut(b.cost), cut(b.logp), cut(b.teacher_logp)
    D, weights = zip(*(spend(c, budget.aggregate, budget.burn_in) for c in cost))
    limits = budget.limit.tolist() if isinstance(budget.limit, torch.Tensor) else [budget.limit] * len(R)
    over = [x > d for x, d in zip(D, limits)]
    rows = range(len(R))
    whole = lambda a: [[a[i]] * lengths[i] for i in rows]
    zero = [[0.0] * n for n in lengths]
    if name == "minillm":  # R_{t+1}, the log-ratios that follow, over their number
        after = [[sum(logp[i][k] - teacher[i][k] for k in range(t + 1, lengths[i])) / (max(lengths[i] - t - 1, 1) if s["length_normalization"] else 1) for t in range(lengths[i])] for i in rows]
        return [[-x for x in row] for row in after], [[1.0] * n for n in lengths]
    if name == "kdrl":  # the gradient of lam * (log mu/pi)^2 / 2 is lam * log(pi/mu) * grad log pi
        A, _ = normalise(R, groups, kind)
        return [[A[i] - s["lam"] * (logp[i][t] - teacher[i][t]) for t in range(lengths[i])] for i in rows], zero
    if name == "weakest-link":  # an absorbing state: from the first bad prefix on every step earns -n, and the answer earns nothing
        returns = []
        for i in rows:
            absorbed, steps = False, []
            for t in range(lengths[i]):
                prefix = sum(-x for x in teacher[i][:t + 1]) / (t + 1)
                absorbed = absorbed or (prefix > s["limit"] and (t + 1 > s["burn_in"] or t + 1 == lengths[i]))
                steps.append(-s["penalty"] if absorbed else R[i] if t + 1 == lengths[i] else 0.0)
            returns.append([sum(steps[t:]) for t in range(lengths[i])])
        first = [g[0] for g in returns]
        A, scales = normalise(first, groups, kind)
        return [[A[i] + (g - first[i]) / scales[i] for g in returns[i]] for i in rows], zero
    if name in ("dual", "pid"):  # step on (A_R - lam*A_D)/(1 + lam)
        mean, limit = sum(D) / len(D), sum(limits) / len(limits)
        if name == "dual": lam = memory["lam"] = min(max(memory.get("lam", s["init"]) + s["lr"] * (mean - limit), 0.0), s["max_lam"])
        else: lam = memory.setdefault("pid", OmnisafePID(s["kp"], s["ki"], s["kd"], s["ema"], s["delay"], s["init"], s["max_lam"])).update(mean, limit)
        A, AD = normalise(R, groups, kind)[0], normalise(D, groups, "none")[0]
        return whole([(A[i] - lam * AD[i] * s["complete"]) / (1 + lam) for i in rows]), [[lam / (1 + lam) * w for w in weights[i]] for i in rows]
    if name == "hinge": modified, price = [r - s["coef"] * max(x - d, 0.0) for r, x, d in zip(R, D, limits)], s["coef"]
    elif name == "saute": modified, price = [-s["penalty"] if o else r for r, o in zip(R, over)], 0.0
    elif name in ("cmdp", "saute-augmented"): modified, price = [-(s["penalty"] + s["coef"] * x) if o else r for r, x, o in zip(R, D, over)], s["coef"]
    elif name == "chance-dual":
        price = memory["lam"] = min(max(memory.get("lam", s["init"]) + s["lr"] * (sum(over) / len(over) - (1 - s["target"])), 0.0), s["max_lam"])
        modified = [r - price * o for r, o in zip(R, over)]
    A, scales = normalise(modified, groups, kind)
    return whole(A), [[price * over[i] / scales[i] * w for w in weights[i]] for i in rows]


CASES = {"minillm": [{}, dict(length_normalization=False)], "kdrl": [dict(lam=0.7)], "saute": [dict(penalty=2.0)], "cmdp": [dict(penalty=0.5, coef=2.0)], "saute-augmented": [dict(penalty=0.5, coef=2.0)], "hinge": [dict(coef=2.5)],
         "weakest-link": [dict(limit=0.5, penalty=1.5), dict(limit=0.5, burn_in=2)], "dual": [dict(lr=0.3, max_lam=1.2), dict(complete=False)], "pid": [dict(kp=0.5, ki=0.2, kd=2.0, ema=0.6, delay=2, init=0.3, max_lam=1.5)], "chance-dual": [dict(target=0.7, lr=0.4)]}
BUDGETS = [Budget(1.0), Budget(0.45, "mean"), Budget(0.5, "prefix_mean", 1), Budget(torch.linspace(0, 2, 12, dtype=torch.float64))]


@pytest.mark.parametrize("budget", BUDGETS, ids=["sum", "mean", "prefix_mean", "per-prompt"])
@pytest.mark.parametrize("kind", ["group", "batch", "none"])
@pytest.mark.parametrize("name,settings", [(k, s) for k, all_of in CASES.items() for s in all_of], ids=lambda x: x if isinstance(x, str) else "-".join(x) or "defaults")
def test_signal_against_a_loop(name, settings, kind, budget):
    "A baseline that is not the published method makes every comparison with it worthless; five batches in a row, so that a moving multiplier moves."
    state, memory = {}, {}
    given_settings = {k: v for k, v in settings.items()} | ({} if name == "minillm" else {"scale_rewards": kind})
    s = {k: p.default for k, p in __import__("inspect").signature(METHODS[name]).parameters.items() if p.kind is p.KEYWORD_ONLY} | settings
    for seed in range(5):
        b = batch(seed)
        signal = METHODS[name](b, budget, state, **given_settings)
        advantage = signal.advantage if signal.advantage.dim() == 2 else signal.advantage[:, None].expand(b.mask.shape)
        A, M = loop(name, b, budget, kind, memory, s)
        for i, n in enumerate(b.mask.sum(-1).tolist()):
            assert advantage[i, :n].tolist() == pytest.approx(A[i], rel=1e-9, abs=1e-12)
            assert signal.multiplier[i, :n].tolist() == pytest.approx(M[i], rel=1e-9, abs=1e-12)
    if "lam" in signal.metrics: assert signal.metrics["lam"] != s.get("init")  # it moved


def test_kdrl_is_the_k2_estimator_as_a_loss():
    "As a reward the k2 estimator has another gradient; KDRL's is that of GRPO plus lam * mean of (log ratio)^2 / 2."
    b = batch(1)
    logp = b.logp.nan_to_num().requires_grad_()
    signal = METHODS["kdrl"](b, Budget(1.0), {}, lam=0.7)
    ours, = torch.autograd.grad(signal_loss(signal, logp, {"divergence": b.cost.nan_to_num()}, b.mask), logp)
    objective = group_advantage(b.rewards, b.group_ids)[:, None] * logp - 0.7 * (logp - b.teacher_logp.nan_to_num()).square() / 2
    theirs, = torch.autograd.grad(-masked(objective, b.mask).sum() / b.mask.sum(), logp)
    torch.testing.assert_close(ours, theirs)
