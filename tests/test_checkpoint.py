"Nothing lost, nothing let in: what a run leaves, what it goes on from, and who may write there."

import errno
import json
import os
import pickle
import re
import resource
import shutil
import signal
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SMALL, embedded, flat, read_lines

from cmdp_nbdev import checkpoint as room
from cmdp_nbdev import cli, inputs, repeat
from cmdp_nbdev.checkpoint import (
    append_line,
    lock_folder,
    newest_checkpoint,
    read_jsonl,
    unlock_folder,
    verify_checkpoint,
    write_checkpoint,
)
from cmdp_nbdev.distil import build_trainer
from cmdp_nbdev.model import DATA, default_pair, load_model
from cmdp_nbdev.options import RunArguments
from cmdp_nbdev.task import chain_dataset, chain_reward
from cmdp_nbdev.trainer import CMDPTrainer

sys.path.insert(0, str(ROOT))
from studies.soak import soak

TINY = SMALL | dict(
    max_steps=4, per_device_train_batch_size=4, num_generations=4, eval_steps=2, save_steps=2
)


def trainer_in(folder, reward=chain_reward, data=None, pair=None, **changes):
    "A trainer on the embedded pair, of four updates."
    student, teacher, tokenizer = pair or default_pair()
    args = embedded(**{**TINY, "output_dir": str(folder), **changes})
    data = chain_dataset(16) if data is None else data
    held_out = chain_dataset(4, "validation")
    return CMDPTrainer(student, teacher, reward, args, data, held_out, tokenizer)


def lines_of(folder) -> list[dict]:
    "metrics.jsonl without seconds."
    rows = read_lines(Path(folder) / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


@pytest.fixture(scope="module")
def _run(tmp_path_factory):
    "The folder of a run of four updates, with checkpoints 2 and 4, and its weights."
    folder = tmp_path_factory.mktemp("whole") / "run"
    trainer = trainer_in(folder)
    trainer.train()
    return folder, flat(trainer.student)


@pytest.fixture
def run(_run, tmp_path):
    "A copy of that folder."
    return shutil.copytree(_run[0], tmp_path / "run")


@pytest.fixture
def ends_alike(_run):
    "Whether a trainer, gone on with, leaves the lines and the weights of the run that was whole."

    def check(trainer, start="auto"):
        trainer.train(start)
        assert lines_of(trainer.output_dir) == lines_of(_run[0])
        assert torch.equal(flat(trainer.student), _run[1])

    return check


# ---------------------------------------------------------------- nothing let in


class Hostile:
    "Unpickled, it writes a file."

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


PICKLES = "custom_checkpoint_0.pkl random_states_0.pkl optimizer.bin method_state.pt scheduler.bin"


def test_a_hostile_pickle_is_never_opened(run, tmp_path, ends_alike):
    "Beside a checkpoint's own files, and in a folder as version 0.1 wrote it."
    mark, old = tmp_path / "ran", run / "checkpoint-9"
    old.mkdir()
    (old / "trainer_state.json").write_text('{"global_step": 9, "args": {}}')
    for name in [*PICKLES.split(), "pytorch_model.bin"]:
        for folder in (run / "checkpoint-2", old):
            (folder / name).write_bytes(pickle.dumps(Hostile(mark)))
    shutil.rmtree(run / "checkpoint-4")
    trainer = trainer_in(run)
    with pytest.warns(UserWarning, match="checkpoint-9.*0.1, whose.*going on from checkpoint-2"):
        ends_alike(trainer)
    with pytest.raises(ValueError, match="pickles, which can run programs.*release that began it"):
        trainer_in(run).train(str(old))
    assert not mark.exists()


def test_a_hostile_model_folder(tmp_path):
    "Weights of a student or teacher in a pickle: its numbers are read, its program is not."
    student, _, _ = default_pair()
    student.config.save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Hostile(tmp_path / "ran")))
    with pytest.raises(FileNotFoundError, match="teacher='.*' could not be loaded"):
        load_model(tmp_path, "teacher")
    assert not (tmp_path / "ran").exists()


