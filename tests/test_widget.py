"""The widgets: what they show is what the library computes, in Python and in a browser.

The live trainer never blocks and never loses a student.
"""

import csv
import html
import json
import math
import re
import shutil
import subprocess
import time

import numpy as np
import pytest
import torch
from conftest import ROOT, python
from transformers import AutoModelForCausalLM

from cmdp_nbdev.budget import Budget
from cmdp_nbdev.evaluate import evaluate_records, summarize
from cmdp_nbdev.methods import METHODS
from cmdp_nbdev.task import chain_dataset, chain_reward

pytest.importorskip("cmdp_nbdev.widgets.view", reason="the extra 'notebook' is not installed")

from cmdp_nbdev.theory.tabular import TreeCMDP, hard_optimum, random_tree
from cmdp_nbdev.widgets.chart import percent
from cmdp_nbdev.widgets.live import LiveTrainer
from cmdp_nbdev.widgets.microscope import TokenMicroscope
from cmdp_nbdev.widgets.multiplier import MultiplierView
from cmdp_nbdev.widgets.panel import BudgetPanel, judge, load_traces
from cmdp_nbdev.widgets.purse import BudgetPurse, best_purse, greedy_purse
from cmdp_nbdev.widgets.shootout import ShootOut
from cmdp_nbdev.widgets.tree import TreeExplorer
from cmdp_nbdev.widgets.tweak import tweak


@pytest.fixture(scope="module")
def records(_pair):
    "48 evaluated completions of the embedded student, eight for each prompt."
    student, teacher, tok = _pair
    prompts, budget = chain_dataset(6, "validation", 3), Budget(0.8)
    return evaluate_records(student, teacher, prompts, tok, chain_reward, budget, num_generations=8)


def items(view, block=0):
    "The numbers of a block, by their labels."
    return {i["label"]: i["value"] for i in view.blocks[block]["items"]}


# ---- the view -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda: BudgetPanel(d=0.37, method="grpo", n=2.5),
        lambda: TreeExplorer(instance="one state", d=0.4, n=0.3, policy="mean only (price λ)"),
        lambda: ShootOut(methods=["cmdp", "gkd"]),
        lambda: MultiplierView(method="hinge", d=0.5, coef=2.0),
        lambda: TokenMicroscope(completion=2, token=3, follow=True, seed=4),
        lambda: BudgetPurse(p1=0.7, p3=0.9, d=1.1),
    ],
    ids=["panel", "tree", "shootout", "multiplier", "microscope", "purse"],
)
def test_state_gives_the_same_widget_again(make):
    "Whoever copies the line under a widget must get what they saw."
    shown = make()
    again = eval(repr(shown.state()), globals())
    assert again.values == shown.values
    assert again.blocks == shown.blocks
    assert len([b for b in shown.blocks if b["type"] == "chart"]) >= 2


def test_the_best_purse_is_the_optimum_of_dynamic_programming():
    "What the learner is sent after must be right: the tree whose last leaf alone is right."
    rewards = torch.zeros(8, dtype=torch.float64)
    rewards[-1] = 1
    tree = TreeCMDP(torch.full((7, 2), math.log(0.5), dtype=torch.float64), rewards, 3)
    for d in (0.3, 0.8, 1.5):
        best = float(hard_optimum(tree, d, grid=48).value)
        assert best_purse(d) == pytest.approx(best, abs=1e-3)
        assert greedy_purse(d) < best_purse(d)


def test_the_purse_says_when_it_is_overdrawn_and_when_it_is_best():
    "The one widget that is played against itself."
    purse = BudgetPurse(p1=1.0)
    assert items(purse)["spent"] == "0.69 nats" and items(purse)["all three right"] == "25.0%"
    purse.set(p2=0.9)
    assert purse.blocks[1]["alert"] and "Over by" in purse.blocks[1]["text"]
    purse.set(p1=0.845, p2=0.845, p3=0.845)
    assert "That is it" in purse.blocks[1]["text"]


def test_the_panel_says_which_student_stands_in_for_the_one_asked_for():
    "saute-augmented was trained for 0.8 only: shown under a menu that said 0.4, it misled."
    assert (
        "none that was trained for d = 0.4"
        in BudgetPanel(method="saute-augmented", trained=0.4).blocks[1]["text"]
    )
    assert "reads no budget" in BudgetPanel(method="grpo", trained=0.4).blocks[1]["text"]
    assert "none" not in BudgetPanel(method="cmdp", trained=0.4).blocks[1]["text"]


