"""How close each method comes to the exact optimum when nothing is sampled: exact gradients, tabular policies, ten random trees.

    python studies/theory/study.py run          every job of the plan that methods.csv does not hold yet (minutes on one core)
    python studies/theory/study.py check 17     train the job of row 17 again (0 = the first) and compare it with the file
    python studies/theory/study.py table        the tables of README.md from methods.csv

A job is one method with its settings at one budget, trained on all trees and from both starts at once; they share nothing but the
step count of the optimiser. The gradient is that of the production `signal_loss`, every trajectory weighted by its probability.
Budget, learning rate, steps and optimiser are the same for all methods.
"""

import csv
import json
import math
import os
import platform
import sys
import time
from functools import lru_cache
from pathlib import Path

import torch

from cmdp_nbdev import __version__
from cmdp_nbdev.budget import Budget
from cmdp_nbdev.cost import token_divergence, token_logps
from cmdp_nbdev.methods import METHODS as REGISTERED
from cmdp_nbdev.methods import method_settings, rate_controller
from cmdp_nbdev.objective import Batch, Signal, group_advantage, signal_loss
from cmdp_nbdev.reward import smooth_gate
from cmdp_nbdev.theory.tabular import hard_optimum, law, random_tree

FILE = Path(__file__).parent / "methods.csv"
SEEDS, BUDGETS, STARTS = range(10), (0.2, 0.5, 1.0), ("teacher", "away")
STEPS, LEARNING_RATE = 3000, 0.02  # Adam; the rate falls linearly to 1% of it
LAMBDAS = (0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5)
TEXT = {"start", "method", "settings", "cmdp_nbdev", "torch", "machine"}


def smooth_complete(
    batch: Batch,
    budget: Budget,
    state: dict,
    *,
    keep: float = 0.0,
    coef: float,
    floor: float,
    width: float,
    margin: float,
    scale_rewards: str = "none",
) -> Signal:
    """All terms of the objective of `cmdp-rate` with a fixed gate, (1 − g)R − coef·τ·softplus((D − d')/τ) − floor·D, for the sum budget: what its dropped terms do.

    `keep`: the share of the reward that a trajectory far over budget keeps; 0 as in cmdp-rate, 1 makes it a rounded hinge.
    """
    spent, tau, limit = (
        budget.spent(batch.cost, batch.mask),
        width * budget.limit,
        margin * budget.limit,
    )
    gate = smooth_gate(spent, limit, tau)
    objective = (
        (1 - (1 - keep) * gate) * batch.rewards
        - coef * tau * torch.nn.functional.softplus((spent - limit) / tau)
        - floor * spent
    )
    multiplier = floor + coef * gate + (1 - keep) * gate * (1 - gate) / tau * batch.rewards
    return Signal(
        group_advantage(objective, batch.group_ids, scale_rewards),
        multiplier.unsqueeze(-1) * batch.mask,
    )


METHODS = {
    **REGISTERED,
    "smooth-complete": smooth_complete,
}  # not registered: it belongs to this study alone


GATE = {"coef": 3.0, "floor": 0.3, "width": 0.15, "margin": 0.9}  # of studies/foundation
SHARP = {"coef": 5.0, "floor": 0.0, "width": 0.05, "margin": 1.0}


