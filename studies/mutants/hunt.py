"""Whether the tests catch a mutant: processes that are forked from one that has imported all.

`Warm` has collected the tests; a child of it gets the functions of the mutant, which takes
milliseconds. Where the error is outside of any function (a constant, a default, a decorator) a
child that has imported third-party packages only imports `cmdp_nbdev` with the file changed.
"""

from __future__ import annotations

import gc
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import re
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterable
from pathlib import Path

import _pytest.main
import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "cmdp_nbdev"
COMPILED = Path("/tmp") / f"mutants-{os.getuid()}"  # compiled files, not beside the sources
SLOWEST = 6.0  # CPU seconds: a slower test is left out
LONGEST = 900  # seconds by the clock, for a mutant that waits
PYTEST = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--no-header", "--tb=no"]


def cpu() -> float:
    "CPU seconds of this process."
    return sum(resource.getrusage(resource.RUSAGE_SELF)[:2])


def prepare() -> None:
    "Paths and one thread, in a process that has not imported the package yet."
    assert not any(name.split(".")[0] == "cmdp_nbdev" for name in sys.modules)
    sys.dont_write_bytecode, sys.pycache_prefix = False, str(COMPILED)
    sys.path.insert(0, str(ROOT))
    os.chdir(ROOT)
    subprocess.Popen = _NoPython


class _NoPython(subprocess.Popen):
    "A test that starts Python again would leave the mutant behind, and takes ten seconds."

    def __init__(self, args, *more, **settings):
        words = [args] if isinstance(args, (str, bytes, os.PathLike)) else list(args)
        if any("python" in str(word) for word in words[:2]):
            pytest.skip("starts a process")
        super().__init__(args, *more, **settings)


# ---- measuring the tests ----------------------------------------------------------------


class _Measure:
    "pytest plugin: one line of JSON per test: outcome, CPU seconds, lines of the modules it ran."

    def __init__(self, coverage, file, done: set[str]):
        self.coverage, self.file, self.done = coverage, file, done

    def pytest_collection_modifyitems(self, items):
        "Leave out what is measured already."
        items[:] = [item for item in items if item.nodeid not in self.done]

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item, nextitem):
        "Watch one test."
        self.outcome, start = "passed", cpu()
        signal.signal(signal.SIGPROF, lambda *_: pytest.skip("slow"))
        signal.setitimer(signal.ITIMER_PROF, SLOWEST)
        self.coverage.start()
        yield
        self.coverage.stop()
        signal.setitimer(signal.ITIMER_PROF, 0)
        data = self.coverage.get_data()
        lines = {Path(f).stem: sorted(data.lines(f)) for f in data.measured_files()}
        row = dict(test=item.nodeid, outcome=self.outcome, seconds=round(cpu() - start, 4))
        self.file.write(json.dumps({**row, "lines": lines}) + "\n")
        self.file.flush()
        self.coverage.erase()

    def pytest_runtest_logreport(self, report):
        "Keep what is not a pass."
        if report.outcome != "passed":
            self.outcome = report.outcome


def measure(modules: Iterable[str], tests: list[str], path: Path) -> None:
    "Append a line for every test that has none yet."
    import coverage

    done = {row["test"] for row in read(path)}
    prepare()
    files = [str(PACKAGE / f"{module}.py") for module in modules]
    watch = coverage.Coverage(data_file=None, config_file=False, include=files)
    with path.open("a") as file:
        pytest.main([*PYTEST, *tests], plugins=[_Measure(watch, file, done)])


def read(path: Path) -> list[dict]:
    "The measured tests."
    return [json.loads(line) for line in path.open()] if path.exists() else []


# ---- a child ----------------------------------------------------------------------------


