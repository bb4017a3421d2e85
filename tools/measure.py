"""Run a command, print its wall time and peak memory, and fail if they exceed the limits.

    python tools/measure.py --max-seconds 180 --max-mb 2000 -- cmdp-distill

The exit status is the command's, or 1 if a limit was exceeded. Peak memory is the largest resident
set of any one process that the command started (getrusage), not their sum. POSIX only.
"""

from __future__ import annotations

import argparse
import math
import resource
import subprocess
import sys
import time


def measure(command: list[str]) -> tuple[int, float, float]:
    "Exit status, seconds, and peak resident memory in MB (10^6 bytes) of a command."
    began = time.perf_counter()
    status = subprocess.run(command).returncode
    seconds = time.perf_counter() - began
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, in KiB on Linux
    return status, seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit / 1e6


def parse() -> argparse.Namespace:
    "Limits, name and command; exits with a message if there is no command."
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--max-seconds", type=float, default=math.inf)
    parser.add_argument("--max-mb", type=float, default=math.inf, help="1 MB = 10^6 bytes")
    parser.add_argument("--name", default="measure", help="what to call the command in the message")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    if args.command[:1] == ["--"]:
        args.command.pop(0)
    if not args.command:
        parser.error("no command given")
    return args


def main() -> int:
    "Measure; the command's exit status, or whether a limit was exceeded."
    args = parse()
    status, seconds, mb = measure(args.command)
    used = f"{seconds:.1f} s, peak memory {mb:.0f} MB"
    print(f"{args.name}: {used}, exit status {status}", flush=True)
    if status:
        return status if status > 0 else 128 - status  # killed by a signal: as a shell says it
    over = []
    if seconds > args.max_seconds:
        over.append(f"{seconds:.1f} s > {args.max_seconds:g} s")
    if mb > args.max_mb:
        over.append(f"{mb:.0f} MB > {args.max_mb:g} MB")
    if over:
        print(f"{args.name}: over the limit: {', '.join(over)}", file=sys.stderr)
    return int(bool(over))


if __name__ == "__main__":
    sys.exit(main())
