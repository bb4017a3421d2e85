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

NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))
NUMBERED = [p for p in NOTEBOOKS if re.match(r"\d\d_", p.name)]
EXPORTED = [p for p in NUMBERED if "default_exp" in p.read_text(encoding="utf-8")]  # the others prove things about these
ORDER = {p.stem[3:]: int(p.stem[:2]) for p in EXPORTED}  # module -> number
ALL = NOTEBOOKS + sorted((ROOT / "tutorials").rglob("*.ipynb"))
name = lambda p: p.stem


def cells(path): return json.loads(path.read_text(encoding="utf-8"))["cells"]


def test_there_is_a_notebook_for_every_module():
    "A module without a notebook was edited by hand."
    modules = {p.stem for p in (ROOT / "cmdp_nbdev").glob("*.py")} - {"__init__", "_modidx", "__main__"}
    assert modules == set(ORDER) and len(modules) > 9


@pytest.mark.slow
def test_the_library_is_a_fresh_export(tmp_path):
    "Whoever reads a notebook must read what runs."
    tool = shutil.which("nbdev-export") or str(Path(sys.executable).parent / "nbdev-export")
    if not Path(tool).exists(): pytest.skip("nbdev is not installed")
    for item in ("settings.ini", "pyproject.toml", "setup.py", "README.md", "nbs"):
        (shutil.copytree if (ROOT / item).is_dir() else shutil.copy)(ROOT / item, tmp_path / item)
    (tmp_path / "cmdp_nbdev").mkdir()
    shutil.copy(ROOT / "cmdp_nbdev" / "__init__.py", tmp_path / "cmdp_nbdev")  # holds the version; written by nbdev-bump-version alone
    done = subprocess.run([tool], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    here, fresh = ({p.name: p.read_text() for p in (r / "cmdp_nbdev").glob("*.py")} for r in (ROOT, tmp_path))
    assert set(here) == set(fresh)
    assert not [n for n in here if here[n] != fresh[n]], "run nbdev-export and commit"


@pytest.mark.parametrize("path", ALL, ids=name)
def test_notebooks_are_clean(path):
    "Outputs of one machine, counters and widget states make every change unreadable."
    nb = json.loads(path.read_text(encoding="utf-8"))
    assert "widgets" not in nb["metadata"]
    for cell in nb["cells"]:
        assert not set(cell["metadata"]) & {"execution", "ExecuteTime"}
        if cell["cell_type"] != "code": continue
        assert cell["execution_count"] is None
        for out in cell["outputs"]:
            assert out.get("execution_count") is None and out["output_type"] != "error"
            text = json.dumps(out)
            assert not re.search(r"(?<![\w.])/(work|root|home|tmp|Users|usr)/\w", text), text[:200]
            assert "widget-view" not in text


@pytest.mark.parametrize("path", EXPORTED, ids=name)
def test_modules_build_on_earlier_ones_only(path):
    "The numbers are the order to read in: nothing may need what comes later."
    number, used = int(path.stem[:2]), set()
    for cell in cells(path):
        source = "".join(cell["source"])
        if cell["cell_type"] != "code" or not re.match(r"\s*#\|\s*exporti?\b", source): continue
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("cmdp_nbdev")):
                module = (node.module or "").removeprefix("cmdp_nbdev").strip(".")
                used |= {module.split(".")[0]} if module else {a.name for a in node.names}
            elif isinstance(node, ast.Import): used |= {a.name.split(".")[1] for a in node.names if a.name.startswith("cmdp_nbdev.")}
    assert used <= set(ORDER) and all(ORDER[m] < number for m in used), {m: ORDER.get(m) for m in used}


@pytest.mark.parametrize("path", NUMBERED, ids=name)
def test_check_cells_import_earlier_modules_only(path):
    "Examples may not need a later notebook either."
    source = "\n".join("".join(c["source"]) for c in cells(path) if c["cell_type"] == "code")
    used = set(re.findall(r"from cmdp_nbdev\.(\w+) import", source))
    assert all(ORDER[m] < int(path.stem[:2]) for m in used), used


@pytest.mark.parametrize("module", ORDER)
def test_everything_public_is_documented(module):
    "`?name` in a notebook must answer."
    mod = importlib.import_module(f"cmdp_nbdev.{module}")
    assert mod.__doc__ and mod.__all__
    missing = []
    for n in mod.__all__:
        thing = getattr(mod, n)
        if not (inspect.isclass(thing) or inspect.isfunction(thing)): continue
        doc = thing.__doc__ or ""
        if not doc.strip() or doc.startswith(f"{n}("): missing.append(n)  # a dataclass without one gets its signature
        if inspect.isclass(thing): missing += [f"{n}.{k}" for k, f in vars(thing).items() if not k.startswith("_") and (inspect.isfunction(f) or isinstance(f, property)) and not (f.fget if isinstance(f, property) else f).__doc__]
    assert not missing


def test_every_setting_says_what_it_means():
    "`--help` is made of these; a field without unit and range cannot be set."
    import dataclasses

    from cmdp_nbdev.cli import RunArguments
    from cmdp_nbdev.trainer import CMDPConfig
    for cls in (CMDPConfig, RunArguments):
        for f in dataclasses.fields(cls): assert len(f.metadata.get("help", "")) > 10, f.name
