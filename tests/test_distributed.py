"Two processes are one run, with one set of files; a student in two halves is the same student."

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, gradients_of_step, read_lines, relative
from safetensors.torch import load_file

from cmdp_nbdev.budget import Budget
from cmdp_nbdev.mdp import Rollout
from cmdp_nbdev.reward import length_cost
from cmdp_nbdev.task import chain_reward

pytest.importorskip("trl")
pytestmark = pytest.mark.slow

GRADIENT = 1e-5


def two_processes(mode: str, out: Path) -> subprocess.CompletedProcess:
    "accelerate launch, with one of the files of recipes/accelerate."
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "CUDA_VISIBLE_DEVICES": "",
        "DS_ACCELERATOR": "cpu",
    }
    config = ROOT / "recipes" / "accelerate" / f"{mode}.yaml"
    launch = ["-m", "accelerate.commands.launch", "--config_file", str(config)]
    local = ["--num_processes", "2", "--main_process_port", "0"]
    script = [str(ROOT / "tests" / "two_processes.py"), mode, str(out)]
    command = [sys.executable, *launch, *local, *script]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def seen(out: Path, name: str) -> list[dict]:
    "What both processes kept under a name."
    return [torch.load(out / f"{name}{rank}.pt", weights_only=False) for rank in (0, 1)]


@pytest.fixture(scope="module")
def ddp(tmp_path_factory):
    "The folder of runs in which each process has the whole student, and how they ended."
    out = tmp_path_factory.mktemp("ddp")
    done = two_processes("ddp", out)
    assert (out / "rank0.pt").exists() and (out / "rank1.pt").exists(), done.stderr[-4000:]
    return out, done


def test_both_ranks_agree(ddp):
    "Ranks that drift apart train two students, of which one is saved."
    a, b = seen(ddp[0], "rank")
    assert a["world"] == b["world"] == 2 and not a["sharded"]
    for one, two in zip(a["gradients"], b["gradients"], strict=True):
        assert torch.equal(one, two)
    assert len(a["metrics"]) == 2
    for one, two in zip(a["metrics"], b["metrics"], strict=True):
        assert {**one, "seconds": 0} == {**two, "seconds": 0}
    assert a["evaluation"] == b["evaluation"] and a["evaluation"]["n_eval"] == 15


def test_an_evaluation_is_in_the_order_of_its_prompts(ddp, held_out):
    "Fifteen prompts on two processes: one answers a prompt twice, which is counted once."
    a, b = seen(ddp[0], "rank")
    assert a["prompts"] == b["prompts"] == held_out["prompt"][:15]


def test_files_are_written_once(ddp):
    "One line per update, one folder per checkpoint, with the random state of every rank."
    out = ddp[0]
    lines = read_lines(out / "run" / "metrics.jsonl")
    assert [m["step"] for m in lines] == [0, 1, 2] and lines[1:] == seen(out, "rank")[0]["metrics"]
    names = {p.name for p in (out / "run" / "checkpoint-2").iterdir()}
    needed = {"trainer_state.json", "run_state.json", "manifest.json", "model.safetensors"}
    assert needed | {"rng_state_0.pth", "rng_state_1.pth"} <= names


def test_a_checkpoint_waits_for_every_rank(ddp):
    "Without the random state of a slower process a checkpoint could not be resumed."
    assert all(rank["complete"] for rank in seen(ddp[0], "rank"))


def test_a_resumed_run_is_the_same_run(ddp):
    "Weights, optimiser and the random states of both processes."
    for rank in seen(ddp[0], "resumed"):
        assert rank["whole"]["step"] == 3
        assert {**rank["whole"], "seconds": 0} == {**rank["last"], "seconds": 0}


def test_evaluating_and_saving_after_training(ddp):
    "train(), evaluate(), save_model(): the README's three lines must work on several devices, too."
    out, done = ddp
    assert done.returncode == 0, done.stderr[-2500:]
    assert (out / "student" / "model.safetensors").is_file()


def test_each_rank_has_its_own_prompts(ddp):
    "Two processes on the same prompts would be one at twice the price."
    a, b = seen(ddp[0], "rank")
    assert not set(a["rollouts"][0]["prompts"]) & set(b["rollouts"][0]["prompts"])


def one_rollout(a: dict, b: dict) -> Rollout:
    "What two processes sampled, as the batch of one."
    one, two = Rollout(**a["rollouts"][0]), Rollout(**b["rollouts"][0])

    def joined(name, side):
        x, y = getattr(one, name), getattr(two, name)
        if x.dim() == 1:
            return torch.cat([x, y])
        width = max(x.shape[1], y.shape[1])

        def pad(z):
            missing = width - z.shape[1]
            return torch.nn.functional.pad(z, (missing, 0) if side == "left" else (0, missing))

        return torch.cat([pad(x), pad(y)])

    return Rollout(
        joined("prompt_ids", "left"),
        joined("prompt_mask", "left"),
        joined("completion_ids", "right"),
        joined("completion_mask", "right"),
        joined("terminated", None),
        group_ids=joined("group_ids", None),
        prompts=one.prompts + two.prompts,
        completions=one.completions + two.completions,
        columns={k: one.columns[k] + two.columns[k] for k in one.columns},
    )


