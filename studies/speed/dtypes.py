"""Whether the dtype that is chosen where no option is given is the one that is fast.

    python studies/speed/dtypes.py                      # what dtypes.jsonl does not hold yet

SmolLM2's shapes (update.py), 4 completions of 16 tokens, on this machine and with the instructions
of its libraries limited; everything in float32, student under autocast and teacher in bfloat16,
and as chosen (bf16='auto', a teacher that was saved in bfloat16). Each in a process of its own, the
first update no measurement, CPU seconds of one thread.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import torch
import update

from cmdp_nbdev.processor import choose_bf16, fast_dtype, name_of, slowdown
from cmdp_nbdev.trainer import CMDPConfig

COMPLETIONS, LENGTH, UPDATES = 4, 16, 2
LIMITS = {
    "all instructions": {},
    "SSE4.1": dict(
        ONEDNN_MAX_CPU_ISA="SSE41",
        MKL_ENABLE_INSTRUCTIONS="SSE4_2",
        ATEN_CPU_CAPABILITY="default",
    ),
}
ROWS = Path(__file__).with_name("dtypes.jsonl")
WAYS = ("float32", "bfloat16", "chosen")


def measure(way: str) -> dict:
    "Updates in one precision, in this process."
    student, teacher = update.SIZES["smollm2"][:2]
    update.SIZES["smollm2"] = student, teacher, COMPLETIONS, LENGTH
    args = update.parser().parse_args(["--size", "smollm2", "--updates", str(UPDATES)])
    torch.set_num_threads(args.threads)
    cpu, args.teacher_dtype = torch.device("cpu"), "float32" if way == "float32" else "bfloat16"
    args.bf16 = way == "bfloat16"
    if way == "chosen":
        parameters = sum(p.numel() for p in update.shaped(student, 49152, "meta").parameters())
        args.bf16 = choose_bf16(CMDPConfig(budget=1.0).bf16, parameters, cpu)
        args.teacher_dtype = name_of(fast_dtype(torch.bfloat16, cpu))
    found = update.measure(args)
    kept = {k: found[k] for k in ("bf16", "teacher_dtype", "seconds", "losses", "load")}
    return {"way": way, **kept, "slowdown": slowdown(torch.bfloat16)}


def rows() -> list[dict]:
    "What was measured."
    return [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []


def main() -> None:
    "All in children, or one."
    warnings.simplefilter("ignore")
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1])), flush=True)
        return
    known = {(row["limit"], row["way"]) for row in rows()}
    for limit, settings in LIMITS.items():
        for way in (way for way in WAYS if (limit, way) not in known):
            where = dict(os.environ, OMP_NUM_THREADS="1", **settings)
            command = [sys.executable, __file__, way]
            done = subprocess.run(command, env=where, stdout=subprocess.PIPE, check=True)
            row = {"limit": limit, **json.loads(done.stdout.splitlines()[-1])}
            with ROWS.open("a", encoding="utf-8") as f:
                f.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
