"Every method against a loop written from its paper, and what the trainer makes of methods, costs and budgets."

import copy
import json
import math
from collections import deque

import numpy as np
import pytest
import torch
from conftest import flat, gradients_of_step, read_lines, relative
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from cmdp_nbdev.budget import Budget
from cmdp_nbdev.cli import main, parse_args
from cmdp_nbdev.cost import Cost, token_cost, token_logps
from cmdp_nbdev.evaluate import evaluate
from cmdp_nbdev.mdp import Rollout, masked
from cmdp_nbdev.methods import METHODS, method_settings, register_method
from cmdp_nbdev.model import char_tokenizer
from cmdp_nbdev.objective import STD_OFFSET, Batch, Signal, group_advantage, signal_loss
from cmdp_nbdev.reward import call_cost, constrained_reward, length_cost
from cmdp_nbdev.rollout import completion_logits, generate, given_rollout
from cmdp_nbdev.run import fold_seed
from cmdp_nbdev.task import chain_dataset, chain_frontier, chain_reward, write_chain
from cmdp_nbdev.theory.told import BudgetAware, budget_share
from cmdp_nbdev.trainer import CMDPConfig

NAN, INF = float("nan"), float("inf")

# ---- signals against loops ------------------------------------------------------------------------------------------


def batch(seed, groups=3, size=4, T=5):
    "Random trajectories in float64 with NaN in the padding."
    g = torch.Generator().manual_seed(seed)
    B = groups * size
    mask = (torch.arange(T) < torch.randint(1, T + 1, (B, 1), generator=g)).long()

    def table():
        return torch.rand(B, T, generator=g, dtype=torch.float64).masked_fill(mask == 0, NAN)

    return Batch(
        torch.randint(0, 3, (B,), generator=g).double(),
        torch.arange(B) // size,
        mask,
        -table(),
        -table(),
        {"divergence": table()},
    )


def spend(costs, aggregate, burn_in):
    "What one trajectory spends, and how much of a nat of each token counts, by the definitions of nbs/02_budget."
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
        scale = {"group": std(own) + STD_OFFSET * std(values), "batch": std(values), "none": 1.0}[
            kind
        ] or 1.0
        advantages.append((v - sum(own) / len(own)) / scale)
        scales.append(scale)
    return advantages, scales


class OmnisafePID:
    "omnisafe/common/pid_lagrange.py, with the first error as the start of the averages and the first multiplier as the start of the integral."

    def __init__(self, kp, ki, kd, ema, delay, init, top):
        self.kp, self.ki, self.kd, self.ema, self.i, self.top, self.p, self.ds = (
            kp,
            ki,
            kd,
            ema,
            init,
            top,
            None,
            deque(maxlen=delay),
        )

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

    def cut(x):
        return [row[:n] for row, n in zip(x.tolist(), lengths)]

    cost, logp, teacher = cut(b.cost), cut(b.logp), cut(b.teacher_logp)
    D, weights = zip(*(spend(c, budget.aggregate, budget.burn_in) for c in cost))
    limits = (
        budget.limit.tolist() if isinstance(budget.limit, torch.Tensor) else [budget.limit] * len(R)
    )
    over = [x > d for x, d in zip(D, limits)]
    rows = range(len(R))

    def whole(a):
        return [[a[i]] * lengths[i] for i in rows]

    zero = [[0.0] * n for n in lengths]
    if name == "minillm":  # R_{t+1}, the log-ratios that follow, over their number
        after = [
            [
                sum(logp[i][k] - teacher[i][k] for k in range(t + 1, lengths[i]))
                / (max(lengths[i] - t - 1, 1) if s["length_normalization"] else 1)
                for t in range(lengths[i])
            ]
            for i in rows
        ]
        return [[-x for x in row] for row in after], [[1.0] * n for n in lengths]
    if name == "kdrl":  # the gradient of lam * (log mu/pi)^2 / 2 is lam * log(pi/mu) * grad log pi
        A, _ = normalise(R, groups, kind)
        return [
            [A[i] - s["lam"] * (logp[i][t] - teacher[i][t]) for t in range(lengths[i])]
            for i in rows
        ], zero
    if (
        name == "weakest-link"
    ):  # an absorbing state: from the first bad prefix on every step earns -n, and the answer earns nothing
        returns = []
        for i in rows:
            absorbed, steps = False, []
            for t in range(lengths[i]):
                prefix = sum(-x for x in teacher[i][: t + 1]) / (t + 1)
                absorbed = absorbed or (
                    prefix > s["limit"] and (t + 1 > s["burn_in"] or t + 1 == lengths[i])
                )
                steps.append(-s["penalty"] if absorbed else R[i] if t + 1 == lengths[i] else 0.0)
            returns.append([sum(steps[t:]) for t in range(lengths[i])])
        first = [g[0] for g in returns]
        A, scales = normalise(first, groups, kind)
        return [[A[i] + (g - first[i]) / scales[i] for g in returns[i]] for i in rows], zero
    if name in ("dual", "pid"):  # step on (A_R - lam*A_D)/(1 + lam)
        mean, limit = sum(D) / len(D), sum(limits) / len(limits)
        if name == "dual":
            lam = memory["lam"] = min(
                max(memory.get("lam", s["init"]) + s["lr"] * (mean - limit), 0.0), s["max_lam"]
            )
        else:
            lam = memory.setdefault(
                "pid",
                OmnisafePID(
                    s["kp"], s["ki"], s["kd"], s["ema"], s["delay"], s["init"], s["max_lam"]
                ),
            ).update(mean, limit)
        A, AD = normalise(R, groups, kind)[0], normalise(D, groups, "none")[0]
        return whole([(A[i] - lam * AD[i] * s["complete"]) / (1 + lam) for i in rows]), [
            [lam / (1 + lam) * w for w in weights[i]] for i in rows
        ]
    if name == "hinge":
        modified, price = (
            [r - s["coef"] * max(x - d, 0.0) for r, x, d in zip(R, D, limits)],
            s["coef"],
        )
    elif name == "saute":
        modified, price = [-s["penalty"] if o else r for r, o in zip(R, over)], 0.0
    elif name in ("cmdp", "saute-augmented"):
        modified, price = (
            [-(s["penalty"] + s["coef"] * x) if o else r for r, x, o in zip(R, D, over)],
            s["coef"],
        )
    elif name == "chance-dual":
        price = memory["lam"] = min(
            max(
                memory.get("lam", s["init"])
                + s["lr"] * (sum(over) / len(over) - (1 - s["target"])),
                0.0,
            ),
            s["max_lam"],
        )
        modified = [r - price * o for r, o in zip(R, over)]
    A, scales = normalise(modified, groups, kind)
    return whole(A), [[price * over[i] / scales[i] * w for w in weights[i]] for i in rows]


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
    "A baseline that is not the published method makes every comparison with it worthless; five batches in a row, so that a moving multiplier moves."
    state, memory = {}, {}
    given_settings = settings | ({} if name == "minillm" else {"scale_rewards": kind})
    s = method_settings(name) | settings
    for seed in range(5):
        b = batch(seed)
        signal = METHODS[name](b, budget, state, **given_settings)
        advantage = (
            signal.advantage
            if signal.advantage.dim() == 2
            else signal.advantage[:, None].expand(b.mask.shape)
        )
        A, M = loop(name, b, budget, kind, memory, s)
        for i, n in enumerate(b.mask.sum(-1).tolist()):
            assert advantage[i, :n].tolist() == pytest.approx(A[i], rel=1e-9, abs=1e-12)
            assert signal.multiplier[i, :n].tolist() == pytest.approx(M[i], rel=1e-9, abs=1e-12)
    if "lam" in signal.metrics:
        assert signal.metrics["lam"] != s.get("init")  # it moved


