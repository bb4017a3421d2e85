"The command: its help, its files, and whether its summary can be checked by somebody else."

import csv
import dataclasses
import json

import pytest
import torch
from conftest import python, read_lines

from cmdp_nbdev.cli import RunArguments, build_parser, main, parse_args
from cmdp_nbdev.methods import METHODS
from cmdp_nbdev.model import char_tokenizer, tiny_model
from cmdp_nbdev.trainer import CMDPConfig

FAST = [
    "--max_steps",
    "3",
    "--n_eval",
    "48",
    "--per_device_train_batch_size",
    "16",
    "--device",
    "cpu",
    "--disable_tqdm",
]


def test_help_names_everything():
    "A newcomer learns all settings, methods and method settings from --help."
    text = build_parser().format_help()
    for cls in (RunArguments, CMDPConfig):
        for f in dataclasses.fields(cls):
            assert f"--{f.name}" in text, f.name
    for method in METHODS:
        assert f"\n  {method} " in text
    assert "examples:" in text and "default: 0.8" in text


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    "One small run of the embedded default through the command."
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("cli") / "run"
    assert main(["--output_dir", str(out), "--seed", "3", "--eval_steps", "2", *FAST]) == 0
    return out


def test_files_of_a_run(finished):
    "The contract of the output folder: others' scripts rely on these names."
    assert {
        "student",
        "teacher",
        "config.json",
        "metrics.jsonl",
        "eval.jsonl",
        "summary.json",
        "report.html",
    } <= {p.name for p in finished.iterdir()}
    for who in ("student", "teacher"):
        assert {"model.safetensors", "config.json", "tokenizer.json"} <= {
            p.name for p in (finished / who).iterdir()
        }
    summary = json.loads((finished / "summary.json").read_text())
    assert {
        "accuracy",
        "satisfaction_rate",
        "satisfaction_rate_low",
        "satisfaction_rate_high",
        "accuracy_within_budget",
        "kl_mean",
        "kl_p95",
        "length_mean",
        "n_eval",
        "budget",
        "method",
        "seed",
        "seconds",
    } <= set(summary)
    assert (summary["method"], summary["seed"], summary["budget"], summary["n_eval"]) == (
        "cmdp-rate",
        3,
        0.8,
        48,
    )
    assert [m["step"] for m in read_lines(finished / "metrics.jsonl")] == [
        0,
        1,
        2,
        3,
    ]  # 0 = the evaluation before the first update
    assert summary["start_accuracy"] == read_lines(finished / "metrics.jsonl")[0]["eval_accuracy"]
    for r in read_lines(finished / "eval.jsonl"):
        assert {
            "prompt",
            "completion",
            "completion_ids",
            "answer",
            "reward",
            "cost_per_token",
            "spent",
            "within_budget",
        } <= set(r)
        assert len(r["cost_per_token"]) == len(r["completion_ids"])
    page = (finished / "report.html").read_text(encoding="utf-8")
    assert (
        page.count('class="plotly-graph-div"') >= 3
        and "accuracy" in page
        and "<script src=" not in page
    )  # works offline


def test_config_repeats_the_run(finished, tmp_path):
    "config.json must be all that is needed: fed back, it gives the same numbers."
    config = json.loads((finished / "config.json").read_text())
    assert {"cmdp_nbdev", "torch", "transformers"} <= set(config["versions"]) and len(
        config["teacher"]["sha256"]
    ) == 64
    settings = (
        {f.name: config[f.name] for f in dataclasses.fields(CMDPConfig)}
        | config["run"]
        | {"output_dir": str(tmp_path / "again")}
    )
    (tmp_path / "c.yaml").write_text(
        json.dumps({k: v for k, v in settings.items() if v is not None})
    )  # JSON is YAML
    assert main(["--config", str(tmp_path / "c.yaml")]) == 0
    times = ("seconds",)
    a, b = (json.loads((p / "summary.json").read_text()) for p in (finished, tmp_path / "again"))
    assert {k: v for k, v in a.items() if k not in times} == {
        k: v for k, v in b.items() if k not in times
    }


