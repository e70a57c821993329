"""Physical limits: what a device can do at most, and how near a measured time comes.

One table of devices. Peaks are dense (no structured sparsity), at the boost clock that the vendor's figure assumes; a
device that clocks differently shows a percentage that is off by that ratio. Sources, all NVIDIA's: data sheets of A100
80GB SXM, H100 SXM, H200, L4, L40S and A10; appendices of the GA102, Ada and RTX Blackwell architecture white papers;
memory of an SM from the CUDA C++ Programming Guide, technical specifications per compute capability; special-function
rate from its arithmetic instruction throughput (16 exp2 per clock and SM from compute capability 7.0 on).
A CPU is not in the table: its limits are measured (:mod:`intfa_onnx.bench.calibrate`).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from intfa_onnx.bench.problem import Problem

EXP2_PER_CLOCK_PER_SM = 16
_KB = 1024


@dataclass(frozen=True)
class Device:
    """Peaks of one device; what has no known limit is infinite.

    Attributes:
        name: as the driver reports it, or a part of that.
        int8_ops: multiplications and additions per second.
        bytes_per_second: of the device's memory.
        sms: multiprocessors of a GPU.
        clock_hz: of a GPU.
        sm_bytes: on-chip memory of one multiprocessor: L1 and shared memory, and registers.
    """

    name: str
    int8_ops: float
    bytes_per_second: float
    sms: int = 0
    clock_hz: float = 0.0
    sm_bytes: int = 0

    @property
    def exp2_per_second(self) -> float:
        """Results of the special-function units per second."""
        return EXP2_PER_CLOCK_PER_SM * self.sms * self.clock_hz if self.sms else math.inf


DEVICES = (
    Device("H200", 1979e12, 4.8e12, 132, 1.83e9, (256 + 256) * _KB),
    Device("H100", 1979e12, 3.35e12, 132, 1.83e9, (256 + 256) * _KB),
    Device("A100", 624e12, 2.04e12, 108, 1.41e9, (192 + 256) * _KB),
    Device("A10", 250e12, 0.6e12, 72, 1.695e9, (128 + 256) * _KB),
    Device("RTX 3090", 284e12, 0.936e12, 82, 1.695e9, (128 + 256) * _KB),
    Device("RTX 4090", 661e12, 1.008e12, 128, 2.52e9, (128 + 256) * _KB),
    Device("L40S", 733e12, 0.864e12, 142, 2.52e9, (128 + 256) * _KB),
    Device("L4", 242e12, 0.3e12, 58, 2.04e9, (128 + 256) * _KB),
    Device("RTX 5090", 838e12, 1.792e12, 170, 2.407e9, (128 + 256) * _KB),
)


def find_device(name: str) -> Device | None:
    """Return the table's row for the name that the driver gives, or None."""
    return next((d for d in DEVICES if re.search(rf"\b{d.name}\b", name)), None)


def bounds(problem: Problem, device: Device, element_bytes: int, input_bytes: int = 0) -> dict[str, float]:
    """Return the least seconds by resource: ``int8``, ``exp2`` and ``memory`` (each tensor moved once)."""
    scores = problem.operations / (4 * problem.head_dim)
    outputs = problem.batch * problem.num_heads * problem.seqlen_q * problem.head_dim
    moved = element_bytes * outputs + (input_bytes or element_bytes) * (_elements(problem) - outputs)
    return {
        "int8": problem.operations / device.int8_ops,
        "exp2": scores / device.exp2_per_second,
        "memory": moved / device.bytes_per_second,
    }


def percent_of_limit(
    problem: Problem, device: Device, seconds: float, element_bytes: int, input_bytes: int = 0
) -> tuple[str, float]:
    """Return the binding resource and the percentage of its limit that was reached.

    Args:
        problem: what was computed.
        device: where.
        seconds: how long it took.
        element_bytes: of the tensors of the call.
        input_bytes: of Q, K and V where they are narrower than the output.
    """
    resource, least = max(bounds(problem, device, element_bytes, input_bytes).items(), key=lambda item: item[1])
    return resource, 100 * least / seconds


def io_bytes(problem: Problem, tile_m: int) -> int:
    """Return the bytes that INT8 FlashAttention moves into and out of the SMs: codes of Q, K, V and float16 output.

    Every block of ``tile_m`` queries reads all keys and values that its last query attends; caches beyond the SM do not
    lessen that. The quantizing prologue is not counted.
    """
    tiles = math.ceil(problem.seqlen_q / tile_m)
    keys = sum(min((t + 1) * tile_m, problem.seqlen) if problem.causal else problem.seqlen for t in range(tiles))
    heads = problem.batch * problem.num_heads
    return heads * problem.head_dim * (2 * keys + (1 + 2) * problem.seqlen_q)


def io_lower_bound(problem: Problem, on_chip_bytes: int, element_bytes: int = 1) -> float:
    """Return the least bytes to move between memory and an on-chip memory of ``on_chip_bytes``, without the constant.

    With M words on chip, exact attention of N queries and keys of size d moves Theta(N^2 d^2 / M) words where M >= d^2,
    Theta(N^2 d / sqrt(M)) below, and never less than its inputs and output. The constant of Theta is taken as 1 and
    causal counts half, so that a ratio to this bound tells how far larger tiles could go, not that they exist.

    Source: Saha and Ye, "The I/O Complexity of Attention, or How Optimal is FlashAttention?", ICML 2024
    (arXiv 2402.07443), theorems for M >= d^2 and M < d^2; the upper bound is FlashAttention's (Dao et al. 2022,
    theorem 2).
    """
    words, d = on_chip_bytes / element_bytes, problem.head_dim
    per_score = d * d / words if words >= d * d else d / math.sqrt(words)
    scores = problem.operations / (4 * d)
    return element_bytes * max(scores * per_score, _elements(problem))


def _elements(problem: Problem) -> int:
    """Return the elements of Q, K, V and the output together."""
    tokens = problem.num_heads * problem.seqlen_q + problem.kv_num_heads * problem.seqlen
    return 2 * problem.batch * tokens * problem.head_dim
