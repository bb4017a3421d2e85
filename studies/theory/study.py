"""How close each method comes to the exact optimum when nothing is sampled.

    python studies/theory/study.py run          every job of the plan that methods.csv does not hold
                                                yet (minutes on one core)
    python studies/theory/study.py check 17     train the job of row 17 again (0 = the first) and
                                                compare it with the file
    python studies/theory/study.py table        the tables of README.md from methods.csv

Exact gradients, tabular policies, ten random trees. A job is one method with its settings at one
budget, trained on all trees and from both starts at once; they share nothing but the step count of
the optimiser. The gradient is that of the production `signal_loss`, every trajectory weighted by
its probability. Budget, learning rate, steps and optimiser are the same for all methods.
"""

import json
import math
import sys
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import Tensor

from cmdp_nbdev.budget import Budget, spend_weights
from cmdp_nbdev.cost import token_divergence, token_logps
from cmdp_nbdev.methods import CENTER, FLOOR, WIDTH, method_settings, rate_controller, sigmoid_gate
from cmdp_nbdev.methods import METHODS as REGISTERED
from cmdp_nbdev.objective import Batch, Signal, group_advantage, signal_loss
from cmdp_nbdev.reward import smooth_gate
from cmdp_nbdev.theory.tabular import hard_optimum, law, random_tree
from studies.lab import Runs, made_with, markdown

FILE = Path(__file__).parent / "methods.csv"
SEEDS, BUDGETS, STARTS = range(10), (0.2, 0.5, 1.0), ("teacher", "away")
STEPS, LEARNING_RATE = 3000, 0.02  # Adam; the rate falls linearly to 1% of it
LAMBDAS = (0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5)

# ---- two methods of this study alone ------------------------------------------------------------


def fixed_gate(
    batch: Batch,
    budget: Budget,
    state: dict,
    *,
    coef: float = 3.0,
    floor: float = 0.3,
    width: float = 0.15,
    margin: float = 0.9,
    scale_rewards: str = "none",
) -> Signal:
    """R fades out through a sigmoid gate, and the divergence has a price that the gate raises.

    The reward is (1 − g)R and the price floor + coef·g, with g = σ((D − margin·d)/(width·d)) held
    fixed: the default of studies/foundation.
    """
    spent = budget.spent(batch.cost, batch.mask)
    gate = smooth_gate(spent, margin * budget.limit, width * budget.limit)
    price = (floor + coef * gate).unsqueeze(-1)
    advantage = group_advantage((1 - gate) * batch.rewards, batch.group_ids, scale_rewards)
    return Signal(advantage, price * spend_weights(budget, batch.cost, batch.mask))


def complete_gate(
    batch: Batch,
    budget: Budget,
    state: dict,
    *,
    keep: float = 0.0,
    coef: float = 3.0,
    floor: float = 0.3,
    width: float = 0.15,
    margin: float = 0.9,
    scale_rewards: str = "none",
) -> Signal:
    """`smooth-gate` with all terms of its objective: what those that it drops would do.

    The objective is (1 − g)R − coef·τ·softplus((D − margin·d)/τ) − floor·D, τ = width·d. `keep`:
    the share of the reward that a trajectory far over budget keeps; 1 makes it a rounded hinge.
    """
    spent = budget.spent(batch.cost, batch.mask)
    tau, limit = width * budget.limit, margin * budget.limit
    gate = smooth_gate(spent, limit, tau)
    excess = coef * tau * torch.nn.functional.softplus((spent - limit) / tau)
    objective = (1 - (1 - keep) * gate) * batch.rewards - excess - floor * spent
    price = floor + coef * gate + (1 - keep) * gate * (1 - gate) / tau * batch.rewards
    weights = spend_weights(budget, batch.cost, batch.mask)
    advantage = group_advantage(objective, batch.group_ids, scale_rewards)
    return Signal(advantage, price.unsqueeze(-1) * weights)


# Not registered: they belong to this study alone.
METHODS = {**REGISTERED, "smooth-gate": fixed_gate, "smooth-complete": complete_gate}

