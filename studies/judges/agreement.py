"""Do judges of reasoning agree, and does the winner depend on the judge?

    python studies/judges/agreement.py           the embedded pair, into agreement.json
    python studies/judges/agreement.py --student FOLDER --teacher FOLDER \\
        --records A/eval.jsonl B/eval.jsonl --output real.json
    python studies/judges/agreement.py readme    puts the tables of all result files beside this
                                                 script into README.md

Every judge sees the same pairs of completions in both orders. `steps` is exact: every step of an
embedded chain, or every calculation that is found in a worked solution. `answer` compares rewards.
The others compare log-likelihoods under the teacher or the student. Where one of a pair is a copy
with a known error, `truth` is known, too. `--records` takes what cmdp-distill writes (one
completion each of the same prompts); `--instruct FOLDER` adds a local instruct model as a judge,
asked with the published template.
"""

import argparse
import csv
import json
import random
import re
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

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
    apply_op,
    chain_dataset,
    chain_reward,
    parse_prompt,
    step_validity,
    write_chain,
)
from studies.lab import markdown, put_between

HERE = Path(__file__).resolve().parent
MARKS = "<!-- tables: agreement.py readme -->", "<!-- end -->"
KEEP = (
    *("win_rate", "loss_rate", "tie_rate", "net_win_rate"),
    *("inconsistent_rate", "position_bias", "unjudged_rate", "n_pairs"),
)

# ---- pairs of completions --------------------------------------------------------------


def slipped(prompt: str, rng: random.Random) -> str:
    "The chain of `prompt` with one wrong step, drawn at random; what follows goes on from it."
    value, ops = parse_prompt(prompt)
    at, shift = rng.randrange(len(ops)), rng.randrange(1, 10)
    written = []
    for i, (op, operand) in enumerate(ops):
        result = (apply_op(value, op, operand) + shift * (i == at)) % 10
        written.append(f"{value}{op}{operand}={result}")
        value = result
    return ";".join(written) + f"#{value}"


def spoiled(text: str, rng: random.Random) -> str | None:
    "A worked solution with the result of one right calculation changed, None if it has none."
    right = [step for step, ok in arithmetic_steps(text) if ok and text.count(step) == 1]
    right = [step for step in right if re.search(r"\d+$", step)]
    if not right:
        return None

    def another(number: re.Match) -> str:
        return str(int(number[0]) + rng.randrange(1, 10))

    step = rng.choice(right)
    return text.replace(step, re.sub(r"\d+$", another, step))


def known(prompts: list, right: list[str], wrong: list[str], rng: random.Random) -> tuple:
    "Right and wrong completions as two lists of records, sides at random, and the true verdicts."
    sides = [rng.random() < 0.5 for _ in prompts]

    def records(right_here: list[bool]) -> list[dict]:
        rows = zip(prompts, right, wrong, right_here)
        return [
            {"prompt": p, "completion": r if here else w, "reward": float(here)}
            for p, r, w, here in rows
        ]

    return records(sides), records([not side for side in sides]), [float(side) for side in sides]


def judges(student, teacher, tok, steps: Callable) -> dict[str, Callable]:
    "Judges by name; `steps`: the exact checker of the task."
    scores = {
        "steps": steps,
        "teacher per token": likelihood(teacher, tok, batch_size=16),
        "teacher sum": likelihood(teacher, tok, per_token=False, batch_size=16),
        "student per token": likelihood(student, tok, batch_size=16),
    }
    return {name: score_judge(score) for name, score in scores.items()}


def embedded(n: int) -> tuple[dict, dict, dict]:
    "Pairs from the embedded pair, its judges, and how they were made."
    student, teacher, tok = default_pair()
    test, rng = chain_dataset(n, "test"), random.Random(0)
    always = replace(ChainTask().flaw, prob=1.0)

    def records(model, seed):
        return evaluate_records(model, teacher, test, tok, chain_reward, Budget(0.8), seed=seed)

    prompts = test["prompt"]
    right = [write_chain(p) for p in prompts]
    by_teacher = records(teacher, 1)
    sets = {
        "student against teacher": (records(student, 0), by_teacher, None),
        "teacher against teacher": (by_teacher, records(teacher, 2), None),
    }
    slips = [slipped(p, rng) for p in prompts]
    sets["right against one wrong step"] = known(prompts, right, slips, rng)
    prompts = [p for p, k in zip(prompts, test["num_flawed"]) if k]
    right = [write_chain(p) for p in prompts]
    flawed = [write_chain(p, always, rng) for p in prompts]
    sets["right against the teacher's flaw"] = known(prompts, right, flawed, rng)
    return sets, judges(student, teacher, tok, step_validity), {"pair": "embedded", "n_prompts": n}


