"""The committed results of studies/judges are what its README says.

And its script judges a pair of one's own.
"""

import csv
import importlib.util
import json
from pathlib import Path

import pytest

from cmdp_nbdev.model import char_tokenizer, tiny_model

FOLDER = Path(__file__).parents[1] / "studies" / "judges"
spec = importlib.util.spec_from_file_location("judges_agreement", FOLDER / "agreement.py")
study = importlib.util.module_from_spec(spec)
spec.loader.exec_module(study)


def test_the_readme_shows_the_results():
    "Numbers in prose grow old; these come from the files."
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    start, end = study.MARKS
    shown = text[text.index(start) + len(start) : text.index(end)]
    assert shown == study.tables(), "run `python studies/judges/agreement.py readme`"


def test_the_reading_holds():
    "What the README concludes must be in its numbers."
    sets = json.loads((FOLDER / "agreement.json").read_text())["sets"]
    student, teacher = sets["student against teacher"], sets["teacher against teacher"]
    low, high = student["net_win_rate_range"]
    assert low < high < 0
    for r in student["judges"].values():
        assert r["net_win_rate_high"] < 0
        assert r["inconsistent_rate"] == 0
    for r in teacher["judges"].values():
        assert r["net_win_rate_low"] < 0 < r["net_win_rate_high"]
    slip = sets["right against one wrong step"]["agreement"]
    flaw = sets["right against the teacher's flaw"]["agreement"]
    assert slip["steps | truth"]["agreement"] == flaw["steps | truth"]["agreement"] == 1
    assert slip["teacher per token | truth"]["agreement_low"] > 0.95
    assert flaw["teacher per token | truth"]["agreement_high"] < 0.5
    blind = flaw["student per token | truth"]
    assert blind["agreement_low"] < 0.5 < blind["agreement_high"]
    assert teacher["agreement"]["steps | teacher per token"]["kappa_high"] < 0.05
    assert student["agreement"]["steps | teacher per token"]["kappa_high"] < 0.2


def test_the_step_checker_on_worked_solutions():
    "Every calculation is at an equals sign, and those judged wrong are listed."
    with (FOLDER / "solutions.csv").open(encoding="utf-8") as f:
        values = {r["what"]: float(r["value"]) for r in csv.DictReader(f)}
    with (FOLDER / "solutions_wrong.csv").open(encoding="utf-8") as f:
        wrong = list(csv.DictReader(f))
    assert len(wrong) == values["judged wrong"]
    assert values["calculations judged"] == values["equals signs: found"]


def write_records(path, off: int) -> None:
    "Records as cmdp-distill writes them; every second sum is off by `off`."
    lines = []
    for i in range(6):
        completion = f"{i} + 4 = {i + 4 + off * (i % 2)} # {i + 4}"
        lines.append(json.dumps({"prompt": f"{i}+4=", "completion": completion, "reward": 1.0}))
    path.write_text("\n".join(lines) + "\n")


def test_a_pair_of_ones_own(tmp_path):
    "The records that cmdp-distill writes and two folders are all it needs."
    tok = char_tokenizer("".join(sorted(set("0123456789+=# "))))
    for i, who in enumerate(("s", "t")):
        tiny_model(16, tok, seed=i).save_pretrained(tmp_path / who)
        tok.save_pretrained(tmp_path / who)
    write_records(tmp_path / "a.jsonl", 0)
    write_records(tmp_path / "b.jsonl", 1)
    s, t, a, b, out = (str(tmp_path / f) for f in ("s", "t", "a.jsonl", "b.jsonl", "out.json"))
    study.main(["--student", s, "--teacher", t, "--records", a, b, "--output", out])
    sets = json.loads((tmp_path / "out.json").read_text())["sets"]
    judges = sets["A against B"]["judges"]
    assert judges["steps"]["net_win_rate"] == 0.5
    assert judges["answer"]["tie_rate"] == 1
    assert sets["A against A with one wrong result"]["agreement"]["steps | truth"]["agreement"] == 1
    with pytest.raises(SystemExit):
        study.main(["--student", "s"])
