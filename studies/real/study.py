"""Constrained distillation of a pruned SmolLM2 on reasoning-gym's chain_sum: the study behind lesson 09 and the README's section on real models.

    cmdp-prepare                                 the pair: fine-tuned teacher, pruned and healed student
    python studies/real/study.py warm            on-policy distillation alone; the budget is read off its student (suggest_budget)
    python studies/real/study.py teacher         the teacher on the same test prompts
    python studies/real/study.py report          every method from that student, same data, updates and learning rate, one budget
    python studies/real/study.py show            prints the tables from the CSV
    python studies/real/study.py compare         from the records that the runs left: paired differences, and what right and wrong completions spend
    python studies/real/study.py readme          writes them into README.md, between its two marks

`--pair FOLDER` if the pair is not in the cache, `--seeds N`, `--only METHOD`, `--workers N`. A run that is in report.csv is not repeated. The last completions of
each run are kept in records/, for the lesson and the judges.
"""

import argparse
import csv
import json
import os
import platform
import resource
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from marks import put_between

MARKS = "<!-- table -->\n", "<!-- end -->"
TASK, TEMPLATE = (
    "reasoning_gym:chain_sum,min_terms=2,max_terms=3,min_digits=1,max_digits=2",
    "{prompt}",
)
SHARED = dict(
    per_device_train_batch_size=24,
    num_generations=4,
    max_completion_length=40,
    learning_rate=1e-4,
    warmup_steps=5,
    bf16=True,
    kl_chunk_size=512,
    per_device_eval_batch_size=50,
    disable_tqdm=True,
)
WARM = {**SHARED, "per_device_train_batch_size": 48, "num_generations": 8}
WARM_STEPS, STEPS, QUANTILE, N_EVAL, N_SHOWN = 30, 50, 0.8, 200, 60
METHODS = {"cmdp-rate": {}, "grpo": {}, "gkd": {}, "soft": {"lam": 0.3}}


def trainer_of(
    pair: Path,
    student: Path,
    method: str,
    settings: dict,
    folder: Path,
    seed: int,
    budget: float,
    steps: int,
    shared: dict,
    eval_on_start: bool,
):
    "The trainer of one run; training and held-out prompts do not depend on it."
    from cmdp_nbdev.judge import arithmetic_validity
    from cmdp_nbdev.tasks import gym_reward, open_task, with_template
    from cmdp_nbdev.trainer import CMDPConfig, CMDPTrainer

    train, test = (
        with_template(open_task(TASK, split, n), TEMPLATE)
        for split, n in (("train", 8000), ("test", N_EVAL))
    )
    config = CMDPConfig(
        method=method,
        method_kwargs=settings,
        budget=budget,
        max_steps=steps,
        seed=seed,
        output_dir=str(folder),
        save_steps=10,
        save_total_limit=1,
        resume_from_checkpoint="auto",
        eval_on_start=eval_on_start,
        **shared,
    )
    return CMDPTrainer(
        str(student),
        str(pair / "teacher"),
        gym_reward,
        config,
        train,
        test,
        eval_metrics={"reasoning_validity": arithmetic_validity},
    )


