"""Every method on the embedded task, under equal conditions: the study behind the table of the README.

    python studies/methods/study.py tune        four trials of 200 updates for every method, seed 100, validation prompts
    python studies/methods/study.py report      the settings that `tune` says are best, five other seeds, d = 0.8, test prompts
    python studies/methods/study.py lambdas     fixed lambdas, five seeds; other budgets are judged on the same students
    python studies/methods/study.py targets     the default asked for 80, 90, 95 and 99% at three budgets, five seeds
    python studies/methods/study.py budgets     methods that use d, at two other budgets, two seeds
    python studies/methods/study.py views       three fixed lambdas, two seeds, of which the widgets show the completions
    python studies/methods/study.py second      a second teacher with another flaw, two seeds
    python studies/methods/study.py ablate      the default without each of its parts, five seeds, d = 0.8
    python studies/methods/study.py scale       rewards times ten and divided by ten, three seeds
    python studies/methods/study.py show        prints the tables from the CSV files
    python studies/methods/study.py readme      writes them into README.md, between its two marks

Each run is one row of <stage>.csv; a run that is in the file is not repeated, so a stopped study goes on where it was. `--only TEXT`
runs the rows whose name contains it, `--seeds N` those of the first N seeds, `--workers N` that many at a time, one thread each. All runs share model, data, steps, batch and
schedule (the defaults of CMDPConfig) unless the row's `config` says otherwise.
"""

import argparse
import csv
import hashlib
import json
import os
import platform
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from scipy.stats import t as student_t

from cmdp_nbdev.evaluate import envelope

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from marks import put_between

SEEDS, TUNE_SEED, N_EVAL = range(5), 100, 4096
TRACE_SEEDS, N_TRACED, N_SHOWN = (
    (2, 3),
    400,
    40,
)  # runs of these seeds leave their first completions in traces/, for studies/traces/make_traces.py; the cost of every token of fewer
BUDGETS = (0.4, 0.8, 1.0)  # nats per sequence
TARGETS = (0.80, 0.90, 0.95, 0.99)
LAMBDAS = (0.25, 0.5, 0.75, 1.0, 1.1, 1.2, 1.35, 1.5, 2.0, 3.0)
LAMBDAS_NONE = (0.3, 0.5, 0.8, 1.2)  # with advantages that are only centred
DEFAULT = "cmdp-rate"

# four trials each: (settings of the method, other fields of CMDPConfig)
TRIALS = {
    "grpo": [({}, {"learning_rate": lr}) for lr in (1.5e-3, 1e-3, 7.5e-4, 4e-4)],
    "gkd": [({}, {"learning_rate": lr}) for lr in (3e-3, 1.5e-3, 1e-3, 7.5e-4)],
    "gkd off-policy": [
        ({}, {"lmbda": share, "seq_kd": True, "learning_rate": lr})
        for share in (0.0, 0.5)
        for lr in (3e-3, 1.5e-3)
    ],
    "minillm": [
        ({"length_normalization": n}, {"learning_rate": lr})
        for n in (True, False)
        for lr in (1.5e-3, 7.5e-4)
    ],
    "kdrl": [({"lam": lam}, {}) for lam in (0.5, 1.0, 2.0, 4.0)],
    "dual": [
        ({"lr": lr, "init": init}, {})
        for lr, init in ((0.02, 1.0), (0.1, 1.0), (0.1, 0.3), (0.5, 1.0))
    ],
    "pid": [
        ({"kp": kp, "ki": ki}, {}) for kp, ki in ((1.0, 0.02), (1.0, 0.1), (5.0, 0.1), (5.0, 0.5))
    ],
    "chance-dual": [
        ({"lr": lr, "init": init}, {})
        for lr, init in ((0.3, 1.0), (1.0, 1.0), (0.3, 3.0), (1.0, 3.0))
    ],
    "saute": [({"penalty": n}, {}) for n in (0.3, 1.0, 3.0, 10.0)],
    "saute-augmented": [
        ({"penalty": n, "coef": c}, {}) for n, c in ((1.0, 1.0), (0.0, 1.0), (0.0, 3.0), (0.0, 5.0))
    ],
    "cmdp": [
        ({"penalty": n, "coef": c}, {}) for n, c in ((1.0, 1.0), (0.0, 1.0), (0.0, 3.0), (0.0, 5.0))
    ],
    "hinge": [({"coef": c}, {}) for c in (1.0, 3.0, 6.0, 12.0)],
    "weakest-link": [
        ({"limit": d, "burn_in": b}, {})
        for d, b in ((0.1, 8), (0.2, 8), (0.4, 8), (0.4, 0), (0.8, 8), (0.8, 0), (1.6, 0))
    ],  # the first four collapsed, so it was given three more, which did, too
    DEFAULT: [
        ({}, {})
    ],  # was designed on this task with more trials than four: see README.md beside this file
}
USES_BUDGET = ("dual", "pid", "chance-dual", "cmdp", "hinge", DEFAULT)
ABLATIONS = {  # the default without one of its parts, or with another one in its place
    "no forward KL": {"forward": 0.0},
    "deviation of the group": {"scale_rewards": "group"},
    "fixed multiplier": {"target": 0.0, "floor": 0.7},
    "gated": {"floor": 0.3, "coef": 1.0},
    "no strong start": {"init": 0.5, "max_scale": 0.5},
}


