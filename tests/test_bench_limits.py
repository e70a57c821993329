"""The table of devices, the bounds and the I/O volumes: against arithmetic that the table does not do."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from intfa_onnx.bench.calibrate import calibrate_cpu
from intfa_onnx.bench.limits import DEVICES, Device, bounds, find_device, io_bytes, io_lower_bound, percent_of_limit
from intfa_onnx.bench.peers_cuda import machine
from intfa_onnx.bench.problem import Problem

SHAPES = Path(__file__).parent.parent / "plugin/cuda"
PROBLEM = Problem(1, 16, 16, 8192, 128, causal=False)


@pytest.mark.parametrize("device", DEVICES, ids=lambda d: d.name)
def test_a_row_is_consistent(device: Device) -> None:
    """Peak INT8 is SMs times clock times a power of two, what an SM does per clock; a wrong figure breaks it."""
    per_clock = device.int8_ops / (device.sms * device.clock_hz)
    assert per_clock == pytest.approx(2 ** round(math.log2(per_clock)), rel=0.01)
    assert 0.2e12 < device.bytes_per_second < 10e12
    assert find_device(f"NVIDIA {device.name}") == device


def test_devices_by_the_drivers_name() -> None:
    assert find_device("NVIDIA H200").name == "H200"
    assert find_device("NVIDIA A100-SXM4-80GB").name == "A100"
    assert find_device("NVIDIA A1000") is None
    assert find_device("NVIDIA GeForce RTX 4090").name == "RTX 4090"


def test_bounds() -> None:
    device = find_device("NVIDIA H200")
    least = bounds(PROBLEM, device, 2)
    assert least["int8"] == pytest.approx(4 * 16 * 8192**2 * 128 / 1979e12)
    assert least["exp2"] == pytest.approx(16 * 8192**2 / (16 * 132 * 1.83e9))
    assert least["memory"] == pytest.approx(4 * 16 * 8192 * 128 * 2 / 4.8e12)
    resource, percent = percent_of_limit(PROBLEM, device, 2 * max(least.values()), 2)
    assert percent == pytest.approx(50)
    assert least[resource] == max(least.values())


def test_io_bytes_counts_tiles() -> None:
    """By hand: 3 tiles of 4 queries over 10 keys; causal, they see 4, 8 and 10."""
    full, causal = (Problem(1, 1, 1, 10, 8, causal) for causal in (False, True))
    own = 8 * 10 * (1 + 2)  # codes of Q, float16 output
    assert io_bytes(full, 4) == own + 2 * 8 * 3 * 10
    assert io_bytes(causal, 4) == own + 2 * 8 * (4 + 8 + 10)


def test_io_lower_bound() -> None:
    """Both regimes meet at M = d^2, more memory never needs more traffic, and the inputs are always read."""
    d, n = 128, 8192
    one = Problem(1, 1, 1, n, d, causal=False)
    assert io_lower_bound(one, d * d) == pytest.approx(n * n)
    assert io_lower_bound(one, d * d - 1) == pytest.approx(n * n, rel=1e-3)
    assert io_lower_bound(one, 4 * d * d) == pytest.approx(n * n / 4)
    assert io_lower_bound(one, 2**40) == 4 * n * d
    # FlashAttention's own count with its block of M / (4 d) rows lies within its constant above the bound.
    memory = 256 * 1024
    assert 1 < io_bytes(one, memory // (4 * d)) / io_lower_bound(one, memory) < 16


def test_tile_m_is_the_kernels() -> None:
    """Four warps of 32 rows (16 at head size 256); of the wgmma kernels, 64 rows per warpgroup."""
    assert "kNumWarps = 4;" in (SHAPES / "traits.cuh").read_text()
    shape = (SHAPES / "attention_shape.h").read_text()
    assert "kTileM = kNumWarps * kWarpRows" in shape
    assert "kStrips = kDim <= 128 ? 2 : 1;" in shape
    assert [machine("NVIDIA A100").tile_m(d) for d in (64, 128, 256)] == [128, 128, 64]
    assert [machine("NVIDIA H200").tile_m(d) for d in (64, 128, 256)] == [192, 192, 64]
    assert "wgmma192_d128" in (SHAPES / "kernels_sm90.cu").read_text()
    assert "kTileM = kWarps * kWarpRows;" in (SHAPES / "attention_shape_sm90.h").read_text()


def test_cpu_is_calibrated() -> None:
    pytest.importorskip("onnxruntime")
    device = calibrate_cpu(1)
    assert 1e9 < device.int8_ops < 1e14
    assert 1e8 < device.bytes_per_second < 1e13
    assert device.exp2_per_second == math.inf
