"""A million texts for graders and parsers: none may crash them, hang them or make them grow.

    python studies/fuzz/fuzz.py                     the million (CASES, seed 0); writes fuzz.json
    python studies/fuzz/fuzz.py --cases 5000        a look; writes nothing

A case is one text, drawn from a grammar of what models write (numbers, units, fractions, LaTeX,
marks of an answer, code, Unicode) and then damaged, given to one of TARGETS. Some raise ValueError
by contract (a YAML of settings, an expression with letters in it); anything else that is raised is
a crash. A hang is a case that takes more than HANG seconds of CPU time. One in ALGEBRA cases is an
answer in LaTeX for the grading process (math-verify), which has its own clock.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import resource
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from cmdp_nbdev import judge, task, tasks, words
from cmdp_nbdev.config import Settings, as_bool, as_float, as_int

RESULT = Path(__file__).with_name("fuzz.json")
CASES, ALGEBRA, HANG = 1_000_000, 1000, 2.0

# ---- the grammar --------------------------------------------------------------------------

DIGITS = "0 1 2 7 18 100 1,234 1,23 0.5 .5 5. 1e9 007 ½ ٣ ９ 1/2 3⁄4 -4 −4 +4 50% $5 €3".split()
DIGITS += [
    "9" * 30,
    "1" * 300,
    "7" * 5000,
    "1 + 1 = 2",
    "3*4=12",
    "0." + "3" * 60,
    "1 000",
    "1.000.000",
    "10^{12}",
    "9^{9^{9^{9}}}",
]
UNITS = "cm m² km/h dollars apples °  % \\% cents mph kg π pi x y of each".split(" ")
COMMANDS = r"""\frac \dfrac \sqrt \boxed \fbox \text \mathrm \left( \right) \cdot \times \div \pm
\int \sum \begin{pmatrix} \end{pmatrix} \infty \pi \le \undefined \\ \, \{ \} \[ \] \( \)""".split()
MARKS = """#### + - * / = = + answer: Answer is <think> </think> <answer> </answer> **Answer:**
Step 1: wait, actually = == =>
≈ ( ) [ ] { } ^ _ $ $$ & ; : , . ! ? ... <|im_end|> ``` [[A]] [[B]] A B""".split()
CODE = (
    "__import__('os') lambda: eval( 1/0 9**9**9 f\"{x}\" [[[[ ((((((( x.__class__ 1if else".split()
)
STRANGE = ["\x00", "\u202e", "\u200b", "🦊", "Ω", "é", "\ud7ff", "\U0010ffff", "\r", "\t", "\n\n"]
POOLS = [DIGITS, DIGITS, UNITS, COMMANDS, MARKS, CODE, STRANGE]


def draw_text(rng: random.Random) -> str:
    "A text of up to forty pieces, some of them nested, some of it damaged."
    pieces = [rng.choice(rng.choice(POOLS)) for _ in range(rng.randrange(1, 13))]
    text = rng.choice(("", " ", " ", "\n")).join(pieces)
    kind = rng.random()
    if kind < 0.15:
        depth = rng.choice((2, 5, 40))
        left, right = rng.choice((("{", "}"), ("(", ")"), (r"\frac{", "}{2}"), (r"\sqrt{", "}")))
        text = left * depth + text + right * depth
    elif kind < 0.25:
        text = f"{rng.choice(COMMANDS)}{{{text}}}{{{rng.choice(DIGITS)}}}"
    elif kind < 0.35:
        text *= rng.choice((2, 3, 20))
    for _ in range(rng.choice((0, 0, 1, 3))):
        at = rng.randrange(len(text) + 1)
        cut = rng.choice((0, 1, 1, 5))
        text = text[:at] + rng.choice(("", "", rng.choice(STRANGE), "{", "}")) + text[at + cut :]
    return text


# ---- what is tried ------------------------------------------------------------------------


def is_reward(value) -> bool:
    "A list of one number in [0, 1], or of None."
    return len(value) == 1 and (value[0] is None or 0 <= value[0] <= 1)


def is_text(value) -> bool:
    "A text or None."
    return value is None or isinstance(value, str)


def is_truth(value) -> bool:
    "True, False or None."
    return value in (True, False, None)


PROMPT = "3+4*2=" if task.parse_prompt("3+4*2=") else ""
PROBLEM = words.words_problems(1, "validation", 0)[0]
TOLD = words.words_dataset(1, "validation", 0)[0]

# name -> (function of a text, what must hold of its value)
TARGETS: dict[str, tuple[Callable, Callable]] = {
    "parse_number": (tasks.parse_number, lambda v: v is None or math.isfinite(v[0])),
    "same_number": (lambda t: tasks.same_number(t, t), lambda v: v in (True, None)),
    "same_number to 1/2": (lambda t: tasks.same_number("1/2", t), is_truth),
    "final_answer": (tasks.final_answer, is_text),
    "final_answer number": (lambda t: tasks.final_answer(t, "number"), is_text),
    "final_answer text": (lambda t: tasks.final_answer(t, "text"), is_text),
    "last_expression": (tasks.last_expression, is_text),
    "exact": (tasks.exact, lambda v: v is None or v == v),
    "same text": (lambda t: tasks._same_unless_algebra("x^2+1", t), lambda v: v is not None),
    "numeric_reward": (lambda t: tasks.numeric_reward([""], [t], ["18"]), is_reward),
    "worked_steps": (tasks.worked_steps, is_text),
    "arithmetic_steps": (judge.arithmetic_steps, lambda v: all(len(step) == 2 for step in v)),
    "arithmetic_validity": (lambda t: judge.arithmetic_validity([""], [t]), is_reward),
    "parse_verdict": (judge.parse_verdict, lambda v: v in (0.0, 0.5, 1.0, None)),
    "chain_reward": (lambda t: task.chain_reward([PROMPT], [t], ["11"]), is_reward),
    "step_validity": (lambda t: task.step_validity([PROMPT], [t]), is_reward),
    "words_reward": (lambda t: words.words_reward([""], [t], ["11"]), is_reward),
    "words_validity": (
        lambda t: words.words_validity([TOLD["prompt"]], [t], [TOLD["steps"]]),
        is_reward,
    ),
    "settings": (lambda t: Settings(t), lambda v: isinstance(v, dict)),
    "as_int": (as_int, lambda v: isinstance(v, int)),
    "as_float": (as_float, lambda v: isinstance(v, float)),
    "as_bool": (as_bool, is_truth),
}
MAY_REFUSE = {"worked_steps", "settings", "as_int", "as_float", "as_bool"}  # by ValueError
GRADED = (
    lambda t: tasks.same_answers(["x^2+1"], [t], 0.5, 0.5),
    lambda v: v[0][0] in (True, False),
)


class Hung(BaseException):
    "A case took too long."


def too_long(*unused) -> None:
    "What the clock calls."
    raise Hung


def tried(name: str, text: str) -> str | None:
    "What is wrong with a target's answer to a text, if anything."
    function, holds = TARGETS.get(name, GRADED)
    signal.setitimer(signal.ITIMER_VIRTUAL, HANG)
    try:
        value = function(text)
        return None if holds(value) else f"answered {value!r:.100}"
    except Hung:
        return f"took more than {HANG:g} s"
    except (ValueError, OverflowError) as e:
        return None if name in MAY_REFUSE else f"raised {type(e).__name__}: {e}"
    except Exception:
        return traceback.format_exc(limit=-3)
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


# ---- the run ------------------------------------------------------------------------------


def megabytes() -> float:
    "What this process has in memory."
    with open("/proc/self/statm", encoding="ascii") as f:
        return int(f.read().split()[1]) * resource.getpagesize() / 2**20


def children() -> int:
    "How many processes are below this one."
    found = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            found += int(stat.read_text().rpartition(")")[2].split()[1]) == os.getpid()
        except OSError:  # it has just ended
            continue
    return found


def fuzz(cases: int, seed: int = 0, algebra: int = ALGEBRA, say: Callable = print) -> dict:
    "Try so many cases; the counts, what was wrong, seconds, memory along the way, processes."
    rng, names = random.Random(seed), list(TARGETS)
    wrong, counts, memory, slowest = [], Counter(), {}, (0.0, "")
    signal.signal(signal.SIGVTALRM, too_long)
    before, began, cpu = children(), time.perf_counter(), time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for case in range(cases):
            text = draw_text(rng)
            name = "math-verify" if algebra and case % algebra == 0 else rng.choice(names)
            start = time.process_time()
            problem = tried(name, text)
            slowest = max(slowest, (time.process_time() - start, f"{name}: {text[:80]!r}"))
            counts[name] += 1
            if problem:
                wrong.append({"case": case, "target": name, "text": text, "problem": problem})
            if case in (cases // 10, cases // 2, cases - 1):
                memory[case] = round(megabytes(), 1)
                say(f"{case + 1} cases, {len(wrong)} wrong, {memory[case]} MB")
    return {
        "cases": cases,
        "seed": seed,
        "by_target": dict(sorted(counts.items())),
        "wrong": wrong,
        "seconds": round(time.perf_counter() - began, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "slowest_case": {"cpu_seconds": round(slowest[0], 4), "case": slowest[1]},
        "memory_mb": memory,
        "processes": {"before": before, "after": children()},
    }


def main() -> int:
    "The command."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=CASES)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    found = fuzz(args.cases, args.seed)
    found["python"] = platform.python_version()
    for case in found["wrong"][:20]:
        print(json.dumps(case, ensure_ascii=True))
    print(json.dumps({k: v for k, v in found.items() if k != "wrong"}, indent=1))
    if args.cases == CASES:
        text = json.dumps({**found, "wrong": found["wrong"][:50]}, indent=1) + "\n"
        RESULT.write_text(text, encoding="utf-8")
    return 1 if found["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
