"""What `pip install .` brings: packages, their licences, megabytes.

    python -m venv fresh && fresh/bin/pip install .
    python studies/supply/supply.py fresh             writes supply.csv and the table of README.md

Licences are those that the packages state of themselves: License-Expression, else the classifiers,
else the field License.
"""

from __future__ import annotations

import csv
import re
import sys
from collections import Counter
from importlib.metadata import Distribution, distributions
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from studies import lab

HERE = Path(__file__).parent
OURS = {"cmdp-nbdev", "cmdp_nbdev", "pip", "setuptools"}  # the package, and what a venv has anyway
MARKS = ("<!-- supply -->", "<!-- /supply -->")
NAMES = {
    "Apache Software License": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache": "Apache-2.0",
    "MIT License": "MIT",
    "BSD License": "BSD",
    "BSD-3-Clause": "BSD-3-Clause",
    "3-Clause BSD License": "BSD-3-Clause",
    "Python Software Foundation License": "PSF-2.0",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
}


def licence(package: Distribution) -> str:
    "What a package says of its licence, in one form."
    said = package.metadata.get("License-Expression")
    if not said:
        kinds = package.metadata.get_all("Classifier") or []
        kinds = [kind.split(" :: ")[-1] for kind in kinds if kind.startswith("License :: OSI")]
        said = " AND ".join(sorted(NAMES.get(kind, kind) for kind in kinds))
    said = said or (package.metadata.get("License") or "").strip().partition("\n")[0]
    return NAMES.get(said, said) or "not stated"


def megabytes(package: Distribution) -> float:
    "Size of a package's files on disk."
    places = {Path(package.locate_file(f)) for f in package.files or ()}
    return sum(place.stat().st_size for place in places if place.is_file()) / 2**20


def rows_of(venv: Path) -> list[dict]:
    "One row a package, the largest first."
    (site,) = venv.glob("lib/python3*/site-packages")
    found = []
    for package in distributions(path=[str(site)]):
        name = package.metadata["Name"]
        if name not in OURS:
            size = round(megabytes(package), 2)
            about = {"package": name, "version": package.version, "licence": licence(package)}
            found.append({**about, "megabytes": size})
    return sorted(found, key=lambda row: -row["megabytes"])


def written(rows: list[dict]) -> str:
    "The table of README.md: how many packages of which licence, and the largest."
    total = sum(row["megabytes"] for row in rows)
    lines = [f"{len(rows)} packages, {total:.0f} MB of files.", ""]
    counts = Counter(row["licence"] for row in rows).most_common()
    lines += [lab.markdown(["licence", "packages"], [[name, n] for name, n in counts]), ""]
    copyleft = [r["package"] for r in rows if re.search(r"GPL|MPL|EPL", r["licence"])]
    lines += [f"With a copyleft in its licence: {', '.join(sorted(copyleft)) or 'none'}.", ""]
    largest = [[r["package"], r["version"], f"{r['megabytes']:.0f}"] for r in rows[:8]]
    lines.append(lab.markdown(["the largest", "version", "MB"], largest))
    return "\n".join(lines)


def main() -> None:
    "The command."
    rows = rows_of(Path(sys.argv[1]))
    with open(HERE / "supply.csv", "w", newline="", encoding="utf-8") as f:
        table = csv.DictWriter(f, rows[0], lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    lab.put_between(HERE / "README.md", MARKS, f"\n\n{written(rows)}\n\n")


if __name__ == "__main__":
    main()
