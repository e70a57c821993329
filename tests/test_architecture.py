"""The rules of the layout that a compiler does not check."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from intfa_onnx import op_schema

ROOT = Path(__file__).resolve().parent.parent
ATTENTION_H = (ROOT / "plugin/include/intfa/attention.h").read_text()
MAX_LINES = 600


def tracked(*patterns: str) -> list[Path]:
    try:
        listing = subprocess.run(
            ["git", "ls-files", "-z", *patterns], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listing.stdout.split("\0") if name and (ROOT / name).exists()]


def enumerators(enum: str) -> list[str]:
    """Return an enum's enumerators of attention.h, without comments and the leading k."""
    body = re.search(rf"enum class {enum} {{(.*?)}}", ATTENTION_H, re.DOTALL)
    assert body, f"attention.h has no enum {enum}"
    return [name.strip().removeprefix("k") for name in re.sub("//.*", "", body[1]).split(",") if name.strip()]


def test_core_knows_no_host_runtime() -> None:
    host_type = re.compile(r"NvInfer|nvinfer1::|onnxruntime|\bOrt[A-Z]\w+|Ort::")
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in tracked("plugin")
        if "adapters" not in path.parts
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if host_type.search(line.partition("//")[0])
    ]
    assert not found, "\n".join(found)


def test_cpu_build_needs_no_cuda_header() -> None:
    include = re.compile(r'#include\s*[<"](cuda|cublas|cuda_\w+|cute/|cutlass/)')
    files = [p for folder in ("core", "cpu", "include") for p in tracked(f"plugin/{folder}")]
    found = [str(path.relative_to(ROOT)) for path in files if include.search(path.read_text())]
    assert not found, found


@pytest.mark.parametrize(
    ("attribute", "enum"),
    [
        ("precision", "Precision"),
        ("scheme", "Scheme"),
        ("k_granularity", "KGranularity"),
        ("causal_alignment", "CausalAlignment"),
    ],
)
def test_schema_and_header_name_the_same_choices(attribute: str, enum: str) -> None:
    schema = [choice.replace("_", "") for choice in op_schema.ATTRIBUTES[attribute].choices]
    assert schema == [name.lower() for name in enumerators(enum)]
    assert op_schema.ATTRIBUTES[attribute].default == op_schema.ATTRIBUTES[attribute].choices[0]


def test_one_version() -> None:
    found = {
        name: re.findall(pattern, (ROOT / name).read_text(), re.MULTILINE)
        for name, pattern in (
            ("pyproject.toml", r'^version = "(.*)"$'),
            ("CMakeLists.txt", r"^project\(intfa VERSION (\S+)"),
            ("intfa_onnx/__init__.py", r'^__version__ = "(.*)"$'),
        )
    }
    assert len({tuple(versions) for versions in found.values()}) == 1, found


def test_no_path_of_one_machine() -> None:
    path_of_a_machine = re.compile(r"(?<![\w.}])/(?:work|home|root|tmp/w|Users)/\w")
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in tracked()
        if path != Path(__file__) and path.suffix not in {".png", ".onnx", ".npz"}
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if path_of_a_machine.search(line)
    ]
    assert not found, found


def test_one_idea_per_file() -> None:
    sources = tracked("*.py", "*.cpp", "*.cc", "*.cu", "*.cuh", "*.h")
    assert len(sources) > 10
    long = {str(p.relative_to(ROOT)): n for p in sources if (n := len(p.read_text().splitlines())) > MAX_LINES}
    assert not long, f"over {MAX_LINES} lines: {long}"