def forked(work: Callable, longest: float | None = LONGEST) -> tuple[str, str]:
    "What `work(say)` says first, in a process of its own: a verdict and a test."
    get, put = os.pipe()
    child = os.fork()
    if not child:
        os.close(get)
        os.setpgid(0, 0)

        def say(verdict, test=""):
            os.write(put, json.dumps([verdict, test]).encode())
            os._exit(0)

        try:
            work(say)
        except BaseException as error:  # whatever a mutant does to the imports
            say("caught", f"import: {type(error).__name__}")
        os._exit(1)
    os.close(put)
    heard = b""
    ends = None if longest is None else time.monotonic() + longest
    while select.select([get], [], [], ends and max(0.0, ends - time.monotonic()))[0]:
        part = os.read(get, 4096)
        heard += part
        if not part:
            break
    else:
        heard = b'["timed out", "clock"]'
    os.close(get)
    try:
        os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:
        pass
    os.waitpid(child, 0)
    return tuple(json.loads(heard or b'["caught", "the process died"]'))


class _Watch:
    "pytest plugin: says which test fails, or takes ten times as long as usual and five seconds."

    def __init__(self, seconds: dict[str, float], say: Callable):
        self.seconds, self.say = seconds, say

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item, nextitem):
        "Set the alarm."
        signal.signal(signal.SIGPROF, lambda *_: self.say("timed out", item.nodeid))
        signal.setitimer(signal.ITIMER_PROF, 5 + 10 * self.seconds[item.nodeid])
        yield
        signal.setitimer(signal.ITIMER_PROF, 0)

    def pytest_runtest_logreport(self, report):
        "The first failure ends it."
        if report.failed:
            self.say("caught", report.nodeid)


class _Chosen:
    "pytest plugin: only some tests, in their order."

    def __init__(self, tests: Iterable[str]):
        self.place = {test: i for i, test in enumerate(tests)}

    def pytest_collection_modifyitems(self, items):
        "Choose."
        mine = [item for item in items if item.nodeid in self.place]
        items[:] = sorted(mine, key=lambda item: self.place[item.nodeid])


# ---- errors inside of functions ---------------------------------------------------------


def _codes(code: types.CodeType) -> Iterable[types.CodeType]:
    "A code object and all that it holds."
    yield code
    for part in code.co_consts:
        if isinstance(part, types.CodeType):
            yield from _codes(part)


def _same_itself(a: types.CodeType, b: types.CodeType) -> bool:
    "Whether two code objects do the same, what they hold aside."
    plain = [[c for c in x.co_consts if not isinstance(c, types.CodeType)] for x in (a, b)]
    return a.co_code == b.co_code and a.co_names == b.co_names and repr(plain[0]) == repr(plain[1])


def _place(code: types.CodeType) -> tuple[str, int]:
    "Name and first line: `patch` makes copies of methods under another qualified name."
    return code.co_name, code.co_firstlineno


def changed_functions(path: Path, old: str, new: str) -> dict[tuple, types.CodeType] | None:
    """New code of changed functions by name and line.

    None if something else changed, too, or two functions of one name stand on one line.
    """
    both = (_codes(compile(text, str(path), "exec", dont_inherit=True)) for text in (old, new))
    changed = {}
    for a, b in zip(*both):
        is_function = bool(a.co_flags & 2)  # CO_NEWLOCALS; a class body or a module has not
        if _place(a) != _place(b) or not (is_function or _same_itself(a, b)):
            return None
        if is_function and a != b:
            if _place(b) in changed:
                return None
            changed[_place(b)] = b
    return changed or None


