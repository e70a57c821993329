"""Builds targets of ``tests/native`` with CMake, in folders of their own; a test skips where a tool is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# CMake looks for ninja in PATH, where this environment's scripts need not be.
ENVIRONMENT = {**os.environ, "PATH": os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])}


def tool(name: str) -> str:
    """Return a program's path."""
    found = shutil.which(name, path=ENVIRONMENT["PATH"])
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def cmake(*arguments: str) -> None:
    """Run CMake in the checkout."""
    tool("ninja")
    answer = subprocess.run([tool("cmake"), *arguments], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert answer.returncode == 0, (answer.stdout + answer.stderr)[-3000:]


def build(name: str, *targets: str, options: tuple[str, ...] = ()) -> Path:
    """Build targets without CUDA in ``build/<name>``; return the folder that they are in."""
    folder = str(ROOT / "build" / name)
    cmake("-S", ".", "-B", folder, "-G", "Ninja", "-DINTFA_CUDA=OFF", "-DINTFA_BUILD_TESTS=ON", *options)
    cmake("--build", folder, "--target", *targets)
    return Path(folder) / "tests/native"
