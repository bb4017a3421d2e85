"""Head and cost of one batch of token positions: all logits at once, and a chunk at a time.

    python studies/speed/head.py                          # this machine's CPU, one thread
    python studies/speed/head.py --device cuda --dtype bfloat16 --chunk_size 256 1024

On a CPU every way runs in a process of its own. Each prints a line of JSON: seconds of values and
gradients
(dL/dh and dL/dW; CPU seconds on a CPU), the most memory above what stood before, and the numbers
that all ways must agree on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

import torch
import torch.nn.functional as F
from update import clock, memory, peak

from cmdp_nbdev.cost import Cost, DenseRows, Head, HiddenRows, score_tokens

COSTS = {"divergence": Cost()}


def matrices(args) -> tuple[torch.nn.Linear, torch.nn.Linear]:
    "The heads of student and teacher, of about the size that training gives them."
    made = []
    for width in (args.width, args.teacher_width):
        how = dict(bias=False, device=args.device, dtype=getattr(torch, args.dtype))
        head = torch.nn.Linear(width, args.vocab_size, **how)
        torch.nn.init.normal_(head.weight, std=2 / width**0.5)
        made.append(head)
    made[1].requires_grad_(False)
    return tuple(made)


def once(args, way: str, heads, states, ids, multiplier, advantage) -> dict:
    "Values, loss and gradients once."
    head, teacher_head = heads
    head.weight.grad, began = None, clock(args.device)
    h = states[0].detach().requires_grad_()
    if way == "dense":
        rows, said = (DenseRows(F.linear(x, m.weight)) for x, m in zip((h, states[1]), heads))
        cost = Cost(chunk_size=len(ids) + 1)
    else:
        dtype = head.weight.dtype
        rows = HiddenRows(h[None], Head(head, args.vocab_size, dtype))
        said = HiddenRows(states[1][None], Head(teacher_head, args.vocab_size, dtype))
        cost = Cost(chunk_size=None if way == "chosen" else int(way))
    if way == "dense":
        rows, said = DenseRows(rows.logits[None]), DenseRows(said.logits[None])
    score = score_tokens(rows, said, ids[None], torch.ones_like(ids)[None], {"divergence": cost})
    ratio = torch.exp(score.logp - score.logp.detach())
    loss = (multiplier * score.costs["divergence"] - advantage * ratio).sum() / len(ids)
    middle = clock(args.device)
    loss.backward()
    ended = clock(args.device)
    return {
        "forward": middle - began,
        "backward": ended - middle,
        "seconds": ended - began,
        "cost": float(score.costs["divergence"].detach().sum()),
        "grad_states": float(h.grad.float().norm()),
        "grad_weight": float(head.weight.grad.float().norm()),
    }


def measure(args, way: str) -> dict:
    "One way, in this process: the memory of the first run, the least seconds of all runs."
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    heads = matrices(args)
    how = dict(device=args.device, dtype=getattr(torch, args.dtype))
    states = [torch.randn(args.rows, w, **how) for w in (args.width, args.teacher_width)]
    ids = torch.randint(args.vocab_size, (args.rows,), device=args.device)
    multiplier, advantage = torch.rand(2, 1, args.rows, device=args.device)
    given = heads, states, ids, multiplier, advantage
    if args.device != "cpu":
        once(args, way, *given)
        torch.cuda.empty_cache()
        heads[0].weight.grad = None
        torch.cuda.reset_peak_memory_stats()
    before = memory(args.device)
    found = once(args, way, *given)
    extra = peak(args.device) - before
    runs = [found, *(once(args, way, *given) for _ in range(args.repeats - 1))]
    best = min(runs, key=lambda run: run["seconds"])
    return {"way": way, **vars(args), **best, "extra_mb": extra}


def parser() -> argparse.ArgumentParser:
    "The options."
    form = argparse.RawDescriptionHelpFormatter
    options = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    options.add_argument("--rows", type=int, default=1024)
    options.add_argument("--vocab_size", type=int, default=151936)
    options.add_argument("--width", type=int, default=1536)
    options.add_argument("--teacher_width", type=int, default=1536)
    options.add_argument("--device", default="cpu")
    options.add_argument("--dtype", default="float32")
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--repeats", type=int, default=1)
    options.add_argument("--chunk_size", type=int, nargs="*", default=[], help="sizes to try, too")
    options.add_argument("--way", help="measure this way in this process: dense, chosen, a number")
    return options


def main() -> None:
    "Measure all ways, each in a child; or one."
    args = parser().parse_args()
    if args.way:
        print(json.dumps(measure(args, args.way)), flush=True)
        return
    for way in ("dense", "chosen", *map(str, args.chunk_size)):
        if args.device != "cpu":  # there torch counts the memory of each
            print(json.dumps(measure(args, way)), flush=True)
            continue
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--way", way], check=True)


if __name__ == "__main__":
    main()