RECOMPUTE = """
import json, sys
import numpy as np, torch
from scipy.stats import binomtest
from transformers import AutoModelForCausalLM, AutoTokenizer
out = sys.argv[1]
student, teacher = (AutoModelForCausalLM.from_pretrained(f"{out}/{who}", dtype=torch.float32).eval() for who in ("student", "teacher"))
tok, summary = AutoTokenizer.from_pretrained(f"{out}/student"), json.load(open(f"{out}/summary.json"))
spent, kl, right, lengths = [], [], [], []
for line in open(f"{out}/eval.jsonl"):
    r = json.loads(line)
    prompt, n = tok(r["prompt"])["input_ids"], len(r["completion_ids"])
    with torch.no_grad(): s, t = (m(torch.tensor([prompt + r["completion_ids"]])).logits[0, len(prompt) - 1:-1].float().log_softmax(-1) for m in (student, teacher))
    cost = (s.exp() * (s - t)).sum(-1)
    np.testing.assert_allclose(cost.numpy(), r["cost_per_token"], atol=1e-4)
    text = tok.decode(r["completion_ids"], skip_special_tokens=True)
    assert text == r["completion"]
    ended = r["completion_ids"][-1] == tok.eos_token_id
    spent.append(sum(r["cost_per_token"])); kl.append(float(cost.sum())); lengths.append(n)
    right.append(ended and "#" in text and text.split("#")[-1] == r["answer"])
    assert abs(r["spent"] - spent[-1]) < 1e-4 and r["within_budget"] == (r["spent"] <= summary["budget"]) and r["reward"] == float(right[-1])
within = np.array([json.loads(l)["spent"] <= summary["budget"] for l in open(f"{out}/eval.jsonl")])
right = np.array(right)
ci = binomtest(int(within.sum()), len(within)).proportion_ci(0.95, method="exact")
expected = dict(accuracy=right.mean(), satisfaction_rate=within.mean(), satisfaction_rate_low=ci.low, satisfaction_rate_high=ci.high, accuracy_within_budget=(right & within).mean(),
                kl_mean=np.mean(kl), kl_p95=np.quantile(kl, 0.95), length_mean=np.mean(lengths), n_eval=len(right))
for k, v in expected.items(): assert abs(summary[k] - v) < 1e-4, (k, summary[k], v)
assert not any(n.startswith("cmdp_nbdev") for n in sys.modules)
print("recomputed", len(right))
"""


def test_summary_can_be_recomputed_without_this_package(finished):
    "A number that only our code can produce is no evidence."
    assert "recomputed 48" in python("-c", RECOMPUTE, finished, cwd=finished.parent).stdout


def test_yaml_between_defaults_and_command_line(tmp_path):
    "A settings file must win over defaults and lose to what is typed."
    (tmp_path / "c.yaml").write_text(
        "budget: 0.3\nmethod: soft\nmethod_kwargs: {lam: 2}\nlearning_rate: 1e-4\nn_eval: 77\nbf16: true\neval_on_start: false\n"
    )
    run, values = parse_args(["--config", str(tmp_path / "c.yaml"), "--budget", "0.5"])
    config = CMDPConfig(**values)
    assert (
        config.budget,
        config.method,
        config.method_kwargs,
        config.learning_rate,
        run.n_eval,
        config.bf16,
        config.eval_on_start,
        config.seed,
    ) == (0.5, "soft", {"lam": 2}, 1e-4, 77, True, False, 0)


@pytest.mark.parametrize(
    "reward", ["my_rewards:length", ["my_rewards:length", "my_rewards:digits"]]
)
def test_yaml_reward_as_text_or_list(tmp_path, reward):
    "One reward function is written as plain text by everybody; it must not be taken for a list of letters."
    (tmp_path / "c.yaml").write_text(json.dumps({"reward": reward}))
    run, _ = parse_args(["--config", str(tmp_path / "c.yaml")])
    assert run.reward == ([reward] if isinstance(reward, str) else reward)


def test_own_models_data_and_reward(tmp_path, monkeypatch):
    "The README's second example: folders, .jsonl files and module:function from the working directory."
    tok = char_tokenizer()
    for who, seed in (("s", 1), ("t", 2)):
        tiny_model(32, tok, seed=seed).save_pretrained(tmp_path / who)
        tok.save_pretrained(tmp_path / who)
    for file, n in (("train.jsonl", 12), ("test.jsonl", 5)):
        (tmp_path / file).write_text(
            "".join(
                json.dumps({"prompt": f"{i % 10}+1=", "answer": str((i + 1) % 10), "level": i})
                + "\n"
                for i in range(n)
            )
        )
    (tmp_path / "own_cli_rewards.py").write_text(
        "def has(prompts, completions, answer, **kwargs): return [float(a in c) for a, c in zip(answer, completions)]\ndef short(completions, level): return [-len(c) / 100 + 0 * l for c, l in zip(completions, level)]\n"
    )
    monkeypatch.chdir(tmp_path)
    assert (
        main(
            [
                "--student",
                "s",
                "--teacher",
                "t",
                "--dataset",
                "train.jsonl",
                "--eval_dataset",
                "test.jsonl",
                "--reward",
                "own_cli_rewards:has",
                "own_cli_rewards:short",
                "--reward_weights",
                "1",
                "0.5",
                "--output_dir",
                "out",
                "--max_completion_length",
                "6",
                "--num_generations",
                "4",
                "--budget",
                "20",
                *FAST,
            ]
        )
        == 0
    )
    summary, records = (
        json.loads((tmp_path / "out" / "summary.json").read_text()),
        read_lines(tmp_path / "out" / "eval.jsonl"),
    )
    assert (
        summary["n_eval"] == 5
        and [r["level"] for r in records] == list(range(5))
        and [r["prompt"] for r in records] == [f"{i}+1=" for i in range(5)]
    )
    assert json.loads((tmp_path / "out" / "config.json").read_text())["run"]["reward"] == [
        "own_cli_rewards:has",
        "own_cli_rewards:short",
    ]
    assert "rewards/has" in read_lines(tmp_path / "out" / "metrics.jsonl")[-1]


