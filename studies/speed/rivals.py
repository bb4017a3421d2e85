"""TRL's own trainers on the work of `update.py`: same shapes, prompts, completions and tokens.

    python studies/speed/rivals.py --trainer grpo --size 4x256 --vocab_size 4096

grpo: GRPOTrainer with beta > 0 and the teacher as its reference model, which is the nearest that
TRL has to a reward with a divergence: it reads the KL at the sampled tokens only (k3), we read all
ids. distillation: DistillationTrainer, the exact reverse KL on the student's own completions,
without a reward. Prints a line of JSON as update.py does.
"""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from types import SimpleNamespace

import torch
import update
from datasets import Dataset
from transformers import TrainerCallback


class Clock(TrainerCallback):
    "CPU seconds of every update."

    def __init__(self):
        self.seconds, self.began = [], None

    def on_train_begin(self, args, state, control, **kwargs):
        self.began = update.clock("cpu")

    def on_step_end(self, args, state, control, **kwargs):
        now = update.clock("cpu")
        self.seconds.append(now - self.began)
        self.began = now


def common(args: SimpleNamespace, rows: int, length: int, folder: str) -> dict:
    "What both trainers are told."
    return dict(
        output_dir=f"{folder}/run",
        per_device_train_batch_size=rows,
        max_completion_length=length,
        generation_kwargs={"min_new_tokens": length},
        learning_rate=1e-5,
        max_steps=1 + args.updates,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
        shuffle_dataset=False,
    )


def build(args: SimpleNamespace, folder: str):
    "The trainer, with the models and data of update.py."
    student_shape, teacher_shape, rows, length = update.SIZES[args.size]
    torch.manual_seed(0)
    student, teacher = (
        update.shaped(shape, args.vocab_size, "cpu") for shape in (student_shape, teacher_shape)
    )
    tokenizer = update.words(args.vocab_size)
    generator = torch.Generator().manual_seed(0)
    prompts = max(64, rows) if args.trainer == "distillation" else 64  # it drops a smaller batch
    ids = torch.randint(2, args.vocab_size, (prompts, args.prompt_length), generator=generator)
    data = Dataset.from_dict({"prompt": tokenizer.batch_decode(ids)})
    told = common(args, rows, length, folder)
    given = dict(train_dataset=data, processing_class=tokenizer)
    if args.trainer == "distillation":
        from trl import DistillationConfig, DistillationTrainer

        return DistillationTrainer(student, teacher, DistillationConfig(**told), **given)
    from trl import GRPOConfig, GRPOTrainer

    teacher.save_pretrained(f"{folder}/teacher")
    student.config._name_or_path = f"{folder}/teacher"  # where TRL looks for the reference
    config = GRPOConfig(**told, num_generations=4, beta=0.1)
    trainer = GRPOTrainer(student, update.even, config, **given)
    assert trainer.ref_model.config.hidden_size == teacher_shape[0]
    return trainer


def measure(args: SimpleNamespace) -> dict:
    "Build the trainer and time its updates; the first is no measurement."
    torch.set_num_threads(1)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = build(args, folder)
        trainer.add_callback(clock)
        start = update.memory("cpu")
        trainer.train()
    return {
        **vars(args),
        "engine": args.trainer,
        "seconds": clock.seconds[1:],
        "start_mb": start,
        "peak_mb": update.peak("cpu"),
        "load": os.getloadavg()[0],
    }


def main() -> None:
    "Measure one trainer on one size."
    options = update.parser()
    options.description, options.epilog = __doc__, None
    options.add_argument("--trainer", default="grpo", choices=("grpo", "distillation"))
    warnings.simplefilter("ignore")
    print(json.dumps(measure(options.parse_args())), flush=True)


if __name__ == "__main__":
    main()
