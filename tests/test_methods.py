"""Every method against a loop written from its paper.

And what the trainer makes of methods, costs and budgets.
"""

import copy
import json
import math
from collections import deque
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from conftest import embedded, flat, gradients_of_step, read_lines, relative
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from cmdp_nbdev.budget import Budget, spend_weights
from cmdp_nbdev.cli import main
from cmdp_nbdev.cost import Cost, token_cost, token_logps
from cmdp_nbdev.evaluate import evaluate
from cmdp_nbdev.mdp import Rollout, masked
from cmdp_nbdev.methods import METHODS, method_settings, rate_controller, register_method
from cmdp_nbdev.model import char_tokenizer
from cmdp_nbdev.objective import STD_OFFSET, Batch, Signal, group_advantage, signal_loss
from cmdp_nbdev.options import parse_args
from cmdp_nbdev.reward import call_cost, constrained_reward, length_cost
from cmdp_nbdev.rollout import completion_logits, generate, given_rollout
from cmdp_nbdev.run import fold_seed
from cmdp_nbdev.task import chain_dataset, chain_frontier, chain_reward, write_chain
from cmdp_nbdev.theory.told import BudgetAware, budget_share
from cmdp_nbdev.trainer import CMDPConfig

NAN, INF = float("nan"), float("inf")

# ---- signals against loops -------------------------------------------------------------


def batch(seed, groups=3, size=4, T=5):
    "Random trajectories in float64 with NaN in the padding."
    g = torch.Generator().manual_seed(seed)
    B = groups * size
    mask = (torch.arange(T) < torch.randint(1, T + 1, (B, 1), generator=g)).long()

    def table():
        return torch.rand(B, T, generator=g, dtype=torch.float64).masked_fill(mask == 0, NAN)

    rewards = torch.randint(0, 3, (B,), generator=g).double()
    logp, teacher_logp, cost = -table(), -table(), table()
    group_ids = torch.arange(B) // size
    return Batch(rewards, group_ids, mask, logp, teacher_logp, {"divergence": cost})


def spend(costs, aggregate, burn_in):
    "What one trajectory spends, and how much of a nat of each token counts, by nbs/02_budget."
    means = [sum(costs[: t + 1]) / (t + 1) for t in range(len(costs))]
    if aggregate == "sum":
        return sum(costs), [1.0] * len(costs)
    if aggregate == "mean":
        return means[-1], [1 / len(costs)] * len(costs)
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
        by_kind = {"group": std(own) + STD_OFFSET * std(values), "batch": std(values), "none": 1.0}
        scale = by_kind[kind] or 1.0
        advantages.append((v - sum(own) / len(own)) / scale)
        scales.append(scale)
    return advantages, scales


@dataclass
class Plain:
    "A batch as lists: rewards and groups, tables cut to their lengths, and what each row spends."

    R: list
    groups: list
    lengths: list
    logp: list
    teacher: list
    D: tuple
    weights: tuple
    limits: list
    kind: str  # of the scaling

    def whole(self, values):
        "The same value at every token."
        return [[v] * n for v, n in zip(values, self.lengths)]

    @property
    def over(self):
        return [x > d for x, d in zip(self.D, self.limits)]

    def scaled(self, values):
        return normalise(values, self.groups, self.kind)


def plain(b, budget, kind) -> Plain:
    "The batch as lists."
    lengths = b.mask.sum(-1).tolist()

    def cut(x):
        return [row[:n] for row, n in zip(x.tolist(), lengths)]

    D, weights = zip(*(spend(c, budget.aggregate, budget.burn_in) for c in cut(b.cost)))
    limits = budget.limit
    limits = limits.tolist() if isinstance(limits, torch.Tensor) else [limits] * len(D)
    tables = cut(b.logp), cut(b.teacher_logp)
    return Plain(
        b.rewards.tolist(), b.group_ids.tolist(), lengths, *tables, D, weights, limits, kind
    )


# Each loop gives advantage and multiplier of every token by plain Python, from the formula of the
# method's source. `memory` is what the method carries along, `s` its settings.


def minillm_loop(x, memory, s):
    "R_{t+1}, the log-ratios that follow, over their number."
    advantages = []
    for logp, teacher in zip(x.logp, x.teacher):
        ratios, n = [p - q for p, q in zip(logp, teacher)], len(logp)
        after = [sum(ratios[t + 1 :]) for t in range(n)]
        if s["length_normalization"]:
            after = [total / max(n - t - 1, 1) for t, total in enumerate(after)]
        advantages.append([-total for total in after])
    return advantages, x.whole([1.0] * len(x.R))


def kdrl_loop(x, memory, s):
    "The gradient of lam * (log mu/pi)^2 / 2 is lam * log(pi/mu) * grad log pi."
    A, _ = x.scaled(x.R)
    ratios = [[p - q for p, q in zip(*rows)] for rows in zip(x.logp, x.teacher)]
    return [[a - s["lam"] * r for r in row] for a, row in zip(A, ratios)], x.whole([0.0] * len(A))


def weakest_link_loop(x, memory, s):
    "An absorbing state: after the first bad prefix steps earn -n, and the answer nothing."
    returns = []
    for reward, teacher in zip(x.R, x.teacher):
        n, absorbed, steps = len(teacher), False, []
        for t in range(n):
            last = t + 1 == n
            prefix = sum(-q for q in teacher[: t + 1]) / (t + 1)
            absorbed = absorbed or prefix > s["limit"] and (t + 1 > s["burn_in"] or last)
            steps.append(-s["penalty"] if absorbed else reward if last else 0.0)
        returns.append([sum(steps[t:]) for t in range(n)])
    A, scales = x.scaled([g[0] for g in returns])
    tokens = [[a + (r - g[0]) / scale for r in g] for a, g, scale in zip(A, returns, scales)]
    return tokens, x.whole([0.0] * len(A))


class OmnisafePID:
    """omnisafe/common/pid_lagrange.py.

    With the first error as the start of the averages, the first multiplier as that of the integral.
    """

    def __init__(self, kp, ki, kd, ema, delay, init, top):
        self.kp, self.ki, self.kd, self.ema, self.top = kp, ki, kd, ema, top
        self.i, self.p, self.ds = init, None, deque(maxlen=delay)

    def update(self, cost, limit):
        delta = cost - limit
        self.i = min(max(0.0, self.i + self.ki * delta), self.top)
        self.p = delta if self.p is None else self.ema * self.p + (1 - self.ema) * delta
        d = max(0.0, self.p - self.ds[0]) if self.ds else 0.0
        self.ds.append(self.p)
        return min(max(0.0, self.kp * self.p + self.i + self.kd * d), self.top)


def lagrangian(x, lam, complete):
    "A step on (A_R - lam * A_D)/(1 + lam)."
    A, (AD, _) = x.scaled(x.R)[0], normalise(x.D, x.groups, "none")
    tokens = [(a - lam * ad * complete) / (1 + lam) for a, ad in zip(A, AD)]
    return x.whole(tokens), [[lam / (1 + lam) * w for w in row] for row in x.weights]


def means(x):
    "What is spent and what is allowed, on average."
    return sum(x.D) / len(x.D), sum(x.limits) / len(x.limits)


def dual_loop(x, memory, s):
    mean, limit = means(x)
    moved = memory.get("lam", s["init"]) + s["lr"] * (mean - limit)
    memory["lam"] = min(max(moved, 0.0), s["max_lam"])
    return lagrangian(x, memory["lam"], s["complete"])


