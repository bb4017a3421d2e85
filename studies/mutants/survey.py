"""How many random errors the tests notice.

    python studies/mutants/survey.py measure    seconds and lines of every test (needs coverage)
    python studies/mutants/survey.py run        mutants without a row yet, in random order
    python studies/mutants/survey.py again      what was not caught, with the tests of today
    python studies/mutants/survey.py notebooks  what was not caught, by its module's notebook
    python studies/mutants/survey.py tables     what the rows say, and every survivor
    python studies/mutants/survey.py check evaluate._spread evaluate._error \\
        --tests tests/test_evaluate.py -k "percentiles or variances"

`check` judges every mutant of some functions by some tests, for whoever writes a test; `alone`
judges random mutants of what a test runs by that test, for whoever doubts it. `run` takes hours
where other things run, and goes on where it was stopped; every hundred is a fair sample.
"""

from __future__ import annotations

import argparse
import ast
import collections
import csv
import itertools
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE)]

import hunt  # noqa: E402
import mutants  # noqa: E402

MODULES = "cost budget mdp reward objective methods rollout evaluate trainer".split()
TESTS = (
    "budget mdp cost reward objective reward_scale methods gradients numbers evaluate rollout "
    "trainer lean invariance defaults bad_input teachers prompts settings preflight reading "
    "stop_and_go_on saving what_people_set tabular words examine"
).split()
DRAWN, SEED, NUMBER = "d0540b7", 0, 350  # the modules of this commit were drawn from
ENOUGH, MORE = 12.0, 40.0  # seconds of tests for one mutant, fastest first; for a survivor
COLUMNS = "module function line operator before after nth verdict test tests seconds commit".split()
KEY = ("module", "function", "before", "after", "nth")


def git(*words: str) -> str:
    "What git says."
    told = ["git", "-C", str(hunt.ROOT), *words]
    return subprocess.run(told, capture_output=True, text=True, check=True).stdout


def sources() -> dict[str, str]:
    "The modules as they are."
    return {m: (hunt.PACKAGE / f"{m}.py").read_text(encoding="utf-8") for m in MODULES}


def all_mutants() -> list[mutants.Mutant]:
    "Every mutant of the modules as they are."
    every = (place for name, text in sources().items() for place in mutants.places(name, text))
    return [mutant for place in every for mutant in place]


def drawn(number: int, first: int = 0) -> list[mutants.Mutant]:
    """Of the sample in random order those from `first` to `number`, as far as they are there still.

    One more line of code would draw another sample, so it is drawn from the modules of `DRAWN`.
    """
    old = {name: git("show", f"{DRAWN}:cmdp_nbdev/{name}.py") for name in MODULES}
    wanted = itertools.islice(mutants.sample(old, SEED), first, number)
    today = {mutant.key: mutant for mutant in all_mutants()}
    return [today[mutant.key] for mutant in wanted if mutant.key in today]


# ---- which tests belong to a line -------------------------------------------------------


def stretch(source: str, line: int) -> range:
    """The lines that run with `line`: those of its statement, or of the head of it.

    Of a whole function for its defaults, of the whole module for what is outside of functions.
    """
    best, inside = range(1, source.count("\n") + 2), False
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.stmt) or not node.lineno <= line <= node.end_lineno:
            continue
        if isinstance(node, ast.FunctionDef):
            best, inside = range(node.lineno, node.end_lineno + 1), True
        elif inside and not isinstance(node, ast.ClassDef):
            body = getattr(node, "body", None)
            head = range(node.lineno, body[0].lineno if body else node.end_lineno + 1)
            best = head if line in head else best
    return best


def related(
    tests: list[dict], module: str, lines: range, function: str = "", enough: float = ENOUGH
) -> dict[str, float]:
    """Seconds of the tests that run one of `lines`, the module's own and the fastest first.

    A test that is about `function` by its name, `[cost.Cost]`, comes before them: a default is read
    without running a line.
    """
    name = f"[{module}.{function.removesuffix('.__init__')}]"

    def weight(row):
        own = row["test"].startswith(f"tests/test_{module}.py")
        return row["seconds"] * (0.3 if own else 1.0) * (name not in row["test"])

    def touches(row):
        return name in row["test"] or not set(lines).isdisjoint(row["lines"].get(module, ()))

    chosen, total = {}, 0.0
    for row in sorted(filter(touches, tests), key=weight):
        total += row["seconds"]
        if total > enough and chosen:
            break
        chosen[row["test"]] = row["seconds"]
    return chosen


# ---- the long pass ----------------------------------------------------------------------


def read(path: Path) -> list[dict]:
    "The rows of a file, texts as they are."
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def append(path: Path, row: dict) -> None:
    "One more row."
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)


def key(row: dict) -> tuple:
    "What tells a mutant from others, in a row."
    return tuple(str(row[name]) for name in KEY)