def job(
    name: str,
    settings: dict,
    config: dict,
    seed: int,
    split: str = "test",
    pair: str = "embedded",
    scale: float = 1.0,
) -> dict:
    "One run. `name` is the method, or 'gkd off-policy'."
    return {
        "name": name,
        "method": name.split()[0],
        "settings": settings,
        "config": config,
        "seed": seed,
        "split": split,
        "pair": pair,
        "reward_scale": scale,
    }


def plan(stage: str) -> list[dict]:
    "The runs of a stage, the most wanted first."
    if stage == "tune":
        return [
            job(m, s, {**c, "max_steps": 200}, TUNE_SEED, "validation")
            for m, trials in TRIALS.items()
            if len(trials) > 1
            for s, c in trials
        ]
    if stage == "report":
        return [job(m, *chosen(m), seed) for seed in SEEDS for m in TRIALS]
    if stage == "lambdas":
        return [job("soft", {"lam": x}, {}, seed) for seed in SEEDS for x in LAMBDAS] + [
            job("soft", {"lam": x, "scale_rewards": "none"}, {}, seed)
            for seed in range(2)
            for x in LAMBDAS_NONE
        ]
    if stage == "targets":
        return [
            job(DEFAULT, {"target": t}, {"budget": d}, seed)
            for seed in SEEDS
            for d in BUDGETS
            for t in TARGETS
        ]
    if stage == "budgets":
        return [
            job(m, chosen(m)[0], {**chosen(m)[1], "budget": d}, seed)
            for seed in TRACE_SEEDS
            for d in (0.4, 1.0)
            for m in (DEFAULT, *USES_BUDGET[:-1])
        ]
    if stage == "views":
        return [job("soft", {"lam": x}, {}, seed) for seed in TRACE_SEEDS for x in (0.3, 1.0, 3.0)]
    if stage == "second":
        pair = "second"
        return [
            j
            for seed in range(2)
            for j in [job(DEFAULT, {}, {"budget": d}, seed, pair=pair) for d in (0.4, 0.8)]
            + [job("soft", {"lam": x}, {}, seed, pair=pair) for x in (0.5, 0.75, 1.0, 1.35, 2.0)]
            + [
                job(m, *chosen(m), seed, pair=pair)
                for m in ("grpo", "gkd", "cmdp", "hinge", "chance-dual")
            ]
        ]
    if stage == "ablate":
        return [job(DEFAULT, s, {}, seed) for seed in SEEDS for s in ABLATIONS.values()]
    if stage == "scale":
        return [
            job(m, s, {"correct_at": x, **c}, seed, scale=x)
            for seed in range(3)
            for x in (0.1, 1.0, 10.0)
            for m, s, c in (
                (DEFAULT, {}, {}),
                ("soft", {"lam": 1.2}, {}),
                ("soft", {"lam": 0.5, "scale_rewards": "none"}, {}),
            )
        ]
    raise SystemExit(f"unknown stage {stage!r}")


def chosen(name: str) -> tuple[dict, dict]:
    "Settings and config of a method's best trial: the most accurate one with 95% satisfaction; if none has, the one with most of both at once."
    if len(TRIALS[name]) == 1:
        return TRIALS[name][0]
    rows = [r for r in read("tune") if r["name"] == name]
    if len(rows) < len(TRIALS[name]):
        raise SystemExit(
            f"{name}: only {len(rows)} of {len(TRIALS[name])} trials are in tune.csv; run `study.py tune` first"
        )
    safe = [r for r in rows if r["satisfaction_rate"] >= 0.95]
    best = (
        max(safe, key=lambda r: r["accuracy"])
        if safe
        else max(rows, key=lambda r: r["accuracy_within_budget"])
    )
    return json.loads(best["settings"]), {
        k: v for k, v in json.loads(best["config"]).items() if k != "max_steps"
    }


