"""How much accelerator memory a recipe needs: python tools/memory.py recipes/qwen2.5-math-gsm8k.yaml

Weights, gradients and optimiser are counted on models without storage; the key-value cache and the activations follow
from the configuration; bytes per logit are measured on a small model with a large vocabulary, with the trainer itself.
No framework overhead, no fragmentation: expect a few GB more.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
import warnings
import weakref

import torch
from datasets import Dataset
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MllamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.models.mllama.configuration_mllama import MllamaTextConfig

from cmdp_nbdev.cli import parse_args
from cmdp_nbdev.model import char_tokenizer
from cmdp_nbdev.trainer import CMDPConfig, CMDPTrainer

MODELS = {  # the config.json of each, as far as it decides sizes
    "Qwen/Qwen2.5-Math-1.5B": (
        Qwen2ForCausalLM,
        Qwen2Config(
            vocab_size=151936,
            hidden_size=1536,
            intermediate_size=8960,
            num_hidden_layers=28,
            num_attention_heads=12,
            num_key_value_heads=2,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
        ),
    ),
    "Qwen/Qwen2.5-Math-7B-Instruct": (
        Qwen2ForCausalLM,
        Qwen2Config(
            vocab_size=152064,
            hidden_size=3584,
            intermediate_size=18944,
            num_hidden_layers=28,
            num_attention_heads=28,
            num_key_value_heads=4,
            max_position_embeddings=4096,
            tie_word_embeddings=False,
        ),
    ),
    "meta-llama/Llama-3.2-3B": (
        LlamaForCausalLM,
        LlamaConfig(
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
    ),
    "meta-llama/Llama-3.2-11B-Vision-Instruct": (
        MllamaForCausalLM,
        MllamaTextConfig(),
    ),  # the text decoder; its sizes are the defaults of transformers
}


@functools.cache
def parameters(name: str) -> int:
    "Number of parameters, counted on the meta device."
    model_class, config = MODELS[name]
    with torch.device("meta"):
        return sum(p.numel() for p in model_class(config).parameters())


class PeakBytes(TorchDispatchMode):
    "Peak of the bytes of all storages that were made inside and are alive, `peak`."

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.seen: set[int] = set()

    def _free(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.now -= size

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        known = {
            id(x.untyped_storage())
            for x in tree_leaves((args, kwargs))
            if isinstance(x, torch.Tensor)
        }
        for x in tree_leaves(out):
            if not isinstance(x, torch.Tensor) or x.device.type != "cpu":
                continue
            storage = x.untyped_storage()
            if id(storage) in self.seen or id(storage) in known:
                continue
            self.seen.add(id(storage))
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._free, id(storage), storage.nbytes())
        return out


def bytes_per_logit(
    values: dict,
    student: str,
    teacher: str,
    vocab_size: int = 10000,
    batch_size: int = 4,
    length: int = 32,
) -> tuple[float, float]:
    "Peak bytes of an update, and of an evaluation, per (completion token, vocabulary entry) of a batch: measured on the CPU with the recipe's method and precision."
    tok, small = (
        char_tokenizer(),
        dict(
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            num_key_value_heads=1,
            eos_token_id=[],
            bos_token_id=None,
            pad_token_id=0,
        ),
    )
    student, teacher = (
        Qwen2ForCausalLM(Qwen2Config(vocab_size=v, **small))
        for v in (
            vocab_size,
            vocab_size + 8 * (MODELS[student][1].vocab_size != MODELS[teacher][1].vocab_size),
        )
    )
    teacher.to(torch.bfloat16)
    data = Dataset.from_dict({"prompt": ["1+1="] * 8})
    with tempfile.TemporaryDirectory() as d:
        args = CMDPConfig(
            method=values["method"],
            method_kwargs=values["method_kwargs"],
            aggregate=values["aggregate"],
            budget=values["budget"],
            floor=values["floor"],
            bf16=values["bf16"],
            kl_chunk_size=max(1, batch_size * length // 4),
            num_generations=4,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=2,
            max_completion_length=length,
            per_device_eval_batch_size=batch_size,
            max_steps=1,
            device="cpu",
            disable_tqdm=True,
            output_dir=d,
        )
        trainer = CMDPTrainer(
            student,
            teacher,
            lambda completions, **kw: [float(len(c) % 2) for c in completions],
            args,
            data,
            data,
            tok,
        )
        with PeakBytes() as update:
            trainer.step()
        with PeakBytes() as evaluation:
            records = trainer.evaluate(return_records=True)[1]
    assert (
        {len(r["completion_ids"]) for r in records}
        == {length}
        == {trainer.rollout.completion_ids.shape[1]}
    )  # nothing ends early
    return tuple(m.peak / (batch_size * length * vocab_size) for m in (update, evaluation))


def estimate(
    values: dict, student: str, teacher: str, prompt_length: int = 256, processes: int = 1
) -> dict[str, float]:
    "GB (1e9 bytes) by purpose, and their peak, for the settings `values` of one process."
    config, P, Q = MODELS[student][1], parameters(student), parameters(teacher)
    width = 2 if values["model_init_kwargs"].get("dtype") == "bfloat16" else 4
    length, micro = (
        prompt_length + values["max_completion_length"],
        values["per_device_train_batch_size"],
    )
    (update, evaluation), logits = (
        bytes_per_logit(values, student, teacher),
        values["max_completion_length"] * config.vocab_size,
    )
    rows = max(micro * values["gradient_accumulation_steps"], values["per_device_eval_batch_size"])
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    out = {
        "student: weights, gradients, AdamW": 4 * width * P,
        "teacher: weights": 2 * Q,
        "cache while sampling": rows
        * length
        * config.num_hidden_layers
        * config.num_key_value_heads
        * 2
        * head
        * 4,  # 4: up to float32 (the keys are, after the rotation)
        "activations of a micro-batch": 4
        * micro
        * length
        * (
            config.num_hidden_layers * config.hidden_size
            + 4 * config.intermediate_size
            + 12 * config.hidden_size
        ),  # one residual per layer, and one layer recomputed
        "logits of a micro-batch": update * micro * logits,
        "logits of an evaluation batch": evaluation * values["per_device_eval_batch_size"] * logits,
        "AdamW's scratch": width * P,
        "gradient buckets of several processes": width * P * (processes > 1),
    }
    out = {k: v / 1e9 for k, v in out.items()}
    kept = (
        out["student: weights, gradients, AdamW"]
        + out["teacher: weights"]
        + out["gradient buckets of several processes"]
    )
    return out | {
        "peak": kept
        + max(
            out["cache while sampling"],
            out["activations of a micro-batch"] + out["logits of a micro-batch"],
            out["logits of an evaluation batch"],
            out["AdamW's scratch"],
        )
    }


def main(argv: list[str] | None = None) -> dict[str, float]:
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
    result = estimate(values, run.student, run.teacher, given.prompt_length, given.processes)
    print(
        f"student {parameters(run.student):,} parameters, {run.student}\nteacher {parameters(run.teacher):,} parameters, {run.teacher}"
    )
    for name, gb in result.items():
        if gb:
            print(f"{name:40}{gb:7.1f} GB")
    return result


if __name__ == "__main__":
    warnings.filterwarnings("ignore", "cropping")
    main()