def test_the_multiplier_says_that_it_is_the_curve_divided_by_sigma():
    "A number of 0.88 beside a curve at 1.00, without a word."
    view = MultiplierView(method="cmdp", d=0.3)
    over = next(c for c in view.controls if c["name"] == "trajectory")["options"][-1][0]
    view.set(trajectory=over)
    number = view.blocks[0]["items"][1]
    curve, sigma = map(float, re.findall(r"\d+\.\d+", number["note"]))
    assert curve == 1.0 and float(number["value"]) == pytest.approx(curve / sigma, abs=0.02)
    view.set(scale_rewards="none")
    assert view.blocks[0]["items"][1] == {"label": "multiplier", "value": "1.00"}


@pytest.mark.parametrize(
    "wrong, text",
    [
        (dict(d=9.0), "d must be a number from 0 to 2"),
        (dict(d="1"), "d must be a number"),
        (dict(method="ppo"), "method must be one of .*'grpo'"),
        (dict(seeds=1), "no control seeds; it has d, method"),
    ],
    ids=["too far", "text", "unknown", "no control"],
)
def test_a_value_that_no_control_can_show_moves_nothing(wrong, text):
    "One clear error, naming the control, instead of an empty picture."
    panel = BudgetPanel()
    before = panel.state()
    with pytest.raises(ValueError, match=text):
        panel.set(**wrong)
    assert panel.state() == before


def test_what_cannot_be_shown_is_refused(records, tmp_path):
    "Data that a widget cannot draw are named when it is made."
    with pytest.raises(ValueError, match="records of 'mine' are empty"):
        BudgetPanel({"mine": []})
    for wrong in ({}, 3, [3]):
        with pytest.raises(ValueError, match="records (are empty|of 'records' are no list)"):
            BudgetPanel(wrong)
    with pytest.raises(ValueError, match="rows must be a list of dicts or a CSV"):
        ShootOut(3)
    with pytest.raises(ValueError, match="trainer must be a CMDPTrainer, got 3"):
        LiveTrainer(3)
    with pytest.raises(ValueError, match="tree must be a tabular.TreeCMDP, got 3"):
        TreeExplorer(3)
    with pytest.raises(ValueError, match="setup must be a function of a CMDPConfig, got 3"):
        tweak(3)
    with pytest.raises(ValueError, match="have no correct"):
        BudgetPanel([{"spent": 1.0, "reward": 0.0, "cost_per_token": [1.0]}])
    with pytest.raises(ValueError, match="one finite limit"):
        BudgetPanel(records, Budget(float("inf")))
    with pytest.raises(ValueError, match="give all three"):
        TokenMicroscope(records)
    with pytest.raises(ValueError, match="at most 64"):
        TreeExplorer(random_tree(0, 5, 3))
    (tmp_path / "bad.csv").write_text("method,budget,accuracy\nsoft,0.8,0.9\n")
    with pytest.raises(ValueError, match=r"rows\[0\] has no 'satisfaction_rate'"):
        ShootOut(tmp_path / "bad.csv")


def test_an_error_while_drawing_is_shown_and_raised(_pair, records):
    "Raised in a callback of the browser it would end in a log that nobody reads."

    def reward(completions, gold):
        return [1.0]

    models = dict(zip(("student", "teacher", "tokenizer"), _pair))
    scope = TokenMicroscope(records, **models, reward_funcs=reward)
    with pytest.raises(ValueError, match="asks for gold"):
        scope.set(follow=True)
    assert "asks for gold" in scope.blocks[0]["text"]


def test_a_notebook_that_is_not_run_shows_a_picture_with_words(records):
    "GitHub runs no widget: it needs a PNG, and a screen reader needs a text."
    data, meta = BudgetPanel(records)._repr_mimebundle_()
    assert data["image/png"].startswith("iVBORw0KGgo")
    assert len(data["image/png"]) < 150_000
    assert "satisfaction rate" in meta["image/png"]["alt"]
    assert data["text/plain"].startswith("BudgetPanel(records, d=")


WITHOUT_ANYWIDGET = """
import sys
sys.modules["anywidget"] = None
try:
    import cmdp_nbdev.widgets.panel
except ImportError as e:
    print(e)
"""


