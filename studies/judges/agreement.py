"""Do judges of reasoning agree, and does the winner depend on the judge?

    python studies/judges/agreement.py                 the embedded pair, into agreement.json
    python studies/judges/agreement.py --student FOLDER --teacher FOLDER --records A/eval.jsonl B/eval.jsonl --output real.json
    python studies/judges/agreement.py readme          puts the tables of all result files beside this script into README.md

Every judge sees the same pairs of completions in both orders. `steps` is exact: every step of an embedded chain, or every calculation that
is found in a worked solution. `answer` compares rewards. The others compare log-likelihoods under the teacher or the student. Where one of a
pair is a copy with a known error, `truth` is known, too. `--records` takes what cmdp-distill writes (one completion each of the same
prompts); `--instruct FOLDER` adds a local instruct model as a judge, asked with the published template.
"""

import argparse
import csv
import json
import random
import re
import sys
import time
from pathlib import Path

import torch

from cmdp_nbdev import __version__
from cmdp_nbdev.budget import Budget
from cmdp_nbdev.evaluate import evaluate_records
from cmdp_nbdev.judge import (
    agreement,
    arithmetic_steps,
    arithmetic_validity,
    judge_records,
    likelihood,
    model_judge,
    score_judge,
    text_of,
)
from cmdp_nbdev.model import default_pair, load_model, load_tokenizer
from cmdp_nbdev.task import (
    ChainTask,
    Flaw,
    apply_op,
    chain_dataset,
    chain_reward,
    parse_prompt,
    step_validity,
    write_chain,
)

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from marks import put_between

MARKS = "<!-- tables: agreement.py readme -->", "<!-- end -->"
KEEP = (
    "win_rate",
    "loss_rate",
    "tie_rate",
    "net_win_rate",
    "inconsistent_rate",
    "position_bias",
    "unjudged_rate",
    "n_pairs",
)


def slipped(prompt: str, rng: random.Random) -> str:
    "The chain of `prompt` with one wrong step, drawn at random; what follows goes on from it."
    value, ops = parse_prompt(prompt)
    at, shift, written = rng.randrange(len(ops)), rng.randrange(1, 10), []
    for i, (op, operand) in enumerate(ops):
        result = (apply_op(value, op, operand) + shift * (i == at)) % 10
        written.append(f"{value}{op}{operand}={result}")
        value = result
    return ";".join(written) + f"#{value}"


def spoiled(text: str, rng: random.Random) -> str | None:
    "A worked solution with the result of one of its right calculations changed, None if it has none; nothing else is touched."
    right = [
        s for s, ok in arithmetic_steps(text) if ok and text.count(s) == 1 and re.search(r"\d+$", s)
    ]
    if not right:
        return None
    step = rng.choice(right)
    return text.replace(
        step, re.sub(r"\d+$", lambda m: str(int(m[0]) + rng.randrange(1, 10)), step)
    )


def known(
    prompts: list, right: list[str], wrong: list[str], rng: random.Random
) -> tuple[list[dict], list[dict], list[float]]:
    "Right and wrong completions as two lists of records, sides drawn at random, and the true verdicts."
    sides = [rng.random() < 0.5 for _ in prompts]

    def record(p, c, ok):
        return {"prompt": p, "completion": c, "reward": float(ok)}

    a = [record(p, r if s else w, s) for p, r, w, s in zip(prompts, right, wrong, sides)]
    b = [record(p, w if s else r, not s) for p, r, w, s in zip(prompts, right, wrong, sides)]
    return a, b, [float(s) for s in sides]