def check_first_update(a: dict, rollout: Rollout, trainer) -> dict:
    "Gradient and every metric of two processes are those of our own loop on one."
    trainer.sample = lambda: rollout
    metrics, gradient = gradients_of_step(trainer)
    assert relative(a["gradients"][0], gradient) < GRADIENT
    assert metrics.keys() == a["metrics"][0].keys()
    for k in set(metrics) - {"seconds", "learning_rate"}:
        assert a["metrics"][0][k] == pytest.approx(metrics[k], rel=1e-4, abs=1e-6), k
    return metrics


def test_the_update_is_that_of_one_process_on_the_same_rollouts(ddp, make_trainer):
    "The number of devices is no hyperparameter: the first update is that of the whole batch."
    a, b = seen(ddp[0], "rank")

    def digits(completions):
        return [float(sum(int(x) for x in c if x.isdigit())) for c in completions]

    trainer = make_trainer(reward_funcs=[chain_reward, digits])
    metrics = check_first_update(a, one_rollout(a, b), trainer)
    assert metrics["rewards/digits"] > 0


def test_budgets_per_prompt_and_further_budgets_on_two_processes(ddp, make_trainer, prompts):
    "Each process holds limits and costs of its own rows only; the update is that of all rows."
    a, b = seen(ddp[0], "limits")
    rollout = one_rollout(a, b)
    assert torch.equal(a["gradients"][0], b["gradients"][0])
    assert a["evaluation"] == b["evaluation"] and a["evaluation"]["n_eval"] == 15
    assert len(set(rollout.columns["budget"])) > 1

    def ones(completions):
        return [c.count("1") for c in completions]

    trainer = make_trainer(
        method="cmdp",
        train_dataset=prompts.add_column("budget", [0.1 + 0.2 * (i % 4) for i in range(64)]),
        budget_start=2.0,
        budget_anneal_steps=4,
        constraints={"length": (length_cost, Budget(16)), "ones": (ones, Budget(1))},
    )
    metrics = check_first_update(a, rollout, trainer)
    assert metrics["budget"] == pytest.approx(2 * sum(rollout.columns["budget"]) / 16)
    assert 0 < metrics["satisfaction_rate"] < 1 and 0 < metrics["satisfaction_rate_ones"] < 1


def test_a_budget_chosen_on_two_processes(ddp):
    "The quantile of all held-out completions: with two budgets there would be two students."
    a, b = seen(ddp[0], "chosen")
    assert a == b and a["budget"] != 0.8 and len(a["spent"]) == 15 and a["state"]["past"]


def test_a_refused_folder_stops_every_rank(ddp):
    "The second process would wait for the first one until the launcher gives up."
    out, done = ddp
    assert done.returncode == 0, done.stderr[-2000:]
    sentence = (
        f"output_dir={str(out / 'run')!r} holds a run already; choose another folder or resume it "
        "with resume_from_checkpoint='auto'"
    )
    assert [(out / f"refused{r}.txt").read_text() for r in (0, 1)] == [sentence] * 2


def test_our_own_loop_names_the_engine_for_several_processes(ddp):
    for rank in (0, 1):
        sentence = (ddp[0] / f"own{rank}.txt").read_text()
        assert "2 processes were started" in sentence and "--engine trl" in sentence


@pytest.mark.parametrize("mode", ["fsdp", "zero2", "zero3"])
def test_a_divided_student_is_the_same_student(mode, ddp, tmp_path):
    "Half of student and teacher on each process: FSDP 2, and ZeRO if DeepSpeed is installed."
    if mode != "fsdp":
        pytest.importorskip("deepspeed")
    done = two_processes(mode, tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    whole, parts = seen(ddp[0], "rank"), seen(tmp_path, "rank")
    for a, b in zip(whole, parts):
        assert b["world"] == 2 and b["sharded"] == (mode != "zero2")
        assert b["teacher"] != a["teacher"] or mode == "zero2"
        assert a["rollouts"][0]["completions"] == b["rollouts"][0]["completions"]
        for one, two in zip(a["metrics"], b["metrics"], strict=True):
            for k in set(one) - {"seconds"}:
                assert two[k] == pytest.approx(one[k], rel=1e-3, abs=1e-5), k
        assert b["evaluation"] == pytest.approx(a["evaluation"], rel=1e-3)
        assert b["complete"]
    if mode == "fsdp":
        assert relative(parts[0]["gradients"][0], whole[0]["gradients"][0]) < GRADIENT
        for rank in seen(tmp_path, "resumed"):
            assert rank["last"] == pytest.approx(
                {**rank["whole"], "seconds": rank["last"]["seconds"]}
            )
    a, b = (load_file(out / "student" / "model.safetensors") for out in (ddp[0], tmp_path))
    assert a.keys() == b.keys() and all(relative(b[k], a[k]) < 1e-4 for k in a)
