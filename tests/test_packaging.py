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
    source = work / "source"
    source.mkdir()
    for item in SOURCES:
        if (ROOT / item).exists():
            shutil.copy(ROOT / item, source)
    for item in ("cmdp_nbdev", "tests", "nbs"):
        shutil.copytree(
            ROOT / item, source / item, ignore=shutil.ignore_patterns("__pycache__", ".*")
        )
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "build",
            "--no-isolation",
            "--outdir",
            str(work / "out"),
            str(source),
        ],
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]
    return work / "out"


def test_wheel_contents(dist):
    "The models and the type marker must be inside, tests and notebooks must not land in site-packages."
    (wheel,) = dist.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for who in ("teacher", "student"):
        assert {
            f"cmdp_nbdev/data/{who}/{f}"
            for f in ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json")
        } <= names
    assert {
        "cmdp_nbdev/py.typed",
        "cmdp_nbdev/cli.py",
        *(f"cmdp_nbdev/data/{f}" for f in ("widget.js", "widget.css", "traces.npz")),
    } <= names
    assert {n.split("/")[0] for n in names if ".dist-info" not in n} == {"cmdp_nbdev"} and not [
        n for n in names if n.endswith(".ipynb")
    ]
    entry = next(n for n in names if n.endswith("entry_points.txt"))
    assert "cmdp-distill = cmdp_nbdev.cli:main" in zipfile.ZipFile(wheel).read(entry).decode()
    assert any("LICENSE" in n for n in names)


def test_sdist_contents(dist):
    "The sdist must build by itself (the wheel above came from it) and carry licence, citation and changes."
    (sdist,) = dist.glob("*.tar.gz")
    names = {n.split("/", 1)[-1] for n in tarfile.open(sdist).getnames()}
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


def test_main_job_from_the_wheel(dist, tmp_path):
    "Outside the checkout nothing but the wheel may be needed."
    (wheel,) = dist.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    script = (
        "import sys, cmdp_nbdev, cmdp_nbdev.cli\nfrom importlib.metadata import version\nassert cmdp_nbdev.__file__.startswith(sys.argv[1]), cmdp_nbdev.__file__\nassert version('cmdp_nbdev') == cmdp_nbdev.__version__\n"
        "raise SystemExit(cmdp_nbdev.cli.main('--max_steps 2 --n_eval 16 --per_device_train_batch_size 16 --output_dir out --device cpu --disable_tqdm'.split()))"
    )
    done = python(
        "-c", script, tmp_path / "site", cwd=tmp_path, env={"PYTHONPATH": str(tmp_path / "site")}
    )
    assert (tmp_path / "out" / "summary.json").is_file() and "accuracy" in done.stdout