def pid_loop(x, memory, s):
    names = ("kp", "ki", "kd", "ema", "delay", "init", "max_lam")
    pid = memory.setdefault("pid", OmnisafePID(*(s[name] for name in names)))
    return lagrangian(x, pid.update(*means(x)), s["complete"])


def priced(x, modified, price):
    "The modified reward, and a price where the budget is broken, in the same unit."
    A, scales = x.scaled(modified)
    multipliers = [
        [price * over / scale * w for w in row]
        for over, scale, row in zip(x.over, scales, x.weights)
    ]
    return x.whole(A), multipliers


def hinge_loop(x, memory, s):
    modified = [r - s["coef"] * max(d - limit, 0.0) for r, d, limit in zip(x.R, x.D, x.limits)]
    return priced(x, modified, s["coef"])


def saute_loop(x, memory, s):
    return priced(x, [-s["penalty"] if over else r for r, over in zip(x.R, x.over)], 0.0)


def cmdp_loop(x, memory, s):
    rows = zip(x.R, x.D, x.over)
    modified = [-(s["penalty"] + s["coef"] * d) if over else r for r, d, over in rows]
    return priced(x, modified, s["coef"])


def chance_dual_loop(x, memory, s):
    excess = sum(x.over) / len(x.over) - (1 - s["target"])
    moved = memory.get("lam", s["init"]) + s["lr"] * excess
    price = memory["lam"] = min(max(moved, 0.0), s["max_lam"])
    return priced(x, [r - price * over for r, over in zip(x.R, x.over)], price)


LOOPS = {
    "minillm": minillm_loop,
    "kdrl": kdrl_loop,
    "saute": saute_loop,
    "cmdp": cmdp_loop,
    "saute-augmented": cmdp_loop,
    "hinge": hinge_loop,
    "weakest-link": weakest_link_loop,
    "dual": dual_loop,
    "pid": pid_loop,
    "chance-dual": chance_dual_loop,
}
CASES = {
    "minillm": [{}, dict(length_normalization=False)],
    "kdrl": [dict(lam=0.7)],
    "saute": [dict(penalty=2.0)],
    "cmdp": [dict(penalty=0.5, coef=2.0)],
    "saute-augmented": [dict(penalty=0.5, coef=2.0)],
    "hinge": [dict(coef=2.5)],
    "weakest-link": [dict(limit=0.5, penalty=1.5), dict(limit=0.5, burn_in=2)],
    "dual": [dict(lr=0.3, max_lam=1.2), dict(complete=False)],
    "pid": [dict(kp=0.5, ki=0.2, kd=2.0, ema=0.6, delay=2, init=0.3, max_lam=1.5)],
    "chance-dual": [dict(target=0.7, lr=0.4)],
}
BUDGETS = [
    Budget(1.0),
    Budget(0.45, "mean"),
    Budget(0.5, "prefix_mean", 1),
    Budget(torch.linspace(0, 2, 12, dtype=torch.float64)),
]


@pytest.mark.parametrize("budget", BUDGETS, ids=["sum", "mean", "prefix_mean", "per-prompt"])
@pytest.mark.parametrize("kind", ["group", "batch", "none"])
@pytest.mark.parametrize(
    "name,settings",
    [(k, s) for k, all_of in CASES.items() for s in all_of],
    ids=lambda x: x if isinstance(x, str) else "-".join(x) or "defaults",
)
def test_signal_against_a_loop(name, settings, kind, budget):
    "A baseline must be the published method; five batches, so that a moving multiplier moves."
    state, memory = {}, {}
    given_settings = settings | ({} if name == "minillm" else {"scale_rewards": kind})
    s = method_settings(name) | settings
    for seed in range(5):
        b = batch(seed)
        signal = METHODS[name](b, budget, state, **given_settings)
        advantage = signal.advantage
        if advantage.dim() == 1:
            advantage = advantage[:, None].expand(b.mask.shape)
        A, M = LOOPS[name](plain(b, budget, kind), memory, s)
        for i, n in enumerate(b.mask.sum(-1).tolist()):
            assert advantage[i, :n].tolist() == pytest.approx(A[i], rel=1e-9, abs=1e-12)
            assert signal.multiplier[i, :n].tolist() == pytest.approx(M[i], rel=1e-9, abs=1e-12)
    if "lam" in signal.metrics:
        assert signal.metrics["lam"] != s.get("init")  # it moved


@pytest.mark.parametrize("budget", BUDGETS, ids=["sum", "mean", "prefix_mean", "per-prompt"])
def test_the_price_per_prompt_against_a_loop(budget):
    "'global' is one multiplier, as it always was; 'prompt' multiplies it by each group's pressure."
    for seed in range(5):
        b, one, own = batch(seed), {}, {}
        signal = METHODS["cmdp-rate"](b, budget, one)
        assert (
            one["log_scale"]
            and (signal.multiplier == signal.metrics["lam"] * weights_of(b, budget)).all()
        )
        priced = METHODS["cmdp-rate"](b, budget, own, price="prompt")
        assert own == one and priced.metrics == signal.metrics
        assert torch.equal(priced.advantage, signal.advantage)
        x = plain(b, budget, "none")
        for i, n in enumerate(x.lengths):
            group = [k for k, g in enumerate(x.groups) if g == x.groups[i]]
            over = [(x.D[k] - 0.85 * x.limits[k], 0.15 * x.limits[k]) for k in group]
            gates = [1 / (1 + math.exp(-e / w)) if w else float(e > 0) for e, w in over]
            expected = (0.1 + sum(gates) / len(gates)) * signal.multiplier[i, :n]
            torch.testing.assert_close(priced.multiplier[i, :n], expected)


@pytest.mark.parametrize("more, damping, settle", [({}, 3.0, 100), ((1.5, 3), 1.5, 3)])
def test_the_rate_controller_against_a_loop(more, damping, settle):
    "Two averages of violations, error and trend in logs, steps that shrink in time, two bounds."
    more = dict(zip(("damping", "settle"), more))
    state, target, log_scale, met = {}, 0.9, math.log(3), set()
    fast = slow = 0.25  # the averages begin with the first batch
    for n in range(150):
        violations = 0.0 if 5 < n < 40 else [0.25, 0.0, 0.1, 0.5][n % 4]
        found = rate_controller(
            state, violations, target, rate=0.2, init=3.0, low=0.5, high=4.0, **more
        )
        fast, slow = 0.95 * fast + 0.05 * violations, 0.98 * slow + 0.02 * violations
        error = min(max(math.log((fast + 0.01) / (0.1 + 0.01)), -1), 1)
        trend = min(max(math.log((fast + 0.01) / (slow + 0.01)), -1), 1)
        step = 0.2 * min(1, settle / (n + 1)) * (error + damping * trend)
        log_scale = min(max(log_scale + step, math.log(0.5)), math.log(4))
        assert found == pytest.approx(math.exp(log_scale), rel=1e-9)
        met.add(round(found, 6))
    assert {0.5, 4.0} <= met or settle == 3  # both bounds were met


