"""Prompts and students of the conflicts on chains, made from the embedded pair.

    python studies/conflicts/chains.py      writes skipping_student/, terse_student/ and the models
                                            of two_lengths/, some two minutes each on one core

`4+0`, `4-0` and `4*1` change nothing, and the teacher writes them like any other step. The skipping
student is the shipped one, fine-tuned to leave every such step out with probability .5: `3+0*7-2=`
becomes `3*7=1;1-2=9#9`. So a reward that charges for tokens finds something to shorten. The terse
one writes four of five chains in a dialect of its own, results alone: `3;1;9#9`.

Chains of two lengths: three steps, one of them flawed, and four steps, three of them flawed. How
many corrections a prompt needs can be seen in its length. The embedded pair knows three steps only,
so teacher and students are fine-tuned on these prompts.
"""

import random
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import torch.nn.functional as F
from datasets import Dataset

from cmdp_nbdev.model import default_pair
from cmdp_nbdev.task import (
    ChainTask,
    chain_dataset,
    chain_prompts,
    dataset_of_chains,
    parse_prompt,
    split_of,
    write_chain,
)

HERE = Path(__file__).resolve().parent
SKIPPING, BILINGUAL = HERE / "skipping_student", HERE / "terse_student"
LENGTHS = HERE / "two_lengths"
TASK = ChainTask(operands="0000111123456789")  # a quarter of the steps does nothing
MIXED = ChainTask(ops="+-****", operands="00111" + 3 * "56789")  # half of what is drawn is flawed
SHAPES = ((3, 1), (4, 3))  # steps and flawed ones, every second prompt
SHARE, TERSE, STEPS, BATCH, LEARNING_RATE = 0.5, 0.8, 1200, 128, 4e-3
WRITTEN = re.compile(r"\d([+\-*])(\d)=\d")


def does_nothing(op: str, operand: int) -> bool:
    "Whether a step leaves every value as it is."
    return (op, operand) in (("+", 0), ("-", 0), ("*", 1))


def easy_dataset(n: int, split: str = "train"):
    "Prompts of `TASK`."
    return chain_dataset(n, split, task=TASK)


def mixed_dataset(n: int, split: str = "train"):
    "Prompts of `MIXED`: many need two corrections or three. Distinct ones are fewer of the worst."
    return chain_dataset(n, split, task=MIXED)


def shaped_prompt(num_ops: int, num_flawed: int, rng: random.Random) -> str:
    "A chain of `num_ops` steps, `num_flawed` of them flawed; the others are no multiplications."
    flawed = ["*" + rng.choice("56789") for _ in range(num_flawed)]
    plain = [rng.choice("+-") + rng.choice(TASK.operands) for _ in range(num_ops - num_flawed)]
    steps = flawed + plain
    rng.shuffle(steps)
    return f"{rng.randrange(10)}{''.join(steps)}="


def two_lengths_prompts(n: int, split: str = "train") -> list[str]:
    "`n` distinct prompts of a split, the `SHAPES` in turn."
    rng, prompts = random.Random(f"{split}-two-lengths"), {}
    while len(prompts) < n:
        prompt = shaped_prompt(*SHAPES[len(prompts) % len(SHAPES)], rng)
        if split_of(prompt) == split:
            prompts[prompt] = None
    return list(prompts)


def two_lengths_dataset(n: int, split: str = "train") -> Dataset:
    "These prompts with the columns of `chain_dataset`."
    return dataset_of_chains(two_lengths_prompts(n, split))


def left_out(prompts, completions, **kwargs) -> list[float]:
    "Steps that a completion does not write; the signature of a reward function."
    return [float(_left_out(p, c)) for p, c in zip(prompts, completions)]


def _left_out(prompt: str, completion: str) -> int:
    "Steps of one prompt that its completion does not write, in their order."
    steps = [f"{op}{operand}" for op, operand in parse_prompt(prompt)[1]]
    written = ["".join(step) for step in WRITTEN.findall(completion)]
    return len(steps) - common(steps, written)


