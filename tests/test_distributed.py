"Two processes are one run: same batch, same loss, same weights, one set of files."

import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, gradients_of_step, read_lines, relative

from cmdp_nbdev.budget import Budget
from cmdp_nbdev.mdp import Rollout
from cmdp_nbdev.reward import length_cost
from cmdp_nbdev.task import chain_reward

pytestmark = pytest.mark.slow

SCRIPT = """
import sys, time, accelerate, torch
torch.set_num_threads(1)
from cmdp_nbdev.budget import Budget
from cmdp_nbdev.model import default_pair
from cmdp_nbdev.reward import length_cost
from cmdp_nbdev.task import chain_dataset, chain_reward
from cmdp_nbdev.trainer import CMDPConfig, CMDPTrainer
out, size = sys.argv[1], 8
student, teacher, tok = default_pair()
def digits(completions, **kwargs): return [float(sum(int(x) for x in c if x.isdigit())) for c in completions]
args = CMDPConfig(output_dir=out + "/run", max_steps=2, per_device_train_batch_size=size, num_generations=4, max_completion_length=20, device="cpu", disable_tqdm=True, save_steps=2)
trainer = CMDPTrainer(student, teacher, [chain_reward, digits], args, chain_dataset(64), chain_dataset(15, "validation"), tok)
flat = lambda: torch.cat([p.detach().flatten() for p in trainer.accelerator.unwrap_model(trainer.model).parameters()]).clone()
def recording(trainer):
    clip, grads = trainer.accelerator.clip_grad_norm_, []
    def record(parameters, bound):
        parameters = list(parameters); grads.append(torch.cat([p.grad.flatten().clone() for p in parameters])); return clip(parameters, bound)
    trainer.accelerator.clip_grad_norm_ = record
    return grads
grads = recording(trainer)
metrics = [trainer.step()]
rollout = trainer.rollout
metrics.append(trainer.step())
evaluation = trainer.evaluate()
torch.save(dict(world=trainer.world, weights=flat(), grad=grads[0], metrics=metrics, evaluation=evaluation, rollout={k: getattr(rollout, k) for k in rollout.__dataclass_fields__}), f"{out}/rank{trainer.rank}.pt")
trainer.accelerator.wait_for_everyone()
if trainer.rank == 1:  # a process that is slower at writing its random state
    save = accelerate.accelerator.save_accelerator_state
    accelerate.accelerator.save_accelerator_state = lambda *args, **kwargs: (time.sleep(1), save(*args, **kwargs))[1]
trainer.global_step = 3
try: trainer.save_checkpoint()
except Exception as e: open(f"{out}/late{trainer.rank}.txt", "w").write(str(e)); trainer.accelerator.wait_for_everyone()
trainer.train()  # nothing left to do; then as in the README
assert trainer.evaluate() == evaluation
trainer.save_model(out + "/student")

# a student that is told its budget, one per prompt and annealed, and two further budgets
def ones(completions, **kwargs): return [c.count("1") for c in completions]
def limited(data): return data.add_column("budget", [0.1 + 0.2 * (i % 4) for i in range(len(data))])
student, teacher, tok = default_pair()
args = CMDPConfig(method="saute-augmented", output_dir=out + "/told", max_steps=2, per_device_train_batch_size=size, num_generations=4, max_completion_length=20, device="cpu", disable_tqdm=True, budget_start=2.0, budget_anneal_steps=4)
told = CMDPTrainer(student, teacher, chain_reward, args, limited(chain_dataset(64)), limited(chain_dataset(15, "validation")), tok, constraints={"length": (length_cost, Budget(16)), "ones": (ones, Budget(1))})
grads, metrics = recording(told), told.step()
torch.save(dict(grad=grads[0], metrics=metrics, evaluation=told.evaluate(), rollout={k: getattr(told.rollout, k) for k in told.rollout.__dataclass_fields__}), f"{out}/told{told.rank}.pt")

# a budget chosen on the way
student, teacher, tok = default_pair()
args = CMDPConfig(method="pid", output_dir=out + "/quantile", max_steps=2, distill_steps=1, budget_quantile=0.5, per_device_train_batch_size=size, num_generations=4, max_completion_length=20, device="cpu", disable_tqdm=True)
chosen = CMDPTrainer(student, teacher, chain_reward, args, chain_dataset(64), chain_dataset(15, "validation"), tok)
chosen.train()
torch.save(dict(budget=chosen.budget.limit, state=chosen.method_state, spent=[r["spent"] for r in chosen.evaluate(return_records=True)[1]]), f"{out}/chosen{chosen.rank}.pt")

# a folder that holds a run already
student, teacher, tok = default_pair()
args = CMDPConfig(output_dir=out + "/run", max_steps=2, per_device_train_batch_size=size, num_generations=4, device="cpu", disable_tqdm=True)
again = CMDPTrainer(student, teacher, chain_reward, args, chain_dataset(64), None, tok)
try: again.train()
except FileExistsError as e: open(f"{out}/refused{again.rank}.txt", "w").write(str(e))
"""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    "The folder of a two-step run on two processes, and what each of them saw."
    out = tmp_path_factory.mktemp("world2")
    (out / "run.py").write_text(SCRIPT)
    env = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "CUDA_VISIBLE_DEVICES": "",
        "ACCELERATE_USE_CPU": "true",
    }
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node=2",
            str(out / "run.py"),
            str(out),
        ],
        env=env,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert (out / "rank0.pt").exists() and (out / "rank1.pt").exists(), done.stderr[-4000:]
    return out, [torch.load(out / f"rank{r}.pt", weights_only=False) for r in (0, 1)], done


