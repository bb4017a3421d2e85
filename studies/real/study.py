"""Constrained distillation of a pruned SmolLM2 on reasoning-gym's chain_sum.

    cmdp-prepare                            the pair: fine-tuned teacher, pruned and healed student
    python studies/real/study.py warm       on-policy distillation alone; the budget is read off the
                                            student that comes out (suggest_budget)
    python studies/real/study.py teacher    the teacher on the same test prompts
    python studies/real/study.py report     every method from that student, same data, updates and
                                            learning rate, one budget
    python studies/real/study.py compare    from the completions that the runs left: paired
                                            differences, and what right and wrong ones spend
    python studies/real/study.py show       prints the table of all runs
    python studies/real/study.py readme     writes the tables into README.md, between its two marks,
                                            and a copy of report.csv for lesson 09

`--pair FOLDER` if the pair is not in the cache, `--seeds N`, `--only METHOD`, `--workers N`. A run
is one row of report.csv and is not repeated. Its completions are kept in the pair's folder, study/;
the first four of two runs go into tutorials/data, for lesson 09.
"""

import argparse
import json
import resource
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import pandas as pd
import torch
import transformers

from cmdp_nbdev.budget import satisfaction_interval, suggest_budget
from cmdp_nbdev.evaluate import compare, evaluate
from cmdp_nbdev.judge import arithmetic_validity
from cmdp_nbdev.model import load_model, load_tokenizer
from cmdp_nbdev.prepare import cache_dir
from cmdp_nbdev.tasks import gym_reward, open_task, with_template
from cmdp_nbdev.trainer import CMDPConfig, CMDPTrainer
from studies.lab import Runs, made_with, markdown, put_between

HERE = Path(__file__).resolve().parent
LESSON = HERE.parents[1] / "tutorials" / "data"
RUNS = Runs(HERE / "report.csv", ("method", "settings", "seed"))
BUDGET, UPDATES = HERE / "budget.json", HERE / "default_updates.csv"
MARKS = "<!-- table -->\n", "\n<!-- end -->"

TASK = "reasoning_gym:chain_sum,min_terms=2,max_terms=3,min_digits=1,max_digits=2"
TEMPLATE = "{prompt}"
SHARED = {
    "per_device_train_batch_size": 24,
    "num_generations": 4,
    "max_completion_length": 40,
    "learning_rate": 1e-4,
    "warmup_steps": 5,
    "bf16": True,
    "kl_chunk_size": 512,
    "per_device_eval_batch_size": 50,
}
WARM = {**SHARED, "per_device_train_batch_size": 48, "num_generations": 8}
WARM_STEPS, STEPS, QUANTILE, N_EVAL = 30, 50, 0.8, 200
DEFAULT = "cmdp-rate"
METHODS = {DEFAULT: {}, "grpo": {}, "gkd": {}, "soft": {"lam": 0.3}}
METRICS = {"reasoning_validity": arithmetic_validity}

# ---- the runs -----------------------------------------------------------------------------


def prompts(split: str, n: int):
    "The first `n` prompts of a split."
    return with_template(open_task(TASK, split, n), TEMPLATE)


def folder_of(pair: Path, method: str, seed: int) -> Path:
    "Where a run keeps its student and its completions."
    return pair / "study" / ("warm" if method == "warm" else f"{method}-{seed}")


def trainer_of(job: dict, pair: Path) -> CMDPTrainer:
    """The trainer of one run.

    All methods start from the student of `warm`, so that only one of them measures the start.
    """
    warm = job["method"] == "warm"
    config = CMDPConfig.from_recipe(
        "embedded",
        method="gkd" if warm else job["method"],
        method_kwargs=job["settings"],
        budget=1.0 if warm else json.loads(BUDGET.read_text())["budget"],
        max_steps=WARM_STEPS if warm else STEPS,
        seed=job["seed"],
        output_dir=str(folder_of(pair, job["method"], job["seed"])),
        save_steps=10,
        save_total_limit=1,
        resume_from_checkpoint="auto",
        eval_on_start=job["method"] in ("warm", DEFAULT),
        disable_tqdm=True,
        **(WARM if warm else SHARED),
    )
    student = pair / "student" if warm else folder_of(pair, "warm", 0) / "student"
    data, test = prompts("train", 8000), prompts("test", N_EVAL)
    models = str(student), str(pair / "teacher")
    return CMDPTrainer(*models, gym_reward, config, data, test, eval_metrics=METRICS)


