"The committed results of studies/methods are complete, possible, and what its README says; its script still runs."

import importlib.util
import json

import pytest
from conftest import ROOT

FOLDER = ROOT / "studies" / "methods"


@pytest.fixture(scope="module")
def study():
    "The script, as a module."
    spec = importlib.util.spec_from_file_location("methods_study", FOLDER / "study.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_readme_shows_the_tables_of_the_csv_files(study):
    "A table that was edited, or not remade after a run, would say what was not measured."
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    start, end = study.MARKS
    assert text[text.index(start) + len(start) : text.index(end)] == study.tables(), (
        "run `python studies/methods/study.py readme`"
    )


@pytest.mark.parametrize(
    "stage", ["tune", "report", "lambdas", "targets", "budgets", "second", "ablate", "scale"]
)
def test_rows_are_possible_and_of_the_plan(study, stage):
    "Every row is a planned run with its seed and versions; nothing in it contradicts itself."
    rows, planned = study.read(stage), {study.key(j) for j in study.plan(stage)}
    if not rows:
        pytest.skip(f"{stage} has not been run")
    assert (
        len({study.key(r) for r in rows}) == len(rows) and {study.key(r) for r in rows} <= planned
    )
    for r in rows:
        assert (
            0 <= r["accuracy_within_budget"] <= min(r["accuracy"], r["satisfaction_rate"]) <= 1
            and r["n_eval"] >= 4096
            and r["win_rate"] + r["loss_rate"] <= 1
        )
        assert (
            r["accuracy_within_budget"] >= r["accuracy"] + r["satisfaction_rate"] - 1 - 1e-4
            and r["torch"]
            and r["transformers"]
            and "CPU" in r["machine"]
        )
        assert r["steps"] == json.loads(r["config"]).get("max_steps", 600) or r["note"], (
            "a run that ended early says why"
        )


def test_every_method_was_tuned_alike_and_reported_with_five_seeds(study):
    "Anything else would be an unfair comparison."
    tuned, reported = study.read("tune"), study.read("report")
    for name, trials in study.TRIALS.items():
        assert len([r for r in tuned if r["name"] == name]) == (
            len(trials) if len(trials) > 1 else 0
        ) and (len(trials) in (1, 4) or name == "weakest-link")
        assert sorted(r["seed"] for r in reported if r["name"] == name) == list(study.SEEDS)
    assert not {r["seed"] for r in tuned} & set(study.SEEDS)


def test_a_row_can_be_run_again(study, tmp_path, monkeypatch):
    "The script must go on working with the library; two updates and 64 prompts of it."
    monkeypatch.setattr(study, "HERE", tmp_path)
    monkeypatch.setattr(study, "N_EVAL", 64)
    row = study.run(
        study.job("hinge", {"coef": 1.0}, {"max_steps": 2, "per_device_train_batch_size": 32}, 2)
    )
    assert (
        row["steps"] == 2
        and row["n_eval"] == 64
        and row["note"] == ""
        and set(study.read("report")[0] if study.read("report") else row) <= set(row)
    )
    assert study.trace_path("hinge", {"coef": 1.0}, 0.8, 2).exists()
