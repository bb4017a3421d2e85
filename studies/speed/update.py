"""Updates of one configuration in a process of its own: seconds by phase, and memory.

    python studies/speed/update.py --size 4x256 --vocab_size 49152          # one, as JSON
    python studies/speed/update.py --all --repeats 3 >> studies/speed/cpu.jsonl
    python studies/speed/update.py --size smollm2 --device cuda --bf16

Models have random weights, and every completion is written to the end: no token ends a text.
Seconds are CPU seconds of one thread (wall seconds on an accelerator); memory is the resident set
(torch's on an accelerator), at the start of the first update and at most.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from cmdp_nbdev.trainer import CMDPConfig, CMDPTrainer

# width, layers, heads, key-value heads, MLP of student and teacher; prompts and completions
SIZES = {
    "tiny": ((16, 1, 2, 2, 32), (24, 1, 2, 2, 48), 8, 16),
    "embedded": ((128, 2, 4, 4, 512), (256, 2, 4, 4, 1024), 128, 20),
    "4x256": ((256, 4, 4, 4, 1024), (384, 6, 6, 6, 1536), 16, 64),
    "smollm2": ((576, 8, 9, 3, 1536), (576, 15, 9, 3, 1536), 8, 256),
    "pretrained": (None, None, 4, 64),  # SmolLM2 itself and its first layers
}
PRETRAINED_LAYERS = 8
ALL = (
    ("embedded", 20),
    ("4x256", 4096),
    ("4x256", 49152),
    ("4x256", 151936),
    ("smollm2", 49152),
)


def config_of_shape(shape: tuple, vocab_size: int) -> LlamaConfig:
    "A tied head; nothing ends a text."
    width, layers, heads, pairs, inner = shape
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=pairs,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )


def shaped(shape: tuple, vocab_size: int, device: str, dtype=torch.float32) -> LlamaForCausalLM:
    "A model with random weights."
    with torch.device(device):
        return LlamaForCausalLM(config_of_shape(shape, vocab_size)).to(dtype)


def pretrained_folder() -> Path:
    "SmolLM2-135M-Instruct, made from its package at the first call."
    from cmdp_nbdev.prepare import smollm2

    return smollm2()


def pretrained_pair() -> tuple:
    "SmolLM2's first layers, and SmolLM2, with a tokenizer whose end nobody writes."
    folder, pair = pretrained_folder(), []
    for sizes in (dict(num_hidden_layers=PRETRAINED_LAYERS), {}):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **sizes)
        model.config.eos_token_id = model.generation_config.eos_token_id = None
        model.config._name_or_path = model.name_or_path = ""  # its tokenizer would end texts
        pair.append(model)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.eos_token = "<reponame>"
    return *pair, tokenizer


def weights_mb(*models) -> float:
    "MB of all parameters."
    return sum(p.nbytes for model in models for p in model.parameters()) / 1e6


def words(size: int) -> PreTrainedTokenizerFast:
    "A tokenizer with as many ids, a word each."
    vocabulary = {"<pad>": 0, "<end>": 1} | {f"w{i}": i for i in range(2, size)}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = dict(pad_token="<pad>", eos_token="<end>")
    return PreTrainedTokenizerFast(tokenizer_object=made, padding_side="left", **special)


def even(completions, **columns) -> list[float]:
    "A reward that differs between completions."
    return [float(len(c) % 2) for c in completions]


def clock(device: str) -> float:
    "CPU seconds of this process; of an accelerator wall time, when it is done."
    if device == "cpu":
        return time.process_time()
    torch.accelerator.synchronize()
    return time.perf_counter()


def memory(device: str) -> float:
    "MB in use now."
    if device != "cpu":
        return torch.cuda.memory_allocated() / 1e6
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * resource.getpagesize() / 1e6


def peak(device: str) -> float:
    "MB at most, so far."
    if device != "cpu":
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def timed(trainer, name: str, device: str, spent: dict) -> None:
    "Have `spent` add up the seconds in one of the trainer's stages."
    stage = getattr(trainer, name)

    def run(*args, **kwargs):
        began = clock(device)
        try:
            return stage(*args, **kwargs)
        finally:
            spent[name] = spent.get(name, 0.0) + clock(device) - began

    setattr(trainer, name, run)


def build(args, folder: str):
    "The trainer."
    student_shape, teacher_shape, rows, length = SIZES[args.size]
    torch.manual_seed(0)
    if args.size == "pretrained":
        *pair, tokenizer = pretrained_pair()
    else:
        made = partial(shaped, vocab_size=args.vocab_size, device=args.device)
        teacher_dtype = args.teacher_dtype or ("bfloat16" if args.bf16 else "float32")
        pair = made(student_shape), made(teacher_shape, dtype=getattr(torch, teacher_dtype))
        tokenizer = words(args.vocab_size)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, args.vocab_size, (64, args.prompt_length), generator=generator)
    data = Dataset.from_dict({"prompt": tokenizer.batch_decode(ids)})
    config = CMDPConfig(
        budget=20.0,
        per_device_train_batch_size=rows // args.parts,
        gradient_accumulation_steps=args.parts,
        num_generations=4,
        num_iterations=args.num_iterations,
        max_completion_length=length,
        kl_chunk_size=args.kl_chunk_size,
        gradient_checkpointing=args.gradient_checkpointing,
        bf16=args.bf16,
        device="cpu" if args.device == "cpu" else "auto",
        max_steps=1 + args.updates,
        save_steps=0,
        disable_tqdm=True,
        output_dir=folder,
    )
    engine = CMDPTrainer
    if args.engine == "trl":
        from cmdp_nbdev.trl import TRLTrainer as engine
    return engine(*pair, even, config, data, None, tokenizer)


def measure(args) -> dict:
    "Build the trainer and time its updates; the first is no measurement."
    torch.set_num_threads(args.threads)
    seconds, phases, spent, losses = [], [], {}, []
    with tempfile.TemporaryDirectory() as folder:
        trainer = build(args, folder)
        start, began = memory(args.device), clock(args.device)

        def note(trainer, metrics):
            nonlocal began
            now = clock(args.device)
            seconds.append(now - began)
            phases.append(dict(spent))
            losses.append(metrics["loss"])
            spent.clear()
            began = now

        trainer.callbacks.append(note)
        if args.engine == "native":
            for name in ("sample", "ask", "score", "update"):
                timed(trainer, name, args.device, spent)
        trainer.train()
        tokens = trainer.written[0].completion_ids.numel()
    return {
        **vars(args),
        "seconds": seconds[1:],
        "phases": phases[1:],
        "tokens": tokens,
        "start_mb": start,
        "weights_mb": weights_mb(trainer.job.model, trainer.teacher),
        "peak_mb": peak(args.device),
        "chunk": trainer.args.kl_chunk_size,
        "losses": losses,
        "load": os.getloadavg()[0],
    }


def parser() -> argparse.ArgumentParser:
    "The options."
    form = argparse.RawDescriptionHelpFormatter
    options = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    options.add_argument("--size", default="4x256", choices=SIZES)
    options.add_argument("--vocab_size", type=int, default=49152)
    options.add_argument("--engine", default="native", choices=("native", "trl"))
    options.add_argument("--updates", type=int, default=2)
    options.add_argument("--parts", type=int, default=1, help="micro-batches of an update")
    options.add_argument("--num_iterations", type=int, default=1)
    options.add_argument("--prompt_length", type=int, default=8)
    options.add_argument("--kl_chunk_size", type=int)
    options.add_argument("--gradient_checkpointing", action="store_true")
    options.add_argument("--device", default="cpu")
    options.add_argument("--bf16", action="store_true")
    options.add_argument("--teacher_dtype", help="that of --bf16 where nothing is said")
    options.add_argument("--threads", type=int, default=1)
    options.add_argument(
        "--all", action="store_true", help="all sizes and engines, each in a child"
    )
    options.add_argument("--repeats", type=int, default=1, help="children of each, interleaved")
    return options


def main() -> None:
    "Measure one configuration here, or all in children."
    args = parser().parse_args()
    if not args.all:
        warnings.simplefilter("ignore")
        print(json.dumps(measure(args)), flush=True)
        return
    given = [word for word in sys.argv[1:] if word != "--all"]
    for _ in range(args.repeats):
        for size, vocab_size in ALL:
            for engine in ("native", "trl"):
                how = f"--size {size} --vocab_size {vocab_size} --engine {engine}".split()
                subprocess.run([sys.executable, __file__, *given, *how], check=True)


if __name__ == "__main__":
    main()
