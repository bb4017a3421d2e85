"What a run says of itself: why it cannot learn, events, longer runs, the completions it wrote."

import json
import math
import re
from dataclasses import replace

import pytest
import torch
from conftest import flat, read_lines
from transformers import AutoModelForCausalLM, TrainerCallback

from cmdp_nbdev import distil
from cmdp_nbdev.cli import main
from cmdp_nbdev.config import CMDPConfig
from cmdp_nbdev.run import rate_factor
from cmdp_nbdev.watch import EVENTS, EarlyStopping, KeepBest, Watch, learning_problems

FINE = {
    "truncated_rate": 0.1,
    "frac_reward_zero_std": 0.5,
    "reward": 0.4,
    "accuracy": 0.4,
    "satisfaction_rate": 0.6,
    "spent_mean": 0.7,
    "budget": 0.8,
    "lam": 3.0,
    "grad_norm": 0.5,
    "learning_rate": 1e-3,
    "multiplier_mean": 3.0,
    "advantage_abs": 0.5,
    "loss": 0.1,
}


def rows_of(n=3, **changed):
    "The rows of `n` updates, fine but for what is changed."
    return [{"step": k + 1, **FINE, **changed} for k in range(n)]


CUT = {"truncated_rate": 1.0}
EQUAL = {"frac_reward_zero_std": 1.0}
FAR = {"satisfaction_rate": 0.0, "spent_mean": 309.0, "budget": 20.0}
STUCK = {"lam": 4.0, "satisfaction_rate": 0.3}
CANNOT = {
    "completions_end": (CUT, {}, "cut off at max_completion_length=32.*earns truncated_reward=0"),
    "rewards_differ": (EQUAL, {}, r"mean reward 0\.4\), so none is better.*num_generations"),
    "somebody_is_near_the_budget": (
        FAR,
        {},
        "309 nats on average where 20 are allowed, 15.4 times",
    ),
    "the_multiplier_has_room": (
        STUCK,
        {},
        "upper bound max_scale=4 for 200 updates while no more than 30%",
    ),
    "weights_move": ({"grad_norm": 0.0}, {}, "no weight moved.*mean multiplier 3"),
}
LIKE = dict(
    budget=20,
    gradient_accumulation_steps=1,
    max_completion_length=32,
    per_device_train_batch_size=128,
    num_generations=8,
)


@pytest.mark.parametrize("rule", CANNOT)
def test_why_a_run_cannot_learn(rule):
    "Each reason by itself, with its numbers, also from the rows that a file has."
    changed, settings, said = CANNOT[rule]
    rows = rows_of(200, **changed)
    for given in (rows, json.loads(json.dumps(rows))):
        found = learning_problems(given, CMDPConfig(**LIKE, **settings))
        assert list(found) == [rule]
        assert re.search(said, found[rule])


def course(first, then, n=5):
    "An update as `first` says, and `n` others as `then` says."
    rows = rows_of(n + 1, **then)
    return [{**rows[0], **first}, *rows[1:]]


BEGAN = {"length_mean": 20.0, "truncated_rate": 0.1, "reward": 0.4}
NOBODY = {"satisfaction_rate": 0.0, "spent_mean": 1.2}