# ---- the plan -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    "One training on all trees: what is trained, for which share of which budget."

    method: str
    settings: dict
    budget: float | None  # None: the method does not read it; trained once, judged at all
    share: float = 1.0

    @property
    def judged(self) -> tuple[float, ...]:
        "The budgets that its policies are compared with."
        return BUDGETS if self.budget is None else (self.budget,)

    @property
    def keys(self) -> set[tuple]:
        "What identifies its rows: `key` of each."
        return {(self.method, json.dumps(self.settings), d, self.share) for d in self.judged}


GATE = {"coef": 3.0, "floor": 0.3, "width": 0.15, "margin": 0.9}  # of studies/foundation
SHARP = {"coef": 5.0, "floor": 0.0, "width": 0.05, "margin": 1.0}
PRICED = {"price": "prompt", "max_scale": 8.0}  # of the default

# At every budget: method, settings, and the share of the budget that it is trained for.
COMPARED = [
    ("hinge", {"coef": 3.0}, 1.0),
    ("hinge", {"coef": 10.0}, 1.0),
    ("hinge", {"coef": 10.0}, 0.98),
    ("cmdp", {"penalty": 1.0, "coef": 1.0}, 1.0),
    ("cmdp", {"penalty": 1.0, "coef": 1.0}, 0.98),
    ("cmdp", {"penalty": 20.0, "coef": 1.0}, 1.0),
    ("cmdp", {"penalty": 0.0, "coef": 1.0}, 1.0),
    ("cmdp", {"penalty": 1.0, "coef": 5.0}, 1.0),
    ("cmdp", {"penalty": 1.0, "coef": 20.0}, 1.0),
    ("cmdp", {"penalty": 20.0, "coef": 20.0}, 1.0),
    ("cmdp", {"penalty": 0.0, "coef": 20.0}, 1.0),
    ("cmdp", {"penalty": 0.0, "coef": 20.0}, 0.98),
    ("smooth-gate", GATE, 1.0),
    ("smooth-gate", {**GATE, "floor": 0.0}, 1.0),
    ("smooth-gate", SHARP, 1.0),
    ("cmdp-rate", {"target": 0.95, "forward": 0.5}, 1.0),
    ("cmdp-rate", {"target": 0.95, "forward": 0.0}, 1.0),
    ("cmdp-rate", {"target": 0.99, "forward": 0.0}, 1.0),
    ("cmdp-rate", {"target": 0.98, "forward": 0.5}, 1.0),
    ("cmdp-rate", {"target": 0.98, "forward": 0.5, **PRICED}, 1.0),
    ("cmdp-rate", {"target": 0.98, "forward": 0.0, **PRICED}, 1.0),
    ("smooth-complete", GATE, 1.0),
    ("smooth-complete", SHARP, 1.0),
    ("smooth-complete", {"keep": 1.0, **SHARP}, 1.0),
    ("saute", {"penalty": 1.0}, 1.0),
]


def plan() -> list[Job]:
    "All jobs: fixed λ with and without the score-function part, and the rest at every budget."
    fixed = [(complete, lam) for complete in (False, True) for lam in LAMBDAS]
    jobs = [Job("soft", {"lam": lam, "complete": complete}, None) for complete, lam in fixed]
    for d in BUDGETS:
        jobs += [Job(method, settings, d, share) for method, settings, share in COMPARED]
    return jobs


# ---- the trees ----------------------------------------------------------------------------------


