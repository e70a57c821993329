"""The checks that need no opinion: ruff, mypy, clang-format."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NATIVE_SUFFIXES = {".h", ".cuh", ".cpp", ".cc", ".cu"}


def run_tool(name: str, *arguments: str) -> None:
    scripts = sysconfig.get_path("scripts")
    tool = shutil.which(name, path=scripts) or shutil.which(name)
    if tool is None:
        pytest.skip(f"{name} is not installed")
    command = [tool, *arguments]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    findings = (answer.stdout + answer.stderr).splitlines()
    assert answer.returncode == 0, "\n".join([name, *findings[:40]])


def native_files() -> list[str]:
    folders = [ROOT / "plugin", ROOT / "tests", ROOT / "benchmarks"]
    return sorted(str(p) for folder in folders for p in folder.rglob("*") if p.suffix in NATIVE_SUFFIXES)


def test_ruff() -> None:
    run_tool("ruff", "check", ".")


def test_mypy() -> None:
    run_tool("mypy", "--python-executable", sys.executable)


def test_clang_format() -> None:
    run_tool("clang-format", "--dry-run", "--Werror", *native_files())