def test_without_the_extra_the_error_says_what_to_install():
    "A bare ModuleNotFoundError would send people looking for the wrong package."
    assert 'pip install "cmdp_nbdev[notebook]"' in python("-c", WITHOUT_ANYWIDGET).stdout


# ---- the panel ----------------------------------------------------------------------------


def same_as_evaluate(panel, records, budget):
    "At this limit, the panel shows what `summarize` says of the records."
    panel.set(d=budget.limit)
    expected, shown = summarize(records, budget), judge(panel.trace(), budget.limit)
    common = [k for k in shown if k in expected]
    assert [shown[k] for k in common] == pytest.approx([expected[k] for k in common], abs=1e-6)
    assert items(panel)["accuracy"] == percent(expected["accuracy"])


@pytest.mark.parametrize(
    "budget",
    [Budget(0.8), Budget(0.05, "mean"), Budget(0.05, "prefix_mean", 2)],
    ids=lambda budget: budget.aggregate,
)
def test_panel_says_what_evaluate_says(_pair, budget):
    "The rate in the picture must be the published one, at the evaluated limit and at any other."
    student, teacher, tok = _pair
    prompts = chain_dataset(64, "validation", 5)
    found = evaluate_records(student, teacher, prompts, tok, chain_reward, budget)
    panel = BudgetPanel(found, budget)
    assert panel.values["d"] == budget.limit
    inside = np.mean([r["within_budget"] for r in found])
    assert items(panel)["satisfaction rate"] == percent(inside)
    for d in (0.0, budget.limit / 2, 1.5 * budget.limit):
        same_as_evaluate(panel, found, Budget(d, budget.aggregate))
    z = [y for m in panel.blocks[3]["marks"][:2] for y in m["y"] if y is not None]
    assert max(z) <= panel.values["d"] + 1e-9  # what is left never exceeds the limit


def test_eval_jsonl_can_be_given_by_path(records, tmp_path):
    "The file a run leaves is the usual way in."
    (tmp_path / "eval.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    assert BudgetPanel(tmp_path / "eval.jsonl").blocks == BudgetPanel(records).blocks
    two = BudgetPanel({"a": records, "b": records[:8]})
    assert set(two.controls[1]["options"][1]) == {"b"}


def test_completions_without_a_reward_and_with_infinite_cost_are_shown():
    "A reward function may not apply, and a teacher may give a token probability 0."
    spent, rewards = (0.2, float("inf"), -0.01), (None, 1.0, 1.0)
    rows = [
        {"spent": s, "reward": r, "correct": False, "cost_per_token": [s / 2, s / 2]}
        for s, r in zip(spent, rewards)
    ]
    panel = BudgetPanel(rows, Budget(0.5))
    assert items(panel)["satisfaction rate"] == "66.7%"
    assert len(panel.blocks[4]["marks"][1]["x"]) == 1
    json.dumps([panel.blocks, panel.data], allow_nan=False)


def test_shipped_traces_are_small_and_documented():
    "They are downloaded with the package, and their script must say how they were made."
    traces = load_traces()
    made = json.loads((ROOT / "studies" / "traces" / "config.json").read_text())
    size = (ROOT / "cmdp_nbdev" / "data" / "traces.npz").stat().st_size
    assert size == made["bytes"] < 300_000
    assert made["students"] == len(traces)
    assert {"max_steps", "learning_rate"} <= set(made["config"])
    assert made["versions"]
    studied = set()
    for name in ("report.csv", "lambdas.csv"):
        with open(ROOT / "studies" / "methods" / name) as f:
            studied |= {row["method"] for row in csv.DictReader(f)}
    assert {t["method"] for t in traces} == studied, "run studies/traces/make_traces.py"
    assert studied <= set(METHODS)


@pytest.mark.parametrize("trace", load_traces(), ids=lambda t: f"{t['label']} {t['seed']}")
def test_the_tokens_of_a_shipped_trace_sum_to_what_it_spent(trace):
    "Sums of float16 against the float16 of the sum."
    last = np.array([row[~np.isnan(row)][-1] for row in trace["running"]])
    assert np.allclose(last, trace["spent"][: len(last)], rtol=0.01, atol=0.01)


# ---- the live trainer ---------------------------------------------------------------------


@pytest.fixture
def live(make_trainer):
    "A live trainer on the smallest batch, stopped at the end of the test."
    found = LiveTrainer(make_trainer(max_steps=100_000), every=0.0)
    yield found
    found.stop()


def until(condition, seconds=30):
    "Wait for something another thread does."
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.01)