def test_kdrl_is_the_k2_estimator_as_a_loss():
    "As a reward the k2 estimator has another gradient; KDRL's is that of GRPO plus lam * mean of (log ratio)^2 / 2."
    b = batch(1)
    logp = b.logp.nan_to_num().requires_grad_()
    signal = METHODS["kdrl"](b, Budget(1.0), {}, lam=0.7)
    (ours,) = torch.autograd.grad(
        signal_loss(signal, logp, {"divergence": b.cost.nan_to_num()}, b.mask), logp
    )
    objective = (
        group_advantage(b.rewards, b.group_ids)[:, None] * logp
        - 0.7 * (logp - b.teacher_logp.nan_to_num()).square() / 2
    )
    (theirs,) = torch.autograd.grad(-masked(objective, b.mask).sum() / b.mask.sum(), logp)
    torch.testing.assert_close(ours, theirs)


# ---- a student that is told its budget ------------------------------------------------------------------------------

PROMPTS = ["3+8*7-2=", "1*2=", "9-9*9*9+1="]


def aware(pair, budget, std=0.05, **cost):
    "A student with a layer that matters, in float64."
    model = BudgetAware(pair[0].double(), pair[1].double(), budget, cost=Cost(**cost))
    torch.nn.init.normal_(
        model.embedding.weight, std=std, generator=torch.Generator().manual_seed(0)
    )
    return model


@torch.no_grad()
def test_the_wrapped_student_begins_as_the_plain_one(pair):
    "Otherwise the control would start from another student than the method it is compared with."
    student, teacher, tok = pair
    plain, wrapped = (
        generate(m, tok, PROMPTS, num_generations=4, generator=torch.Generator().manual_seed(1))
        for m in (student, BudgetAware(student, teacher, Budget(0.8)))
    )
    assert torch.equal(plain.completion_ids, wrapped.completion_ids) and torch.equal(
        plain.sampled_logps, wrapped.sampled_logps
    )
    assert torch.equal(
        completion_logits(BudgetAware(student, teacher, Budget(0.8)), wrapped),
        completion_logits(student, plain),
    )
    assert plain.remaining is None and wrapped.remaining.min() < 1


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
    "If the student is told another budget in the update than while writing, the gradient belongs to another policy."
    budget, cost = TOLD[name]
    model = aware(pair, budget, **cost)
    r = generate(
        model, pair[2], PROMPTS, num_generations=4, generator=torch.Generator().manual_seed(0)
    )
    logits = completion_logits(model, r)
    torch.testing.assert_close(
        masked(token_logps(logits, r.completion_ids), r.completion_mask),
        r.sampled_logps,
        rtol=0,
        atol=1e-6,
    )
    spent = token_cost(
        logits,
        completion_logits(pair[1], r),
        r.completion_ids,
        r.completion_mask,
        Cost(**cost),
    )
    torch.testing.assert_close(
        masked(r.remaining.double(), r.completion_mask),
        masked(budget_share(budget, spent, r.completion_mask)[:, :-1], r.completion_mask),
        rtol=0,
        atol=1e-5,
    )
    assert r.remaining.abs().max() <= 1 and (r.remaining[:, 0] == 1).all()
    if name not in ("no limit", "long burn-in"):
        assert r.remaining.unique().numel() > 3 or name == "limit 0"


@pytest.mark.parametrize(
    "cost",
    [{}, dict(divergence="forward_kl", teacher_temperature=2.0)],
    ids=["default", "another cost"],
)
@pytest.mark.parametrize("column", [False, True], ids=["one budget", "per-prompt"])
def test_the_trainer_tells_the_budget_it_judges_by(make_trainer, prompts, column, cost):
    "Cost, annealed limit and per-prompt limits of the update must be those the student was told about."
    data = (
        prompts.add_column("budget", [0.2 + 0.1 * (i % 5) for i in range(len(prompts))])
        if column
        else prompts
    )
    trainer = make_trainer(
        method="saute-augmented",
        train_dataset=data,
        budget_start=3.0,
        budget_anneal_steps=4,
        max_steps=4,
        temperature=0.9,
        **cost,
    )
    torch.nn.init.normal_(trainer.model.embedding.weight, std=0.02)
    for _ in range(2):
        r = trainer.sample()
        score = trainer.score(r)
        logp, spent = score.logp, score.costs
        torch.testing.assert_close(
            masked(logp, r.completion_mask), r.sampled_logps, rtol=0, atol=1e-4
        )
        torch.testing.assert_close(
            masked(r.remaining, r.completion_mask),
            masked(
                budget_share(trainer.limit(r), spent["divergence"], r.completion_mask)[:, :-1],
                r.completion_mask,
            ),
            rtol=0,
            atol=1e-4,
        )
        trainer.step()


