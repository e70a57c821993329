"""The wgmma kernel with bugs seeded into it, one at a time: all in one library, since compiling is what takes time."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from cases import AttentionCase

from . import toolchain
from .attention import ALL_SETS, ALWAYS_WIDE, AttentionSimulator, case_arguments, case_attributes
from .simulator import Mode

KERNEL = "cuda/attention_sm90.cuh"
DIM = 128  # whose Q is an operand in shared memory

# Kernel number 0 is the product's.
_DISPATCH = """
namespace intfa::cuda {{
static int chosen = 0;
void kernel(AttentionParams params) {{
  switch (chosen) {{
    {cases}
  }}
}}
using Shape = WgmmaShape<{dim}, false, {warpgroups}>;
const WgmmaKernel kWgmmaKernels[] = {{
    {{{dim},
     {{Arithmetic::kTileInt8, false, kernel, Shape::kTileM, Shape::kThreads, Shape::kSmemBytes, Shape::kKeys,
      Shape::kOrder}}}}}};
}}  // namespace intfa::cuda
extern "C" SIMT_API void choose_kernel(int number) {{ intfa::cuda::chosen = number; }}
"""


def build(bugs: Mapping[str, toolchain.Replacements], warpgroups: int) -> Path:
    """A backend whose wgmma kernel of head size 128 can be exchanged for one with a bug.

    Args:
        bugs: name -> (old, new) texts in attention_sm90.cuh; each old text must occur exactly once.
        warpgroups: per block.
    Raises:
        ValueError: one does not: the kernel has moved on and the bug must follow it.
    """
    one_dim = [(ALL_SETS, f"{{&kKernels{DIM}}}"), ALWAYS_WIDE]
    tree = toolchain.patched_tree(
        f"hopper-bugs{warpgroups}",
        {
            "cuda/dispatch.cu": one_dim,
            "cuda/kernels_sm90.h": [("kNumWgmmaKernels = 11", "kNumWgmmaKernels = 1")],
        },
    )
    original = (tree / KERNEL).read_text()
    includes = [line for line in original.splitlines() if line.startswith("#include")]
    body = original[original.index("namespace intfa::cuda {") :]
    parts = [*includes, '#include "cuda/kernels_sm90.h"']
    for number, replacements in enumerate([[], *bugs.values()]):
        text = body
        for old, new in replacements:
            if text.count(old) != 1:
                name = ["", *bugs][number]
                raise ValueError(f"bug {name}: {old!r} occurs {text.count(old)} times in {KERNEL}, expected once")
            text = text.replace(old, new)
        parts.append(text.replace("namespace intfa::cuda {", f"namespace intfa::cuda::kernel{number} {{"))
    cases = "\n    ".join(
        f"case {n}: kernel{n}::attention_wgmma<{DIM}, false, {warpgroups}>(params); break;"
        for n in range(len(bugs) + 1)
    )
    parts.append(_DISPATCH.format(cases=cases, dim=DIM, warpgroups=warpgroups))
    (tree / "cuda" / "kernels_sm90.cu").write_text("\n".join(parts))
    sources = [tree / "simt" / "attention_driver.cc"]
    sources += [tree / "cuda" / file for file in ("dispatch.cu", f"kernels_d{DIM}.cu", "kernels_sm90.cu")]
    return toolchain.host_library(sources, f"libhopper-bugs{warpgroups}", plugin=tree, optimize="-O0")


class BuggyHopper(AttentionSimulator):
    """The library of :func:`build`."""

    def run(self, number: int, case: AttentionCase, mode: Mode) -> np.ndarray:
        """``y`` of the kernel with bug ``number``, counted from 1; 0 is the product's kernel."""
        self.library.choose_kernel(ctypes.c_int(number))
        attributes = case_attributes(case, "int8", "tile")
        y = self.attention(attributes=attributes, mode=mode, device=90, **case_arguments(case))["y"]
        assert self.chosen.startswith("attention_wgmma_"), self.chosen
        return y
