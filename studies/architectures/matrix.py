"""Is the policy that is scored the one that was sampled, on every causal model of transformers?

    python studies/architectures/matrix.py              the rows that matrix.csv does not hold yet
    python studies/architectures/matrix.py llama mamba  these, printed and not kept
    python studies/architectures/matrix.py --readme     the tables of README.md, from matrix.csv

One row per model type (tiny, random weights, see zoo.py), and some more with LoRA or with a teacher
of another architecture. Prompts have unequal lengths. A row is right if what the library measures
is what the bare model says about the same text alone, without padding, mask or cache; else the
trainer must refuse the pair with a sentence before the first update.
"""

import argparse
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import pandas as pd
import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from cmdp_nbdev.evaluate import measure
from cmdp_nbdev.mdp import Rollout, masked
from cmdp_nbdev.model import char_tokenizer
from cmdp_nbdev.rollout import completion_logits, generate
from cmdp_nbdev.trainer import CMDPConfig, CMDPTrainer
from studies.architectures import zoo
from studies.lab import Runs, made_with, markdown, put_between

HERE = Path(__file__).resolve().parent
RUNS = Runs(HERE / "matrix.csv", ("model", "lora", "teacher"))
TOKENIZER = char_tokenizer()
PROMPTS = ["1+2", "7*3-4+5*6=9", "8;4*1=", "2-2*9+"]
LENGTH, SAME = 8, "itself"
# the largest difference that passes: nats per token, nats, share of the divergence, logits
NATS, SHARE, LOGITS = 1e-3, 1e-4, 1e-4
COLUMNS = {
    "sampled_fresh": NATS,
    "fresh_unpadded": NATS,
    "divergence_error": SHARE,
    "saved_live": LOGITS,
    "resumed": 0.0,
}
LORA = {
    "attention": ["llama", "gpt2", "gemma2", "bloom", "mixtral", "qwen3_5_text", "falcon_h1"],
    "head": ["llama", "gpt2", "gemma2", "mamba", "bloom"],
    "embeddings": ["llama", "gpt2", "gemma2", "mamba", "bloom"],
}
TEACHERS = {  # student: teachers of another architecture
    "llama": ["gpt2", "mamba", "bloom", "roberta"],
    "mamba": ["llama"],
    "qwen3_5_text": ["mixtral", "rwkv"],
    "gpt2": ["qwen3_next", "opt"],
}


def jobs() -> list[dict]:
    "Every model type with a teacher of its own kind, then LoRA, then other teachers."
    plain = [
        {"model": name, "lora": "none", "teacher": SAME} for name in [*zoo.NAMES, *zoo.VARIANTS]
    ]
    lora = [
        {"model": name, "lora": where, "teacher": SAME}
        for where, names in LORA.items()
        for name in names
    ]
    other = [
        {"model": name, "lora": "none", "teacher": teacher}
        for name, teachers in TEACHERS.items()
        for teacher in teachers
    ]
    return plain + lora + other


# ---- the pair ---------------------------------------------------------------------------


def student(job: dict) -> torch.nn.Module:
    "The student of a row."
    model = zoo.build(job["model"], seed=0)
    return model if job["lora"] == "none" else zoo.with_lora(model, job["lora"])


def teacher(job: dict) -> torch.nn.Module:
    "The teacher: the same architecture with other weights, or another one."
    return zoo.build(job["model"] if job["teacher"] == SAME else job["teacher"], seed=1)


# ---- what is true -----------------------------------------------------------------------


@torch.no_grad()
def alone(model, rollout: Rollout) -> Tensor:
    "Logits before each completion token: every row by itself, no padding, no mask, no cache."
    rows = []
    for i in range(len(rollout)):
        prompt = rollout.prompt_ids[i][rollout.prompt_mask[i].bool()]
        text = torch.cat([prompt, rollout.completion_ids[i]])
        rows.append(model(text[None]).logits[0, len(prompt) - 1 : -1])
    return torch.stack(rows)


def logps(logits: Tensor, rollout: Rollout) -> Tensor:
    "Log-probability of every completion token, (B, T)."
    return logits.log_softmax(-1).gather(-1, rollout.completion_ids[..., None])[..., 0]