def plan() -> list[tuple[str, dict, float | None, float]]:
    "Jobs: method, settings, budget, share of the budget trained for. A fixed λ does not read the budget (None): trained once, judged at all."
    jobs = [
        ("soft", {"lam": lam, "complete": complete}, None, 1.0)
        for complete in (False, True)
        for lam in LAMBDAS
    ]
    for d in BUDGETS:
        jobs += [
            ("hinge", {"coef": 3.0}, d, 1.0),
            ("hinge", {"coef": 10.0}, d, 1.0),
            ("hinge", {"coef": 10.0}, d, 0.98),
        ]
        jobs += [
            ("cmdp", {"penalty": n, "coef": c}, d, share)
            for n, c, share in (
                (1.0, 1.0, 1.0),
                (1.0, 1.0, 0.98),
                (20.0, 1.0, 1.0),
                (0.0, 1.0, 1.0),
                (1.0, 5.0, 1.0),
                (1.0, 20.0, 1.0),
                (20.0, 20.0, 1.0),
                (0.0, 20.0, 1.0),
                (0.0, 20.0, 0.98),
            )
        ]
        jobs += [
            ("cmdp-rate", {"target": 0.0, "forward": 0.0, **s}, d, 1.0)
            for s in (GATE, {**GATE, "floor": 0.0}, SHARP)
        ]
        jobs += [
            ("cmdp-rate", {"target": target, "forward": f}, d, 1.0)
            for target, f in ((0.95, 0.5), (0.95, 0.0), (0.99, 0.0))
        ]
        jobs += [("smooth-complete", s, d, 1.0) for s in (GATE, SHARP, {"keep": 1.0, **SHARP})]
        jobs += [("saute", {"penalty": 1.0}, d, 1.0)]
    return jobs


class Forest:
    "The trees side by side, once for each start: n problems of B trajectories, in the production layout."

    def __init__(self):
        trees = [random_tree(seed) for seed in SEEDS]
        self.problems = [(seed, start) for start in STARTS for seed in SEEDS]
        self.n, self.nodes = len(self.problems), trees[0].nodes
        repeat = len(STARTS)
        self.teacher = torch.stack([t.teacher for t in trees]).repeat(repeat, 1, 1)
        self.rewards = torch.cat([t.rewards for t in trees]).repeat(repeat)
        self.paths, self.mask = trees[0].paths.repeat(self.n, 1), trees[0].mask.repeat(self.n, 1)
        self.group_ids = torch.arange(self.n).repeat_interleave(len(self.nodes))
        self.teacher_rows = self.rows(self.teacher)
        self.teacher_logp = token_logps(self.teacher_rows, self.paths)
        noise = torch.randn(
            len(SEEDS),
            *self.teacher.shape[1:],
            generator=torch.Generator().manual_seed(0),
            dtype=torch.float64,
        )
        self.start = self.teacher + torch.cat([noise * (start == "away") for start in STARTS])

    def rows(self, table):
        return table[:, self.nodes].flatten(0, 1)

    def sum(self, x):
        return x.reshape(self.n, -1).sum(1)


def controlled(states: list[dict], violation: torch.Tensor, target: float) -> torch.Tensor:
    "The multipliers of `cmdp-rate` with a target: the production controller on each tree's exact violation probability (on a batch it reads the frequency of all prompts)."
    s = method_settings("cmdp-rate")
    return torch.tensor(
        [
            rate_controller(
                state,
                v,
                target,
                rate=s["rate"],
                init=s["init"],
                low=s["min_scale"],
                high=s["max_scale"],
            )
            for state, v in zip(states, violation.tolist())
        ],
        dtype=torch.float64,
    )


