"The course: every lesson has the same spine and runs from top to bottom; every exercise refuses what is wrong, says why, and accepts its solution."

import ast
import json
import os
import re
import shutil
import statistics
import time

import pytest
from conftest import ROOT

TUTORIALS = ROOT / "tutorials"
LESSONS = sorted(p for p in TUTORIALS.glob("*.ipynb") if re.match(r"\d\d_", p.name))
KINDS, LEVELS = ("predict", "complete the function", "find the bug"), ("easy", "medium", "hard")
EXERCISE = re.compile(r"^### Exercise (\d+): (.+?) \((\w+), (\d+) minutes?\)", re.M)
PICTURES = re.compile(
    r"BudgetPanel|MultiplierView|TokenMicroscope|TreeExplorer|LiveTrainer|ShootOut|go\.Figure|\w+_(figure|curves|histogram|fan|heatmap)\("
)


def stem(p):
    return p.stem


def cells(path):
    return [
        (c["cell_type"], c["id"], "".join(c["source"]))
        for c in json.loads(path.read_text(encoding="utf-8"))["cells"]
    ]


def test_the_course_is_complete():
    "Whoever follows `Next` from the first lesson must reach the last."
    assert [p.name[:2] for p in LESSONS] == [f"{n:02}" for n in range(len(LESSONS))] and LESSONS[
        0
    ].stem == "00_start_here"
    for before, after in zip(LESSONS, LESSONS[1:]):
        assert after.stem in cells(before)[-1][2], f"{before.stem} does not lead to {after.stem}"


@pytest.mark.parametrize("path", LESSONS, ids=stem)
def test_spine(path):
    "A learner must find the same things at the same places of every lesson: what it promises and needs, how long it takes, what goes wrong, exercises, summary."
    found = cells(path)
    assert re.match(r"# \S.*\n\n> \S", found[0][2]), (
        "the first cell is `# Title`, an empty line and `> what it promises`"
    )
    opening = "\n".join(
        text
        for kind, _, text in found[: next(i for i, c in enumerate(found) if c[2].startswith("## "))]
        if kind == "markdown"
    )
    for part in ("**You need**", "**You will learn**", "**Notation**"):
        assert part in opening, f"{part} must stand before the first ## heading"
    assert re.search(r"\*\*Takes\*\* about \d+ s on two cores", opening), (
        "**Takes** about N s on two cores: tools/lessons.py fills in N"
    )
    headings = [
        line
        for kind, _, text in found
        if kind == "markdown"
        for line in text.splitlines()
        if line.startswith("## ")
    ]
    assert headings[-4:] == ["## What goes wrong", "## Exercises", "## Summary", "## Next"], (
        headings
    )
    assert len(headings) > 5, "a lesson has a body"
    code = [(name, text) for kind, name, text in found if kind == "code"]
    lengths = [len(text.splitlines()) for _, text in code]
    assert max(lengths) <= 25 and statistics.median(lengths) < 10, dict(
        zip([n for n, _ in code], lengths)
    )
    assert sum(kind == "markdown" for kind, *_ in found) >= 2 * sum(
        not name.endswith("-check") for name, _ in code
    ), "two prose cells for each code cell"
    assert any(PICTURES.search(text) for _, text in code), "no widget and no plot"
    assert path.stat().st_size < 200_000


MODULES = sorted(p for p in TUTORIALS.rglob("*.py") if ".ipynb_checkpoints" not in p.parts)


@pytest.mark.parametrize(
    "path", LESSONS + MODULES, ids=lambda p: p.relative_to(TUTORIALS).as_posix()
)
def test_lines_fit(path):
    "88 characters are what JupyterLab shows beside its file browser (test_lab.py measures it)."
    if path.suffix == ".ipynb":
        code = [text for kind, _, text in cells(path) if kind == "code"]
    else:
        code = [path.read_text(encoding="utf-8")]
    long = [line for text in code for line in text.splitlines() if len(line) > 88]
    assert not long


# ---- exercises --------------------------------------------------------------------------------------------------------