def run(pair: str, method: str, settings: dict, seed: int, warm: bool = False) -> dict:
    "Train, evaluate and save one student; the row of report.csv. All methods start from one student, so that only one of them measures the start."
    import torch
    import transformers

    from cmdp_nbdev import __version__

    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    pair, runs = Path(pair), Path(pair) / "study"
    budget = 1.0 if warm else json.loads((HERE / "budget.json").read_text())["budget"]
    folder = runs / ("warm" if warm else f"{method}-{seed}")
    trainer = trainer_of(
        pair,
        pair / "student" if warm else runs / "warm" / "student",
        method,
        settings,
        folder,
        seed,
        budget,
        WARM_STEPS if warm else STEPS,
        WARM if warm else SHARED,
        warm or method == "cmdp-rate",
    )
    note = ""
    try:
        trainer.train()
    except (FloatingPointError, RuntimeError) as e:
        note = f"stopped at update {trainer.global_step}: {type(e).__name__}"
    result, records = trainer.evaluate(return_records=True)
    trainer.save_model(folder / "student")
    history = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    start = {
        f"start_{k[5:]}": v
        for k, v in (history[0] if history[0]["step"] == 0 else {}).items()
        if k.startswith("eval_") and not k.endswith(("_low", "_high"))
    }
    if warm:
        from cmdp_nbdev.budget import suggest_budget
        from cmdp_nbdev.tasks import open_task, with_template

        spent = [
            r["spent"]
            for r in trainer.evaluate(
                with_template(open_task(TASK, "validation", N_EVAL), TEMPLATE), return_records=True
            )[1]
        ]
        (HERE / "budget.json").write_text(
            json.dumps(
                {
                    "budget": round(suggest_budget(spent, QUANTILE), 2),
                    "quantile": QUANTILE,
                    "prompts": f"{N_EVAL} of the validation split",
                    "student": f"after {WARM_STEPS} updates of on-policy distillation",
                },
                indent=1,
            )
            + "\n"
        )
    (HERE / "records").mkdir(exist_ok=True)

    def keep(r):
        return {
            k: r[k]
            for k in (
                "prompt",
                "completion",
                "answer",
                "reward",
                "correct",
                "within_budget",
                "completion_ids",
            )
        } | {
            "spent": round(r["spent"], 3),
            "cost_per_token": [round(c, 3) for c in r["cost_per_token"]],
            "reasoning_validity": r["reasoning_validity"],
        }

    lines = [json.dumps(keep(r)) + "\n" for r in records]
    (folder / "eval.jsonl").write_text("".join(lines))
    if seed == 0:
        (HERE / "records" / f"{folder.name}.jsonl").write_text("".join(lines[:N_SHOWN]))
    if seed == 0:
        (HERE / "records" / f"{folder.name}-curve.json").write_text(
            json.dumps(
                [
                    {
                        k: round(m[k], 4)
                        for k in (
                            "step",
                            "accuracy",
                            "satisfaction_rate",
                            "kl_mean",
                            "length_mean",
                            "multiplier_mean",
                        )
                    }
                    for m in history
                    if m["step"] > 0 and "accuracy" in m
                ]
            )
            + "\n"
        )
    return {
        "method": "warm" if warm else method,
        "settings": json.dumps(settings),
        "seed": seed,
        "budget": budget,
        "steps": trainer.global_step,
        **{k: round(float(v), 5) for k, v in {**start, **result}.items()},
        "seconds": round(sum(m.get("seconds", 0.0) for m in history), 1),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "note": note,
        **{k: v for k, v in (WARM if warm else SHARED).items() if k != "disable_tqdm"},
        "cmdp_nbdev": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, 1 thread",
    }


def teacher_row(pair: str) -> dict:
    "The teacher on the same 200 test prompts; its divergence from itself is 0."
    import torch

    from cmdp_nbdev.evaluate import evaluate
    from cmdp_nbdev.judge import arithmetic_validity
    from cmdp_nbdev.model import load_model, load_tokenizer
    from cmdp_nbdev.tasks import gym_reward, open_task, with_template

    torch.set_num_threads(1)
    teacher = load_model(Path(pair) / "teacher")
    result = evaluate(
        teacher,
        teacher,
        with_template(open_task(TASK, "test", N_EVAL), TEMPLATE),
        load_tokenizer(Path(pair) / "teacher"),
        gym_reward,
        metrics={"reasoning_validity": arithmetic_validity},
        max_completion_length=SHARED["max_completion_length"],
        batch_size=50,
    )
    return {
        "method": "teacher",
        "settings": "{}",
        "seed": 0,
        "steps": 0,
        "seconds": 0,
        **{k: round(float(v), 5) for k, v in result.items()},
    }


def read() -> list[dict]:
    "The rows of report.csv."
    path = HERE / "report.csv"
    if not path.exists():
        return []
    with open(path, newline="") as f:
        return list(csv.DictReader(f))


def save(rows: list[dict], name: str = "report.csv") -> None:
    "Write rows; columns are those of all."
    with open(HERE / name, "w", newline="") as f:
        writer = csv.DictWriter(
            f, list(dict.fromkeys(k for r in rows for k in r)), lineterminator="\n"
        )
        writer.writeheader()
        writer.writerows(rows)


