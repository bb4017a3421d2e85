"What the README shows runs as it stands, and what it points to is there."

import json
import re
import shlex
from functools import wraps
from inspect import signature

import pytest
from conftest import ROOT

from cmdp_nbdev.cli import main
from cmdp_nbdev.model import char_tokenizer, tiny_model
from cmdp_nbdev.trainer import CMDPTrainer

README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLE = re.findall(r"^```python\n(.*?)^```", README, re.M | re.S)
(COMMAND,) = re.findall(r"^```bash\n(cmdp-distill --student.*?)^```", README, re.M | re.S)


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
    short = code.replace("budget=20", "budget=20, max_steps=2")
    assert short != code
    exec(compile(short, "README.md", "exec"), {})
    rate = float(capsys.readouterr().out.splitlines()[-1])
    assert 0 <= rate <= 1
    assert (folder / "runs" / "mine" / "student" / "model.safetensors").is_file()


class Asked(Exception):
    "Ends a program where it would have made its trainer."


def trainer_asked_for(monkeypatch, program) -> dict:
    "What a program gives to the trainer."

    def asked(self, *args, **kwargs):
        raise Asked(signature(CMDPTrainer).bind(*args, **kwargs).arguments)

    with monkeypatch.context() as patch, pytest.raises(Asked) as given:
        patch.setattr(CMDPTrainer, "__init__", wraps(CMDPTrainer.__init__)(asked))
        program()
    return given.value.args[0]


def test_the_example_and_its_command_are_the_same_run(folder, monkeypatch):
    "Option by option: models, reward, data, and every setting, on values that a model survives."
    (code,) = EXAMPLE
    program, *words = shlex.split(COMMAND.replace("\\\n", " "))
    (folder / "my_rewards.py").write_text(re.search(r"def correct.*?\n\n", code, re.S).group())
    here = trainer_asked_for(monkeypatch, lambda: exec(compile(code, "README.md", "exec"), {}))
    there = trainer_asked_for(monkeypatch, lambda: main(words))
    assert program == "cmdp-distill" and here["args"].learning_rate <= 1e-5
    for name in ("model", "teacher", "args"):
        assert here[name] == there[name]
    for name in ("train_dataset", "eval_dataset"):
        assert here[name].to_list() == there[name].to_list()
    (reward,) = there["reward_funcs"]
    for function in (here["reward_funcs"], reward):
        assert function(["1", "12"], ["2", "2"]) == [0.0, 1.0]