def brute_force(model, teacher, rollout: Rollout) -> Tensor:
    "The divergence of every completion, (B,) nats: float64, both models on bare texts."
    p, q = (alone(m, rollout).double().log_softmax(-1) for m in (model, teacher))
    kl = (p.exp() * (p - q)).sum(-1)
    return masked(kl, rollout.completion_mask).sum(-1)


# ---- what is measured -------------------------------------------------------------------


def largest(x: Tensor, rollout: Rollout) -> float:
    "The largest difference on a completion token."
    return float(masked(x, rollout.completion_mask).abs().max())


def rollout_of(model, num_generations: int) -> Rollout:
    "Completions as the trainer samples them."
    return generate(
        model,
        TOKENIZER,
        PROMPTS,
        num_generations=num_generations,
        max_completion_length=LENGTH,
        generator=torch.Generator().manual_seed(0),
        vocab_size=zoo.VOCAB,
    )


@torch.no_grad()
def scores(model, teacher) -> dict[str, float]:
    "How far sampled, scored and bare log-probabilities and divergences are from each other."
    found = {"sampled_fresh": 0.0, "fresh_unpadded": 0.0, "divergence_error": 0.0}
    for num_generations in (1, 3):
        rollout = rollout_of(model, num_generations)
        fresh = logps(completion_logits(model, rollout), rollout)
        bare = logps(alone(model, rollout), rollout)
        kl = masked(measure(model, teacher, rollout)[1], rollout.completion_mask).sum(-1)
        true = brute_force(model, teacher, rollout)
        errors = (
            largest(rollout.sampled_logps - fresh, rollout),
            largest(fresh - bare, rollout),
            float(((kl - true) / true).abs().max()),
        )
        found = {k: max(a, b) for (k, a), b in zip(found.items(), errors)}
    return found


# ---- what is trained --------------------------------------------------------------------


def digits(completions, **_) -> list[float]:
    "A reward: the share of digits."
    return [sum(c.isdigit() for c in text) / LENGTH for text in completions]


def trainer(job: dict, folder: Path, **more) -> CMDPTrainer:
    "A trainer of two updates, a checkpoint after each."
    config = CMDPConfig.from_recipe(
        "embedded",
        output_dir=str(folder),
        budget=20.0,
        max_steps=2,
        save_steps=1,
        per_device_train_batch_size=8,
        num_generations=2,
        max_completion_length=LENGTH,
        device="cpu",
        disable_tqdm=True,
        **more,
    )
    data = Dataset.from_dict({"prompt": PROMPTS * 4})
    pair = student(job), teacher(job)
    return CMDPTrainer(*pair, digits, config, data, None, TOKENIZER)


def state(trainer: CMDPTrainer) -> Tensor:
    "All weights of a student, one after the other."
    return torch.cat([p.detach().flatten() for p in trainer.student.parameters()])


@torch.no_grad()
def saved_live(run: CMDPTrainer, folder: Path) -> float:
    "Largest difference between the logits of the student and of its folder."
    rollout = rollout_of(run.student, 1)
    run.save_model(folder)
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return largest((alone(loaded, rollout) - alone(run.student, rollout)).abs().amax(-1), rollout)


def trained(job: dict, run: CMDPTrainer, folder: Path) -> dict[str, float]:
    "Two updates, saved and loaded; stopped after one and resumed."
    run.train()
    found = {"saved_live": saved_live(run, folder / "saved")}
    shutil.copytree(folder / "whole" / "checkpoint-1", folder / "half" / "checkpoint-1")
    again = trainer(job, folder / "half", resume_from_checkpoint="auto")
    again.train()
    return found | {"resumed": float((state(again) - state(run)).abs().max())}


# ---- a row ------------------------------------------------------------------------------


def sentence(error: Exception) -> str:
    "An error in one line."
    return " ".join(str(error).split())


def place(error: Exception) -> str:
    "An error that is no refusal: its type, its line, and where it was raised."
    last = traceback.extract_tb(error.__traceback__)[-1]
    where = "/".join(Path(last.filename).parts[-2:])
    return f"{type(error).__name__}: {sentence(error)[:160]} ({where}:{last.lineno})"