def embedded(n: int) -> tuple[dict, dict, dict]:
    "Pairs from the embedded pair, its judges, and how they were made."
    student, teacher, tok = default_pair()
    test, rng = chain_dataset(n, "test"), random.Random(0)

    def records(model, seed):
        return evaluate_records(model, teacher, test, tok, chain_reward, Budget(0.8), seed=seed)

    prompts = test["prompt"]
    flawed = [p for p, k in zip(prompts, test["num_flawed"]) if k]
    always = Flaw(
        op=ChainTask().flaw.op,
        min_operand=ChainTask().flaw.min_operand,
        shift=ChainTask().flaw.shift,
        prob=1.0,
    )
    right = [write_chain(p) for p in prompts]
    by_teacher = records(teacher, 1)
    sets = {
        "student against teacher": (records(student, 0), by_teacher, None),
        "teacher against teacher": (by_teacher, records(teacher, 2), None),
        "right against one wrong step": known(
            prompts, right, [slipped(p, rng) for p in prompts], rng
        ),
        "right against the teacher's flaw": known(
            flawed,
            [write_chain(p) for p in flawed],
            [write_chain(p, always, rng) for p in flawed],
            rng,
        ),
    }
    return sets, judges(student, teacher, tok, step_validity), {"pair": "embedded", "n_prompts": n}


def given(a: str, b: str, student, teacher, name: str, n: int) -> tuple[dict, dict, dict]:
    "Pairs from the first `n` lines of two files of records, judges from two folders."
    first, second = (
        [json.loads(line) for line in Path(p).read_text(encoding="utf-8").splitlines()[:n] if line]
        for p in (a, b)
    )
    rng = random.Random(0)
    worked = [
        (r["prompt"], text_of(r["completion"]), bad)
        for r in first
        if (bad := spoiled(text_of(r["completion"]), rng))
    ]
    sets = {"A against B": (first, second, None)}
    if worked:
        sets["A against A with one wrong result"] = known(*map(list, zip(*worked)), rng)
    return (
        sets,
        judges(
            load_model(student, "student"),
            load_model(teacher, "teacher"),
            load_tokenizer(student, "tokenizer"),
            arithmetic_validity,
        ),
        {"pair": name, "n_prompts": len(first)},
    )


def judges(student, teacher, tok, steps) -> dict:
    "Judges by name; `steps`: the exact checker of the task."
    return {
        "steps": score_judge(steps),
        "teacher per token": score_judge(likelihood(teacher, tok, batch_size=16)),
        "teacher sum": score_judge(likelihood(teacher, tok, per_token=False, batch_size=16)),
        "student per token": score_judge(likelihood(student, tok, batch_size=16)),
    }


def study(sets: dict, by_name: dict) -> dict:
    "Verdicts of every judge on every set of pairs, and their agreement, pair by pair of judges."
    out = {}
    for name, (a, b, truth) in sets.items():
        rewards = {(str(r["prompt"]), str(r["completion"])): r["reward"] for r in (*a, *b)}
        results = {
            "answer": judge_records(
                score_judge(
                    lambda prompts, completions: [
                        rewards[str(p), str(c)] for p, c in zip(prompts, completions)
                    ]
                ),
                a,
                b,
            )
        }
        results |= {n: judge_records(j, a, b) for n, j in by_name.items()}
        verdicts = {
            n: [
                v if None not in pair else None for v, pair in zip(r["verdicts"], zip(*r["orders"]))
            ]
            for n, r in results.items()
        } | ({"truth": truth} if truth else {})
        names = list(verdicts)
        other = {str(r["prompt"]): r for r in b}
        differ = [
            i for i, r in enumerate(a) if r["completion"] != other[str(r["prompt"])]["completion"]
        ]  # equal texts tie by any judge
        verdicts = {n: [v[i] for i in differ] for n, v in verdicts.items()}

        def both(x, y):
            return (
                agreement(verdicts[x], verdicts[y])
                if any(None not in p for p in zip(verdicts[x], verdicts[y]))
                else None
            )

        rates = [r["net_win_rate"] for r in results.values()]
        out[name] = {
            "judges": {
                n: {k: r[k] for k in r if k.removesuffix("_low").removesuffix("_high") in KEEP}
                for n, r in results.items()
            },
            "agreement": {
                f"{x} | {y}": both(x, y) for i, x in enumerate(names) for y in names[i + 1 :]
            },
            "net_win_rate_range": [min(rates), max(rates)],
        }
    return out