def exercises(path):
    return EXERCISE.findall(
        "\n\n".join(text for kind, _, text in cells(path) if kind == "markdown")
    )


def test_exercises_of_the_course():
    "At least 25, of all three kinds; each says how hard it is and how long it takes."
    every = [e for p in LESSONS for e in exercises(p)]
    assert {kind for _, kind, _, _ in every} == set(KINDS) and {
        level for *_, level, _ in every
    } <= set(LEVELS)
    if len(LESSONS) >= 9:
        assert len(every) >= 25


def answers(path) -> list[tuple[str, str | None, str]]:
    "(exercise, words that the verdict on a wrong answer must contain or None for the solution, code)."
    return [
        (name, wrong or None, code)
        for name, wrong, code in re.findall(
            r"^# %% ([\w-]+)(?: wrong: ([^\n]*))?\n(.*?)(?=^# %%|\Z)",
            path.read_text(encoding="utf-8"),
            re.M | re.S,
        )
    ]


def last_value(source: str, space: dict):
    "Run a cell and return the value of its last expression, as a notebook shows it."
    *body, last = ast.parse(source).body
    exec(compile(ast.Module(body, []), "cell", "exec"), space)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), space)


@pytest.mark.parametrize("path", LESSONS, ids=stem)
def test_checks_of_exercises(path, monkeypatch, tmp_path):
    "A check that accepts a wrong answer, does not say why it is wrong, or refuses the solution misleads the learner."
    monkeypatch.syspath_prepend(str(TUTORIALS))
    monkeypatch.chdir(tmp_path)
    source, solutions = (
        {name: text for _, name, text in cells(path)},
        answers(TUTORIALS / "solutions" / f"{path.stem}.py"),
    )
    tries = [name.removesuffix("-try") for name in source if name.endswith("-try")]
    assert (
        len(tries) == len(exercises(path))
        and [e for e, wrong, _ in solutions if wrong is None] == tries
    ), "every exercise has a -try cell, a -check cell and one solution, in this order"
    start: dict = {}
    exec(source["setup"], start)
    for name in tries:
        space = dict(start)
        exec(source[f"{name}-try"], space)
        verdict = last_value(source[f"{name}-check"], space)
        assert (
            verdict.status != "right" and len(verdict.hint) > 20 and verdict.hint in repr(verdict)
        ), f"{name}: the stub must be refused with a hint"
        of_this = [(wrong, code) for e, wrong, code in solutions if e == name]
        assert any(wrong for wrong, _ in of_this), f"{name}: no wrong answer is tested"
        for wrong, code in of_this:
            space = dict(start)
            exec(code, space)
            verdict = last_value(source[f"{name}-check"], space)
            if wrong is None:
                assert verdict.status == "right" and len(verdict.text) > 20, (
                    f"{name}: the solution is refused: {verdict!r}"
                )
            else:
                assert verdict.status == "wrong" and wrong in verdict.text, (
                    f"{name}: expected {wrong!r}, got {verdict!r}"
                )


# ---- running ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("path", LESSONS, ids=stem)
def test_lesson_runs(path, tmp_path, monkeypatch, capsys):
    "A cell that fails ends the lesson for the learner, and one that takes minutes loses them. Runs alone, from a clean kernel, in a copy of the folder."
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", "1")
    shutil.copytree(
        TUTORIALS,
        tmp_path / "tutorials",
        ignore=shutil.ignore_patterns("solutions", "images", "__pycache__"),
    )
    nb, began = nbformat.read(path, as_version=4), time.monotonic()
    nbclient.NotebookClient(
        nb,
        timeout=120,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path / "tutorials")}},
        store_widget_state=False,
    ).execute()
    seconds = time.monotonic() - began
    with capsys.disabled():
        print(f"\n{path.stem}: {seconds:.0f} s")
    assert all(c.execution_count for c in nb.cells if c.cell_type == "code" and c.source.strip())
    said = int(re.search(r"about (\d+) s on two cores", path.read_text(encoding="utf-8"))[1])
    assert seconds < 60 and said < 60, f"{seconds:.0f} s, and the lesson says {said} s"
