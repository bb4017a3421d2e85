"""The course as a learner meets it: JupyterLab in a headless Chromium, moved by keys and clicks."""

import csv
import json
import re
import sys
import time
from itertools import product

import numpy as np
import pytest
from conftest import ROOT
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(ROOT / "tools"))
import lab as labs
from drive_lessons import COUNTS, STUDY, THEMES, WIDTHS, look, table
from lesson_images import IMAGES, MAIN

TUTORIALS = ROOT / "tutorials"
LESSONS = sorted(p.stem for p in TUTORIALS.glob("[0-9][0-9]_*.ipynb"))
START = """
import json
from cmdp_nbdev.widgets.live import LiveTrainer
live = LiveTrainer(every=0.2)
live
"""
REPORT = """
rows = [[m["step"], m["budget"], m["method"], m["seconds"]] for m in live.history]
print(json.dumps(dict(status=live.status, updates=live.trainer.global_step, rows=rows)))
"""
SAVE = """
live.save("student")
print(sum(float(p.detach().double().abs().sum()) for p in live.student.parameters()))
"""
LIVE = [("start", START), ("report", REPORT), ("save", SAVE)]


@pytest.fixture(scope="module")
def lab():
    "One JupyterLab for all of these tests, with the lessons and two small notebooks."
    if lacks := labs.missing():
        pytest.skip(lacks)
    with labs.Lab(files={"live.ipynb": LIVE, "wide.ipynb": WIDE}) as found:
        yield found


# ---- the panel of lesson 00 ---------------------------------------------------------------


class Traces:
    "The shipped trace file, read with numpy alone."

    def __init__(self):
        with np.load(ROOT / "cmdp_nbdev" / "data" / "traces.npz") as f:
            self.a = {k: f[k] for k in ("spent", "reward", "correct", "length", "cost")}
            self.rows = json.loads(str(f["rows"]))

    def shown(self, v: dict) -> int:
        "Number of the student that is shown at these values of the controls."
        aim = v["d"] if v["trained"] == "nearest" else v["trained"]

        def away(i):
            budget = self.rows[i]["budget"]
            return 0 if budget is None else round(abs(budget - aim), 9)

        def fits(row):
            return row["label"] == v["method"] and row["seed"] in (None, v["seed"])

        return min((i for i, row in enumerate(self.rows) if fits(row)), key=away)

    def expected(self, v: dict) -> dict:
        "What must be seen: numbers as text, bars, remaining budgets, modified rewards."
        i = self.shown(v)
        spent, reward, correct = (
            self.a[k][i].astype(float) for k in ("spent", "reward", "correct")
        )
        ok = spent <= v["d"]

        def percent(x):
            return f"{np.floor(1000 * x.mean() + 0.5) / 10:.1f}%"

        def bars(keep):
            return np.histogram(spent[keep].clip(0, 2 - 1e-9), 40, (0, 2))[0] / len(spent)

        costs = zip(self.a["cost"][i].astype(np.float32), self.a["length"][i])
        left = [v["d"] - cost[:n].cumsum() for cost, n in costs]
        return {
            "texts": [percent(x) for x in (ok, correct, ok * correct)] + [f"{spent.mean():.3f}"],
            "bars": [bars(ok), bars(~ok)],
            "lowest": min(z.min() for z in left),
            "dots": [np.sort(reward[ok]), np.sort(-(v["n"] + spent[~ok]))],
        }


def check_picture(panel, traces: Traces) -> dict:
    "Compare all that the panel shows with the trace file; returns the values of the controls."
    v = panel.values()
    want = traces.expected(v)
    charts = (b["marks"] for b in panel.blocks() if b["type"] == "chart")
    histogram, fan, rewards = charts
    assert list(panel.numbers().values()) == want["texts"]
    for mark, heights in zip(histogram[:2], want["bars"]):
        np.testing.assert_allclose(mark["y"], heights, atol=1e-6)
    z = [y for mark in fan[:2] for y in mark["y"] if y is not None]
    assert min(z) == pytest.approx(max(want["lowest"], -2), abs=2e-3)
    assert max(z) == pytest.approx(v["d"], abs=1e-6)
    for mark, y in zip(rewards[1:3], want["dots"]):
        shown = np.sort(mark["y"])
        edge = shown.min() if len(shown) else 0  # what lies below the picture is drawn there
        np.testing.assert_allclose(shown, np.maximum(y, edge), atol=2e-3)
    assert {m["x"] for m in (histogram[2], rewards[3])} == {v["d"]}
    return v