class Pass:
    "Judges mutants one after the other, and writes a row for each."

    def __init__(
        self, chosen: Iterable[mutants.Mutant], tests: list[dict], path: Path, enough: float
    ):
        self.chosen, self.path, self.enough, self.sources = list(chosen), path, enough, sources()
        self.tests = [row for row in tests if row["outcome"] == "passed"]
        self.commit = git("rev-parse", "--short", "HEAD").strip()

    def row(self, mutant: mutants.Mutant, judge) -> None:
        "One mutant: `judge(tests)` gives the verdict."
        source = self.sources[mutant.module]
        lines = stretch(source, mutant.line)
        tests = related(self.tests, mutant.module, lines, mutant.function, self.enough)
        began = time.perf_counter()
        verdict, test = judge(tests) if tests else ("survived", "no test runs this line")
        seconds = round(time.perf_counter() - began, 1)
        row = {name: getattr(mutant, name) for name in (*KEY, "line")}
        row |= dict(operator=mutant.change.operator, verdict=verdict, test=test, tests=len(tests))
        append(self.path, row | dict(seconds=seconds, commit=self.commit))

    def inside(self, warm: hunt.Warm) -> None:
        "The mutants inside of functions; the others are kept for later."
        for mutant in self.chosen:
            source, path = self.sources[mutant.module], hunt.PACKAGE / f"{mutant.module}.py"
            changed = hunt.changed_functions(path, source, mutant.text(source))
            known = changed and any((str(path), *where) in warm.functions for where in changed)
            if known:
                self.row(mutant, lambda tests: warm.hunt(path, changed, tests))

    def outside(self) -> None:
        "What has no row yet."
        done = {key(row) for row in read(self.path)}
        for mutant in self.chosen:
            if tuple(map(str, mutant.key)) not in done:
                source, path = self.sources[mutant.module], hunt.PACKAGE / f"{mutant.module}.py"
                self.row(mutant, lambda tests: hunt.cold_hunt(path, mutant.text(source), tests))


def work(
    chosen: Iterable[mutants.Mutant], measured: Path, path: Path, enough: float = ENOUGH
) -> None:
    "Judge mutants, a hundred at a time: those inside of functions first."
    chosen, tests = iter(chosen), hunt.read(measured)
    while some := list(itertools.islice(chosen, 100)):
        part = Pass(some, tests, path, enough)
        files = sorted({row["test"].partition("::")[0] for row in part.tests})

        def inside(say):
            hunt.prepare()
            hunt.Warm(files, part.inside).run()

        hunt.forked(inside, None)
        part.outside()


def run(measured: Path, path: Path, number: int, first: int = 0) -> None:
    "The mutants of the sample from `first` to `number`, those without a row."
    done = {key(row) for row in read(path)}
    work((m for m in drawn(number, first) if tuple(map(str, m.key)) not in done), measured, path)


def again(measured: Path, old: Path, path: Path) -> None:
    "What survived in `old`, as far as it is there still, by more of the tests, into another file."
    left = {key(row) for row in read(old) if row["verdict"] == "survived"}
    left -= {key(row) for row in read(path)}
    some = (m for m in all_mutants() if tuple(map(str, m.key)) in left)
    work(some, measured, path, enough=MORE)


def check(functions: list[str], files: list[str], words: str) -> None:
    "Print how many mutants of some functions some tests notice, and those that they do not."
    texts, wanted = sources(), {tuple(name.split(".", 1)) for name in functions}
    modules = {module for module, _ in wanted}
    every = [m for name in modules for p in mutants.places(name, texts[name]) for m in p]
    chosen = [m for m in every if (m.module, m.function) in wanted]
    out = os.fdopen(os.dup(1), "w", buffering=1)

    def judge(warm):
        tests, counts = dict.fromkeys(warm.items, 1.0), collections.Counter()
        for m in chosen:
            path, text = hunt.PACKAGE / f"{m.module}.py", m.text(texts[m.module])
            if not mutants.compiles(text):
                continue
            changed = hunt.changed_functions(path, texts[m.module], text)
            verdict = warm.hunt(path, changed, tests)[0] if changed else "outside of functions"
            counts[verdict] += 1
            if verdict == "survived":
                out.write(f"survived: {m.module}.{m.function}, {m.before} -> {m.after}\n")
        out.write(f"{len(tests)} tests, {counts.total()} mutants: {dict(counts)}\n")

    def inside(say):
        hunt.prepare()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        hunt.Warm([*files, *(["-k", words] if words else [])], judge).run()
        say("done")

    hunt.forked(inside, None)


def alone(names: list[str], measured: Path, number: int) -> None:
    """Print how many of `number` random mutants of the lines that a test runs it notices alone.

    For tests that were never the first to notice one: a test that notices none may be vacuous.
    """
    texts, tests = sources(), [r for r in hunt.read(measured) if r["outcome"] == "passed"]
    every, chance = all_mutants(), random.Random(SEED)
    out = os.fdopen(os.dup(1), "w", buffering=1)

    def judge(warm):
        for name in names:
            rows = [r for r in tests if r["test"].partition("[")[0] == name]
            seconds = {r["test"]: r["seconds"] for r in rows if r["test"] in warm.items}
            run = {(m, line) for r in rows for m, lines in r["lines"].items() for line in lines}
            hit = [m for m in every if m.function and (m.module, m.line) in run]
            verdicts = collections.Counter()
            for m in chance.sample(hit, min(number, len(hit))):
                path, text = hunt.PACKAGE / f"{m.module}.py", m.text(texts[m.module])
                if mutants.compiles(text):
                    changed = hunt.changed_functions(path, texts[m.module], text)
                    if changed:
                        verdicts[warm.hunt(path, changed, seconds)[0]] += 1
            noticed = verdicts.total() - verdicts["survived"]
            out.write(f"{name}: {noticed} of {verdicts.total()} noticed\n")

    def inside(say):
        hunt.prepare()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        hunt.Warm(sorted({name.partition("::")[0] for name in names}), judge).run()
        say("done")

    hunt.forked(inside, None)


