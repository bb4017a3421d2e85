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


# ---- a student that is told its budget ------------------------------------------------------------------------------

PROMPTS = ["3+8*7-2=", "1*2=", "9-9*9*9+1="]


def aware(pair, budget, std=0.05, **cost):
    "A student with a layer that matters, in float64."
    model = BudgetAware(pair[0].double(), pair[1].double(), budget, **cost)
    torch.nn.init.normal_(model.embedding.weight, std=std, generator=torch.Generator().manual_seed(0))
    return model


@torch.no_grad()
def test_the_wrapped_student_begins_as_the_plain_one(pair):
    "Otherwise the control would start from another student than the method it is compared with."
    student, teacher, tok = pair
    plain, wrapped = (generate(m, tok, PROMPTS, num_generations=4, generator=torch.Generator().manual_seed(1)) for m in (student, BudgetAware(student, teacher, Budget(0.8))))
    assert torch.equal(plain.completion_ids, wrapped.completion_ids) and torch.equal(plain.sampled_logps, wrapped.sampled_logps)
    assert torch.equal(completion_logits(BudgetAware(student, teacher, Budget(0.8)), wrapped), completion_logits(student, plain))
    assert plain.remaining is None and wrapped.remaining.min() < 1


TOLD = {"sum": (Budget(0.8), {}), "mean": (Budget(0.3, "mean"), {}), "prefix mean": (Budget(0.3, "prefix_mean"), {}), "burn-in": (Budget(0.3, "prefix_mean", 6), {}), "long burn-in": (Budget(0.05, "prefix_mean", 40), {}),
        "limit 0": (Budget(0.0), {}), "no limit": (Budget(INF), {}), "forward KL": (Budget(0.8), dict(kind="forward_kl")), "log-ratio": (Budget(4.0), dict(kind="log_ratio")), "surprisal": (Budget(3.0), dict(kind="surprisal")),
        "temperatures": (Budget(20.0), dict(student_temperature=2.0, teacher_temperature=0.5)), "floor": (Budget(0.8), dict(floor=0.1)), "jsd": (Budget(0.1), dict(kind="jsd", beta=0.3))}


@torch.no_grad()
@pytest.mark.parametrize("name", TOLD)
def test_what_is_told_while_sampling_is_what_is_scored(pair, name):
    "If the student is told another budget in the update than while writing, the gradient belongs to another policy."
    budget, cost = TOLD[name]
    model = aware(pair, budget, **cost)
    r = generate(model, pair[2], PROMPTS, num_generations=4, generator=torch.Generator().manual_seed(0))
    logits = completion_logits(model, r)
    torch.testing.assert_close(masked(token_logps(logits, r.completion_ids), r.completion_mask), r.sampled_logps, rtol=0, atol=1e-6)
    spent = token_cost(logits, completion_logits(pair[1], r), r.completion_ids, cost.get("kind", "reverse_kl"), r.completion_mask, **{k: v for k, v in cost.items() if k != "kind"})
    torch.testing.assert_close(masked(r.remaining.double(), r.completion_mask), masked(budget_share(budget, spent, r.completion_mask)[:, :-1], r.completion_mask), rtol=0, atol=1e-5)
    assert r.remaining.abs().max() <= 1 and (r.remaining[:, 0] == 1).all()
    if name not in ("no limit", "long burn-in"): assert r.remaining.unique().numel() > 3 or name == "limit 0"


@pytest.mark.parametrize("cost", [{}, dict(divergence="forward_kl", teacher_temperature=2.0)], ids=["default", "another cost"])
@pytest.mark.parametrize("column", [False, True], ids=["one budget", "per-prompt"])
def test_the_trainer_tells_the_budget_it_judges_by(make_trainer, prompts, column, cost):
    "Cost, annealed limit and per-prompt limits of the update must be those the student was told about."
    data = prompts.add_column("budget", [0.2 + 0.1 * (i % 5) for i in range(len(prompts))]) if column else prompts
    trainer = make_trainer(method="saute-augmented", train_dataset=data, budget_start=3.0, budget_anneal_steps=4, max_steps=4, temperature=0.9, **cost)
    torch.nn.init.normal_(trainer.model.embedding.weight, std=0.02)
    for _ in range(2):
        r = trainer._sample()
        logp, _, spent, _ = trainer._measure(r)
        torch.testing.assert_close(masked(logp, r.completion_mask), r.sampled_logps, rtol=0, atol=1e-4)
        torch.testing.assert_close(masked(r.remaining, r.completion_mask), masked(budget_share(trainer._budget(r), spent, r.completion_mask)[:, :-1], r.completion_mask), rtol=0, atol=1e-4)
        trainer.step()


