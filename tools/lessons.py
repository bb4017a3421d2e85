"""Run the lessons and write what a reader sees who does not run them: printed text and pictures, and the seconds they take.

    python tools/lessons.py                 all lessons
    python tools/lessons.py 03 05           these

Kept of the outputs: printed text, the plain text of values, and PNG pictures (of widgets their own, of plotly figures what kaleido draws where it is
installed). Not kept: widget states, plotly's data, HTML. The cells' sources, and the seconds in the lesson and in tutorials/README.md, are set too.

A lesson that runs on a real model with CMDP_LONG=1 (see LONG) gets its outputs from such a run, and its seconds from one without, as well as the outputs of
cells named study..., which read committed results only:

    CMDP_LONG=1 python tools/lessons.py 09 && python tools/lessons.py 09
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import re
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TUTORIALS = ROOT / "tutorials"
MAX_BYTES = 190_000
LONG = {"09_a_real_model"}


def small_png(data: str | bytes, width: int = 960, colours: int = 96) -> str:
    "A PNG with few colours and at most `width` pixels, as base64: pictures are most of a notebook's size."
    from PIL import Image

    image = Image.open(
        io.BytesIO(base64.b64decode(data) if isinstance(data, str) else data)
    ).convert("RGB")
    if image.width > width:
        image = image.resize((width, round(image.height * width / image.width)), Image.LANCZOS)
    image.quantize(colours, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(
        out := io.BytesIO(), format="PNG", optimize=True
    )
    return base64.b64encode(out.getvalue()).decode()


def plotly_png(figure: dict) -> bytes:
    "A plotly figure as PNG."
    import plotly.graph_objects as go

    return go.Figure(figure).to_image(
        format="png", width=900, height=figure.get("layout", {}).get("height", 420), scale=1
    )


def plotly_alt(figure: dict) -> str:
    "The titles of a plotly figure, of its parts, axes and lines: its alternative text."
    layout, title = figure.get("layout", {}), lambda x: (x.get("title") or {}).get("text", "")
    axes = [title(v) for k, v in layout.items() if re.match(r"[xy]axis", k)]
    names = [
        title(layout),
        *(a.get("text", "") for a in layout.get("annotations", ())),
        *axes,
        *(t.get("name", "") for t in figure.get("data", ()) if t.get("showlegend", True)),
    ]
    return ". ".join(dict.fromkeys(re.sub(r"<[^>]*>", "", n) for n in names if n))


def kept(output: dict) -> dict | None:
    "What is stored of one output; None for nothing."
    if output["output_type"] == "stream":
        return (
            {k: output[k] for k in ("name", "output_type", "text")}
            if output["name"] == "stdout"
            else None
        )
    data, meta = output.get("data", {}), output.get("metadata", {})
    png = data.get("image/png")
    if figure := data.get("application/vnd.plotly.v1+json"):
        png, meta = (
            plotly_png({k: figure[k] for k in ("data", "layout")}),
            {"image/png": {"alt": plotly_alt(figure)}},
        )
    new = {"image/png": small_png(png)} if png else {}
    if not png and "text/plain" in data and not re.search(r"\d+%\|", data["text/plain"]):
        new["text/plain"] = data["text/plain"]  # no progress bars
    return (
        {
            "output_type": "display_data",
            "data": new,
            "metadata": {k: v for k, v in meta.items() if k == "image/png" and "alt" in v}
            if png
            else {},
        }
        if new
        else None
    )


def run(path: Path) -> int:
    "Execute one lesson, store its outputs, return the seconds it took, to the next five."
    import nbclient
    import nbformat

    source, nb = json.loads(path.read_text(encoding="utf-8")), nbformat.read(path, as_version=4)
    began = time.monotonic()
    long = os.environ.get("CMDP_LONG") == "1"
    nbclient.NotebookClient(
        nb,
        timeout=7200 if long else 300,
        kernel_name="python3",
        resources={"metadata": {"path": str(TUTORIALS)}},
        store_widget_state=False,
    ).execute()
    seconds = max(5, 5 * round((time.monotonic() - began) / 5))
    for old, new in zip(source["cells"], nb.cells):
        if (
            old["cell_type"] != "code"
            or path.stem in LONG
            and not long
            and not old["id"].startswith("study")
        ):
            continue
        outputs: list[dict] = []
        for o in filter(None, map(kept, new.outputs)):
            if o["output_type"] == "stream" and outputs and outputs[-1]["output_type"] == "stream":
                outputs[-1]["text"] += o["text"]
            else:
                outputs.append(o)
        for o in outputs:
            if isinstance(o.get("text"), str):
                o["text"] = o["text"].splitlines(keepends=True)
            if isinstance(o.get("data", {}).get("text/plain"), str):
                o["data"]["text/plain"] = o["data"]["text/plain"].splitlines(keepends=True)
        old["outputs"], old["execution_count"] = outputs, None
    if not long:
        for cell in source["cells"]:
            cell["source"] = [
                re.sub(r"(\*\*Takes\*\* about )\d+( s on two cores)", rf"\g<1>{seconds}\g<2>", line)
                for line in cell["source"]
            ]
    text = json.dumps(source, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    if len(text.encode()) > MAX_BYTES:
        raise SystemExit(
            f"{path.name} would have {len(text.encode())} bytes, more than {MAX_BYTES}: fewer or smaller pictures"
        )
    path.write_text(text, encoding="utf-8")
    return seconds


def main() -> None:
    "Run what is asked for; the times go into the table of tutorials/README.md."
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("lessons", nargs="*", help="the first digits of their names; all if none")
    args = parser.parse_args()
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TQDM_DISABLE="1")
    for path in sorted(TUTORIALS.glob("[0-9][0-9]_*.ipynb")):
        if args.lessons and path.name[:2] not in args.lessons:
            continue
        seconds = run(path)
        print(f"{path.stem}: {seconds} s, {path.stat().st_size / 1000:.0f} kB", flush=True)
        if os.environ.get("CMDP_LONG") != "1":
            readme = TUTORIALS / "README.md"
            text = readme.read_text(encoding="utf-8")
            readme.write_text(
                re.sub(rf"(\({re.escape(path.name)}\)[^\n]*?\| )\d+ s", rf"\g<1>{seconds} s", text),
                encoding="utf-8",
            )


if __name__ == "__main__":
    main()
