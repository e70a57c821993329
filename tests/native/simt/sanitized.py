"""Runs cases in an ASan or TSan build of the host SIMT: ``python -m native.simt.sanitized asan CASE-ARITHMETIC...``.

It is a process of its own, because the sanitizer's library must be loaded before Python; ``run`` does that.
``defect-NAME`` as a case runs a kernel of pipeline.cuh that is wrong on purpose.
"""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
from cases import CASES

from . import attention, toolchain
from .simulator import Mode, Simulator, pointer

# Leaks are the interpreter's. What the runtime's own library does is not judged, see fiber.cc.
OPTIONS = {
    "asan": {"ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0"},
    "tsan": {"TSAN_OPTIONS": "halt_on_error=1:report_signal_unsafe=0:suppressions={suppressions}"},
}


def run(sanitizer: str, *cases: str) -> subprocess.CompletedProcess[str]:
    """Run cases in a process that has the sanitizer loaded."""
    found = subprocess.run(["g++", f"-print-file-name=lib{sanitizer}.so"], capture_output=True, text=True, check=True)
    suppressions = toolchain.BUILD / "tsan.suppressions"
    toolchain.BUILD.mkdir(parents=True, exist_ok=True)
    suppressions.write_text("called_from_lib:libsimttsan\n")
    options = {name: value.format(suppressions=suppressions) for name, value in OPTIONS[sanitizer].items()}
    paths = [str(toolchain.ROOT / "tests"), str(toolchain.ROOT), os.environ.get("PYTHONPATH", "")]
    env = {
        **os.environ,
        **options,
        "LD_PRELOAD": found.stdout.strip(),
        "PYTHONPATH": os.pathsep.join(p for p in paths if p),
        "OPENBLAS_NUM_THREADS": "1",  # its threads are not what is tested
    }
    command = [sys.executable, "-m", "native.simt.sanitized", sanitizer, *cases]
    return subprocess.run(command, env=env, capture_output=True, text=True)


def run_case(simulator: attention.AttentionSimulator, name: str) -> None:
    """Run ``CASE-ARITHMETIC`` in a random schedule with late copies and in a greedy one with early copies."""
    case_name, _, arithmetic = name.rpartition("-")
    case = next(c for c in CASES if c.name == case_name)
    precision, scheme = ("int8_qk", "tile") if arithmetic == "half" else ("int8", arithmetic)
    attributes = attention.case_attributes(case, precision, scheme)
    for mode in (Mode("random", "late", 5), Mode("greedy_last", "early")):
        simulator.attention(attributes=attributes, mode=mode, **attention.case_arguments(case))


def run_defect(sanitizer: str, name: str) -> None:
    """Run a wrong kernel on exactly the memory that it may use."""
    library = toolchain.host_library([toolchain.SIMT / "pipeline_driver.cc"], "libpipeline", sanitizer=sanitizer)
    Simulator(library, sanitizer).call("defect_run", name.encode(), pointer(np.zeros(64, np.uint32)))


def main(sanitizer: str, *names: str) -> None:
    """Run each case; a finding ends the process with the sanitizer's report."""
    for name in names:
        if name.startswith("defect-"):
            run_defect(sanitizer, name.removeprefix("defect-"))
        else:
            run_case(attention.AttentionSimulator(attention.build(sanitizer=sanitizer), sanitizer), name)
        print(name, "ok", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
