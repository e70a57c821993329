"""Physical limits: what a device can do at most, and how near a measured time comes.

One table of devices. Peaks are dense (no structured sparsity), at the boost clock that the vendor's figure assumes.
Sources: NVIDIA A100, H100 and H200 data sheets; Ada architecture white paper (RTX 4090, L4). Special-function rate: 16
exp2 per clock and SM from compute capability 7.0 on (CUDA C++ Programming Guide, arithmetic instruction throughput).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from intfa_onnx.bench.problem import Problem

EXP2_PER_CLOCK_PER_SM = 16


@dataclass(frozen=True)
class Device:
    """Peaks of one GPU."""

    name: str  # as the driver reports it, or a part of that
    int8_ops: float  # per second
    bytes_per_second: float
    sms: int
    clock_hz: float


DEVICES = (
    Device("H200", 1979e12, 4.8e12, 132, 1.83e9),
    Device("H100", 1979e12, 3.35e12, 132, 1.83e9),
    Device("A100", 624e12, 2.04e12, 108, 1.41e9),
    Device("RTX 4090", 661e12, 1.008e12, 128, 2.52e9),
    Device("L4", 242e12, 0.3e12, 58, 2.04e9),
)


def find_device(name: str) -> Device | None:
    """Return the table's row for the name that the driver gives, or None."""
    return next((d for d in DEVICES if re.search(rf"\b{d.name}\b", name)), None)


def bounds(problem: Problem, device: Device, element_bytes: int) -> dict[str, float]:
    """Return the least seconds by resource: ``int8``, ``exp2`` and ``memory`` (each tensor moved once)."""
    scores = problem.operations / (4 * problem.head_dim)
    q_elements = problem.batch * problem.num_heads * problem.seqlen * problem.head_dim
    kv_elements = problem.batch * problem.kv_num_heads * problem.seqlen * problem.head_dim
    return {
        "int8": problem.operations / device.int8_ops,
        "exp2": scores / (EXP2_PER_CLOCK_PER_SM * device.sms * device.clock_hz),
        "memory": element_bytes * 2 * (q_elements + kv_elements) / device.bytes_per_second,
    }


def percent_of_limit(problem: Problem, device: Device, seconds: float, element_bytes: int = 2) -> tuple[str, float]:
    """Return the binding resource and the percentage of its limit that was reached."""
    resource, least = max(bounds(problem, device, element_bytes).items(), key=lambda item: item[1])
    return resource, 100 * least / seconds