def read_records(path: str, n: int) -> list[dict]:
    "The first `n` lines of an eval.jsonl."
    lines = Path(path).read_text(encoding="utf-8").splitlines()[:n]
    return [json.loads(line) for line in lines if line]


def given(a: str, b: str, student, teacher, name: str, n: int) -> tuple[dict, dict, dict]:
    "Pairs from the first `n` lines of two files of records, judges from two folders."
    first, second = read_records(a, n), read_records(b, n)
    sets = {"A against B": (first, second, None)}
    rng = random.Random(0)
    worked = [(r["prompt"], text_of(r["completion"])) for r in first]
    worked = [(prompt, text, spoiled(text, rng)) for prompt, text in worked]
    if worked := [row for row in worked if row[2]]:
        sets["A against A with one wrong result"] = known(*map(list, zip(*worked)), rng)
    models = load_model(student, "student"), load_model(teacher, "teacher")
    by_name = judges(*models, load_tokenizer(student, "tokenizer"), arithmetic_validity)
    return sets, by_name, {"pair": name, "n_prompts": len(first)}


# ---- verdicts and their agreement ------------------------------------------------------


def by_reward(records: list[dict]) -> Callable:
    "The judge that prefers the completion with the higher reward in these records."
    rewards = {(str(r["prompt"]), str(r["completion"])): r["reward"] for r in records}

    def score(prompts, completions):
        return [rewards[str(p), str(c)] for p, c in zip(prompts, completions)]

    return score_judge(score)


def decided(result: dict) -> list[float | None]:
    "A judge's verdicts, None where it gave none in one of the orders."
    orders = zip(*result["orders"])
    return [None if None in pair else v for v, pair in zip(result["verdicts"], orders)]


def differing(a: list[dict], b: list[dict]) -> list[int]:
    "The pairs whose completions differ: equal texts tie by any judge."
    other = {str(r["prompt"]): r["completion"] for r in b}
    return [i for i, r in enumerate(a) if r["completion"] != other[str(r["prompt"])]]


def agreements(verdicts: dict[str, list]) -> dict[str, dict | None]:
    "Agreement of every two judges, None where no pair has a verdict from both."
    names, out = list(verdicts), {}
    for i, x in enumerate(names):
        for y in names[i + 1 :]:
            both = any(None not in pair for pair in zip(verdicts[x], verdicts[y]))
            out[f"{x} | {y}"] = agreement(verdicts[x], verdicts[y]) if both else None
    return out


def compare(a: list[dict], b: list[dict], truth: list | None, by_name: dict) -> dict:
    "What every judge says about one set of pairs, and how far they agree on those that differ."
    all_judges = {"answer": by_reward([*a, *b]), **by_name}
    results = {name: judge_records(judge, a, b) for name, judge in all_judges.items()}
    verdicts = {name: decided(r) for name, r in results.items()}
    verdicts |= {"truth": truth} if truth else {}
    differ = differing(a, b)
    verdicts = {name: [v[i] for i in differ] for name, v in verdicts.items()}
    net = [r["net_win_rate"] for r in results.values()]

    def kept(result: dict) -> dict:
        return {k: v for k, v in result.items() if re.sub("_low$|_high$", "", k) in KEEP}

    return {
        "judges": {name: kept(r) for name, r in results.items()},
        "agreement": agreements(verdicts),
        "net_win_rate_range": [min(net), max(net)],
    }


def study(sets: dict, by_name: dict) -> dict:
    "`compare` on every set of pairs."
    return {name: compare(*pairs, by_name) for name, pairs in sets.items()}


# ---- the tables of README.md -----------------------------------------------------------

AGREEMENT = ["agreement, 95% interval", "kappa, 95% interval", "pairs"]


def with_ends(a: dict, key: str, sign: str = "") -> str:
    "A value and the ends of its interval."
    if a[key] != a[key]:
        return "undefined"
    value, low, high = (f"{a[k]:{sign}.3f}" for k in (key, f"{key}_low", f"{key}_high"))
    return f"{value} [{low}, {high}]"