class Forest:
    "The trees side by side, once for each start: n problems of B paths, in the production layout."

    def __init__(self):
        trees = [random_tree(seed) for seed in SEEDS]
        self.problems = [(seed, start) for start in STARTS for seed in SEEDS]
        self.n, self.nodes = len(self.problems), trees[0].nodes
        self.teacher = torch.stack([t.teacher for t in trees]).repeat(len(STARTS), 1, 1)
        self.rewards = torch.cat([t.rewards for t in trees]).repeat(len(STARTS))
        self.paths, self.mask = trees[0].paths.repeat(self.n, 1), trees[0].mask.repeat(self.n, 1)
        self.group_ids = torch.arange(self.n).repeat_interleave(len(self.nodes))
        self.teacher_rows = self.rows(self.teacher)
        self.teacher_logp = token_logps(self.teacher_rows, self.paths)
        self.start = self.teacher + self._away()

    def _away(self) -> Tensor:
        "What the starts add to the teacher's logits: nothing, or standard normal noise."
        shape, g = (len(SEEDS), *self.teacher.shape[1:]), torch.Generator().manual_seed(0)
        noise = torch.randn(*shape, generator=g, dtype=torch.float64)
        return torch.cat([noise * (start == "away") for start in STARTS])

    def rows(self, table: Tensor) -> Tensor:
        "The rows of every path's histories, (n·B, T, V)."
        return table[:, self.nodes].flatten(0, 1)

    def sum(self, x: Tensor) -> Tensor:
        "Summed over the paths of each problem, (n,)."
        return x.reshape(self.n, -1).sum(1)

    def largest(self, x: Tensor) -> Tensor:
        "The largest on the paths of each problem, (n,)."
        return x.reshape(self.n, -1).max(1).values

    def on_paths(self, x: Tensor) -> Tensor:
        "A number of each problem at each of its paths, (n·B, 1)."
        return x.repeat_interleave(len(self.nodes)).unsqueeze(-1)


class Policies:
    "What the policies `logits` do on a forest. Log-probabilities and costs carry a gradient."

    def __init__(self, forest: Forest, logits: Tensor):
        self.forest, self.rows = forest, forest.rows(logits)
        self.logp = token_logps(self.rows, forest.paths)
        self.cost = token_divergence(self.rows, forest.teacher_rows)
        self.prob = self.logp.detach().sum(-1).exp()
        self.spent = Budget().spent(self.cost.detach(), forest.mask)
        self.value = forest.sum(self.prob * forest.rewards)

    def over(self, limit: float) -> Tensor:
        "Exact probability of spending more than `limit`, (n,)."
        return self.forest.sum(self.prob * (self.spent > limit))

    def within(self, limit: float) -> Tensor:
        "Expected reward of the trajectories within `limit`, (n,)."
        return self.forest.sum(self.prob * self.forest.rewards * (self.spent <= limit))

    def costs(self, forward: bool) -> dict[str, Tensor]:
        "The costs that a method puts multipliers on."
        costs = {"divergence": self.cost}
        if forward:
            teacher = self.forest.teacher_rows
            costs["forward_kl"] = token_divergence(self.rows, teacher, kind="forward_kl")
        return costs


# ---- training -----------------------------------------------------------------------------------


class Best:
    "For every budget judged, the best policies met all of whose trajectories were within it."

    def __init__(self, forest: Forest, budgets: tuple[float, ...]):
        nan = torch.full((forest.n,), math.nan, dtype=torch.float64)
        self.value = {d: nan.clone() for d in budgets}
        self.step = {d: torch.full((forest.n,), -1) for d in budgets}

    def meet(self, policies: Policies, step: int) -> None:
        "Compare with the policies after `step` updates."
        worst = policies.forest.largest(policies.spent)
        for d, best in self.value.items():
            better = (worst <= d) & ~(policies.value <= best)
            self.value[d] = torch.where(better, policies.value, best)
            self.step[d] = torch.where(better, step, self.step[d])


def controlled(states: list[dict], violation: Tensor, settings: dict) -> Tensor:
    """The multipliers of `cmdp-rate`: the production controller on each tree.

    It reads the tree's exact violation probability (on a batch, the frequency of all prompts).
    """
    s = method_settings("cmdp-rate") | settings
    how = dict(rate=s["rate"], init=s["init"], low=s["min_scale"], high=s["max_scale"])
    pairs = zip(states, violation.tolist())
    scales = [rate_controller(state, v, s["target"], **how) for state, v in pairs]
    return torch.tensor(scales, dtype=torch.float64)


def expected_pressure(policies: Policies, limit: float) -> Tensor:
    "The production `pressure` of each tree, its mean over completions replaced by the expectation."
    gate = sigmoid_gate(policies.spent, CENTER * limit, WIDTH * limit)
    return FLOOR + policies.forest.sum(policies.prob * gate)


