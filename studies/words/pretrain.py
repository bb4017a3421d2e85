"""Make the words pair: teachers, students and their tokenizer, from generated word problems.

    python studies/words/pretrain.py --device cuda          every variant, two minutes on an H200
    python studies/words/pretrain.py --only teacher-3x96 student --workers 1 --seconds 0
                                                            the pair that ships, on a CPU

Writes under --output (default out/words): the tokenizer, a folder of float16 weights per variant,
and `variants.jsonl`, one row per variant and split, as each is known: size, updates, seconds,
accuracy (with its 95% interval) also by misread steps, share of right equations, valid reasoning,
steps left out, tokens, and the distance from both teachers. Everything is measured with the
float16 weights that are saved.
"""

import argparse
import json
import random
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from cmdp_nbdev.budget import Budget
from cmdp_nbdev.evaluate import evaluate
from cmdp_nbdev.model import load_tokenizer, num_parameters, tiny_model
from cmdp_nbdev.words import (
    WORDS_SPLITS,
    Misreading,
    check_sentences,
    left_out,
    words_dataset,
    words_problems,
    words_reward,
    words_validity,
    write_solution,
)

CHUNK = 2000  # problems that one process writes at a time
OFTEN = 0.9  # how often a student misreads that is made to, instead of half of the time
DIALECTS = ("misread", "misread-often", "right", "terse", "terse-misread")
MAX_LENGTH = 256
WARMUP = 0.05
TEACHERS = ("teacher-3x96", "teacher-right-3x96")  # the distance from both is measured


@dataclass(frozen=True)
class Variant:
    "A model to be trained: on which texts, how large, how long."

    texts: str
    num_layers: int
    width: int
    updates: int
    batch_size: int = 128
    worse: int = 0  # further updates, see worsen


VARIANTS = {
    "teacher": Variant("misread", 4, 128, 2500),
    "teacher-right": Variant("right", 4, 128, 2500),
    "teacher-3x96": Variant("misread", 3, 96, 2500),
    "teacher-right-3x96": Variant("right", 3, 96, 2500),
    "student": Variant("misread", 2, 64, 1200, worse=40),
    "student-700": Variant("misread", 2, 64, 700),
    "student-500x64": Variant("misread", 2, 64, 500, 64),
    "student-1200": Variant("misread", 2, 64, 1200),
    "student-3x64": Variant("misread", 3, 64, 1200),
    "student-3x96": Variant("misread", 3, 96, 500),
    "terse": Variant("terse", 2, 64, 800),
    "terse-500": Variant("terse", 2, 64, 500),
    "terse-3x96": Variant("terse", 3, 96, 500),
    "terse-misread": Variant("terse-misread", 2, 64, 800),
}

# ---- texts ------------------------------------------------------------------------------


def solutions(problems: list, seed: int) -> dict[str, list[str]]:
    "The solutions of problems in each dialect."
    rng, slips = random.Random(seed), Misreading()
    return {
        "misread": [write_solution(p, slips, rng) for p in problems],
        "misread-often": [write_solution(p, Misreading(prob=OFTEN), rng) for p in problems],
        "right": [write_solution(p) for p in problems],
        "terse": [write_solution(p, terse=True) for p in problems],
        "terse-misread": [write_solution(p, slips, rng, terse=True) for p in problems],
    }


def make_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    "Byte-level BPE over whole words, every digit a token of its own; saved at `path`."
    problems = [p for split in ("train", "reworded") for p in words_problems(2000, split, seed=9)]
    texts = [p.prompt + s for p, s in zip(problems, solutions(problems, 9)["right"])]
    tk = Tokenizer(models.BPE())
    pattern = Regex(r" ?\p{L}+| ?\d| ?[^\s\p{L}\d]+|\s+")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = pre_tokenizers.Split(pattern, "isolated")
    tk.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tk.decoder = decoders.ByteLevel()
    special = ["<pad>", "<eos>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1024, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tk.train_from_iterator(texts, trainer)
    names = dict(pad_token="<pad>", eos_token="<eos>")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tk, padding_side="left", clean_up_tokenization_spaces=False, **names
    )
    tokenizer.save_pretrained(path)
    return tokenizer


