"""How much of a worked solution does the step checker read, and what does it find wrong?

    python studies/judges/solutions.py

The worked solutions of 1000 items of GSM-Symbolic, as reasoning-gym brings them (seed 0). Every
equals sign is counted as found, or under the reason for which it is not a calculation that the
checker claims to read, or as missed. Writes solutions.csv (one row per kind) and
solutions_wrong.csv (every calculation judged wrong).
"""

import csv
import re
from collections import Counter
from pathlib import Path

from cmdp_nbdev.judge import arithmetic_steps

HERE = Path(__file__).parent
OPERATION = re.compile(r"[+*/×÷]|\d *[-−x] *[$€£¥\d]")
LETTER = re.compile(
    r"""
    (?<![A-Za-z'])(?![aAIx])[A-Za-z](?![A-Za-z'])  # a letter alone, but for a, A, I
  | \dx | (?<![\d\s])x | x(?![ ]?[$€£¥\d])         # an x that is no times
    """,
    re.VERBOSE,
)


def why_not(left: str, right: str) -> str:
    "Why the checker leaves an equation alone, from what stands on its sides."
    both = left + right
    if LETTER.search(left + "=" + right):
        return "a letter stands for a number"
    if not (OPERATION.search(left) or OPERATION.search(right)) and "(" not in both:
        return "no operation"
    if not re.search(r"\d", left):
        return "a name is given a calculation"
    return "parentheses" if "(" in both else "missed"


def kind(line: str, found: list[str]) -> list[str]:
    "One kind per equals sign of a line: 'found', or why it was not."
    inside = {line.find(step) + m.start() for step in found for m in re.finditer("=", step)}
    kinds = []
    for m in re.finditer("=", line):
        left = re.split(r"[=:,;]|\. ", line[: m.start()])[-1]
        right = re.split(r"=|, |; |\. ", line[m.end() :])[0]
        kinds.append("found" if m.start() in inside else why_not(left, right))
    return kinds


def write(name: str, header: tuple[str, ...], rows: list[tuple]) -> None:
    "A CSV file beside this script."
    with (HERE / name).open("w", newline="", encoding="utf-8") as f:
        csv.writer(f, lineterminator="\n").writerows([header, *rows])


def main() -> None:
    import reasoning_gym

    items = reasoning_gym.create_dataset("gsm_symbolic", seed=0, size=1000)
    counts, judged, wrong, missed = Counter(), 0, [], []
    for i in range(1000):
        text = items[i]["metadata"]["answer_cot"].rpartition("####")[0]
        for line in text.splitlines():
            steps = arithmetic_steps(line)
            judged += len(steps)
            wrong += [(i, step) for step, right in steps if not right]
            kinds = kind(line, [step for step, _ in steps])
            counts.update(kinds)
            if "missed" in kinds:
                missed.append(line)
    found, readable = counts["found"], counts["found"] + counts["missed"]
    rows = [
        ("calculations judged", judged),
        ("judged wrong", len(wrong)),
        ("items with a wrong one", len({i for i, _ in wrong})),
        *[(f"equals signs: {k}", v) for k, v in counts.most_common()],
        ("share found of the calculations it claims to read", round(found / readable, 4)),
        ("share found of all equals signs", round(found / sum(counts.values()), 4)),
    ]
    write("solutions.csv", ("what", "value"), rows)
    write("solutions_wrong.csv", ("item", "calculation"), wrong)
    for row in rows:
        print(*row, sep=": ")
    print(*missed[:30], sep="\n")


if __name__ == "__main__":
    main()