def answer(job: Job, policies: Policies, costs: dict[str, Tensor]) -> Signal:
    "What the method says of all trajectories; rate and price are left to `expected_loss`."
    forest = policies.forest
    seen = {name: cost.detach() for name, cost in costs.items()}
    logp = policies.logp.detach()
    batch = Batch(forest.rewards, forest.group_ids, forest.mask, logp, forest.teacher_logp, seen)
    budget = Budget(1.0 if job.budget is None else job.share * job.budget)
    held = {"target": 0.0, "price": "global"} if job.settings.get("target") else {}
    settings = {**job.settings, **held}
    return METHODS[job.method](batch, budget, {}, scale_rewards="none", **settings)


def expected_loss(job: Job, policies: Policies, states: list[dict]) -> Tensor:
    "The production loss of the method in expectation: it is linear in advantage and multiplier."
    forest, target = policies.forest, job.settings.get("target")
    costs = policies.costs(forward=bool(job.settings.get("forward")))
    signal = answer(job, policies, costs)
    scale = 1.0
    if target:
        scale = controlled(states, policies.over(job.budget), job.settings)
        if job.settings.get("price") == "prompt":
            scale = scale * expected_pressure(policies, job.share * job.budget)
        scale = forest.on_paths(scale)
    advantage = signal.advantage
    advantage = advantage.unsqueeze(-1) if advantage.dim() == 1 else advantage
    weight = policies.prob.unsqueeze(-1)
    multipliers = {name: weight * scale * m for name, m in signal.multipliers.items()}
    weighted = Signal(weight * advantage, multipliers)
    return signal_loss(weighted, policies.logp, costs, forest.mask, num_tokens=1)


def train(forest: Forest, job: Job) -> list[dict]:
    "One job: a row for each problem and budget judged."
    began = time.process_time()
    logits = forest.start.clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], LEARNING_RATE)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: 1 - 0.99 * k / STEPS)
    best, states = Best(forest, job.judged), [{} for _ in range(forest.n)]
    for step in range(STEPS + 1):
        policies = Policies(forest, logits)
        best.meet(policies, step)
        if step == STEPS:
            break
        loss = expected_loss(job, policies, states)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    return rows_of(job, policies, best, time.process_time() - began)


def rows_of(job: Job, policies: Policies, best: Best, seconds: float) -> list[dict]:
    "The rows of a job: for every budget judged and every problem, how its training ended."
    forest, rows = policies.forest, []
    for d in job.judged:
        columns = {
            "final_value": policies.value,
            "final_violation": policies.over(d * (1 + 1e-9)),
            "final_violation_1pct": policies.over(d * (1 + 0.01)),
            "final_within": policies.within(d * (1 + 1e-9)),
            "final_worst_spent": forest.largest(policies.spent),
            "best_feasible": best.value[d],
        }
        for i, (seed, start) in enumerate(forest.problems):
            rows.append(
                {
                    "seed": seed,
                    "start": start,
                    "budget": d,
                    "method": job.method,
                    "settings": json.dumps(job.settings),
                    "trained_for": job.share,
                    "optimum": round(optimum(seed, d), 6),
                    "teacher_value": round(teacher_value(seed), 6),
                    **{k: round(v[i].item(), 6) for k, v in columns.items()},
                    "best_step": int(best.step[d][i]),
                    "steps": STEPS,
                    "learning_rate": LEARNING_RATE,
                    "seconds_of_job": round(seconds, 1),
                    **made_with(),
                }
            )
    return rows


@cache
def optimum(seed: int, budget: float) -> float:
    "The hard optimum by dynamic programming (nbs/theory/00_tabular)."
    return hard_optimum(random_tree(seed), budget).value


def teacher_value(seed: int) -> float:
    "The teacher's expected reward: what a budget of 0 gives."
    return law(random_tree(seed), random_tree(seed).teacher).value().item()


# ---- the file -----------------------------------------------------------------------------------

RUNS = Runs(FILE, key=("method", "settings", "budget", "trained_for"))


def read() -> list[dict]:
    "The rows of methods.csv, numbers as numbers (NaN: never feasible)."
    return RUNS.read().to_dict("records")


def key(row: dict) -> tuple:
    "What identifies the job of a row."
    return row["method"], row["settings"], row["budget"], row["trained_for"]


