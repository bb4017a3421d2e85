"""A run that is killed again and again, and a run that is long: does anything get lost, or pile up?

    python studies/soak/soak.py kills            # 50 kills, compared bit for bit: kills.csv
    python studies/soak/soak.py long             # 20,000 updates: long.csv
    python studies/soak/soak.py tables           # both into the README

Killed is a process that was forked from one that had imported everything: by SIGKILL, which no
handler sees. A quarter of the kills comes at a random moment; the others wait until the run is
starting, evaluating or writing a checkpoint, and then a random while.
"""

import argparse
import hashlib
import json
import mmap
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from transformers import set_seed

from cmdp_nbdev.checkpoint import read_jsonl, step_of
from cmdp_nbdev.config import CMDPConfig
from cmdp_nbdev.model import default_pair, tiny_model
from cmdp_nbdev.task import chain_dataset, chain_reward
from cmdp_nbdev.trainer import CMDPTrainer
from studies.lab import Runs, made_with, markdown, put_between

HERE = Path(__file__).parent
PHASES = ("begin", "update", "evaluate", "checkpoint", "done")
SMALL = dict(
    per_device_train_batch_size=4,
    num_generations=4,
    max_completion_length=12,
    per_device_eval_batch_size=4,
    disable_tqdm=True,
    device="cpu",
    save_total_limit=2,
)

# ---- a run whose phases can be seen from outside ---------------------------------------


class Watched(CMDPTrainer):
    "A trainer that notes what it is doing in memory that its parent sees."

    def __init__(self, board: mmap.mmap, *args):
        self.board = board
        self.note("begin")
        super().__init__(*args)

    def note(self, phase: str) -> None:
        "Write the phase and the number of updates where the parent reads them."
        self.board[:5] = bytes([PHASES.index(phase)]) + getattr(self, "global_step", 0).to_bytes(4)

    def step(self) -> dict:
        self.note("update")
        return super().step()

    def records(self, data) -> list[dict]:
        self.note("evaluate")
        return super().records(data)

    def save_checkpoint(self) -> Path:
        self.note("checkpoint")
        final = super().save_checkpoint()
        self.note("update")
        return final


def trainer(folder: Path, board: mmap.mmap, updates: int, seed: int) -> Watched:
    "A run on the embedded pair: an evaluation every five updates, a checkpoint every two."
    student, teacher, tokenizer = default_pair()
    changes = dict(max_steps=updates, eval_steps=5, save_steps=2, seed=seed, output_dir=str(folder))
    args = CMDPConfig.from_recipe("embedded", **SMALL | changes)
    data = chain_dataset(64), chain_dataset(4, "validation")
    return Watched(board, student, teacher, chain_reward, args, *data, tokenizer)


# ---- killed ----------------------------------------------------------------------------


def start(folder: Path, board: mmap.mmap, updates: int, seed: int) -> int:
    "Go on with the run in a process of its own; its id."
    board[:5] = bytes(5)
    if (child := os.fork()) == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        set_seed(seed)  # Python draws another one in every process that is forked
        try:
            trainer(folder, board, updates, seed).train("auto")
        except BaseException as problem:
            (folder.parent / "problem.txt").write_text(repr(problem))
            os._exit(1)
        board[:1] = bytes([PHASES.index("done")])
        os._exit(0)
    return child


def kill_when(
    child: int, board: mmap.mmap, phase: str, rng: random.Random, life: float
) -> tuple[str, bool]:
    """Kill a process in that phase, or at any time of a life of so many seconds.

    Where it was, and whether it lived until then.
    """
    wait = {"any": life, "begin": life / 4, "evaluate": 0.05, "checkpoint": 0.02}[phase]
    times = 1 if phase in ("any", "begin") else rng.randint(1, 3)  # which occurrence of the phase
    before = None
    while times:
        now = PHASES[board[0]]
        times -= phase in ("any", now) and now != before
        before = now
        if os.waitpid(child, os.WNOHANG) != (0, 0):
            return now, False
        time.sleep(0.0002)
    time.sleep(rng.uniform(0, wait))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return PHASES[board[0]], True


def left_in(folder: Path) -> dict[str, str]:
    "Hashes of what a run has left: its metrics (without seconds), its last checkpoint's files."
    rows = read_jsonl(folder / "metrics.jsonl")
    lines = [{k: v for k, v in row.items() if k != "seconds"} for row in rows]
    left = {"metrics.jsonl": hashlib.sha256(json.dumps(lines).encode()).hexdigest()}
    last = max(folder.glob("checkpoint-*[0-9]"), key=step_of)
    manifest = json.loads((last / "manifest.json").read_text())
    names = ("model", "optimizer", "scheduler", "method", "random")
    return left | {k: v["sha256"] for k, v in manifest["files"].items() if k.startswith(names)}


