"One version, one list of settings, and nothing of a development machine in the repository."

import ast
import json
import re
import subprocess
import sys
import tomllib
from configparser import ConfigParser
from importlib.metadata import distribution

import pytest
from conftest import ROOT

import cmdp_nbdev

VERSION = cmdp_nbdev.__version__


@pytest.fixture(scope="module")
def ini():
    "What people edit."
    parser = ConfigParser(delimiters=["="])
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return parser["DEFAULT"]


@pytest.fixture(scope="module")
def toml():
    "What nbdev and pip must find."
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def name_of(requirement):
    "The distribution that a requirement asks for."
    return re.split(r"[<>=;\s]", requirement)[0]


def test_settings_and_pyproject_agree(ini, toml):
    "nbdev reads one file, setup.py the other; a difference would build an untested package."
    assert ini["version"] == VERSION
    assert toml["project"]["name"] == ini["lib_name"] == ini["repo"] == "cmdp_nbdev"
    assert toml["project"]["requires-python"] == f">={ini['min_python']}"
    assert toml["tool"]["nbdev"]["tst_flags"] == ini["tst_flags"]
    assert ini["lib_path"] == "cmdp_nbdev" and ini["nbs_path"] == "nbs"
    assert (ROOT / ini["nbs_path"]).is_dir()


def test_installed_metadata_agrees(ini):
    "pip must report the version and requirements that settings.ini states."
    found = distribution("cmdp_nbdev")
    assert found.version == VERSION
    assert found.metadata["Requires-Python"] == f">={ini['min_python']}"
    plain = {name_of(r) for r in found.requires if "extra" not in r}
    assert plain == {name_of(r) for r in ini["requirements"].split()}
    scripts = {e.name: e.value for e in found.entry_points if e.group == "console_scripts"}
    assert scripts == {
        "cmdp": "cmdp_nbdev.cli:cmdp",
        "cmdp-distill": "cmdp_nbdev.cli:main",
        "cmdp-prepare": "cmdp_nbdev.cli:prepare_main",
        "cmdp-evaluate": "cmdp_nbdev.cli:evaluate_main",
        "cmdp-certify": "cmdp_nbdev.cli:certify_main",
        "cmdp-plan": "cmdp_nbdev.cli:plan_main",
        "cmdp-repeat": "cmdp_nbdev.cli:repeat_main",
    }


# ---- requirements and imports -------------------------------------------------------------


def modules_of(ini, key):
    "The modules that a list of requirements brings."
    names = {name_of(r).replace("-", "_") for r in ini[key].split()}
    return {"yaml" if name == "pyyaml" else name for name in names}


def imports(nodes):
    "The distributions that some statements import."
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.split(".")[0])
    return found


@pytest.fixture(scope="module")
def library():
    "Every module of the library, parsed."
    paths = sorted((ROOT / "cmdp_nbdev").rglob("*.py"))
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in paths}


def test_every_import_of_the_library_is_a_requirement(ini, library):
    "A missing requirement breaks the first import in a fresh environment."
    used = set().union(*(imports(ast.walk(tree)) for tree in library.values()))
    keys = ("requirements", *(f"{extra}_requirements" for extra in USERS))
    stated = set().union(*(modules_of(ini, key) for key in keys))
    assert used - set(sys.stdlib_module_names) - {"cmdp_nbdev", "sympy"} <= stated


# extra -> the modules that may need it
USERS = {
    "notebook": {"chart", "view", "tweak"},  # the widgets
    "math": {"tasks"},  # tasks from elsewhere
    "lora": {"prepare", "distil"},  # the fine-tuning, --use_peft
    "trl": {"trl"},  # the engine for several devices
}


@pytest.mark.parametrize("extra", USERS)
def test_an_extra_is_for_few_modules(ini, library, extra):
    "Whoever does without an extra must miss nothing but what it is for."
    brings = modules_of(ini, f"{extra}_requirements") - modules_of(ini, "requirements")
    users = {path.stem for path, tree in library.items() if imports(ast.walk(tree)) & brings}
    assert users <= USERS[extra]


