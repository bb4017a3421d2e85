"One version, one list of settings, and nothing of a development machine in the repository."

import json
import re
import subprocess
import tomllib
from configparser import ConfigParser

import pytest
from conftest import ROOT

import cmdp_nbdev

VERSION = cmdp_nbdev.__version__


@pytest.fixture(scope="module")
def ini():
    parser = ConfigParser(delimiters=["="])
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return parser["DEFAULT"]


@pytest.fixture(scope="module")
def toml():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_settings_and_pyproject_agree(ini, toml):
    "nbdev reads one file, setup.py the other; a difference would build another package than was tested."
    assert ini["version"] == VERSION
    assert toml["project"]["name"] == ini["lib_name"] == ini["repo"] == "cmdp_nbdev"
    assert toml["project"]["requires-python"] == f">={ini['min_python']}"
    assert toml["tool"]["nbdev"]["tst_flags"] == ini["tst_flags"]
    assert (
        ini["lib_path"] == "cmdp_nbdev"
        and ini["nbs_path"] == "nbs"
        and (ROOT / ini["nbs_path"]).is_dir()
    )


def test_installed_metadata_agrees(ini):
    "pip must report the version and requirements that settings.ini states."
    from importlib.metadata import distribution

    found = distribution("cmdp_nbdev")
    assert (
        found.version == VERSION and found.metadata["Requires-Python"] == f">={ini['min_python']}"
    )
    plain = {re.split(r"[<>=;\s]", r)[0] for r in found.requires if "extra" not in r}
    assert plain == {re.split(r"[<>=]", r)[0] for r in ini["requirements"].split()}
    assert {e.name: e.value for e in found.entry_points if e.group == "console_scripts"} == {
        "cmdp-distill": "cmdp_nbdev.cli:main",
        "cmdp-prepare": "cmdp_nbdev.prepare:main",
    }


def test_every_import_of_the_library_is_a_requirement(ini):
    "A missing requirement breaks the first import in a fresh environment."
    import ast
    import sys

    def wanted(key):
        return {
            re.split(r"[<>=]", r)[0].replace("pyyaml", "yaml").replace("-", "_")
            for r in ini[key].split()
        }

    names, users = set(), {"notebook": set(), "math": set(), "lora": set(), "trl": set()}
    for path in (ROOT / "cmdp_nbdev").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            found = (
                {a.name.split(".")[0] for a in node.names}
                if isinstance(node, ast.Import)
                else {node.module.split(".")[0]}
                if isinstance(node, ast.ImportFrom) and not node.level
                else set()
            )
            names |= found
            for extra, modules in users.items():
                if found & (wanted(f"{extra}_requirements") - wanted("requirements")):
                    modules.add(path.stem)
    assert names - set(sys.stdlib_module_names) - {"cmdp_nbdev", "sympy"} <= wanted(
        "requirements"
    ).union(*(wanted(f"{extra}_requirements") for extra in users))
    assert users["notebook"] <= {"chart", "view"}, "only the widgets may need the extra 'notebook'"
    assert users["math"] <= {"tasks"}, "only the tasks from elsewhere may need the extra 'math'"
    assert users["lora"] <= {"prepare"}, "only the fine-tuning may need the extra 'lora'"
    assert users["trl"] <= {"trl"}, "only the engine for several devices may need the extra 'trl'"


def test_extras_are_imported_when_needed():
    "The library must load and run without the extras: only the module that an extra is for imports it at its top."
    import ast

    for path in (ROOT / "cmdp_nbdev").rglob("*.py"):
        top = {
            (a.name if isinstance(n, ast.Import) else n.module or "").split(".")[0]
            for n in ast.parse(path.read_text()).body
            if isinstance(n, (ast.Import, ast.ImportFrom))
            for a in n.names
        }
        assert path.parent.name == "widgets" or not top & {
            "anywidget",
            "ipywidgets",
            "matplotlib",
            "reasoning_gym",
            "math_verify",
            "sympy",
        }, path.stem
        assert path.stem == "trl" or "trl" not in top, path.stem


@pytest.mark.parametrize("name", ["CITATION.cff", "CHANGELOG.md"])
def test_citation_and_changelog_name_this_version(name):
    "A paper must be able to cite the version it used."
    text = (ROOT / name).read_text(encoding="utf-8")
    pattern = (
        rf"^version:\s*[\"']?{re.escape(VERSION)}[\"']?\s*$"
        if name.endswith("cff")
        else rf"^##? .*\b{re.escape(VERSION)}\b"
    )
    assert re.search(pattern, text, re.M), f"{name} does not mention version {VERSION}"


@pytest.fixture(scope="module")
def committed():
    "Every committed text file, by path."
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no git checkout")
    texts = {}
    for name in filter(None, listed.split("\0")):
        try:
            texts[name] = (ROOT / name).read_bytes().decode("utf-8")
        except (UnicodeDecodeError, FileNotFoundError):
            pass  # binary, or just being removed
    assert "settings.ini" in texts
    return texts


SLASH = "/"
FORBIDDEN = {
    "a path of a development machine": rf"(?<![\w.~$}}-]){SLASH}(work|root|home|Users){SLASH}[\w.-]+",
    "a package registry": "|".join(
        [
            "py" + r"pi\.org",
            "python" + r"hosted\.org",
            "opt/" + "py" + "pi",
            "registry" + r"\.npmjs",
            "conda" + r"\.anaconda\.org",
            "index" + "-url",
            "extra-" + "index",
        ]
    ),
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_trace_of_a_development_machine(committed, what):
    "Paths and hosts of one machine break everybody else's, and tell about private ones."
    found = [
        f"{name}: {m.group()}"
        for name, text in committed.items()
        for m in re.finditer(FORBIDDEN[what], text)
    ]
    assert not found, found[:10]


def test_the_patterns_would_find_something():
    "A pattern that never matches would pass for ever."
    for text in (
        f"see {SLASH}work{SLASH}main",
        f'"{SLASH}root{SLASH}x"',
        f"{SLASH}home{SLASH}jane",
    ):
        assert re.search(FORBIDDEN["a path of a development machine"], text)
    for text in ("https://" + "pypi" + ".org/simple", "/opt" + "/pypi/x"):
        assert re.search(FORBIDDEN["a package registry"], text)
    assert not re.search(
        FORBIDDEN["a path of a development machine"], "https://example.org/home/page"
    )


def test_shipped_checkpoints_are_small_and_documented():
    "The embedded pair must load at once, with the script and settings that made it in the repository."
    weights = list((ROOT / "cmdp_nbdev" / "data").rglob("*.safetensors"))
    assert len(weights) == 2 and sum(p.stat().st_size for p in weights) < 1_000_000
    made = json.loads((ROOT / "studies" / "pretrain" / "metrics.json").read_text())
    assert (ROOT / "studies" / "pretrain" / "pretrain.py").is_file() and {"seed", "steps"} <= set(
        made["teacher"]
    ) & set(made["student"])
