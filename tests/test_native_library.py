"""The built library as a file, and the build: exports, dependencies, what CMake says, the CPU core under sanitizers."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from native_build import ENVIRONMENT, ROOT, cmake, tool

from intfa_onnx import c_abi, doctor, native
from intfa_onnx.errors import UnsupportedError

CACHE = ROOT / "build" / "test_configure"


def library() -> str:
    try:
        return str(native.get_library_path("ort"))
    except UnsupportedError as error:
        pytest.skip(str(error))


def test_exports_the_entry_points_and_nothing_else() -> None:
    answer = subprocess.run([tool("nm"), "-D", "--defined-only", library()], capture_output=True, text=True, check=True)
    exported = {line.split()[-1] for line in answer.stdout.splitlines()}
    header = (ROOT / "plugin/include/intfa/c_api.h").read_text()
    declared = set(re.findall(r"\b(intfa_\w+)\(", header))
    assert exported == declared | {"RegisterCustomOps"}


def test_needs_no_host_runtime_and_no_cuda_library() -> None:
    answer = subprocess.run([tool("readelf"), "-d", library()], capture_output=True, text=True, check=True)
    needed = set(re.findall(r"NEEDED.*\[(.*?)\.so", answer.stdout))
    assert needed <= {"libstdc++", "libm", "libgcc_s", "libc", "libpthread", "libdl", "librt", "ld-linux-x86-64"}
    assert "libstdc++" in needed  # linked statically it would raise the oldest glibc


def test_old_systems_can_load_it() -> None:
    """The ceiling is the glibc of RHEL 9; Ubuntu 22.04 and Debian 12 have a newer one."""
    answer = subprocess.run([tool("readelf"), "-V", library()], capture_output=True, text=True, check=True)
    needed = max(tuple(map(int, v.split("."))) for v in re.findall(r"Name: GLIBC_(2[\d.]+)", answer.stdout))
    assert doctor.glibc_floor(Path(library())) == needed
    assert needed <= (2, 34)


def test_cuda_without_a_driver_is_said_in_words() -> None:
    if shutil.which("nvidia-smi"):
        pytest.skip("this machine has a driver")
    problem, tensors = c_abi.Problem(), c_abi.Tensors()
    sizes = {"batch": 1, "num_heads": 1, "kv_num_heads": 1, "seqlen_q": 4, "seqlen_new": 4, "head_dim": 8}
    for name, size in (sizes | {"head_dim_v": 8, "window_left": -1, "window_right": -1}).items():
        setattr(problem, name, size)
    for name in ("q", "k", "v", "y"):
        setattr(tensors, name, 256)  # an address that nobody looks at
    try:
        c_abi.cuda_workspace_bytes(problem)
    except UnsupportedError as error:
        assert "this build of intfa has CPU kernels only" in str(error)  # noqa: PT017  # either answer is right
        return
    with pytest.raises(
        UnsupportedError, match=r"No NVIDIA driver is found, and this build needs CUDA \d\d\.\d\. Install"
    ):
        c_abi.run_cuda(problem, tensors, 256)


def configure(*options: str) -> tuple[int, str]:
    command = [tool("cmake"), "-S", str(ROOT), "-B", str(CACHE), "-G", "Ninja", "--fresh"]
    tool("ninja")
    answer = subprocess.run([*command, *options], env=ENVIRONMENT, capture_output=True, text=True)
    return answer.returncode, re.sub(r"\s+", " ", answer.stdout + answer.stderr)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["-DINTFA_CUDA=MAYBE"], "INTFA_CUDA=MAYBE is unknown (supported: AUTO, ON, OFF)"),
        (["-DINTFA_CUDA=OFF", "-DORT_INCLUDE_DIR=/nowhere"], "ONNX Runtime headers not found in '/nowhere'"),
        (["-DINTFA_CUDA=OFF", "-DHIGHWAY_SOURCE_DIR=/nowhere"], "Highway not found in '/nowhere'"),
    ],
    ids=["INTFA_CUDA", "ORT_INCLUDE_DIR", "HIGHWAY_SOURCE_DIR"],
)
@pytest.mark.xdist_group("configure")
def test_configure_refuses_in_words(options: list[str], said: str) -> None:
    code, output = configure(*options)
    assert code != 0
    assert said in output


@pytest.mark.xdist_group("configure")
def test_configure_without_cuda_says_so_and_looks_for_nothing() -> None:
    code, output = configure("-DINTFA_CUDA=OFF")
    assert code == 0, output
    assert "CUDA: off (INTFA_CUDA=OFF)" in output
    assert "CMAKE_CUDA_COMPILER" not in (CACHE / "CMakeCache.txt").read_text()


@pytest.fixture(scope="module")
def sanitized() -> Path:
    """Build the CPU core and its native tests with sanitizers; return the folder of the programs."""
    cmake("--preset", "asan")
    cmake("--build", "--preset", "asan")
    return ROOT / "build/asan/tests/native"


@pytest.mark.parametrize(
    ("program", "limit", "says"),
    [
        ("cpu_edge_shapes", "", r"\d{4,} runs\n"),
        ("cpu_edge_shapes", "avx2", r"\d{4,} runs\n"),
        pytest.param("cpu_edge_shapes", "sse2", r"\d{4,} runs\n", marks=pytest.mark.slow),
        pytest.param("cpu_edge_shapes", "avx512", r"\d{4,} runs\n", marks=pytest.mark.slow),
        ("cpu_edge_shapes_amx", "", r"\d{4,} runs\n"),
        ("amx_products", "", r"\d{4,} tile products, all equal to the portable unit's\n"),
        ("amx_products", "avx512vnni", r"AMX left out\n"),
    ],
    ids=["edge shapes", "on avx2", "on sse2", "on avx512", "on amx", "amx products", "without amx"],
)
def test_cpu_core_under_sanitizers(sanitized: Path, program: str, limit: str, says: str) -> None:
    """Nothing is read or written outside, no undefined behaviour, and each driver's own checks hold."""
    environment = os.environ | {"INTFA_MAX_ISA": limit}
    answer = subprocess.run([sanitized / program], env=environment, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr[-3000:]
    assert re.fullmatch(says, answer.stdout)
