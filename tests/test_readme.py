"""The README is true: its commands run, its Python runs, and the files on its map are there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import onnx
import pytest
from small_models import attention_model

from intfa_onnx.cli import main

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
LINES = [line for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]
COMMANDS = [shlex.split(line, comments=True) for line in LINES]


def test_commands_and_python_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(attention_model(), "model.onnx")
    ran = 0
    for language, block in re.findall(r"```(bash|python)\n(.*?)```", README, re.DOTALL):
        if language == "python":
            exec(compile(block, "README.md", "exec"), {})
            continue
        for line in block.splitlines():
            program, *arguments = shlex.split(line, comments=True)
            if program == "intfa-onnx":
                ran += 1
                assert main(arguments) == 0, f"{line}\n{capsys.readouterr()}"
    assert ran >= 5


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = [arguments[0] for program, *arguments in COMMANDS if program == "make"]
    assert set(targets) >= {"demo", "test"}
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_extras_exist() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    extras = re.findall(r"^([\w-]+) = \[", project.partition("[project.optional-dependencies]")[2], re.MULTILINE)
    named = [extra for text in re.findall(r"\.\[([\w,-]+)\]", README) for extra in text.split(",")]
    assert named
    assert set(named) <= set(extras)


def test_map_is_complete_and_true() -> None:
    named = re.findall(r"^\| `([\w./-]+)` \|", README.partition("## Map")[2], re.MULTILINE)
    absent = [name for name in named if not (ROOT / name).exists()]
    assert not absent
    modules = {p for p in (ROOT / "intfa_onnx").glob("*.py") if not p.name.startswith("__")}
    packages = {p.parent for p in (ROOT / "intfa_onnx").glob("*/__init__.py")}
    native = {p for p in (ROOT / "plugin").iterdir() if p.is_dir()}
    missing = (modules | packages | native) - {ROOT / name for name in named}
    assert not missing, f"not on the map: {sorted(map(str, missing))}"