def test_the_default_starts_at_three_with_half_a_forward_kl():
    "Multipliers of the first update, of which nobody knows a trend; the least scale is said."
    b = batch(0)
    b.costs["forward_kl"] = b.cost + 1
    rate = method_settings("cmdp-rate")["rate"]
    signal = METHODS["cmdp-rate"](b, Budget(0.0), {})  # all violate: the error is bound to 1
    assert signal.metrics == {"lam": pytest.approx(3 * math.exp(rate)), "at_minimum": 0.0}
    ones = b.mask.double()
    main, forward = (signal.multipliers[name] for name in ("divergence", "forward_kl"))
    torch.testing.assert_close(masked(main, b.mask), signal.metrics["lam"] * ones)
    torch.testing.assert_close(forward, 0.5 * main)
    least = METHODS["cmdp-rate"](b, Budget(1e6), {}, init=0.1, min_scale=0.1)
    assert least.metrics == {"lam": pytest.approx(0.1), "at_minimum": 1.0}
    fixed = METHODS["cmdp-rate"](b, Budget(1.0), {}, target=0, forward=0)
    assert fixed.metrics["lam"] == 1 and list(fixed.multipliers) == ["divergence"]
    for wrong in (1.0, -0.1):
        with pytest.raises(ValueError, match=r"target must lie in \[0, 1\)"):
            METHODS["cmdp-rate"](b, Budget(1.0), {}, target=wrong)


def weights_of(b, budget):
    return spend_weights(budget, b.cost, b.mask)


def test_a_price_is_one_of_two():
    with pytest.raises(ValueError, match="price must be one of prompt, global; got 'group'"):
        METHODS["cmdp-rate"](batch(0), Budget(1.0), {}, price="group")


def test_kdrl_is_the_k2_estimator_as_a_loss():
    "As a reward k2 has another gradient; KDRL's is GRPO's plus lam * mean of (log ratio)^2 / 2."
    b = batch(1)
    logp = b.logp.nan_to_num().requires_grad_()
    signal = METHODS["kdrl"](b, Budget(1.0), {}, lam=0.7)
    loss = signal_loss(signal, logp, {"divergence": b.cost.nan_to_num()}, b.mask)
    (ours,) = torch.autograd.grad(loss, logp)
    grpo = group_advantage(b.rewards, b.group_ids)[:, None] * logp
    k2 = (logp - b.teacher_logp.nan_to_num()).square() / 2
    objective = masked(grpo - 0.7 * k2, b.mask).sum() / b.mask.sum()
    (theirs,) = torch.autograd.grad(-objective, logp)
    torch.testing.assert_close(ours, theirs)


# ---- a student that is told its budget -------------------------------------------------

PROMPTS = ["3+8*7-2=", "1*2=", "9-9*9*9+1="]


def seeded(seed=0):
    "A generator of its own."
    return torch.Generator().manual_seed(seed)


def same(a, b, atol):
    "Equal up to `atol`."
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


def stir(model, std):
    "Give the layer that tells the budget random weights, so that it matters."
    torch.nn.init.normal_(model.embedding.weight, std=std, generator=seeded())


def aware(pair, budget, std=0.05, **cost):
    "A student with a layer that matters, in float64."
    model = BudgetAware(pair[0].double(), pair[1].double(), budget, cost=Cost(**cost))
    stir(model, std)
    return model


@torch.no_grad()
def test_the_wrapped_student_begins_as_the_plain_one(pair):
    "Otherwise the control would start from another student than the method it is compared with."
    student, teacher, tok = pair
    told = BudgetAware(student, teacher, Budget(0.8))
    bare, wrapped = (
        generate(m, tok, PROMPTS, num_generations=4, generator=seeded(1)) for m in (student, told)
    )
    assert torch.equal(bare.completion_ids, wrapped.completion_ids)
    torch.testing.assert_close(bare.sampled_logps, wrapped.sampled_logps)  # read in other layers
    assert torch.equal(completion_logits(told, wrapped), completion_logits(student, bare))
    assert bare.remaining is None
    assert wrapped.remaining.min() < 1


TOLD = {
    "sum": (Budget(0.8), {}),
    "mean": (Budget(0.3, "mean"), {}),
    "prefix mean": (Budget(0.3, "prefix_mean"), {}),
    "burn-in": (Budget(0.3, "prefix_mean", 6), {}),
    "long burn-in": (Budget(0.05, "prefix_mean", 40), {}),
    "limit 0": (Budget(0.0), {}),
    "no limit": (Budget(INF), {}),
    "forward KL": (Budget(0.8), dict(kind="forward_kl")),
    "log-ratio": (Budget(4.0), dict(kind="log_ratio")),
    "surprisal": (Budget(3.0), dict(kind="surprisal")),
    "temperatures": (Budget(20.0), dict(student_temperature=2.0, teacher_temperature=0.5)),
    "floor": (Budget(0.8), dict(floor=0.1)),
    "jsd": (Budget(0.1), dict(kind="jsd", beta=0.3)),
}


@torch.no_grad()
@pytest.mark.parametrize("name", TOLD)
def test_what_is_told_while_sampling_is_what_is_scored(pair, name):
    "Told another budget in the update than while writing, the gradient is another policy's."
    budget, cost = TOLD[name]
    model = aware(pair, budget, **cost)
    r = generate(model, pair[2], PROMPTS, num_generations=4, generator=seeded())
    ids, mask = r.completion_ids, r.completion_mask
    logits, teacher_logits = completion_logits(model, r), completion_logits(pair[1], r)
    same(masked(token_logps(logits, ids), mask), r.sampled_logps, 1e-6)
    spent = token_cost(logits, teacher_logits, ids, mask, Cost(**cost))
    left = budget_share(budget, spent, mask)[:, :-1]
    same(masked(r.remaining.double(), mask), masked(left, mask), 1e-5)
    assert r.remaining.abs().max() <= 1
    assert (r.remaining[:, 0] == 1).all()
    if name not in ("no limit", "long burn-in"):
        assert r.remaining.unique().numel() > 3 or name == "limit 0"


ANOTHER_COST = {"divergence": "forward_kl", "teacher_temperature": 2.0}


@pytest.mark.parametrize("cost", [{}, ANOTHER_COST], ids=["default", "another cost"])
@pytest.mark.parametrize("column", [False, True], ids=["one budget", "per-prompt"])
def test_the_trainer_tells_the_budget_it_judges_by(make_trainer, prompts, column, cost):
    "Cost, annealed limit and limits per prompt of the update must be those that were told."
    if column:
        limits = [0.2 + 0.1 * (i % 5) for i in range(len(prompts))]
        prompts = prompts.add_column("budget", limits)
    ramp = {"budget_start": 3.0, "budget_anneal_steps": 4, "max_steps": 4}
    told = {"method": "saute-augmented", "train_dataset": prompts, "temperature": 0.9}
    trainer = make_trainer(**told, **ramp, **cost)
    torch.nn.init.normal_(trainer.model.embedding.weight, std=0.02)
    for _ in range(2):
        r = trainer.sample()
        score = trainer.score(r)
        mask = r.completion_mask
        same(masked(score.logp, mask), r.sampled_logps, 1e-4)
        left = budget_share(trainer.limit(r), score.costs["divergence"], mask)[:, :-1]
        same(masked(r.remaining, mask), masked(left, mask), 1e-4)
        trainer.step()


def test_the_layer_learns(make_trainer):
    "A student that ignores what it is told would be the plain method under another name."
    trainer = make_trainer(method="saute-augmented")
    assert trainer.model.embedding.weight.abs().max() == 0
    _, g = gradients_of_step(trainer)
    assert trainer.model.embedding.weight.abs().min() > 0
    assert torch.isfinite(g).all()


