"""What the studies share: runs that are not repeated, intervals over seeds, tables in a README.

A study makes this repository importable and takes what it needs:

    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from studies.lab import Runs, plus_minus

A *run* is one training with one seed, and one row of a CSV file. A *job* is a dict with the
settings of a run to be done; the columns named by `Runs.key` say which row answers which job.
"""

import csv
import json
import os
import platform
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from numbers import Number
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

# ---- runs that are not repeated --------------------------------------------------------


class Runs:
    "The runs in a CSV file, appended one by one: a stopped study goes on where it was."

    def __init__(self, path: Path, key: tuple[str, ...]):
        self.path, self.key = Path(path), key

    def read(self) -> pd.DataFrame:
        "All rows, numbers as numbers; no rows if there is no file yet."
        if not self.path.exists():
            return pd.DataFrame(columns=list(self.key))
        return pd.read_csv(self.path)

    def identify(self, run: dict) -> tuple:
        "What tells this run (a job or a row) from all others of the file."
        return tuple(_as_in_a_file(run[column]) for column in self.key)

    def missing(self, jobs: list[dict]) -> list[dict]:
        "The jobs that have no row yet."
        done = {self.identify(row) for row in self.read().to_dict("records")}
        return [job for job in jobs if self.identify(job) not in done]

    def append(self, *rows: dict) -> None:
        "Add rows. The first row of a file decides its columns; further ones are left out."
        new = not self.path.exists()
        columns = list(rows[0]) if new else self._header()
        with open(self.path, "a", newline="") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerows(rows)

    def _header(self) -> list[str]:
        with open(self.path, newline="") as file:
            return next(csv.reader(file))

    def work(self, jobs: list[dict], run: Callable, say: Callable, workers: int = 2) -> None:
        """Run the jobs that are missing, `workers` at a time, each in a process of its own.

        `run(job)` returns the row of a job, `say(row)` what is printed about it.
        """
        todo = self.missing(jobs)
        print(f"{self.path.stem}: {len(self.read())} runs done, {len(todo)} to do", flush=True)
        context = get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context, max_tasks_per_child=1) as pool:
            futures = [pool.submit(run, job) for job in todo]
            for number, future in enumerate(as_completed(futures), 1):
                row = future.result()
                self.append(row)
                print(f"{number}/{len(todo)} {say(row)}", flush=True)


def _as_in_a_file(value):
    "A value of a job as it comes back from a CSV file: settings as JSON, numbers as floats."
    if isinstance(value, dict):
        return json.dumps(value)
    return float(value) if isinstance(value, Number) else str(value)


def settings_of(job: dict, folder: str) -> dict:
    "A job's keywords for CMDPConfig: method and settings, seed, further settings, a folder."
    return {
        "method": job["method"],
        "method_kwargs": job["settings"],
        "seed": job["seed"],
        "output_dir": folder,
        "disable_tqdm": True,
        **job["config"],
    }


def made_with() -> dict[str, str]:
    "The last columns of a row: versions, and the machine."
    import torch
    import transformers

    import cmdp_nbdev

    return {
        "cmdp_nbdev": cmdp_nbdev.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, {torch.get_num_threads()} thread",
    }


# ---- the seeds of one setting ----------------------------------------------------------


def label(run: dict, name: str = "method") -> str:
    "A run without its seed, as a table calls it: name, then what it was given: `soft lam=0.5`."
    given = {**json.loads(run["settings"]), **json.loads(run["config"])}
    texts = [f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in given.items()]
    return " ".join([run[name], *texts])


def groups(runs: pd.DataFrame, name: str = "method") -> dict[str, pd.DataFrame]:
    "The seeds of each setting together, by label, in the order of the file."
    labels = [label(run, name) for run in runs.to_dict("records")]
    return dict(list(runs.groupby(labels, sort=False)))


def half_width(values, level: float = 0.95) -> float:
    "Half of the t-interval of the mean over seeds; NaN for a single seed."
    x = np.asarray(values, dtype=float)
    if len(x) < 2:
        return float("nan")
    return float(stats.t.ppf((1 + level) / 2, len(x) - 1) * stats.sem(x))


def plus_minus(values) -> str:
    "Mean over seeds and half of its 95% t-interval, `0.916±0.030`; for one seed the value alone."
    half = f"±{half_width(values):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{half}"


def paired(ours: pd.DataFrame, theirs: pd.DataFrame, a: str, b: str) -> pd.Series:
    "Column `a` of ours minus column `b` of theirs, for every seed that both have."
    difference = ours.set_index("seed")[a] - theirs.set_index("seed")[b]
    return difference.dropna()


def with_interval(values) -> str:
    "Mean with the ends of its 95% t-interval, signed: `-0.012 [-0.021, -0.003]`."
    middle, half = np.mean(values), half_width(values)
    return f"{middle:+.3f} [{middle - half:+.3f}, {middle + half:+.3f}]"


def table(settings: dict[str, pd.DataFrame], rates: dict[str, str], means: dict) -> str:
    """Plain text, one line per setting: rates with their interval over seeds, then means.

    `rates`: head -> column, `means`: head -> (column, digits).
    """
    wide = max(map(len, settings)) + 2
    heads = [f"{head:>14}" for head in rates] + [f"{head:>9}" for head in (*means, "seeds")]
    lines = [" " * wide + "".join(heads)]
    for name, runs in settings.items():
        cells = [f"{plus_minus(runs[column]):11}".rjust(14) for column in rates.values()]
        cells += [f"{runs[column].mean():9.{digits}f}" for column, digits in means.values()]
        lines.append(f"{name:{wide}}{''.join(cells)}{len(runs):9}")
    return "\n".join(lines)


# ---- pages -----------------------------------------------------------------------------


def markdown(head: list[str], rows: list[list]) -> str:
    "A table in markdown."
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, cells)) + " |" for cells in lines)


def put_between(path: Path, marks: tuple[str, str], text: str) -> None:
    "Replace what stands in a file between two marks. Raises ValueError if a mark is missing."
    page = path.read_text(encoding="utf-8")
    start, end = page.index(marks[0]) + len(marks[0]), page.index(marks[1])
    path.write_text(page[:start] + text + page[end:], encoding="utf-8")
