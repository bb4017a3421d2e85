"""All checks of this repository. Needs `pip install -e ".[dev]"`.

    python tools/check.py                 every stage, in order; stops at the first failure
    python tools/check.py export readme   only these stages

Stages: style            ruff has nothing to say: layout, line length, dead names, order of imports
        notebooks-clean  nbdev-clean would change nothing in nbs/ and tutorials/
        export           nbdev-export of nbs/ gives exactly cmdp_nbdev/**/*.py
        readme           README.md is what nbs/index.ipynb gives
        nbs              every cell of nbs/ runs (nbdev-test)
        tests            pytest, the tutorials included

Nothing here writes into the checkout (caches apart): clean and export work on copies.
"""

from __future__ import annotations

import argparse
import difflib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIBRARY, NOTEBOOKS = "cmdp_nbdev", ("nbs", "tutorials")
WRITTEN = (*NOTEBOOKS, "studies", "tests", "tools")  # by people; the library is exported
LEFT_OUT = ("__pycache__", ".ipynb_checkpoints")
# one thread per process: two processes share two cores; no hub, no progress bars in logs
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TQDM_DISABLE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


class Failed(Exception):
    "A check that did not pass; the text says what to do."


def run(*command: str, cwd: Path = ROOT, fix: str = "") -> None:
    "Run a command of this Python's environment. Raises Failed for a nonzero exit."
    beside_python = str(Path(sys.executable).parent)
    path = os.pathsep.join([beside_python, os.environ.get("PATH", "")])
    program = shutil.which(command[0], path=path)
    if program is None:
        raise Failed(f'{command[0]} is not installed; run: pip install -e ".[dev]"')
    environment = {**os.environ, **ENVIRONMENT, "PATH": path}
    done = subprocess.run([program, *command[1:]], cwd=cwd, env=environment)
    if done.returncode:
        advice = f"; {fix}" if fix else ""
        raise Failed(f"{' '.join(command)} exited with {done.returncode}{advice}")


# ---- what a tool would change, seen on a copy ---------------------------------------------


@contextmanager
def copied() -> Iterator[Path]:
    "A copy of what nbdev needs: notebooks, library and the two metadata files."
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in (*NOTEBOOKS, LIBRARY):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns(*LEFT_OUT))
        for name in ("pyproject.toml", "settings.ini"):
            shutil.copy(ROOT / name, copy / name)
        yield copy


def files(base: Path, folder: str, pattern: str) -> set[str]:
    "Files below a folder, relative to `base`; caches are left out."
    found = (path.relative_to(base) for path in (base / folder).rglob(pattern))
    return {path.as_posix() for path in found if not set(LEFT_OUT) & set(path.parts)}


def lines(path: Path) -> list[str] | None:
    "The lines of a file, None if it does not exist."
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else None


def difference(name: str, copy: Path) -> str:
    "How a file differs from its copy, in at most 40 lines; nothing if it does not."
    here, there = lines(ROOT / name), lines(copy / name)
    if here == there:
        return ""
    if there is None:
        return f"{name}: no notebook exports it"
    if here is None:
        return f"{name}: missing"
    diff = list(difflib.unified_diff(here, there, name, "as it should be", lineterm=""))
    more = ["..."] if len(diff) > 40 else []
    return "\n".join(diff[:40] + more)


def compare(folder: str, pattern: str, copy: Path, fix: str) -> None:
    "Raises Failed with the differences between the files of a folder and their copies."
    names = files(ROOT, folder, pattern) | files(copy, folder, pattern)
    found = [text for name in sorted(names) if (text := difference(name, copy))]
    if found:
        raise Failed("\n".join([*found, fix]))


# ---- the stages ---------------------------------------------------------------------------


def style() -> None:
    "ruff has nothing to say: layout, line length, dead names, order of imports."
    run("ruff", "format", "--check", *WRITTEN, fix=f"run: ruff format {' '.join(WRITTEN)}")
    run("ruff", "check", *WRITTEN, LIBRARY)


def notebooks_clean() -> None:
    "nbdev-clean would change nothing in nbs/ and tutorials/."
    for folder in NOTEBOOKS:
        with copied() as copy:
            run("nbdev-clean", "--fname", folder, cwd=copy)
            fix = f"notebooks are not clean; run: nbdev-clean --fname {folder}"
            compare(folder, "*.ipynb", copy, fix)


def export() -> None:
    "nbdev-export, where no exported module is left, gives the committed ones."
    with copied() as copy:
        for name in files(copy, LIBRARY, "*.py"):
            if not name.endswith("__init__.py"):
                (copy / name).unlink()
        run("nbdev-export", cwd=copy)
        fix = "notebooks and library differ; change the notebook, then run: nbdev-export"
        compare(LIBRARY, "*.py", copy, fix)


def readme() -> None:
    "README.md is what nbs/index.ipynb gives."
    run("python", "tools/readme.py", "--check")


def nbs() -> None:
    "Every cell of nbs/ runs."
    run("nbdev-test", "--n-workers", "2")


def tests() -> None:
    "pytest, on two processes; whoever is done first takes over tests of the other."
    run("python", "-m", "pytest", "-n", "2", "--dist", "worksteal", "-q", "tests")


STAGES = {
    "style": style,
    "notebooks-clean": notebooks_clean,
    "export": export,
    "readme": readme,
    "nbs": nbs,
    "tests": tests,
}

# ---- command line -------------------------------------------------------------------------


def passes(name: str) -> bool:
    "Run a stage and say how it went."
    print(f"== {name}: {STAGES[name].__doc__}", flush=True)
    began, error = time.perf_counter(), None
    try:
        STAGES[name]()
    except Failed as failed:
        error = failed
    verdict = "ok" if error is None else "FAILED"
    print(f"== {name}: {verdict}, {time.perf_counter() - began:.1f} s", flush=True)
    if error is not None:
        print(error, file=sys.stderr)
    return error is None


def wanted() -> list[str]:
    "The stages of the command line; all if it names none."
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = ", ".join(STAGES)
    parser.add_argument("stages", nargs="*", metavar="stage", help=f"{known}; none = all")
    chosen = parser.parse_args().stages or list(STAGES)
    unknown = [name for name in chosen if name not in STAGES]
    if unknown:
        parser.error(f"unknown stage {', '.join(unknown)}; choose from {known}")
    return chosen


def main() -> int:
    "Run the stages up to the first that fails; the exit status."
    chosen, began = wanted(), time.perf_counter()
    if not all(passes(name) for name in chosen):
        return 1
    seconds = time.perf_counter() - began
    print(f"== all ok: {', '.join(chosen)}; {seconds:.1f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
