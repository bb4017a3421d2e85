"""How many tokens a second are written: beside transformers' `generate`, and the loops before.

    OMP_NUM_THREADS=1 python studies/speed/rollouts.py [REPEATS]

`layers` is the decoder that reads larger models and those with adapters, `before` the first loop.
One thread, the ways in turn, so that a busy machine disturbs all of them alike. A number is
completion tokens per CPU second, from prompts as ids to completions as ids: median over repeats,
and 10-90%. `mixed`: lengths between a third and the whole, evenly, each row told when to end.
First it is checked that all ways say the same: ours and the loop before write the same completions
where the random stream is the same; everywhere the log-probabilities reported are those of a fresh
forward. Results: rollouts.json.
"""

import json
import os
import platform
import sys
import time
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from cmdp_nbdev import rollout
from cmdp_nbdev.cost import token_logps
from cmdp_nbdev.mdp import Sampling, completion_mask, position_ids
from cmdp_nbdev.model import default_pair
from cmdp_nbdev.rollout import FEW, encode_prompts
from cmdp_nbdev.task import chain_dataset
from studies.speed import before

RESULTS = Path(__file__).with_name("rollouts.json")
EOS, PAD = 1, 0
GREATEST_GAP = 1e-4  # nats a token


def llama(vocab_size: int, layers: int, width: int) -> LlamaForCausalLM:
    "A model of random weights that never ends by itself (EOS is as likely as any other token)."
    torch.manual_seed(0)
    sizes = dict(hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers)
    heads = dict(num_attention_heads=width // 64, num_key_value_heads=width // 64)
    config = LlamaConfig(
        vocab_size=vocab_size, **sizes, **heads, eos_token_id=EOS, pad_token_id=PAD
    )
    return LlamaForCausalLM(config).eval()


def random_prompts(vocab_size: int, prompts: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    "Ids and mask; every second prompt is half as long."
    ids = torch.randint(
        3, vocab_size, (prompts, length), generator=torch.Generator().manual_seed(0)
    )
    mask = torch.ones_like(ids)
    mask[1::2, : length // 2] = 0
    return ids * mask, mask


def jobs() -> dict:
    "Name -> model, ids and mask of the prompts, completions per prompt, tokens, mixed lengths."
    student, _, tokenizer = default_pair()
    chains = encode_prompts(chain_dataset(16)["prompt"], tokenizer)
    few, many = llama(4096, 4, 256), llama(49152, 4, 256)
    return {
        "embedded pair": (student, *chains, 8, 32, False),
        "4 x 256, 4,096 tokens": (few, *random_prompts(4096, 4, 32), 4, 64, False),
        "4 x 256, 4,096 tokens, mixed": (few, *random_prompts(4096, 8, 32), 4, 96, True),
        "4 x 256, 49,152 tokens": (many, *random_prompts(49152, 4, 32), 4, 64, False),
    }


class Ending:
    "A reader whose row i ends after `lengths[i]` tokens, and not before."

    def __init__(self, reader, lengths: torch.Tensor):
        self.reader, self.lengths, self.written = reader, lengths, 0
        self.can_drop = getattr(reader, "can_drop", False)

    @property
    def logits(self) -> torch.Tensor:
        logits = self.reader.logits.clone()
        over = self.lengths <= self.written + 1
        logits[:, EOS] = torch.where(over, 1e4, -1e4)
        return logits

    def finished(self, ended: torch.Tensor) -> bool:
        return bool(ended.all())

    def keep(self, rows: torch.Tensor) -> None:
        self.lengths = self.lengths[rows]
        self.reader.keep(rows)

    def feed(self, ids: torch.Tensor, ended: torch.Tensor) -> None:
        self.written += 1
        self.reader.feed(ids, ended)


def lengths_of(rows: int, longest: int, mixed: bool) -> torch.Tensor:
    "How many tokens each row writes."
    if not mixed:
        return torch.full((rows,), longest)
    lengths = torch.linspace(longest / 3, longest, rows).round().long()
    return lengths[torch.randperm(rows, generator=torch.Generator().manual_seed(0))]


def loop(open_reader, sample, model, ids, mask, n: int, longest: int, mixed: bool, seed: int):
    "Completions by one of the loops: ids (B, T), log-probabilities (B, T)."
    with torch.no_grad():
        reader = open_reader(model, ids, mask, n)
        if len(reader.logits[0]) > 100:  # the embedded pair ends by itself
            reader = Ending(reader, lengths_of(len(ids) * n, longest, mixed))
        how = Sampling(max_completion_length=longest)
        return sample(reader, [EOS], PAD, how, torch.Generator().manual_seed(seed))[:2]


def transformers_generate(model, ids, mask, n: int, longest: int, mixed: bool, seed: int):
    "Completions by `model.generate`; its lengths cannot be told, so `mixed` has none of them."
    torch.manual_seed(seed)
    fixed = {} if model.config.vocab_size < 100 else {"min_new_tokens": longest}
    how = dict(do_sample=True, top_k=0, top_p=1.0, temperature=1.0, max_new_tokens=longest)
    ends = dict(eos_token_id=EOS, pad_token_id=PAD, num_return_sequences=n)
    return model.generate(ids, attention_mask=mask, **how, **ends, **fixed)[:, ids.shape[1] :], None


WAYS = {
    "ours": lambda *job: loop(rollout.open_reader, rollout.sample, *job),
    "layers": lambda *job: loop(rollout.Decoder, rollout.sample, *job),
    "before": lambda *job: loop(before.Reader, before.sample, *job),
    "generate": transformers_generate,
}


def check(model, ids, mask, n: int, longest: int, mixed: bool) -> dict[str, float]:
    "Largest difference to a fresh forward, nats a token. Raises AssertionError if ways differ."
    written = {way: WAYS[way](model, ids, mask, n, longest, mixed, 0) for way in ("ours", "before")}
    if model.config.vocab_size <= FEW:
        assert torch.equal(written["ours"][0], written["before"][0])
    gaps = {}
    for way, (new, logps) in written.items():
        inside = completion_mask(new, EOS)
        whole = torch.cat([ids.repeat_interleave(n, 0), new], 1)
        seen = torch.cat([mask.repeat_interleave(n, 0), inside], 1)
        with torch.no_grad():
            said = model(whole, attention_mask=seen, position_ids=position_ids(seen)).logits
        said = said[:, -new.shape[1] - 1 : -1]
        if model.config.vocab_size > FEW:
            said[..., EOS] = -1e4  # as told
            inside = inside * (new != EOS)
        gaps[way] = float(((token_logps(said, new) - logps).abs() * inside).max())
        assert gaps[way] < GREATEST_GAP, (way, gaps[way])
    return gaps


def measure(job: tuple, repeats: int) -> dict[str, list[float]]:
    "Tokens per CPU second of every way, in turn."
    found = {way: [] for way in WAYS if not (job[-1] and way == "generate")}
    for seed in range(repeats + 1):
        for way in found:
            began = time.process_time()
            new = WAYS[way](*job, seed)[0]
            seconds = time.process_time() - began
            if seed:  # the first one warms up
                found[way].append(int(completion_mask(new, EOS).sum()) / seconds)
    return found


def summary(values: list[float], digits: int = 1) -> dict[str, float]:
    "Median and 10-90%."
    low, median, high = np.quantile(values, [0.1, 0.5, 0.9]).round(digits).tolist()
    return {"median": median, "p10": low, "p90": high}


def main(repeats: int = 15) -> None:
    "All jobs; the file is written after each."
    torch.set_num_threads(1)
    about = {"torch": torch.__version__, "machine": platform.machine(), "threads": 1}
    results = {"unit": "completion tokens per CPU second", "about": about}
    results["jobs"] = {}
    for name, job in jobs().items():
        row = {"greatest_gap_nats": check(*job)}
        times = repeats if job[0].config.vocab_size < 100 else -(-repeats // 4)
        found = measure(job, times)
        row["repeats"] = times
        row["tokens_per_second"] = {way: summary(values) for way, values in found.items()}
        for other in set(found) - {"ours"}:
            ratios = np.array(found["ours"]) / np.array(found[other])
            row[f"ours_to_{other}"] = summary(ratios, 2)
        row["load"] = round(os.getloadavg()[0], 1)
        results["jobs"][name] = row
        print(name, json.dumps(row), flush=True)
        RESULTS.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