def records(runs: Path, method: str, seed: int = 0) -> list[dict]:
    "All evaluated completions of a run."
    return [
        json.loads(line)
        for line in (runs / ("warm" if method == "warm" else f"{method}-{seed}") / "eval.jsonl")
        .read_text()
        .splitlines()
    ]


def seeds_of() -> dict[str, list[int]]:
    "The seeds that every method has in report.csv."
    return {
        m: seeds
        for m in ("warm", *METHODS)
        if (seeds := sorted(int(r["seed"]) for r in read() if r["method"] == m))
    }


def paired(runs: Path) -> list[dict]:
    "The default minus every other method over the seeds that both have, prompt by prompt on the same 200 test prompts (evaluate.compare)."
    from cmdp_nbdev.evaluate import compare

    have, ours, out = seeds_of(), "cmdp-rate", []
    for method in METHODS:
        seeds = [s for s in have.get(method, []) if s in have.get(ours, [])]
        if method == ours or not seeds:
            continue
        a, b = ([records(runs, m, s) for s in seeds] for m in (ours, method))
        for k in ("accuracy", "satisfaction_rate", "accuracy_within_budget"):
            c = compare(*((a, b) if len(seeds) > 1 else (a[0], b[0])), k)
            out.append(
                {
                    "against": method,
                    "seeds": len(seeds),
                    "metric": k,
                    **{x: round(c[x], 4) for x in ("difference", "low", "high", "p_value")},
                }
            )
    return out


def spent(runs: Path) -> list[dict]:
    "What right and wrong completions spend, all seeds of a method together."
    budget, out = json.loads((HERE / "budget.json").read_text())["budget"], []
    for method, seeds in seeds_of().items():
        rows = [r for s in seeds for r in records(runs, method, s)]
        of = {ok: [r["spent"] for r in rows if r["correct"] == ok] for ok in (True, False)}

        def mean(x):
            return round(sum(x) / len(x), 3)

        out.append(
            {
                "method": method,
                "seeds": len(seeds),
                "spent_right": mean(of[True]),
                "spent_wrong": mean(of[False]),
                "share_of_nats_on_wrong": round(sum(of[False]) / sum(r["spent"] for r in rows), 3),
                "satisfaction_right": mean([x <= budget for x in of[True]]),
                "satisfaction_wrong": mean([x <= budget for x in of[False]]),
            }
        )
    return out


def table(rows: list[dict]) -> str:
    "One line a run, in markdown; rates with their 95% intervals."
    from cmdp_nbdev.budget import satisfaction_interval

    def rate(r, k):
        return f"{float(r[k]):.3f} [{float(r[f'{k}_low']):.2f}, {float(r[f'{k}_high']):.2f}]"

    head = "| method | settings | seed | accuracy | satisfaction | both | KL mean / p95 | reasoning valid | length | minutes |\n|---|---|---|---|---|---|---|---|---|---|"
    lines, first = [], {r["method"]: r for r in reversed(rows)}

    def began(r, k):
        low, high = satisfaction_interval(round(float(r[f"start_{k}"]) * N_EVAL), N_EVAL)
        return f"{float(r[f'start_{k}']):.3f} [{low:.2f}, {high:.2f}]"

    def before(r, name, judged, minutes):
        return f"| *{name}* | | | {began(r, 'accuracy')} | {judged} | {float(r['start_kl_mean']):.2f} / {float(r['start_kl_p95']):.2f} | {float(r['start_reasoning_validity']):.3f} | {float(r['start_length_mean']):.1f} | {minutes} |"

    if t := first.get("teacher"):
        lines.append(
            f"| *teacher* | | | {rate(t, 'accuracy')} | | | | {float(t['reasoning_validity']):.3f} | {float(t['length_mean']):.1f} | |"
        )
    if w := first.get("warm"):
        lines.append(
            before(w, "healed student", " | ", "")
        )  # the budget was read off a later student
    if w and (o := first.get("cmdp-rate")):
        lines.append(
            before(
                o,
                "after on-policy distillation: where all methods start",
                f"{began(o, 'satisfaction_rate')} | {began(o, 'accuracy_within_budget')}",
                f"{float(w['seconds']) / 60:.0f}",
            )
        )
    for r in sorted(
        (r for r in rows if r["method"] in METHODS),
        key=lambda r: (list(METHODS).index(r["method"]), r["seed"]),
    ):
        lines.append(
            f"| `{r['method']}` | {r['settings'] if r['settings'] != '{}' else ''} | {r['seed']} | {rate(r, 'accuracy')} | {rate(r, 'satisfaction_rate')} | {rate(r, 'accuracy_within_budget')} | {float(r['kl_mean']):.2f} / {float(r['kl_p95']):.2f} | {float(r['reasoning_validity']):.3f} | {float(r['length_mean']):.1f} | {float(r['seconds']) / 60:.0f} |"
        )
    return "\n".join([head, *lines])


