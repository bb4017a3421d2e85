"What is published is what was tested: sdist, wheel, and the main job from the wheel alone."

import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest
from conftest import ROOT, python

pytestmark = pytest.mark.slow
SOURCES = (
    "settings.ini",
    "setup.py",
    "pyproject.toml",
    "MANIFEST.in",
    "README.md",
    "LICENSE",
    "CHANGELOG.md",
    "CITATION.cff",
)


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    "Folder with an sdist and the wheel built from it, made of a copy of the sources."
    pytest.importorskip("build")
    pytest.importorskip("setuptools")
    work = tmp_path_factory.mktemp("dist")
    source, out = work / "source", work / "out"
    source.mkdir()
    for item in SOURCES:
        if (ROOT / item).exists():
            shutil.copy(ROOT / item, source)
    for item in ("cmdp_nbdev", "tests", "nbs"):
        unwanted = shutil.ignore_patterns("__pycache__", ".*")
        shutil.copytree(ROOT / item, source / item, ignore=unwanted)
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)]
    done = subprocess.run(build, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]
    return out


def test_wheel_contents(dist):
    "Models and type marker must be inside; tests and notebooks must not land in site-packages."
    (wheel,) = dist.glob("*.whl")
    archive = zipfile.ZipFile(wheel)
    names = set(archive.namelist())
    model = ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json")
    for who in ("teacher", "student"):
        assert {f"cmdp_nbdev/data/{who}/{file}" for file in model} <= names
    data = {f"cmdp_nbdev/data/{file}" for file in ("widget.js", "widget.css", "traces.npz")}
    assert {"cmdp_nbdev/py.typed", "cmdp_nbdev/cli.py", "cmdp_nbdev/recipes/embedded.yaml"} <= names
    assert data <= names
    packages = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert packages == {"cmdp_nbdev"}
    assert not [name for name in names if name.endswith(".ipynb")]
    (entry,) = [name for name in names if name.endswith("entry_points.txt")]
    assert "cmdp-distill = cmdp_nbdev.cli:main" in archive.read(entry).decode()
    assert any("LICENSE" in name for name in names)


def test_sdist_contents(dist):
    "The sdist must build by itself (the wheel came from it), with licence, citation and changes."
    (sdist,) = dist.glob("*.tar.gz")
    names = {name.split("/", 1)[-1] for name in tarfile.open(sdist).getnames()}
    assert {
        "settings.ini",
        "setup.py",
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
        "CITATION.cff",
        "cmdp_nbdev/data/teacher/model.safetensors",
    } <= names


MAIN_JOB = """
import sys
from importlib.metadata import version

import cmdp_nbdev
import cmdp_nbdev.cli

assert cmdp_nbdev.__file__.startswith(sys.argv[1]), cmdp_nbdev.__file__
assert version("cmdp_nbdev") == cmdp_nbdev.__version__
options = "--max_steps 2 --n_eval 16 --per_device_train_batch_size 16"
options += " --calibration_prompts 32 --certificate_prompts 256"
options += " --output_dir out --device cpu --disable_tqdm"
raise SystemExit(cmdp_nbdev.cli.main(options.split()))
"""


def test_main_job_from_the_wheel(dist, tmp_path):
    "Outside the checkout nothing but the wheel may be needed."
    (wheel,) = dist.glob("*.whl")
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    done = python("-c", MAIN_JOB, site, cwd=tmp_path, env={"PYTHONPATH": str(site)})
    assert (tmp_path / "out" / "summary.json").is_file() and "accuracy" in done.stdout
