"""What the CUDA dispatch launches for a problem: which kernels, on whose stream, and what stops it.

It runs on a CUDA runtime of our own (native/cuda_launches.cpp), which has no function that allocates or synchronizes:
one that the dispatch called would be missing when that is linked. So a launch can be captured in a CUDA graph.
"""

from __future__ import annotations

import ctypes
import dataclasses
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from c_abi import make_call
from cases import CASES, AttentionCase
from native.simt import toolchain

NATIVE = Path(__file__).resolve().parent / "native"
OK, RUNTIME_ERROR = 0, 4
STREAM = 64
FORMS = {"tile": ("int8", "tile"), "paper": ("int8", "paper"), "half": ("int8_qk", "tile")}
PROLOGUE = ["statistics", "quantize_kv"]
Launch = Callable[..., tuple[int, list[list[str]]]]


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Launch:
    """A function (case, form, failing launch) -> status code and, word by word, the lines of the launches."""
    library = tmp_path_factory.mktemp("launches") / "libcuda_launches.so"
    include = [NATIVE / "fake_cuda", toolchain.PLUGIN, toolchain.PLUGIN / "include"]
    command = ["g++", "-std=c++20", "-fPIC", "-shared", "-Wl,--no-undefined"]
    command += ["-D__CUDACC__", "-D__host__=", "-D__device__="]  # as nvcc does, whose words g++ does not know
    command += ['-DINTFA_CUDA_ARCHITECTURES="sm 80; PTX 80"', *(f"-I{folder}" for folder in include), "-xc++"]
    sources = [NATIVE / "cuda_launches.cpp", toolchain.PLUGIN / "cuda" / "dispatch.cu"]
    subprocess.run([*command, *map(str, sources), "-o", str(library)], check=True)
    run = ctypes.CDLL(str(library)).cuda_launches

    def launches(case: AttentionCase, form: str, failing: int = -1) -> tuple[int, list[list[str]]]:
        precision, scheme = FORMS[form]
        call = make_call(case, precision=precision, scheme=scheme)
        text = ctypes.create_string_buffer(2000)
        problem, tensors = ctypes.byref(call.problem), ctypes.byref(call.tensors)
        code = run(problem, tensors, ctypes.c_uint64(STREAM), failing, text, ctypes.c_size_t(len(text)))
        return code, [line.split() for line in text.value.decode().splitlines()]

    return launches


def case_named(name: str) -> AttentionCase:
    return next(case for case in CASES if case.name == name)


@pytest.mark.parametrize(
    ("name", "form", "kernels"),
    [
        ("plain", "tile", [*PROLOGUE, "attention"]),
        ("plain", "paper", [*PROLOGUE, "attention"]),  # V's amax alone
        ("plain", "half", [*PROLOGUE, "attention"]),  # K's mean alone
        ("k_bias_rough", "half", ["quantize_kv", "attention"]),  # neither
        ("k_bias_rough", "tile", [*PROLOGUE, "attention"]),
        ("static_head", "tile", ["quantize_kv", "attention"]),
        ("static_head", "paper", ["quantize_kv", "attention"]),
        ("static_head", "half", ["quantize_kv", "attention"]),
        ("int8_tensor", "tile", ["quantize_v", "attention"]),  # K is read in place
        ("int8_tensor", "half", ["quantize_v", "attention"]),
        ("int8_channel", "paper", ["quantize_v", "attention"]),  # the past is INT8 too
        ("decode", "tile", [*PROLOGUE, "attention"]),  # too few keys to split
        ("many_tiles", "tile", [*PROLOGUE, "attention", "merge"]),
        ("many_tiles", "half", [*PROLOGUE, "attention", "merge"]),
        ("many_tiles", "paper", [*PROLOGUE, "attention"]),  # its P depends on the order of the keys
    ],
)
def test_which_kernels(launch: Launch, name: str, form: str, kernels: list[str]) -> None:
    code, lines = launch(case_named(name), form)
    assert code == OK
    assert [line[0] for line in lines] == kernels


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_launch_is_on_the_callers_stream_and_checked(launch: Launch, case: AttentionCase, form: str) -> None:
    code, lines = launch(case, form)
    assert code == OK
    assert lines
    for name, grid, stream in lines:
        assert name != "unknown"
        assert all(int(n) > 0 for n in grid.split("x")), grid
        assert int(stream) == STREAM
    for failing in range(len(lines)):
        code, until = launch(case, form, failing)
        assert code == RUNTIME_ERROR
        assert until == [*lines[:failing], ["cudaLaunchKernel:", "words", "(name)"]]


def test_padded_codes_are_packed(launch: Launch) -> None:
    code, lines = launch(dataclasses.replace(case_named("int8_tensor"), head_dim=48), "tile")
    assert (code, [line[0] for line in lines]) == (OK, ["quantize_kv", "attention"])


def test_nothing_to_do_launches_nothing(launch: Launch) -> None:
    assert launch(dataclasses.replace(case_named("plain"), batch=0), "tile") == (OK, [])
