"Every lesson runs from top to bottom."
import json
import os

import pytest
from conftest import ROOT

LESSONS = sorted((ROOT / "tutorials").rglob("*.ipynb"))
name = lambda p: str(p.relative_to(ROOT / "tutorials"))


def test_there_is_a_first_lesson():
    "Whoever opens the folder must find where to start."
    assert any(p.name.startswith("00_start_here") for p in LESSONS)


@pytest.mark.parametrize("path", LESSONS, ids=name)
def test_more_prose_than_code(path):
    "A lesson explains; cells without words between them are a script."
    kinds = [c["cell_type"] for c in json.loads(path.read_text(encoding="utf-8"))["cells"]]
    assert kinds[0] == "markdown" and kinds.count("markdown") >= kinds.count("code") > 0


@pytest.mark.slow
@pytest.mark.parametrize("path", LESSONS, ids=name)
def test_lesson_runs(path, tmp_path, monkeypatch):
    "A cell that fails ends the lesson for the learner. Runs in an empty folder, as for somebody who only installed the package."
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", "1")
    nb = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(nb, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert all(c.execution_count for c in nb.cells if c.cell_type == "code" and c.source.strip())
