"""One update of a 1.5B-shaped student and a 7B-shaped teacher with random weights, on one GPU.

    python studies/speed/big.py                  # 64 completions of 128 + 512 tokens, bfloat16
    python studies/speed/big.py --tiny --device cpu

Completions are given, not sampled (their writing is another measurement). Seconds are wall
seconds by phase; the phases are those of the trainer: the teacher's answer, a scoring pass of the
student without gradients, then the pass with gradients, and the optimiser.
"""

from __future__ import annotations

import argparse
import json
import time

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from cmdp_nbdev.cost import Cost
from cmdp_nbdev.mdp import Rollout, select, slices
from cmdp_nbdev.objective import Signal, signal_loss
from cmdp_nbdev.preflight import checkpoint_gradients
from cmdp_nbdev.rollout import score_rollout, teacher_says

QWEN = dict(num_hidden_layers=28, num_key_value_heads=2, num_attention_heads=12)
STUDENT = dict(vocab_size=151936, hidden_size=1536, intermediate_size=8960, **QWEN)
TEACHER = STUDENT | dict(
    vocab_size=152064,
    hidden_size=3584,
    intermediate_size=18944,
    num_attention_heads=28,
    num_key_value_heads=4,
)
TINY = dict(num_hidden_layers=1, hidden_size=32, intermediate_size=32, num_attention_heads=2)
COSTS = {"divergence": Cost()}


def seconds(device: str) -> float:
    "Wall seconds, when the device is done."
    if device != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter()


def random_model(shape: dict, tied: bool, device: str) -> Qwen2ForCausalLM:
    "A model with random bfloat16 weights, made on the device."
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            return Qwen2ForCausalLM(Qwen2Config(tie_word_embeddings=tied, **shape)).eval()
    finally:
        torch.set_default_dtype(before)


def given_tokens(args, size: int) -> Rollout:
    "Random prompts and completions, nothing padded."
    shapes = [(args.rows, args.prompt), (args.rows, args.length)]
    ids = [torch.randint(size, shape, device=args.device) for shape in shapes]
    masks = [torch.ones_like(x) for x in ids]
    ended = torch.zeros(args.rows, dtype=torch.bool, device=args.device)
    return Rollout(ids[0], masks[0], ids[1], masks[1], ended, vocab_size=size)


def update(args, student, teacher, optimizer, rollout) -> dict:
    "One update; seconds by phase."
    at, spent = seconds(args.device), {}

    def phase(name: str) -> None:
        nonlocal at
        now = seconds(args.device)
        spent[name], at = now - at, now

    costs = {"divergence": Cost(chunk_size=args.chunk_size)}
    parts = [select(rollout, part) for part in slices(args.rows, args.micro)]
    said = teacher_says(teacher, parts, args.chunk_size)
    phase("teacher")
    with torch.no_grad():
        scores = [score_rollout(student, s, part, costs) for s, part in zip(said, parts)]
    kl = torch.cat([score.kl for score in scores])
    phase("score")
    total = 0.0
    for part, rows in zip(parts, said):
        score = score_rollout(student, rows, part, costs)
        advantage = torch.randn(len(part), device=args.device)
        mask = part.completion_mask
        signal = Signal(advantage, torch.full_like(score.logp, 0.5))
        tokens = rollout.completion_mask.sum()
        loss = signal_loss(signal, score.logp, score.costs, mask, tokens)
        loss.backward()
        total += float(loss.detach())
    phase("forward and backward")
    norm = torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    phase("optimiser")
    return {"phases": spent, "loss": total, "norm": float(norm), "kl": float(kl.mean())}


def main() -> None:
    "Build both, make some updates, print a line of JSON each."
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--device", default="cuda")
    options.add_argument("--rows", type=int, default=64)
    options.add_argument("--micro", type=int, default=16)
    options.add_argument("--prompt", type=int, default=128)
    options.add_argument("--length", type=int, default=512)
    options.add_argument("--updates", type=int, default=2)
    options.add_argument("--chunk_size", type=int)
    options.add_argument("--tiny", action="store_true")
    options.add_argument("--no_checkpointing", action="store_true")
    args = options.parse_args()
    torch.manual_seed(0)
    shapes = [STUDENT, TEACHER]
    if args.tiny:
        shapes = [shape | TINY | {"vocab_size": 301 + i} for i, shape in enumerate(shapes)]
        shapes = [shape | {"num_key_value_heads": 1} for shape in shapes]
    student = random_model(shapes[0], True, args.device)
    teacher = random_model(shapes[1], False, args.device).requires_grad_(False)
    if not args.no_checkpointing:
        checkpoint_gradients(student)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-6)
    rollout = given_tokens(args, shapes[0]["vocab_size"])
    for number in range(args.updates):
        found = update(args, student, teacher, optimizer, rollout)
        if args.device != "cpu":
            found["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
        print(json.dumps({"update": number, **vars(args), **found}), flush=True)


if __name__ == "__main__":
    main()