def train(live, updates=1):
    "Make some updates, and wait for them."
    live.start(updates)
    live.wait(30)


def test_live_start_pause_step_stop(live, tmp_path):
    "The four buttons, in the order a learner presses them; a stopped run leaves a student."
    started = time.perf_counter()
    live.press("start")
    assert time.perf_counter() - started < 1  # the kernel is free at once
    assert live.status == "running"
    until(lambda: len(live.history) >= 2)
    live.press("pause")
    live.wait(30)
    at = live.trainer.global_step
    time.sleep(0.2)
    assert live.status == "paused"
    assert live.trainer.global_step == at == len(live.history)
    live.press("step")
    live.wait(30)
    assert live.trainer.global_step == at + 1
    assert items(live)["update"] == str(at + 1)
    live.press("start")
    until(lambda: len(live.history) > at + 1)
    live.stop()
    assert live.status == "stopped"
    assert not live._thread.is_alive()


def test_live_saves_a_student_that_loads_and_goes_on(live, tmp_path):
    "What was trained must not be lost, neither by saving nor by stopping."
    train(live, 2)
    live.stop()
    weights = live.student.state_dict()
    loaded = AutoModelForCausalLM.from_pretrained(live.save(tmp_path / "student"))
    assert all(torch.equal(x, weights[k].cpu()) for k, x in loaded.state_dict().items())
    train(live)
    assert live.trainer.global_step == len(live.history)  # and the run goes on


def test_live_changes_take_effect_at_the_next_update(live):
    "What the slider says must be what is trained, and the history must say what was."
    train(live)
    live.set(d=0.25, method="hinge", coef=2.0)
    train(live)
    live.set(method="soft")
    train(live)
    made_with = [(m["method"], m["budget"]) for m in live.history]
    assert made_with == [("cmdp-rate", 0.8), ("hinge", 0.25), ("soft", 0.25)]
    assert live.trainer.args.method_kwargs == {"lam": 1.0}  # no settings of another method stay
    assert live.values["lam"] == 1.0
    assert len(live.blocks[-1]["rows"]) == 4
    assert live.samples[0]["prompt"].endswith("=")


def test_live_says_that_a_multiplier_stands_at_its_bound(live):
    "A controller that can do no more looks like one that is content."

    def told():
        return [b["text"] for b in live.blocks if b.get("alert")]

    train(live)
    assert not told()
    live.history[-1]["lam"] = 4.0
    live.set(d=0.1)
    assert told() and "highest value, 4" in told()[0]
    marks = live.blocks[-2]["marks"]
    assert any("highest value" in m.get("label", "") for m in marks if m["kind"] == "rule")


def test_live_ends_and_says_how(make_trainer):
    "The last batch of a training says how its student was, and not how it is."
    live = LiveTrainer(make_trainer(max_steps=1), every=0.0)
    train(live, 5)
    assert (live.status, live.trainer.global_step) == ("finished", 1)
    assert any("held-out prompts" in b.get("text", "") for b in live.blocks)
    train(live)
    assert live.trainer.global_step == 1


def test_live_offers_only_what_can_run(make_trainer):
    "A method that needs groups, or a student that is told its budget, would end the training."
    offered = LiveTrainer(make_trainer(method="gkd", num_generations=1)).methods
    assert "gkd" in offered
    assert not {"grpo", "cmdp", "saute-augmented"} & set(offered)


def test_live_failure_is_shown_and_raised(make_trainer):
    "An error in a thread is easily lost; the run would seem to hang."
    calls = []

    def reward(completions):
        calls.append(1)
        if len(calls) > 2:
            raise RuntimeError("the judge is away")
        return [0.0] * len(completions)

    live = LiveTrainer(make_trainer(reward_funcs=reward), every=0.0)
    live.start()
    with pytest.raises(RuntimeError, match="the judge is away"):
        live.wait(30)
    assert live.status == "failed"
    assert any("the judge is away" in b.get("text", "") for b in live.blocks)
    with pytest.raises(ValueError, match="it has start, pause, step, stop"):
        live.press("go")


# ---- in a browser -------------------------------------------------------------------------

