"The committed results of studies/judges are what its README says, and its script judges a pair of one's own."

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
    assert text[text.index(start) + len(start) : text.index(end)] == study.tables(), (
        "run `python studies/judges/agreement.py readme`"
    )


def test_the_reading_holds():
    "What the README concludes must be in its numbers."
    sets = json.loads((FOLDER / "agreement.json").read_text())["sets"]
    low, high = sets["student against teacher"]["net_win_rate_range"]
    assert low < high < 0 and all(
        r["net_win_rate_high"] < 0 and r["inconsistent_rate"] == 0
        for r in sets["student against teacher"]["judges"].values()
    )
    assert all(
        r["net_win_rate_low"] < 0 < r["net_win_rate_high"]
        for r in sets["teacher against teacher"]["judges"].values()
    )
    slip, flaw = (
        sets["right against one wrong step"]["agreement"],
        sets["right against the teacher's flaw"]["agreement"],
    )
    assert slip["steps | truth"]["agreement"] == flaw["steps | truth"]["agreement"] == 1
    assert (
        slip["teacher per token | truth"]["agreement_low"] > 0.95
        and flaw["teacher per token | truth"]["agreement_high"] < 0.5
    )
    assert (
        flaw["student per token | truth"]["agreement_low"]
        < 0.5
        < flaw["student per token | truth"]["agreement_high"]
    )
    assert (
        sets["teacher against teacher"]["agreement"]["steps | teacher per token"]["kappa_high"]
        < 0.05
        and sets["student against teacher"]["agreement"]["steps | teacher per token"]["kappa_high"]
        < 0.2
    )
    with (FOLDER / "solutions.csv").open(encoding="utf-8") as f:
        values = {r["what"]: float(r["value"]) for r in csv.DictReader(f)}
    with (FOLDER / "solutions_wrong.csv").open(encoding="utf-8") as f:
        assert len(list(csv.DictReader(f))) == values["judged wrong"]
    assert values["calculations judged"] == values["equals signs: found"]


def test_a_pair_of_ones_own(tmp_path):
    "The records that cmdp-distill writes and two folders are all it needs."
    tok = char_tokenizer("".join(sorted(set("0123456789+=# "))))
    for i, who in enumerate(("s", "t")):
        tiny_model(16, tok, seed=i).save_pretrained(tmp_path / who)
        tok.save_pretrained(tmp_path / who)
    for name, off in (("a", 0), ("b", 1)):
        (tmp_path / f"{name}.jsonl").write_text(
            "".join(
                json.dumps(
                    {
                        "prompt": f"{i}+4=",
                        "completion": f"{i} + 4 = {i + 4 + off * (i % 2)} # {i + 4}",
                        "reward": 1.0,
                    }
                )
                + "\n"
                for i in range(6)
            )
        )
    study.main(
        [
            "--student",
            str(tmp_path / "s"),
            "--teacher",
            str(tmp_path / "t"),
            "--records",
            str(tmp_path / "a.jsonl"),
            str(tmp_path / "b.jsonl"),
            "--output",
            str(tmp_path / "out.json"),
        ]
    )
    sets = json.loads((tmp_path / "out.json").read_text())["sets"]
    assert (
        sets["A against B"]["judges"]["steps"]["net_win_rate"] == 0.5
        and sets["A against B"]["judges"]["answer"]["tie_rate"] == 1
    )
    assert sets["A against A with one wrong result"]["agreement"]["steps | truth"]["agreement"] == 1
    with pytest.raises(SystemExit):
        study.main(["--student", "s"])
