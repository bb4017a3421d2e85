"""The traces that the widgets show before anything is trained: students of every method x budget x seed, judged on test prompts.

    python studies/traces/make_traces.py            # trains what the file does not hold yet; may be stopped at any time and goes on there
    python studies/traces/make_traces.py --fresh    # everything again, after a change of the trainer, say

Writes cmdp_nbdev/data/traces.npz (read by widget.load_traces) and studies/traces/config.json (settings, versions, machine).
A student is trained again when its method's own code or any setting below has changed. Runs are short, so the students are not as
good as those of studies/foundation; the traces are for looking, not for ranking.
"""
from __future__ import annotations

import argparse
import hashlib
import inspect
import json
import platform
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from cmdp_nbdev.budget import Budget
from cmdp_nbdev.model import default_pair
from cmdp_nbdev.objective import METHODS, Batch
from cmdp_nbdev.task import chain_dataset, chain_frontier, chain_prompts, chain_reward
from cmdp_nbdev.trainer import CMDPConfig, CMDPTrainer, run_config

ROOT = Path(__file__).resolve().parents[2]
TARGET, CONFIG = ROOT / "cmdp_nbdev" / "data" / "traces.npz", Path(__file__).with_name("config.json")
VARIANTS = [*((name, name, {}) for name in METHODS), ("soft λ=0.3", "soft", {"lam": 0.3}), ("soft λ=3", "soft", {"lam": 3.0})]  # label, method, settings
CURVE = np.round(np.arange(0, 2.001, 0.05), 2)  # budgets of the exact optimum
ELSEWHERE = 0.8  # the budget of a run whose method does not read it


