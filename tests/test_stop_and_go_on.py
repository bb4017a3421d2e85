"A run that is stopped or interrupted goes on as if nothing had happened; what it writes."

import json
import math
import signal
from dataclasses import dataclass, replace

import pytest
import torch
from accelerate import tracking
from conftest import embedded, flat, read_lines

from cmdp_nbdev import cli, distil
from cmdp_nbdev.budget import Budget
from cmdp_nbdev.methods import register_method
from cmdp_nbdev.objective import Signal
from cmdp_nbdev.plot import training_curves
from cmdp_nbdev.reward import UPDATE
from cmdp_nbdev.run import uninterrupted
from cmdp_nbdev.widgets.microscope import _answer
from cmdp_nbdev.widgets.panel import judge, record_trace

TINY = dict(
    max_steps=3,
    per_device_train_batch_size=4,
    gradient_accumulation_steps=2,
    num_generations=4,
    eval_steps=2,
    save_steps=2,
)


class Once:
    "Around a method: an exception before the call that `when` says, once."

    def __init__(self, owner, name, call, error=KeyboardInterrupt):
        self.owner, self.name, self.inner = owner, name, getattr(owner, name)
        self.left, self.error = call, error
        setattr(owner, name, self)

    def __call__(self, *args, **kwargs):
        self.left -= 1
        if self.left == 0:
            raise self.error(self.name)
        return self.inner(*args, **kwargs)