@pytest.mark.parametrize(
    "rows, settings, rule, said",
    [
        (
            course(BEGAN, {"length_mean": 3.0, "reward": 0.4}),
            {},
            "completions_keep_their_length",
            r"shrunk from 20 tokens to 3, and earn no more than at first \(reward 0.4\).*aggregate",
        ),
        (
            course(BEGAN, {"length_mean": 31.0, "truncated_rate": 0.95}),
            {},
            "completions_keep_their_length",
            r"grown from 20 tokens to 31, and 95% of them are cut off at max_completion_length=32 "
            r"\(10% at first\).*length_cost",
        ),
        (
            rows_of(200, **NOBODY),
            {},
            "somebody_keeps_the_budget",
            "last 200 updates.*does not fall",
        ),
        # which may be well
        (course(BEGAN, {"length_mean": 3.0, "reward": 0.5}), {}, None, None),  # to the point
        (course(BEGAN, {"length_mean": 8.0, "reward": 0.1}), {}, None, None),
        (course(BEGAN, {"length_mean": 3.0}, 2), {}, None, None),  # two updates are no sign
        (course(BEGAN, {"length_mean": 31.0, "truncated_rate": 0.6}), {}, None, None),
        (course({**BEGAN, "truncated_rate": 0.7}, {"truncated_rate": 0.95}), {}, None, None),
        (rows_of(199, **NOBODY), {}, None, None),
        (rows_of(200, **NOBODY), {"method": "grpo"}, None, None),  # which has no budget
        (rows_of(200, **{**NOBODY, "satisfaction_rate": 0.01}), {}, None, None),
        (
            [{**r, "spent_mean": 2 - k / 200} for k, r in enumerate(rows_of(200, **NOBODY))],
            {},
            None,
            None,
        ),  # on its way
    ],
)
def test_collapses(rows, settings, rule, said):
    "Each with what to do; and runs that look like it and are none."
    found = learning_problems(rows, CMDPConfig(**{**LIKE, "budget": 1.0, **settings}))
    assert list(found) == ([rule] if rule else [])
    assert rule is None or re.search(said, found[rule])


@pytest.mark.parametrize(
    "rows, settings",
    [
        (rows_of(50), {}),
        (rows_of(2, **CUT), {}),  # two updates are no sign
        (rows_of(**CUT), {"truncated_reward": None}),  # they are scored like others
        (rows_of(**CUT, **EQUAL), {"method": "gkd"}),  # which reads no reward
        (rows_of(**EQUAL), {"distill_steps": 3}),
        (rows_of(**EQUAL), {"per_device_train_batch_size": 8}),  # three prompts are no sign
        (rows_of(**EQUAL, **{"accuracy": 1.0}), {}),  # all is learnt
        (rows_of(**FAR), {"method": "grpo"}),  # which has no budget
        ([{**r, "spent_mean": s} for r, s in zip(rows_of(**FAR), (309, 290, 260))], {}),
        (rows_of(199, **STUCK), {}),
        (rows_of(200, lam=4.0, satisfaction_rate=0.95), {}),
        ([{**r, "satisfaction_rate": k / 300} for k, r in enumerate(rows_of(200, lam=4.0))], {}),
        ([{"step": 0, "eval_accuracy": 0.1}], {}),
        (rows_of(4, **FAR), {"distill_steps": 10}),  # it imitates yet
        ([], {}),
    ],
)
def test_a_run_that_may_learn_is_left_alone(rows, settings):
    assert learning_problems(rows, CMDPConfig(**{**LIKE, **settings})) == {}


def test_the_reason_names_what_to_change():
    "Driven away by a learning rate, and no verdict at all, are problems of their own."
    rows = rows_of(4, **FAR)
    rows[0]["spent_mean"] = 0.1
    found = learning_problems(rows, CMDPConfig(**LIKE, learning_rate=1.5e-3))
    assert "at the first update they spent 0.1" in found["somebody_is_near_the_budget"]
    assert "lower learning_rate (it is 0.0015)" in found["somebody_is_near_the_budget"]
    silent = rows_of(**EQUAL, reward=None, accuracy=None)
    assert "answered None" in learning_problems(silent, CMDPConfig(**LIKE))["rewards_differ"]
    masked = CMDPConfig(**LIKE, mask_truncated_completions=True)
    assert "out of the loss" in learning_problems(rows_of(**CUT), masked)["completions_end"]
    still = learning_problems(rows_of(learning_rate=0.0), CMDPConfig(**LIKE))["weights_move"]
    assert "learning rate was 0 in the last 3 updates" in still


