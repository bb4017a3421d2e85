"The notebooks are the source: the library is exactly their export, and they are clean."

import ast
import importlib
import inspect
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

NBS = ROOT / "nbs"
# a later wing may use an earlier one, and the numbers count within a wing
WINGS = ("moved", "", "theory", "widgets")
NOTEBOOKS = sorted(p for p in NBS.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
NUMBERED = [p for p in NOTEBOOKS if re.match(r"\d\d_", p.name)]
ALL = NOTEBOOKS + sorted((ROOT / "tutorials").rglob("*.ipynb"))
MAX_BYTES = 200_000  # plotly's own data weighs megabytes
PRIVATE = re.compile(r"(?<![\w.])/(work|root|home|tmp|Users|usr)/\w")  # a path of one machine


def place(path):
    "Where a notebook stands in the reading order: its wing, then its number."
    wing = path.relative_to(NBS).parent.as_posix().removeprefix(".")
    return WINGS.index(wing), int(path.stem[:2])


def exports(path):
    "The modules that a notebook writes: that of `default_exp`, and those that a cell names itself."
    text = "\n".join("".join(c["source"]) for c in cells(path) if c["cell_type"] == "code")
    default = re.findall(r"^#\| default_exp ([\w.]+)", text, re.M)
    return default + re.findall(r"^#\| exporti? ([\w.]+)$", text, re.M)


def name(p):
    return p.stem


def cells(path):
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


EXPORTED = [p for p in NUMBERED if exports(p)]  # the others prove things about these
ORDER = {module: place(p) for p in EXPORTED for module in exports(p)}


def library_modules(root):
    "Every module of the library by its dotted name, with its text."
    folder = root / "cmdp_nbdev"
    paths = [p for p in folder.rglob("*.py") if "__pycache__" not in p.parts]
    return {p.relative_to(folder).with_suffix("").as_posix().replace("/", "."): p for p in paths}


def imported_modules(source):
    "The modules of the library that a piece of code imports, by dotted name."
    used = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module, *(f"{node.module}.{a.name}" for a in node.names)]
        else:
            names = []
        used |= {n.removeprefix("cmdp_nbdev.") for n in names}
    return used & set(ORDER)


def test_there_is_a_notebook_for_every_module():
    "A module without a notebook was edited by hand."
    generated = {"__init__", "_modidx", *(f"{wing}.__init__" for wing in WINGS if wing)}
    assert set(library_modules(ROOT)) - generated == set(ORDER) and len(ORDER) > 9


@pytest.mark.slow
def test_the_library_is_a_fresh_export(tmp_path):
    "Whoever reads a notebook must read what runs."
    tool = shutil.which("nbdev-export") or str(Path(sys.executable).parent / "nbdev-export")
    if not Path(tool).exists():
        pytest.skip("nbdev is not installed")
    for item in ("settings.ini", "pyproject.toml", "setup.py", "README.md"):
        shutil.copy(ROOT / item, tmp_path / item)
    shutil.copytree(NBS, tmp_path / "nbs")
    (tmp_path / "cmdp_nbdev").mkdir()
    # holds the version; written by nbdev-bump-version alone
    shutil.copy(ROOT / "cmdp_nbdev" / "__init__.py", tmp_path / "cmdp_nbdev")
    done = subprocess.run([tool], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    here, fresh = (
        {name: path.read_text() for name, path in library_modules(root).items()}
        for root in (ROOT, tmp_path)
    )
    assert set(here) == set(fresh)
    assert not [n for n in here if here[n] != fresh[n]], "run nbdev-export and commit"


@pytest.mark.parametrize("path", ALL, ids=name)
def test_notebooks_are_clean(path):
    "Stored outputs are for readers; counters, widget states and paths make changes unreadable."
    assert path.stat().st_size <= MAX_BYTES, "store fewer or smaller pictures"
    nb = json.loads(path.read_text(encoding="utf-8"))
    assert "widgets" not in nb["metadata"]
    for cell in nb["cells"]:
        assert not set(cell["metadata"]) & {"execution", "ExecuteTime"}
        if cell["cell_type"] == "code":
            assert cell["execution_count"] is None
            for output in cell["outputs"]:
                check_output(output)


def check_output(output):
    "What is stored of a cell is what it shows, wherever it ran."
    assert output.get("execution_count") is None and output["output_type"] != "error"
    text = json.dumps(output)
    assert not PRIVATE.search(text), text[:200]
    assert "widget-view" not in text and "application/vnd.plotly" not in text


def code_cells(path, exported):
    "The code of a notebook's cells that are exported, or of those that are not."
    for cell in cells(path):
        source = "".join(cell["source"])
        if cell["cell_type"] != "code" or source.startswith("%"):
            continue
        if exported == bool(re.match(r"\s*#\|\s*exporti?\b", source)):
            yield source


@pytest.mark.parametrize("path", NUMBERED, ids=name)
@pytest.mark.parametrize("exported", [True, False], ids=["library", "examples"])
def test_notebooks_build_on_earlier_ones_only(path, exported):
    "The numbers are the order to read in: nothing may need what comes later, examples neither."
    used = set().union(*map(imported_modules, code_cells(path, exported)))
    late = {module for module in used if ORDER[module] > place(path)}
    assert not late, late


@pytest.mark.parametrize("module", ORDER)
def test_everything_public_is_documented(module):
    "`?name` in a notebook must answer."
    mod = importlib.import_module(f"cmdp_nbdev.{module}")
    assert mod.__doc__ and (mod.__all__ or hasattr(mod, "__getattr__"))  # or names that moved
    missing = []
    for n in mod.__all__:
        thing = getattr(mod, n)
        if not (inspect.isclass(thing) or inspect.isfunction(thing)):
            continue
        doc = thing.__doc__ or ""
        if not doc.strip() or doc.startswith(f"{n}("):
            missing.append(n)  # a dataclass without one gets its signature
        if inspect.isclass(thing):
            missing += [
                f"{n}.{k}"
                for k, f in vars(thing).items()
                if not k.startswith("_")
                and (inspect.isfunction(f) or isinstance(f, property))
                and not (f.fget if isinstance(f, property) else f).__doc__
            ]
    assert not missing


def test_every_setting_says_what_it_means():
    "`--help` is made of these; a field without unit and range cannot be set."
    import dataclasses

    from cmdp_nbdev.options import RunArguments
    from cmdp_nbdev.trainer import CMDPConfig

    for cls in (CMDPConfig, RunArguments):
        for f in dataclasses.fields(cls):
            assert len(f.metadata.get("help", "")) > 10, f.name