def agreement_row(name: str, a: dict) -> list:
    "A row of a table of agreement."
    return [name, with_ends(a, "agreement"), with_ends(a, "kappa"), a["n_pairs"]]


def truth_table(title: str, truth: dict[str, dict]) -> list[str]:
    "How far each judge agrees with the truth."
    rows = [agreement_row(judge, a) for judge, a in truth.items()]
    return [f"{title}: agreement with the truth", markdown(["judge", *AGREEMENT], rows)]


def judge_tables(title: str, s: dict) -> list[str]:
    "Who wins by each judge, and how far the judges agree."
    low, high = s["net_win_rate_range"]
    rows = []
    for name, r in s["judges"].items():
        rates = [f"{r[k]:.3f}" for k in ("win_rate", "loss_rate", "tie_rate")]
        rows.append([name, *rates, with_ends(r, "net_win_rate", "+"), f"{r['unjudged_rate']:.3f}"])
    head = ["judge", "win", "loss", "tie", "net win rate, 95% interval", "no verdict"]
    both = [agreement_row(j.replace(" | ", ", "), a) for j, a in s["agreement"].items() if a]
    return [
        f"{title}: net win rate from {low:+.3f} to {high:+.3f}, by judge",
        markdown(head, rows),
        markdown(["judges, on the pairs that differ", *AGREEMENT], both),
    ]


def result_blocks(path: Path, result: dict) -> list[str]:
    "The tables of one result file."
    made = "{pair} pair, {n_prompts} prompts, {seconds:.0f} s of CPU".format(**result["setting"])
    blocks = [f"`{path.name}`: {made}."]
    for name, s in result["sets"].items():
        n = next(iter(s["judges"].values()))["n_pairs"]
        title = f"**{name[0].upper()}{name[1:]}** ({n} pairs)"
        with_truth = [(j, a) for j, a in s["agreement"].items() if j.endswith(" | truth") and a]
        truth = {j.removesuffix(" | truth"): a for j, a in with_truth}
        blocks += truth_table(title, truth) if truth else judge_tables(title, s)
    return blocks


def tables() -> str:
    "The tables of README.md from the result files beside this script."
    blocks = []
    for path in sorted(HERE.glob("*.json")):
        result = json.loads(path.read_text())
        blocks += result_blocks(path, result) if "sets" in result else []
    with (HERE / "solutions.csv").open(encoding="utf-8") as f:
        head, *rows = csv.reader(f)
    of = "`solutions.csv`: the step checker on the worked solutions of 1000 items of GSM-Symbolic"
    return "\n" + "\n\n".join([*blocks, of, markdown(head, rows)]) + "\n"


def readme() -> None:
    "Put the tables between the marks of README.md."
    put_between(HERE / "README.md", MARKS, tables())


# ---- the command -----------------------------------------------------------------------


def arguments() -> argparse.ArgumentParser:
    "The options of the command."
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("what", nargs="?", choices=["run", "readme"], default="run")
    add("--student")
    add("--teacher")
    add("--records", nargs=2, metavar=("A", "B"))
    add("--instruct", help="folder of a local instruct model, a further judge")
    most = "test prompts of the embedded task, or the most records to read"
    add("--n", type=int, default=1000, help=most)
    called = "what README calls the pair of --student and --teacher"
    add("--name", default="given", help=called)
    add("--output", default=str(HERE / "agreement.json"))
    return parser


def main(argv: list[str] | None = None) -> None:
    parser = arguments()
    args = parser.parse_args(argv)
    if args.what == "readme":
        return readme()
    if bool(args.records) != bool(args.student) or bool(args.student) != bool(args.teacher):
        parser.error("--student, --teacher and --records go together")
    torch.set_num_threads(1)
    began = time.process_time()
    if args.records:
        made = given(*args.records, args.student, args.teacher, args.name, args.n)
    else:
        made = embedded(args.n)
    sets, by_name, setting = made
    if args.instruct:
        model = load_model(args.instruct, "instruct")
        by_name["instruct model"] = model_judge(model, load_tokenizer(args.instruct, "instruct"))
    result = {"setting": setting, "sets": study(sets, by_name)}
    setting["seconds"] = round(time.process_time() - began, 1)
    setting |= {"version": __version__, "torch": torch.__version__}
    Path(args.output).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if args.output == str(HERE / "agreement.json"):
        readme()


if __name__ == "__main__":
    main()