def test_the_layer_learns(make_trainer):
    "A student that ignores what it is told would be the plain method under another name."
    trainer = make_trainer(method="saute-augmented")
    assert trainer.model.embedding.weight.abs().max() == 0
    _, g = gradients_of_step(trainer)
    assert trainer.model.embedding.weight.abs().min() > 0 and torch.isfinite(g).all()


@pytest.mark.parametrize(
    "config",
    [
        dict(per_device_train_batch_size=4, gradient_accumulation_steps=4),
        dict(gradient_checkpointing=True),
    ],
    ids=["split", "checkpointing"],
)
def test_memory_options_of_a_told_student(make_trainer, tmp_path, config):
    "What is told must be split with the rows it belongs to."
    runs = [
        make_trainer(method="saute-augmented", budget=0.3, output_dir=str(tmp_path / str(i)), **c)
        for i, c in enumerate(({}, config))
    ]
    for t in runs:
        torch.nn.init.normal_(
            t.model.embedding.weight, std=0.3, generator=torch.Generator().manual_seed(0)
        )
    (a, ga), (b, gb) = map(gradients_of_step, runs)
    assert relative(gb, ga) < 1e-4 and b["loss"] == pytest.approx(a["loss"], rel=1e-4)


def test_a_told_student_in_half_precision(make_trainer):
    "Mixed precision is how larger students train; the layer must not break it."
    trainer = make_trainer(method="saute-augmented", bf16=True)
    assert (
        all(math.isfinite(trainer.step()["loss"]) for _ in range(2))
        and flat(trainer.model).isfinite().all()
    )


def test_saving_and_loading_a_told_student(make_trainer, tmp_path):
    "The folder must load with Auto classes, and together with its layer give the policy that was trained."
    trainer = make_trainer(method="saute-augmented", learning_rate=1e-2)
    trainer.train()
    trainer.save_model(tmp_path / "s")
    r = trainer.rollout
    base, tok = (
        AutoModelForCausalLM.from_pretrained(tmp_path / "s"),
        AutoTokenizer.from_pretrained(tmp_path / "s"),
    )
    assert tok("3+8=")["input_ids"] == trainer.processing_class("3+8=")["input_ids"]
    again = BudgetAware.load(tmp_path / "s", base, trainer.teacher, trainer.budget).eval()
    with torch.no_grad():
        torch.testing.assert_close(completion_logits(again, r), completion_logits(trainer.model, r))
        torch.testing.assert_close(
            completion_logits(base, r), completion_logits(trainer.model.base, r)
        )
        assert not torch.allclose(completion_logits(base, r), completion_logits(again, r))
    assert not any(
        "teacher" in k or "told" in k for k in trainer.model.state_dict()
    )  # the teacher is not saved with it
    going_on = make_trainer(
        str(tmp_path / "s"), method="saute-augmented", output_dir=str(tmp_path / "further")
    )
    assert torch.equal(
        flat(going_on.model), flat(trainer.model)
    )  # trained further, it keeps its layer


def test_a_told_student_from_the_command_line(tmp_path, held_out, pair):
    "What `cmdp-distill --method saute-augmented` leaves behind must load, and give the summary's numbers again."
    out = tmp_path / "run"
    assert (
        main(
            [
                "--method",
                "saute-augmented",
                "--output_dir",
                str(out),
                "--max_steps",
                "2",
                "--n_eval",
                "24",
                "--per_device_train_batch_size",
                "16",
                "--learning_rate",
                "0.01",
                "--device",
                "cpu",
                "--disable_tqdm",
            ]
        )
        == 0
    )
    base, tok = (
        AutoModelForCausalLM.from_pretrained(out / "student"),
        AutoTokenizer.from_pretrained(out / "student"),
    )
    assert {p.name for p in (out / "student").iterdir()} >= {
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "budget_embedding.safetensors",
    }
    summary, ids = (
        json.loads((out / "summary.json").read_text()),
        tok("3+8=", return_tensors="pt")["input_ids"],
    )
    assert base.generate(ids, max_new_tokens=4, do_sample=False).shape[1] > ids.shape[1]
    student = BudgetAware.load(out / "student", base, pair[1], Budget(0.8)).eval()
    result = evaluate(
        student,
        pair[1],
        chain_dataset(24, "test"),
        tok,
        chain_reward,
        Budget(0.8),
        seed=fold_seed(0, 0, 2),
        vocab_size=19,
    )
    for k in ("accuracy", "satisfaction_rate", "kl_mean", "spent_mean", "length_mean"):
        assert summary[k] == pytest.approx(result[k], rel=1e-5), k


# ---- a killed run goes on as if nothing had happened ------------------------------------------------------------------


def without_time(lines):
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
    "A multiplier, a chosen budget or a ramp that starts anew after a power cut silently trains something else."

    class Killed(Exception):
        pass

    def kill(trainer, metrics):
        if metrics["step"] == 3:
            raise Killed

    config = {
        **RESUMED[name],
        "max_steps": 4,
        "save_steps": 2,
        "per_device_train_batch_size": 8,
        "max_completion_length": 14,
    }
    whole = make_trainer(**config, output_dir=str(tmp_path / "whole"))
    whole.train()
    with pytest.raises(Killed):
        make_trainer(**config, callbacks=[kill]).train()
    again = make_trainer(**config, resume_from_checkpoint="auto")
    again.train()
    assert (
        torch.equal(flat(again.model), flat(whole.model))
        and again.method_state == whole.method_state
        and again.budget == whole.budget
    )
    assert without_time(read_lines(again.output_dir / "metrics.jsonl")) == without_time(
        read_lines(whole.output_dir / "metrics.jsonl")
    )
    if "method_kwargs" in config:
        assert (
            len({m["lam"] for m in read_lines(whole.output_dir / "metrics.jsonl")}) > 2
        )  # something was there to lose