def run(job: dict, pair: Path) -> dict:
    "Train, judge and save one student: a row of report.csv."
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    trainer, note = trainer_of(job, pair), ""
    try:
        trainer.train()
    except (FloatingPointError, RuntimeError) as error:
        note = f"stopped at update {trainer.global_step}: {type(error).__name__}"
    result, records = trainer.evaluate(return_records=True)
    folder = folder_of(pair, job["method"], job["seed"])
    trainer.save_model(folder / "student")
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    history = [json.loads(line) for line in lines]
    if job["method"] == "warm":
        read_budget_off(trainer)
    keep(job, folder, records, history)
    return {
        **job,
        "settings": json.dumps(job["settings"]),
        "budget": trainer.args.budget,
        "steps": trainer.global_step,
        **{name: round(float(x), 5) for name, x in {**start_of(history), **result}.items()},
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "note": note,
        **(WARM if job["method"] == "warm" else SHARED),
        **made_with(),
    }


def start_of(history: list[dict]) -> dict[str, float]:
    "What was measured before the first update, as `start_...`; nothing if it was not."
    first = history[0] if history[0]["step"] == 0 else {}
    names = [name for name in first if name.startswith("eval_")]
    ends = ("_low", "_high")
    return {f"start_{name[5:]}": first[name] for name in names if not name.endswith(ends)}


def read_budget_off(trainer: CMDPTrainer) -> None:
    "The budget that the given share of completions keeps, on validation prompts."
    _, records = trainer.evaluate(prompts("validation", N_EVAL), return_records=True)
    about = {
        "budget": round(suggest_budget([r["spent"] for r in records], QUANTILE), 2),
        "quantile": QUANTILE,
        "prompts": f"{N_EVAL} of the validation split",
        "student": f"after {WARM_STEPS} updates of on-policy distillation",
    }
    BUDGET.write_text(json.dumps(about, indent=1) + "\n")


# ---- what a run leaves --------------------------------------------------------------------

KEPT = ("prompt", "completion", "answer", "reward", "correct", "within_budget", "completion_ids")
UPDATE = ("step", "accuracy", "satisfaction_rate", "kl_mean", "length_mean", "multiplier_mean")


def keep(job: dict, folder: Path, records: list[dict], history: list[dict]) -> None:
    "All completions beside the student; of seed 0 the first four, and the default's updates, here."
    lines = [json.dumps(shortened(record)) + "\n" for record in records]
    (folder / "eval.jsonl").write_text("".join(lines))
    if job["seed"] == 0 and job["method"] in ("warm", DEFAULT):
        (LESSON / f"real_{folder.name}.jsonl").write_text("".join(lines[:4]))
    if job["seed"] == 0 and job["method"] == DEFAULT:
        updates = [m for m in history if m["step"] > 0 and "accuracy" in m]
        pd.DataFrame(updates)[list(UPDATE)].round(4).to_csv(UPDATES, index=False)


def shortened(record: dict) -> dict:
    "What is kept of a completion; nats to three digits."
    return {name: record[name] for name in KEPT} | {
        "spent": round(record["spent"], 3),
        "cost_per_token": [round(nats, 3) for nats in record["cost_per_token"]],
        "reasoning_validity": record["reasoning_validity"],
    }