MEMORY = {
    "split": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4},
    "checkpointing": {"gradient_checkpointing": True},
}


@pytest.mark.parametrize("config", MEMORY.values(), ids=MEMORY)
def test_memory_options_of_a_told_student(make_trainer, tmp_path, config):
    "What is told must be split with the rows it belongs to."

    def step(name, **config):
        folder = str(tmp_path / name)
        trainer = make_trainer(method="saute-augmented", budget=0.3, output_dir=folder, **config)
        stir(trainer.model, 0.3)
        return gradients_of_step(trainer)

    (a, ga), (b, gb) = step("plain"), step("option", **config)
    assert relative(gb, ga) < 1e-4
    assert b["loss"] == pytest.approx(a["loss"], rel=1e-4)


def test_a_told_student_in_half_precision(make_trainer):
    "Mixed precision is how larger students train; the layer must not break it."
    trainer = make_trainer(method="saute-augmented", bf16=True)
    assert all(math.isfinite(trainer.step()["loss"]) for _ in range(2))
    assert flat(trainer.model).isfinite().all()


def load(folder):
    "What the Auto classes make of a folder."
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def test_saving_and_loading_a_told_student(make_trainer, tmp_path):
    "The folder loads with Auto classes, and with its layer it is the policy that was trained."
    trainer = make_trainer(method="saute-augmented", learning_rate=1e-2)
    trainer.train()
    trainer.save_model(tmp_path / "s")
    r = trainer.rollout
    base, tok = load(tmp_path / "s")
    assert tok("3+8=")["input_ids"] == trainer.processing_class("3+8=")["input_ids"]
    again = BudgetAware.load(tmp_path / "s", base, trainer.teacher, trainer.budget).eval()
    with torch.no_grad():
        loaded, live = completion_logits(again, r), completion_logits(trainer.model, r)
        alone, inside = completion_logits(base, r), completion_logits(trainer.model.base, r)
    torch.testing.assert_close(loaded, live)
    torch.testing.assert_close(alone, inside)
    assert not torch.allclose(alone, loaded)
    # the teacher is not saved with it
    assert not any("teacher" in k or "told" in k for k in trainer.model.state_dict())
    further = {"method": "saute-augmented", "output_dir": str(tmp_path / "further")}
    going_on = make_trainer(str(tmp_path / "s"), **further)
    assert torch.equal(flat(going_on.model), flat(trainer.model))  # it keeps its layer


SAVED = "model.safetensors config.json tokenizer.json budget_embedding.safetensors".split()
SMALL_RUN = "--max_steps 2 --n_eval 24 --per_device_train_batch_size 16 --device cpu --disable_tqdm"


def run_command(out, *options):
    "`cmdp-distill` with these options, small, into `out`; returns its summary."
    assert main([*options, "--output_dir", str(out), *SMALL_RUN.split()]) == 0
    return json.loads((out / "summary.json").read_text())


def test_a_told_student_from_the_command_line(tmp_path, held_out, pair):
    "What `--method saute-augmented` leaves behind loads, and gives the summary's numbers again."
    out = tmp_path / "run"
    summary = run_command(out, "--method", "saute-augmented", "--learning_rate", "0.01")
    base, tok = load(out / "student")
    assert {p.name for p in (out / "student").iterdir()} >= set(SAVED)
    ids = tok("3+8=", return_tensors="pt")["input_ids"]
    assert base.generate(ids, max_new_tokens=4, do_sample=False).shape[1] > ids.shape[1]
    student = BudgetAware.load(out / "student", base, pair[1], Budget(0.8)).eval()
    test, how = chain_dataset(24, "test"), {"seed": fold_seed(0, 0, 2), "vocab_size": 19}
    result = evaluate(student, pair[1], test, tok, chain_reward, Budget(0.8), **how)
    for k in ("accuracy", "satisfaction_rate", "kl_mean", "spent_mean", "length_mean"):
        assert summary[k] == pytest.approx(result[k], rel=1e-5), k


# ---- a killed run goes on as if nothing had happened -----------------------------------


def written(trainer):
    "What a run has written to metrics.jsonl."
    return read_lines(trainer.output_dir / "metrics.jsonl")


def without_time(lines):
    "Metrics that do not depend on the machine."
    return [{k: v for k, v in m.items() if k != "seconds"} for m in lines]


RESUMED = {
    "default": dict(budget=0.3),
    "dual": dict(method="dual", method_kwargs=dict(lr=0.5)),
    "pid": dict(method="pid", method_kwargs=dict(delay=1, kd=3.0)),
    "chance-dual": dict(method="chance-dual", budget=0.3),
    "told": dict(method="saute-augmented", budget=0.3),
    "quantile before the checkpoint": dict(method="cmdp", distill_steps=1, budget_quantile=0.5),
    "quantile after the checkpoint": dict(method="cmdp", distill_steps=2, budget_quantile=0.5),
    "annealed": dict(method="cmdp", budget_start=3.0, budget_anneal_steps=4, budget=0.3),
    "off-policy": dict(method="gkd", lmbda=0.5, seq_kd=True),
}


@pytest.mark.parametrize("name", RESUMED)
def test_killed_and_resumed_equals_uninterrupted(make_trainer, tmp_path, name):
    "A multiplier, a budget or a ramp that starts anew after a power cut trains something else."

    class Killed(Exception):
        pass

    def kill(trainer, metrics):
        if metrics["step"] == 3:
            raise Killed

    config = {**RESUMED[name], "max_steps": 4, "save_steps": 2}
    config |= {"per_device_train_batch_size": 8, "max_completion_length": 14}
    whole = make_trainer(**config, output_dir=str(tmp_path / "whole"))
    whole.train()
    with pytest.raises(Killed):
        make_trainer(**config, callbacks=[kill]).train()
    again = make_trainer(**config, resume_from_checkpoint="auto")
    again.train()
    assert torch.equal(flat(again.model), flat(whole.model))
    assert again.method_state == whole.method_state
    assert again.budget == whole.budget
    lines = written(whole)
    assert without_time(written(again)) == without_time(lines)
    if "method_kwargs" in config:
        assert len({m["lam"] for m in lines}) > 2  # something was there to lose


def test_a_chosen_budget_may_not_change_with_the_evaluation(make_trainer, tmp_path):
    "Where the evaluation decides the budget, other settings of it make another run."
    config = {"method": "cmdp", "distill_steps": 1, "budget_quantile": 0.5, "save_steps": 1}
    greedy = {"eval_temperature": 0.0, "resume_from_checkpoint": "auto"}
    make_trainer(**config).step()
    with pytest.raises(ValueError, match="eval_temperature was 1.0, now 0.0"):
        make_trainer(**config, **greedy).train()
    config |= {"budget_quantile": None, "output_dir": str(tmp_path / "b")}
    make_trainer(**config).step()
    make_trainer(**config, **greedy).train()


# ---- budgets that move, and budgets per prompt -----------------------------------------


def test_budget_quantile_is_the_quantile_of_the_distilled_student(make_trainer):
    "The limit is read off the student when distillation ends, kept, and written down."
    trainer = make_trainer(method="cmdp", distill_steps=2, budget_quantile=0.4, max_steps=4)
    before = [trainer.step(), trainer.step()]
    spent = sorted(r["spent"] for r in trainer.evaluate(return_records=True)[1])
    after = [trainer.step(), trainer.step()]
    limit = trainer.budget.limit
    assert limit == pytest.approx(np.quantile(spent, 0.4))
    assert trainer.args.budget == 0.8
    assert [m["budget"] for m in before + after] == pytest.approx([0.8, 0.8, limit, limit])
    result, records = trainer.evaluate(return_records=True)
    assert result["satisfaction_rate"] == share_within(records, limit)