def test_a_chosen_budget_may_not_change_with_the_evaluation(make_trainer, tmp_path):
    "With budget_quantile the evaluation decides the budget: other evaluation settings after a restart are another run."
    config = dict(method="cmdp", distill_steps=1, budget_quantile=0.5, save_steps=1)
    make_trainer(**config).step()
    with pytest.raises(ValueError, match="eval_temperature was 1.0, now 0.0"):
        make_trainer(**config, eval_temperature=0.0, resume_from_checkpoint="auto").train()
    make_trainer(**{**config, "budget_quantile": None}, output_dir=str(tmp_path / "b")).step()
    make_trainer(
        **{**config, "budget_quantile": None},
        output_dir=str(tmp_path / "b"),
        eval_temperature=0.0,
        resume_from_checkpoint="auto",
    ).train()


# ---- budgets that move, and budgets per prompt ------------------------------------------------------------------------


def test_budget_quantile_is_the_quantile_of_the_distilled_student(make_trainer):
    "The limit must be read off the student as it is when distillation ends, kept from then on, and be written down."
    trainer = make_trainer(method="cmdp", distill_steps=2, budget_quantile=0.4, max_steps=4)
    before = [trainer.step(), trainer.step()]
    spent = sorted(r["spent"] for r in trainer.evaluate(return_records=True)[1])
    after = [trainer.step(), trainer.step()]
    assert (
        trainer.budget.limit == pytest.approx(np.quantile(spent, 0.4))
        and trainer.args.budget == 0.8
    )
    assert [m["budget"] for m in before + after] == pytest.approx(
        [0.8, 0.8, trainer.budget.limit, trainer.budget.limit]
    )
    result, records = trainer.evaluate(return_records=True)
    assert result["satisfaction_rate"] == sum(
        r["spent"] <= trainer.budget.limit for r in records
    ) / len(records)


def test_a_chosen_budget_reaches_the_summary(tmp_path):
    "A summary that names the budget of the settings beside the satisfaction of another one is wrong, and so is its optimum."
    out = tmp_path / "run"
    assert (
        main(
            [
                "--method",
                "cmdp",
                "--distill_steps",
                "1",
                "--budget_quantile",
                "0.3",
                "--output_dir",
                str(out),
                "--max_steps",
                "2",
                "--n_eval",
                "24",
                "--per_device_train_batch_size",
                "16",
                "--device",
                "cpu",
                "--disable_tqdm",
            ]
        )
        == 0
    )
    summary, records = (
        json.loads((out / "summary.json").read_text()),
        read_lines(out / "eval.jsonl"),
    )
    assert summary["budget"] == read_lines(out / "metrics.jsonl")[-1]["budget"] != 0.8
    assert (
        summary["satisfaction_rate"] == sum(r["spent"] <= summary["budget"] for r in records) / 24
    )
    assert summary["optimal_accuracy"] == pytest.approx(
        chain_frontier(chain_dataset(24, "test")["prompt"][:], [summary["budget"]])[0]
    )


def test_annealing_moves_the_limit_in_a_straight_line(make_trainer):
    "From budget_start to the budget over the stated updates, then constant; evaluation always uses the budget itself."
    trainer = make_trainer(
        method="cmdp",
        budget=0.4,
        budget_start=5.0,
        budget_anneal_steps=2,
        max_steps=4,
        distill_steps=1,
        per_device_train_batch_size=8,
    )
    assert [trainer.step()["budget"] for _ in range(4)] == pytest.approx(
        [2.0, 2.0, 1.2, 0.4]
    )  # it moves while it is used, not while distilling
    result, records = trainer.evaluate(return_records=True)
    assert result["satisfaction_rate"] == sum(r["spent"] <= 0.4 for r in records) / len(records)