def reads_budget(method: str, settings: dict) -> bool:
    "Whether the signal of a method depends on the limit, on random trajectories."
    g = torch.Generator().manual_seed(0)
    ones = torch.ones(32, 4)
    batch = Batch((torch.rand(32, generator=g) < 0.5).float(), torch.arange(32) // 8, ones, -ones, -ones, {"divergence": 0.5 * torch.rand(32, 4, generator=g)})
    answers = []
    for d in (0.5, 1.0):
        state: dict = {}
        signals = [METHODS[method](batch, Budget(d), state, **settings) for _ in range(2)]  # a multiplier that moves shows its budget in the state
        answers.append([x for s in signals for x in (s.advantage, *s.multipliers.values())] + [torch.as_tensor(float(v)) for v in state.values() if isinstance(v, (int, float, torch.Tensor)) and torch.as_tensor(v).numel() == 1])
    return not all(torch.equal(a, b) for a, b in zip(*answers))


def run(row: dict, args) -> tuple[dict, dict]:
    "Train and evaluate one student: its arrays for the file, and the configuration that all students share."
    student, teacher, tokenizer = default_pair()
    with tempfile.TemporaryDirectory() as folder:
        config = CMDPConfig(method=row["method"], method_kwargs=row["settings"], budget=ELSEWHERE if row["budget"] is None else row["budget"], seed=row["seed"], max_steps=args.steps, warmup_steps=args.warmup,
                            per_device_train_batch_size=args.completions, num_generations=args.generations, learning_rate=args.learning_rate, output_dir=folder, disable_tqdm=True, device="cpu")
        trainer = CMDPTrainer(student, teacher, chain_reward, config, chain_dataset(16000), chain_dataset(args.n_eval, "test"), tokenizer)
        trainer.train()
        records = trainer.evaluate(return_records=True)[1]
    cost = np.zeros((args.n_shown, config.max_completion_length), np.float16)
    for line, r in zip(cost, records): line[:len(r["cost_per_token"])] = r["cost_per_token"]
    arrays = {"spent": np.array([r["spent"] for r in records], np.float16), "reward": np.array([r["reward"] for r in records], np.float16), "correct": np.array([r["correct"] for r in records]),
              "length": np.array([len(r["cost_per_token"]) for r in records[:args.n_shown]], np.uint8), "cost": cost}
    return arrays, {k: v for k, v in run_config(config).items() if k not in ("output_dir", "method", "method_kwargs", "budget", "seed")}


def key(row: dict) -> str:
    "What makes two students the same."
    return json.dumps({k: v for k, v in row.items() if k != "seconds"}, sort_keys=True)


def saved(settings: dict) -> tuple[dict[str, tuple[dict, dict]], dict]:
    "The students of the file, key -> (row, arrays), and their configuration; none if they were made with other settings."
    if not (TARGET.exists() and CONFIG.exists()): return {}, {}
    made = json.loads(CONFIG.read_text(encoding="utf-8"))
    if made["settings"] != settings: return {}, {}
    with np.load(TARGET) as f: data = {k: f[k] for k in ("spent", "reward", "correct", "length", "cost")}; rows = json.loads(str(f["rows"]))
    return {key(r): (r, {k: v[i] for k, v in data.items()}) for i, r in enumerate(rows)}, made["config"]


def main() -> None:
    "Every student that is not there yet; the file is written after each."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=600, help="updates of each run")
    parser.add_argument("--completions", type=int, default=32, help="completions per update")
    parser.add_argument("--generations", type=int, default=4, help="completions per prompt")
    parser.add_argument("--learning_rate", type=float, default=5e-4, help="lower than the trainer's default: with few completions per update students lose the form of the answers otherwise")
    parser.add_argument("--warmup", type=int, default=10, help="updates of learning-rate warm-up")
    parser.add_argument("--n_eval", type=int, default=400, help="test completions per student")
    parser.add_argument("--n_shown", type=int, default=40, help="of these, how many keep the cost of every token")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.4, 0.8, 1.2], help="limits, nats per sequence")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--fresh", action="store_true", help="train all students again")
    args = parser.parse_args()
    torch.set_num_threads(1)
    settings = {k: v for k, v in vars(args).items() if k not in ("budgets", "seeds", "fresh")}
    have, config = ({}, {}) if args.fresh else saved(settings)
    code = lambda method: hashlib.sha256(inspect.getsource(METHODS[method]).encode()).hexdigest()[:12]
    wanted = [{"label": label, "method": method, "settings": kwargs, "budget": budget, "seed": seed, "code": code(method)}
              for seed in args.seeds for label, method, kwargs in VARIANTS for budget in (args.budgets if reads_budget(method, kwargs) else [None])]
    optimum = np.round(chain_frontier(chain_prompts(1000, "test", 0), CURVE), 4)
    missing = [row for row in wanted if key(row) not in have]
    for n, row in enumerate(missing, 1):
        started = time.perf_counter()
        arrays, config = run(row, args)
        have[key(row)] = ({**row, "seconds": round(time.perf_counter() - started, 1)}, arrays)
        print(f"{n}/{len(missing)}  {row['label']:16} budget {row['budget']}  seed {row['seed']}  accuracy {arrays['correct'].mean():.3f}  inside {ELSEWHERE} {(arrays['spent'] <= ELSEWHERE).mean():.3f}", flush=True)
        write([have[key(r)] for r in wanted if key(r) in have], settings, config, optimum)
    print(f"{TARGET.relative_to(ROOT)}: {len(wanted)} students, {len(missing)} of them new, {TARGET.stat().st_size / 1000:.0f} kB")


def write(found: list[tuple[dict, dict]], settings: dict, config: dict, optimum: np.ndarray) -> None:
    "The two files, each complete or unchanged."
    rows, arrays = zip(*found)
    np.savez_compressed(part := TARGET.with_suffix(".part.npz"), rows=json.dumps(rows), curve_budget=CURVE, curve_optimum=optimum, **{k: np.stack([a[k] for a in arrays]) for k in arrays[0]})
    part.replace(TARGET)
    made = {"script": "studies/traces/make_traces.py", "settings": settings, "budget_where_not_read": ELSEWHERE, "students": len(rows), "seconds": round(sum(r["seconds"] for r in rows)), "bytes": TARGET.stat().st_size,
            "machine": platform.machine(), "threads": 1, "config": config}
    CONFIG.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__": main()
