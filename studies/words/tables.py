"""What came of pretrain.py: what ships goes into the package, and the tables into README.md.

    python studies/words/tables.py --ship out/words     weights and rows of a training
    python studies/words/tables.py --measure 2048       what ships, on so many problems of a split
    python studies/words/tables.py                      the tables, from the committed rows

Rows: `trained.jsonl`, one per variant; `shipped.jsonl`, one per shipped model and split.
"""

import argparse
import json
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from cmdp_nbdev.model import DATA
from cmdp_nbdev.plot import read_jsonl
from cmdp_nbdev.words import WORDS_SPLITS
from studies.lab import markdown, put_between
from studies.words.pretrain import measure

HERE = Path(__file__).resolve().parent
SHIPPED = {  # name in the package -> variant of pretrain.py
    "teacher": "teacher-3x96",
    "competent": "teacher-right-3x96",
    "student": "student",
    "terse": "terse-500",
}


def ship(folder: Path) -> None:
    "Copy weights and tokenizer of what ships into the package, and the rows beside this file."
    for name, variant in SHIPPED.items():
        to = DATA / "words" / name
        shutil.rmtree(to, ignore_errors=True)
        shutil.copytree(folder / variant, to)
        config = to / "config.json"  # what is stored in 16 bits is computed with in 32
        config.write_text(config.read_text().replace('"float16"', '"float32"'))
    rows = [row for row in read_jsonl(folder / "variants.jsonl") if "split" not in row]
    (HERE / "trained.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def measure_shipped(n: int, workers: int) -> None:
    "Measure every model of the package on every split; rows as each is known."
    path = HERE / "shipped.jsonl"
    path.unlink(missing_ok=True)
    jobs = [(name, split) for split in WORDS_SPLITS[1:] for name in SHIPPED]
    more = n, "cpu", ("teacher", "competent")
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        folder = str(DATA / "words")
        for job in as_completed([pool.submit(measure, folder, *which, *more) for which in jobs]):
            with open(path, "a") as file:
                file.write(json.dumps(job.result()) + "\n")


def put_table(name: str, frame: pd.DataFrame) -> None:
    "Put a table between its marks in README.md; the index is its first column."
    rows = [["" if pd.isna(x) else x for x in row] for row in frame.itertuples()]
    text = markdown(["variant", *frame.columns], rows)
    marks = (f"<!-- {name} -->\n", f"\n<!-- end of {name} -->")
    put_between(HERE / "README.md", marks, text)


def trained(rows: list[dict]) -> pd.DataFrame:
    "Size, updates and seconds of every variant."
    made = pd.DataFrame(rows).set_index("variant")
    ships = {variant: name for name, variant in SHIPPED.items()}
    made["ships as"] = [ships.get(name, "") for name in made.index]
    made["size"] = [f"{row.num_layers} × {row.width}" for row in made.itertuples()]
    made["kB"] = made["bytes"] // 1000
    made["loss"] = made["loss"].round(4)
    return made[["ships as", "texts", "size", "parameters", "kB", "updates", "seconds", "loss"]]


def accuracies(rows: list[dict]) -> pd.DataFrame:
    "Accuracy of every variant on every split, with half of its 95% interval."
    found = pd.DataFrame(rows)
    found["accuracy"] = [f"{r.accuracy:.3f} ± {r.within:.3f}" for r in found.itertuples()]
    wide = found.pivot(index="variant", columns="split", values="accuracy")
    return wide[[split for split in WORDS_SPLITS if split in wide]]


def on_test(rows: list[dict]) -> pd.DataFrame:
    "What else was measured on test problems."
    found = pd.DataFrame([row for row in rows if row["split"] == "test"])
    silent = ("split", "n", "accuracy", "within", "example")
    return found.set_index("variant").drop(columns=[*silent], errors="ignore").sort_index().round(3)


def main() -> None:
    "See the top of this file."
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ship", type=Path, help="output folder of pretrain.py")
    parser.add_argument("--measure", type=int, help="problems of each split")
    parser.add_argument("--workers", type=int, default=1, help="processes that measure")
    args = parser.parse_args()
    if args.ship:
        ship(args.ship)
    if args.measure:
        measure_shipped(args.measure, args.workers)
    put_table("trained", trained(read_jsonl(HERE / "trained.jsonl")))
    rows = read_jsonl(HERE / "shipped.jsonl")
    put_table("accuracy", accuracies(rows))
    put_table("test", on_test(rows))


if __name__ == "__main__":
    main()