def test_both_ranks_agree(ranks):
    "Ranks that drift apart train two students, of which one is saved."
    _, (a, b), _ = ranks
    assert a["world"] == b["world"] == 2
    assert torch.equal(a["weights"], b["weights"]) and torch.equal(a["grad"], b["grad"])
    for k in (
        "loss",
        "grad_norm",
        "reward",
        "accuracy",
        "satisfaction_rate",
        "kl_mean",
        "kl_p95",
        "spent_mean",
        "length_mean",
        "rewards/digits",
    ):
        assert a["metrics"][0][k] == pytest.approx(b["metrics"][0][k], rel=1e-6), k
    assert a["evaluation"] == b["evaluation"] and a["evaluation"]["n_eval"] == 15


def test_files_are_written_once(ranks):
    "One line per update, one folder per checkpoint, with the random state of every rank."
    out, (a, _), _ = ranks
    lines = read_lines(out / "run" / "metrics.jsonl")
    assert [m["step"] for m in lines] == [1, 2] and len(a["metrics"]) == 2 and lines == a["metrics"]
    checkpoint = out / "run" / "checkpoint-2"
    assert {
        "trainer_state.json",
        "model.safetensors",
        "random_states_0.pkl",
        "random_states_1.pkl",
    } <= {p.name for p in checkpoint.iterdir()}
    assert not list((out / "run").glob("*.part"))


def test_a_checkpoint_waits_for_every_rank(ranks):
    "A checkpoint is complete or absent: without the random state of a slower process it cannot be resumed."
    out, _, _ = ranks
    assert not [p.read_text() for p in out.glob("late*.txt")]
    assert {f"random_states_{r}.pkl" for r in (0, 1)} <= {
        p.name for p in (out / "run" / "checkpoint-3").iterdir()
    }


def test_evaluating_and_saving_after_training(ranks):
    "train(), evaluate(), save_model(): the README's three lines must work on several devices, too."
    out, _, done = ranks
    assert done.returncode == 0, done.stderr[-2500:]
    assert (out / "student" / "model.safetensors").is_file()


def test_each_rank_has_its_own_prompts(ranks):
    "Two processes on the same prompts would be one at twice the price."
    _, (a, b), _ = ranks
    assert not set(a["rollout"]["prompts"]) & set(b["rollout"]["prompts"])