def tables() -> str:
    "The tables of README.md from the result files beside this script."
    lines = []
    for path in sorted(HERE.glob("*.json")):
        result = json.loads(path.read_text())
        if "sets" not in result:
            continue
        lines += [
            "",
            f"`{path.name}`: {result['setting']['pair']} pair, {result['setting']['n_prompts']} prompts, {result['setting']['seconds']:.0f} s of CPU.",
        ]
        for name, s in result["sets"].items():
            n = next(iter(s["judges"].values()))["n_pairs"]
            title, show = (
                f"**{name[0].upper()}{name[1:]}** ({n} pairs)",
                lambda a, k: (
                    f"{a[k]:.3f} [{a[k + '_low']:.3f}, {a[k + '_high']:.3f}]"
                    if a[k] == a[k]
                    else "undefined"
                ),
            )
            if truth := {
                j.removesuffix(" | truth"): a
                for j, a in s["agreement"].items()
                if j.endswith(" | truth") and a
            }:
                lines += [
                    "",
                    f"{title}: agreement with the truth",
                    "",
                    "| judge | agreement, 95% interval | kappa, 95% interval | pairs |",
                    "|---|---|---|---|",
                ]
                lines += [
                    f"| {j} | {show(a, 'agreement')} | {show(a, 'kappa')} | {a['n_pairs']} |"
                    for j, a in truth.items()
                ]
                continue
            lines += [
                "",
                f"{title}: net win rate from {s['net_win_rate_range'][0]:+.3f} to {s['net_win_rate_range'][1]:+.3f}, by judge",
                "",
                "| judge | win | loss | tie | net win rate, 95% interval | no verdict |",
                "|---|---|---|---|---|---|",
            ]
            lines += [
                f"| {j} | {r['win_rate']:.3f} | {r['loss_rate']:.3f} | {r['tie_rate']:.3f} | {r['net_win_rate']:+.3f} [{r['net_win_rate_low']:+.3f}, {r['net_win_rate_high']:+.3f}] | {r['unjudged_rate']:.3f} |"
                for j, r in s["judges"].items()
            ]
            lines += [
                "",
                "| judges, on the pairs that differ | agreement, 95% interval | kappa, 95% interval | pairs |",
                "|---|---|---|---|",
            ]
            lines += [
                f"| {j.replace(' | ', ', ')} | {show(a, 'agreement')} | {show(a, 'kappa')} | {a['n_pairs']} |"
                for j, a in s["agreement"].items()
                if a
            ]
    with (HERE / "solutions.csv").open(encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    lines += [
        "",
        "`solutions.csv`: the step checker on the worked solutions of 1000 items of GSM-Symbolic",
        "",
        "| what | value |",
        "|---|---|",
        *[f"| {r['what']} | {r['value']} |" for r in rows],
    ]
    return "\n".join(lines) + "\n"


def readme() -> None:
    "Put the tables between the marks of README.md."
    put_between(HERE / "README.md", MARKS, tables())


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="?", choices=["run", "readme"], default="run")
    parser.add_argument("--student")
    parser.add_argument("--teacher")
    parser.add_argument("--records", nargs=2, metavar=("A", "B"))
    parser.add_argument("--instruct", help="folder of a local instruct model, a further judge")
    parser.add_argument(
        "--n",
        type=int,
        default=1000,
        help="test prompts of the embedded task, or the most records to read",
    )
    parser.add_argument(
        "--name", default="given", help="what README calls the pair of --student and --teacher"
    )
    parser.add_argument("--output", default=str(HERE / "agreement.json"))
    args = parser.parse_args(argv)
    if args.what == "readme":
        return readme()
    if bool(args.records) != bool(args.student) or bool(args.student) != bool(args.teacher):
        parser.error("--student, --teacher and --records go together")
    torch.set_num_threads(1)
    began = time.process_time()
    sets, by_name, setting = (
        given(*args.records, args.student, args.teacher, args.name, args.n)
        if args.records
        else embedded(args.n)
    )
    if args.instruct:
        by_name["instruct model"] = model_judge(
            load_model(args.instruct, "instruct"), load_tokenizer(args.instruct, "instruct")
        )
    result = {"setting": setting, "sets": study(sets, by_name)}
    setting |= {
        "seconds": round(time.process_time() - began, 1),
        "version": __version__,
        "torch": torch.__version__,
    }
    Path(args.output).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if args.output == str(HERE / "agreement.json"):
        readme()


if __name__ == "__main__":
    main()
