"""How much memory of a card a recipe needs: `cmdp plan` for models and a card that are not here.

    python tools/memory.py recipes/qwen2.5-math-gsm8k.yaml --per_device_train_batch_size 4

`cmdp plan --config RECIPE` reads the models' configurations from the hub and measures the machine
that it runs on. Here the configurations are written out, and what a layer and the head keep is
measured on copies of a sixteenth of the width, on any machine: memory alone, no seconds. Nothing
is known of frameworks' overhead and of fragmentation: expect a few GB more.
"""

from __future__ import annotations

import argparse
import warnings
from copy import deepcopy
from dataclasses import replace

import torch
from transformers import LlamaConfig, PreTrainedConfig, Qwen2Config
from transformers.models.mllama.configuration_mllama import MllamaTextConfig

from cmdp_nbdev.config import CMDPConfig
from cmdp_nbdev.options import parse_args
from cmdp_nbdev.plan import (
    Measured,
    Work,
    count,
    head_measure,
    layer_measure,
    memory_of,
    peak_of,
    trained_parameters,
)

MODELS = {
    "Qwen/Qwen2.5-Math-1.5B": Qwen2Config(
        vocab_size=151936,
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    ),
    "Qwen/Qwen2.5-Math-7B-Instruct": Qwen2Config(
        vocab_size=152064,
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
    ),
    "meta-llama/Llama-3.2-3B": LlamaConfig(
        vocab_size=128256,
        hidden_size=3072,
        intermediate_size=8192,
        num_hidden_layers=28,
        num_attention_heads=24,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=131072,
        tie_word_embeddings=True,
    ),
    "meta-llama/Llama-3.2-11B-Vision-Instruct": MllamaTextConfig(),  # its text decoder
}
CARD = 80e9  # bytes, of which a chunk of logits takes an eightieth
NARROW = 16  # times
SHORT = 16  # tokens on which a layer and the head are measured


def narrow(config: PreTrainedConfig) -> PreTrainedConfig:
    "The same model of a sixteenth of the width: as many heads, which are narrower."
    config, heads = deepcopy(config), config.num_attention_heads
    config.head_dim = config.hidden_size // heads // NARROW
    config.hidden_size = heads * config.head_dim
    config.intermediate_size //= NARROW
    return config


def measured(work: Work) -> Measured:
    "Bytes alone; no seconds."
    sizes = dict(max_completion_length=SHORT, kl_chunk_size=SHORT // 2)
    small = narrow(work.student)
    short = replace(work, args=replace(work.args, **sizes), prompt_length=0, student=small)
    layer, more = layer_measure(short, small, work.dtype, True), work.length / SHORT * NARROW
    one, two = more * layer(1), more * layer(2)
    row, nothing = two + (two - one) * (work.student.num_hidden_layers - 2), float("nan")
    small.hidden_size = NARROW
    slow = dict(teacher_dtype=torch.float32, bf16=False)  # bfloat16 takes a CPU minutes, and less
    head = nothing, nothing, head_measure(replace(short, teacher=small, **slow))[2]
    return Measured(row, nothing, nothing, float((two - one)[1]), nothing, head, nothing)


def main(argv: list[str] | None = None) -> dict[str, float]:
    "Print GB by purpose, and their peak; returns them."
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("recipe")
    parser.add_argument("--prompt_length", type=int, default=256)
    given, more = parser.parse_known_args(argv)
    run, values = parse_args(["--config", given.recipe, *more])
    args, student, teacher = CMDPConfig(**values), MODELS[run.student], MODELS[run.teacher]
    chunk = args.kl_chunk_size or int(CARD / 80 / (4 * student.vocab_size))
    args, cpu = replace(args, kl_chunk_size=chunk), torch.device("cpu")
    work = Work(student, teacher, args, cpu, given.prompt_length, torch.bfloat16, True)
    own = count(student)
    counts = own, trained_parameters(work, run, own), count(teacher)
    print(f"student {counts[0]:,} parameters, {counts[1]:,} trained, teacher {counts[2]:,}")
    gb = memory_of(work, measured(work), counts)
    gb |= {"peak": peak_of(gb)}
    for purpose, size in gb.items():
        print(f"{purpose:30}{size:7.1f} GB")
    return gb


if __name__ == "__main__":
    warnings.filterwarnings("ignore", "bf16=True")
    main()
