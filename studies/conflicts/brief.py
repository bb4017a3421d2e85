"""Students of the words pair that know two dialects: sentences, and equations alone.

    python studies/conflicts/brief.py out/words/student-700     writes brief_student/ and
                                                                bilingual_student/, on one core

They are fine-tuned from a student of studies/words/pretrain.py (`--only student-700`) that writes a
sentence a step: a price per token would find little to shorten. `brief` has seen solutions of which
every sentence is, with probability .5, its equation alone: `Ben has 12 - 4 = 8 apples. 8 + 7 = 15.
The answer is 15.` `bilingual` has seen whole solutions, four of five in equations alone: that is
its own dialect, and the teacher, which never writes it, finds the other one in it, too.
"""

import random
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from cmdp_nbdev.model import load_model, words_pair
from cmdp_nbdev.words import Misreading, check_sentences, read_steps, words_problems, write_solution
from studies.conflicts.chains import fine_tune

HERE = Path(__file__).resolve().parent
BRIEF, BILINGUAL = HERE / "brief_student", HERE / "bilingual_student"
STEPS, BATCH, LEARNING_RATE = 150, 64, 2e-3


def left_out(prompts, completions, steps, **kwargs) -> list[float]:
    "Steps without a sentence in words; the signature of a reward function."
    rows = zip(prompts, completions, steps)
    return [float(_left_out(*row)) for row in rows]


def _left_out(prompt: str, completion: str, steps: str) -> int:
    "Steps of one problem that no sentence works out; an equation alone is no sentence."
    verdicts = check_sentences(prompt, completion, steps)
    told = {v.step for v in verdicts if re.search("[A-Za-z]", v.sentence)} - {None}
    return len(read_steps(steps)) - len(told)


def dialects(problem, rng: random.Random) -> tuple[list[str], list[str]]:
    "The sentences of a solution with the teacher's misreading, and the same as equations."
    seed, slips = rng.random(), Misreading()
    whole, terse = (
        re.split(r"(?<=\.) ", write_solution(problem, slips, random.Random(seed), short))
        for short in (False, True)
    )
    return whole, terse


def brief_solution(problem, rng: random.Random) -> str:
    "A solution of which about half of the sentences are their equations alone."
    return " ".join(rng.choice(pair) for pair in zip(*dialects(problem, rng)))


def bilingual_solution(problem, rng: random.Random) -> str:
    "A solution in equations alone, one in five in sentences."
    whole, terse = dialects(problem, rng)
    return " ".join(terse if rng.random() < 0.8 else whole)


STUDENTS = {BRIEF: brief_solution, BILINGUAL: bilingual_solution}


def batches(write, seed: int = 7):
    "Problems, and solutions as `write` writes them."
    rng, problems = random.Random(seed), words_problems(STEPS * BATCH, "train", seed)
    for step in range(STEPS):
        batch = problems[step * BATCH :][:BATCH]
        yield [problem.prompt for problem in batch], [write(problem, rng) for problem in batch]


def main() -> None:
    "See the top of this file."
    torch.set_num_threads(1)
    for folder, write in STUDENTS.items():
        model = load_model(sys.argv[1], dtype=torch.float32)
        fine_tune(model, words_pair()[2], batches(write), STEPS, LEARNING_RATE, 50)
        model.half().save_pretrained(folder)


if __name__ == "__main__":
    main()