def test_a_reason_is_said_once_and_again_at_the_end():
    watch = Watch(CMDPConfig(**LIKE))
    said = [watch.see(row) for row in rows_of(5, **CUT)]
    assert [len(s) for s in said] == [0, 0, 1, 0, 0] and len(watch.problems) == 1
    assert watch.see(rows_of(5, **CUT)[-1]) == []  # the same update again
    watch.see({**FINE, "step": 6})
    assert not watch.problems
    watch.see_again(rows_of(9, **CUT))
    assert len(watch.see({**FINE, **CUT, "step": 10})) == 1  # new to who reads it now


def nothing(completions):
    "Nothing is ever right."
    return [0.0] * len(completions)


def test_a_run_says_so(make_trainer):
    "After a few updates, and at its end; where there is no bar, as warnings."
    trainer = make_trainer(reward_funcs=nothing, max_steps=5)
    with pytest.warns(UserWarning) as said:
        trainer.train()
    lines = [str(w.message) for w in said if "earned the same" in str(w.message)]
    assert [line.split(":")[0] for line in lines] == ["update 4", "after 5 updates"]
    assert [line for line in trainer.problems if "earned the same" in line]


# ------------------------------------------------------------------------ events


class Diary:
    "Writes down what it is told."

    def __init__(self):
        self.told = []

    def __getattr__(self, name):
        if name not in EVENTS:
            raise AttributeError(name)
        return lambda trainer, metrics: self.told.append((name, metrics.get("step")))


OFTEN = dict(max_steps=4, eval_steps=2, save_steps=2, eval_on_start=True)
TOLD = [
    ("on_evaluate", 0),
    ("on_train_begin", 0),
    ("on_step_end", 1),
    ("on_evaluate", 2),
    ("on_save", 2),
    ("on_step_end", 2),
    ("on_step_end", 3),
    ("on_evaluate", 4),
    ("on_save", 4),
    ("on_step_end", 4),
    ("on_train_end", 4),
]


def test_events(make_trainer):
    "In their order, beside a function; an evaluation's numbers are there."
    diary, seen = Diary(), []
    trainer = make_trainer(**OFTEN, callbacks=[diary, lambda t, metrics: seen.append(metrics)])
    trainer.train()
    assert diary.told == TOLD
    assert [m["step"] for m in seen] == [1, 2, 3, 4] and "eval_accuracy" in seen[1]


@pytest.mark.parametrize("event", ["on_evaluate", "on_save", "on_step_end"])
def test_what_raises_is_not_told_again(event, make_trainer):
    "The run goes on with what was still to be done."
    diary, seen = Diary(), []

    class Fails:
        "Raises once."

    def fail(self, trainer, metrics):
        seen.append(metrics["step"])
        if metrics["step"] == 2:
            raise RuntimeError("mine")

    setattr(Fails, event, fail)
    trainer = make_trainer(**OFTEN, callbacks=[diary, Fails()])
    with pytest.raises(RuntimeError, match="mine"):
        trainer.train()
    trainer.train()
    assert seen.count(2) == 1
    assert [t for t in diary.told if t[0] != "on_train_begin"] == [
        t for t in TOLD if t[0] != "on_train_begin"
    ]
    assert [m["step"] for m in read_lines(trainer.output_dir / "metrics.jsonl")] == [0, 1, 2, 3, 4]


class Epochs:
    "An event that there is not."

    def on_epoch_end(self, trainer, metrics):
        "Never."


@pytest.mark.parametrize(
    "callbacks, said",
    [
        (print, "callbacks must be a list, got <built-in function print>"),
        ([3], r"callbacks\[0\]: 3 is neither a function \(trainer, metrics\) nor"),
        ([print, lambda metrics: None], r"callbacks\[1\]: <lambda> cannot be called with"),
        ([EarlyStopping], r"EarlyStopping is a class; give an object, EarlyStopping\(...\)"),
        ([TrainerCallback()], "made for transformers' Trainer"),
        ([Epochs()], "Epochs has on_epoch_end, which is no event; events are on_train_begin"),
        ([EarlyStopping()], "EarlyStopping looks at evaluations, and eval_steps=0 makes none"),
    ],
)
def test_what_is_no_callback_is_refused(callbacks, said, make_trainer):
    with pytest.raises(ValueError, match=said):
        make_trainer(callbacks=callbacks)