def run(job: dict) -> dict:
    "Train and evaluate one student; the row of the CSV. A run that breaks is a row, too."
    import torch
    import transformers

    from cmdp_nbdev import __version__
    from cmdp_nbdev.budget import Budget
    from cmdp_nbdev.evaluate import summarize
    from cmdp_nbdev.model import default_pair, load_model, load_tokenizer
    from cmdp_nbdev.task import ChainTask, Flaw, chain_dataset, chain_reward, step_validity
    from cmdp_nbdev.trainer import CMDPConfig, CMDPTrainer

    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    task = ChainTask()
    student, teacher, tokenizer = default_pair()
    if job["pair"] == "second":
        folder = HERE / "second_pair"
        task = ChainTask(flaw=Flaw(**json.loads((folder / "metrics.json").read_text())["flaw"]))
        student, teacher, tokenizer = (
            load_model(folder / "student"),
            load_model(folder / "teacher"),
            load_tokenizer(folder / "student"),
        )

    def scaled(prompts, completions, answer):
        return [job["reward_scale"] * r for r in chain_reward(prompts, completions, answer)]

    reward = chain_reward if job["reward_scale"] == 1 else scaled
    row = {k: json.dumps(v) if isinstance(v, dict) else v for k, v in job.items()}
    with tempfile.TemporaryDirectory() as folder:
        config = CMDPConfig(
            method=job["method"],
            method_kwargs=job["settings"],
            seed=job["seed"],
            output_dir=folder,
            disable_tqdm=True,
            **job["config"],
        )
        trainer = CMDPTrainer(
            student,
            teacher,
            reward,
            config,
            chain_dataset(16000, task=task),
            chain_dataset(N_EVAL, job["split"], task=task),
            tokenizer,
            {"reasoning_validity": step_validity},
        )
        history, note, began = [], "", time.perf_counter()
        trainer.callbacks.append(lambda t, metrics: history.append(metrics))
        try:
            trainer.train()
        except (FloatingPointError, RuntimeError) as e:
            note = f"stopped at update {trainer.global_step}: {type(e).__name__}"
        seconds = time.perf_counter() - began
        result, records = trainer.evaluate(return_records=True)
        teachers = teacher_validity(teacher, tokenizer, task, job)
    if job["seed"] in TRACE_SEEDS and may_be_shown(job):
        save_trace(job, config.budget, records)
    valid, theirs = np.array([r["reasoning_validity"] for r in records]), np.array(teachers)
    other = {
        f"{k}_at_{d}": v[m]
        for d in BUDGETS
        for v in [summarize(records, Budget(d))]
        for k, m in (("satisfaction", "satisfaction_rate"), ("within", "accuracy_within_budget"))
    }
    last = history[-50:]
    moved = {
        "multiplier_mean": float(np.mean([m["multiplier_mean"] for m in last]))
        if last
        else float("nan"),
        "at_minimum": float(np.mean([m.get("at_minimum", 0) for m in last])) if last else 0.0,
    }
    numbers = {
        **{k: v for k, v in result.items() if not k.endswith(("_low", "_high"))},
        **other,
        "win_rate": float((valid > theirs).mean()),
        "loss_rate": float((valid < theirs).mean()),
        **moved,
    }
    return {
        **row,
        "budget": config.budget,
        **{k: round(float(v), 5) for k, v in numbers.items()},
        "steps": trainer.global_step,
        "completions": config.per_device_train_batch_size,
        "teacher_passes": round(sum(m.get("teacher_passes", 0) for m in history))
        or trainer.global_step * config.per_device_train_batch_size,
        "learning_rate": config.learning_rate,
        "seconds": round(seconds, 1),
        "note": note,
        "cmdp_nbdev": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, 1 thread",
    }


def may_be_shown(job: dict) -> bool:
    "Whether the widgets may show this run: the embedded pair on test prompts, rewards as they are."
    return (job["split"], job["pair"], job["reward_scale"]) == ("test", "embedded", 1.0)