ON_DEMAND = {"anywidget", "ipywidgets", "matplotlib", "reasoning_gym", "math_verify", "sympy"}


def test_extras_are_imported_when_needed(library):
    "The library must load without the extras: only what they are for imports them at its top."
    for path, tree in library.items():
        if path.parent.name != "widgets":
            assert not imports(tree.body) & ON_DEMAND, path.stem


# ---- texts --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["CITATION.cff", "CHANGELOG.md"])
def test_citation_and_changelog_name_this_version(name):
    "A paper must be able to cite the version it used."
    text = (ROOT / name).read_text(encoding="utf-8")
    version = re.escape(VERSION)
    citation, heading = rf"^version:\s*[\"']?{version}[\"']?\s*$", rf"^##? .*\b{version}\b"
    pattern = citation if name.endswith("cff") else heading
    assert re.search(pattern, text, re.M), f"{name} does not mention version {VERSION}"


@pytest.fixture(scope="module")
def committed():
    "Every committed text file, by path."
    command = ["git", "ls-files", "-z"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no git checkout")
    texts = {}
    for name in filter(None, listed.stdout.split("\0")):
        try:
            texts[name] = (ROOT / name).read_bytes().decode("utf-8")
        except (UnicodeDecodeError, FileNotFoundError):
            pass  # binary, or just being removed
    assert "settings.ini" in texts
    return texts


# written in pieces, so that this file does not name what it forbids
SLASH = "/"
MACHINE = rf"(?<![\w.~$}}-]){SLASH}(work|root|home|Users){SLASH}[\w.-]+"
REGISTRY = [
    "py" + r"pi\.org",
    "python" + r"hosted\.org",
    "opt/" + "py" + "pi",
    "registry" + r"\.npmjs",
    "conda" + r"\.anaconda\.org",
    "index" + "-url",
    "extra-" + "index",
]
FORBIDDEN = {
    "a path of a development machine": MACHINE,
    "a package registry": "|".join(REGISTRY),
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_trace_of_a_development_machine(committed, what):
    "Paths and hosts of one machine break everybody else's, and tell about private ones."
    pattern = re.compile(FORBIDDEN[what])
    found = [f"{name}: {m[0]}" for name, text in committed.items() for m in pattern.finditer(text)]
    assert not found, found[:10]


def test_the_patterns_would_find_something():
    "A pattern that never matches would pass for ever."
    machine, registry = FORBIDDEN.values()
    private = f"see {SLASH}work{SLASH}main", f'"{SLASH}root{SLASH}x"', f"{SLASH}home{SLASH}jane"
    assert all(re.search(machine, text) for text in private)
    hosts = "https://" + "pypi" + ".org/simple", "/opt" + "/pypi/x"
    assert all(re.search(registry, text) for text in hosts)
    assert not re.search(machine, "https://example.org/home/page")


def test_shipped_checkpoints_are_small_and_documented():
    "Embedded pairs load at once; script and settings that made them are in the repository."
    data = ROOT / "cmdp_nbdev" / "data"
    weights = [p for name in ("student", "teacher") for p in (data / name).rglob("*.safetensors")]
    assert len(weights) == 2 and sum(p.stat().st_size for p in weights) < 1_000_000
    weights = list((data / "words").rglob("*.safetensors"))
    assert len(weights) == 4 and sum(p.stat().st_size for p in weights) < 3_000_000
    assert (ROOT / "studies" / "words" / "pretrain.py").is_file()
    folder = ROOT / "studies" / "pretrain"
    assert (folder / "pretrain.py").is_file()
    made = json.loads((folder / "metrics.json").read_text())
    assert {"seed", "steps"} <= set(made["teacher"]) & set(made["student"])