def verdict(found: dict[str, float], refusal: str, error: str = "") -> str:
    "Right, refused with a sentence, or wrong."
    if refusal:
        return f"refused: {refusal}"
    if error:
        return f"error: {error}"
    off = [name for name, bound in COLUMNS.items() if not found[name] <= bound]
    return f"wrong: {', '.join(off)}" if off else "right"


def row(job: dict) -> dict:
    "Everything about one pair."
    began, found, refusal, errors = time.perf_counter(), {}, "", []
    model, other = student(job), teacher(job)
    try:
        found |= scores(model, other)
    except Exception as e:  # said in the table, unless the trainer refuses the pair
        errors.append(place(e))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            run = trainer(job, folder / "whole")
        except ValueError as e:
            refusal = sentence(e)
        except Exception as e:
            errors.append(place(e))
        else:
            try:
                found |= trained(job, run, folder)
            except Exception as e:
                errors.append(place(e))
    return {
        **job,
        **zoo.about(model),
        **{name: f"{found[name]:.1e}" if name in found else "" for name in COLUMNS},
        "verdict": verdict(found, refusal, *errors[:1]),
        "seconds": f"{time.perf_counter() - began:.1f}",
        **made_with(),
    }


# ---- the page ---------------------------------------------------------------------------

HEAD = {
    "model": "model type",
    "kind": "kind",
    "positions": "positions",
    "tied": "tied",
    "sampled_fresh": "sampled − fresh",
    "fresh_unpadded": "fresh − unpadded",
    "divergence_error": "divergence − float64",
    "saved_live": "saved − live",
    "resumed": "resumed − whole",
}


def main_table(runs: pd.DataFrame) -> str:
    "A line per pair that is right."
    right = runs[runs["verdict"] == "right"]
    rows = [[called(r), *(r[c] for c in list(HEAD)[1:])] for r in right.to_dict("records")]
    return markdown(list(HEAD.values()), rows)


def called(r: dict) -> str:
    "A pair, as a table calls it."
    more = [f"LoRA on {r['lora']}"] if r["lora"] != "none" else []
    more += [f"teacher `{r['teacher']}`"] if r["teacher"] != SAME else []
    return ", ".join([f"`{r['model']}`", *more])


def others_table(runs: pd.DataFrame) -> str:
    "A line per pair that is not right: the sentence with which it is refused, or what is wrong."
    bad = runs[runs["verdict"] != "right"].to_dict("records")
    head = ["model type", "kind", "positions", "sampled − fresh", "fresh − unpadded", "verdict"]
    columns = ("kind", "positions", "sampled_fresh", "fresh_unpadded", "verdict")
    return markdown(head, [[called(r), *(r[c] for c in columns)] for r in bad])


def count(runs: pd.DataFrame) -> str:
    "How many of each verdict."
    counts = runs["verdict"].str.split(":").str[0].value_counts()
    return ", ".join(f"{n} {verdict}" for verdict, n in counts.items())


def marks(name: str) -> tuple[str, str]:
    "Between what a table stands in README.md."
    return f"<!-- {name}: matrix.py --readme -->\n", f"\n<!-- end of {name} -->"


def write_readme() -> None:
    "The tables of README.md."
    runs = pd.read_csv(RUNS.path, dtype=str, keep_default_na=False)
    left_out = markdown(["model type", "why"], [[f"`{k}`", v] for k, v in zoo.LEFT_OUT.items()])
    tables = {
        "count": count(runs),
        "right": main_table(runs),
        "others": others_table(runs),
        "left out": left_out,
    }
    for name, text in tables.items():
        put_between(HERE / "README.md", marks(name), text)


def main() -> None:
    "See the top of this file."
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*")
    parser.add_argument("--readme", action="store_true")
    args = parser.parse_args()
    if args.readme:
        write_readme()
        return
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    todo = [job for job in jobs() if job["model"] in args.models] or RUNS.missing(jobs())
    for job in todo:
        result = row(job)
        if not args.models:
            RUNS.append(result)
        print(called(result), *(result[name] for name in COLUMNS), result["verdict"], flush=True)


if __name__ == "__main__":
    main()
