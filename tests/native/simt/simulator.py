"""ctypes view of the simulators: configuration, PTX modules, statistics, and calls that report errors."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import toolchain

SCHEDULES = ("round_robin", "random", "greedy_first", "greedy_last")
VISIBILITIES = ("early", "late", "random")
COUNTERS = ("switches", "instructions", "mma", "ldmatrix", "shuffles", "async_copies", "barriers", "bank_conflicts")


class SimulatorError(RuntimeError):
    """The simulator found a defect in the kernel; the message says what and where."""


@dataclass(frozen=True)
class Mode:
    """One way of running a kernel: which thread goes first, and when copied bytes appear."""

    schedule: str = "round_robin"
    copies: str = "late"
    seed: int = 1

    def __str__(self) -> str:
        return f"{self.schedule}-{self.copies}-{self.seed}"


DEFAULT_MODE = Mode()


def all_modes(seeds: Iterable[int] = (1,)) -> list[Mode]:
    """Every schedule with every visibility; only random ones are repeated per seed."""
    modes = []
    for schedule, copies in itertools.product(SCHEDULES, VISIBILITIES):
        random = "random" in (schedule, copies)
        modes += [Mode(schedule, copies, seed) for seed in (seeds if random else (1,))]
    return modes


class Simulator:
    """The runtime library and a kernel library linked to it."""

    def __init__(self, library: Path, sanitizer: str = "") -> None:
        self.runtime = ctypes.CDLL(str(toolchain.runtime(sanitizer)))
        self.library = ctypes.CDLL(str(library))
        self.runtime.simt_load_ptx.restype = ctypes.c_void_p

    def configure(self, mode: Mode) -> None:
        """Use ``mode`` for the next launches."""
        self.runtime.simt_configure(
            SCHEDULES.index(mode.schedule), VISIBILITIES.index(mode.copies), ctypes.c_uint64(mode.seed)
        )

    def load_ptx(self, path: Path) -> ctypes.c_void_p:
        """Parse a PTX file; the handle is for :meth:`use_ptx`."""
        error = ctypes.create_string_buffer(4096)
        handle = self.runtime.simt_load_ptx(str(path).encode(), error, ctypes.c_size_t(len(error)))
        if not handle:
            raise SimulatorError(error.value.decode())
        return ctypes.c_void_p(handle)

    def use_host(self) -> None:
        """Run kernels as compiled by g++."""
        self.runtime.simt_use_host()

    def use_ptx(self, module: ctypes.c_void_p, arrays: Sequence[np.ndarray]) -> None:
        """Run kernels by the PTX interpreter; they may touch only ``arrays``."""
        pointers = (ctypes.c_void_p * len(arrays))(*[a.ctypes.data for a in arrays])
        sizes = (ctypes.c_size_t * len(arrays))(*[a.nbytes for a in arrays])
        self.runtime.simt_use_ptx(module, pointers, sizes, len(arrays))

    def take_statistics(self) -> dict[str, int]:
        """Counters since the last call."""
        values = (ctypes.c_uint64 * len(COUNTERS))()
        self.runtime.simt_take_statistics(values)
        return dict(zip(COUNTERS, values, strict=True))

    def call(self, function: str, *args: Any) -> None:
        """Call a driver's entry point, whose last two parameters are the error buffer and its size.

        Raises:
            SimulatorError: what the kernel did wrong.
        """
        error = ctypes.create_string_buffer(4096)
        if getattr(self.library, function)(*args, error, ctypes.c_size_t(len(error))) != 0:
            raise SimulatorError(error.value.decode())


def pointer(array: np.ndarray) -> ctypes.c_void_p:
    """The address of a C-contiguous array."""
    assert array.flags.c_contiguous
    return ctypes.c_void_p(array.ctypes.data)