def share_within(records, limit):
    "The share of completions that keep to a limit."
    return sum(r["spent"] <= limit for r in records) / len(records)


def test_a_chosen_budget_reaches_the_summary(tmp_path):
    "The summary's budget, satisfaction and optimum must be of one and the same budget."
    out = tmp_path / "run"
    chosen = "--method cmdp --distill_steps 1 --budget_quantile 0.3".split()
    summary = run_command(out, *chosen)
    records, budget = read_lines(out / "eval.jsonl"), summary["budget"]
    assert budget == read_lines(out / "metrics.jsonl")[-1]["budget"] != 0.8
    assert len(records) == 24
    assert summary["satisfaction_rate"] == share_within(records, budget)
    optimum = chain_frontier(chain_dataset(24, "test")["prompt"][:], [budget])[0]
    assert summary["optimal_accuracy"] == pytest.approx(optimum)


def test_annealing_moves_the_limit_in_a_straight_line(make_trainer):
    "From budget_start to the budget, then constant; evaluation always uses the budget itself."
    ramp = {"budget": 0.4, "budget_start": 5.0, "budget_anneal_steps": 2}
    small = {"max_steps": 4, "per_device_train_batch_size": 8}
    trainer = make_trainer(method="cmdp", distill_steps=1, **ramp, **small)
    # it moves while it is used, not while distilling
    assert [trainer.step()["budget"] for _ in range(4)] == pytest.approx([2.0, 2.0, 1.2, 0.4])
    result, records = trainer.evaluate(return_records=True)
    assert result["satisfaction_rate"] == share_within(records, 0.4)


@given(
    st.integers(0, 10_000),
    st.sampled_from([("sum", 0), ("mean", 0), ("prefix_mean", 0), ("prefix_mean", 2)]),
)
def test_a_budget_per_trajectory_is_that_many_budgets(seed, kind):
    "A tensor of limits must do to every row what a number does to it alone."
    b = batch(seed)
    limits = torch.rand(len(b.mask), generator=seeded(seed), dtype=torch.float64)
    many = Budget(limits, *kind)
    for i, d in enumerate(limits.tolist()):
        one, row = Budget(d, *kind), slice(i, i + 1)
        alone = b.cost[row], b.mask[row]
        for f in ("remaining", "spent", "violated", "running"):
            together = getattr(many, f)(b.cost, b.mask)
            torch.testing.assert_close(together[row], getattr(one, f)(*alone))
        half = many.scaled(0.5).remaining(b.cost, b.mask)
        torch.testing.assert_close(half[row], one.scaled(0.5).remaining(*alone))
    assert many.violated(b.cost, b.mask).tolist() == (many.spent(b.cost, b.mask) > limits).tolist()


@pytest.mark.parametrize(
    "method", ["cmdp-rate", "cmdp", "hinge", "dual", "chance-dual", "saute-augmented"]
)
def test_equal_budgets_per_prompt_are_the_one_budget(make_trainer, prompts, tmp_path, method):
    "Writing the same number into every row must not change the run."

    def trainer(data, budget):
        folder, few = str(tmp_path / str(budget)), data.select(range(8))
        settings = {"method": method, "budget": budget, "output_dir": folder}
        return make_trainer(train_dataset=data, eval_dataset=few, **settings)

    column = prompts.add_column("budget", [0.5] * len(prompts))
    one, each = trainer(prompts, 0.5), trainer(column, 7.0)
    (a, ga), (b, gb) = gradients_of_step(one), gradients_of_step(each)
    assert torch.equal(ga, gb)
    assert without_time([a]) == without_time([b])
    assert one.evaluate() == each.evaluate()


def test_every_prompt_is_judged_by_its_own_budget(make_trainer, prompts):
    "A budget nobody keeps beside one that everybody keeps shows a mix-up of rows."
    limits = {p: 0.0 if i % 3 else 1e6 for i, p in enumerate(prompts["prompt"])}
    data = prompts.add_column("budget", [limits[p] for p in prompts["prompt"]])
    sizes = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 3}
    held_out = {"eval_dataset": data.select(range(20)), "eval_num_generations": 2}
    trainer = make_trainer(method="cmdp", train_dataset=data, **held_out, **sizes)
    m = trainer.step()
    generous = sum(limits[p] > 0 for p in trainer.rollout.prompts)
    assert m["satisfaction_rate"] == pytest.approx(generous / 24)
    assert 0 < m["satisfaction_rate"] < 1
    result, records = trainer.evaluate(return_records=True)
    assert len(records) == 40
    for r in records:
        assert r["within_budget"] == (limits[r["prompt"]] > 0) == (r["budget"] > 0)
    assert result["satisfaction_rate"] == pytest.approx(7 / 20)


# ---- further budgets -------------------------------------------------------------------


def rollout(lengths=(2, 1, 3), **columns):
    "Completions of these many tokens."
    T, B = max(lengths), len(lengths)
    mask = (torch.arange(T) < torch.tensor(lengths)[:, None]).long()
    ids = torch.arange(B * T).reshape(B, T) % 7 + 3
    tensors = ids, torch.ones_like(ids), ids, mask, torch.ones(B, dtype=torch.bool)
    return Rollout(*tensors, prompts=["p"] * B, completions=["c"] * B, columns=columns)


def test_costs_per_token_and_per_sequence():
    "A number is charged once, at the end; a list token by token; padding costs nothing."
    whole = [[0, 2.5, 0], [1, 0, 0], [0, 0, True]]
    for kind in (
        lambda completions: [2.5, 1, True],
        lambda completions: torch.tensor([2.5, 1, 1]),
        lambda completions: np.array([2.5, 1, 1]),
        lambda completions: [np.float32(2.5), torch.tensor(1), np.array(1)],
    ):
        assert call_cost(kind, rollout()).tolist() == whole
    r = rollout()
    for kind in (
        lambda completion_ids: [[float(i) for i in ids] for ids in completion_ids],
        lambda completion_ids: [torch.tensor(ids) for ids in completion_ids],
        lambda completion_ids: [np.array(ids) for ids in completion_ids],
    ):
        each = call_cost(kind, rollout())
        assert torch.equal(each, masked(r.completion_ids.float(), r.completion_mask))
    assert call_cost(length_cost, rollout()).sum(-1).tolist() == [2, 1, 3]
    column = call_cost(lambda level, **kwargs: level, rollout(level=[1, 2, 3]))
    assert column.sum(-1).tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    "f,match",
    [
        (lambda completions: [1, 2], "3 completions, got 2"),
        (lambda completions: 1 / 0, "ZeroDivisionError"),
        (lambda completions: ["a", 1, 2], "'a'.*a cost is a number"),
        (lambda completions: [None, 1, 2], "None.*a cost is a number"),
        (lambda completions: [NAN, 1, 2], "nan.*finite"),
        (lambda completions: [[1, INF], 1, 2], "finite"),
        (lambda completions: [[1.0], 1, 2], "returned 1 numbers for a completion of 2 tokens"),
        (lambda completions: [[[1.0, 2.0]], 1, 2], "completion of 2 tokens"),
        (lambda completions, gold: [0] * 3, "asks for gold"),
    ],
)
def test_bad_cost_functions(f, match):
    "A bug in a cost function must be called by its name."
    f.__name__ = "my_cost"
    with pytest.raises((ValueError, RuntimeError), match=f"cost function 'my_cost'.*{match}"):
        call_cost(f, rollout())


