"The tabular laboratory: trees, their language model in the production code, exact solvers against each other."
import inspect

import pytest
import torch

from cmdp_nbdev.budget import Budget
from cmdp_nbdev.evaluate import evaluate_records
from cmdp_nbdev.model import check_pair, check_vocab, load_model, load_tokenizer
from cmdp_nbdev.objective import METHODS
from cmdp_nbdev.rollout import generate
from cmdp_nbdev.tabular import TreeCMDP, law, random_tree, tabular_dataset, tabular_lm, tabular_pair, tabular_reward, trajectory_index
from cmdp_nbdev.trainer import CMDPConfig, CMDPTrainer


def noise(*shape, seed=0): return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def tabular_trainer(tmp_path, trees, logits, **config):
    "The production trainer on trees; completions of exactly `depth` actions unless told otherwise."
    student, teacher, tok = tabular_pair(trees, logits)
    args = dict(max_steps=3, per_device_train_batch_size=32, num_generations=16, max_completion_length=trees[0].depth, truncated_reward=None, learning_rate=0.05,
                output_dir=str(tmp_path / "run"), disable_tqdm=True, device="cpu", method="cmdp", budget=0.5)
    return CMDPTrainer(student, teacher, tabular_reward(trees), CMDPConfig(**{**args, **config}), tabular_dataset(trees), tabular_dataset(trees), tok)


def observe(monkeypatch, method):
    "Record the batches that a method sees."
    seen, original = [], METHODS[method]
    def spy(batch, budget, state, **settings):
        seen.append(batch)
        return original(batch, budget, state, **settings)
    spy.__signature__ = inspect.signature(original)
    monkeypatch.setitem(METHODS, method, spy)
    return seen


@pytest.mark.parametrize("extra", [0, 1], ids=["actions only", "with EOS"])
def test_the_trainer_measures_what_enumeration_says(tmp_path, monkeypatch, extra):
    "Rewards, costs and log-probabilities of the production loop must be those of the table, to the last digits, at every update."
    trees, seen = [random_tree(0), random_tree(1)], observe(monkeypatch, "cmdp")
    trainer = tabular_trainer(tmp_path, trees, noise(2, 13, 3), max_completion_length=3 + extra, truncated_reward=None if not extra else 0.0)
    for _ in range(3):
        table = trainer.model.table.detach().clone()
        trainer.step()
        batch, rollout = seen[-1], trainer.rollout
        assert set(rollout.columns["tree"]) == {0, 1} and rollout.terminated.all() == bool(extra) and rollout.completion_ids.shape == (32, 3 + extra)
        for k, tree in enumerate(trees):
            rows = torch.tensor(rollout.columns["tree"]) == k
            exact, index = law(tree, table[k]), trajectory_index(tree, rollout.completion_ids[rows])
            for got, want in ((batch.rewards, tree.rewards), (batch.cost[:, :3], exact.cost), (batch.logp[:, :3], exact.logp), (batch.teacher_logp[:, :3], exact.teacher_logp)):
                assert (got[rows] - want[index]).abs().max() < 1e-10
        assert batch.cost.dtype == torch.float64 and batch.cost[:, 3:].abs().sum() == 0 and batch.logp[:, 3:].abs().sum() == 0
        assert not torch.equal(table, trainer.model.table.detach())


def test_the_trainer_improves_the_exact_value(tmp_path):
    "Training must raise the exact expected reward, or the tabular model would teach nothing about the trainer."
    tree, start = random_tree(3), random_tree(3).teacher
    trainer = tabular_trainer(tmp_path, [tree], start, max_steps=20, per_device_train_batch_size=128, num_generations=128)
    trainer.train()
    after = law(tree, trainer.model.table[0].detach())
    assert after.value() > law(tree, start).value() + 0.1 and after.expect(after.cost.sum(-1)) > 0.05


def test_a_trained_table_is_an_ordinary_model_folder(tmp_path):
    "Saved by the trainer, loaded by path: same table in float64, same tokenizer, and the trainer accepts the folder."
    tree = random_tree(4, vocab=4, depth=2)
    trainer = tabular_trainer(tmp_path, [tree], noise(5, 4))
    trainer.step()
    trainer.save_model(tmp_path / "student")
    again, tok = load_model(tmp_path / "student", dtype="auto"), load_tokenizer(tmp_path / "student")
    assert again.table.dtype == torch.float64 and torch.equal(again.table, trainer.model.table)
    check_pair(tok, trainer.processing_class); check_vocab(again, tok, "student")
    assert again.config.actions == 4 and again.config.depth == 2
    records = evaluate_records(again, tabular_lm(tree), tabular_dataset(tree), tok, tabular_reward(tree), Budget(1.0), num_generations=8, max_completion_length=3)
    exact = law(tree, again.table[0].detach())
    for r in records:
        i = int(trajectory_index(tree, torch.tensor([r["completion_ids"]])))
        assert r["terminated"] and r["reward"] == tree.rewards[i] and r["cost_per_token"] == pytest.approx([*exact.cost[i].tolist(), 0.0], abs=1e-10)


@pytest.mark.parametrize("vocab,depth", [(2, 1), (2, 4), (3, 2), (4, 3)])
def test_samples_follow_the_table(vocab, depth):
    "The rollout must sample the trajectories of the table with their exact probabilities, whatever the shape of the tree."
    tree = random_tree(vocab + depth, vocab, depth)
    logits = noise(*tree.teacher.shape)
    student, _, tok = tabular_pair(tree, logits)
    rollout = generate(student, tok, ["<0>"], num_generations=20000, max_completion_length=depth + 1, generator=torch.Generator().manual_seed(0))
    index, exact = trajectory_index(tree, rollout.completion_ids), law(tree, logits)
    assert rollout.terminated.all() and (rollout.sampled_logps.sum(-1) - exact.logp.sum(-1)[index]).abs().max() < 1e-10
    expected = exact.prob * 20000
    chi2 = ((index.bincount(minlength=len(tree.rewards)) - expected).square() / expected).sum()
    assert chi2 < len(expected) + 5 * (2 * len(expected)) ** 0.5
    assert rollout.completions[0] == " ".join(map(str, tree.paths[index[0]].tolist()))
