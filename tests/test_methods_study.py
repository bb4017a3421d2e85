"The rows of studies/methods are complete and possible, its README shows them, its script runs."

import json
import sys

import pandas as pd
import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT))
from studies.methods import first, study, tables

FOLDER = ROOT / "studies" / "methods"


def test_readme_shows_the_tables_of_the_csv_files():
    "A table that was edited, or not remade after a run, would say what was not measured."
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    start, end = tables.MARKS
    shown = page[page.index(start) + len(start) : page.index(end)]
    assert shown == tables.tables(), "run `python studies/methods/study.py readme`"


def test_the_first_picture_is_that_of_the_rows():
    "The picture that everybody sees must not outlive its numbers; its alternative text says them."
    drawn = (FOLDER / "first.svg").read_text(encoding="utf-8")
    assert f"<title>{first.ALT}</title>" in drawn, "run `python studies/methods/first.py`"
    methods = first.five_seeds()
    assert all(sorted(runs["seed"]) == [0, 1, 2, 3, 4] for runs in methods.values())
    *_, ours = methods  # the best
    assert ours == first.DEFAULT and f"default has {first.mean(methods[ours]):.2f}" in first.ALT
    for name, said in (("soft", "best fixed λ"), ("gkd", "distillation alone"), ("grpo", "GRPO")):
        assert f"{said} {first.mean(methods[name]):.2f}" in first.ALT
    for runs in methods.values():
        for column in ("accuracy", "satisfaction_rate"):
            assert f">{runs[column].mean():.2f}<" in drawn


@pytest.mark.parametrize(
    "stage", ["tune", "report", "lambdas", "targets", "budgets", "second", "ablate", "scale"]
)
def test_rows_are_possible_and_of_the_plan(stage):
    "Every row is a planned run with its seed and versions; nothing in it contradicts itself."
    identify = study.runs_of(stage).identify
    rows = study.read(stage).to_dict("records")
    if not rows:
        pytest.skip(f"{stage} has not been run")
    keys, planned = {identify(row) for row in rows}, {identify(job) for job in study.plan(stage)}
    assert len(keys) == len(rows) and keys <= planned
    for row in rows:
        accuracy, kept = row["accuracy"], row["satisfaction_rate"]
        both = row["accuracy_within_budget"]
        assert 0 <= both <= min(accuracy, kept) <= 1
        assert both >= accuracy + kept - 1 - 1e-4
        assert row["n_eval"] >= 4096 and row["win_rate"] + row["loss_rate"] <= 1
        assert row["torch"] and row["transformers"] and "CPU" in row["machine"]
        wanted = json.loads(row["config"]).get("max_steps", 600)
        early = pd.notna(row["note"])
        assert row["steps"] == wanted or early, "a run that ended early says why"


def test_every_method_was_tuned_alike_and_reported_with_five_seeds():
    "Anything else would be an unfair comparison."
    tuned, reported = study.read("tune"), study.read("report")
    for name, trials in study.TRIALS.items():
        assert len(trials) in (1, 4) or name == "weakest-link"
        made = (tuned["name"] == name).sum()
        assert made == (len(trials) if len(trials) > 1 else 0)
        assert sorted(reported.query("name == @name")["seed"]) == list(study.SEEDS)
    assert not set(tuned["seed"]) & set(study.SEEDS)


def test_a_row_can_be_run_again(tmp_path, monkeypatch):
    "The script must go on working with the library; two updates and 64 prompts of it."
    columns = set(study.read("report"))
    monkeypatch.setattr(study, "HERE", tmp_path)
    monkeypatch.setattr(study, "N_EVAL", 64)
    short = {"max_steps": 2, "per_device_train_batch_size": 32}
    row = study.run(study.job("hinge", {"coef": 1.0}, short, 2))
    assert row["steps"] == 2 and row["n_eval"] == 64 and row["note"] == ""
    assert columns <= set(row), "a new row must fill all columns of the committed ones"
    assert study.trace_path("hinge", {"coef": 1.0}, 0.8, 2).exists()