def test_the_layer_learns(make_trainer):
    "A student that ignores what it is told would be the plain method under another name."
    trainer = make_trainer(method="saute-augmented")
    assert trainer.model.embedding.weight.abs().max() == 0
    _, g = gradients_of_step(trainer)
    assert trainer.model.embedding.weight.abs().min() > 0 and torch.isfinite(g).all()


@pytest.mark.parametrize("config", [dict(per_device_train_batch_size=4, gradient_accumulation_steps=4), dict(gradient_checkpointing=True)], ids=["split", "checkpointing"])
def test_memory_options_of_a_told_student(make_trainer, tmp_path, config):
    "What is told must be split with the rows it belongs to."
    runs = [make_trainer(method="saute-augmented", budget=0.3, output_dir=str(tmp_path / str(i)), **c) for i, c in enumerate(({}, config))]
    for t in runs: torch.nn.init.normal_(t.model.embedding.weight, std=0.3, generator=torch.Generator().manual_seed(0))
    (a, ga), (b, gb) = map(gradients_of_step, runs)
    assert relative(gb, ga) < 1e-4 and b["loss"] == pytest.approx(a["loss"], rel=1e-4)


def test_saving_and_loading_a_told_student(make_trainer, tmp_path):
    "The folder must load with Auto classes, and together with its layer give the policy that was trained."
    trainer = make_trainer(method="saute-augmented", learning_rate=1e-2)
    trainer.train(); trainer.save_model(tmp_path / "s")
    r = trainer.rollout
    base, tok = AutoModelForCausalLM.from_pretrained(tmp_path / "s"), AutoTokenizer.from_pretrained(tmp_path / "s")
    assert tok("3+8=")["input_ids"] == trainer.processing_class("3+8=")["input_ids"]
    again = BudgetAware.load(tmp_path / "s", base, trainer.teacher, trainer.budget).eval()
    with torch.no_grad():
        torch.testing.assert_close(completion_logits(again, r), completion_logits(trainer.model, r))
        torch.testing.assert_close(completion_logits(base, r), completion_logits(trainer.model.base, r))
        assert not torch.allclose(completion_logits(base, r), completion_logits(again, r))
    assert not any("teacher" in k or "told" in k for k in trainer.model.state_dict())  # the teacher is not saved with it


def test_a_told_student_from_the_command_line(tmp_path, held_out, pair):
    "What `cmdp-distill --method saute-augmented` leaves behind must load, and give the summary's numbers again."
    out = tmp_path / "run"
    assert main(["--method", "saute-augmented", "--output_dir", str(out), "--max_steps", "2", "--n_eval", "24", "--per_device_train_batch_size", "16", "--learning_rate", "0.01", "--device", "cpu", "--disable_tqdm"]) == 0
    base, tok = AutoModelForCausalLM.from_pretrained(out / "student"), AutoTokenizer.from_pretrained(out / "student")
    assert {p.name for p in (out / "student").iterdir()} >= {"model.safetensors", "config.json", "tokenizer.json", "budget_embedding.safetensors"}
    summary, ids = json.loads((out / "summary.json").read_text()), tok("3+8=", return_tensors="pt")["input_ids"]
    assert base.generate(ids, max_new_tokens=4, do_sample=False).shape[1] > ids.shape[1]
    from cmdp_nbdev.trainer import fold_seed
    student = BudgetAware.load(out / "student", base, pair[1], Budget(0.8)).eval()
    result = evaluate(student, pair[1], chain_dataset(24, "test"), tok, chain_reward, Budget(0.8), seed=fold_seed(0, 0, 2), vocab_size=19)
    for k in ("accuracy", "satisfaction_rate", "kl_mean", "spent_mean", "length_mean"): assert summary[k] == pytest.approx(result[k], rel=1e-5), k
