"""The embedded default in both engines: our own loop, and inside TRL. See README.md.

python studies/trl/study.py runs       report.csv: five seeds of each, one at a time
python studies/trl/study.py seconds    seconds.csv: what an update costs, two sizes
python studies/trl/study.py readme     the tables of README.md, from the CSV files
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

os.environ["HF_HUB_OFFLINE"] = "1"
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

import pandas as pd  # noqa: E402
import torch  # noqa: E402
from scipy import stats  # noqa: E402

from studies.lab import Runs, made_with, markdown, plus_minus, put_between  # noqa: E402

ENGINES = ("native", "trl")
SEEDS = range(5)
REPORT = Runs(HERE / "report.csv", ("engine", "seed"))
SECONDS = Runs(HERE / "seconds.csv", ("engine", "pair", "trial"))
METRICS = ("accuracy", "satisfaction_rate", "accuracy_within_budget", "kl_mean", "kl_p95")
MARKS = ("<!-- tables: study.py readme -->\n", "<!-- end -->")


def trainer_of(engine: str) -> type:
    "The trainer's class."
    from cmdp_nbdev.trainer import CMDPTrainer

    if engine == "native":
        return CMDPTrainer
    from cmdp_nbdev.trl import TRLTrainer

    return TRLTrainer


def quiet() -> None:
    "One thread, and neither progress bars nor notices."
    import warnings

    from transformers.utils import logging

    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore")


class Clock(list):
    "CPU seconds of every update; a callback. On a shared machine the wall clock says little."

    def __init__(self):
        super().__init__()
        self.last = time.process_time()

    def __call__(self, trainer, metrics) -> None:
        now = time.process_time()
        self.append(now - self.last)
        self.last = now


# ---- five seeds ------------------------------------------------------------------------


def train(job: dict) -> dict:
    "One run of the embedded default, and its row."
    quiet()
    from cmdp_nbdev.config import CMDPConfig
    from cmdp_nbdev.model import default_pair
    from cmdp_nbdev.task import chain_dataset, chain_reward

    student, teacher, tokenizer = default_pair()
    clock, began = Clock(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        args = CMDPConfig.from_recipe(
            "embedded", output_dir=f"{folder}/run", seed=job["seed"], device="cpu"
        )
        args.disable_tqdm = True
        prompts, held_out = chain_dataset(16000), chain_dataset(job["n_eval"], "test")
        given = (chain_reward, args, prompts, held_out, tokenizer)
        trainer = trainer_of(job["engine"])(student, teacher, *given, callbacks=[clock])
        trainer.train()
        result = trainer.evaluate()
    return {
        **job,
        "method": args.method,
        "budget": args.budget,
        "updates": args.max_steps,
        "completions": args.per_device_train_batch_size,
        **{name: result[name] for name in METRICS},
        "cpu_seconds_per_update": median(clock),
        "seconds": time.perf_counter() - began,
        **versions(),
    }


def versions() -> dict[str, str]:
    "The last columns of a row."
    from importlib.metadata import version

    return {**made_with(), "trl": version("trl")}


def say(row: dict) -> str:
    "What is printed about a finished run."
    values = " ".join(f"{name} {row[name]:.3f}" for name in METRICS[:3])
    return f"{row['engine']} seed {row['seed']}: {values}"


# ---- what an update costs --------------------------------------------------------------


def middle_pair():
    "Untrained: student 4 x 256, teacher 6 x 384, a vocabulary of 4,096."
    from transformers import LlamaConfig, LlamaForCausalLM

    from cmdp_nbdev.model import default_pair

    def model(layers, width):
        config = LlamaConfig(
            vocab_size=4096,
            hidden_size=width,
            intermediate_size=3 * width,
            num_hidden_layers=layers,
            num_attention_heads=8,
            max_position_embeddings=128,
            pad_token_id=0,
            eos_token_id=1,
        )
        torch.manual_seed(layers)
        return LlamaForCausalLM(config)

    return model(4, 256), model(6, 384), default_pair()[2]


def cost(job: dict) -> dict:
    "The median CPU seconds of ten updates; the first two do not count."
    quiet()
    from cmdp_nbdev.config import CMDPConfig
    from cmdp_nbdev.model import default_pair
    from cmdp_nbdev.task import chain_dataset

    pairs = {"embedded": (default_pair, 128, 20), "middle": (middle_pair, 16, 64)}
    make, size, length = pairs[job["pair"]]
    student, teacher, tokenizer = make()
    clock = Clock()

    def reward(completions):
        return [float(len(text) % 2) for text in completions]

    with tempfile.TemporaryDirectory() as folder:
        args = CMDPConfig.from_recipe(
            "embedded",
            output_dir=f"{folder}/run",
            max_steps=12,
            per_device_train_batch_size=size,
            max_completion_length=length,
            device="cpu",
            disable_tqdm=True,
        )
        given = (reward, args, chain_dataset(2000), None, tokenizer)
        trainer_of(job["engine"])(student, teacher, *given, callbacks=[clock]).train()
    row = {**job, "completions": size, "tokens": length, "vocabulary": student.config.vocab_size}
    return {**row, "cpu_seconds_per_update": median(clock[2:]), **versions()}


# ---- tables ----------------------------------------------------------------------------


def difference(inside: pd.Series, ours: pd.Series) -> str:
    "Difference of the means with Welch's 95% interval."
    test = stats.ttest_ind(inside, ours, equal_var=False)
    low, high = test.confidence_interval()
    return f"{inside.mean() - ours.mean():+.3f} [{low:+.3f}, {high:+.3f}]"


def report_table() -> str:
    "Means over seeds of both engines, and their difference."
    runs = REPORT.read()
    ours, inside = (runs[runs["engine"] == engine] for engine in ENGINES)
    rows = [
        [
            name,
            plus_minus(ours[name]),
            plus_minus(inside[name]),
            difference(inside[name], ours[name]),
        ]
        for name in METRICS
    ]
    seeds = f"{len(ours)} and {len(inside)} seeds"
    head = [seeds, "our loop", "inside TRL", "difference, 95% t-interval (Welch)"]
    return markdown(head, rows)


def seconds_table() -> str:
    "CPU seconds per update: of the runs above, and of each pair."
    runs, trials = REPORT.read(), SECONDS.read()
    rows = [["embedded, the runs above", *costs(runs)]]
    for pair, some in trials.groupby("pair", sort=False):
        first = some.iloc[0]
        size = f"{first.completions} × {first.tokens} tokens, vocabulary {first.vocabulary:,}"
        rows.append([f"{pair}, {size}", *costs(some)])
    return markdown(["CPU seconds per update", "our loop", "inside TRL", "ratio"], rows)


def costs(runs: pd.DataFrame) -> list[str]:
    "Median of both engines, and their ratio."
    values = runs.groupby("engine")["cpu_seconds_per_update"].median()
    ours, inside = (values[engine] for engine in ENGINES)
    return [f"{ours:.3f}", f"{inside:.3f}", f"{inside / ours:.2f}"]


def write_readme() -> None:
    "The tables between the marks."
    text = f"\n{report_table()}\n\n{seconds_table()}\n\n"
    put_between(HERE / "README.md", MARKS, text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=("runs", "seconds", "readme"))
    parser.add_argument("--n_eval", type=int, default=2048, help="test prompts")
    args = parser.parse_args()
    if args.stage == "runs":
        jobs = [
            {"engine": engine, "seed": seed, "n_eval": args.n_eval}
            for seed in SEEDS
            for engine in ENGINES
        ]
        REPORT.work(jobs, train, say, workers=1)
    elif args.stage == "seconds":
        jobs = [
            {"engine": engine, "pair": pair, "trial": trial}
            for pair in ("embedded", "middle")
            for trial in range(3)
            for engine in ENGINES
        ]
        SECONDS.work(jobs, cost, lambda row: f"{row['engine']} {row['pair']}", workers=1)
    else:
        write_readme()


if __name__ == "__main__":
    main()
