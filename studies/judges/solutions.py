"""How much of a worked solution does the step checker read, and what does it find wrong?  python studies/judges/solutions.py

The worked solutions of 1000 items of GSM-Symbolic, as reasoning-gym brings them (seed 0). Every equals sign is counted as found, or under
the reason for which it is not a calculation that the checker claims to read, or as missed. Writes solutions.csv (one row per kind) and
solutions_wrong.csv (every calculation judged wrong).
"""

import csv
import re
from collections import Counter
from pathlib import Path

from cmdp_nbdev.judge import arithmetic_steps

HERE = Path(__file__).parent


def kind(line: str, found: list[str]) -> list[str]:
    "One kind per equals sign of a line: 'found', or why it was not."
    kinds, inside = [], []
    for step in found:
        start = line.find(step)
        inside += [start + m.start() for m in re.finditer("=", step)]
    for m in re.finditer("=", line):
        if m.start() in inside:
            kinds.append("found")
            continue
        left, right = (
            re.split(r"[=:,;]|\. ", line[: m.start()])[-1],
            re.split(r"=|, |; |\. ", line[m.end() :])[0],
        )

        def has(side):
            return re.search(r"[+*/×÷]|\d *[-−x] *[$€£¥\d]", side)

        if re.search(
            r"(?<![A-Za-z'])(?![aAIx])[A-Za-z](?![A-Za-z'])|\dx|(?<![\d\s])x|x(?! ?[$€£¥\d])",
            left + "=" + right,
        ):
            kinds.append("a letter stands for a number")
        elif not (has(left) or has(right)) and "(" not in left + right:
            kinds.append("no operation")
        elif not re.search(r"\d", left):
            kinds.append("a name is given a calculation")
        elif "(" in left + right:
            kinds.append("parentheses")
        else:
            kinds.append("missed")
    return kinds


def main() -> None:
    import reasoning_gym

    items = reasoning_gym.create_dataset("gsm_symbolic", seed=0, size=1000)
    counts, steps, wrong, missed = Counter(), 0, [], []
    for i in range(1000):
        text = items[i]["metadata"]["answer_cot"].rpartition("####")[0]
        for line in text.splitlines():
            found = arithmetic_steps(line)
            steps += len(found)
            wrong += [(i, step) for step, right in found if not right]
            kinds = kind(line, [s for s, _ in found])
            counts.update(kinds)
            if "missed" in kinds:
                missed.append(line)
    rows = [
        ("calculations judged", steps),
        ("judged wrong", len(wrong)),
        ("items with a wrong one", len({i for i, _ in wrong})),
        *[(f"equals signs: {k}", v) for k, v in counts.most_common()],
        (
            "share found of the calculations it claims to read",
            round(counts["found"] / (counts["found"] + counts["missed"]), 4),
        ),
        ("share found of all equals signs", round(counts["found"] / sum(counts.values()), 4)),
    ]
    for name, header, data in (
        ("solutions.csv", ("what", "value"), rows),
        ("solutions_wrong.csv", ("item", "calculation"), wrong),
    ):
        with (HERE / name).open("w", newline="", encoding="utf-8") as f:
            csv.writer(f, lineterminator="\n").writerows([header, *data])
    for row in rows:
        print(*row, sep=": ")
    print(*missed[:30], sep="\n")


if __name__ == "__main__":
    main()
