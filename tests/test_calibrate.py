"A run that ends at its rate: where it aims, where it looks, and what it leaves as it was."

import json
import signal
from dataclasses import replace

import pytest
import torch
from conftest import read_lines
from hypothesis import given, settings
from hypothesis import strategies as st

from cmdp_nbdev import calibrate
from cmdp_nbdev.calibrate import Look, calibration_aim, log_odds, meeting_place
from cmdp_nbdev.cli import main
from cmdp_nbdev.config import CMDPConfig
from cmdp_nbdev.distil import leave_if_stopped
from cmdp_nbdev.model import default_pair
from cmdp_nbdev.preflight import hold_out
from cmdp_nbdev.reward import FunctionFailed
from cmdp_nbdev.sequential import CERTIFIED, REFUSED, UNDECIDED, verdict_of
from cmdp_nbdev.task import chain_dataset, chain_reward
from cmdp_nbdev.trainer import CMDPTrainer

DATA = chain_dataset(256)


def config(folder, **settings):
    "A few small updates that are asked for 90%."
    about = dict(
        output_dir=str(folder),
        method_kwargs={"target": 0.9},
        max_steps=3,
        per_device_train_batch_size=16,
        learning_rate=3e-4,
        calibration_prompts=64,
        device="cpu",
        disable_tqdm=True,
    )
    return CMDPConfig.from_recipe("embedded", **about | settings)


def trainer(folder, **settings):
    "A run of the embedded pair."
    student, teacher, tokenizer = default_pair()
    args = config(folder, **settings)
    return CMDPTrainer(student, teacher, chain_reward, args, DATA, DATA.select([0]), tokenizer)


@pytest.fixture(autouse=True)
def short_stretches(monkeypatch):
    monkeypatch.setattr("cmdp_nbdev.calibrate.STRETCH", 8)


def weights(run):
    return torch.cat([p.detach().flatten() for p in run.student.parameters()])


@pytest.mark.parametrize("target", [0.8, 0.9, 0.95, 0.98])
def test_a_student_at_the_aim_is_certified(target):
    "What is aimed at is enough, what was asked for is not, and more prompts need less."
    n = 8192
    aim = calibration_aim(target, 2048, n)
    assert target < aim < calibration_aim(target, 512, n // 4) < 1
    assert verdict_of(round((1 - aim) * n), n, target) == CERTIFIED
    assert verdict_of(round((1 - target) * n), n, target) != CERTIFIED
    assert calibration_aim(target, 2048, 0) == target


@settings(max_examples=20, deadline=None)
@given(st.floats(0.55, 0.99), st.floats(0.55, 0.99), st.floats(0.05, 0.95))
def test_the_line_is_met_where_it_is(start, end, place):
    "Looks on a line of log-odds say where a rate is found, and those on a bend where it is."
    if abs(start - end) < 0.01:
        return
    n = 10**9
    odds = [log_odds(start) + t * (log_odds(end) - log_odds(start)) for t in (0.0, 1.0, place)]
    rates = [1 / (1 + float(torch.exp(torch.tensor(-o, dtype=torch.float64)))) for o in odds]
    looks = [Look(t, round(r * n), n) for t, r in zip((0.0, 1.0, place), rates)]
    assert meeting_place(looks, rates[2]) == pytest.approx(place, abs=1e-3)
    assert meeting_place(looks[:2], rates[2]) == pytest.approx(place, abs=1e-3)
    bent = [Look(0.0, 8 * 10**8, n), Look(1.0, 9 * 10**8, n), Look(0.5, 9 * 10**8, n)]
    assert meeting_place(bent, 0.85) < 0.25 < meeting_place(bent[:2], 0.85)


def test_an_aim_beyond_both_ends_stays_at_an_end():
    looks = [Look(0.0, 700, 1000), Look(1.0, 800, 1000)]
    assert meeting_place(looks, 0.9) == 1 and meeting_place(looks, 0.6) == 0
    assert 0 <= meeting_place([Look(0.0, 700, 1000), Look(1.0, 700, 1000)], 0.8) <= 1


def test_held_out_prompts_are_used_for_nothing_else():
    args = config("none", certificate_prompts=100)
    left, held = hold_out(DATA, args)
    parts = [set(d["prompt"][:]) for d in (left, *held.values())]
    assert [len(p) for p in parts] == [92, 64, 100] and len(set().union(*parts)) == 256
    assert held["calibration_prompts"]["prompt"][:] != DATA["prompt"][:64]  # a file may be sorted
    assert hold_out(DATA, replace(args, seed=1))[0]["prompt"][:] != left["prompt"][:]
    assert hold_out(DATA, CMDPConfig.from_recipe("embedded")) == (DATA, {})
    with pytest.raises(ValueError, match="which has 256 different prompts, and none would"):
        hold_out(DATA, config("none", calibration_prompts=200, certificate_prompts=56))


def test_a_run_ends_between_two_students_and_alike_when_resumed(tmp_path):
    "The updates before are those of a run without; resumed, it ends bit for bit where it did."
    whole = trainer(tmp_path / "whole", save_steps=1, save_total_limit=None)
    whole.train()
    found = whole.run_info["calibration"]
    assert len(found["looks"]) == 4 and 0 <= found["place"] <= 1
    assert found["updates"] % 8 == 0 and whole.global_step == 3 + found["updates"]
    assert whole.strictness == 1 and json.loads(json.dumps(found)) == found
    names = {p.name for p in (tmp_path / "whole").glob("checkpoint-*")}
    assert names == {"checkpoint-1", "checkpoint-2", "checkpoint-3"}  # none in between two students
    again = trainer(tmp_path / "whole", save_steps=1, save_total_limit=None)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert again.run_info["calibration"] == found and weights(again).equal(weights(whole))
    plain = trainer(tmp_path / "plain", calibration_prompts=0, certificate_prompts=64)
    plain.train()  # the same training prompts
    lines = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("plain", "whole")]
    rows = [[json.loads(line) for line in text.splitlines()][:3] for text in lines]
    for a, b in zip(*rows):
        assert {**a, "seconds": 0} == {**b, "seconds": 0}
    assert "calibration" not in plain.run_info