def notebooks(old: Path, path: Path) -> None:
    "What survived in `old`, by the notebook that its module is exported from, into another file."
    left = {key(row): row for row in read(old) if row["verdict"] == "survived"}
    done, texts = {key(row) for row in read(path)}, sources()
    for mutant in all_mutants():
        name = tuple(map(str, mutant.key))
        if name in left and name not in done:
            began, module = time.perf_counter(), hunt.PACKAGE / f"{mutant.module}.py"
            verdict, test = hunt.notebook_hunt(module, mutant.text(texts[mutant.module]))
            seconds = round(time.perf_counter() - began, 1)
            row = dict(verdict=verdict, test=test, tests=1, seconds=seconds)
            append(
                path, left[name] | row | dict(commit=git("rev-parse", "--short", "HEAD").strip())
            )


# ---- what the rows say ------------------------------------------------------------------


def noticed(*files: Path) -> tuple[dict[tuple, dict], dict[tuple, dict]]:
    "Of mutants with rows in several files, the later ones of survivors: all, and those noticed."
    rows = {key(row): row for path in files for row in read(path)}
    return rows, {k: row for k, row in rows.items() if row["verdict"] != "survived"}


def table(before: Path, after: Path, books: Path, judged: Path) -> str:
    "Per module, in Markdown: mutants, noticed before and after, those that compute the same."
    rows, first = noticed(before)
    tests, books = noticed(before, after)[1], noticed(before, after, books)[1]
    same = {key(row) for row in read(judged) if row["kind"] == "same"} & set(rows) - set(books)
    lines = [
        "| module | mutants | noticed before | by tests | and notebooks | compute the same | "
        "of all | of those that differ |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for module in (*MODULES, "all"):

        def count(keys):
            return sum(module in (k[0], "all") for k in keys)

        n, found, equal = count(rows), count(books), count(same)
        cells = [module, n, count(first), count(tests), found, equal]
        cells += [f"{found / n:.0%}", f"{found / (n - equal):.0%}"] if n > equal else ["", ""]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def survivors(files: list[Path], judged: Path) -> str:
    "Every mutant that nothing noticed, and what was judged of it."
    rows, found = noticed(*files)
    said = {key(row): row for row in read(judged)}
    lines = []
    for name, row in rows.items():
        if name not in found:
            verdict = said.get(name, {"kind": "not judged", "why": ""})
            where = f"{row['module']}.{row['function']}".rstrip(".")
            change = f"`{row['before']}` -> `{row['after']}`".replace("|", "\\|")
            lines.append(f"| {where} | {change} | {verdict['kind']} | {verdict['why']} |")
    return "\n".join(["| where | change | judged | why |", "|---|---|---|---|", *sorted(lines)])


COMMANDS = ("measure", "run", "again", "notebooks", "tables", "check", "alone")


def main(argv: list[str] | None = None) -> None:
    "The command."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=COMMANDS)
    what = "functions of `check`, or tests of `alone`"
    parser.add_argument("names", nargs="*", metavar="NAME", help=what)
    parser.add_argument("--tests", nargs="+", default=["tests/test_evaluate.py"])
    parser.add_argument("-k", default="", help="which of the tests, as in pytest")
    parser.add_argument("--measured", type=Path, default=HERE / "tests.jsonl")
    parser.add_argument("--rows", type=Path, default=HERE / "before.csv")
    parser.add_argument("--after", type=Path, default=HERE / "after.csv")
    parser.add_argument("--books", type=Path, default=HERE / "notebooks.csv")
    parser.add_argument("--judged", type=Path, default=HERE / "judged.csv")
    parser.add_argument("--number", type=int, default=NUMBER)
    parser.add_argument("--first", type=int, default=0, help="of `run`: leave out those before")
    args = parser.parse_args(argv)
    if args.what == "measure":
        hunt.measure(MODULES, [f"tests/test_{name}.py" for name in TESTS], args.measured)
    elif args.what == "run":
        run(args.measured, args.rows, args.number, args.first)
    elif args.what == "again":
        again(args.measured, args.rows, args.after)
    elif args.what == "check":
        check(args.names, args.tests, args.k)
    elif args.what == "alone":
        alone(args.names, args.measured, 20)
    elif args.what == "notebooks":
        notebooks(args.after, args.books)
    else:
        files = args.rows, args.after, args.books
        print(table(*files, args.judged), survivors(files, args.judged), sep="\n\n")


if __name__ == "__main__":
    main()
