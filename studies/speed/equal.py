"""On a device: a chunk at a time against all logits at once; the largest relative differences.

python studies/speed/equal.py --device cuda
"""

from __future__ import annotations

import argparse
import json

import torch
import torch.nn.functional as F

from cmdp_nbdev.cost import Cost, DenseRows, Head, HiddenRows, score_tokens


def numbers(rows, said, ids, mask, cost, weights, states) -> list[torch.Tensor]:
    "Values and gradients of one way."
    costs = {"divergence": cost, "forward_kl": cost.of("forward_kl"), "jsd": cost.of("jsd")}
    score = score_tokens(rows, said, ids, mask, costs)
    loss = sum(c.sum() for c in score.costs.values()) - (score.logp * mask).sum()
    grads = torch.autograd.grad(loss / mask.sum(), [states, weights])
    return [score.logp * mask, score.costs["divergence"], score.costs["jsd"], *grads]


def compare(device: str, dtype: torch.dtype, autocast: bool) -> dict:
    "The differences for one precision."
    torch.manual_seed(0)
    head, master = (torch.nn.Linear(128, v, bias=False, device=device) for v in (5000, 5008))
    master.requires_grad_(False).to(dtype)
    kept = torch.float32 if autocast else dtype
    head.to(kept)
    h = torch.randn(4, 100, 128, device=device).to(dtype).requires_grad_()
    t = torch.randn(4, 100, 128, device=device).to(dtype)
    ids = torch.randint(5000, (4, 100), device=device)
    mask = (torch.rand(4, 100, device=device) < 0.9).long()
    under = dtype if autocast else None
    weight = head.weight.to(dtype)
    told = ids, mask
    dense = DenseRows(F.linear(h, weight)), DenseRows(F.linear(t, master.weight)[..., :5000])
    plain = numbers(*dense, *told, Cost(chunk_size=10**6), head.weight, h)
    rows = HiddenRows(h, Head(head, 5000, dtype, under))
    said = HiddenRows(t, Head(master, 5008, dtype, under, vocab_size=5000))
    chunked = numbers(rows, said, *told, Cost(chunk_size=64), head.weight, h)
    names = "logp cost jsd grad_states grad_weight".split()
    differences = {
        name: float(((a - b).double().norm() / b.double().norm()).detach())
        for name, a, b in zip(names, chunked, plain)
    }
    return {"device": device, "dtype": str(dtype), "autocast": autocast, **differences}


def main() -> None:
    "All precisions; fails beyond a tolerance."
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--device", default="cpu")
    device = options.parse_args().device
    for dtype, autocast in (
        (torch.float32, False),
        (torch.bfloat16, False),
        (torch.bfloat16, True),
    ):
        found = compare(device, dtype, autocast)
        most = 1e-4 if dtype == torch.float32 else 2e-2
        found["within"] = all(v <= most for v in found.values() if isinstance(v, float))
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