def trace_path(name: str, settings: dict, budget: float, seed: int) -> Path:
    "Where the completions of a run are."
    text = json.dumps([name, settings, budget, seed])
    return (
        HERE
        / "traces"
        / f"{name.replace(' ', '_')}_{hashlib.sha256(text.encode()).hexdigest()[:12]}.npz"
    )


def save_trace(job: dict, budget: float, records: list[dict]) -> None:
    "The first completions of a run: spent, reward, correct, and the cost of every token of some; float16."
    cost = np.zeros((N_SHOWN, 32), np.float16)
    for line, r in zip(cost, records):
        line[: len(r["cost_per_token"])] = r["cost_per_token"]

    def of(k, dtype):
        return np.array([r[k] for r in records[:N_TRACED]], dtype)

    (path := trace_path(job["name"], job["settings"], budget, job["seed"])).parent.mkdir(
        exist_ok=True
    )
    np.savez_compressed(
        path,
        spent=of("spent", np.float16),
        reward=of("reward", np.float16),
        correct=of("correct", bool),
        length=np.array([len(r["cost_per_token"]) for r in records[:N_SHOWN]], np.uint8),
        cost=cost,
    )


def teacher_validity(teacher, tokenizer, task, job: dict) -> list[int]:
    "Whether every step checks, for the teacher's own completions of the same prompts (sampled once, seed 1): what win and loss rates compare with."
    from cmdp_nbdev.evaluate import evaluate_records
    from cmdp_nbdev.task import chain_dataset, chain_reward, step_validity

    path = HERE / f"teacher_{job['pair']}_{job['split']}.json"
    if path.exists():
        return json.loads(path.read_text())
    records = evaluate_records(
        teacher,
        teacher,
        chain_dataset(N_EVAL, job["split"], task=task),
        tokenizer,
        chain_reward,
        metrics={"reasoning_validity": step_validity},
        seed=1,
    )
    path.write_text(json.dumps([int(r["reasoning_validity"]) for r in records]))
    return json.loads(path.read_text())


TEXTS = {
    "name",
    "method",
    "settings",
    "config",
    "split",
    "pair",
    "note",
    "cmdp_nbdev",
    "torch",
    "transformers",
    "machine",
}


def read(stage: str) -> list[dict]:
    "The rows of <stage>.csv, numbers as numbers."
    path = HERE / f"{stage}.csv"
    if not path.exists():
        return []
    with open(path, newline="") as f:
        return [
            {k: v if k in TEXTS or v == "" else float(v) for k, v in row.items()}
            for row in csv.DictReader(f)
        ]


def soft_rows() -> list[dict]:
    "Fixed lambdas, advantages divided by the group's deviation. Runs of studies/foundation (same settings, same numbers) complete the seeds at d = 0.8."
    mine = [r for r in read("lambdas") if "scale_rewards" not in r["settings"]]
    have = {(r["settings"], r["seed"]) for r in mine}
    with open(HERE.parent / "foundation" / "report.csv", newline="") as f:
        old = [
            r
            for r in csv.DictReader(f)
            if r["method"] == "soft" and "scale_rewards" not in r["settings"]
        ]
    numbers = (
        "seed",
        "accuracy",
        "satisfaction_rate",
        "accuracy_within_budget",
        "kl_mean",
        "kl_p95",
        "reasoning_validity",
    )
    more = [
        {
            "name": "soft",
            "method": "soft",
            "settings": r["settings"],
            "config": r["config"],
            **{k: float(r[k]) for k in numbers},
        }
        for r in old
        if (r["settings"], float(r["seed"])) not in have
    ]
    return mine + [
        r
        | {
            "satisfaction_at_0.8": r["satisfaction_rate"],
            "within_at_0.8": r["accuracy_within_budget"],
        }
        for r in more
    ]


def key(row: dict) -> tuple:
    "What identifies a run."

    def text(x):
        return x if isinstance(x, str) else json.dumps(x)

    return (
        row["name"],
        text(row["settings"]),
        text(row["config"]),
        int(row["seed"]),
        row["split"],
        row["pair"],
        float(row["reward_scale"]),
    )


