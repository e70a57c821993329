"""Further copies of the native library in one process, each bound to an instruction set of its own."""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path

import c_abi

from intfa_onnx import native

# The values of INTFA_MAX_ISA, the least first, and what /proc/cpuinfo shows beside those before where it can be used.
FLAGS = {
    "sse2": "sse2",
    "avx2": "avx2 abm bmi1 bmi2 fma f16c",
    "avx512": "avx512f avx512vl avx512dq avx512bw avx512cd",
    "avx512vnni": "avx512_vnni avx512vbmi avx512_vbmi2 avx512_bitalg avx512_vpopcntdq gfni vaes vpclmulqdq",
    "amx": "amx_tile amx_int8",
}


@cache
def of_this_machine() -> tuple[str, ...]:
    """Return the instruction sets that this processor has, the least first; none where it is no x86-64."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    _, _, line = text.partition("flags")
    found = set(line.partition("\n")[0].split())
    names = []
    for name, flags in FLAGS.items():
        if not found.issuperset(flags.split()):
            break
        names.append(name)
    return tuple(names)


@cache
def load(value: str) -> ctypes.CDLL:
    """Load a copy that found ``INTFA_MAX_ISA=value`` at its first call.

    The loader takes a copy for a library of its own, with its own variables, so that it chooses anew.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = shutil.copy(native.get_library_path("ort"), folder)
        library = ctypes.CDLL(path)
    before = os.environ.get("INTFA_MAX_ISA")
    os.environ["INTFA_MAX_ISA"] = value
    try:
        library.intfa_cpu_instruction_set.restype = ctypes.c_char_p
        library.intfa_cpu_instruction_set()
    finally:
        if before is None:
            del os.environ["INTFA_MAX_ISA"]
        else:
            os.environ["INTFA_MAX_ISA"] = before
    return library


def with_rounded_codes() -> ctypes.CDLL:
    """Return a copy that rounds P, as the reference and the GPU's kernels do, instead of looking it up on a grid."""
    return load("avx512") if of_this_machine() else c_abi.library()  # other processors always do


def rounding() -> dict[str, str]:
    """Return the environment of a process that does so."""
    return os.environ | ({"INTFA_MAX_ISA": "avx512"} if of_this_machine() else {})