@given(
    st.integers(0, 10_000),
    st.sampled_from([("sum", 0), ("mean", 0), ("prefix_mean", 0), ("prefix_mean", 2)]),
)
def test_a_budget_per_trajectory_is_that_many_budgets(seed, kind):
    "A tensor of limits must do to every row what a number does to it alone."
    b = batch(seed)
    limits = torch.rand(
        len(b.mask), generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    many = Budget(limits, *kind)
    for i, d in enumerate(limits.tolist()):
        one, row = Budget(d, *kind), slice(i, i + 1)
        for f in ("remaining", "spent", "violated", "running"):
            torch.testing.assert_close(
                getattr(many, f)(b.cost, b.mask)[row], getattr(one, f)(b.cost[row], b.mask[row])
            )
        torch.testing.assert_close(
            many.scaled(0.5).remaining(b.cost, b.mask)[row],
            one.scaled(0.5).remaining(b.cost[row], b.mask[row]),
        )
    assert many.violated(b.cost, b.mask).tolist() == (many.spent(b.cost, b.mask) > limits).tolist()


@pytest.mark.parametrize(
    "method", ["cmdp-rate", "cmdp", "hinge", "dual", "chance-dual", "saute-augmented"]
)
def test_equal_budgets_per_prompt_are_the_one_budget(make_trainer, prompts, tmp_path, method):
    "Writing the same number into every row must not change the run."
    runs = [
        make_trainer(
            method=method,
            budget=budget,
            train_dataset=data,
            eval_dataset=data.select(range(8)),
            output_dir=str(tmp_path / str(budget)),
        )
        for data, budget in (
            (prompts, 0.5),
            (prompts.add_column("budget", [0.5] * len(prompts)), 7.0),
        )
    ]
    (a, ga), (b, gb) = map(gradients_of_step, runs)
    assert torch.equal(ga, gb) and without_time([a]) == without_time([b])
    assert runs[0].evaluate() == runs[1].evaluate()


def test_every_prompt_is_judged_by_its_own_budget(make_trainer, prompts):
    "In training and in evaluation; a budget nobody keeps beside one that everybody keeps shows a mix-up of rows."
    limits = {p: 0.0 if i % 3 else 1e6 for i, p in enumerate(prompts["prompt"])}
    data = prompts.add_column("budget", [limits[p] for p in prompts["prompt"]])
    trainer = make_trainer(
        method="cmdp",
        train_dataset=data,
        eval_dataset=data.select(range(20)),
        per_device_train_batch_size=8,
        gradient_accumulation_steps=3,
        eval_num_generations=2,
    )
    m = trainer.step()
    assert (
        m["satisfaction_rate"]
        == pytest.approx(sum(limits[p] > 0 for p in trainer.rollout.prompts) / 24)
        and 0 < m["satisfaction_rate"] < 1
    )
    result, records = trainer.evaluate(return_records=True)
    assert len(records) == 40 and all(
        r["within_budget"] == (limits[r["prompt"]] > 0) == (r["budget"] > 0) for r in records
    )
    assert result["satisfaction_rate"] == pytest.approx(7 / 20)


# ---- further budgets --------------------------------------------------------------------------------------------------


def rollout(lengths=(2, 1, 3), **columns):
    "Completions of these many tokens."
    T, B = max(lengths), len(lengths)
    mask = (torch.arange(T) < torch.tensor(lengths)[:, None]).long()
    ids = torch.arange(B * T).reshape(B, T) % 7 + 3
    return Rollout(
        ids,
        torch.ones_like(ids),
        ids,
        mask,
        torch.ones(B, dtype=torch.bool),
        prompts=["p"] * B,
        completions=["c"] * B,
        columns=columns,
    )


def test_costs_per_token_and_per_sequence():
    "A number is charged once, at the end; a list token by token, whatever kind of sequence it is; padding costs nothing."
    whole = [[0, 2.5, 0], [1, 0, 0], [0, 0, True]]
    for kind in (
        lambda completions: [2.5, 1, True],
        lambda completions: torch.tensor([2.5, 1, 1]),
        lambda completions: np.array([2.5, 1, 1]),
        lambda completions: [np.float32(2.5), torch.tensor(1), np.array(1)],
    ):
        assert call_cost(kind, rollout()).tolist() == whole
    for kind in (
        lambda completion_ids: [[float(i) for i in ids] for ids in completion_ids],
        lambda completion_ids: [torch.tensor(ids) for ids in completion_ids],
        lambda completion_ids: [np.array(ids) for ids in completion_ids],
    ):
        assert torch.equal(
            call_cost(kind, rollout()),
            masked(rollout().completion_ids.float(), rollout().completion_mask),
        )
    assert call_cost(length_cost, rollout()).sum(-1).tolist() == [2, 1, 3]
    assert call_cost(lambda level, **kwargs: level, rollout(level=[1, 2, 3])).sum(-1).tolist() == [
        1,
        2,
        3,
    ]


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


@given(
    st.lists(st.tuples(st.floats(-1, 3), st.floats(0, 4), st.floats(0, 4)), min_size=1, max_size=6),
    st.floats(0, 2),
    st.floats(0, 3),
    st.floats(0, 2),
)
def test_constrained_reward_against_a_loop(rows, first, second, n):
    "R where every budget is kept, else -(n + the sum of relative excesses); a limit of 0 counts the excess itself."
    R, a, b = (torch.tensor(x, dtype=torch.float64) for x in zip(*rows))
    limits = {"a": first, "b": torch.full((len(rows),), second, dtype=torch.float64)}
    got = constrained_reward(R, {"a": a, "b": b}, limits, n)
    for (r, x, y), v in zip(rows, got.tolist()):
        excess = sum(max(s - d, 0.0) / (d if d > 0 else 1.0) for s, d in ((x, first), (y, second)))
        assert v == pytest.approx(-(n + excess) if excess > 0 else r)
    assert torch.equal(constrained_reward(R, {}, {}), R) and torch.equal(
        constrained_reward(R, {"a": a}, {"a": INF}), R
    )


def stars(completions, **kwargs):
    return [c.count("*") for c in completions]


def semicolons(completion_ids, **kwargs):
    return [[float(i == 17) for i in ids] for ids in completion_ids]


def test_several_budgets_at_once(make_trainer):
    "Each further budget is measured, reported and kept under its own name; the task's own numbers stay the task's."
    constraints = {
        "length": (length_cost, Budget(16)),
        "stars": (stars, Budget(0)),
        "semicolons": (semicolons, Budget(0.2, "prefix_mean", 3)),
    }
    trainer, seen = (
        make_trainer(
            method="grpo",
            constraints=constraints,
            constraint_penalty=2.0,
            per_device_train_batch_size=32,
        ),
        [],
    )
    answer = trainer.signal
    trainer.signal = lambda batch, limit: seen.append(batch) or answer(batch, limit)
    m, r = trainer.step(), trainer.rollout
    b, spent = (
        seen[0],
        {
            "length": r.lengths.float(),
            "stars": torch.tensor([float(c.count("*")) for c in r.completions]),
        },
    )
    assert set(b.costs) == {"divergence", *constraints} and all(
        c.shape == b.mask.shape for c in b.costs.values()
    )
    spent["semicolons"] = torch.tensor(
        [
            spend([float(i == 17) for i in row[:n]], "prefix_mean", 3)[0]
            for row, n in zip(r.completion_ids.tolist(), r.lengths.tolist())
        ]
    )
    kept = {k: spent[k] <= constraints[k][1].limit + 1e-7 for k in spent}
    for k in constraints:
        assert m[f"spent_mean_{k}"] == pytest.approx(float(spent[k].mean())) and m[
            f"satisfaction_rate_{k}"
        ] == pytest.approx(float(kept[k].float().mean()))
    raw = torch.tensor(chain_reward(r.prompts, r.completions, r.columns["answer"])) * r.terminated
    excess = (
        (spent["length"] - 16).clamp(min=0) / 16
        + spent["stars"]
        + (spent["semicolons"] - 0.2).clamp(min=0) / 0.2
    )
    torch.testing.assert_close(
        b.rewards,
        torch.where(kept["length"] & kept["stars"] & kept["semicolons"], raw, -(2.0 + excess)),
    )
    assert m["reward"] == pytest.approx(float(raw.mean())) and m["accuracy"] == pytest.approx(
        float(raw.mean())
    )  # not the modified one
    assert 0 < m["satisfaction_rate_stars"] < 1


def test_evaluation_of_further_budgets(make_trainer, prompts):
    "The names in the results are what scripts read; limits of a dataset column `budget_<name>` count there, too."
    data = prompts.select(range(16)).add_column("budget_stars", [float(i % 2) for i in range(16)])
    constraints = {"length": (length_cost, Budget(16)), "stars": (stars, Budget(99))}
    trainer = make_trainer(constraints=constraints, train_dataset=data, eval_dataset=data)
    result, records = trainer.evaluate(return_records=True)
    for r in records:
        assert r["spent_length"] == len(r["completion_ids"]) and bool(
            r["within_budget_length"]
        ) == (len(r["completion_ids"]) <= 16)
        assert r["spent_stars"] == r["completion"].count("*") and bool(
            r["within_budget_stars"]
        ) == (r["spent_stars"] <= r["budget_stars"])

    def share(f):
        return sum(map(f, records)) / 16

    assert result["satisfaction_rate_stars"] == share(
        lambda r: r["within_budget_stars"]
    ) and result["spent_mean_length"] == share(lambda r: r["spent_length"])
    assert result["satisfaction_rate_all"] == share(
        lambda r: r["within_budget"] and r["within_budget_length"] and r["within_budget_stars"]
    )
    assert (
        result["satisfaction_rate_length_low"]
        <= result["satisfaction_rate_length"]
        <= result["satisfaction_rate_length_high"]
    )
    m = trainer.step()
    limit = dict(zip(data["prompt"], data["budget_stars"]))
    assert m["satisfaction_rate_stars"] == pytest.approx(
        sum(
            c.count("*") <= limit[p]
            for p, c in zip(trainer.rollout.prompts, trainer.rollout.completions)
        )
        / 16
    )


def test_a_further_budget_is_learnt(make_trainer):
    "What it is for: completions become shorter when only their length is limited."
    trainer = make_trainer(
        method="grpo",
        constraints={"length": (length_cost, Budget(6))},
        max_steps=12,
        per_device_train_batch_size=64,
        learning_rate=5e-3,
        truncated_reward=None,
        reward_funcs=lambda completions, **kwargs: [0.0] * len(completions),
    )
    trainer.train()
    lines = read_lines(trainer.output_dir / "metrics.jsonl")
    assert (
        lines[-1]["spent_mean_length"] < 0.7 * lines[0]["spent_mean_length"]
        and lines[0]["spent_mean_length"] == lines[0]["length_mean"]
    )


def test_a_users_method_may_read_further_costs(make_trainer, own_methods):
    "The costs are handed to the method; the settings must not be refused because no cost is there yet."

    @register_method("shorter")
    def shorter(batch, budget, state, *, scale_rewards: str = "group") -> Signal:
        return Signal(
            group_advantage(-batch.costs["ones"].sum(-1), batch.group_ids, scale_rewards),
            torch.zeros_like(batch.cost),
        )

    def ones(completions, **kwargs):
        return [c.count("1") for c in completions]

    trainer = make_trainer(method="shorter", constraints={"ones": (ones, Budget(16))})
    assert trainer.step()["advantage_abs"] > 0


def test_a_users_method_prices_a_further_divergence(own_methods, make_trainer, tmp_path):
    "What register_method(costs=...) promises: that divergence is measured, has a gradient, and takes a multiplier; a mixture of two must be the sum of both gradients."

    def mixture(name, a, b):
        @register_method(name, costs=("forward_kl",))
        def method(batch, budget, state):
            return Signal(
                torch.zeros_like(batch.cost),
                {"divergence": a * batch.mask, "forward_kl": b * batch.mask},
            )

        return gradients_of_step(
            make_trainer(
                method=name,
                output_dir=str(tmp_path / name),
                per_device_train_batch_size=4,
                gradient_accumulation_steps=4,
            )
        )[1]

    both, one, other = (
        mixture("both", 2.0, 3.0),
        mixture("one", 2.0, 0.0),
        mixture("other", 0.0, 3.0),
    )
    assert relative(both, one + other) < 1e-4 and other.norm() > 0
    forward = gradients_of_step(
        make_trainer(method="gkd", divergence="forward_kl", output_dir=str(tmp_path / "f"))
    )[1]
    assert relative(other, 3.0 * forward) < 1e-4
    register_method("odd", costs=("length",))(lambda batch, budget, state: None)
    with pytest.raises(ValueError, match="'length' is unknown; choose one of reverse_kl"):
        CMDPConfig(method="odd")
    with pytest.raises(ValueError, match="has a cost named forward_kl already"):
        make_trainer(
            method="both",
            constraints={"forward_kl": (length_cost, Budget(9))},
            output_dir=str(tmp_path / "c"),
        )


@pytest.mark.parametrize(
    "answer,match",
    [
        (None, "got None"),
        (Signal(torch.zeros(2), {"length": torch.zeros(2, 2)}), "no gradient.*got {'length'}"),
        (
            Signal(torch.zeros(2), {"divergence": torch.zeros(2, 2), "length": torch.zeros(2, 2)}),
            "got {.*'length'",
        ),
        (Signal(torch.zeros(2), -torch.ones(2, 2)), "multiplier is -1"),
    ],
    ids=["none", "another", "two", "negative"],
)
def test_a_users_method_that_answers_nonsense(own_methods, answer, match):
    "Found on a trial of two made-up trajectories, before any model is loaded."
    register_method("mine")(lambda batch, budget, state: answer)
    with pytest.raises(ValueError, match=f"method 'mine'.*{match}"):
        CMDPConfig(method="mine")


# ---- completions that the student did not write -----------------------------------------------------------------------


@pytest.fixture
def worked(prompts):
    "The training prompts with their worked solutions, of 20 tokens each with EOS."
    return prompts.add_column("completion", [write_chain(p) for p in prompts["prompt"]])


@pytest.mark.parametrize("length", [20, 19], ids=["whole", "cut off"])
@pytest.mark.parametrize("divergence", ["forward_kl", "jsd"])
def test_off_policy_gkd_against_a_loop(make_trainer, pair, worked, divergence, length):
    "lmbda=0 is supervised distillation: the token mean of the divergence on the dataset's answers, EOS included, up to the length limit."
    student, teacher, tok = pair[0].double(), pair[1].double(), pair[2]
    plain, solution = copy.deepcopy(student), dict(zip(worked["prompt"], worked["completion"]))
    trainer = make_trainer(
        student,
        teacher,
        method="gkd",
        lmbda=0.0,
        divergence=divergence,
        train_dataset=worked,
        max_completion_length=length,
        truncated_reward=-1.0,
    )
    m, g = gradients_of_step(trainer)
    r = trainer.rollout
    assert len(set(r.prompts)) == 16 and r.completions == [solution[p] for p in r.prompts]
    total, tokens = 0.0, 0
    for p in r.prompts:
        ids = tok(p)["input_ids"]
        both = torch.tensor([ids + (tok(solution[p])["input_ids"] + [tok.eos_token_id])[:length]])
        s, t = (
            model(both).logits[0, len(ids) - 1 : -1].log_softmax(-1) for model in (plain, teacher)
        )
        mix = torch.log((s.exp() + t.exp()) / 2)

        def kl(a, b):
            return (a.exp() * (a - b)).sum(-1)

        total, tokens = (
            total
            + (kl(t, s) if divergence == "forward_kl" else (kl(t, mix) + kl(s, mix)) / 2).sum(),
            tokens + len(s),
        )
    (total / tokens).backward()
    assert (
        m["loss"] == pytest.approx(float(total / tokens), rel=1e-5)
        and relative(g, torch.cat([p.grad.flatten() for p in plain.parameters()])) < 1e-6
    )
    assert (
        m["accuracy"] == float(length == 20)
        and m["truncated_rate"] == float(length < 20)
        and m["reward"] == (1.0 if length == 20 else -1.0)
        and m["length_mean"] == length
    )


def test_sequence_level_distillation_samples_from_the_teacher(make_trainer):
    "seq_kd: the texts are the teacher's own, one per prompt, at the training temperature."
    trainer = make_trainer(method="gkd", lmbda=0.0, seq_kd=True, temperature=0.7)
    r = trainer.sample()
    again = generate(
        trainer.teacher,
        trainer.processing_class,
        r.prompts,
        max_completion_length=20,
        temperature=0.7,
        generator=trainer.generator(0, 0),
    )
    assert len(set(r.prompts)) == 16 and r.completions == again.completions
    with torch.no_grad():
        torch.testing.assert_close(
            masked(
                token_logps(completion_logits(trainer.teacher, r), r.completion_ids, 0.7),
                r.completion_mask,
            ),
            r.sampled_logps,
            rtol=0,
            atol=1e-4,
        )
    assert math.isfinite(trainer.step()["loss"])


def test_the_share_of_off_policy_updates(make_trainer, worked):
    "lmbda is the share of updates on own completions (1 = all), the same ones after a restart."

    def off(lmbda):
        trainer, found = (
            make_trainer(
                method="gkd",
                lmbda=lmbda,
                train_dataset=worked,
                per_device_train_batch_size=4,
                max_completion_length=3,
            ),
            [],
        )
        for trainer.global_step in range(40):
            found.append(len(set(trainer.sample().prompts)) == 4)
        return found

    assert (
        all(off(0.0)) and not any(off(1.0)) and 4 <= sum(off(0.75)) <= 17 and off(0.75) == off(0.75)
    )


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

    chat = Dataset.from_dict(
        {
            "prompt": [say("user", p) for p in worked["prompt"]],
            "answer": worked["answer"],
            "completion": [say("assistant", c) if messages else c for c in worked["completion"]],
        }
    )
    runs = (
        make_trainer(
            method="gkd", lmbda=0.0, train_dataset=worked, output_dir=str(tmp_path / "plain")
        ),
        make_trainer(
            method="gkd",
            lmbda=0.0,
            train_dataset=chat,
            eval_dataset=chat.select(range(4)),
            processing_class=tok,
            reward_funcs=reward,
        ),
    )
    (a, ga), (b, gb) = map(gradients_of_step, runs)
    assert (
        torch.equal(ga, gb)
        and a["accuracy"] == b["accuracy"] == 1.0
        and seen[-1][0]["role"] == "assistant"
    )


def test_given_completions():
    "Texts become the trajectories that would have written them: EOS at the end, padding after it, cut at the limit."
    tok = char_tokenizer()
    r = given_rollout(tok, ["1+1=", "12+3="], ["2", ""], dict(answer=["2", "5"]), 3)
    assert (
        r.completion_ids.tolist() == [[5, 1], [1, 0]]
        and r.completion_mask.tolist() == [[1, 1], [1, 0]]
        and r.terminated.tolist() == [True, True]
        and r.columns == {"answer": ["2", "5"]}
    )
    r = given_rollout(tok, ["1+1="] * 2, ["12", "123"], max_completion_length=3)
    assert (
        r.completion_ids.tolist() == [[4, 5, 1], [4, 5, 6]]
        and r.terminated.tolist() == [True, False]
        and r.group_ids.tolist() == [0, 1]
    )


def test_a_dataset_column_named_completion_is_not_the_completion(make_trainer, worked):
    "The records of an evaluation must show what the student wrote, whatever the dataset calls its answers."
    _, records = make_trainer(eval_dataset=worked.select(range(8))).evaluate(return_records=True)
    tok = make_trainer().processing_class
    for r in records:
        assert r["completion"] == tok.decode(r["completion_ids"], skip_special_tokens=True)


# ---- other costs, through the whole loop ------------------------------------------------------------------------------


@torch.no_grad()
def recomputed(trainer, rollout):
    "Logits of student and teacher before each token, each trajectory alone and without padding, and the tokens."
    for i, n in enumerate(rollout.lengths.tolist()):
        prompt = rollout.prompt_ids[i][rollout.prompt_mask[i].bool()]
        ids = torch.cat([prompt, rollout.completion_ids[i, :n]])[None]
        yield (
            *(m(ids).logits[0, len(prompt) - 1 : -1] for m in (trainer.model, trainer.teacher)),
            ids[0, len(prompt) :],
        )


COSTS = {
    "log_ratio": lambda s, t, a: (s.log_softmax(-1) - t.log_softmax(-1)).gather(-1, a[:, None])[
        :, 0
    ],
    "surprisal": lambda s, t, a: -t.log_softmax(-1).gather(-1, a[:, None])[:, 0],
    "temperatures": lambda s, t, a: (
        (s / 2).softmax(-1) * ((s / 2).log_softmax(-1) - (t / 0.5).log_softmax(-1))
    ).sum(-1),
}


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
    "What is spent is the cost that was asked for; kl_mean is the reverse KL at temperature 1 whatever the cost, in training and in evaluation."
    settings = (
        dict(student_temperature=2.0, teacher_temperature=0.5)
        if cost == "temperatures"
        else dict(divergence=cost)
    )
    trainer = make_trainer(method=method, method_kwargs=kwargs, budget=2.0, **settings)
    r = trainer.sample()
    triples = list(recomputed(trainer, r))
    spent = [float(COSTS[cost](*x).sum()) for x in triples]
    kl = [
        float((s.softmax(-1) * (s.log_softmax(-1) - t.log_softmax(-1))).sum())
        for s, t, _ in triples
    ]
    result, records = trainer.evaluate(return_records=True)
    m, g = gradients_of_step(trainer)
    assert m["spent_mean"] == pytest.approx(sum(spent) / len(r), rel=1e-4, abs=1e-4) and m[
        "kl_mean"
    ] == pytest.approx(sum(kl) / len(r), rel=1e-4)
    assert (
        m["satisfaction_rate"] == pytest.approx(sum(x <= 2.0 for x in spent) / len(r))
        and g.isfinite().all()
        and g.norm() > 0
    )
    assert (
        result["spent_mean"]
        == pytest.approx(sum(sum(x["cost_per_token"]) for x in records) / len(records), rel=1e-4)
        and abs(result["spent_mean"] - result["kl_mean"]) > 0.01
    )
    for x in records[:3]:
        given_back = (
            given_rollout(trainer.processing_class, [x["prompt"]], [x["completion"]])
            if x["terminated"]
            else None
        )
        assert x["within_budget"] == (x["spent"] <= 2.0) and (
            given_back is None or given_back.completion_ids[0].tolist() == x["completion_ids"]
        )


def test_evaluation_measures_the_cost_of_the_settings(make_trainer):
    "The numbers of an evaluation must be those of the untouched student recomputed by hand, per token."
    for cost, settings in (
        ("log_ratio", dict(divergence="log_ratio", method="cmdp")),
        ("temperatures", dict(student_temperature=2.0, teacher_temperature=0.5)),
    ):
        trainer = make_trainer(**settings)
        records = trainer.evaluate(return_records=True)[1][:4]
        for x in records:
            prompt, ids = trainer.processing_class(x["prompt"])["input_ids"], x["completion_ids"]
            with torch.no_grad():
                s, t = (
                    m(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
                    for m in (trainer.model, trainer.teacher)
                )
            assert x["cost_per_token"] == pytest.approx(
                COSTS[cost](s, t, torch.tensor(ids)).tolist(), abs=1e-4
            )
            assert x["kl"] == pytest.approx(
                float((s.softmax(-1) * (s.log_softmax(-1) - t.log_softmax(-1))).sum()),
                rel=1e-3,
                abs=1e-4,
            )


@pytest.mark.parametrize("kind", ["log_ratio", "surprisal", "reverse_kl"])
def test_costs_outside_the_mask(kind):
    "Padding may hold anything, also for the costs of a sampled token: neither value nor gradient may leak."
    g = torch.Generator().manual_seed(0)
    s, t, ids = (
        torch.randn(2, 3, 5, generator=g, dtype=torch.float64),
        torch.randn(2, 3, 5, generator=g, dtype=torch.float64),
        torch.tensor([[0, 1, 2], [3, 4, 0]]),
    )
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    whole = token_cost(s, t, ids, None, Cost(kind))
    bad = s.masked_fill(mask[..., None] == 0, NAN).requires_grad_()
    cost = token_cost(bad, t.masked_fill(mask[..., None] == 0, INF), ids, mask, Cost(kind))
    torch.testing.assert_close(cost, masked(whole, mask))
    if kind != "surprisal":
        cost.sum().backward()
        assert bad.grad.isfinite().all() and (bad.grad[mask == 0] == 0).all()


# ---- the command line -------------------------------------------------------------------------------------------------


def test_the_command_line_knows_the_new_settings():
    "Each must be given as text and arrive as what it is."
    argv = "--method gkd --lmbda 0.5 --seq_kd true --budget_quantile 0.8 --distill_steps 2 --budget_start 3 --budget_anneal_steps 5 --constraint_penalty 2 --divergence jsd --student_temperature 2 --teacher_temperature .5 --scale_rewards batch".split()
    config = CMDPConfig(**parse_args(argv)[1])
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
    assert parse_args([])[1]["seq_kd"] is False and parse_args([])[1]["budget_quantile"] is None