def work(stage: str, workers: int, only: str, seeds: int) -> None:
    "Run what is missing of a stage, appending rows as they come."
    done, path = {key(r) for r in read(stage)}, HERE / f"{stage}.csv"
    todo = [
        j
        for j in plan(stage)
        if key(j) not in done and only in j["name"] and (stage == "tune" or j["seed"] < seeds)
    ]
    print(f"{stage}: {len(done)} runs done, {len(todo)} to do", flush=True)
    with ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), max_tasks_per_child=1
    ) as pool:
        for n, future in enumerate(as_completed([pool.submit(run, j) for j in todo]), 1):
            row = future.result()
            columns = path.read_text().partition("\n")[0].split(",") if path.exists() else list(row)
            with open(path, "a", newline="") as f:
                writer = csv.DictWriter(f, columns, lineterminator="\n", extrasaction="ignore")
                if not f.tell():
                    writer.writeheader()
                writer.writerow(row)
            print(
                f"{n}/{len(todo)} {row['name']} {row['settings']} {row['config']} seed {row['seed']}: accuracy {row['accuracy']:.3f}, satisfaction {row['satisfaction_rate']:.3f} {row['note']}",
                flush=True,
            )


def groups(rows: list[dict]) -> dict[str, list[dict]]:
    "Rows by name and settings, the seeds of one setting together."
    out: dict[str, list[dict]] = {}
    for r in rows:
        more = {**json.loads(r["settings"]), **json.loads(r["config"])}
        out.setdefault(
            " ".join(
                [
                    r["name"],
                    *(
                        f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}"
                        for k, v in more.items()
                    ),
                ]
            ),
            [],
        ).append(r)
    return out


def mean(rows: list[dict], name: str) -> float:
    "Mean of a column over seeds."
    return float(np.mean([r[name] for r in rows]))


def half(rows: list[dict], name: str) -> str:
    "Half-width of the 95% t-interval over seeds, as text; empty for one seed."
    if len(rows) < 2:
        return "      "
    x = np.array([r[name] for r in rows])
    return f"±{student_t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x)):.3f}"


def table(rows: list[dict], budget: float | None = None) -> str:
    "One line per setting; `budget`: judge students that do not use the budget at this one."
    sat, within = (
        ("satisfaction_rate", "accuracy_within_budget")
        if budget is None
        else (f"satisfaction_at_{budget}", f"within_at_{budget}")
    )
    lines = [
        f"{'':46}{'accuracy':>14}{'satisfaction':>14}{'both':>14}{'KL mean':>9}{'KL p95':>8}{'valid':>7}{'win':>6}{'loss':>6}{'passes':>8}{'s':>5}{'seeds':>6}"
    ]
    for name, g in sorted(groups(rows).items(), key=lambda x: -mean(x[1], within)):
        lines.append(
            f"{name[:46]:46}{mean(g, 'accuracy'):8.3f}{half(g, 'accuracy')}{mean(g, sat):8.3f}{half(g, sat)}{mean(g, within):8.3f}{half(g, within)}{mean(g, 'kl_mean'):9.2f}{mean(g, 'kl_p95'):8.2f}"
            f"{mean(g, 'reasoning_validity'):7.3f}{mean(g, 'win_rate'):6.2f}{mean(g, 'loss_rate'):6.2f}{mean(g, 'teacher_passes') / 1000:7.0f}k{mean(g, 'seconds'):5.0f}{len(g):6}"
        )
    return "\n".join(lines)


def targets(rows: list[dict]) -> str:
    "Asked and achieved satisfaction, and accuracy, for every budget; * = the multiplier sits at its minimum."
    lines = [
        "budget  target  achieved (mean of seeds, 95% t-interval)   accuracy   both   multiplier   seeds"
    ]
    by: dict = {}
    for r in rows:
        by.setdefault((r["budget"], json.loads(r["settings"])["target"]), []).append(r)
    for (d, target), g in sorted(by.items()):
        gap = mean(g, "satisfaction_rate") - target
        verdict = (
            "ok"
            if abs(gap) <= 0.02
            else "above, at the minimum *"
            if gap > 0 and mean(g, "at_minimum") > 0.5
            else "above"
            if gap > 0
            else "BELOW"
        )
        lines.append(
            f"{d:6.1f}{target:8.2f}{mean(g, 'satisfaction_rate'):10.3f} {half(g, 'satisfaction_rate')}  {verdict:24}{mean(g, 'accuracy'):9.3f}{mean(g, 'accuracy_within_budget'):8.3f}{mean(g, 'multiplier_mean'):10.2f}{len(g):10}"
        )
    return "\n".join(lines)