row = st.tuples(st.floats(-1, 3), st.floats(0, 4), st.floats(0, 4))


@given(st.lists(row, min_size=1, max_size=6), st.floats(0, 2), st.floats(0, 3), st.floats(0, 2))
def test_constrained_reward_against_a_loop(rows, first, second, n):
    "R where every budget is kept, else -(n + relative excesses); at a limit of 0 the excess."
    R, a, b = (torch.tensor(x, dtype=torch.float64) for x in zip(*rows))
    limits = {"a": first, "b": torch.full((len(rows),), second, dtype=torch.float64)}
    got = constrained_reward(R, {"a": a, "b": b}, limits, n)
    for (r, x, y), v in zip(rows, got.tolist()):
        excess = sum(max(s - d, 0.0) / (d if d > 0 else 1.0) for s, d in ((x, first), (y, second)))
        assert v == pytest.approx(-(n + excess) if excess > 0 else r)
    assert torch.equal(constrained_reward(R, {}, {}), R)
    assert torch.equal(constrained_reward(R, {"a": a}, {"a": INF}), R)


def stars(completions, **kwargs):
    "The number of multiplications."
    return [c.count("*") for c in completions]


def semicolons(completion_ids, **kwargs):
    "1 for every semicolon."
    return [[float(i == 17) for i in ids] for ids in completion_ids]


def test_several_budgets_at_once(make_trainer):
    "Each is measured, reported and kept under its own name; the task's numbers stay the task's."
    length, star = (length_cost, Budget(16)), (stars, Budget(0))
    semicolon = (semicolons, Budget(0.2, "prefix_mean", 3))
    constraints = {"length": length, "stars": star, "semicolons": semicolon}
    settings = {"constraint_penalty": 2.0, "per_device_train_batch_size": 32}
    trainer = make_trainer(method="grpo", constraints=constraints, **settings)
    seen, answer = [], trainer.signal

    def noted(batch, limit):
        seen.append(batch)
        return answer(batch, limit)

    trainer.signal = noted
    m, r, (b, *_) = trainer.step(), trainer.rollout, seen
    assert set(b.costs) == {"divergence", *constraints}
    assert all(c.shape == b.mask.shape for c in b.costs.values())
    written = [ids[:n] for ids, n in zip(r.completion_ids.tolist(), r.lengths.tolist())]
    charged = [[float(i == 17) for i in ids] for ids in written]
    spent = {
        "length": r.lengths.float(),
        "stars": torch.tensor([float(c.count("*")) for c in r.completions]),
        "semicolons": torch.tensor([spend(costs, "prefix_mean", 3)[0] for costs in charged]),
    }
    kept = {k: spent[k] <= constraints[k][1].limit + 1e-7 for k in spent}
    for k in constraints:
        assert m[f"spent_mean_{k}"] == pytest.approx(float(spent[k].mean()))
        assert m[f"satisfaction_rate_{k}"] == pytest.approx(float(kept[k].float().mean()))
    raw = torch.tensor(chain_reward(r.prompts, r.completions, r.columns["answer"])) * r.terminated
    excess = (spent["length"] - 16).clamp(min=0) / 16 + spent["stars"]
    excess += (spent["semicolons"] - 0.2).clamp(min=0) / 0.2
    all_kept = kept["length"] & kept["stars"] & kept["semicolons"]
    torch.testing.assert_close(b.rewards, torch.where(all_kept, raw, -(2.0 + excess)))
    # not the modified one
    assert m["reward"] == pytest.approx(float(raw.mean()))
    assert m["accuracy"] == pytest.approx(float(raw.mean()))
    assert 0 < m["satisfaction_rate_stars"] < 1


def test_evaluation_of_further_budgets(make_trainer, prompts):
    "Scripts read these names; limits of a dataset column `budget_<name>` count there, too."
    data = prompts.select(range(16)).add_column("budget_stars", [float(i % 2) for i in range(16)])
    constraints = {"length": (length_cost, Budget(16)), "stars": (stars, Budget(99))}
    trainer = make_trainer(constraints=constraints, train_dataset=data, eval_dataset=data)
    result, records = trainer.evaluate(return_records=True)
    for r in records:
        length, within = len(r["completion_ids"]), bool(r["within_budget_length"])
        assert r["spent_length"] == length
        assert within == (length <= 16)
        assert r["spent_stars"] == r["completion"].count("*")
        assert bool(r["within_budget_stars"]) == (r["spent_stars"] <= r["budget_stars"])

    def share(f):
        return sum(map(f, records)) / 16

    within = ("within_budget", "within_budget_length", "within_budget_stars")
    assert result["satisfaction_rate_stars"] == share(lambda r: r["within_budget_stars"])
    assert result["spent_mean_length"] == share(lambda r: r["spent_length"])
    assert result["satisfaction_rate_all"] == share(lambda r: all(r[k] for k in within))
    rate, low, high = (result[f"satisfaction_rate_length{end}"] for end in ("", "_low", "_high"))
    assert low <= rate <= high
    m, r = trainer.step(), trainer.rollout
    limit = dict(zip(data["prompt"], data["budget_stars"]))
    kept = sum(c.count("*") <= limit[p] for p, c in zip(r.prompts, r.completions))
    assert m["satisfaction_rate_stars"] == pytest.approx(kept / 16)


def test_a_further_budget_is_learnt(make_trainer):
    "What it is for: completions become shorter when only their length is limited."

    def nothing(completions, **kwargs):
        return [0.0] * len(completions)

    short = {"constraints": {"length": (length_cost, Budget(6))}, "truncated_reward": None}
    steps = {"max_steps": 12, "per_device_train_batch_size": 64, "learning_rate": 5e-3}
    trainer = make_trainer(method="grpo", reward_funcs=nothing, **short, **steps)
    trainer.train()
    first, *_, last = written(trainer)
    assert last["spent_mean_length"] < 0.7 * first["spent_mean_length"]
    assert first["spent_mean_length"] == first["length_mean"]


def test_a_users_method_may_read_further_costs(make_trainer, own_methods):
    "The costs are handed to the method; settings are not refused because none is there yet."

    @register_method("shorter")
    def shorter(batch, budget, state, *, scale_rewards: str = "group") -> Signal:
        reward = -batch.costs["ones"].sum(-1)
        advantage = group_advantage(reward, batch.group_ids, scale_rewards)
        return Signal(advantage, torch.zeros_like(batch.cost))

    def ones(completions, **kwargs):
        return [c.count("1") for c in completions]

    trainer = make_trainer(method="shorter", constraints={"ones": (ones, Budget(16))})
    assert trainer.step()["advantage_abs"] > 0