def metrics_of(trainer) -> list[dict]:
    "The run's lines, without seconds."
    lines = read_lines(trainer.output_dir / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


@dataclass
class Left:
    "What a run left."

    weights: torch.Tensor
    metrics: list[dict]
    method_state: dict
    checkpoints: set[str]


def left_by(trainer) -> Left:
    "What a run has left."
    folders = {p.name for p in trainer.output_dir.glob("checkpoint-*")}
    return Left(flat(trainer.student), metrics_of(trainer), trainer.method_state, folders)


def same(trainer, whole: Left) -> bool:
    "Whether a run has left the same, to the last digit; Ctrl-C leaves a checkpoint more."
    left = left_by(trainer)
    return (
        torch.equal(left.weights, whole.weights)
        and (left.metrics, left.method_state) == (whole.metrics, whole.method_state)
        and left.checkpoints >= whole.checkpoints
    )


UNINTERRUPTED = []


@pytest.fixture
def whole(make_trainer, tmp_path):
    "What an uninterrupted run leaves."
    if not UNINTERRUPTED:
        trainer = make_trainer(**TINY, output_dir=str(tmp_path / "whole"))
        trainer.train()
        UNINTERRUPTED.append(left_by(trainer))
    return UNINTERRUPTED[0]


# where, and at which call; an update has two micro-batches, scored twice each
PHASES = {
    "sampling": ("sample", 2),
    "reward": ("reward", 2),
    "scoring": ("score", 6),
    "the method's answer": ("signal", 2),
    "between micro-batches": ("score", 8),
    "after the method's answer": ("_measure", 2),
    "evaluation": ("records", 1),
    "log": ("log", 2),
    "checkpoint": ("save_checkpoint", 1),
}


@pytest.mark.parametrize("phase", PHASES)
def test_an_update_is_all_or_nothing(phase, make_trainer, whole):
    "Weights, metrics, the method's state and checkpoints are those of an uninterrupted run."
    seen = []
    trainer = make_trainer(**TINY, callbacks=[lambda trainer, m: seen.append(m["step"])])
    name, call = PHASES[phase]
    Once(trainer, name, call)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert trainer.train()["step"] == 3
    assert seen == [1, 2, 3]
    assert same(trainer, whole)


@pytest.mark.parametrize("inside, call", [("backward", 4), ("clip_grad_norm_", 2)])
def test_an_error_in_the_backward_pass(inside, call, make_trainer, whole):
    "Gradients of the first micro-batch do not enter the update that is made instead."
    trainer = make_trainer(**TINY)
    Once(trainer.accelerator, inside, call, torch.OutOfMemoryError)
    with pytest.raises(torch.OutOfMemoryError):
        trainer.train()
    trainer.train()
    assert same(trainer, whole)


def test_an_error_between_two_steps_of_the_optimiser(make_trainer):
    "The first step cannot be taken back: nothing is trained on top of it; a checkpoint goes on."
    settings = {**TINY, "num_iterations": 2}
    trainer = make_trainer(**settings)
    Once(trainer.accelerator, "backward", 11, torch.OutOfMemoryError)  # of update 3
    with pytest.raises(torch.OutOfMemoryError):
        trainer.train()
    for go_on in (trainer.train, trainer.step):
        with pytest.raises(
            RuntimeError, match="update 3 broke off after 1 of its num_iterations=2"
        ):
            go_on()
    again = make_trainer(**settings)
    assert again.train("auto")["step"] == 3 and again.half_made == 0


@pytest.fixture
def terminal():
    "Ctrl-C as in a terminal, also where the tests run in the background and inherit another."
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("iterations", [1, 2])
def test_ctrl_c_while_the_weights_move_waits(iterations, make_trainer, tmp_path, terminal):
    "Half a step of the optimiser cannot be taken back, so the update is finished first."
    settings = {**TINY, "num_iterations": iterations, "eval_steps": 0}
    trainer = make_trainer(**settings, output_dir=str(tmp_path / "whole"))
    trainer.train()
    whole, trainer = left_by(trainer), make_trainer(**settings)
    step = trainer.optimizer.step

    def pressed():
        if trainer.global_step == 1:
            trainer.optimizer.step = step
            signal.raise_signal(signal.SIGINT)
        step()

    trainer.optimizer.step = pressed
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert trainer.global_step == 2
    trainer.train()
    assert same(trainer, whole)


def test_ctrl_c_in_an_optimiser_that_has_not_moved_anything(make_trainer, whole):
    trainer = make_trainer(**TINY)
    Once(trainer.optimizer, "step", 2)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.train()
    assert same(trainer, whole)


def test_ctrl_c_is_as_before_outside_of_the_block(terminal):
    with uninterrupted(), uninterrupted():
        pass
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(ValueError, match="mine"), uninterrupted():
        raise ValueError("mine")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_callback_that_raises_is_not_called_again(make_trainer, whole):
    "It would raise again, and the run could never go on."
    seen = []

    def callback(trainer, metrics):
        seen.append(metrics["step"])
        if metrics["step"] == 2:
            raise RuntimeError("mine")

    trainer = make_trainer(**TINY, callbacks=[callback])
    with pytest.raises(RuntimeError, match="mine"):
        trainer.train()
    assert trainer.train()["step"] == 3 and seen == [1, 2, 3]
    assert same(trainer, whole)


@pytest.mark.parametrize("name", ["write_config", "open_trackers", "evaluate"])
def test_a_beginning_that_was_interrupted(name, make_trainer):
    "The first evaluation is made, once, and the settings are written."
    trainer = make_trainer(max_steps=1, eval_on_start=True)
    Once(trainer, name, 1)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.train()
    assert [m["step"] for m in metrics_of(trainer)] == [0, 1]
    assert (trainer.output_dir / "config.json").exists()


def test_killed_before_the_first_checkpoint(make_trainer):
    "The evaluation before the first update is in the log once, also of the second start."
    settings = dict(max_steps=1, eval_on_start=True, resume_from_checkpoint="auto")
    make_trainer(**settings).begin("auto")
    trainer = make_trainer(**settings)
    trainer.train()
    assert [m["step"] for m in metrics_of(trainer)] == [0, 1]


def test_stop_and_train_again(make_trainer, whole):
    "By a callback, twice; before the training began it stops nothing; then steps by hand."
    trainer = make_trainer(**TINY, callbacks=[lambda trainer, m: m["step"] < 3 and trainer.stop()])
    trainer.stop()
    assert trainer.train()["step"] == 1
    assert trainer.step()["step"] == 2
    assert trainer.train()["step"] == 3
    assert same(trainer, whole)


def test_train_after_the_end_returns_the_last_update(make_trainer):
    "Of this process, and of a run that is resumed after its end."
    settings = {"max_steps": 2, "save_steps": 2}
    trainer = make_trainer(**settings)
    assert trainer.train() == trainer.train() == read_lines(trainer.output_dir / "metrics.jsonl")[1]
    assert make_trainer(**settings).train("auto") == trainer.last


class Board(tracking.GeneralTracker):
    "A tracker that cannot be written to once it is finished, as Weights & Biases cannot."

    name = "tensorboard"
    requires_logging_directory = False
    runs = []

    def __init__(self, run_name, **unused):
        super().__init__()
        self.rows, self.finished = [], False

    def start(self):
        Board.runs.append(self)

    @property
    def tracker(self):
        return self

    def store_init_configuration(self, values):
        "Nothing."

    def log(self, values, step=None, **unused):
        if self.finished:
            raise RuntimeError("Run is finished")
        assert not any(math.isnan(v) for v in values.values())
        self.rows.append(step)

    def finish(self):
        self.finished = True


@pytest.fixture
def boards(monkeypatch):
    "Every `Board` that was started."
    pytest.importorskip("tensorboard")
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "tensorboard", Board)
    monkeypatch.setattr(Board, "runs", [])
    return Board.runs