def against_lambdas(ours: list[dict], soft: list[dict], budget: float, target: float = 0.95) -> str:
    "Ours against the upper envelope of the fixed lambdas at the same satisfaction, and against the best lambda that reaches the target with hindsight."
    sat, within = f"satisfaction_at_{budget}", f"within_at_{budget}"
    points = [
        {
            "satisfaction_rate": mean(g, sat),
            "accuracy": mean(g, "accuracy"),
            "within": mean(g, within),
            "name": n,
        }
        for n, g in groups(soft).items()
    ]
    x, y = mean(ours, "satisfaction_rate"), mean(ours, "accuracy")
    at = float(envelope(points, [x])[0])
    safe = [p for p in points if p["satisfaction_rate"] >= target]
    best = max(safe, key=lambda p: p["accuracy"]) if safe else None
    return (
        f"budget {budget}: ours {y:.3f} at satisfaction {x:.3f} (both {mean(ours, 'accuracy_within_budget'):.3f}); "
        + ("" if np.isnan(at) else f"fixed lambdas at that satisfaction {at:.3f} (envelope); ")
        + (
            f"best lambda with satisfaction >= {target:.3f}: {best['name']}, {best['accuracy']:.3f} at {best['satisfaction_rate']:.3f} (both {best['within']:.3f})"
            if best
            else f"no lambda reaches {target:.3f}"
        )
    )


def paired(
    ours: list[dict],
    theirs: list[dict],
    columns=(("accuracy", "accuracy"), ("accuracy_within_budget", "within_at_0.8")),
) -> str:
    "Difference of two settings over the seeds that both have, with its 95% t-interval; `columns`: (name in ours, name in theirs)."

    def of(rows, k):
        return {r["seed"]: r[k] for r in rows if k in r}

    lines = []
    for a, b in columns:
        mine, other = of(ours, a), of(theirs, b)
        x = np.array([mine[s] - other[s] for s in sorted(set(mine) & set(other))])
        if len(x) > 1:
            lines.append(
                f"{a} {x.mean():+.3f} [{x.mean() - (h := student_t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x))):+.3f}, {x.mean() + h:+.3f}] ({len(x)} seeds)"
            )
    return "; ".join(lines)


def against_sweep(rows: list[dict], soft: list[dict]) -> str:
    "At every budget: the default asked for 95% and for 99% against all fixed lambdas."
    lines = []
    for d in BUDGETS:
        at = [r for r in soft if f"satisfaction_at_{d}" in r]
        for target in (0.95, 0.99):
            ours = [
                r
                for r in rows
                if r["budget"] == d and json.loads(r["settings"])["target"] == target
            ]
            if ours and at:
                lines.append(
                    f"asked {target:.0%}, "
                    + against_lambdas(ours, at, d, min(target, mean(ours, "satisfaction_rate")))
                )
    return "\n".join(lines)


def second_table() -> str:
    "The second teacher: the default at both budgets, and the students of the other methods judged at each."
    rows = read("second")
    return "\n".join(
        f"budget {d}\n" + table([r for r in rows if r["name"] != DEFAULT or r["budget"] == d], d)
        for d in (0.4, 0.8)
    )


TITLES = {
    "report": "All methods, d = 0.8, five seeds",
    "lambdas": "Fixed lambdas, judged at d = 0.8",
    "budgets": "Methods that use d at two other budgets",
    "ablate": "The default without one of its parts, d = 0.8",
    "scale": "Rewards divided by ten, as they are, times ten",
    "tune": "Tuning trials (200 updates, one seed, validation prompts)",
}


def tables() -> str:
    "Every table for which there are rows."
    parts = [
        f"{title}\n\n{table(rows)}" for stage, title in TITLES.items() if (rows := read(stage))
    ]
    if rows := read("targets"):
        parts.insert(
            1,
            f"The default asked for four rates at three budgets\n\n{targets(rows)}\n\n{against_sweep(rows, soft_rows())}",
        )
    if read("second"):
        parts.append(f"A second teacher\n\n{second_table()}")
    return "\n\n\n".join(parts)


MARKS = "<!-- tables: study.py readme -->\n```\n", "\n```\n<!-- end of tables -->"


def readme() -> None:
    "Put the tables between the marks of README.md."
    put_between(HERE / "README.md", MARKS, tables())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", default="")
    parser.add_argument(
        "--seeds", type=int, default=len(SEEDS), help="only the first so many seeds"
    )
    args = parser.parse_args()
    if args.stage == "show":
        return print(tables())
    if args.stage == "readme":
        return readme()
    work(args.stage, args.workers, args.only, args.seeds)


if __name__ == "__main__":
    main()