def test_a_users_method_prices_a_further_divergence(own_methods, make_trainer, tmp_path):
    """What register_method(costs=...) promises.

    That divergence is measured, has a gradient, and takes a multiplier; a mixture of two must be
    the sum of both gradients.
    """
    split = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}

    def mixture(name, a, b):
        @register_method(name, costs=("forward_kl",))
        def method(batch, budget, state):
            multipliers = {"divergence": a * batch.mask, "forward_kl": b * batch.mask}
            return Signal(torch.zeros_like(batch.cost), multipliers)

        trainer = make_trainer(method=name, output_dir=str(tmp_path / name), **split)
        return gradients_of_step(trainer)[1]

    both, one = mixture("both", 2.0, 3.0), mixture("one", 2.0, 0.0)
    other = mixture("other", 0.0, 3.0)
    assert relative(both, one + other) < 1e-4
    assert other.norm() > 0
    gkd = make_trainer(method="gkd", divergence="forward_kl", output_dir=str(tmp_path / "f"))
    forward = gradients_of_step(gkd)[1]
    assert relative(other, 3.0 * forward) < 1e-4
    register_method("odd", costs=("length",))(lambda batch, budget, state: None)
    with pytest.raises(ValueError, match="'length' is unknown; choose one of reverse_kl"):
        embedded(method="odd")
    taken = {"forward_kl": (length_cost, Budget(9))}
    with pytest.raises(ValueError, match="has a cost named forward_kl already"):
        make_trainer(method="both", constraints=taken, output_dir=str(tmp_path / "c"))


ZERO = torch.zeros(2, 2)


@pytest.mark.parametrize(
    "answer,match",
    [
        (None, "got None"),
        (Signal(ZERO[0], {"length": ZERO}), "no gradient.*got {'length'}"),
        (Signal(ZERO[0], {"divergence": ZERO, "length": ZERO}), "got {.*'length'"),
        (Signal(torch.zeros(2), -torch.ones(2, 2)), "multiplier is -1"),
    ],
    ids=["none", "another", "two", "negative"],
)
def test_a_users_method_that_answers_nonsense(own_methods, answer, match):
    "Found on a trial of two made-up trajectories, before any model is loaded."
    register_method("mine")(lambda batch, budget, state: answer)
    with pytest.raises(ValueError, match=f"method 'mine'.*{match}"):
        embedded(method="mine")


# ---- completions that the student did not write ----------------------------------------


@pytest.fixture
def worked(prompts):
    "The training prompts with their worked solutions, of 20 tokens each with EOS."
    return prompts.add_column("completion", [write_chain(p) for p in prompts["prompt"]])


def distance(s, t, kind):
    "Forward KL or JSD of log-probabilities (T, V) of student and teacher, per token."

    def kl(a, b):
        return (a.exp() * (a - b)).sum(-1)

    mix = torch.log((s.exp() + t.exp()) / 2)
    return kl(t, s) if kind == "forward_kl" else (kl(t, mix) + kl(s, mix)) / 2


