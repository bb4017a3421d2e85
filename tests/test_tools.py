"What the tools keep of a notebook, and how README.md is made of one."

import base64
import io
import json
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import outputs
import readme

from cmdp_nbdev.plot import _row_name


def stream(text, name="stdout"):
    "Something printed."
    return {"output_type": "stream", "name": name, "text": text}


def value(**data):
    "The value of a cell, in several forms."
    return {"output_type": "execute_result", "execution_count": 3, "data": data, "metadata": {}}


def test_stored_is_what_a_reader_sees():
    "Printed text in one piece, the plainest form of a value; nothing that a browser must run."
    made = [
        stream("a\n"),
        stream("warning", "stderr"),
        stream("b\n"),
        value(**{"text/plain": "1\n2", "text/html": "<b>"}),
        value(**{"text/plain": "Figure", "text/markdown": "**x**"}),
        value(**{"text/plain": "  7%| 7/100"}),
        value(**{"application/vnd.jupyter.widget-view+json": {}}),
    ]
    printed, plain, markdown = outputs.stored(made)
    assert printed == stream(["a\n", "b\n"])
    assert plain["data"] == {"text/plain": ["1\n", "2"]} and "execution_count" not in plain
    assert markdown["data"] == {"text/markdown": ["**x**"]}


def test_pictures_are_small_and_keep_their_words():
    "A picture is most of a notebook; who cannot see it reads the alternative text."
    image = pytest.importorskip("PIL.Image")
    image.new("RGB", (1920, 100), "red").save(raw := io.BytesIO(), format="PNG")
    data = base64.b64encode(raw.getvalue()).decode()
    about = {"image/png": {"alt": "a red bar", "width": 7}, "text/plain": {}}
    (kept,) = outputs.stored([{**value(**{"image/png": data}), "metadata": about}])
    small = image.open(io.BytesIO(base64.b64decode(kept["data"]["image/png"])))
    assert small.size == (960, 50)
    assert kept["metadata"] == {"image/png": {"alt": "a red bar"}}


def test_alternative_text_of_a_figure():
    "Titles of the figure, its parts and axes, and the names of the lines of its legend."
    figure = {
        "data": [{"name": "mean"}, {"name": "seeds", "showlegend": False}],
        "layout": {
            "title": {"text": "<b>Spent</b>"},
            "xaxis": {"title": {"text": "update"}},
            "annotations": [{"text": "left"}],
        },
    }
    assert outputs.plotly_alt(figure) == "Spent. left. update. mean"


def cell(source, kind="code", **more):
    "A cell of a notebook file."
    return {"cell_type": kind, "source": source.splitlines(True), **more}


def test_readme_is_the_notebook():
    "Links from the root, hidden cells left out, outputs in fences."
    notebook = {
        "cells": [
            cell("[a](../b.md) [c](https://x.y) [d](e.ipynb#f)", "markdown"),
            cell("#| hide\n1", outputs=[]),
            cell("#| echo: false\n1", outputs=[stream(["only this\n"])]),
            cell("print(2)", outputs=[stream(["2\n"]), value(**{"text/plain": ["3"]})]),
        ]
    }
    text = readme.render(json.loads(json.dumps(notebook)))
    assert text == (
        "[a](b.md) [c](https://x.y) [d](nbs/e.ipynb#f)\n\n"
        "```\nonly this\n```\n\n```python\nprint(2)\n```\n\n```\n2\n```\n\n```\n3\n```\n"
    )


def test_readme_tells_nothing_about_this_machine():
    "A path of one checkout must not be published."
    notebook = {"cells": [cell("1", outputs=[stream([str(ROOT)])])]}
    with pytest.raises(ValueError, match="path of this checkout"):
        readme.render(notebook)


def test_one_block_for_a_mark():
    "The gate runs what stands after a mark: none or two would be a guess."
    block = "<!-- ci: x -->\n```bash\nmake\n```\n"
    assert readme.marked_block(block, "x") == "make\n"
    for text in ("", block * 2):
        with pytest.raises(ValueError, match="exactly one"):
            readme.marked_block(text, "x")


def test_a_long_prompt_leaves_room_for_its_tokens():
    "Lesson 09's heat map was once all names: prompts of a hundred letters, and no cell to be seen."
    record = {"prompt": "word " * 40, "within_budget": True, "spent": 0.25, "correct": True}
    assert _row_name(record) == "word word word wor … right, within 0.25"
    assert _row_name(record | {"prompt": "2+2="}) == "2+2= right, within 0.25"
