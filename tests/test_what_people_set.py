"What people set and bring: types, paths, data and files as transformers and TRL take them."

import ast

import pytest
from conftest import ROOT

# ---- files ----------------------------------------------------------------------------------


def calls_without_encoding(tree):
    "Reads and writes of text that leave the encoding to the locale."
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call):
            continue
        name = getattr(call.func, "attr", getattr(call.func, "id", ""))
        binary = any(getattr(a, "value", None) in ("rb", "wb", "ab") for a in call.args)
        stated = binary or {"encoding", "timeout"} & {k.arg for k in call.keywords}
        if name in ("open", "read_text", "write_text") and not stated:
            yield ast.unparse(call)


@pytest.mark.parametrize("path", sorted((ROOT / "cmdp_nbdev").rglob("*.py")), ids=lambda p: p.stem)
def test_texts_are_utf8(path):
    "Under an ASCII locale an accent in a file would be a traceback."
    assert not [*calls_without_encoding(ast.parse(path.read_text(encoding="utf-8")))]