def train(
    forest: Forest, method: str, settings: dict, budget: float | None, share: float
) -> list[dict]:
    "One job: a row for each problem and budget judged."
    limits = BUDGETS if budget is None else (budget,)
    logits = forest.start.clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], LEARNING_RATE)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: 1 - 0.99 * k / STEPS)
    best = {d: torch.full((forest.n,), float("nan"), dtype=torch.float64) for d in limits}
    at = {d: torch.full((forest.n,), -1) for d in limits}
    states, moving, began = (
        [{} for _ in range(forest.n)],
        settings.get("target", 0.0) > 0,
        time.process_time(),
    )
    for step in range(STEPS + 1):
        rows = forest.rows(logits)
        logp, cost = token_logps(rows, forest.paths), token_divergence(rows, forest.teacher_rows)
        prob, c = logp.detach().sum(-1).exp(), cost.detach()
        value, spent = forest.sum(prob * forest.rewards), Budget().spent(c, forest.mask)
        for d in limits:
            better = (spent.reshape(forest.n, -1).max(1).values <= d) & ~(value <= best[d])
            best[d], at[d] = torch.where(better, value, best[d]), torch.where(better, step, at[d])
        if step == STEPS:
            break
        costs = {"divergence": cost} | (
            {"forward_kl": token_divergence(rows, forest.teacher_rows, kind="forward_kl")}
            if settings.get("forward")
            else {}
        )
        batch = Batch(
            forest.rewards,
            forest.group_ids,
            forest.mask,
            logp.detach(),
            forest.teacher_logp,
            {k: v.detach() for k, v in costs.items()},
        )
        signal = METHODS[method](
            batch,
            Budget(1.0 if budget is None else share * budget),
            {},
            scale_rewards="none",
            **settings | ({"target": 0.0} if moving else {}),
        )
        scale = (
            controlled(states, forest.sum(prob * (spent > budget)), settings["target"])
            .repeat_interleave(len(forest.nodes))
            .unsqueeze(-1)
            if moving
            else 1.0
        )
        advantage = (
            signal.advantage.unsqueeze(-1) if signal.advantage.dim() == 1 else signal.advantage
        )
        weight = prob.unsqueeze(
            -1
        )  # the loss is linear in advantage and multiplier: this is its expectation
        loss = signal_loss(
            Signal(
                weight * advantage, {k: weight * scale * m for k, m in signal.multipliers.items()}
            ),
            logp,
            costs,
            forest.mask,
            num_tokens=1,
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    seconds = time.process_time() - began
    out = []
    for d in limits:

        def over(slack):
            return forest.sum(prob * (spent > d * (1 + slack)))

        columns = {
            "final_value": value,
            "final_violation": over(1e-9),
            "final_violation_1pct": over(0.01),
            "final_within": forest.sum(prob * forest.rewards * (spent <= d * (1 + 1e-9))),
            "final_worst_spent": spent.reshape(forest.n, -1).max(1).values,
            "best_feasible": best[d],
        }
        for i, (seed, start) in enumerate(forest.problems):
            out.append(
                {
                    "seed": seed,
                    "start": start,
                    "budget": d,
                    "method": method,
                    "settings": json.dumps(settings),
                    "trained_for": share,
                    "optimum": round(optimum(seed, d), 6),
                    "teacher_value": round(teacher_value(seed), 6),
                    **{k: round(v[i].item(), 6) for k, v in columns.items()},
                    "best_step": int(at[d][i]),
                    "steps": STEPS,
                    "learning_rate": LEARNING_RATE,
                    "seconds_of_job": round(seconds, 1),
                    "cmdp_nbdev": __version__,
                    "torch": torch.__version__,
                    "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, 1 thread",
                }
            )
    return out


@lru_cache
def optimum(seed: int, budget: float) -> float:
    "The hard optimum by dynamic programming (nbs/theory/00_tabular)."
    return hard_optimum(random_tree(seed), budget).value


def teacher_value(seed: int) -> float:
    "The teacher's expected reward: what a budget of 0 gives."
    return law(random_tree(seed), random_tree(seed).teacher).value().item()


def read() -> list[dict]:
    "The rows of methods.csv, numbers as numbers (NaN: never feasible)."
    if not FILE.exists():
        return []
    with open(FILE, newline="") as f:
        return [
            {k: v if k in TEXT else float(v) for k, v in row.items()} for row in csv.DictReader(f)
        ]


def run() -> None:
    "Every job of the plan that is missing, appended as it ends."
    done = {key(r) for r in read()}
    forest = Forest()
    for method, settings, budget, share in plan():
        if (method, json.dumps(settings), BUDGETS[0] if budget is None else budget, share) in done:
            continue
        rows = train(forest, method, settings, budget, share)
        new = not FILE.exists()
        with open(FILE, "a", newline="") as f:
            writer = csv.DictWriter(f, list(rows[0]), lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerows(rows)
        print(f"{method} {settings} {budget}: {rows[0]['seconds_of_job']} s", flush=True)


def key(row: dict) -> tuple:
    "What identifies a job."
    return row["method"], row["settings"], row["budget"], row["trained_for"]


def check(number: int) -> None:
    "Train the job of one row again and print both."
    old = read()[number]
    budget = None if old["method"] == "soft" else old["budget"]

    def same(r):
        return (r["seed"], r["start"], r["budget"]) == (old["seed"], old["start"], old["budget"])

    new = next(
        r
        for r in train(
            Forest(), old["method"], json.loads(old["settings"]), budget, old["trained_for"]
        )
        if same(r)
    )
    for k, v in old.items():
        print(f"{k:22} {v!s:30} {new[k]}")


def mean(values) -> float:
    "Mean of numbers that may be NaN (left out)."
    values = [v for v in values if not math.isnan(v)]
    return sum(values) / len(values) if values else math.nan


def best_soft(rows: list[dict], complete: bool) -> list[dict]:
    "Of the fixed λ the one best for each budget and start, by the best feasible iterate: chosen in hindsight, but once for all trees."
    soft = [
        r
        for r in rows
        if r["method"] == "soft" and json.loads(r["settings"])["complete"] == complete
    ]
    out = []
    for budget, start in sorted({(r["budget"], r["start"]) for r in soft}):
        here = [r for r in soft if (r["budget"], r["start"]) == (budget, start)]
        out += max(
            (
                [r for r in here if r["settings"] == s]
                for s in sorted({r["settings"] for r in here})
            ),
            key=lambda g: sum(reached(r) for r in g),
        )
    return out


def reached(row: dict) -> float:
    "Value of the best feasible iterate as a share of the optimum; 0 if no iterate was feasible."
    return 0.0 if math.isnan(row["best_feasible"]) else row["best_feasible"] / row["optimum"]


def summary(rows: list[dict]) -> dict:
    "Means over trees (and whatever else differs), values as shares of the optimum."

    def mean(f):
        return sum(map(f, rows)) / len(rows)

    return {
        "final": mean(lambda r: r["final_value"] / r["optimum"]),
        "violation": mean(lambda r: r["final_violation"]),
        "beyond 1%": mean(lambda r: r["final_violation_1pct"]),
        "within": mean(lambda r: r["final_within"] / r["optimum"]),
        "best feasible": mean(reached),
        "worst tree": min(map(reached, rows)),
        "never feasible": sum(r["best_step"] < 0 for r in rows),
    }


def lines(rows: list[dict]) -> dict[str, list[dict]]:
    "The rows of each line of a table; of the fixed λ only the best."
    out = {}
    for r in rows:
        if r["method"] == "soft":
            continue
        settings = ", ".join(f"{k} {v:g}" for k, v in json.loads(r["settings"]).items())
        share = f", trained for {r['trained_for']:g} d" if r["trained_for"] < 1 else ""
        out.setdefault(f"{r['method']} {settings}{share}".strip(), []).append(r)
    return out | {f"soft, best λ{', complete' * c}": best_soft(rows, c) for c in (False, True)}


def table() -> None:
    "The tables of README.md: markdown."
    rows = read()
    for start in STARTS:
        print(
            f"\nStart: {start}\n\n| method | final value | P(D > d) | P(D > 1.01 d) | reward within | best feasible, d = "
            + " / ".join(map(str, BUDGETS))
            + " | worst tree | never feasible |\n|---|---|---|---|---|---|---|---|"
        )
        for name, group in lines([r for r in rows if r["start"] == start]).items():
            s = summary(group)
            each = " / ".join(
                f"{summary([r for r in group if r['budget'] == d])['best feasible']:.3f}"
                for d in BUDGETS
            )
            print(
                f"| {name} | {s['final']:.3f} | {s['violation']:.3f} | {s['beyond 1%']:.3f} | {s['within']:.3f} | {each} | {s['worst tree']:.3f} | {s['never feasible']} of {len(group)} |"
            )


def main(command: str = "", number: str = "") -> None:
    "The command line."
    if command == "run":
        run()
    elif command == "check" and number.isdigit():
        check(int(number))
    elif command == "table":
        table()
    else:
        raise SystemExit(__doc__)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
