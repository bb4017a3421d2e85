"The loop that wrote completions before, as it was: what rollouts.py measures itself against."

import torch
from torch import Tensor

from cmdp_nbdev.cost import token_logps
from cmdp_nbdev.mdp import Sampling, position_ids
from cmdp_nbdev.rollout import accepted, nucleus, with_tokens


class Reader:
    "A model with transformers' cache; mask and cache grow by a copy for every token."

    def __init__(self, model, prompt_ids: Tensor, prompt_mask: Tensor, num_generations: int = 1):
        self.model, self.cache = model, None
        self.mask, self.positions = prompt_mask, position_ids(prompt_mask)
        self._forward(prompt_ids)
        rows = torch.arange(len(prompt_ids)).repeat_interleave(num_generations)
        self.cache.reorder_cache(rows)
        self.positions = self.positions[rows, -1:]
        self.logits, self.mask = self.logits[rows], self.mask[rows]

    def _forward(self, ids: Tensor) -> None:
        inputs = dict(attention_mask=self.mask, position_ids=self.positions, logits_to_keep=1)
        inputs |= {"use_cache": True, "cache": self.cache}
        out = self.model(ids, **accepted(self.model, **inputs))
        self.logits, self.cache = out.logits[:, -1], out.cache

    def feed(self, ids: Tensor, ended: Tensor) -> None:
        self.mask = torch.cat([self.mask, torch.ones_like(self.mask[:, :1])], 1)
        self.positions = self.positions + 1
        self._forward(ids[:, None])


def sample_token(logits: Tensor, temperature: float, top_p: float, generator):
    "An id per row by torch.multinomial, and its log-probability from another pass."
    probs = (logits.float() / temperature).softmax(-1)
    if top_p < 1:
        probs = nucleus(probs, top_p)
    ids = torch.multinomial(probs, 1, generator=generator)
    return ids[:, 0], token_logps(logits[:, None], ids, temperature)[:, 0]


@torch.no_grad()
def sample(reader, eos_ids, pad_id, sampling: Sampling, generator, vocab_size=None):
    "All rows are read until the last has ended."
    eos, ended = torch.tensor(eos_ids), torch.zeros(len(reader.logits), dtype=torch.bool)
    ids, logps = [], []
    while True:
        logits = with_tokens(reader.logits, vocab_size)
        token, logp = sample_token(logits, sampling.temperature, sampling.top_p, generator)
        before, ended = ended, ended | torch.isin(token, eos)
        ids.append(token.masked_fill(before, pad_id))
        logps.append(logp.masked_fill(before, 0.0))
        if len(ids) == sampling.max_completion_length or ended.all():
            return torch.stack(ids, 1), torch.stack(logps, 1), ended
        reader.feed(ids[-1], before)