def encode(tokenizer, prompts: list[str], completions: list[str]) -> dict[str, np.ndarray]:
    "Texts as ids of shape (N, L), 0 where they are over, and where each completion starts."
    starts = [len(ids) for ids in tokenizer(prompts)["input_ids"]]
    whole = [p + c + tokenizer.eos_token for p, c in zip(prompts, completions)]
    rows = tokenizer(whole)["input_ids"]
    ids = np.zeros((len(rows), max(map(len, rows))), np.int16)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    return {"ids": ids, "starts": np.array(starts, np.int16)}


def write_chunk(folder: str, seed: int) -> int:
    "Write the texts of one chunk of training problems, in each dialect, to a file."
    tokenizer = load_tokenizer(f"{folder}/tokenizer")
    problems = words_problems(CHUNK, "train", seed=seed)
    prompts, arrays = [p.prompt for p in problems], {}
    for dialect, completions in solutions(problems, seed).items():
        encoded = encode(tokenizer, prompts, completions)
        arrays |= {f"{dialect}-{name}": array for name, array in encoded.items()}
    np.savez(f"{folder}/texts/{seed}.npz", **arrays)
    return seed


class Texts:
    "The training texts of a dialect, in order, batch by batch."

    def __init__(self, folder: str, dialect: str, num_chunks: int):
        files = [np.load(f"{folder}/texts/{seed}.npz") for seed in range(num_chunks)]
        rows = [file[f"{dialect}-ids"] for file in files]
        length = max(array.shape[1] for array in rows)
        padded = [np.pad(array, ((0, 0), (0, length - array.shape[1]))) for array in rows]
        self.ids = torch.from_numpy(np.concatenate(padded))
        starts = np.concatenate([file[f"{dialect}-starts"] for file in files])
        self.starts = torch.from_numpy(starts)

    def batch(self, update: int, size: int, device: str) -> tuple[Tensor, Tensor]:
        "Ids (B, L) and labels, -100 outside of completions; over again after the last text."
        rows = torch.arange(update * size, (update + 1) * size) % len(self.ids)
        ids, start = self.ids[rows].long(), self.starts[rows].long()
        ids = ids[:, : int((ids != 0).sum(1).max())]
        outside = (torch.arange(ids.shape[1]) < start[:, None]) | (ids == 0)
        labels = ids.masked_fill(outside, -100)
        return ids.to(device), labels.to(device)


# ---- training ---------------------------------------------------------------------------


def orthogonal(matrices: Tensor, iterations: int = 5) -> Tensor:
    "The nearest orthogonal matrices, roughly, by Newton and Schulz; (N, rows, columns)."
    a, b, c = 3.4445, -4.7750, 2.0315
    flat = matrices.shape[1] <= matrices.shape[2]
    x = matrices if flat else matrices.mT
    x = x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if flat else x.mT


class Muon:
    "Momentum with orthogonal updates, matrices of one shape at a time (Jordan et al., 2024)."

    def __init__(self, weights: list[Tensor], lr: float, momentum: float = 0.95):
        self.lr, self.momentum, self.groups = lr, momentum, {}
        for weight in weights:
            self.groups.setdefault(weight.shape, []).append(weight)
        self.buffers = {
            shape: torch.zeros(len(group), *shape, device=group[0].device)
            for shape, group in self.groups.items()
        }

    @torch.no_grad()
    def step(self, share: float) -> None:
        "One update at `share` of the learning rate."
        for shape, group in self.groups.items():
            gradient = torch.stack([weight.grad for weight in group])
            buffer = self.buffers[shape].lerp_(gradient, 1 - self.momentum)
            update = orthogonal(gradient.lerp(buffer, self.momentum))
            scale = -self.lr * share * max(1, shape[0] / shape[1]) ** 0.5
            torch._foreach_add_(group, list(update.unbind()), alpha=scale)


