"""A student of the words pair that may leave out the words: the start of a conflict about length.

    python studies/conflicts/brief.py      writes brief_student/, some minutes on one core

The shipped student writes a sentence a step, so a price per token finds little to shorten. This one
is fine-tuned from it on solutions of which every sentence is, with probability .5, its equation
alone: `Ben has 12 - 4 = 8 apples. 8 + 7 = 15. The answer is 15.`
"""

import random
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from cmdp_nbdev.model import words_pair
from cmdp_nbdev.words import Misreading, check_sentences, read_steps, words_problems, write_solution
from studies.conflicts.chains import loss_of

FOLDER = Path(__file__).resolve().parent / "brief_student"
SHARE, STEPS, BATCH, LEARNING_RATE = 0.5, 200, 64, 2e-3


def left_out(prompts, completions, steps, **kwargs) -> list[float]:
    "Steps without a sentence in words; the signature of a reward function."
    rows = zip(prompts, completions, steps)
    return [float(_left_out(*row)) for row in rows]


def _left_out(prompt: str, completion: str, steps: str) -> int:
    "Steps of one problem that no sentence works out; an equation alone is no sentence."
    verdicts = check_sentences(prompt, completion, steps)
    told = {v.step for v in verdicts if re.search("[A-Za-z]", v.sentence)} - {None}
    return len(read_steps(steps)) - len(told)


def brief_solution(problem, share: float, rng: random.Random) -> str:
    "A solution with the teacher's misreading; each sentence its equation alone by `share`."
    seed, slips = rng.random(), Misreading()
    whole, terse = (
        re.split(r"(?<=\.) ", write_solution(problem, slips, random.Random(seed), short))
        for short in (False, True)
    )
    return " ".join(b if rng.random() < share else a for a, b in zip(whole, terse))


def main() -> None:
    "See the top of this file."
    torch.set_num_threads(1)
    model, _, tokenizer = words_pair()
    rng, problems = random.Random(0), words_problems(12800, "train", seed=7)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=STEPS)
    for step in range(STEPS):
        batch = problems[step * BATCH % len(problems) :][:BATCH]
        texts = [brief_solution(problem, SHARE, rng) for problem in batch]
        loss = loss_of(model, tokenizer, [problem.prompt for problem in batch], texts)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 49:
            print(f"step {step + 1}: {loss.item():.3f} nats per token", flush=True)
    model.save_pretrained(FOLDER)
    tokenizer.save_pretrained(FOLDER)


if __name__ == "__main__":
    main()
