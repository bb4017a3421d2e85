"""The traces that the widgets show before anything is trained: students of every method x budget x seed, judged on test prompts.

    python studies/traces/make_traces.py                     # goes on where it was stopped; every run is kept in runs/traces/
    python studies/traces/make_traces.py --steps 600 --completions 128 --seeds 0 1 2

Writes cmdp_nbdev/data/traces.npz (read by widget.load_traces) and studies/traces/config.json (settings, versions, seconds of every run).
Runs are short, so the students are not as good as those of studies/foundation; the traces are for looking, not for ranking.
"""
from __future__ import annotations

import argparse
import json
import platform
import tempfile
from pathlib import Path

import numpy as np
import torch

from cmdp_nbdev.budget import Budget
from cmdp_nbdev.model import default_pair
from cmdp_nbdev.objective import METHODS, Batch
from cmdp_nbdev.task import chain_dataset, chain_frontier, chain_prompts, chain_reward
from cmdp_nbdev.trainer import CMDPConfig, CMDPTrainer, run_config

ROOT = Path(__file__).resolve().parents[2]
VARIANTS = [*((name, name, {}) for name in METHODS), ("soft λ=0.3", "soft", {"lam": 0.3}), ("soft λ=3", "soft", {"lam": 3.0})]  # label, method, settings
CURVE = np.round(np.arange(0, 2.001, 0.05), 2)  # budgets of the exact optimum


def reads_budget(method: str, settings: dict) -> bool:
    "Whether the signal of a method depends on the limit, on random trajectories."
    g = torch.Generator().manual_seed(0)
    ones = torch.ones(32, 4)
    batch = Batch((torch.rand(32, generator=g) < 0.5).float(), torch.arange(32) // 8, ones, -ones, -ones, {"divergence": 0.5 * torch.rand(32, 4, generator=g)})
    low, high = (METHODS[method](batch, Budget(d), {}, **settings) for d in (0.5, 1.0))
    return not (torch.equal(low.advantage, high.advantage) and torch.equal(low.multiplier, high.multiplier))


def run(method: str, settings: dict, budget: float, seed: int, steps: int, completions: int, learning_rate: float, warmup: int, n_eval: int, n_shown: int) -> tuple[dict, dict]:
    "Train and evaluate one student: its arrays for the file, and its configuration."
    student, teacher, tokenizer = default_pair()
    with tempfile.TemporaryDirectory() as folder:
        args = CMDPConfig(method=method, method_kwargs=settings, budget=budget, seed=seed, max_steps=steps, per_device_train_batch_size=completions, learning_rate=learning_rate, warmup_steps=warmup,
                          output_dir=folder, disable_tqdm=True, device="cpu")
        trainer = CMDPTrainer(student, teacher, chain_reward, args, chain_dataset(16000), chain_dataset(n_eval, "test"), tokenizer)
        trainer.train()
        records = trainer.evaluate(return_records=True)[1]
    cost = np.zeros((n_shown, args.max_completion_length), np.float16)
    for row, r in zip(cost, records): row[:len(r["cost_per_token"])] = r["cost_per_token"]
    arrays = {"spent": np.array([r["spent"] for r in records], np.float16), "reward": np.array([r["reward"] for r in records], np.float16), "correct": np.array([r["correct"] for r in records]),
              "length": np.array([len(r["cost_per_token"]) for r in records[:n_shown]], np.uint8), "cost": cost}
    config = run_config(args)
    return arrays, {k: v for k, v in config.items() if k not in ("output_dir", "method", "method_kwargs", "budget", "seed")}


def main() -> None:
    "Every run that is not there yet, then the file."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150, help="updates of each run")
    parser.add_argument("--completions", type=int, default=64, help="completions per update")
    parser.add_argument("--learning_rate", type=float, default=7e-4, help="lower than the trainer's default: short runs on few completions lose the form of the answers otherwise")
    parser.add_argument("--warmup", type=int, default=10, help="updates of learning-rate warm-up")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.4, 0.8, 1.2], help="limits, nats per sequence")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--n_eval", type=int, default=400, help="test completions per student")
    parser.add_argument("--n_shown", type=int, default=40, help="of these, how many keep the cost of every token")
    args = parser.parse_args()
    torch.set_num_threads(1)
    kept = ROOT / "runs" / "traces" / f"{args.steps}x{args.completions}-{args.learning_rate}-{args.warmup}-{args.n_eval}-{args.n_shown}"
    kept.mkdir(parents=True, exist_ok=True)
    rows, arrays, config = [], {}, {}
    for seed in args.seeds:
        for label, method, settings in VARIANTS:
            for budget in args.budgets if reads_budget(method, settings) else [None]:
                path = kept / f"{method}-{json.dumps(settings)}-{budget}-{seed}.npz".replace('"', "").replace(" ", "")
                if not path.exists():
                    found, config = run(method, settings, 0.8 if budget is None else budget, seed, args.steps, args.completions, args.learning_rate, args.warmup, args.n_eval, args.n_shown)
                    np.savez_compressed(path.with_suffix(".part.npz"), config=json.dumps(config), **found)
                    path.with_suffix(".part.npz").rename(path)
                found = dict(np.load(path))
                config = json.loads(str(found.pop("config")))
                print(f"{label:18} budget {budget}  seed {seed}  accuracy {found['correct'].mean():.3f}  mean spent {found['spent'].astype(float).mean():.2f}", flush=True)
                rows.append({"label": label, "method": method, "settings": settings, "budget": budget, "seed": seed})
                for k, v in found.items(): arrays.setdefault(k, []).append(v)
    optimum = chain_frontier(chain_prompts(1000, "test", 0), CURVE)
    made = {"script": "studies/traces/make_traces.py", **vars(args), "trained_at": "0.8 where the method does not read the budget", "config": config, "machine": platform.machine(), "threads": 1}
    stacked = {k: np.stack(v) for k, v in arrays.items()}
    longest = int(stacked["length"].max())
    stacked["cost"] = stacked["cost"][:, :, :longest]
    target = ROOT / "cmdp_nbdev" / "data" / "traces.npz"
    np.savez_compressed(target, rows=json.dumps(rows), curve_budget=CURVE, curve_optimum=np.round(optimum, 4), **stacked)
    (ROOT / "studies" / "traces" / "config.json").write_text(json.dumps({**made, "rows": len(rows), "bytes": target.stat().st_size}, indent=1) + "\n")
    print(f"{target.relative_to(ROOT)}: {len(rows)} students, {target.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__": main()
