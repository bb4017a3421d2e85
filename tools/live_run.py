"""The run behind a drawing of lesson 07: the live trainer at its defaults, from start to end.

    python tools/live_run.py        writes tutorials/data/live_run.json

About a minute on a free core. `rows` are every tenth update, as means over the last 20, `result` is
what the last student does with held-out prompts.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from cmdp_nbdev.plot import running_mean
from cmdp_nbdev.widgets.live import SMOOTH, LiveTrainer

RECORD = Path(__file__).resolve().parents[1] / "tutorials" / "data" / "live_run.json"
KEYS = ("accuracy", "satisfaction_rate", "lam")
ENDS = ("", "_low", "_high")


def main() -> None:
    "Train, and write what came of it."
    torch.set_num_threads(1)
    live = LiveTrainer()
    live.start()
    live.wait(1800)
    means = {key: running_mean([m[key] for m in live.history], SMOOTH) for key in KEYS}
    steps = [1, *range(10, len(live.history) + 1, 10)]
    rows = [{"step": k, **{key: round(float(means[key][k - 1]), 4) for key in KEYS}} for k in steps]
    shown = [f"{key}{end}" for key in KEYS[:2] for end in ENDS]
    result = {key: round(live.result[key], 4) for key in shown} | {"n": live.result["n_eval"]}
    record = {"target": live.trainer.args.method_kwargs["target"], "result": result, "rows": rows}
    RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(result)


if __name__ == "__main__":
    main()
