"Graders that are busy for ever, that are killed, and that are left alone."

import importlib.util
import os
import signal
import time
import warnings
from pathlib import Path

import pytest

from cmdp_nbdev import tasks
from cmdp_nbdev.tasks import _grade, _in_turns, math_reward, same_answers

pytestmark = pytest.mark.skipif(
    not (importlib.util.find_spec("math_verify") and Path("/proc/self/stat").exists()),
    reason="needs the extra 'math' and Linux",
)
HOSTILE = (
    "9^{9^{9^{9}}}x",
    r"\int_0^{9^{9^{9}}} x^{x^{x}} dx",
    r"\sum_{k=1}^{10^{12}} \sin(k)^{k}",
    r"x^{9^{9^{9^{9}}}}",
)


def forks() -> list[int]:
    "The processes below the grading process."
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        if int(fields[1]) == _grade.process.pid and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def gone(pids, seconds=5.0) -> bool:
    "Whether processes end before so much time has passed."
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not any(os.path.exists(f"/proc/{pid}") for pid in pids):
            return True
        time.sleep(0.02)
    return False


def test_turns():
    "Each gets a little first; who is not finished gets more, while the batch has any."
    needed, asked = {"a": 0.1, "b": 9.0, "c": 0.7, "d": 4.0}, []

    def ask(seconds, question):
        asked.append((question, seconds))
        return [1.0, None, needed[question]] if needed[question] <= seconds else None

    replies = _in_turns(ask, list("abcd"), 5.0, 20.0)
    assert [r[0] for r in replies] == [1.0, 0.0, 1.0, 1.0]
    assert replies[1][1] == "did not finish within 5 s of CPU time"
    assert asked == [
        *((q, 0.2) for q in "abcd"),
        *((q, 1.0) for q in "bcd"),
        *((q, 5.0) for q in "bd"),
    ]
    short = _in_turns(ask, list("dab"), 5.0, 0.3)
    assert [r[0] for r in short] == [0.0, 1.0, 0.0]
    assert "within the 0.3 s of CPU time that a batch has" in short[0][1]


def test_a_hostile_batch_is_bounded(monkeypatch):
    "64 answers that never end, honest ones among them; counted; one process and one fork are left."
    monkeypatch.setattr(tasks, "_WARNED", set())
    assert same_answers(["2x"], ["x+x"]) == ([True], 0)  # imports
    answers = [f"{HOSTILE[k % 4]}+{k}" for k in range(64)]
    answers[1::16] = ["x+x"] * 4
    logged = {}
    monkeypatch.setattr(same_answers, "__defaults__", (0.5, 2.0))
    began = time.process_time(), time.monotonic()
    completions = [rf"\boxed{{{a}}}" for a in answers]
    with pytest.warns(UserWarning, match="did not finish within") as seen:
        rewards = math_reward(
            [""] * 64, completions, ["2x"] * 64, log_metric=lambda *given: logged.update([given])
        )
    assert time.process_time() - began[0] < 1
    assert time.monotonic() - began[1] < 60  # two seconds, on a busy machine
    print(f"answers that never end: {seen[0].message}")
    assert rewards[1] == 1.0 and sum(rewards) <= 4
    assert logged["unfinished_grades"] >= 0.4
    assert len(forks()) <= 1


def test_a_killed_worker_is_replaced():
    "Its answer is graded all the same, and so is that of a whole process that was killed."
    assert same_answers(["2x"], ["x+x"]) == ([True], 0)
    for pids in (forks(), [_grade.process.pid]):
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        with warnings.catch_warnings(action="error"):
            assert same_answers(["2x", "x^2"], ["x+x", "x+x"]) == ([True, False], 0)
    print("a worker killed, then the whole grading process: nothing is seen, the answer is graded")


def test_nothing_is_left_behind():
    "The pipe of whoever asks is closed, as the system does it when he is killed: all is gone."
    _grade.start()
    _grade.process.stdin.write('[60, 60, "latex", [], [["x", "x^{9^{9^{9^{9}}}}"]]]\n')
    _grade.process.stdin.flush()
    end = time.monotonic() + 60
    while not forks() and time.monotonic() < end:
        time.sleep(0.02)
    pids = [_grade.process.pid, *forks()]
    assert len(pids) == 2
    _grade.process.stdin.close()
    _grade.process.wait(5)
    assert gone(pids[1:])
    _grade.process.stdout.close()
    _grade.process = None
