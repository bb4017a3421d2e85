"""How much accelerator memory a recipe needs.

    python tools/memory.py recipes/qwen2.5-math-gsm8k.yaml

Weights, gradients and optimiser are counted on models without storage; the key-value cache and the
activations follow from the configuration; bytes per logit are measured on a small model with a
large vocabulary, with the trainer itself. No framework overhead, no fragmentation: expect a few GB
more.
"""

from __future__ import annotations

import argparse
import functools
import gc
import tempfile
import warnings

import torch
from datasets import Dataset
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MllamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.models.mllama.configuration_mllama import MllamaTextConfig

from cmdp_nbdev.model import char_tokenizer
from cmdp_nbdev.options import parse_args
from cmdp_nbdev.plan import PeakBytes
from cmdp_nbdev.trainer import CMDPConfig, CMDPTrainer

# The models, by the part of their config.json that decides sizes

QWEN_1_5B = Qwen2Config(
    vocab_size=151936,
    hidden_size=1536,
    intermediate_size=8960,
    num_hidden_layers=28,
    num_attention_heads=12,
    num_key_value_heads=2,
    max_position_embeddings=4096,
    tie_word_embeddings=True,
)
QWEN_7B = Qwen2Config(
    vocab_size=152064,
    hidden_size=3584,
    intermediate_size=18944,
    num_hidden_layers=28,
    num_attention_heads=28,
    num_key_value_heads=4,
    max_position_embeddings=4096,
    tie_word_embeddings=False,
)
LLAMA_3B = LlamaConfig(
    vocab_size=128256,
    hidden_size=3072,
    intermediate_size=8192,
    num_hidden_layers=28,
    num_attention_heads=24,
    num_key_value_heads=8,
    head_dim=128,
    max_position_embeddings=131072,
    tie_word_embeddings=True,
)
LLAMA_11B = MllamaTextConfig()  # the text decoder; its sizes are the defaults of transformers
MODELS = {
    "Qwen/Qwen2.5-Math-1.5B": (Qwen2ForCausalLM, QWEN_1_5B),
    "Qwen/Qwen2.5-Math-7B-Instruct": (Qwen2ForCausalLM, QWEN_7B),
    "meta-llama/Llama-3.2-3B": (LlamaForCausalLM, LLAMA_3B),
    "meta-llama/Llama-3.2-11B-Vision-Instruct": (MllamaForCausalLM, LLAMA_11B),
}


@functools.cache
def parameters(name: str) -> int:
    "Number of parameters, counted on the meta device."
    model_class, config = MODELS[name]
    with torch.device("meta"):
        return sum(p.numel() for p in model_class(config).parameters())


# Bytes per logit, measured


def small_pair(student: str, teacher: str, vocab_size: int) -> tuple:
    "Two models of next to nothing but a vocabulary, cropped if that of the real pair is; no EOS."
    shape = dict(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        eos_token_id=[],
        bos_token_id=None,
        pad_token_id=0,
    )
    cropped = MODELS[student][1].vocab_size != MODELS[teacher][1].vocab_size
    rows = (vocab_size, vocab_size + 8 * cropped)
    pupil, master = (Qwen2ForCausalLM(Qwen2Config(vocab_size=v, **shape)) for v in rows)
    return pupil, master.to(torch.bfloat16)


def parity(completions, **columns) -> list[float]:
    "A reward that differs between completions."
    return [float(len(c) % 2) for c in completions]


MEASURED = ("method", "method_kwargs", "aggregate", "budget", "floor", "bf16")