def ended():
    signal.raise_signal(signal.SIGTERM)


def failing():
    raise FunctionFailed("the server is down")


BROKEN_OFF = {
    "a signal at a look": ("records", 1, ended, SystemExit),
    "a reward that fails": ("reward", 4, failing, FunctionFailed),
}
SHORT = dict(max_steps=1, calibration_prompts=8, per_device_train_batch_size=4, num_generations=2)


def lines_of(run) -> list[dict]:
    "metrics.jsonl without seconds."
    return [row | {"seconds": 0} for row in read_lines(run.output_dir / "metrics.jsonl")]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    "A run of one update and its calibration, stretches of two updates."
    run = trainer(tmp_path_factory.mktemp("unbroken"), **SHORT)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(calibrate, "STRETCH", 2)
        run.train()
    return run


@pytest.mark.parametrize("name", BROKEN_OFF)
def test_broken_off_it_is_begun_again(name, unbroken, tmp_path, monkeypatch, capsys):
    "The student is the one that was trained; train() again, here or later, ends as if unbroken."
    monkeypatch.setattr(calibrate, "STRETCH", 2)
    where, at, breaks, error = BROKEN_OFF[name]
    run, folder = trainer(tmp_path / "run", **SHORT), tmp_path / "run"
    inner, calls = getattr(run, where), []

    def spoilt(*given, **named):
        calls.append(run.global_step)
        if sum(step > 0 for step in calls) == at:
            breaks()
        return inner(*given, **named)

    monkeypatch.setattr(run, where, spoilt)
    with pytest.raises(error) as seen:
        run.train()
    said = "the calibration was broken off; resume_from_checkpoint='auto' begins it again from"
    assert f"{said} checkpoint-1\n" in capsys.readouterr().err and "was written" not in str(seen)
    assert [p.name for p in folder.glob("checkpoint-*")] == ["checkpoint-1"]
    assert (run.global_step, run.strictness, len(lines_of(run))) == (1, 1.0, 1)
    again = trainer(folder, **SHORT)
    again.begin("auto")
    assert weights(again).equal(weights(run))
    run.train()
    assert lines_of(run) == lines_of(unbroken) and weights(run).equal(weights(unbroken))
    run.save_checkpoint()  # as Ctrl-C in the evaluation after it does
    again = trainer(folder, **SHORT)
    again.train("auto")
    assert again.run_info["calibration"] == run.run_info["calibration"]
    assert weights(again).equal(weights(run))
    with pytest.raises(KeyboardInterrupt):  # the command ends as interrupted ones do
        leave_if_stopped({"steps": 1}, {"max_steps": 1, "calibration_prompts": 8})


def test_a_student_whose_budget_does_not_bind_stays_as_it_was(tmp_path, monkeypatch):
    "Lower prices bring nothing, and further updates only noise."
    monkeypatch.setattr(calibrate, "look_at", lambda run, data, place, *stream: Look(place, 60, 64))
    monkeypatch.setattr(calibrate, "STRETCH", 1)
    run = trainer(tmp_path / "run", method_kwargs={"target": 0.5})
    run.train()
    found = run.run_info["calibration"]
    assert (found["updates"], found["place"], len(found["looks"])) == (3, 0, 2)
    before = trainer(tmp_path / "run", method_kwargs={"target": 0.5}, max_steps=4)
    before.begin(str(tmp_path / "run" / "checkpoint-3"))
    assert weights(before).equal(weights(run))


SMALL = """
--max_steps 2 --per_device_train_batch_size 16 --n_eval 64 --calibration_prompts 64
--certificate_prompts 128 --device cpu --disable_tqdm
""".split()


def test_a_run_ends_with_its_certificate(tmp_path, capsys):
    "Printed, in summary.json and as a page, from prompts that nothing else has used."
    out = tmp_path / "run"
    assert main([*SMALL, "--method_kwargs", "target=0.5", "--output_dir", str(out)]) == 0
    summary, saved = (
        json.loads((out / f"{n}.json").read_text()) for n in ("summary", "certificate")
    )
    assert summary["certificate"] == saved["verdict"] in (CERTIFIED, REFUSED, UNDECIDED)
    assert summary["certificate_target"] == 0.5 and saved["n_offered"] == 128
    assert summary["certificate_says"].splitlines()[0] in capsys.readouterr().out
    config = json.loads((out / "config.json").read_text())
    assert summary["steps"] == 2 + config["calibration"]["updates"]


def test_too_few_prompts_certify_nothing(capsys):
    assert main([*SMALL, "--output_dir", "none"]) != 0  # 98% from 128
    assert "certificate_prompts=128: 128 prompts are too few" in capsys.readouterr().err


def test_a_run_that_was_stopped_is_not_calibrated(tmp_path):
    run = trainer(tmp_path / "stopped")
    run.callbacks.append(lambda trainer, metrics: trainer.stop())
    run.train()
    assert run.global_step == 1 and "calibration" not in run.run_info
