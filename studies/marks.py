"The tables of a study in its README.md, between two marks."

from pathlib import Path


def put_between(path: Path, marks: tuple[str, str], text: str) -> None:
    "Replace what stands in the file between the two marks by `text`. Raises ValueError if a mark is missing."
    page = path.read_text(encoding="utf-8")
    start, end = page.index(marks[0]) + len(marks[0]), page.index(marks[1])
    path.write_text(page[:start] + text + page[end:], encoding="utf-8")
