"""The wgmma kernels with bugs seeded into them: all in one library, since compiling is what takes time."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from cases import AttentionCase

from . import toolchain
from .attention import ALL_SETS, ALWAYS_WIDE, AttentionSimulator, case_arguments, case_attributes
from .simulator import Mode

# Each kernel's text: what both share, then its own.
SHARED = "cuda/wgmma_rows.cuh"
OWN = {
    "v1": "cuda/attention_sm90.cuh",
    "scored": "cuda/attention_sm90.cuh",
    "persistent": "cuda/attention_sm90_persistent.cuh",
}
_CALL = {
    "v1": "attention_wgmma<{dim}, false>",
    "scored": "attention_wgmma<{dim}, true>",
    "persistent": "attention_persistent<{dim}>",
}
_SHAPE = {
    "v1": "WgmmaShape<{dim}, false>",
    "scored": "WgmmaShape<{dim}, true>",
    "persistent": "PersistentShape<{dim}>",
}
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
using Shape = {shape};
const WgmmaKernel kWgmmaKernels[] = {{
    {{{dim},
     {{Arithmetic::kTileInt8, Shape::kScored, kernel, Shape::kTileM, Shape::kThreads, Shape::kSmemBytes, Shape::kKeys,
      Shape::kOrder, Shape::kPersistent}}}}}};
}}  // namespace intfa::cuda
extern "C" SIMT_API void choose_kernel(int number) {{ intfa::cuda::chosen = number; }}
"""


def build(bugs: Mapping[str, toolchain.Replacements], kernel: str) -> Path:
    """A backend whose wgmma kernel of head size 128 can be exchanged for one with a bug.

    Args:
        bugs: name -> (old, new) texts in the kernel's files; each old text must occur exactly once.
        kernel: ``v1``, ``scored`` or ``persistent``.
    Raises:
        ValueError: one does not: the kernel has moved on and the bug must follow it.
    """
    one_dim = [(ALL_SETS, f"{{&kKernels{DIM}}}"), ALWAYS_WIDE]
    tree = toolchain.patched_tree(
        f"hopper-bugs-{kernel}",
        {
            "cuda/dispatch.cu": one_dim,
            "cuda/kernels_sm90.h": [("kNumWgmmaKernels = 11", "kNumWgmmaKernels = 1")],
        },
    )
    texts = [(tree / file).read_text() for file in (SHARED, OWN[kernel])]
    includes = [line for line in "\n".join(texts).splitlines() if line.startswith("#include") and SHARED not in line]
    body = "\n".join(text[text.index("namespace intfa::cuda {") :] for text in texts)
    parts = [*includes, '#include "cuda/kernels_sm90.h"']
    for number, replacements in enumerate([[], *bugs.values()]):
        text = body
        for old, new in replacements:
            if text.count(old) != 1:
                name = ["", *bugs][number]
                raise ValueError(f"bug {name}: {old!r} occurs {text.count(old)} times, expected once")
            text = text.replace(old, new)
        parts.append(text.replace("namespace intfa::cuda {", f"namespace intfa::cuda::kernel{number} {{"))
    cases = "\n    ".join(
        f"case {n}: kernel{n}::{_CALL[kernel].format(dim=DIM)}(params); break;" for n in range(len(bugs) + 1)
    )
    parts.append(_DISPATCH.format(cases=cases, dim=DIM, shape=_SHAPE[kernel].format(dim=DIM)))
    (tree / "cuda" / "kernels_sm90.cu").write_text("\n".join(parts))
    sources = [toolchain.SIMT / "attention_driver.cc", toolchain.PLUGIN / "cuda" / f"kernels_d{DIM}.cu"]
    sources += [tree / "cuda" / file for file in ("dispatch.cu", "kernels_sm90.cu")]
    return toolchain.host_library(sources, f"libhopper-bugs-{kernel}", plugin=tree, optimize="-O0")


class BuggyHopper(AttentionSimulator):
    """The library of :func:`build`."""

    def run(self, number: int, case: AttentionCase, mode: Mode) -> tuple[np.ndarray, int]:
        """``y`` and the number of products of the kernel with that bug, counted from 1; 0 is the product's."""
        self.library.choose_kernel(ctypes.c_int(number))
        self.take_statistics()
        attributes = case_attributes(case, "int8", "tile")
        y = self.attention(attributes=attributes, mode=mode, device=90, multiprocessors=2, **case_arguments(case))["y"]
        assert self.chosen.startswith("attention_wgmma_"), self.chosen
        return y, self.take_statistics()["mma"]