def common(a: list[str], b: list[str]) -> int:
    "Length of the longest common subsequence."
    row = [0] * (len(b) + 1)
    for x in a:
        before = row[:]
        for j, y in enumerate(b):
            row[j + 1] = before[j] + 1 if x == y else max(before[j + 1], row[j])
    return row[-1]


def skipping_chain(prompt: str, share: float, rng: random.Random) -> str:
    "The teacher's text, with each step that does nothing left out with probability `share`."
    steps, _, answer = write_chain(prompt, TASK.flaw, rng).rpartition("#")
    kept = [
        step
        for step, asked in zip(steps.split(";"), parse_prompt(prompt)[1])
        if not does_nothing(*asked) or rng.random() >= share
    ]
    return ";".join(kept) + f"#{answer}"


def loss_of(model, tokenizer, prompts: list[str], texts: list[str]) -> torch.Tensor:
    "Cross-entropy of the completions, nats per token."
    both = [p + t + tokenizer.eos_token for p, t in zip(prompts, texts)]
    how = dict(padding=True, padding_side="right", return_tensors="pt")
    enc = tokenizer(both, return_token_type_ids=False, **how)
    start = torch.tensor([len(ids) for ids in tokenizer(prompts)["input_ids"]])[:, None]
    given = torch.arange(enc["input_ids"].shape[1]) < start
    labels = enc["input_ids"].masked_fill(given | (enc["attention_mask"] == 0), -100)
    logits = model(**enc).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def fine_tune(model, tokenizer, batches, steps: int, learning_rate: float, every: int) -> None:
    "Train the model in place, one update on each of the `batches`: prompts and their texts."
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    for step, (prompts, texts) in enumerate(batches, 1):
        loss = loss_of(model, tokenizer, prompts, texts)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % every == 0:
            print(f"step {step}: {loss.item():.3f} nats per token", flush=True)


def flawed_chain(prompt: str, rng: random.Random) -> str:
    "The stated teacher's text."
    return write_chain(prompt, TASK.flaw, rng)


def bilingual_chain(prompt: str, share: float, rng: random.Random) -> str:
    "The teacher's text, with probability `share` its results alone."
    text = flawed_chain(prompt, rng)
    return re.sub(r"\d[+\-*]\d=", "", text) if rng.random() < share else text


def skipping(prompt: str, rng: random.Random) -> str:
    "What the skipping student writes."
    return skipping_chain(prompt, SHARE, rng)


def terse(prompt: str, rng: random.Random) -> str:
    "What the student with a dialect of its own writes."
    return bilingual_chain(prompt, TERSE, rng)


def batches(prompts: list[str], write, steps: int, seed: int = 0):
    "Random prompts, and chains as `write` writes them."
    rng = random.Random(seed)
    for _ in range(steps):
        batch = rng.sample(prompts, BATCH)
        yield batch, [write(p, rng) for p in batch]


def make(folder: Path, prompts: list[str], write, who: str = "student", steps=STEPS) -> None:
    "Fine-tune a model of the embedded pair on chains, and save it."
    model, teacher, tokenizer = default_pair()
    if who == "teacher":
        model = teacher.requires_grad_(True)
    batch_of = batches(prompts, write, steps)
    fine_tune(model, tokenizer, batch_of, steps, LEARNING_RATE, 200)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    "See the top of this file."
    torch.set_num_threads(1)
    make(SKIPPING, chain_prompts(16000, "train", 0, TASK), skipping)
    make(BILINGUAL, chain_prompts(16000, "train", 0, ChainTask()), terse)
    prompts = two_lengths_prompts(16000)
    make(LENGTHS / "teacher", prompts, flawed_chain, "teacher")
    make(LENGTHS / "student", prompts, flawed_chain, steps=STEPS // 4)
    make(LENGTHS / "terse", prompts, terse)


if __name__ == "__main__":
    main()