def test_the_update_is_that_of_one_process_on_the_same_rollouts(ranks, make_trainer):
    "The number of devices is no hyperparameter: loss and gradient of the first update must be those of the whole batch on one."
    _, (a, b), _ = ranks
    both = one_rollout(a, b)

    def digits(completions, **kwargs):
        return [float(sum(int(x) for x in c if x.isdigit())) for c in completions]

    trainer = make_trainer(per_device_train_batch_size=16, reward_funcs=[chain_reward, digits])
    trainer.sample = lambda: both
    metrics, grad = gradients_of_step(trainer)
    assert relative(a["grad"], grad) < 1e-4
    for k in (
        "loss",
        "grad_norm",
        "reward",
        "accuracy",
        "satisfaction_rate",
        "kl_mean",
        "kl_p95",
        "length_mean",
        "multiplier_mean",
        "advantage_abs",
        "rewards/digits",
    ):
        assert a["metrics"][0][k] == pytest.approx(metrics[k], rel=1e-4), k


def one_rollout(a, b):
    "What two processes sampled, as the batch of one."
    one, two = Rollout(**a["rollout"]), Rollout(**b["rollout"])

    def joined(k, side):
        x, y = getattr(one, k), getattr(two, k)
        if x.dim() == 1:
            return torch.cat([x, y])
        width = max(x.shape[1], y.shape[1])

        def pad(z):
            return torch.nn.functional.pad(
                z, (width - z.shape[1], 0) if side == "left" else (0, width - z.shape[1])
            )

        return torch.cat([pad(x), pad(y)])

    told = None if one.remaining is None else joined("remaining", "right")
    return Rollout(
        joined("prompt_ids", "left"),
        joined("prompt_mask", "left"),
        joined("completion_ids", "right"),
        joined("completion_mask", "right"),
        joined("terminated", None),
        joined("sampled_logps", "right"),
        torch.cat([one.group_ids, two.group_ids + 100]),
        one.prompts + two.prompts,
        one.completions + two.completions,
        {k: one.columns[k] + two.columns[k] for k in one.columns},
        told,
    )


def test_budgets_per_prompt_and_further_budgets_on_two_processes(ranks, make_trainer, prompts):
    "Each process holds limits and costs of its own rows only; loss, gradient and rates must be those of all rows together, for a student that is told its budget, too."
    a, b = (torch.load(ranks[0] / f"told{r}.pt", weights_only=False) for r in (0, 1))
    both = one_rollout(a, b)
    assert (
        torch.equal(a["grad"], b["grad"])
        and a["evaluation"] == b["evaluation"]
        and a["evaluation"]["n_eval"] == 15
        and len(set(both.columns["budget"])) > 1
    )

    def ones(completions, **kwargs):
        return [c.count("1") for c in completions]

    data = prompts.add_column("budget", [0.1 + 0.2 * (i % 4) for i in range(64)])
    trainer = make_trainer(
        method="saute-augmented",
        per_device_train_batch_size=16,
        train_dataset=data,
        budget_start=2.0,
        budget_anneal_steps=4,
        constraints={"length": (length_cost, Budget(16)), "ones": (ones, Budget(1))},
    )
    trainer.sample = lambda: both
    metrics, grad = gradients_of_step(trainer)
    assert relative(a["grad"], grad) < 1e-4 and metrics["budget"] == pytest.approx(
        2 * sum(both.columns["budget"]) / 16
    )
    assert 0 < metrics["satisfaction_rate"] < 1 and 0 < metrics["satisfaction_rate_ones"] < 1
    for k in set(metrics) - {"seconds", "learning_rate"}:
        assert a["metrics"][k] == pytest.approx(metrics[k], rel=1e-4, abs=1e-6), k


def test_a_budget_chosen_on_two_processes(ranks):
    "The quantile is one of all held-out completions; two processes with two budgets would train two students."
    a, b = (torch.load(ranks[0] / f"chosen{r}.pt", weights_only=False) for r in (0, 1))
    assert a == b and a["budget"] != 0.8 and len(a["spent"]) == 15 and a["state"]["past"]


def test_a_refused_folder_stops_every_rank(ranks):
    "The second process would wait for the first one until the launcher gives up."
    out, _, done = ranks
    assert [(out / f"refused{r}.txt").read_text() for r in (0, 1)] == [
        f"output_dir={str(out / 'run')!r} holds a run already; choose another folder or resume it with resume_from_checkpoint='auto'"
    ] * 2 and done.returncode == 0, done.stderr[-2000:]
