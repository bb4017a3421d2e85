"A part of the matrix in studies/architectures: right, or refused with a sentence; none silent."

import sys

import pytest
import torch
from conftest import ROOT

sys.path.insert(0, str(ROOT))
from studies.architectures import matrix, zoo

RIGHT = [
    ("llama", "none", matrix.SAME),  # attention, rotary
    ("gpt2", "none", "roberta"),  # absolute positions, tied; a teacher that counts them from 2
    ("bloom", "none", matrix.SAME),  # ALiBi
    ("gemma2", "attention", matrix.SAME),  # windows, soft caps, tied
    ("mixtral", "none", matrix.SAME),  # experts
    ("deepseek_v3", "none", matrix.SAME),  # latent attention
    ("mamba", "none", "rwkv"),  # a state, and a mask that must not grow; a teacher without one
    ("qwen3_5_text", "none", "mamba"),  # hybrid: layers with a state
    ("falcon_h1", "none", "bart"),  # hybrid: both in every layer; a teacher without positions
    ("git", "none", matrix.SAME),  # a cache that is wrong with a mask
    ("llama", "head", matrix.SAME),
]
REFUSED = [("prophetnet", "none", matrix.SAME), ("llama", "none", "cpmant")]


def job(model: str, lora: str, teacher: str) -> dict:
    "A row of the matrix that is still to be found."
    return {"model": model, "lora": lora, "teacher": teacher}


@pytest.mark.parametrize("pair", RIGHT, ids=str)
def test_what_is_measured_is_what_the_bare_model_says(pair):
    "Sampled = scored = without padding, divergence = float64, saved = live, resumed = whole."
    row = matrix.row(job(*pair))
    assert row["verdict"] == "right", row


@pytest.mark.parametrize("pair", REFUSED, ids=str)
def test_what_cannot_be_right_is_refused(pair):
    "A student that reads ahead, and a teacher that does."
    row = matrix.row(job(*pair))
    assert row["verdict"].startswith("refused:"), row


@pytest.mark.parametrize("name", ["llama", "gemma2", "mamba", "cohere", "mistral"])
@torch.no_grad()
def test_small_models_would_show_a_mistake(name):
    "The next token is open, depends on what was read, and not on what comes after it."
    model, ids = zoo.build(name), torch.arange(3, 15)[None]
    other = ids.clone()
    other[0, -3] = 18
    logps, changed = (model(x).logits.log_softmax(-1)[0] for x in (ids, other))
    entropy = -(logps.exp() * logps).sum(-1).mean()
    assert 0.5 < entropy < 2.5
    assert (logps[-1] - changed[-1]).abs().max() > 0.1
    assert torch.allclose(logps[:-3], changed[:-3], atol=1e-4)


def test_every_model_type_is_in_the_table():
    "The committed table has a row for each, and none that is silently wrong."
    runs = matrix.RUNS.read()
    verdicts = runs["verdict"].str.split(":").str[0]
    assert set(runs["model"]) >= {*zoo.NAMES, *zoo.VARIANTS}
    assert set(verdicts) == {"right", "refused"}