@pytest.mark.parametrize(
    "wrong, said",
    [
        (dict(mode="up"), "mode must be max or min, got 'up'"),
        (dict(patience=0), "patience must be a whole number >= 1, got 0"),
        (dict(min_delta=-1), "min_delta must be a finite number >= 0, got -1"),
    ],
)
def test_settings_of_early_stopping(wrong, said):
    with pytest.raises(ValueError, match=said):
        EarlyStopping(**wrong)


@pytest.mark.parametrize(
    "settings, values, stopped",
    [
        (dict(patience=2), [0.5, 0.7, 0.6, 0.7], [0, 0, 0, 1]),
        (dict(patience=2, mode="min"), [0.5, 0.4, 0.3, 0.4], [0, 0, 0, 0]),
        (dict(patience=1, min_delta=0.1), [0.5, 0.55], [0, 1]),
        (dict(patience=2), [None, math.nan], [0, 1]),  # no verdict is no progress
    ],
)
def test_early_stopping(settings, values, stopped):
    class Run:
        "As far as the callback looks."

        args, is_main_process, stops = CMDPConfig(budget=1, disable_tqdm=True), True, 0

        def stop(self):
            self.stops += 1

    run, stopping = Run(), EarlyStopping("eval_x", **settings)
    for step, (value, expected) in enumerate(zip(values, stopped)):
        stopping.on_evaluate(run, {"step": step, "eval_x": value})
        assert run.stops == expected
    with pytest.raises(ValueError, match="'eval_x' is unknown; choose one of eval_y$"):
        stopping.on_evaluate(run, {"step": 9, "eval_y": 1.0, "loss": 0.0})


FEW = dict(per_device_train_batch_size=4, num_generations=2, max_completion_length=12)


def watching():
    "Both callbacks that ship; `length_mean` moves in a few updates."
    return [EarlyStopping("eval_kl_mean", 9, mode="min"), KeepBest("eval_kl_mean", mode="min")]


def state_of(trainer):
    "Weights, metrics without seconds, states of callbacks."
    lines = read_lines(trainer.output_dir / "metrics.jsonl")
    lines = [{k: v for k, v in line.items() if k != "seconds"} for line in lines]
    return flat(trainer.student), lines, [c.state_dict() for c in trainer.callbacks]


def test_the_best_student_is_kept_and_a_resumed_run_goes_on(make_trainer, tmp_path):
    "As if it had never stopped: what was best, and the students; watching changes nothing."
    settings = dict(max_steps=5, eval_steps=1, save_steps=3, learning_rate=3e-3, **FEW)
    alone = make_trainer(**settings, output_dir=str(tmp_path / "alone"))
    alone.train()
    whole = make_trainer(**settings, output_dir=str(tmp_path / "whole"), callbacks=watching())
    whole.train()
    stop = [*watching(), lambda t, m: m["step"] == 4 and t.stop()]
    make_trainer(**settings, callbacks=stop).train()
    again = make_trainer(**settings, callbacks=watching())
    again.train("auto")
    (weights, lines, states), (w, other, s) = state_of(whole), state_of(again)
    assert torch.equal(weights, w) and lines == other and states == s
    assert torch.equal(weights, flat(alone.student))
    found = json.loads((whole.output_dir / "best" / "evaluation.json").read_text())
    kl = [line["eval_kl_mean"] for line in lines]
    assert found["step"] == kl.index(min(kl)) + 1 == states[0]["step"]
    assert found["eval_kl_mean"] == min(kl) and found["metric"] == "eval_kl_mean"
    best = [AutoModelForCausalLM.from_pretrained(t.output_dir / "best") for t in (whole, again)]
    assert torch.equal(*map(flat, best))