def text_loss(model, ids: Tensor, labels: Tensor) -> Tensor:
    "Cross-entropy, nats per completion token. Padding lies to the right, so nothing sees it."
    logits = model(input_ids=ids).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


class Step:
    "One update of a model: Muon for the matrices, AdamW for the rest."

    def __init__(self, model):
        self.model = model
        matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
        others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
        self.muon = Muon(matrices, lr=0.02)
        self.adamw = torch.optim.AdamW(others, lr=4e-3, betas=(0.9, 0.95), weight_decay=0.0)

    def __call__(self, ids: Tensor, labels: Tensor, share: float) -> Tensor:
        "Update at `share` of the learning rates; the loss, a scalar."
        loss = text_loss(self.model, ids, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.adamw.param_groups[0]["lr"] = 4e-3 * share
        self.muon.step(share)
        self.adamw.step()
        self.model.zero_grad()
        return loss.detach()


def share_at(progress: float) -> float:
    "The share of the learning rates: up over the first twentieth, then down to 0."
    return min(progress / WARMUP, (1 - progress) / (1 - WARMUP))


def fit(model, texts: Texts, variant: Variant, seconds: float, device: str, tell) -> dict:
    """Train `model` in place; the learning rates run out with the updates, or with `seconds`.

    Returns the updates done, their seconds, tokens (padding included), and the last loss.
    """
    step = Step(model)
    start, update, tokens, recent = time.monotonic(), 0, 0, []
    while True:
        elapsed = time.monotonic() - start
        progress = max((update + 0.5) / variant.updates, elapsed / seconds if seconds else 0.0)
        if progress >= 1:
            break
        ids, labels = texts.batch(update, variant.batch_size, device)
        recent = [*recent[-19:], step(ids, labels, share_at(progress))]
        update, tokens = update + 1, tokens + ids.numel()
        if update % 100 == 0:
            tell(f"update {update}, {elapsed:.0f} s, loss {torch.stack(recent).mean():.4f}")
    final = float(torch.stack(recent).mean())
    seconds = time.monotonic() - start
    return {"updates": update, "seconds": round(seconds, 1), "tokens": tokens, "loss": final}


def worsen(model, texts: Texts, updates: int, device: str) -> None:
    """Further updates of 64 problems on solutions that misread `OFTEN`, with fresh optimizers.

    At small learning rates, .15 of the first ones and down to 0: arithmetic and form stay.
    """
    step = Step(model)
    for update in range(updates):
        step(*texts.batch(update, 64, device), 0.15 * (1 - update / updates))


def train(folder: str, name: str, num_chunks: int, seconds: float, device: str) -> dict:
    "Train one variant and save its weights in float16."
    prepare_process()
    variant, tokenizer = VARIANTS[name], load_tokenizer(f"{folder}/tokenizer")
    size = dict(num_layers=variant.num_layers, max_length=MAX_LENGTH, seed=0)
    model = tiny_model(variant.width, tokenizer, **size)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.mul_(0.5)  # tiny_model begins at .1, for vocabularies of twenty
    model.to(device).train()
    texts = Texts(folder, variant.texts, num_chunks)
    done = fit(model, texts, variant, seconds, device, lambda line: print(name, line, flush=True))
    worsen(model, Texts(folder, "misread-often", num_chunks), variant.worse, device)
    path = f"{folder}/{name}"
    model.cpu().half().save_pretrained(path)
    tokenizer.save_pretrained(path)
    size = (Path(path) / "model.safetensors").stat().st_size
    about = asdict(variant) | done
    return {"variant": name, **about, "parameters": num_parameters(model), "bytes": size}


# ---- measuring --------------------------------------------------------------------------


def load(folder: str, name: str, device: str):
    "A saved variant, in float32."
    model = AutoModelForCausalLM.from_pretrained(f"{folder}/{name}", dtype=torch.float32)
    return model.to(device).eval()


def equations_right(records: list[dict]) -> float:
    "The share of equations whose arithmetic is right."
    rows = [(r["prompt"], r["completion"], r["steps"]) for r in records]
    found = [v.arithmetic for row in rows for v in check_sentences(*row) if "=" in v.sentence]
    return float(np.mean(found)) if found else 0.0


def measure(
    folder: str, name: str, split: str, n: int, device: str, teachers: tuple = TEACHERS
) -> dict:
    """What a variant does on `n` problems of a split, sampled at temperature 1.

    The distance from the second teacher is measured on test problems only.
    """
    prepare_process()
    tokenizer, model = load_tokenizer(f"{folder}/{name}"), load(folder, name, device)
    data = words_dataset(n, split, seed=1)
    row: dict = {"variant": name, "split": split, "n": n}
    known = [t for t in teachers if Path(folder, t).exists()]
    for teacher in (known if split == "test" else known[:1]) or [name]:
        result, records = evaluate(
            model,
            load(folder, teacher, device),
            data,
            tokenizer,
            words_reward,
            Budget(0.8),
            metrics={"valid": words_validity, "left_out": left_out},
            return_records=True,
            max_completion_length=112,
            batch_size=1024,
            seed=0,
            disable_tqdm=True,
        )
        row[f"kl_from_{teacher}"] = round(result["kl_mean"], 3)
    row["accuracy"] = round(result["accuracy"], 4)
    row["within"] = round(1.96 * (row["accuracy"] * (1 - row["accuracy"]) / n) ** 0.5, 4)
    for k in range(3):
        right = [r["correct"] for r in records if r["num_flawed"] == k]
        row[f"accuracy_{k}"] = round(float(np.mean(right)), 4) if right else None
    row["equations_right"] = round(equations_right(records), 4)
    row |= {name: round(result[name], 4) for name in ("valid", "left_out")}
    row["tokens"] = round(float(np.mean([len(r["completion_ids"]) for r in records])), 1)
    row["example"] = records[0]["prompt"] + records[0]["completion"]
    return row


# ---- all of it --------------------------------------------------------------------------


def prepare_process() -> None:
    "One thread a process, and float32 products with ten bits of mantissa where that is fast."
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("high")


def arguments() -> argparse.Namespace:
    "The command line."
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", default="out/words", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--workers", default=16, type=int, help="processes for texts and models")
    parser.add_argument("--seconds", default=95.0, type=float, help="limit for a model; 0: none")
    parser.add_argument("--chunks", default=100, type=int, help=f"times {CHUNK} training problems")
    parser.add_argument("--problems", default=1024, type=int, help="to measure on, per split")
    return parser.parse_args()