@pytest.mark.slow
def test_the_slider_of_lesson_00_shows_the_trace_file(lab, capsys):
    """The first picture of the course: what a reader sees after a move must be the data that ship,
    quickly, and the kernel must know it too."""
    began = time.monotonic()
    notebook = lab.open("00_start_here.ipynb")
    notebook.run("panel-state")  # what comes after it trains
    panel, traces = notebook.widget("panel"), Traces()
    seen = [check_picture(panel, traces)]
    panel.set(d=0.4)
    seen.append(check_picture(panel, traces))
    panel.control("d").focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowUp"):
        notebook.page.keyboard.press(key)
    seen.append(check_picture(panel, traces))
    assert seen[-1]["d"] == pytest.approx(0.43)
    panel.set(trained=0.4, n=0.5)
    seen.append(check_picture(panel, traces))
    panel.press("reward only")
    seen.append(check_picture(panel, traces))
    assert seen[-1]["method"] == "grpo"
    assert len({json.dumps(v) for v in seen}) == 5
    notebook.run_cell("panel-state")
    values = f"d=0.43, method='grpo', trained=0.4, seed={seen[0]['seed']}, n=0.5"
    assert notebook.text("panel-state").strip() == f"BudgetPanel({values})"
    keys_stay_in_the_menu(notebook, panel)
    sweep = [k / 50 for k in range(100)]
    runs = (np.quantile(panel.times("d", sweep), [0.5, 0.95]) for _ in range(3))
    median, p95 = min(tuple(run) for run in runs)
    with capsys.disabled():
        print(f"\nlesson 00 in JupyterLab: {time.monotonic() - began:.0f} s, slider to redraw")
        print(f"median {median:.1f} ms, p95 {p95:.1f} ms over 100 moves")
    assert median <= 16


def keys_stay_in_the_menu(notebook, panel):
    "Keys that are commands of JupyterLab (cut the cell, insert one above, one below) do nothing."
    cells = notebook.page.locator(".jp-Notebook .jp-Cell").count()
    panel.control("method").focus()
    for key in "xab":
        notebook.page.keyboard.press(key)
    assert notebook.page.locator(".jp-Notebook .jp-Cell").count() == cells


# ---- code that fits -------------------------------------------------------------------------

WIDE = [("fits", "x" * 88), ("too-wide", "x" * 120)]
OVERFLOW = """() => [...document.querySelectorAll(".jp-CodeCell")].filter(cell => {
    const box = cell.querySelector(".jp-InputArea-editor .cm-scroller");
    return box.scrollWidth > box.clientWidth;
}).map(cell => cell.dataset.cell)"""


@pytest.mark.slow
def test_lines_of_a_lesson_fit_beside_the_file_browser(lab):
    "A line whose end is out of sight is not read; test_tutorials.py keeps lessons to 88."
    page = lab.open("wide.ipynb").page
    page.evaluate("() => jupyterapp.shell.expandLeft()")
    page.wait_for_function(f"() => ({OVERFLOW})().length", timeout=10_000)
    labs.settle(page)
    assert page.evaluate(OVERFLOW) == ["too-wide"]


ROW = "name" + 200 * " " + "1.00"
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAIAQAAAADsdIMmAAAAC0lEQVR42mNgQAUAABAAAaoZ+IIAAAAASUVORK5CYII="
UNCONFINED = {
    "output_type": "display_data",
    "data": {"image/png": PNG},
    "metadata": {"image/png": {"width": 3000, "height": 3000, "unconfined": True}},
}
PRINTED = {"output_type": "stream", "name": "stdout", "text": ROW}
CODE = {"cell_type": "code", "execution_count": None, "source": "", "outputs": []}
FAULTS = {  # id of a cell -> what is stored of it
    "code": CODE | {"source": "x" * 200},
    "lost": {"cell_type": "markdown", "source": "![not there](images/nowhere.svg)"},
    "cut": CODE | {"outputs": [UNCONFINED]},
    "text": {"cell_type": "markdown", "source": f"```\n{'x' * 300}\n```"},
    "row": CODE | {"outputs": [PRINTED]},
    "fine": {"cell_type": "markdown", "source": "![the map](images/map.svg) and $x^2$"},
}


@pytest.mark.slow
def test_what_does_not_fit_is_found(lab):
    "Zeros in the table of studies/browser mean something only if a planted fault is counted."
    cells = [{"id": name, "metadata": {}} | cell for name, cell in FAULTS.items()]
    book = labs.notebook([]) | {"cells": cells}
    (lab.root / "faults.ipynb").write_text(json.dumps(book), encoding="utf-8")
    rows = list(look(lab, "faults"))
    for row in rows:
        found = [row[key] for key in ("pictures", *COUNTS)]
        assert found == [3, 1, 1, 1, 2, 1], row  # what is cut is too wide, too
        assert row["cells"] == ("code " if row["width"] == 1280 else "") + "cut lost row text"
    assert "404" in rows[0]["said"]
    assert {(row["theme"], row["width"]) for row in rows} == set(product(THEMES, WIDTHS))


# ---- the live trainer ---------------------------------------------------------------------