def test_a_run_that_was_stopped_early_stays_so(make_trainer):
    "Also in a new process; a larger patience lets it go on."
    settings = dict(max_steps=4, eval_steps=1, save_steps=1, reward_funcs=nothing, **FEW)
    stopping = EarlyStopping("eval_accuracy", patience=1)
    trainer = make_trainer(**settings, callbacks=[stopping])
    assert trainer.train()["step"] == trainer.train()["step"] == 2
    again = make_trainer(**settings, callbacks=[EarlyStopping("eval_accuracy", patience=1)])
    assert again.train("auto")["step"] == 2
    longer = make_trainer(**settings, callbacks=[EarlyStopping("eval_accuracy", patience=2)])
    assert longer.train("auto")["step"] == 3


# ------------------------------------------------------------------ longer runs


def test_a_longer_run_keeps_the_last_learning_rate(make_trainer, tmp_path):
    "Recorded; what was planned stays; killed in its second stretch it is the same; not shorter."
    short = dict(max_steps=3, save_steps=1, lr_scheduler_type="linear", learning_rate=1e-3, **FEW)
    make_trainer(**short).train()
    long = {**short, "max_steps": 5}
    whole = make_trainer(**long)
    whole.train("auto")
    used = [m["learning_rate"] for m in read_lines(whole.output_dir / "metrics.jsonl")]
    assert used == pytest.approx([1e-3, 2e-3 / 3, 1e-3 / 3, 1e-3 / 3, 1e-3 / 3])
    stretches = json.loads((whole.output_dir / "config.json").read_text())["stretches"]
    assert [(s["from"], s["max_steps"]) for s in stretches] == [(0, 3), (3, 5)]
    assert stretches[1]["learning_rate"] == used[3] and stretches[0]["learning_rate"] == 1e-3
    again = make_trainer(**long)
    again.train(tmp_path / "run" / "checkpoint-4")
    assert torch.equal(flat(again.student), flat(whole.student))
    assert again.stretches == whole.stretches
    further = make_trainer(**{**short, "max_steps": 6})
    assert further.train("auto")["learning_rate"] == used[3]
    assert [s["max_steps"] for s in further.stretches] == [3, 5, 6]
    with pytest.raises(ValueError, match=r"max_steps was 6, now 5 \(a run can be made longer"):
        make_trainer(**long).train("auto")


def test_raised_in_the_middle(make_trainer):
    "Of what was planned nothing changes."
    short = dict(max_steps=4, save_steps=1, learning_rate=1e-3, **FEW)
    trainer = make_trainer(**short, callbacks=[lambda t, m: m["step"] == 2 and t.stop()])
    trainer.train()
    longer = make_trainer(**{**short, "max_steps": 6})
    longer.train("auto")
    used = [m["learning_rate"] for m in read_lines(longer.output_dir / "metrics.jsonl")]
    share = rate_factor(longer.args, 4)
    assert used == pytest.approx([1e-3 * share(k) for k in (0, 1, 2, 3, 3, 3)])


def test_a_checkpoint_says_nothing(make_trainer, capsys, caplog):
    "Tied weights are written once; a notice about them broke the bar at every checkpoint."
    trainer = make_trainer(max_steps=1, save_steps=1, **FEW)
    assert trainer.student.config.tie_word_embeddings
    trainer.train()
    assert "shared tensor" not in caplog.text + "".join(capsys.readouterr())


# ------------------------------------------------------------------ completions


def half(completions):
    "A verdict on every second completion."
    return [None if k % 2 else 1.0 for k in range(len(completions))]