class Warm:
    "A process that has imported the package and collected the tests."

    def __init__(self, files: list[str], work: Callable):
        self.files, self.work = files, work

    def run(self) -> None:
        "Collect, then `work(self)`."
        pytest.main([*PYTEST, *self.files], plugins=[self])

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session):
        "Instead of running the tests."
        self.session = session
        self.items = {item.nodeid: item for item in session.items}
        self.functions = {}
        for thing in gc.get_objects():
            if type(thing) is types.FunctionType:  # isinstance would ask proxies
                key = (thing.__code__.co_filename, *_place(thing.__code__))
                self.functions.setdefault(key, []).append(thing)
        gc.collect()
        gc.freeze()
        self.work(self)
        return True

    def hunt(self, path: Path, changed: dict, seconds: dict[str, float]) -> tuple[str, str]:
        "The verdict on a mutant of the file at `path`, by the tests in `seconds`."

        def work(say):
            for (name, line), code in changed.items():
                for function in self.functions.get((str(path), name, line), ()):
                    function.__code__ = code
            watch = _Watch(seconds, say)
            self.session.config.pluginmanager.register(watch)
            self.session.items = [self.items[test] for test in seconds if test in self.items]
            _pytest.main.pytest_runtestloop(self.session)
            say("survived")

        return forked(work)


# ---- all other errors -------------------------------------------------------------------


class _Loader(importlib.machinery.SourceFileLoader):
    "Loads a module from another text than that of its file."

    def get_code(self, fullname):
        return compile(self.text, self.path, "exec", dont_inherit=True)


class _Finder(importlib.abc.MetaPathFinder):
    "The module in the file at `path` is what `text` says."

    def __init__(self, path: Path, text: str):
        self.path, self.text = path, text

    def find_spec(self, fullname, path=None, target=None):
        "The changed module; None for all others."
        if fullname != f"cmdp_nbdev.{self.path.stem}":
            return None
        loader = _Loader(fullname, str(self.path))
        loader.text = self.text
        return importlib.util.spec_from_file_location(fullname, self.path, loader=loader)


def cold_hunt(path: Path, text: str, seconds: dict[str, float]) -> tuple[str, str]:
    "The verdict on a mutant whose file says `text`; for a process that has not imported it."

    def work(say):
        prepare()
        sys.meta_path.insert(0, _Finder(path, text))
        files = list(dict.fromkeys(test.partition("::")[0] for test in seconds))
        code = pytest.main([*PYTEST, *files], plugins=[_Chosen(seconds), _Watch(seconds, say)])
        say("survived") if code == 0 else say("caught", "collection")

    return forked(work)


# ---- notebooks --------------------------------------------------------------------------


def parts(text: str) -> dict[str, str]:
    "A module's text by the id of the cell that it comes from."
    _, *rest = re.split(r"^# %% \S+\.ipynb #(\S+)\n", text, flags=re.M)
    return {name: part.partition("\n# %% ")[0].strip() for name, part in zip(rest[::2], rest[1::2])}


def changed_notebook(path: Path, text: str) -> tuple[str, dict]:
    "Name and content of the notebook of the module at `path`, if that says `text`."
    source = path.read_text(encoding="utf-8")
    name = re.search(r"File to edit: \.\./nbs/(\S+)\.ipynb", source)[1] + ".ipynb"
    book = json.loads((ROOT / "nbs" / name).read_text(encoding="utf-8"))
    old, new = parts(source), parts(text)
    for cell in book["cells"]:
        if new.get(cell["id"]) != old.get(cell["id"]):
            cell["source"] = f"#| export\n{new[cell['id']]}"
    return name, book


def notebook_hunt(path: Path, text: str, longest: float = 120.0) -> tuple[str, str]:
    "The verdict of the module's own notebook; `longest`: CPU seconds after which it is timed out."

    def work(say):
        prepare()
        from nbdev.test import test_nb

        sys.meta_path.insert(0, _Finder(path, text))
        signal.signal(signal.SIGPROF, lambda *_: say("timed out", name))
        signal.setitimer(signal.ITIMER_PROF, longest)
        name, book = changed_notebook(path, text)
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / name
            copy.write_text(json.dumps(book), encoding="utf-8")
            os.chdir(ROOT / "nbs")
            passed, _ = test_nb(copy, basepath=ROOT, showerr=False)
        say("survived" if passed else "caught", f"nbs/{name}")

    return forked(work)