def test_data_with_dates(tmp_path, monkeypatch):
    "Columns that JSON does not know (dates, bytes) must not crash the run when everything is done."
    from datetime import datetime

    from datasets import Dataset

    tok = char_tokenizer()
    tiny_model(32, tok).save_pretrained(tmp_path / "s")
    tok.save_pretrained(tmp_path / "s")
    Dataset.from_dict(
        {"prompt": ["1+1=", "2+2="] * 8, "when": [datetime(2026, 1, 1)] * 16}
    ).to_parquet(tmp_path / "d.parquet")
    (tmp_path / "date_rewards.py").write_text(
        "def f(completions, when): return [0.0] * len(completions)\n"
    )
    monkeypatch.chdir(tmp_path)
    assert (
        main(
            [
                "--student",
                "s",
                "--teacher",
                "s",
                "--dataset",
                "d.parquet",
                "--eval_dataset",
                "d.parquet",
                "--reward",
                "date_rewards:f",
                "--output_dir",
                "out",
                "--max_completion_length",
                "4",
                *FAST,
            ]
        )
        == 0
    )
    assert (tmp_path / "out" / "summary.json").is_file()


@pytest.mark.slow
def test_all_methods(tmp_path, capsys):
    "`--method all` must compare every method in one table and one page."
    assert (
        main(
            [
                "--method",
                "all",
                "--output_dir",
                str(tmp_path / "all"),
                *FAST,
                "--max_steps",
                "2",
                "--n_eval",
                "16",
            ]
        )
        == 0
    )
    with open(tmp_path / "all" / "summary.csv") as f:
        rows = list(csv.DictReader(f))
    assert [r["method"] for r in rows] == list(METHODS) and {
        "seed",
        "budget",
        "accuracy",
        "satisfaction_rate",
        "accuracy_within_budget",
        "kl_mean",
        "kl_p95",
        "seconds",
    } <= set(rows[0])
    for r in rows:
        own = json.loads((tmp_path / "all" / r["method"] / "summary.json").read_text())
        assert float(r["accuracy"]) == own["accuracy"] and r["method"] == own["method"]
    page = (tmp_path / "all" / "report.html").read_text(encoding="utf-8")
    assert all(m in page for m in METHODS) and page.count('class="plotly-graph-div"') == 2
    assert "summary.csv" in capsys.readouterr().out


def test_interrupting_keeps_what_was_learnt(tmp_path, monkeypatch, capsys):
    "Ctrl-C must leave an evaluated, saved student, not nothing."
    from cmdp_nbdev.trainer import CMDPTrainer

    step = CMDPTrainer.step

    def interrupted(self):
        if self.global_step == 1:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(CMDPTrainer, "step", interrupted)
    assert main(["--output_dir", str(tmp_path / "run"), *FAST]) == 0
    assert (
        json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 1
        and (tmp_path / "run" / "student" / "model.safetensors").is_file()
    )
    assert "stopped after 1 update" in capsys.readouterr().err


def test_resuming_from_the_command_line(tmp_path):
    "The command that was killed, typed again with --resume_from_checkpoint auto, must end as the uninterrupted one."

    def run(name, *more):
        return main(
            [
                "--output_dir",
                str(tmp_path / name),
                "--save_steps",
                "2",
                *FAST,
                "--max_steps",
                "3",
                *more,
            ]
        )

    assert run("whole") == 0 and run("cut") == 0
    for f in ("summary.json", "eval.jsonl", "report.html"):
        (tmp_path / "cut" / f).unlink()
    lines = (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "cut" / "metrics.jsonl").write_text(
        "".join(lines[:-1])
    )  # died before the last update
    assert run("cut", "--resume_from_checkpoint", "auto") == 0
    a, b = (json.loads((tmp_path / d / "summary.json").read_text()) for d in ("whole", "cut"))
    assert {k: v for k, v in a.items() if k != "seconds"} == {
        k: v for k, v in b.items() if k != "seconds"
    }