def test_trackers_are_open_until_the_end(make_trainer, boards):
    "A stop in between leaves them open; what comes after the end opens one anew."
    stop = [lambda trainer, m: m["step"] == 1 and trainer.stop()]
    trainer = make_trainer(max_steps=3, report_to="tensorboard", callbacks=stop)
    trainer.train()
    assert [b.finished for b in boards] == [False]
    trainer.train()
    assert [(b.rows, b.finished) for b in boards] == [([1, 2, 3], True)]
    assert trainer.train()["step"] == 3 and len(boards) == 1
    trainer.step()
    assert [b.rows for b in boards] == [[1, 2, 3], [4]]
    trainer.evaluate()
    assert [b.rows for b in boards] == [[1, 2, 3], [4, 4]]


def test_a_tracker_that_fails_loses_no_line(make_trainer, boards, monkeypatch):
    "The update was made; its line is written when the run goes on."
    trainer = make_trainer(max_steps=2, report_to="tensorboard")
    trainer.begin()
    Once(boards[0], "log", 1, ConnectionError)
    with pytest.raises(ConnectionError):
        trainer.train()
    trainer.train()
    assert [m["step"] for m in metrics_of(trainer)] == [1, 2]
    assert boards[0].rows == [1, 2]


def test_missing_numbers_do_not_reach_trackers(make_trainer, boards):
    "They get what there is."
    trainer = make_trainer(reward_funcs=never, report_to="tensorboard", max_steps=1)
    trainer.train()
    assert boards[0].rows == [1]


def never(completions):
    "A reward that never applies."
    return [None] * len(completions)


def test_tensorboard_goes_on(make_trainer):
    "The real one, in the same folder."
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    stop = [lambda trainer, m: m["step"] == 1 and trainer.stop()]
    trainer = make_trainer(max_steps=2, report_to="tensorboard", callbacks=stop)
    trainer.train()
    trainer.train()
    board = reader.EventAccumulator(str(trainer.output_dir / "cmdp_nbdev"))
    board.Reload()
    assert [event.step for event in board.Scalars("kl_mean")] == [1, 2]


def test_the_method_answers_without_moving_its_state(make_trainer):
    "Looking at an answer, or making an update again, does not advance a multiplier."
    trainer = make_trainer(method="dual", max_steps=1)
    trainer.step()
    before = dict(trainer.method_state)
    Once(trainer, "update", 1)
    with pytest.raises(KeyboardInterrupt):
        trainer.step()
    assert trainer.method_state == before != {}


def test_the_learning_rate_is_the_one_that_was_used(make_trainer):
    trainer = make_trainer(learning_rate=1e-3, warmup_steps=2)
    used, step = [], trainer.optimizer.step

    def noting():
        used.append(trainer.optimizer.param_groups[0]["lr"])
        step()

    trainer.optimizer.step = noting
    trainer.train()
    assert [m["learning_rate"] for m in metrics_of(trainer)] == used == [0, 5e-4]


# ------------------------------------------------------------- what is written


def strict(path) -> list:
    "The JSON lines of a file; NaN and Infinity are none."
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines() if path.suffix == ".jsonl" else [text]
    return [json.loads(line, parse_constant=pytest.fail) for line in lines]


