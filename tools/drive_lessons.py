"""Every lesson as it is stored, in a real JupyterLab: does it fit a window, and is all of it there?

    python tools/drive_lessons.py                  all lessons; writes studies/browser
    python tools/drive_lessons.py 02 07            these; the rows of the others stay
    python tools/drive_lessons.py --shots folder   keeps pictures of what was seen, too

Nothing is run. Each lesson is looked at in two widths and two themes. Counted are errors on the
browser's console, code cells with a line that ends out of sight, pictures that are not there or cut
or out of proportion, outputs and texts wider than their place, and rows of a printed
table (two blanks in a line) that wrap.

Needs what tools/lab.py needs.
"""

from __future__ import annotations

import argparse
import csv
import importlib.metadata
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))
from lab import Lab, Notebook, settle
from outputs import ROOT, lessons

from studies.lab import markdown, put_between

STUDY = ROOT / "studies" / "browser"
MARKS = "<!-- lessons -->", "<!-- /lessons -->"
WIDTHS, THEMES = (1280, 800), ("light", "dark")
MAX_HEIGHT = 16_000  # of a picture, in pixels: more a browser does not draw
COUNTS = ("code_out_of_sight", "pictures_broken", "pictures_cut", "too_wide", "wrapped_rows")

LOADED = "() => [...document.querySelectorAll('.jp-Notebook img')].every(img => img.complete)"
MEASURE = """() => {
    const found = {pictures: 0, code_out_of_sight: [], pictures_broken: [], pictures_cut: [],
        too_wide: [], wrapped_rows: []};
    const pen = document.createElement("canvas").getContext("2d");
    const letter = font => (pen.font = font, pen.measureText("x".repeat(100)).width / 100);
    const wide = box => box.scrollWidth > box.clientWidth + 1;
    for (const cell of document.querySelectorAll(".jp-Notebook .jp-Cell")) {
        const id = cell.dataset.cell, place = cell.getBoundingClientRect();
        const own = cell.matches(".jp-CodeCell") &&
            cell.querySelector(".jp-InputArea-editor .cm-scroller");
        if (own && wide(own)) found.code_out_of_sight.push(id);
        for (const img of cell.querySelectorAll("img")) {
            found.pictures += 1;
            const at = img.getBoundingClientRect();
            const shape = at.width / at.height / (img.naturalWidth / img.naturalHeight);
            if (!img.naturalWidth) found.pictures_broken.push(id);
            else if (at.right > place.right + 1 || Math.abs(shape - 1) > 0.02)
                found.pictures_cut.push(id);
        }
        const boxes = cell.querySelectorAll(".jp-OutputArea-output, .jp-MarkdownOutput");
        const inside = ".jp-MarkdownOutput > table, .jp-MarkdownOutput > pre";
        if ([...boxes, ...cell.querySelectorAll(inside)].some(wide)) found.too_wide.push(id);
        for (const pre of cell.querySelectorAll(".jp-OutputArea-output pre")) {
            const style = getComputedStyle(pre), fits = pre.clientWidth / letter(style.font);
            for (const line of pre.textContent.split("\\n"))
                if (line.length > fits && /\\S  +\\S/.test(line)) found.wrapped_rows.push(id);
        }
    }
    return found;
}"""
HEIGHT = "() => document.querySelector('.jp-WindowedPanel-outer').scrollHeight"
END = "() => jupyterapp.shell.currentWidget.sessionContext.shutdown()"


def measure(notebook: Notebook) -> dict:
    "What MEASURE finds, once two looks half a second apart agree: formulas take a moment."
    notebook.page.wait_for_function(LOADED)
    before, now = None, notebook.page.evaluate(MEASURE)
    while now != before:
        notebook.page.wait_for_timeout(500)
        before, now = now, notebook.page.evaluate(MEASURE)
    return now


def picture(notebook: Notebook, path: Path) -> None:
    "All of a lesson, from its first cell to its last, as far as a browser can."
    page, size = notebook.page, notebook.page.viewport_size
    high = min(MAX_HEIGHT, page.evaluate(HEIGHT) + 120)
    page.set_viewport_size({"width": size["width"], "height": high})
    settle(page)
    page.screenshot(path=path)
    page.set_viewport_size(size)


def look(lab: Lab, name: str, shots: Path | None = None) -> Iterator[dict]:
    """One row for each theme and width of a lesson: what was counted, and in which cells.

    shots: a folder for pictures.
    """
    errors: list[str] = []
    lab.context.on("console", lambda said: said.type == "error" and errors.append(said.text))
    lab.context.on("weberror", lambda raised: errors.append(str(raised.error)))
    began = time.monotonic()
    notebook = lab.open(f"{name}.ipynb")
    measure(notebook)
    seconds = round(time.monotonic() - began, 1)
    for theme in THEMES:
        notebook.theme(theme)
        for width in WIDTHS:
            notebook.width(width)
            found = measure(notebook)
            if shots:
                picture(notebook, shots / f"{name[:2]}-{width}-{theme}.png")
            keys = COUNTS if width == WIDTHS[0] else COUNTS[1:]  # code may be wider than 800
            cells = sorted({cell for key in keys for cell in found[key]})
            row = {"lesson": name, "theme": theme, "width": width, "console_errors": len(errors)}
            row |= {"pictures": found["pictures"], **{key: len(found[key]) for key in COUNTS}}
            yield row | {"cells": " ".join(cells), "said": " | ".join(errors), "opened_s": seconds}
            errors.clear()
    notebook.page.evaluate(END)
    notebook.page.close()


def table(rows: list[dict]) -> str:
    "A line for each lesson, as markdown."
    head = ["lesson", "console errors", "pictures", "broken or cut", "code out of sight, 1280"]
    head += ["too wide, 1280", "too wide, 800", "printed rows that wrap, 1280", "800"]
    lines = []
    for name in dict.fromkeys(row["lesson"] for row in rows):
        own = [row for row in rows if row["lesson"] == name]

        def most(key, width=None):
            "The most that was counted in one of the themes."
            return max(int(row[key]) for row in own if width in (None, int(row["width"])))

        broken = most("pictures_broken") + most("pictures_cut")
        errors = sum(int(row["console_errors"]) for row in own)
        line = [name, errors, most("pictures"), broken, most("code_out_of_sight", 1280)]
        for key in ("too_wide", "wrapped_rows"):
            line += [most(key, 1280), most(key, 800)]
        lines.append(line)
    return markdown(head, lines)


def store(rows: list[dict], browser: str) -> None:
    "Write the study: every row into a CSV file, a line a lesson into its README."
    path, new = STUDY / "results.csv", {row["lesson"] for row in rows}
    if path.exists():
        with open(path, newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["lesson"] not in new] + rows
    rows.sort(key=lambda row: row["lesson"])
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    made = f"JupyterLab {importlib.metadata.version('jupyterlab')}, Chromium {browser}"
    put_between(STUDY / "README.md", MARKS, f"\n{table(rows)}\n\nSeen with {made}.\n")


def main() -> None:
    "One JupyterLab, one tab after the other."
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("lessons", nargs="*", help="the first digits of their names; all if none")
    parser.add_argument("--shots", type=Path, help="a folder for pictures of every lesson")
    args = parser.parse_args()
    if args.shots:
        args.shots.mkdir(parents=True, exist_ok=True)
    rows = []
    with Lab(height=1200) as lab:
        for path in lessons(args.lessons):
            for row in look(lab, path.stem, args.shots):
                rows.append(row)
                print(*row.values(), flush=True)
        browser = lab.context.browser.version
    print(table(rows))
    store(rows, browser)


if __name__ == "__main__":
    main()