@pytest.mark.parametrize("length", [20, 19], ids=["whole", "cut off"])
@pytest.mark.parametrize("divergence", ["forward_kl", "jsd"])
def test_off_policy_gkd_against_a_loop(make_trainer, pair, worked, divergence, length):
    """lmbda=0 is supervised distillation.

    The token mean of the divergence on the dataset's answers, EOS included, up to the length limit.
    """
    student, teacher, tok = pair[0].double(), pair[1].double(), pair[2]
    plain, solution = copy.deepcopy(student), dict(zip(worked["prompt"], worked["completion"]))
    off_policy = {"method": "gkd", "lmbda": 0.0, "divergence": divergence, "train_dataset": worked}
    limits = {"max_completion_length": length, "truncated_reward": -1.0}
    trainer = make_trainer(student, teacher, **off_policy, **limits)
    m, g = gradients_of_step(trainer)
    r = trainer.rollout
    assert len(set(r.prompts)) == 16
    assert r.completions == [solution[p] for p in r.prompts]
    costs = []
    for p in r.prompts:
        prompt = tok(p)["input_ids"]
        answer = (tok(solution[p])["input_ids"] + [tok.eos_token_id])[:length]
        ids = torch.tensor([prompt + answer])
        logits = (model(ids).logits[0, len(prompt) - 1 : -1] for model in (plain, teacher))
        costs.append(distance(*(x.log_softmax(-1) for x in logits), divergence))
    loss = torch.cat(costs).mean()
    loss.backward()
    assert m["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert relative(g, torch.cat([p.grad.flatten() for p in plain.parameters()])) < 1e-6
    whole = length == 20
    assert m["accuracy"] == float(whole)
    assert m["truncated_rate"] == float(not whole)
    assert m["reward"] == (1.0 if whole else -1.0)
    assert m["length_mean"] == length


def test_sequence_level_distillation_samples_from_the_teacher(make_trainer):
    "seq_kd: the texts are the teacher's own, one per prompt, at the training temperature."
    trainer = make_trainer(method="gkd", lmbda=0.0, seq_kd=True, temperature=0.7)
    teacher, tok, r = trainer.teacher, trainer.processing_class, trainer.sample()
    how = {"max_completion_length": 20, "temperature": 0.7}
    again = generate(teacher, tok, r.prompts, generator=trainer.generator(0, 0), **how)
    assert len(set(r.prompts)) == 16
    assert r.completions == again.completions
    with torch.no_grad():
        logps = token_logps(completion_logits(teacher, r), r.completion_ids, 0.7)
    same(masked(logps, r.completion_mask), r.sampled_logps, 1e-4)
    assert math.isfinite(trainer.step()["loss"])


def test_the_share_of_off_policy_updates(make_trainer, worked):
    "lmbda is the share of updates on own completions (1 = all), the same ones after a restart."
    sizes = {"per_device_train_batch_size": 4, "max_completion_length": 3}

    def off(lmbda):
        trainer = make_trainer(method="gkd", lmbda=lmbda, train_dataset=worked, **sizes)
        found = []
        for trainer.global_step in range(40):
            found.append(len(set(trainer.sample().prompts)) == 4)
        return found

    assert all(off(0.0))
    assert not any(off(1.0))
    assert 4 <= sum(off(0.75)) <= 17
    assert off(0.75) == off(0.75)


@pytest.mark.parametrize("messages", [False, True], ids=["text", "messages"])
def test_off_policy_chat(make_trainer, pair, worked, tmp_path, messages):
    "A chat dataset, its answers as texts or as messages, must give the update of the plain one."
    tok, seen = pair[2], []
    tok.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"

    def reward(prompts, completions, answer, **kwargs):
        seen.append(completions[0])
        return chain_reward(prompts, completions, answer)

    def say(role, text):
        return [{"role": role, "content": text}]

    answers = worked["completion"]
    columns = {
        "prompt": [say("user", p) for p in worked["prompt"]],
        "answer": worked["answer"],
        "completion": [say("assistant", c) if messages else c for c in answers],
    }
    chat = Dataset.from_dict(columns)
    data = {"train_dataset": chat, "eval_dataset": chat.select(range(4)), "processing_class": tok}
    off_policy, folder = {"method": "gkd", "lmbda": 0.0}, str(tmp_path / "plain")
    bare = make_trainer(train_dataset=worked, output_dir=folder, **off_policy)
    chatting = make_trainer(reward_funcs=reward, **data, **off_policy)
    (a, ga), (b, gb) = gradients_of_step(bare), gradients_of_step(chatting)
    assert torch.equal(ga, gb)
    assert a["accuracy"] == b["accuracy"] == 1.0
    assert seen[-1][0]["role"] == "assistant"


def test_given_completions():
    "Texts as the trajectories that would have written them: EOS, padding, cut at the limit."
    tok = char_tokenizer()
    r = given_rollout(tok, ["1+1=", "12+3="], ["2", ""], dict(answer=["2", "5"]), 3)
    assert r.completion_ids.tolist() == [[5, 1], [1, 0]]
    assert r.completion_mask.tolist() == [[1, 1], [1, 0]]
    assert r.terminated.tolist() == [True, True]
    assert r.columns == {"answer": ["2", "5"]}
    r = given_rollout(tok, ["1+1="] * 2, ["12", "123"], max_completion_length=3)
    assert r.completion_ids.tolist() == [[4, 5, 1], [4, 5, 6]]
    assert r.terminated.tolist() == [True, False]
    assert r.group_ids.tolist() == [0, 1]


def test_a_dataset_column_named_completion_is_not_the_completion(make_trainer, worked):
    "Records must show what the student wrote, whatever the dataset calls its answers."
    _, records = make_trainer(eval_dataset=worked.select(range(8))).evaluate(return_records=True)
    tok = make_trainer().processing_class
    for r in records:
        assert r["completion"] == tok.decode(r["completion_ids"], skip_special_tokens=True)


# ---- other costs, through the whole loop -----------------------------------------------


@torch.no_grad()
def before_tokens(trainer, prompt, ids):
    "Logits of student and teacher before each of the tokens `ids`, without padding, and these."
    both = torch.tensor([[*prompt, *ids]])
    s, t = (m(both).logits[0, len(prompt) - 1 : -1] for m in (trainer.model, trainer.teacher))
    return s, t, torch.tensor(ids)


def recomputed(trainer, rollout):
    "`before_tokens` of each trajectory alone."
    for i, n in enumerate(rollout.lengths.tolist()):
        prompt = rollout.prompt_ids[i][rollout.prompt_mask[i].bool()].tolist()
        yield before_tokens(trainer, prompt, rollout.completion_ids[i, :n].tolist())


def chosen(logits, ids):
    "Log-probabilities of the tokens that were written."
    return logits.log_softmax(-1).gather(-1, ids[:, None])[:, 0]


def kl_of(s, t):
    "Reverse KL per token."
    return (s.softmax(-1) * (s.log_softmax(-1) - t.log_softmax(-1))).sum(-1)


COSTS = {
    "log_ratio": lambda s, t, a: chosen(s, a) - chosen(t, a),
    "surprisal": lambda s, t, a: -chosen(t, a),
    "temperatures": lambda s, t, a: kl_of(s / 2, t / 0.5),
}
TEMPERATURES = {"student_temperature": 2.0, "teacher_temperature": 0.5}


@pytest.mark.parametrize(
    "cost,method,kwargs",
    [
        ("log_ratio", "cmdp", {}),
        ("log_ratio", "soft", dict(complete=True)),
        ("log_ratio", "cmdp", dict(width=0.15)),
        ("surprisal", "hinge", {}),
        ("surprisal", "dual", {}),
        ("surprisal", "weakest-link", {}),
        ("temperatures", "cmdp-rate", {}),
        ("temperatures", "gkd", {}),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_costs_through_the_trainer(make_trainer, cost, method, kwargs):
    "What is spent is the cost asked for; kl_mean is the reverse KL at temperature 1 all the same."
    settings = TEMPERATURES if cost == "temperatures" else {"divergence": cost}
    trainer = make_trainer(method=method, method_kwargs=kwargs, budget=2.0, **settings)
    r = trainer.sample()
    triples = list(recomputed(trainer, r))
    spent = [float(COSTS[cost](*x).sum()) for x in triples]
    kl = [float(kl_of(s, t).sum()) for s, t, _ in triples]
    result, records = trainer.evaluate(return_records=True)
    m, g = gradients_of_step(trainer)
    assert m["spent_mean"] == pytest.approx(sum(spent) / len(r), rel=1e-4, abs=1e-4)
    assert m["kl_mean"] == pytest.approx(sum(kl) / len(r), rel=1e-4)
    assert m["satisfaction_rate"] == pytest.approx(sum(x <= 2.0 for x in spent) / len(r))
    assert g.isfinite().all()
    assert g.norm() > 0
    total = sum(sum(x["cost_per_token"]) for x in records)
    assert result["spent_mean"] == pytest.approx(total / len(records), rel=1e-4)
    assert abs(result["spent_mean"] - result["kl_mean"]) > 0.01
    for x in records[:3]:
        assert x["within_budget"] == (x["spent"] <= 2.0)
        if x["terminated"]:
            again = given_rollout(trainer.processing_class, [x["prompt"]], [x["completion"]])
            assert again.completion_ids[0].tolist() == x["completion_ids"]


def test_evaluation_measures_the_cost_of_the_settings(make_trainer):
    "The numbers of an evaluation are those of the untouched student, recomputed per token."
    log_ratio = {"divergence": "log_ratio", "method": "cmdp"}
    for cost, settings in (("log_ratio", log_ratio), ("temperatures", TEMPERATURES)):
        trainer = make_trainer(**settings)
        for x in trainer.evaluate(return_records=True)[1][:4]:
            prompt = trainer.processing_class(x["prompt"])["input_ids"]
            s, t, ids = before_tokens(trainer, prompt, x["completion_ids"])
            costs = COSTS[cost](s, t, ids).tolist()
            assert x["cost_per_token"] == pytest.approx(costs, abs=1e-4)
            assert x["kl"] == pytest.approx(float(kl_of(s, t).sum()), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("kind", ["log_ratio", "surprisal", "reverse_kl"])
def test_costs_outside_the_mask(kind):
    "Padding may hold anything, also for a sampled token: neither value nor gradient may leak."
    g = torch.Generator().manual_seed(0)
    s, t = (torch.randn(2, 3, 5, generator=g, dtype=torch.float64) for _ in range(2))
    ids = torch.tensor([[0, 1, 2], [3, 4, 0]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    padding = mask[..., None] == 0
    whole = token_cost(s, t, ids, None, Cost(kind))
    bad = s.masked_fill(padding, NAN).requires_grad_()
    cost = token_cost(bad, t.masked_fill(padding, INF), ids, mask, Cost(kind))
    torch.testing.assert_close(cost, masked(whole, mask))
    if kind != "surprisal":
        cost.sum().backward()
        assert bad.grad.isfinite().all()
        assert (bad.grad[mask == 0] == 0).all()


# ---- the command line ------------------------------------------------------------------


OPTIONS = """
    --method gkd --lmbda 0.5 --seq_kd true --scale_rewards batch --divergence jsd
    --budget_quantile 0.8 --distill_steps 2 --budget_start 3 --budget_anneal_steps 5
    --constraint_penalty 2 --student_temperature 2 --teacher_temperature .5
"""


def test_the_command_line_knows_the_new_settings():
    "Each must be given as text and arrive as what it is."
    config = CMDPConfig(**parse_args(OPTIONS.split())[1])
    want = dict(
        method="gkd",
        lmbda=0.5,
        seq_kd=True,
        budget_quantile=0.8,
        distill_steps=2,
        budget_start=3.0,
        budget_anneal_steps=5,
        constraint_penalty=2.0,
        divergence="jsd",
        student_temperature=2.0,
        teacher_temperature=0.5,
        scale_rewards="batch",
    )
    assert {k: getattr(config, k) for k in want} == want
    defaults = parse_args(["--method", "gkd"])[1]
    assert defaults["seq_kd"] is False
    assert defaults["budget_quantile"] is None
