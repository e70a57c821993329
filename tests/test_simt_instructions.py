"""Every wrapper of ptx.cuh, by its host twin and as an instruction in nvcc's PTX, against independent definitions.

Layouts are written out here from the PTX ISA's tables; arithmetic is numpy's, in a wider type.
"""

import numpy as np
import pytest
from native.simt import toolchain
from native.simt.simulator import Simulator, SimulatorError, pointer

LANE = np.arange(32)
G, T = LANE // 4, LANE % 4


@pytest.fixture(scope="module")
def simulator() -> Simulator:
    return Simulator(toolchain.host_library([toolchain.SIMT / "probe_driver.cc"], "libprobe"))


@pytest.fixture(scope="module")
def probe_ptx(simulator):
    if toolchain.nvcc() is None:
        pytest.skip("nvcc is not installed, so there is no PTX to interpret")
    return simulator.load_ptx(toolchain.ptx(toolchain.SIMT / "probe.cu", "probe"))


@pytest.fixture(params=["host", "ptx"])
def run(request, simulator):
    """A function (probe, inputs [n, 32] uint32, outputs) -> [outputs, 32] uint32, by either simulator."""

    def run_probe(name: str, inputs: np.ndarray, outputs: int) -> np.ndarray:
        inputs = np.ascontiguousarray(inputs, dtype=np.uint32)
        out = np.full((outputs, 32), 0xDEADBEEF, dtype=np.uint32)
        if request.param == "ptx":
            simulator.use_ptx(request.getfixturevalue("probe_ptx"), [inputs, out])
        else:
            simulator.use_host()
        simulator.call("probe_run", name.encode(), pointer(inputs), pointer(out))
        return out

    yield run_probe
    simulator.use_host()