def run() -> None:
    "Every job of the plan that is missing, appended as it ends."
    forest, done = Forest(), {key(row) for row in read()}
    for job in plan():
        if job.keys <= done:
            continue
        rows = train(forest, job)
        RUNS.append(*rows)
        seconds = rows[0]["seconds_of_job"]
        print(f"{job.method} {job.settings} {job.budget}: {seconds} s", flush=True)


def check(number: int) -> None:
    "Train the job of one row again and print both."
    old = read()[number]
    job = next(job for job in plan() if key(old) in job.keys)

    def problem(row):
        return row["seed"], row["start"], row["budget"]

    new = next(row for row in train(Forest(), job) if problem(row) == problem(old))
    for column, value in old.items():
        print(f"{column:22} {value!s:30} {new[column]}")


# ---- tables -------------------------------------------------------------------------------------


def reached(row: dict) -> float:
    "Value of the best feasible iterate as a share of the optimum; 0 if no iterate was feasible."
    return 0.0 if math.isnan(row["best_feasible"]) else row["best_feasible"] / row["optimum"]


def best_soft(rows: list[dict], complete: bool) -> list[dict]:
    """The rows of the best fixed λ for each budget and start, by the best feasible iterate.

    Chosen in hindsight, but once for all trees.
    """
    by_problem = {}
    for row in rows:
        if row["method"] == "soft" and json.loads(row["settings"])["complete"] == complete:
            by_settings = by_problem.setdefault((row["budget"], row["start"]), {})
            by_settings.setdefault(row["settings"], []).append(row)

    def total(group):
        return sum(reached(row) for row in group)

    out = []
    for problem in sorted(by_problem):
        out += max((group for _, group in sorted(by_problem[problem].items())), key=total)
    return out


def name_of(row: dict) -> str:
    "The line of a table that a row belongs to: method, settings, and what it was trained for."
    given = json.loads(row["settings"]).items()
    settings = ", ".join(f"{k} {v if isinstance(v, str) else format(v, 'g')}" for k, v in given)
    share = f", trained for {row['trained_for']:g} d" if row["trained_for"] < 1 else ""
    return f"{row['method']} {settings}{share}".strip()


def lines(rows: list[dict]) -> dict[str, list[dict]]:
    "The rows of each line of a table; of the fixed λ only the best."
    out = {}
    for row in rows:
        if row["method"] != "soft":
            out.setdefault(name_of(row), []).append(row)
    out["soft, best λ"] = best_soft(rows, complete=False)
    out["soft, best λ, complete"] = best_soft(rows, complete=True)
    return out


def summary(rows: list[dict]) -> dict:
    "Means over trees (and whatever else differs), values as shares of the optimum."

    def mean(f):
        return sum(map(f, rows)) / len(rows)

    return {
        "final": mean(lambda row: row["final_value"] / row["optimum"]),
        "violation": mean(lambda row: row["final_violation"]),
        "beyond 1%": mean(lambda row: row["final_violation_1pct"]),
        "within": mean(lambda row: row["final_within"] / row["optimum"]),
        "best feasible": mean(reached),
        "worst tree": min(map(reached, rows)),
        "never feasible": sum(row["best_step"] < 0 for row in rows),
    }


def line(name: str, rows: list[dict]) -> list[str]:
    "One line of a table of README.md."
    s = summary(rows)
    each = [summary([row for row in rows if row["budget"] == d])["best feasible"] for d in BUDGETS]
    by_budget = " / ".join(f"{x:.3f}" for x in each)
    ended = [f"{s[k]:.3f}" for k in ("final", "violation", "beyond 1%", "within")]
    never = f"{s['never feasible']} of {len(rows)}"
    return [name, *ended, by_budget, f"{s['worst tree']:.3f}", never]


def table() -> None:
    "The tables of README.md: markdown."
    budgets = " / ".join(map(str, BUDGETS))
    head = ["method", "final value", "P(D > d)", "P(D > 1.01 d)", "reward within"]
    head += [f"best feasible, d = {budgets}", "worst tree", "never feasible"]
    for start in STARTS:
        groups = lines([row for row in read() if row["start"] == start])
        print(f"\nStart: {start}\n")
        print(markdown(head, [line(name, rows) for name, rows in groups.items()]))


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