def test_a_tree_that_lies_is_refused_in_one_line(tmp_path):
    "The manifest is right, what it lists is no state."
    folder = write_checkpoint(tmp_path / "checkpoint-1", {"model": {"w": torch.ones(2)}})
    for text in ('{"$tensor": "other"}', '{"$dict": 5}', '{"$tuple": 1}', "[" * 100_000):
        (folder / "model.json").write_text(text)
        room.write_manifest(folder)
        verify_checkpoint(folder)
        with pytest.raises(ValueError, match="checkpoint-1/model' is no part of a checkpoint"):
            room.read_checkpoint(folder)
    for text in ("{", "[]", '{"files": {"a": 1}}', '{"files": {"../x": {}}}'):
        (folder / "manifest.json").write_text(text)
        with pytest.raises(ValueError, match="checkpoint-1"):
            verify_checkpoint(folder)


# ---------------------------------------------------------------- it verifies or it is not one


def test_whatever_file_is_cut_it_is_named(run):
    "Cut in half, missing, or one byte another: the one before is taken."
    for file in sorted((run / "checkpoint-4").iterdir()):
        whole = file.read_bytes()
        other = whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:]
        for damaged in (whole[: len(whole) // 2], other, None):
            file.unlink() if damaged is None else file.write_bytes(damaged)
            told = []
            found = newest_checkpoint(run, told.append)
            if file.name == "manifest.json" and damaged == other:
                pass  # a space more or less at its end changes nothing
            else:
                assert found.name == "checkpoint-2" and file.name in told[0], (file, told)
            file.write_bytes(whole)
    assert newest_checkpoint(run).name == "checkpoint-4"


def test_auto_falls_back_and_a_path_is_refused(run, ends_alike):
    "The run ends as if nothing had been damaged; with no whole checkpoint nothing is begun."
    weights = run / "checkpoint-4" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    before = (run / "metrics.jsonl").read_bytes()
    with pytest.raises(ValueError, match="checkpoint-4' is damaged: its model.safetensors has 100"):
        trainer_in(run).train(str(run / "checkpoint-4"))
    state = run / "checkpoint-2" / "trainer_state.json"
    kept = state.read_bytes()
    state.unlink()
    with pytest.raises(ValueError, match="trainer_state.json is missing; remove"):
        trainer_in(run).train("auto")
    assert (run / "metrics.jsonl").read_bytes() == before
    state.write_bytes(kept)
    with pytest.warns(UserWarning, match="skipped checkpoint-4.*going on from checkpoint-2"):
        ends_alike(trainer_in(run))
    verify_checkpoint(run / "checkpoint-4")  # written again


def test_a_line_that_is_none(run, ends_alike):
    "It is named, the file is kept, the run goes on from its checkpoint; others name it, too."
    path = run / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b'{"step":: \xff}\n' + b"".join(lines[1:]))
    shutil.rmtree(run / "checkpoint-4")
    with pytest.raises(ValueError, match="metrics.jsonl', line 2, is no JSON object"):
        read_jsonl(path)
    damaged = path.read_bytes()
    with pytest.warns(UserWarning, match="metrics.jsonl': line 2 is no line of metrics"):
        ends_alike(trainer_in(run))
    assert (run / "metrics-damaged-2.jsonl").read_bytes() == damaged
    (run / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json' is no JSON"):
        trainer_in(run)


# ---------------------------------------------------------------- no room left


@contextmanager
def files_up_to(size):
    "No file may grow beyond so many bytes, as on a disk that is full."
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk(run, ends_alike, capsys):
    "The reason, the checkpoint that is left, nothing half; with room again the run ends alike."
    shutil.rmtree(run / "checkpoint-4")
    trainer = trainer_in(run)
    with files_up_to(20_000), pytest.raises(OSError) as stopped:
        trainer.train("auto")
    with capsys.disabled():
        print(f"\n    disk full: {stopped.value}".replace(str(run), "runs/mine"))
    assert "update 4 and goes on from checkpoint-2" in str(stopped.value)
    left = r"student', could not be written: .*='auto' goes on from checkpoint-2"
    with files_up_to(20_000), pytest.raises(OSError, match=left):
        trainer.save_model(run / "student")
    assert not (run / "student").exists()
    assert sorted(p.name for p in run.glob("checkpoint-*")) == ["checkpoint-2"]
    unlock_folder(run)
    ends_alike(trainer_in(run))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("call", ["fsync", "rename", "mkdir"])
def test_any_write_that_fails(call, number, tmp_path, monkeypatch):
    "What was there stays, and nothing of the new one is left that counts."
    target = write_checkpoint(tmp_path / "checkpoint-1", {"state": {"n": 1}})
    owner = Path if call in ("rename", "mkdir") else os

    def fails(*unused, **unused_too):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(owner, call, fails)
        with pytest.raises(OSError, match=os.strerror(number)):
            write_checkpoint(target, {"state": {"n": 2}})
    assert room.read_checkpoint(target) == {"state": {"n": 1}}
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-1"]


def test_a_line_is_appended_whole_or_not(tmp_path):
    "Half a line would be the beginning of the next one."
    path = tmp_path / "metrics.jsonl"
    append_line(path, "a" * 10)
    with files_up_to(15), pytest.raises(OSError):
        append_line(path, "b" * 10)
    append_line(path, "c")
    assert path.read_text() == "aaaaaaaaaa\nc\n"


def test_a_dataset_that_is_gone(run, tmp_path, capsys):
    "A run has its prompts in memory and ends; going on without the file is refused in a line."
    for name in ("train.jsonl", "held_out.jsonl"):
        chain_dataset(4).to_json(tmp_path / name)
    own = f"--student {DATA / 'student'} --teacher {DATA / 'teacher'} --budget 1"
    data = f"--dataset {tmp_path}/train.jsonl --eval_dataset {tmp_path}/held_out.jsonl"
    reward = "--reward cmdp_nbdev.task:chain_reward --device cpu"
    (tmp_path / "train.jsonl").unlink()
    more = f"--output_dir {run} --resume_from_checkpoint auto"
    before = (run / "metrics.jsonl").read_bytes()
    assert cli.cmdp(f"distill {own} {data} {reward} {more}".split()) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    with capsys.disabled():
        print(f"\n    dataset gone: {said}".replace(str(tmp_path), "data"))
    assert "train.jsonl" in said and (run / "metrics.jsonl").read_bytes() == before


# ---------------------------------------------------------------- stopped on purpose


@pytest.mark.parametrize("number, where", [(signal.SIGINT, "records"), (signal.SIGTERM, "sample")])
def test_a_signal_leaves_a_checkpoint(number, where, tmp_path, ends_alike, capsys):
    "Also with save_steps=0; an evaluation that was left undone is made when the run goes on."
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    trainer, folder = trainer_in(tmp_path / "run", save_steps=0), tmp_path / "run"
    inner = getattr(trainer, where)

    def stopped(*args):
        if trainer.global_step == 2:
            signal.raise_signal(number)
        return inner(*args)

    setattr(trainer, where, stopped)
    left = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: SystemExit}[number]
    try:
        with pytest.raises(left) as why:
            trainer.train()
    finally:
        signal.signal(signal.SIGINT, before)
    assert number == signal.SIGINT or why.value.code == 143
    assert "stopped after update 2" in capsys.readouterr().err
    assert newest_checkpoint(folder).name == "checkpoint-2"
    ends_alike(trainer_in(folder, save_steps=0))


# ---------------------------------------------------------------- what it was made from


def other_reward(completions, **columns):
    "Another one."
    return [0.0 for _ in completions]


def test_other_inputs_are_refused_by_name(run):
    "Another teacher, student, data, number of prompts, reward, or both models swapped."
    student, teacher, tokenizer = default_pair()
    with torch.no_grad():
        next(teacher.parameters())[0, 0] += 1e-3
    edited = chain_dataset(16).to_list()
    edited[3]["prompt"] = edited[4]["prompt"]
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    for found, changes in {
        "teacher has other weights": dict(pair=(student, teacher, tokenizer)),
        "train_dataset had 16 rows, now 8": dict(data=chain_dataset(8)),
        "train_dataset has other contents": dict(data=edited),
        "reward_funcs were chain_reward, now other_reward": dict(reward=other_reward),
        "student and teacher have changed places": dict(pair=(*default_pair()[1::-1], tokenizer)),
    }.items():
        with pytest.raises(ValueError, match=f"belongs to a run .* other inputs: {found}"):
            trainer_in(run, **changes).train("auto")
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


def test_another_version_is_recorded_and_said(run, ends_alike):
    "It may change last digits, and whoever compares them finds it in config.json."
    config = json.loads((run / "config.json").read_text())
    config["starts"][-1]["versions"]["torch"] = "2.0"
    (run / "config.json").write_text(json.dumps(config))
    with pytest.warns(UserWarning, match="goes on with torch 2.0, now .* last digits"):
        ends_alike(trainer_in(run))
    starts = json.loads((run / "config.json").read_text())["starts"]
    assert [start["from"] for start in starts] == [0, 4]


# ---------------------------------------------------------------- one process at a time


def test_of_runs_that_start_together_one_wins(tmp_path):
    "Of five that ask at the same moment; the others are told."
    start, end = os.pipe(), os.pipe()
    ids = []
    for _ in range(5):
        if (child := os.fork()) == 0:
            os.close(start[1]), os.close(end[1])
            os.read(start[0], 1)  # returns when the pipe is closed, for all at once
            try:
                lock_folder(tmp_path)
            except BlockingIOError:
                os._exit(9)
            os.read(end[0], 1)
            os._exit(0)
        ids.append(child)
    os.close(start[1])
    refused = [os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(4)]
    os.close(end[1])
    winner = os.waitstatus_to_exitcode(os.wait()[1])
    assert refused == [9] * 4 and winner == 0


def test_a_folder_in_use_is_refused_and_named(tmp_path, make_trainer):
    "By the process; when that is killed the folder is free."
    folder, ready = tmp_path / "run", os.pipe()
    folder.mkdir()
    if (child := os.fork()) == 0:
        lock_folder(folder)
        os.write(ready[1], b"x")
        signal.pause()
    os.read(ready[0], 1)
    with pytest.raises(BlockingIOError, match=f"is written by process {child} on .*; wait"):
        trainer_in(folder).begin()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    trainer_in(folder).begin()
    unlock_folder(folder)


def test_killed_again_and_again():
    "A small studies/soak: at a random moment, and while it starts; the end is the same."
    assert len(soak.kills(2, updates=4)) == 2
    rows = soak.long(9, 3)
    assert len({row["files"] for row in rows}) == 1


# ---------------------------------------------------------------- made again


def test_a_run_is_repeated_from_its_record(tmp_path, capsys, monkeypatch):
    "The same numbers; a difference is exit status 1; other rewards than then are refused."
    folder, read = tmp_path / "run", []
    identity = inputs.model_identity
    monkeypatch.setattr(inputs, "model_identity", lambda m: read.append(m) or identity(m))
    config = embedded(**TINY | {"max_steps": 2, "output_dir": str(folder)})
    build_trainer(RunArguments(n_eval=4), config).train()
    assert len(read) == 2  # of each model all weights, once a start
    assert cli.cmdp(["repeat", str(folder)]) == 0
    assert f"again in {folder}-again: 2 lines of metrics, all the same" in capsys.readouterr().out
    assert len(read) == 4
    config = folder / "config.json"
    assert cli.cmdp(["repeat", str(folder), "--output_dir", str(folder)]) == 2
    assert "holds a run already" in capsys.readouterr().err
    record = json.loads(config.read_text())
    record["inputs"]["reward_funcs"] = {"chain_reward": "0"}
    config.write_text(json.dumps(record))
    assert cli.cmdp(["repeat", str(folder)]) == 2
    assert "cannot be repeated: the source of reward_funcs has" in capsys.readouterr().err
    monkeypatch.setattr(repeat, "repeat", lambda *given: (folder, "update 2: loss was 1, now 2"))
    assert cli.cmdp(["repeat", str(folder)]) == 1


def test_what_cannot_be_repeated(run, capsys):
    "A folder without a record, a run that was begun from Python."
    for folder, match in ((run.parent, "holds no run"), (run, "begun from Python")):
        assert cli.cmdp(["repeat", str(folder)]) == 2
        assert match in capsys.readouterr().err
    assert cli.cmdp(["repeat"]) == 2 and "folder missing" in capsys.readouterr().err
    record = json.loads((run / "config.json").read_text())
    told = dict(student="no/such", teacher="t", dataset="d.jsonl", eval_dataset="d.jsonl")
    damaged = {
        "{": "config.json' is no JSON",
        json.dumps(record | {"run": {}, "method": "ppo"}): "method 'ppo' is unknown",
        json.dumps(record | {"run": {"n_eval": -1}}): "n_eval must be >= 1, got -1",
        json.dumps(record | {"run": told | {"reward": ["a:b"]}}): "'no/such'|'d.jsonl'",
    }
    for text, match in damaged.items():
        (run / "config.json").write_text(text)
        assert cli.cmdp(["repeat", str(run)]) == 2
        assert re.search(match, capsys.readouterr().err), text
    assert not list(run.parent.glob("run-again*"))
