"What the README shows runs as it stands, and what it points to is there."

import json
import re

import pytest
from conftest import ROOT

from cmdp_nbdev.model import char_tokenizer, tiny_model

README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLE = re.findall(r"^```python\n(.*?)^```", README, re.M | re.S)


def test_the_front_page_is_short():
    "Whoever has two minutes must reach its end; long tables have their studies."
    assert len(README.split()) <= 900


def test_what_it_points_to_is_there():
    "A picture that is missing, or a page that moved, is the first thing that a reader sees."
    targets = re.findall(r'\]\(([^)\s]+)\)|src="([^"]+)"', README)
    local = {a or b for a, b in targets if not (a or b).startswith("http")}
    assert len(local) > 20
    assert not [target for target in local if not (ROOT / target).exists()]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    "A working directory with tiny models and data under the names that the example uses."
    tokenizer = char_tokenizer()
    for seed, who in enumerate(("student", "teacher")):
        path = tmp_path / "path" / "or" / "name" / "of" / who
        tiny_model(32, tokenizer, max_length=512, seed=seed).save_pretrained(path)
        tokenizer.save_pretrained(path)
    for name, n in (("train", 24), ("test", 5)):
        rows = [{"prompt": f"{i % 10}+1=", "answer": str((i + 1) % 10)} for i in range(n)]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(lines)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_the_example_runs_as_copied(folder, capsys):
    "The first own code that a reader tries; only the number of updates is smaller here."
    (code,) = EXAMPLE
    short = code.replace("max_steps=300", "max_steps=2")
    assert short != code
    exec(compile(short, "README.md", "exec"), {})
    rate = float(capsys.readouterr().out.splitlines()[-1])
    assert 0 <= rate <= 1
    assert (folder / "runs" / "mine" / "student" / "model.safetensors").is_file()


def test_the_example_is_gentle():
    "Settings that a pretrained model survives, and that are fast on any processor."
    (code,) = EXAMPLE
    settings = {k: float(v) for k, v in re.findall(r"(\w+)=([\d.e-]+)", code)}
    assert settings["learning_rate"] <= 1e-5
    assert "bf16" not in code  # fifty times slower on a processor without bfloat16 instructions