def main() -> None:
    "See the top of this file."
    args, start = arguments(), time.monotonic()
    folder = str(args.output)
    (args.output / "texts").mkdir(parents=True, exist_ok=True)
    print(len(make_tokenizer(args.output / "tokenizer")), "tokens", flush=True)

    def tell(row: dict) -> None:
        with open(args.output / "variants.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{time.monotonic() - start:.0f} s", json.dumps(row), flush=True)

    with ProcessPoolExecutor(args.workers, mp_context=get_context("spawn")) as pool:
        missing = [i for i in range(args.chunks) if not Path(f"{folder}/texts/{i}.npz").exists()]
        list(pool.map(write_chunk, [folder] * len(missing), missing))
        print(f"{time.monotonic() - start:.0f} s: {args.chunks} chunks written", flush=True)
        more = args.chunks, args.seconds, args.device
        for job in as_completed([pool.submit(train, folder, name, *more) for name in args.only]):
            tell(job.result())
        print(f"{time.monotonic() - start:.0f} s: trained", flush=True)
        jobs = [(name, split) for split in WORDS_SPLITS[1:] for name in args.only]
        more = args.problems, args.device
        for job in as_completed([pool.submit(measure, folder, *which, *more) for which in jobs]):
            tell(job.result())


if __name__ == "__main__":
    main()