def differences() -> str:
    "paired.csv and spent.csv in markdown."
    with open(HERE / "paired.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    names = list(dict.fromkeys(r["metric"] for r in rows))

    def cell(r):
        return f"{float(r['difference']):+.3f} [{float(r['low']):+.2f}, {float(r['high']):+.2f}]"

    lines = [
        f"| default minus | seeds | {' | '.join({'satisfaction_rate': 'satisfaction', 'accuracy_within_budget': 'both'}.get(n, n) for n in names)} |",
        "|---|---|" + "---|" * len(names),
    ]
    for m in dict.fromkeys(r["against"] for r in rows):
        mine = [r for r in rows if r["against"] == m]
        lines.append(f"| `{m}` | {mine[0]['seeds']} | {' | '.join(map(cell, mine))} |")
    lines += [
        "",
        "| completions of | nats, right ones | nats, wrong ones | share of all nats that wrong ones spend | budget kept, right ones | budget kept, wrong ones |",
        "|---|---|---|---|---|---|",
    ]
    with open(HERE / "spent.csv", newline="") as f:
        for r in csv.DictReader(f):
            lines.append(
                "| "
                + " | ".join(
                    [
                        f"`{r['method']}`" if r["method"] != "warm" else "*where all start*",
                        *(f"{float(v):.2f}" for k, v in r.items() if k not in ("method", "seeds")),
                    ]
                )
                + " |"
            )
    return "\n".join(lines)


def readme() -> None:
    "Put the table between the marks of README.md, and what lesson 09 shows beside the lesson."
    put_between(HERE / "README.md", MARKS, table(read()) + "\n\n" + differences() + "\n")
    lesson = HERE.parents[1] / "tutorials" / "data"
    (lesson / "real_report.csv").write_text((HERE / "report.csv").read_text())
    for name in ("warm", "cmdp-rate-0"):
        (lesson / f"real_{name}.jsonl").write_text(
            "".join((HERE / "records" / f"{name}.jsonl").read_text().splitlines(keepends=True)[:4])
        )


def main() -> None:
    "See the top of this file."
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=("warm", "teacher", "report", "compare", "show", "readme"))
    parser.add_argument("--pair")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", default="")
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()
    if args.stage == "show":
        return print(table(read()))
    if args.stage == "readme":
        return readme()
    from cmdp_nbdev.prepare import cache_dir

    pair = args.pair or str(cache_dir() / "smollm2-pair")
    if args.stage == "compare":
        return save(paired(Path(pair) / "study"), "paired.csv"), save(
            spent(Path(pair) / "study"), "spent.csv"
        )
    if args.stage == "teacher":
        return save([*(r for r in read() if r["method"] != "teacher"), teacher_row(pair)])
    done = {(r["method"], r["settings"], int(r["seed"])) for r in read()}
    jobs = (
        [("gkd", {}, 0, True)]
        if args.stage == "warm"
        else [
            (m, s, seed, False)
            for seed in range(args.seeds)
            for m, s in METHODS.items()
            if args.only in m
        ]
    )
    jobs = [j for j in jobs if ("warm" if j[3] else j[0], json.dumps(j[1]), j[2]) not in done]
    with ProcessPoolExecutor(args.workers, mp_context=get_context("spawn")) as pool:
        for future in as_completed([pool.submit(run, pair, *job) for job in jobs]):
            save([*read(), row := future.result()])
            print(
                f"{row['method']} seed {row['seed']}: accuracy {row['accuracy']:.3f}, satisfaction {row['satisfaction_rate']:.3f}, KL {row['kl_mean']:.2f}, {row['seconds']:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
