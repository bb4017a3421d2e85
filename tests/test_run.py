"What a run is outside of its loop: its bar, its folder, its checkpoints."

import json

import pytest
from conftest import ROOT, python

from cmdp_nbdev.checkpoint import checkpoints, newest_checkpoint, write_checkpoint
from cmdp_nbdev.run import keep_metrics, prompt_order

BAR = """
from cmdp_nbdev.processor import progress
for settings in ({}, {"disable": True}):
    bar = progress(10, **settings)
    print(bar.disable, getattr(bar, "mininterval", None))
    bar.close()
"""


@pytest.mark.parametrize("value,first", [("1", "True None"), ("", "False 10.0")])
def test_a_bar_in_a_file_writes_seldom_and_can_be_switched_off(tmp_path, value, first):
    "By the setting or, as everybody's scripts do, by TQDM_DISABLE; else a line every ten seconds."
    (tmp_path / "bar.py").write_text(BAR)
    env = {"TQDM_DISABLE": value, "PYTHONPATH": str(ROOT)}
    said = python(tmp_path / "bar.py", env=env).stdout.splitlines()
    assert said == [first, "True None"]


def test_a_cut_line_and_later_lines_go(tmp_path):
    "Lines of updates that the checkpoint had not seen will be written again."
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": i}) + "\n" for i in range(4)]
    path.write_text("".join(lines) + '{"step": 4, "lo')
    keep_metrics(path, 2)
    assert path.read_text() == "".join(lines[:3])
    keep_metrics(tmp_path / "none.jsonl", 2)
    assert not (tmp_path / "none.jsonl").exists()


def test_half_a_checkpoint_is_none(tmp_path):
    "What was being written when the process died must not be resumed."
    assert newest_checkpoint(tmp_path) is None
    for name in ("checkpoint-9", "checkpoint-10"):
        write_checkpoint(tmp_path / name, {"state": {}})
    for name in ("checkpoint-11", "checkpoint-12.part"):
        (tmp_path / name).mkdir()
    names = [p.name for p in checkpoints(tmp_path)]
    assert names == ["checkpoint-9", "checkpoint-10", "checkpoint-11"]
    assert newest_checkpoint(tmp_path).name == "checkpoint-10"


@pytest.mark.parametrize("start", [0, 3, 5, 11])
def test_the_order_goes_on_where_it_stopped(start):
    "Any piece of the endless sequence is the same, wherever it is begun."
    whole = prompt_order(5, 0, 30, seed=1)
    assert prompt_order(5, start, 9, seed=1) == whole[start : start + 9]
    assert sorted(whole[:5]) == sorted(whole[5:10]) == list(range(5))
