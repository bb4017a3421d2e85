"""Students of the embedded pair that do not write as their teacher does.

    python studies/conflicts/chains.py      writes skipping_student/ and terse_student/, two
                                            minutes each on one core

`4+0`, `4-0` and `4*1` change nothing, and the teacher writes them like any other step. The skipping
student is the shipped one, fine-tuned to leave every such step out with probability .5: `3+0*7-2=`
becomes `3*7=1;1-2=9#9`. So a reward that charges for tokens finds something to shorten. The terse
one writes four of five chains in a dialect of its own, results alone: `3;1;9#9`.
"""

import random
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import torch.nn.functional as F

from cmdp_nbdev.model import default_pair
from cmdp_nbdev.task import ChainTask, chain_dataset, chain_prompts, parse_prompt, write_chain

HERE = Path(__file__).resolve().parent
SKIPPING, BILINGUAL = HERE / "skipping_student", HERE / "terse_student"
TASK = ChainTask(operands="0000111123456789")  # a quarter of the steps does nothing
MIXED = ChainTask(ops="+-****", operands="00111" + 3 * "56789")  # half of what is drawn is flawed
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


def bilingual_chain(prompt: str, share: float, rng: random.Random) -> str:
    "The teacher's text, with probability `share` its results alone."
    text = write_chain(prompt, ChainTask().flaw, rng)
    return re.sub(r"\d[+\-*]\d=", "", text) if rng.random() < share else text


STUDENTS = {
    SKIPPING: (TASK, lambda prompt, rng: skipping_chain(prompt, SHARE, rng)),
    BILINGUAL: (ChainTask(), lambda prompt, rng: bilingual_chain(prompt, TERSE, rng)),
}


def batches(task: ChainTask, write, seed: int = 0):
    "Random prompts of a task, and chains as `write` writes them."
    rng, prompts = random.Random(seed), chain_prompts(16000, "train", 0, task)
    for _ in range(STEPS):
        batch = rng.sample(prompts, BATCH)
        yield batch, [write(p, rng) for p in batch]


def main() -> None:
    "See the top of this file."
    torch.set_num_threads(1)
    for folder, (task, write) in STUDENTS.items():
        model, _, tokenizer = default_pair()
        fine_tune(model, tokenizer, batches(task, write), STEPS, LEARNING_RATE, 200)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main()
