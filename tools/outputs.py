"""Run notebooks and store what a reader sees who does not run them: printed text and pictures.

    python tools/outputs.py                       all lessons
    python tools/outputs.py 03 05                 these
    python tools/outputs.py nbs/02_budget.ipynb   a notebook of the reference
    python tools/outputs.py --reference           all of the reference

Kept of the outputs: printed text, markdown and the plain text of values, and PNG pictures (of
widgets their own, of plotly figures what kaleido draws where it is installed). Not kept: widget
states, plotly's data, HTML, progress bars. Sources stay as they are, but for the seconds that a
lesson takes, in it and in tutorials/README.md. In nbs/, cells that export or hide keep nothing.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NBS, TUTORIALS = ROOT / "nbs", ROOT / "tutorials"
MAX_BYTES = 190_000

# ---- pictures -----------------------------------------------------------------------------


def small_png(data: str | bytes, width: int = 960, colours: int = 96) -> str:
    "A PNG with few colours and at most `width` pixels, as base64: most of a notebook is pictures."
    from PIL import Image

    raw = base64.b64decode(data) if isinstance(data, str) else data
    image = Image.open(io.BytesIO(raw)).convert("RGB")
    if image.width > width:
        height = round(image.height * width / image.width)
        image = image.resize((width, height), Image.LANCZOS)
    few = image.quantize(colours, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    few.save(out := io.BytesIO(), format="PNG", optimize=True)
    return base64.b64encode(out.getvalue()).decode()


def plotly_png(figure: dict) -> bytes:
    "A plotly figure as PNG."
    import plotly.graph_objects as go

    height = figure.get("layout", {}).get("height", 420)
    return go.Figure(figure).to_image(format="png", width=900, height=height, scale=1)


def plotly_alt(figure: dict) -> str:
    "The titles of a plotly figure, of its parts, axes and lines: its alternative text."

    def title(part: dict) -> str:
        return (part.get("title") or {}).get("text", "")

    layout = figure.get("layout", {})
    names = [title(layout)]
    names += [part.get("text", "") for part in layout.get("annotations", ())]
    names += [title(axis) for name, axis in layout.items() if re.match(r"[xy]axis", name)]
    drawn = [trace for trace in figure.get("data", ()) if trace.get("showlegend", True)]
    names += [trace.get("name", "") for trace in drawn]
    plain = [re.sub(r"<[^>]*>", "", name) for name in names if name]
    return ". ".join(dict.fromkeys(plain))


# ---- what is kept -------------------------------------------------------------------------


def picture_of(data: dict, metadata: dict) -> tuple[str | bytes | None, dict]:
    "The picture in an output, if there is one, and its alternative text."
    if figure := data.get("application/vnd.plotly.v1+json"):
        figure = {name: figure[name] for name in ("data", "layout")}
        return plotly_png(figure), {"alt": plotly_alt(figure)}
    about = metadata.get("image/png", {})
    return data.get("image/png"), {"alt": about["alt"]} if "alt" in about else {}


def kept(output: dict) -> dict | None:
    "What is stored of one output; None for nothing."
    if output["output_type"] == "stream":
        printed = {"name": "stdout", "output_type": "stream", "text": output["text"]}
        return printed if output["name"] == "stdout" else None
    data = output.get("data", {})
    picture, alt = picture_of(data, output.get("metadata", {}))
    shown, metadata = {}, {}
    if picture:
        shown["image/png"] = small_png(picture)
        metadata = {"image/png": alt} if alt else {}
    elif "text/markdown" in data:
        shown["text/markdown"] = data["text/markdown"]
    elif "text/plain" in data and not re.search(r"\d+%\|", data["text/plain"]):  # a progress bar
        shown["text/plain"] = data["text/plain"]
    if not shown:
        return None
    return {"output_type": "display_data", "data": shown, "metadata": metadata}


def stored(outputs: list[dict]) -> list[dict]:
    "The outputs of a cell as a notebook stores them: what is printed in one piece, text by lines."
    new: list[dict] = []
    for output in filter(None, map(kept, outputs)):
        printed = output["output_type"] == "stream"
        if printed and new and new[-1]["output_type"] == "stream":
            new[-1]["text"] += output["text"]
        else:
            new.append(output)
    for output in new:
        if "text" in output:
            output["text"] = output["text"].splitlines(keepends=True)
        data = output.get("data", {})
        for kind in {"text/plain", "text/markdown"} & set(data):
            data[kind] = data[kind].splitlines(keepends=True)
    return new


# ---- notebooks ----------------------------------------------------------------------------


def execute(path: Path, timeout: int) -> list[dict]:
    "The cells of a notebook after a run in a fresh kernel, in the notebook's folder."
    import nbclient
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    left_out = re.compile(r"^#\|\s*eval:\s*false|nbdev_export\(\)", re.M)
    for cell in notebook.cells:
        if left_out.search(cell.source):
            cell.source = ""
    nbclient.NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
        store_widget_state=False,
    ).execute()
    return notebook.cells


def write(path: Path, notebook: dict) -> None:
    "Store a notebook as nbdev-clean would. Exits if it has become too large."
    text = json.dumps(notebook, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    size = len(text.encode())
    if size > MAX_BYTES:
        advice = "fewer or smaller pictures"
        raise SystemExit(f"{path.name} would have {size} bytes, more than {MAX_BYTES}: {advice}")
    path.write_text(text, encoding="utf-8")


def pairs(notebook: dict, cells: list[dict]) -> Iterator[tuple[dict, list[dict]]]:
    "Every code cell with its new outputs."
    for old, new in zip(notebook["cells"], cells):
        if old["cell_type"] == "code":
            old["execution_count"] = None
            yield old, new["outputs"]


def run_reference(path: Path) -> None:
    "Store the outputs of a notebook of nbs/; cells that export or hide keep none."
    notebook = json.loads(path.read_text(encoding="utf-8"))
    silent = re.compile(r"^#\|\s*(hide|exporti?|default_exp)\b", re.M)
    for cell, outputs in pairs(notebook, execute(path, timeout=600)):
        cell["outputs"] = [] if silent.search("".join(cell["source"])) else stored(outputs)
    write(path, notebook)


def run_lesson(path: Path) -> None:
    "Store the outputs of a lesson, and in it and in the index the seconds it takes."
    notebook = json.loads(path.read_text(encoding="utf-8"))
    began = time.monotonic()
    cells = execute(path, timeout=300)
    seconds = max(5, 5 * round((time.monotonic() - began) / 5))  # to the next five
    for cell, outputs in pairs(notebook, cells):
        cell["outputs"] = stored(outputs)
    say_seconds(notebook, path, seconds)
    write(path, notebook)


def say_seconds(notebook: dict, path: Path, seconds: int) -> None:
    "Put the seconds into the lesson and into the table of tutorials/README.md."
    takes = re.compile(r"(\*\*Takes\*\* about )\d+( s on two cores)")
    for cell in notebook["cells"]:
        cell["source"] = [takes.sub(rf"\g<1>{seconds}\g<2>", line) for line in cell["source"]]
    index = TUTORIALS / "README.md"
    row = rf"(\({re.escape(path.name)}\)[^\n]*?\| )\d+ s"
    text = index.read_text(encoding="utf-8")
    index.write_text(re.sub(row, rf"\g<1>{seconds} s", text), encoding="utf-8")


# ---- command line -------------------------------------------------------------------------


def lessons(digits: list[str]) -> list[Path]:
    "The lessons with these first digits; all if there are none."
    every = sorted(TUTORIALS.glob("[0-9][0-9]_*.ipynb"))
    return [path for path in every if not digits or path.name[:2] in digits]


def main() -> None:
    "Run what the command line asks for."
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    about = "digits of a lesson, or the path of a notebook of nbs/; all lessons if none"
    parser.add_argument("notebooks", nargs="*", help=about)
    parser.add_argument("--reference", action="store_true", help="all notebooks of nbs/")
    args = parser.parse_args()
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TQDM_DISABLE="1")
    reference = [Path(name).resolve() for name in args.notebooks if name.endswith(".ipynb")]
    digits = [name for name in args.notebooks if not name.endswith(".ipynb")]
    if args.reference:
        reference = sorted(NBS.rglob("*.ipynb"))
    chosen = lessons(digits) if digits or not reference else []
    for path in [*reference, *chosen]:
        run_reference(path) if NBS in path.parents else run_lesson(path)
        print(f"{path.stem}: {path.stat().st_size / 1000:.0f} kB", flush=True)


if __name__ == "__main__":
    main()