MOVES = [
    ["d", 0.3],
    ["d", 1.27],
    ["method", "grpo"],
    ["trained", 0.4],
    ["method", "cmdp"],
    ["d", 0.0],
]
DRIVER = """
<pre id="result"></pre><script type="module">
const root = document.querySelector(".cmdp");
const out = {first: performance.now(), moves: []};

function move(name, value) {
  const input = root.querySelector(`[data-name="${name}"]`);
  input.value = name === "d" ? value : JSON.stringify(value);
  input.dispatchEvent(new Event("input", {bubbles: true}));
}

const next = () => root.querySelector(".next")?.dataset.place;
const hidden = name => root.querySelector(`[data-place="${name}"]`).hidden;
out.guide = [next()];

for (const [name, value] of MOVES) {
  move(name, value);
  out.guide.push([name, next() ?? null, hidden("trained")]);
  const text = [...root.querySelectorAll(".numbers b")].map(e => e.textContent);
  const paths = root.querySelectorAll("svg[role=img] path").length;
  out.moves.push({text, paths, blocks: root.cmdpBlocks()});
}
root.cmdpTimes.length = 0;
for (let i = 0; i < 300; i++) move("d", (i % 50) / 25);
out.times = root.cmdpTimes;
document.getElementById("result").textContent = JSON.stringify(out);
</script>"""
ALONE = re.compile(r'(src|href)="|@import|fetch\(|https?://(?!www\.w3\.org)')


@pytest.fixture(scope="module")
def chromium():
    "A headless browser, where one is installed."
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    found = next((shutil.which(n) for n in names if shutil.which(n)), None)
    return found or pytest.skip("no chromium is installed")


def driven(chromium: str, page, profile) -> dict:
    "What DRIVER finds on a page: after each move, and how long each redraw took."
    text = page.read_text(encoding="utf-8")
    driver = DRIVER.replace("MOVES", json.dumps(MOVES))
    page.write_text(text.replace("</body>", driver + "</body>"), encoding="utf-8")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1280,900"]
    command = [chromium, *options, f"--user-data-dir={profile}", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    result = re.search(r'<pre id="result">(.*?)</pre>', done.stdout, re.S)
    assert result and result[1], done.stderr[-2000:]
    return json.loads(html.unescape(result[1]))


def assert_same_marks(mine: dict, theirs: dict):
    "A block of Python's and one of the browser's have the same marks, to what a picture shows."
    for a, b in zip(mine.get("marks", ()), theirs.get("marks", ())):
        assert a["kind"] == b["kind"]
        for k in ("x", "y", "base"):
            if isinstance(a.get(k), list):
                assert [v is None for v in a[k]] == [v is None for v in b[k]]
                values = ([v for v in side[k] if v is not None] for side in (a, b))
                assert np.allclose(*values, atol=2e-4)


@pytest.mark.slow
def test_the_page_draws_and_the_slider_moves_it(chromium, tmp_path, capsys):
    "The page has no Python behind it: its numbers must be Python's all the same, quickly."
    panel = BudgetPanel()
    page = panel.save_html(tmp_path / "panel.html", "Budgets & <limits>")
    text = page.read_text(encoding="utf-8")
    assert "<title>Budgets &amp; &lt;limits&gt;</title>" in text
    assert not ALONE.search(text)
    out = driven(chromium, page, tmp_path / "profile")
    for (name, value), seen in zip(MOVES, out["moves"]):
        panel.set(**{name: value})
        assert seen["text"] == list(items(panel).values())
        assert seen["paths"] > 10
        for mine, theirs in zip(panel.blocks, seen["blocks"]):
            assert_same_marks(mine, theirs)
    assert len({tuple(m["text"]) for m in out["moves"]}) >= 5  # every move showed something else
    # what is to be touched next stands out; a menu that does nothing for a method is not there
    assert out["guide"][:2] == ["d", ["d", "method", False]]
    assert out["guide"][3] == ["method", None, True]  # grpo reads no budget
    thirds = (out["times"][i : i + 100] for i in (0, 100, 200))
    median, p95 = min(tuple(np.quantile(t, [0.5, 0.95])) for t in thirds)  # of a busy machine
    with capsys.disabled():
        print(f"\npanel in {chromium}: first drawing {out['first']:.0f} ms after the page's start,")
        print(f"redraw median {median:.1f} ms, p95 {p95:.1f} ms")
    assert median <= 16
    assert out["first"] < 1000
