"""Is the certificate wrong as seldom as it says, and what does it cost?

    python studies/certificate/study.py              the rows that results.csv does not hold yet
    python studies/certificate/study.py --students   the same of sampled.csv
    python studies/certificate/study.py --readme     the tables of README.md

10 000 simulated students a row, each looked at after every prompt, 4096 prompts at most, with a
true rate at the target, one or two points above and below it. Beside the simulation the exact
chances (`sequential.chances`), the same with a look every 64 prompts, the number of prompts that a
test with a fixed number of them (Clopper-Pearson) needs for a verdict with probability .9, and how
often that test errs where somebody looks after every prompt and stops at the first good look.

sampled.csv: the shipped student of the chains, certified by `certify.certify` at rates around the
one that 4000 other prompts show, with several seeds.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from scipy.stats import binom

from cmdp_nbdev.sequential import boundaries, chances
from studies.lab import Runs, made_with, markdown, put_between

HERE = Path(__file__).resolve().parent
RUNS = Runs(HERE / "results.csv", ("target", "rate", "students", "seed"))
SAMPLED = Runs(HERE / "sampled.csv", ("task", "budget", "target", "seed"))
TARGETS, AWAY = (0.8, 0.9, 0.95, 0.98), (-0.02, -0.01, 0.0, 0.01, 0.02)
PROMPTS, PORTION, POWER, MOST = 4096, 64, 0.9, 40_000
MARKS = "<!-- tables: study.py --readme -->\n", "\n<!-- end of tables -->"
TASKS = {"chains": (0.8, 3.0, 5.0)}  # nats


# ---- simulated students ----------------------------------------------------------------


def by_fixed_test(prompts: int, target: float) -> tuple[np.ndarray, np.ndarray]:
    "For every n the most violations that certify, the fewest that refuse, each with error .05."
    n = np.arange(1, prompts + 1)
    most = binom.ppf(0.05, n, 1 - target) - 1
    fewest = binom.ppf(0.95, n, 1 - target) + 1
    return most, fewest


def fixed_prompts(rate: float, target: float) -> int | None:
    "The n from which on a test of n prompts is clear with probability POWER; None above MOST."
    most, fewest = by_fixed_test(MOST, target)
    n = np.arange(1, MOST + 1)
    above = binom.cdf(most, n, 1 - rate) if rate > target else binom.sf(fewest - 1, n, 1 - rate)
    weak = np.flatnonzero(above < POWER)
    return int(weak[-1]) + 2 if rate != target and weak[-1] + 1 < MOST else None


def first_looks(broken: np.ndarray, most: np.ndarray, fewest: np.ndarray) -> tuple:
    "Of each student: the prompt of the verdict (PROMPTS without one), certified, refused."
    clear = (broken <= most) | (broken >= fewest)
    ends = clear.any(1)
    first = np.where(ends, clear.argmax(1), broken.shape[1] - 1)
    there = broken[np.arange(len(broken)), first]
    return first + 1, there <= most[first], there >= fewest[first]


def simulate(job: dict, prompts: int = PROMPTS, block: int = 500) -> dict:
    "Students with one rate, looked at after every prompt."
    target, rate = job["target"], job["rate"]
    rng = np.random.default_rng([job["seed"], round(1e6 * target), round(1e6 * rate)])
    ours, fixed = boundaries(prompts, target), by_fixed_test(prompts, target)
    asked, found = 0.0, np.zeros(4)
    for start in range(0, job["students"], block):
        size = min(block, job["students"] - start)
        violated = rng.random((size, prompts), dtype=np.float32) >= rate
        broken = violated.cumsum(1, dtype=np.int16)
        n, certified, refused = first_looks(broken, *ours)
        _, naively, no = first_looks(broken, *fixed)
        asked += n.sum()
        found += [certified.sum(), refused.sum(), naively.sum(), no.sum()]
    shares = found / job["students"]
    names = ("certified", "refused", "looked_certified", "looked_refused")
    return dict(zip(names, shares)) | {"prompts": asked / job["students"]}


def row_of(job: dict) -> dict:
    "One row: simulated, exact, in portions, and with a fixed number."
    began, row = time.perf_counter(), {**job, **simulate(job)}
    for name, every in (("exact", 1), ("portions", PORTION)):
        found = chances(job["rate"], PROMPTS, job["target"], every=every)
        row |= {f"{name}_{k}": round(v, 6) for k, v in found._asdict().items()}
    row["fixed_prompts"] = fixed_prompts(job["rate"], job["target"])
    row["seconds"] = round(time.perf_counter() - began, 1)
    return row | made_with()


def plan(students: int = 10_000) -> list[dict]:
    "Every target, and the rates around it that are below 1."
    rates = [(target, round(target + away, 4)) for target in TARGETS for away in AWAY]
    rest = {"students": students, "seed": 0}
    return [{"target": target, "rate": rate, **rest} for target, rate in rates if rate < 1]


# ---- real students ---------------------------------------------------------------------


def certified_students(seeds: int) -> None:
    "The shipped students, each sampled once on many prompts, then certified on others."
    from cmdp_nbdev.certify import certify
    from cmdp_nbdev.config import recipe
    from cmdp_nbdev.distil import EMBEDDED
    from cmdp_nbdev.evaluate import evaluate_records
    from cmdp_nbdev.examine import no_verdict
    from cmdp_nbdev.options import recipe_of

    for name, budgets in TASKS.items():
        task = EMBEDDED[name]
        student, teacher, tokenizer = task.pair()
        length = recipe(recipe_of({"task": name}))["max_completion_length"]
        every = task.prompts(8000, "test")
        first, others = every.select(range(4000)), every.select(range(4000, 8000))
        given = (student, teacher, first, tokenizer, no_verdict)
        how = dict(max_completion_length=length, disable_tqdm=True)
        spent = np.array([r["spent"] for r in evaluate_records(*given, seed=99, **how)])
        for budget in budgets:
            rate = float((spent <= budget).mean())
            targets = [round(rate + away, 2) for away in (-0.05, -0.02, 0.02, 0.05)]
            jobs = [
                {"task": name, "budget": budget, "target": target, "seed": seed}
                for target in targets
                for seed in range(seeds)
                if target < 1
            ]
            for job in SAMPLED.missing(jobs):
                asked = dict(budget=budget, target=job["target"], seed=job["seed"])
                found = certify(student, teacher, others, tokenizer, **asked, **how)
                kept = {"rate": rate, "verdict": found.verdict, "n": found.n}
                kept |= {"violations": found.violations, "seconds": found.seconds}
                SAMPLED.append({**job, **kept, **made_with()})
                print(job, kept, flush=True)


# ---- tables ----------------------------------------------------------------------------


def simulated_table() -> str:
    "One line a target and rate."
    head = ["asked", "true rate", "certified", "exact", "refused", "exact", "prompts", "exact"]
    head += [f"prompts, a look every {PORTION}", "fixed number of prompts", "looked at: certified"]
    lines = []
    for _, r in RUNS.read().iterrows():
        fixed = "–" if np.isnan(r["fixed_prompts"]) else f"{r['fixed_prompts']:.0f}"
        cells = [f"{r['target']:.2f}", f"{r['rate']:.2f}"]
        for verdict in ("certified", "refused"):
            cells += [f"{r[verdict]:.4f}", f"{r[f'exact_{verdict}']:.4f}"]
        cells += [f"{r[f'{kind}prompts']:.0f}" for kind in ("", "exact_", "portions_")]
        lines.append([*cells, fixed, f"{r['looked_certified']:.3f}"])
    return markdown(head, lines)


def sampled_table() -> str:
    "One line a student, budget and target: how often each verdict was given."
    head = ["student", "budget", "rate on 4000 prompts", "asked", "certified", "not certified"]
    head += ["undecided", "mean prompts", "mean seconds"]
    lines = []
    names = ["task", "budget", "rate", "target"]
    for (task, budget, rate, target), rows in SAMPLED.read().groupby(names, sort=False):
        counts = [
            f"{(rows['verdict'] == verdict).sum()} of {len(rows)}"
            for verdict in ("certified", "not certified", "undecided")
        ]
        means = [f"{rows['n'].mean():.0f}", f"{rows['seconds'].mean():.1f}"]
        lines.append([task, f"{budget:g}", f"{rate:.3f}", f"{target:.2f}", *counts, *means])
    return markdown(head, lines)


def tables() -> str:
    "Both tables of README.md."
    return f"{simulated_table()}\n\n{sampled_table()}"


def main() -> None:
    "See the top of this file."
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--students", action="store_true")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--readme", action="store_true")
    args = parser.parse_args()
    if args.readme:
        put_between(HERE / "README.md", MARKS, tables())
    elif args.students:
        certified_students(args.seeds)
    else:
        for job in RUNS.missing(plan()):
            row = row_of(job)
            RUNS.append(row)
            print({k: row[k] for k in ("target", "rate", "certified", "refused", "prompts")})


if __name__ == "__main__":
    main()