def kills(count: int, seed: int = 0, updates: int | None = None) -> list[dict]:
    "A run that is killed `count` times and ends; one row a kill. Raises unless nothing was lost."
    warnings.simplefilter("ignore")
    updates = updates or 5 * count
    board, rng, rows = mmap.mmap(-1, 8), random.Random(seed), []
    with tempfile.TemporaryDirectory() as place:
        whole, cut = Path(place, "whole", "run"), Path(place, "cut", "run")
        os.makedirs(whole.parent), os.makedirs(cut.parent)
        began = time.time()
        status = os.waitstatus_to_exitcode(os.waitpid(start(whole, board, updates, seed), 0)[1])
        life = min(4.0, time.time() - began)
        assert status == 0, (whole.parent / "problem.txt").read_text()
        while len(rows) < count:
            phase = ("any", "begin", "evaluate", "checkpoint")[len(rows) % 4]
            child = start(cut, board, updates, seed)
            found, killed = kill_when(child, board, phase, rng, life)
            problem = cut.parent / "problem.txt"
            assert not problem.exists(), problem.read_text()
            if killed:
                step = int.from_bytes(board[1:5])
                half = sum(1 for _ in cut.glob("checkpoint-*.part")) if cut.exists() else 0
                rows.append({"seed": seed, "kill": len(rows) + 1, "asked": phase, "phase": found})
                rows[-1] |= {"update": step, "half_checkpoints": half} | made_with()
            else:
                shutil.copytree(cut, Path(place, "ended"), dirs_exist_ok=True)
                assert left_in(cut) == left_in(whole), "a run that was killed ended otherwise"
                shutil.rmtree(cut)  # it has ended: the next kills are of another one
        status = os.waitstatus_to_exitcode(os.waitpid(start(cut, board, updates, seed), 0)[1])
        assert status == 0, (cut.parent / "problem.txt").read_text()
        ours, theirs = left_in(cut), left_in(whole)
        different = sorted(name for name in theirs if ours.get(name) != theirs[name])
        assert not different, f"different: {different}"
    return rows


# ---- long ------------------------------------------------------------------------------


def in_use() -> tuple[int, int]:
    "Kilobytes in memory, and open files, of this process."
    lines = Path("/proc/self/status").read_text().splitlines()
    memory = next(line.split()[1] for line in lines if line.startswith("VmRSS"))
    return int(memory), len(os.listdir("/proc/self/fd"))


def long(updates: int, every: int, keep: Runs | None = None) -> list[dict]:
    "A run of so many updates; memory and open files every so many of them."
    warnings.simplefilter("ignore")
    rows, began = [], time.time()

    def look(trainer, metrics):
        if metrics["step"] % every == 0:
            memory, files = in_use()
            seconds = round(time.time() - began, 1)
            row = {"update": metrics["step"], "rss_kb": memory, "files": files, "seconds": seconds}
            row |= made_with()
            rows.append(row)
            if keep:
                keep.append(row)

    with tempfile.TemporaryDirectory() as place:
        tokenizer = default_pair()[2]
        student, teacher = (tiny_model(16, tokenizer, num_layers=1, seed=k) for k in (0, 1))
        changes = dict(max_steps=updates, eval_steps=every, save_steps=every, output_dir=place)
        tiny = dict(per_device_train_batch_size=2, num_generations=2, max_completion_length=2)
        args = CMDPConfig.from_recipe("embedded", **SMALL | changes | tiny)
        data = chain_dataset(64), chain_dataset(4, "validation")
        given = (student, teacher, chain_reward, args, *data, tokenizer)
        CMDPTrainer(*given, callbacks=[look]).train()
    return rows


def growth(rows: list[dict], warm: float = 0.1) -> float:
    "By how much the memory has grown after the first tenth of the updates, as a share."
    later = [row["rss_kb"] for row in rows if row["update"] >= warm * rows[-1]["update"]]
    n = max(1, len(later) // 5)
    first, last = sum(later[:n]) / n, sum(later[-n:]) / n
    return last / first - 1


# ---- tables ----------------------------------------------------------------------------


def tables() -> None:
    "Both results as tables of the README."
    page, rows = HERE / "README.md", Runs(HERE / "kills.csv", ("seed", "kill")).read()
    found = rows.groupby("phase").agg(n=("kill", "size"), half=("half_checkpoints", "sum"))
    head = ["killed while it was", "kills", "half checkpoints found beside the whole ones"]
    text = markdown(
        head, [[phase, *map(int, row)] for phase, row in zip(found.index, found.values)]
    )
    put_between(page, ("<!-- kills -->\n", "\n<!-- /kills -->"), text)
    rows = Runs(HERE / "long.csv", ("update",)).read().to_dict("records")
    shown = [rows[0], *rows[len(rows) // 10 - 1 :: max(1, len(rows) // 10)]]
    lines = [[f"{r['update']:,}", f"{r['rss_kb'] / 1024:.1f}", r["files"]] for r in shown]
    text = markdown(["after update", "memory, MiB", "open files"], lines)
    text += f"\n\nAfter the first tenth the memory grew by {growth(rows):.2%}."
    put_between(page, ("<!-- long -->\n", "\n<!-- /long -->"), text)


if __name__ == "__main__":
    options = argparse.ArgumentParser()
    options.add_argument("what", choices=["kills", "long", "tables"])
    options.add_argument("--count", type=int, default=50)
    options.add_argument("--updates", type=int, default=20_000)
    given = options.parse_args()
    torch.set_num_threads(1)
    if given.what == "kills":
        path = HERE / "kills.csv"
        path.unlink(missing_ok=True)
        rows = kills(given.count)
        Runs(path, ("seed", "kill")).append(*rows)
        print(f"{len(rows)} kills, the same to the last bit")
    elif given.what == "long":
        path = HERE / "long.csv"
        path.unlink(missing_ok=True)
        rows = long(given.updates, given.updates // 100, Runs(path, ("update",)))
        print(f"memory grew by {growth(rows):.2%} after the first tenth of {given.updates} updates")
    else:
        tables()