def test_strict_json_in_every_file(make_trainer):
    "Rewards of None, no limit: null and a text, and the run is resumed as the same."
    settings = dict(reward_funcs=[never, never], budget=math.inf, method="grpo", **TINY)
    trainer = make_trainer(**settings, epsilon_high=math.inf)
    assert math.isnan(trainer.train()["reward"])
    lines = strict(trainer.output_dir / "metrics.jsonl")
    assert [line["accuracy"] for line in lines] == [None] * 3
    assert [line["rewards/never_2"] for line in lines] == [None] * 3
    assert lines[1]["eval_accuracy"] is None and lines[1]["eval_n_verdict"] == 0
    assert strict(trainer.output_dir / "config.json")[0]["budget"] == "inf"
    checkpoint = trainer.output_dir / "checkpoint-2"
    states = {path.name: strict(path)[0] for path in checkpoint.glob("*.json")}
    assert states["trainer_state.json"]["args"]["epsilon_high"] == "inf"
    other = dict(max_steps=2, output_dir=str(trainer.output_dir / "other"))
    with pytest.raises(ValueError, match="max_steps was 3, now 2 .a run can be made"):
        make_trainer(**{**settings, **other}, epsilon_high=math.inf).train(checkpoint)
    make_trainer(**settings, epsilon_high=math.inf).train("auto")
    training_curves(trainer.output_dir / "metrics.jsonl")


def test_the_command_without_verdicts(tmp_path, monkeypatch, capsys, boards):
    "null in the files, nothing in the table; the final evaluation reaches the tracker."
    chains = replace(distil.EMBEDDED["chains"], reward=never)
    monkeypatch.setitem(distil.EMBEDDED, "chains", chains)
    out = tmp_path / "run"
    options = "--max_steps 1 --n_eval 8 --per_device_train_batch_size 8 --report_to tensorboard"
    options += " --calibration_prompts 0 --certificate_prompts 0"
    assert cli.main(f"--output_dir {out} --device cpu --budget inf {options}".split()) == 0
    summary = strict(out / "summary.json")[0]
    assert (summary["accuracy"], summary["start_accuracy"], summary["n_verdict"]) == (None, None, 0)
    assert {r["correct"] for r in strict(out / "eval.jsonl")} == {None}
    assert "accuracy" in distil.format_summary(summary | {"budget": 1.0})
    assert "nan" not in capsys.readouterr().out
    assert [(b.rows, b.finished) for b in boards] == [([0, 1, 1], True)]


def test_reward_functions_as_trl_calls_them(make_trainer):
    "The state is that of the update, what is logged is a metric, and coroutines are awaited."
    seen = []

    async def shaped(completions, trainer_state, log_metric, **columns):
        seen.append((trainer_state.global_step, trainer_state.max_steps))
        log_metric("half", 0.5)
        return [1.0] * len(completions)

    trainer = make_trainer(reward_funcs=[shaped, shaped])
    trainer.train()
    assert seen[-4:] == [(0, 2)] * 2 + [(1, 2)] * 2
    line = read_lines(trainer.output_dir / "metrics.jsonl")[-1]
    assert line["half"] == 0.5 and line["rewards/shaped"] == line["rewards/shaped_2"]
    trainer.evaluate()
    assert seen[-1] == (2, 2)
    assert "`shaped`, `shaped_2`" in trainer.card()


def test_the_log_has_the_names_that_are_kept_for_it(make_trainer):
    "`log_metric` refuses what an update holds anyway."
    found = set(make_trainer(method="grpo").step())
    assert found == set(UPDATE) - {"n_verdict", "sampling_gap", "skipped"}


def test_a_method_does_not_overwrite_the_log(own_methods):
    "Its own numbers have names of their own."

    @register_method("loud")
    def loud(batch, budget, state):
        "Logs an accuracy."
        zeros = torch.zeros_like(batch.cost)
        return Signal(zeros, zeros, {"accuracy": 7.0})

    with pytest.raises(ValueError, match="'loud' logs accuracy, which an update has already"):
        embedded(method="loud")


def test_a_card_without_verdicts(make_trainer):
    trainer = make_trainer(reward_funcs=never)
    trainer.evaluate()
    assert "| accuracy | no verdict |" in trainer.card() and "nan" not in trainer.card()


def test_widgets_without_some_verdicts(make_trainer):
    "The panel's rates are those of the summary, and the microscope says what is known."

    def second(completions):
        return [None if i % 2 else 1.0 for i in range(len(completions))]

    result, records = make_trainer(reward_funcs=second, budget=1.0).evaluate(return_records=True)
    found = judge(record_trace("mine", records, Budget(1.0)), 1.0)
    for name in ("accuracy", "accuracy_low", "accuracy_within_budget"):
        assert found[name] == pytest.approx(result[name])
    assert _answer(records[0]) in ("right", "wrong") and _answer(records[1]) == "no verdict"