def words(a: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(a).view(np.uint32)


def floats(a: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(a).view(np.float32)


def gather_words(matrix: np.ndarray, row: np.ndarray, column: np.ndarray, per_word: int) -> np.ndarray:
    """Register of each lane: ``per_word`` consecutive elements from (row, column)."""
    picked = np.stack([matrix[row, column + i] for i in range(per_word)], axis=1)
    return words(picked).reshape(32)


@pytest.mark.parametrize("a_type", [np.int8, np.uint8])
def test_mma_int8(run, a_type):
    rng = np.random.default_rng(3)
    info = np.iinfo(a_type)
    a = rng.integers(info.min, info.max, (16, 32), endpoint=True, dtype=a_type)
    b = rng.integers(-128, 127, (32, 8), endpoint=True, dtype=np.int8)
    c = rng.integers(-(2**31), 2**31, (16, 8), dtype=np.int64).astype(np.int32)  # large: addition wraps
    # PTX ISA, m16n8k32 .s8: a_i is row g (i in 0-3, 8-11) or g+8, column 4t + (i & 3), +16 from i = 8;
    # b_i is row 4t + (i & 3), +16 from i = 4, column g; c_i is row g, +8 from i = 2, column 2t + (i & 1)
    registers = [gather_words(a, G + 8 * (r % 2), 4 * T + 16 * (r // 2), 4) for r in range(4)]
    registers += [gather_words(b.T, G, 4 * T + 16 * r, 4) for r in range(2)]
    registers += [c[G + 8 * (i // 2), 2 * T + i % 2].view(np.uint32) for i in range(4)]
    out = run("mma_s8s8" if a_type is np.int8 else "mma_u8s8", np.stack(registers), 4).view(np.int32)
    expected = (a.astype(np.int64) @ b.astype(np.int64) + c).astype(np.int32)  # astype wraps
    for i in range(4):
        np.testing.assert_array_equal(out[i], expected[G + 8 * (i // 2), 2 * T + i % 2])


def test_mma_f16(run):
    rng = np.random.default_rng(4)
    a = rng.standard_normal((16, 16)).astype(np.float16)
    b = rng.standard_normal((16, 8)).astype(np.float16)
    c = rng.standard_normal((16, 8)).astype(np.float32)
    # PTX ISA, m16n8k16 .f16: a_i is row g (i in 0,1,4,5) or g+8, column 2t + (i & 1), +8 from i = 4;
    # b_i is row 2t + (i & 1), +8 from i = 2, column g
    registers = [gather_words(a, G + 8 * (r % 2), 2 * T + 8 * (r // 2), 2) for r in range(4)]
    registers += [gather_words(b.T, G, 2 * T + 8 * r, 2) for r in range(2)]
    registers += [words(c[G + 8 * (i // 2), 2 * T + i % 2]) for i in range(4)]
    out = floats(run("mma_f16", np.stack(registers), 4))
    exact = a.astype(np.float64) @ b.astype(np.float64) + c
    magnitude = np.abs(a).astype(np.float64) @ np.abs(b).astype(np.float64) + np.abs(c)
    for i in range(4):
        row, column = G + 8 * (i // 2), 2 * T + i % 2
        error = np.abs(out[i] - exact[row, column])
        assert (error <= 2.0**-24 * magnitude[row, column]).all()  # one rounding to float32


def test_ldmatrix(run):
    """Rows given in a permuted order: lane 8m + j addresses row j of matrix m."""
    rng = np.random.default_rng(5)
    contents = rng.integers(0, 2**32, (4, 32), dtype=np.uint32)
    row_of_lane = rng.permutation(32)
    out = run("ldmatrix_x4", np.vstack([contents, 16 * row_of_lane.astype(np.uint32)]), 4)
    rows = contents.reshape(32, 4)
    for m in range(4):
        np.testing.assert_array_equal(out[m], rows[row_of_lane[8 * m + G], T])


def test_shared_loads(run):
    rng = np.random.default_rng(6)
    contents = rng.integers(0, 2**32, (4, 32), dtype=np.uint32)
    chunk = rng.integers(0, 32, 32)
    out = run("ld_shared_x4", np.vstack([contents, 16 * chunk.astype(np.uint32)]), 4)
    np.testing.assert_array_equal(out.T, contents.reshape(32, 4)[chunk])


def test_shared_stores(run):
    rng = np.random.default_rng(7)
    values = rng.integers(0, 2**32, (2, 32), dtype=np.uint32)
    out = run("st_shared", values, 2)
    np.testing.assert_array_equal(out[0, :8], words(values[0].astype(np.uint8)))
    np.testing.assert_array_equal(out[1, :16], words(values[1].astype(np.uint16)))


def test_cp_async(run):
    source = np.random.default_rng(8).integers(0, 2**32, (4, 32), dtype=np.uint32)
    np.testing.assert_array_equal(run("cp_async16", source, 4), source[:, ::-1])


def test_shuffle(run):
    value = np.random.default_rng(9).integers(0, 2**31, (1, 32), dtype=np.uint32)
    out = run("shfl_xor", value, 3)
    np.testing.assert_array_equal(out, np.stack([value[0, LANE ^ m] for m in (1, 2, 16)]))


def test_warp_any(run):
    flags = np.zeros((3, 32), np.uint32)
    flags[1, 17] = 1
    flags[2, :] = 1
    np.testing.assert_array_equal(run("warp_any", flags, 3), np.array([[0], [1], [1]]) * np.ones(32, int))


SPECIAL = np.array(
    [0, -0.0, 1, -1, 0.5, 1.5, 2.5, -2.5, np.inf, -np.inf, np.nan, 1e-40, 65504, 65520, 7e4, -3e9], np.float32
)


def float_operands(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    random = rng.standard_normal((3, 16)).astype(np.float32) * np.array([[8], [2], [1e-3]], np.float32)
    return np.hstack([np.stack([SPECIAL, SPECIAL[::-1], np.roll(SPECIAL, 5)]), random]).astype(np.float32)


@pytest.mark.parametrize("seed", range(4))
def test_scalar_float(run, seed):
    x = float_operands(seed)
    out = run("scalar_float", words(x), 11)
    a, b, c = x
    flushed = np.where(np.abs(a) < np.finfo(np.float32).tiny, np.copysign(0, a), a).astype(np.float32)
    with np.errstate(all="ignore"):
        wide = np.longdouble(a) * b  # exact: 48 bits in 64
        integer = np.nan_to_num(np.rint(np.float64(a)), nan=0, posinf=2.0**31 - 1, neginf=-(2.0**31))
        halves = [f.astype(np.float16).view(np.uint16).astype(np.uint32) for f in (a, b)]
        expected = {
            "ex2": (0, np.exp2(np.float64(flushed)), 2.0**-22),
            "lg2": (1, np.log2(np.float64(flushed)), 2.0**-22),
            "fma_rn": (2, wide + c, 2.0**-24),
            "mul_rn": (4, a * b, 0),
            "add_rn": (5, a + b, 0),
            "div_rn": (6, a / b, 0),
        }
        for name, (row, exact, tolerance) in expected.items():
            got = floats(out[row])
            np.testing.assert_allclose(got, exact.astype(np.float32), rtol=2 * tolerance, atol=1e-38, err_msg=name)
        down, sum_ = floats(out[3]), wide + c
        finite = np.isfinite(down) & np.isfinite(np.float64(sum_)) & (np.abs(sum_) > 1e-30)
        assert finite.sum() >= 20
        assert (down[finite] <= sum_[finite]).all()
        assert (np.nextafter(down[finite], np.float32(np.inf)) > sum_[finite]).all()
    np.testing.assert_array_equal(out[7].view(np.int32), np.clip(integer, -(2**31), 2**31 - 1).astype(np.int64))
    number = ~np.isnan(a)
    np.testing.assert_array_equal(out[8][number], halves[0][number])
    assert (out[8][~number] == 0x7FFF).all()
    kept, dropped = words(a) >> 16, words(a) & 0xFFFF
    nearest_even = kept + ((dropped > 0x8000) | ((dropped == 0x8000) & (kept & 1 == 1)))
    np.testing.assert_array_equal(out[9][number], nearest_even[number])
    both = number & ~np.isnan(b)
    np.testing.assert_array_equal(out[10][both], (halves[0] << 16 | halves[1])[both])


def test_scalar_integer(run):
    rng = np.random.default_rng(11)
    x = rng.integers(0, 2**32, (3, 32), dtype=np.uint32)
    x[0, :12] = np.array([0, 1, 255, 256, 257, -1, -300, 127, 128, 2**31 - 1, -(2**31), 77], np.int64).astype(np.uint32)
    x[0, 12:24] = rng.integers(0, 2**16, 12)
    out = run("scalar_integer", x, 6)
    a, b, c = x
    high, low = np.clip(a.view(np.int32), 0, 255), np.clip(b.view(np.int32), 0, 255)
    np.testing.assert_array_equal(out[0], (c << 16) | (high << 8).astype(np.uint32) | low.astype(np.uint32))
    eight_bytes = np.stack([a, b], axis=1).view(np.uint8)  # [32, 8], little-endian
    selectors = np.stack([(c >> (4 * i)) & 7 for i in range(4)], axis=1)
    np.testing.assert_array_equal(out[1], words(np.take_along_axis(eight_bytes, selectors.astype(int), 1)).ravel())
    products = a.view(np.uint8).astype(np.int64) * b.view(np.uint8)
    np.testing.assert_array_equal(out[2], (products.reshape(32, 4).sum(1) + c).astype(np.uint32))
    np.testing.assert_array_equal(floats(out[3]), a.view(np.int32).astype(np.float32))
    np.testing.assert_array_equal(floats(out[4]), (a & 0xFFFF).astype(np.uint16).view(np.float16).astype(np.float32))
    np.testing.assert_array_equal(out[5][~np.isnan(floats(a << 16))], (a << 16)[~np.isnan(floats(a << 16))])


def test_address_errors(run):
    bad = np.zeros((5, 32), np.uint32)
    bad[4, 3] = 512
    with pytest.raises(SimulatorError, match="out of bounds"):
        run("ldmatrix_x4", bad, 4)
    bad[4, 3] = 8
    with pytest.raises(SimulatorError, match="misaligned"):
        run("ld_shared_x4", bad, 4)


def test_global_bounds(simulator, probe_ptx):
    """The interpreter refuses global memory that was not given to it."""
    inputs, out, other = np.zeros((1, 32), np.uint32), np.zeros((3, 32), np.uint32), np.zeros((3, 31), np.uint32)
    simulator.use_ptx(probe_ptx, [inputs, other])
    with pytest.raises(SimulatorError, match=r"global access out of bounds.*st\.global"):
        simulator.call("probe_run", b"shfl_xor", pointer(inputs), pointer(out))
    simulator.use_host()


def test_unknown_instruction(simulator, tmp_path):
    source = toolchain.SIMT / "probe.cu"
    if toolchain.nvcc() is None:
        pytest.skip("nvcc is not installed")
    text = toolchain.ptx(source, "probe").read_text()
    broken = tmp_path / "broken.ptx"
    broken.write_text(text.replace("shfl.sync.bfly.b32", "shfl.sync.sideways.b32", 1))
    with pytest.raises(SimulatorError, match=r"line \d+: unknown instruction shfl\.sync\.sideways\.b32"):
        simulator.load_ptx(broken)