def bytes_per_logit(
    values: dict,
    student: str,
    teacher: str,
    vocab_size: int = 10000,
    batch_size: int = 4,
    length: int = 32,
) -> tuple[float, float]:
    """Peak bytes of an update, and of an evaluation, per (completion token, vocabulary entry).

    Measured on the CPU with the recipe's method and precision.
    """
    data = Dataset.from_dict({"prompt": ["1+1="] * 8})
    with tempfile.TemporaryDirectory() as folder:
        args = CMDPConfig(
            **{k: values[k] for k in MEASURED},
            kl_chunk_size=max(1, batch_size * length // 4),
            num_generations=4,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=2,
            max_completion_length=length,
            per_device_eval_batch_size=batch_size,
            max_steps=1,
            device="cpu",
            disable_tqdm=True,
            output_dir=folder,
        )
        pair, tokenizer = small_pair(student, teacher, vocab_size), char_tokenizer()
        tokenizer.add_tokens([f"<{i}>" for i in range(vocab_size - len(tokenizer))])
        trainer = CMDPTrainer(*pair, parity, args, data, data, tokenizer)
        gc.collect()  # else what construction left behind is freed while an update is measured
        with PeakBytes() as update:
            trainer.step()
        gc.collect()
        with PeakBytes() as evaluation:
            records = trainer.evaluate(return_records=True)[1]
        lengths = {len(r["completion_ids"]) for r in records}
        assert lengths == {length} == {trainer.rollout.completion_ids.shape[1]}  # none ends early
    size = batch_size * length * vocab_size
    return update.peak / size, evaluation.peak / size


# The rest, counted


def cache_bytes(config, rows: int, length: int) -> int:
    "Keys and values of `rows` sequences, up to float32 (the keys are, after the rotation)."
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    per_token = config.num_hidden_layers * config.num_key_value_heads * 2 * head
    return rows * length * per_token * 4


def activation_bytes(config, rows: int, length: int) -> int:
    "One residual per layer, and one layer recomputed, in float32."
    residuals = config.num_hidden_layers * config.hidden_size
    one_layer = 4 * config.intermediate_size + 12 * config.hidden_size
    return 4 * rows * length * (residuals + one_layer)


def estimate(
    values: dict, student: str, teacher: str, prompt_length: int = 256, processes: int = 1
) -> dict[str, float]:
    "GB (1e9 bytes) by purpose, and their peak, for the settings `values` of one process."
    config = MODELS[student][1]
    width = 2 if values["model_init_kwargs"].get("dtype") == "bfloat16" else 4
    weights = width * parameters(student)
    micro, evaluated = (values[f"per_device_{k}_batch_size"] for k in ("train", "eval"))
    sampled = max(micro * values["gradient_accumulation_steps"], evaluated)
    length = prompt_length + values["max_completion_length"]
    logits = values["max_completion_length"] * config.vocab_size
    update, evaluation = bytes_per_logit(values, student, teacher)
    out = {
        "student: weights, gradients, AdamW": 4 * weights,
        "teacher: weights": 2 * parameters(teacher),
        "cache while sampling": cache_bytes(config, sampled, length),
        "activations of a micro-batch": activation_bytes(config, micro, length),
        "logits of a micro-batch": update * micro * logits,
        "logits of an evaluation batch": evaluation * evaluated * logits,
        "gradient buckets of several processes": weights * (processes > 1),
    }
    out = {purpose: size / 1e9 for purpose, size in out.items()}
    return out | {"peak": peak(out)}


def peak(gb: dict[str, float]) -> float:
    "What is always there, and the largest of what comes and goes."
    kept = (
        gb["student: weights, gradients, AdamW"]
        + gb["teacher: weights"]
        + gb["gradient buckets of several processes"]
    )
    return kept + max(
        gb["cache while sampling"],
        gb["activations of a micro-batch"] + gb["logits of a micro-batch"],
        gb["logits of an evaluation batch"],
    )


def main(argv: list[str] | None = None) -> dict[str, float]:
    "Print the estimate for a recipe; returns it."
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="further options go to cmdp-distill, e.g. --per_device_train_batch_size 4",
    )
    parser.add_argument("recipe")
    parser.add_argument("--prompt_length", type=int, default=256)
    parser.add_argument("--processes", type=int, default=1)
    given, more = parser.parse_known_args(argv)
    run, values = parse_args(["--config", given.recipe, *more])
    CMDPConfig(**values)  # refuses nonsense
    for who, name in (("student", run.student), ("teacher", run.teacher)):
        print(f"{who} {parameters(name):,} parameters, {name}")
    result = estimate(values, run.student, run.teacher, given.prompt_length, given.processes)
    for purpose, gb in result.items():
        if gb:
            print(f"{purpose:40}{gb:7.1f} GB")
    return result


if __name__ == "__main__":
    warnings.filterwarnings("ignore", "cropping")
    main()