def test_completions_are_kept(make_trainer, monkeypatch, capsys):
    "Every logging_steps, strict JSON; a few are shown."
    monkeypatch.setenv("TQDM_DISABLE", "")
    trainer = make_trainer(
        reward_funcs=half,
        max_steps=4,
        log_completions=True,
        logging_steps=2,
        num_completions_to_print=3,
        disable_tqdm=None,
    )
    last = trainer.train()
    files = sorted(p.name for p in (trainer.output_dir / "completions").iterdir())
    assert files == ["completions_00002.jsonl", "completions_00004.jsonl"]
    rows = read_lines(trainer.output_dir / "completions" / files[1])
    assert len(rows) == 16 and {r["step"] for r in rows} == {4}
    assert sum(r["spent"] for r in rows) / 16 == pytest.approx(last["spent_mean"])
    assert all(r["reward"] is None for r in rows[1::2] if r["terminated"])
    said = capsys.readouterr().err
    assert "update 4, 3 of 16 completions:" in said and said.count(" → ") == 6


class Bar:
    "What a progress bar is given."

    def __init__(self):
        self.shown = {}

    def update(self):
        "One more."

    def set_postfix(self, shown, refresh):
        self.shown = shown


def test_the_bar_says_how_fast_it_goes(make_trainer):
    "Numbers of the machine are in the bar and in the trackers, not in metrics.jsonl."
    trainer, bar = make_trainer(logging_steps=2), Bar()
    metrics = trainer.step()
    trainer.show(bar)
    assert not bar.shown
    trainer.step()
    trainer.show(bar)
    assert list(bar.shown) == ["reward", "kept", "kl_mean", "lr", "tok/s", "memory_gib"]
    assert all(float(number) >= 0 for number in bar.shown.values())
    pace = trainer.pace(metrics)
    assert pace["tokens_per_second"] * metrics["seconds"] == pytest.approx(
        metrics["length_mean"] * 16
    )
    assert not set(pace) & set(metrics) and trainer.pace({"step": 0}) == {}


def test_a_rate_is_over_what_has_a_verdict(make_trainer):
    "In updates, evaluations, and with its count in the card."
    trainer = make_trainer(reward_funcs=half, max_steps=1, truncated_reward=None)
    metrics, found = trainer.train(), trainer.evaluate()
    assert metrics["n_verdict"] == 8 and found["n_verdict"] == found["n_eval"] / 2
    assert metrics["accuracy"] == pytest.approx(1 - metrics["truncated_rate"], abs=0.3)
    assert found["accuracy"] > 0.5  # not halved
    assert "16 completions, 8 of them with a verdict" in trainer.card()


def test_the_command_says_it_too(tmp_path, monkeypatch, capsys):
    "Why nothing was learnt, where the nats went, and how many had a verdict."
    chains = replace(distil.EMBEDDED["chains"], reward=nothing)
    monkeypatch.setitem(distil.EMBEDDED, "chains", chains)
    out = tmp_path / "run"
    options = "--max_steps 4 --n_eval 8 --per_device_train_batch_size 32 --num_generations 4"
    options += " --calibration_prompts 0 --certificate_prompts 0"
    assert main(f"--output_dir {out} --device cpu --eval_on_start false {options}".split()) == 0
    summary = json.loads((out / "summary.json").read_text())
    (problem,) = [p for p in summary["problems"] if "earned the same" in p]
    assert sum(row["share"] for row in summary["nats_by_position"]) == pytest.approx(1)
    printed = capsys.readouterr().out
    assert f"after 4 updates: {problem}" in printed
    top = summary["nats_by_token"][0]
    assert f"{json.dumps(top['token'])}" in printed and f"{top['nats']:.2f}" in printed
    assert "nats_by_token" not in (out / "report.html").read_text()
    assert "8 held-out prompts (3 with a verdict), " in distil.headline(summary | {"n_verdict": 3})


def test_a_second_ctrl_c_is_one_line(monkeypatch, capsys):
    "The first one ends the training, see distil.train_until_stopped; the next ends the command."

    def pressed(*unused):
        raise KeyboardInterrupt

    monkeypatch.setattr(distil, "distil", pressed)
    assert main([]) == 130
    assert capsys.readouterr().err == "cmdp-distill: interrupted\n"