class Live:
    "The notebook of a live trainer, as a reader sees it. `errors`: what the console complained of."

    def __init__(self, lab):
        self.notebook, self.errors = lab.open("live.ipynb"), []
        self.notebook.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.notebook.run("start")
        self.widget = self.notebook.widget("start")

    def report(self) -> dict:
        "Status, number of updates, and a row for each of them, asked of the kernel."
        self.notebook.run_cell("report")
        return json.loads(self.notebook.text("report"))

    def until(self, condition, what: str) -> dict:
        "The first report that meets a condition."
        end = time.monotonic() + 30
        while not condition(now := self.report()):
            assert time.monotonic() < end, what
            time.sleep(0.05)
        return now

    def press(self, button: str, status: str) -> None:
        "Click, and wait until the page says this."
        self.widget.press(button)
        says = "document.querySelector('[data-cell=start] .numbers small').textContent"
        self.notebook.page.wait_for_function(f"text => {says} === text", arg=status)

    def stop(self) -> float:
        "Seconds from the click until the page says stopped, without the update under way."
        began = time.perf_counter()
        self.press("stop", "stopped")
        seconds = time.perf_counter() - began
        return seconds - max(row[3] for row in self.report()["rows"][-5:])


@pytest.mark.slow
def test_the_live_trainer_obeys_while_it_runs(lab, capsys):
    """Buttons that answer only when the training is over would be of no use; and what was stopped
    must be a student."""
    live = Live(lab)
    live.press("start", "running")
    live.until(lambda now: now["rows"], "no update was made")
    live.widget.set(d=0.3)
    assert live.report()["status"] == "running"  # the kernel answers although it trains
    now = live.until(lambda now: now["rows"][-1][1] == 0.3, "the new limit never took effect")
    assert now["rows"][0][1] == 0.8
    assert [row[0] for row in now["rows"]] == list(range(1, now["updates"] + 1))
    marks = (m for b in live.widget.blocks() for m in b.get("marks", ()))
    limit = next(m for m in marks if m.get("name") == "limit d")
    assert {0.8, 0.3} <= set(limit["y"])  # and the picture shows both
    seconds = live.stop()
    for _ in range(2):
        if seconds > 0.5:  # of a busy machine
            live.press("start", "running")
            seconds = min(seconds, live.stop())
    after = live.report()
    time.sleep(0.3)
    assert after["status"] == "stopped"
    assert live.report()["updates"] == after["updates"]
    live.notebook.run_cell("save")
    student = AutoModelForCausalLM.from_pretrained(lab.root / "student")
    weights = sum(float(p.detach().double().abs().sum()) for p in student.parameters())
    assert weights == pytest.approx(float(live.notebook.text("save")), rel=1e-9)
    with capsys.disabled():
        print(f"\nlive trainer in JupyterLab: {after['updates']} updates, stopped")
        print(f"{max(seconds, 0):.2f} s after the click and the update under way")
    assert seconds <= 0.5
    assert not live.errors


# ---- the panel as a page ------------------------------------------------------------------


@pytest.mark.slow
def test_the_panel_as_a_page_of_voila(lab):
    "For those who want neither notebook nor code; its slider must do the same."
    pytest.importorskip("voila", reason="voila is not installed")
    page = lab.page("/voila/render/panel.ipynb")
    panel, traces = labs.Widget(page, page.locator(".cmdp").first), Traces()
    before = check_picture(panel, traces)
    panel.set(d=1.5, method="gkd")
    assert check_picture(panel, traces) != before
    assert page.get_by_text("import BudgetPanel").count() == 0  # no code is shown


# ---- what is stored -----------------------------------------------------------------------


@pytest.mark.parametrize("lesson", LESSONS)
def test_the_index_lists_every_lesson(lesson):
    "A lesson that the index does not list is not found."
    table = (TUTORIALS / "README.md").read_text(encoding="utf-8")
    text = (TUTORIALS / f"{lesson}.ipynb").read_text(encoding="utf-8")
    title = json.loads(text)["cells"][0]["source"][0].strip("# \n")
    exercises = text.count("### Exercise ")
    link = rf"\[{re.escape(title)}\]\({lesson}\.ipynb\)"
    line = rf"^\| {link} \|.+\| \d+ s \| {exercises} \|"
    wanted = f"| [{title}]({lesson}.ipynb) | ... | 25 s | {exercises} | ... |"
    assert re.search(line, table, re.M), f"tutorials/README.md has no line `{wanted}`"


def test_every_lesson_was_looked_at_in_a_browser():
    "What studies/browser tells is what was counted, of every lesson, theme and width."
    with open(STUDY / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    looks = {(row["lesson"], row["theme"], int(row["width"])) for row in rows}
    assert looks == set(product(LESSONS, THEMES, WIDTHS))
    assert table(rows) in (STUDY / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("lesson", LESSONS)
def test_the_pictures_of_the_course(lesson):
    "A picture that is missing or heavy spoils the page."
    assert lesson in MAIN
    for path in (IMAGES / f"{lesson}.png", IMAGES / f"{lesson}_moved.png"):
        size = path.stat().st_size
        assert 2_000 < size < 60_000, f"{path.name}: run tools/lesson_images.py {lesson[:2]}"
