"""Who needs how many seconds and how much memory for the same update: ours, and TRL's trainers.

    python studies/speed/compare.py run --repeats 2           # what compare.jsonl does not hold yet
    python studies/speed/compare.py run --before FOLDER       # and an old TRL engine
    python studies/speed/compare.py table                     # README's table, and compare.svg

`run` goes through all sizes and trainers in turn, each in a process of its own (update.py,
rivals.py), one thread. `--only 4x256:4096` takes one size.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
ROWS, PAGE, PICTURE = HERE / "compare.jsonl", HERE / "README.md", HERE / "compare.svg"
SIZES = (
    ("4x256", 4096),
    ("4x256", 49152),
    ("embedded", 20),
    ("smollm2", 49152),
    ("4x256", 151936),
)
NAMES = {
    "native": "ours",
    "trl": "TRL engine",
    "before": "TRL engine before",
    "grpo": "TRL GRPO, sampled KL",
    "distillation": "TRL distillation, no reward",
}
COLOURS = ("#1f6f8b", "#6fb1c7", "#9aa5b1", "#d98b3a", "#a04b2d")
MARKS = "<!-- compare -->", "<!-- /compare -->"


def rows() -> list[dict]:
    "What was measured."
    return [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []


def measure(size: str, vocab_size: int, engine: str, before: str | None, updates: int) -> None:
    "One child; its line goes to compare.jsonl."
    script = [str(HERE / "update.py"), "--engine", "trl" if engine == "before" else engine]
    if engine in ("grpo", "distillation"):
        script = [str(HERE / "rivals.py"), "--trainer", engine]
    where = dict(os.environ, OMP_NUM_THREADS="1")
    if engine == "before":
        where["PYTHONPATH"] = before
    how = ["--size", size, "--vocab_size", str(vocab_size), "--updates", str(updates)]
    done = subprocess.run(
        [sys.executable, *script, *how], env=where, stdout=subprocess.PIPE, text=True, check=True
    )
    row = json.loads(done.stdout.splitlines()[-1]) | {"engine": engine}
    kept = ("size", "vocab_size", "engine", "seconds", "phases", "start_mb", "peak_mb", "load")
    with ROWS.open("a") as f:
        f.write(json.dumps({k: row[k] for k in kept if k in row}) + "\n")


def run(args: argparse.Namespace) -> None:
    "What is missing of `repeats` children for every size and trainer, in turn."
    for turn in range(args.repeats):
        for size, vocab_size in SIZES:
            if args.only and args.only != f"{size}:{vocab_size}":
                continue
            for engine in NAMES:
                known = Counter((r["size"], r["vocab_size"], r["engine"]) for r in rows())
                asked = engine != "before" or args.before
                if asked and known[size, vocab_size, engine] <= turn:
                    measure(size, vocab_size, engine, args.before, args.updates)


def summary() -> dict:
    "(size, vocabulary, trainer) -> seconds of all updates, and the largest peak of memory."
    found: dict = {}
    for row in rows():
        seconds, peaks = found.setdefault((row["size"], row["vocab_size"], row["engine"]), ([], []))
        seconds += row["seconds"]
        peaks.append((row["peak_mb"], row["peak_mb"] - row["start_mb"]))
    return found


def cell(found: tuple | None, ours: float) -> str:
    "Median and 10-90% range, our share of it, and memory."
    if found is None:
        return "–"
    low, middle, high = np.quantile(found[0], (0.1, 0.5, 0.9))
    share = "" if middle == ours else f", ours {ours / middle:.2f} of it"
    peak, extra = max(found[1])
    return f"{middle:.2f} s ({low:.2f} to {high:.2f}){share}; {peak:.0f} MB (+{extra:.0f})"


def table(args: argparse.Namespace) -> None:
    "Write README's table and the picture."
    found = summary()
    lines = ["| size, vocabulary | " + " | ".join(NAMES.values()) + " |", "|---" * 6 + "|"]
    for size, vocab_size in SIZES:
        mine = found.get((size, vocab_size, "native"))
        if mine is not None:
            cells = [cell(found.get((size, vocab_size, e)), np.median(mine[0])) for e in NAMES]
            lines.append(f"| {size}, {vocab_size:,} | " + " | ".join(cells) + " |")
    text, (begin, end) = PAGE.read_text(encoding="utf-8"), MARKS
    head, _, rest = text.partition(begin)
    tail = rest.partition(end)[2]
    PAGE.write_text(f"{head}{begin}\n" + "\n".join(lines) + f"\n{end}{tail}", encoding="utf-8")
    draw(found)


def draw(found: dict) -> None:
    "Seconds and memory, as multiples of ours."
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams |= {"font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "compare"}
    sizes = [s for s in SIZES if (*s, "native") in found]
    figure, axes = plt.subplots(1, 2, figsize=(9, 0.9 + 0.75 * len(sizes)), sharey=True)
    for k, axis in enumerate(axes):
        for j, (size, vocab_size) in enumerate(sizes):
            for i, engine in enumerate(NAMES):
                if (size, vocab_size, engine) not in found:
                    continue
                seconds, peaks = found[size, vocab_size, engine]
                values = seconds if k == 0 else [extra for _, extra in peaks]
                ours = found[size, vocab_size, "native"]
                base = np.median(ours[0]) if k == 0 else max(extra for _, extra in ours[1])
                low, middle, high = np.quantile(values, (0.1, 0.5, 0.9)) / base
                middle, y = (middle if k == 0 else high), j + 0.15 * (i - 2)
                axis.barh(y, middle, 0.14, color=COLOURS[i], label=NAMES[engine] if j == 0 else "")
                if k == 0:
                    axis.plot([low, high], [y, y], color="black", linewidth=0.8)
        axis.axvline(1, color="black", linewidth=0.6, linestyle=":")
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_title(("CPU seconds", "memory above the start")[k] + ", ours = 1", loc="left")
    axes[0].set_yticks(range(len(sizes)), [f"{s}\n{v:,} ids" for s, v in sizes])
    axes[0].invert_yaxis()
    shown = axes[0].get_legend_handles_labels()
    figure.legend(*shown, loc="lower center", ncols=len(shown[1]), frameon=False, fontsize=8)
    figure.tight_layout(rect=(0, 0.25 / figure.get_figheight(), 1, 1))
    figure.savefig(PICTURE, metadata={"Date": None})


def main() -> None:
    "Measure, or write table and picture."
    form = argparse.RawDescriptionHelpFormatter
    options = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    options.add_argument("what", choices=("run", "table"))
    options.add_argument("--repeats", type=int, default=1)
    options.add_argument("--updates", type=int, default=2, help="of a child, after one unmeasured")
    options.add_argument("--before", help="a checkout from before, whose TRL engine is measured")
    options.add_argument("--only", help="SIZE:VOCABULARY")
    args = options.parse_args()
    {"run": run, "table": table}[args.what](args)


if __name__ == "__main__":
    main()