def records_of(pair: Path, method: str, seed: int = 0) -> list[dict]:
    "All completions of a run."
    lines = (folder_of(pair, method, seed) / "eval.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def judge_teacher(pair: Path) -> dict:
    "The teacher on the same test prompts: a row; its divergence from itself is 0."
    torch.set_num_threads(1)
    teacher = load_model(pair / "teacher")
    result = evaluate(
        teacher,
        teacher,
        prompts("test", N_EVAL),
        load_tokenizer(pair / "teacher"),
        gym_reward,
        metrics=METRICS,
        max_completion_length=SHARED["max_completion_length"],
        batch_size=50,
    )
    numbers = {name: round(float(x), 5) for name, x in result.items()}
    return {"method": "teacher", "settings": "{}", "seed": 0, "steps": 0, **numbers}


# ---- comparisons --------------------------------------------------------------------------


def seeds_of(method: str) -> list[int]:
    "The seeds that a method has in report.csv."
    return sorted(RUNS.read().query("method == @method")["seed"])


def paired(pair: Path) -> pd.DataFrame:
    """The default minus every other method over the seeds that both have.

    Prompt by prompt, on the same 200 test prompts (evaluate.compare).
    """
    rows = []
    for method in METHODS:
        seeds = [seed for seed in seeds_of(method) if seed in seeds_of(DEFAULT)]
        if method == DEFAULT or not seeds:
            continue
        both = [[records_of(pair, name, seed) for seed in seeds] for name in (DEFAULT, method)]
        ours, theirs = both if len(seeds) > 1 else (both[0][0], both[1][0])
        for metric in ("accuracy", "satisfaction_rate", "accuracy_within_budget"):
            found = compare(ours, theirs, metric)
            numbers = {x: round(found[x], 4) for x in ("difference", "low", "high", "p_value")}
            rows.append({"against": method, "seeds": len(seeds), "metric": metric, **numbers})
    return pd.DataFrame(rows)


def spent(pair: Path) -> pd.DataFrame:
    "What right and wrong completions spend, all seeds of a method together."
    budget, rows = json.loads(BUDGET.read_text())["budget"], []
    for method in ("warm", *METHODS):
        seeds = seeds_of(method)
        records = [r for seed in seeds for r in records_of(pair, method, seed)]
        if not records:
            continue
        nats = pd.Series([r["spent"] for r in records])
        right = pd.Series([r["correct"] for r in records])
        rows.append(
            {
                "method": method,
                "seeds": len(seeds),
                "spent_right": nats[right].mean(),
                "spent_wrong": nats[~right].mean(),
                "share_of_nats_on_wrong": nats[~right].sum() / nats.sum(),
                "satisfaction_right": (nats[right] <= budget).mean(),
                "satisfaction_wrong": (nats[~right] <= budget).mean(),
            }
        )
    return pd.DataFrame(rows).round(3)


# ---- tables -------------------------------------------------------------------------------


def rate(row: dict, name: str) -> str:
    "A rate with its 95% interval over prompts."
    return f"{row[name]:.3f} [{row[f'{name}_low']:.2f}, {row[f'{name}_high']:.2f}]"


def start_rate(row: dict, name: str) -> str:
    "A rate before the first update, with its 95% interval over prompts."
    share = row[f"start_{name}"]
    low, high = satisfaction_interval(round(share * N_EVAL), N_EVAL)
    return f"{share:.3f} [{low:.2f}, {high:.2f}]"


def rest(row: dict, prefix: str = "") -> list[str]:
    "The last columns: divergence, validity, length."
    kl = f"{row[f'{prefix}kl_mean']:.2f} / {row[f'{prefix}kl_p95']:.2f}"
    valid, length = row[f"{prefix}reasoning_validity"], row[f"{prefix}length_mean"]
    return [kl, f"{valid:.3f}", f"{length:.1f}"]


RATES = ("accuracy", "satisfaction_rate", "accuracy_within_budget")


def table(runs: pd.DataFrame) -> str:
    "One line a run; rates with their 95% intervals."
    head = ["method", "settings", "seed", "accuracy", "satisfaction", "both"]
    head += ["KL mean / p95", "reasoning valid", "length"]
    rows = runs.to_dict("records")
    first = {row["method"]: row for row in reversed(rows)}
    teacher, warm, ours = (first[name] for name in ("teacher", "warm", DEFAULT))
    begin = "*after on-policy distillation: where all methods start*"
    lines = [
        ["*teacher*", "", "", rate(teacher, "accuracy"), "", "", "", *rest(teacher)[1:]],
        # the budget was read off a later student
        ["*healed student*", "", "", start_rate(warm, "accuracy"), "", "", *rest(warm, "start_")],
        [begin, "", "", *(start_rate(ours, name) for name in RATES), *rest(ours, "start_")],
    ]
    for method in METHODS:
        for row in sorted((r for r in rows if r["method"] == method), key=lambda r: r["seed"]):
            settings = [f"{name}={x:g}" for name, x in json.loads(row["settings"]).items()]
            rates = [rate(row, name) for name in RATES]
            lines.append([f"`{method}`", ", ".join(settings), row["seed"], *rates, *rest(row)])
    return markdown(head, lines)


def differences() -> str:
    "paired.csv: a line for each method, a column for each metric."
    lines = []
    for method, rows in pd.read_csv(HERE / "paired.csv").groupby("against", sort=False):
        cells = [
            f"{row['difference']:+.3f} [{row['low']:+.2f}, {row['high']:+.2f}]"
            for _, row in rows.iterrows()
        ]
        lines.append([f"`{method}`", rows["seeds"].iloc[0], *cells])
    return markdown(["default minus", "seeds", "accuracy", "satisfaction", "both"], lines)


def spending() -> str:
    "spent.csv, a line for each method."
    head = ["completions of", "nats, right ones", "nats, wrong ones"]
    head += ["share of all nats that wrong ones spend"]
    head += ["budget kept, right ones", "budget kept, wrong ones"]
    lines = []
    for _, row in pd.read_csv(HERE / "spent.csv").iterrows():
        name = "*where all start*" if row["method"] == "warm" else f"`{row['method']}`"
        lines.append([name, *(f"{x:.2f}" for x in row.drop(["method", "seeds"]))])
    return markdown(head, lines)


def tables() -> str:
    "All that README.md shows."
    return "\n\n".join([table(RUNS.read()), differences(), spending()])


def write_readme() -> None:
    "Put the tables between the marks of README.md, and the rows beside lesson 09."
    put_between(HERE / "README.md", MARKS, tables())
    (LESSON / "real_report.csv").write_text(RUNS.path.read_text())


# ---- command line -------------------------------------------------------------------------


def say(row: dict) -> str:
    "A run in one line."
    found = f"accuracy {row['accuracy']:.3f}, satisfaction {row['satisfaction_rate']:.3f}"
    return f"{row['method']} seed {row['seed']}: {found}, KL {row['kl_mean']:.2f} {row['note']}"


def plan(stage: str, seeds: int, only: str) -> list[dict]:
    "The runs of a stage."
    if stage == "warm":
        return [{"method": "warm", "settings": {}, "seed": 0}]
    return [
        {"method": method, "settings": settings, "seed": seed}
        for seed in range(seeds)
        for method, settings in METHODS.items()
        if only in method
    ]


def main() -> None:
    "See the top of this file."
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=("warm", "teacher", "report", "compare", "show", "readme"))
    parser.add_argument("--pair", type=Path)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", default="")
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()
    pair = args.pair or cache_dir() / "smollm2-pair"
    if args.stage == "show":
        print(table(RUNS.read()))
    elif args.stage == "readme":
        write_readme()
    elif args.stage == "compare":
        paired(pair).to_csv(HERE / "paired.csv", index=False)
        spent(pair).to_csv(HERE / "spent.csv", index=False)
    elif args.stage == "teacher":
        if RUNS.missing([{"method": "teacher", "settings": {}, "seed": 0}]):
            RUNS.append(judge_teacher(pair))
    else:
        jobs = plan(args.stage, args.seeds, args.only)
        RUNS.work(jobs, partial(run, pair=pair), say, args.workers)


if __name__ == "__main__":
    main()
