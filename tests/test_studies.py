"What the studies share does what it says; the READMEs show the committed rows."

import json
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT))
from studies import lab
from studies.foundation import study as foundation
from studies.real import study as real
from studies.transfer import transfer

STUDIES = ROOT / "studies"


@pytest.fixture
def runs(tmp_path):
    "A file of runs that does not exist yet."
    return lab.Runs(tmp_path / "report.csv", ("method", "settings", "seed"))


def test_a_run_is_not_repeated(runs):
    "A stopped study must go on where it was, whatever JSON and CSV do to settings and numbers."
    jobs = [{"method": "soft", "settings": {"lam": x}, "seed": s} for x in (1, 0.1) for s in (0, 1)]
    assert len(runs.read()) == 0 and runs.missing(jobs) == jobs
    for job in (jobs[0], jobs[3]):
        runs.append({**job, "settings": json.dumps(job["settings"]), "accuracy": 0.1 + 0.2})
    assert runs.missing(jobs) == jobs[1:3]
    assert list(runs.read()["accuracy"]) == [0.1 + 0.2] * 2


def test_a_file_keeps_its_columns(runs):
    "Rows of a later version, with more columns, must not move those of the first."
    runs.append({"method": "a", "settings": "{}", "seed": 0, "accuracy": 0.5})
    runs.append({"method": "b", "settings": "{}", "more": 1, "accuracy": 0.25, "seed": 1})
    assert list(runs.read()["accuracy"]) == [0.5, 0.25]
    assert list(runs.read()) == ["method", "settings", "seed", "accuracy"]


def row_of(job: dict) -> dict:
    "What a process of a study returns."
    return {**job, "settings": "{}", "accuracy": job["seed"] / 4}


@pytest.mark.slow
def test_work_runs_what_is_missing(runs, capsys):
    "Every job in a process of its own, its row in the file as soon as it ends."
    jobs = [{"method": "a", "settings": {}, "seed": seed} for seed in (0, 1)]
    runs.append(row_of(jobs[0]))
    runs.work(jobs, row_of, lambda row: f"accuracy {row['accuracy']}", workers=1)
    assert sorted(runs.read()["accuracy"]) == [0.0, 0.25]
    assert "1/1 accuracy 0.25" in capsys.readouterr().out


def test_intervals_are_over_seeds():
    "Textbook numbers: 1, 2, 3 have deviation 1, and t of two degrees of freedom is 4.303."
    assert lab.half_width([1, 2, 3]) == pytest.approx(4.3027 / np.sqrt(3), rel=1e-4)
    assert np.isnan(lab.half_width([1.0]))
    assert lab.plus_minus([1, 2, 3]) == "2.000±2.484" and lab.plus_minus([0.25]) == "0.250"


def test_differences_are_paired_by_seed():
    "Seeds in another order, and one that only one side has."
    ours = pd.DataFrame({"seed": [0, 1, 2], "x": [1.0, 2.0, 5.0]})
    theirs = pd.DataFrame({"seed": [1, 0], "y": [0.5, 0.25]})
    assert list(lab.paired(ours, theirs, "x", "y").sort_index()) == [0.75, 1.5]


def test_text_goes_between_the_marks(tmp_path):
    "What stands around a table stays."
    page = tmp_path / "README.md"
    page.write_text("before <a>old<b> after", encoding="utf-8")
    lab.put_between(page, ("<a>", "<b>"), "new")
    assert page.read_text(encoding="utf-8") == "before <a>new<b> after"
    with pytest.raises(ValueError):
        lab.put_between(page, ("<c>", "<b>"), "new")


TABLES = {
    "foundation": (foundation.MARKS, foundation.tables),
    "real": (real.MARKS, real.tables),
    "transfer": (transfer.MARKS, transfer.table),
}


@pytest.mark.parametrize("name", TABLES)
def test_readme_shows_the_tables_of_the_csv_files(name):
    "A table that was edited, or not remade after a run, would say what was not measured."
    (start, end), made = TABLES[name]
    page = (STUDIES / name / "README.md").read_text(encoding="utf-8")
    assert page[page.index(start) + len(start) : page.index(end)] == made()


def test_the_lesson_has_the_rows_of_the_real_pair():
    "Lesson 09 reads a copy; it must be that of the committed results."
    assert (real.LESSON / "real_report.csv").read_text() == real.RUNS.path.read_text()


def test_rows_of_the_first_study_are_of_its_plan():
    "All but the retired gate, which no run can repeat."
    for stage, plan in foundation.PLANS.items():
        runs = foundation.runs_of(stage)
        rows = runs.read().query("method != @foundation.GATE").to_dict("records")
        keys = [runs.identify(row) for row in rows]
        assert len(set(keys)) == len(keys) and set(keys) <= {runs.identify(j) for j in plan()}
