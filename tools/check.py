"""All checks of this repository. Needs `pip install -e ".[dev]"`.

    python tools/check.py                 every stage, in order; stops at the first failure
    python tools/check.py export readme   only these stages

Stages: notebooks-clean  nbdev-clean would change nothing in nbs/; no widget state, no large outputs
        export           nbdev-export of nbs/ gives exactly cmdp_nbdev/*.py
        readme           README.md is what nbs/index.ipynb gives
        nbs              every cell of nbs/ runs (nbdev-test)
        tests            pytest, the tutorials included

Nothing here writes into the checkout (pytest's cache apart): clean and export work on copies.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIB = "cmdp_nbdev"
NOTEBOOK_DIRS = ("nbs", "tutorials")
MAX_NOTEBOOK_BYTES = 300_000  # plotly output weighs megabytes; keep it out of the repository
# one thread per process: two processes share two cores; no hub, no progress bars in logs
ENV = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TQDM_DISABLE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


class Failed(Exception):
    "A check that did not pass; the text says what to do."


def run(*command: str, cwd: Path = ROOT, fix: str = "") -> None:
    "Run a command of this Python's environment. Raises Failed for a nonzero exit."
    path = str(Path(sys.executable).parent) + os.pathsep + os.environ.get("PATH", "")
    program = shutil.which(command[0], path=path)
    if program is None:
        raise Failed(f'{command[0]} is not installed; run: pip install -e ".[dev]"')
    status = subprocess.run(
        [program, *command[1:]], cwd=cwd, env={**os.environ, **ENV, "PATH": path}
    ).returncode
    if status:
        raise Failed(f"{' '.join(command)} exited with {status}" + (f"; {fix}" if fix else ""))


def copy_tree(to: Path) -> None:
    "What nbdev needs: notebooks, library and the two metadata files."
    for name in (*NOTEBOOK_DIRS, LIB):
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name,
                to / name,
                ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"),
            )
    for name in ("pyproject.toml", "settings.ini"):
        shutil.copy(ROOT / name, to / name)


def differences(folder: str, pattern: str, copy: Path) -> list[str]:
    "Files of `folder` that differ from the copy, each with the first lines of a diff."
    names = sorted(
        {
            p.relative_to(base / folder).as_posix()
            for base in (ROOT, copy)
            for p in (base / folder).rglob(pattern)
            if not {"__pycache__", ".ipynb_checkpoints"} & set(p.parts)
        }
    )
    found = []
    for name in names:
        old, new = (
            p.read_text(encoding="utf-8").splitlines() if p.exists() else None
            for p in (ROOT / folder / name, copy / folder / name)
        )
        if old == new:
            continue
        if new is None:
            found.append(f"{folder}/{name}: no notebook exports it")
            continue
        if old is None:
            found.append(f"{folder}/{name}: missing")
            continue
        diff = list(
            difflib.unified_diff(old, new, f"{folder}/{name}", "as it should be", lineterm="")
        )
        found.append("\n".join(diff[:40] + ["..."] * (len(diff) > 40)))
    return found


def notebooks_clean() -> None:
    "nbdev-clean on a copy of nbs/ changes nothing; no widget state or large outputs. The lessons' outputs are tools/lessons.py's (nbdev-clean would drop the pictures' alternative texts)."
    with tempfile.TemporaryDirectory() as tmp:
        copy_tree(Path(tmp))
        run("nbdev-clean", "--fname", "nbs", cwd=Path(tmp))
        found = differences("nbs", "*.ipynb", Path(tmp))
    if found:
        raise Failed("\n".join(found) + "\nnotebooks are not clean; run: nbdev-clean")
    for path in (
        p
        for folder in NOTEBOOK_DIRS
        for p in sorted((ROOT / folder).rglob("*.ipynb"))
        if ".ipynb_checkpoints" not in p.parts
    ):
        name = path.relative_to(ROOT).as_posix()
        if "widgets" in json.loads(path.read_text(encoding="utf-8"))["metadata"]:
            raise Failed(f"{name} stores widget state; delete metadata.widgets")
        if (size := path.stat().st_size) > MAX_NOTEBOOK_BYTES:
            raise Failed(
                f"{name} has {size} bytes, more than {MAX_NOTEBOOK_BYTES}; clear large outputs"
            )


def export() -> None:
    "nbdev-export into a copy from which all exported modules were removed gives the committed ones."
    with tempfile.TemporaryDirectory() as tmp:
        copy_tree(Path(tmp))
        for path in (Path(tmp) / LIB).rglob("*.py"):
            if path.name != "__init__.py":
                path.unlink()
        run("nbdev-export", cwd=Path(tmp))
        found = differences(LIB, "*.py", Path(tmp))
    if found:
        raise Failed(
            "\n".join(found)
            + "\nnotebooks and library differ; change the notebook, then run: nbdev-export"
        )


def readme() -> None:
    "README.md agrees with nbs/index.ipynb."
    run("python", "tools/readme.py", "--check")


def nbs() -> None:
    "Every cell of nbs/ runs."
    run("nbdev-test", "--n-workers", "2")


def tests() -> None:
    "pytest on two processes."
    run("python", "-m", "pytest", "-n", "2", "-q", "tests")


STAGES = {
    "notebooks-clean": notebooks_clean,
    "export": export,
    "readme": readme,
    "nbs": nbs,
    "tests": tests,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "stages", nargs="*", metavar="stage", help=f"{', '.join(STAGES)}; none = all"
    )
    chosen = parser.parse_args().stages or list(STAGES)
    if unknown := [s for s in chosen if s not in STAGES]:
        parser.error(f"unknown stage {', '.join(unknown)}; choose from {', '.join(STAGES)}")
    began = time.perf_counter()
    for name in chosen:
        print(f"== {name}: {STAGES[name].__doc__}", flush=True)
        start = time.perf_counter()
        try:
            STAGES[name]()
            error = None
        except Failed as e:
            error = e
        print(
            f"== {name}: {'ok' if error is None else 'FAILED'}, {time.perf_counter() - start:.1f} s",
            flush=True,
        )
        if error is not None:
            print(error, file=sys.stderr)
            return 1
    print(f"== all ok: {', '.join(chosen)}; {time.perf_counter() - began:.1f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
