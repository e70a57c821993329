"""Gates on the machine code of the kernels: what a GPU-less machine can say about their speed.

expected.json is the record; a kernel may not take over 3 % more cycles on its bottleneck pipe than recorded, nor more
stack. After a change that is meant: ``cd tests && python -m native.sass.gates``, and look at the difference.
"""

import json

import pytest
from native.sass import gates, pipe_model
from native.sass.gates import GATES
from native.simt import toolchain
from native.simt.attention import HEAD_DIMS, AttentionSimulator

GROWTH = 1.03
DEFAULT_DIMS, DEFAULT_ARCHITECTURES = (64, 128), ("80", "89", "90a")  # the others take minutes to compile

# The plain loops' tensor cycles over those of the busiest pipe. On sm_80 at 64 the paper's scheme sums P in float: 0.7.
FORMS = ("tile", "paper", "half")
TARGETS = [(arch, dim, form, 0.95) for arch in ("86", "89", "120") for dim in HEAD_DIMS for form in FORMS]
TARGETS += [("80", 128, form, 0.95) for form in FORMS] + [("80", 64, form, 0.85) for form in ("tile", "half")]
STACK_BYTES_SM100 = {"intfa_attention_half_scored_d128": 16}  # four words in the loop, by nvcc 13.0
# Kernels for head sizes up to 128 whose shared memory lets one block alone into an SM, by its KB of shared memory.
ALONE = {
    100: {"half_d96", "half_d128", *(f"{form}_scored_d{dim}" for form in FORMS for dim in (96, 128))},
    164: {f"{form}_scored_d128" for form in FORMS},
    228: set(),
}


def gate_params(every: bool = True):
    """One per kernel, or one per compilation."""
    return [
        pytest.param(
            g,
            id=str(g) if every else f"sm_{g.arch}/d{g.head_dim}",
            marks=[] if g.head_dim in DEFAULT_DIMS and g.arch in DEFAULT_ARCHITECTURES else pytest.mark.slow,
        )
        for g in GATES
        if every or (g.arithmetic, g.scored) == ("tile", False)
    ]


@pytest.fixture(scope="module")
def measured():
    """Measures a gate once."""
    if toolchain.nvcc() is None:
        pytest.skip("nvcc is not installed (PATH or /usr/local/cuda)")
    if toolchain.cuda_tool("cuobjdump") is None or toolchain.cuda_tool("nvdisasm") is None:
        pytest.skip("cuobjdump and nvdisasm are missing: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm")
    simulator = AttentionSimulator()
    cache: dict[str, dict] = {}

    def measure(gate: gates.Gate) -> dict:
        if str(gate) not in cache:
            cache[str(gate)] = gates.measure(gate, simulator)
        return cache[str(gate)]

    return measure


@pytest.fixture(scope="module")
def expected() -> dict:
    return json.loads(gates.EXPECTED.read_text())


@pytest.mark.parametrize("gate", gate_params())
def test_gate(gate, measured, expected):
    now, then = measured(gate), expected[str(gate)]
    assert sum(n for op, n in now["mma"].items() if op.startswith("IMMA.16832.S8.S8")) > 0
    pv = "HMMA.16816.F32" if gate.arithmetic == "half" else "IMMA.16832.U8.S8"
    assert now["mma"].get(pv, 0) > 0, now["mma"]
    assert now["slow_conversions_in_loop"] == 0
    if gate.arch in DEFAULT_ARCHITECTURES:
        assert now["stack_bytes"] == now["local_in_loop"] == 0, "local memory"
    arch, threads = pipe_model.ARCHITECTURES[gate.arch], 32 * 4
    assert pipe_model.blocks_per_sm(arch, now["registers"], 0, threads) >= 2, "registers for two blocks"
    if gate.head_dim <= 128 and gate.kernel.removeprefix("intfa_attention_") not in ALONE[arch.shared_kb]:
        assert now["blocks_per_sm"] >= 2
    assert now["local_in_loop"] <= then["local_in_loop"], "spills in the main loop"
    assert now["stack_bytes"] <= then["stack_bytes"], "spills"
    assert now["blocks_per_sm"] >= then["blocks_per_sm"]
    pipe = then["bottleneck"]
    assert max(now["cycles"].values()) <= GROWTH * then["cycles"][pipe], (now["cycles"], then["cycles"])


@pytest.mark.parametrize("gate", gate_params(every=False))
def test_no_stack_outside_of_attention(gate, measured):
    assert set(gates.stack_bytes_of_others(gate).values()) == {0}


def test_record_is_complete(expected):
    assert sorted(expected) == sorted(map(str, GATES))


@pytest.mark.parametrize(("arch", "head_dim", "form", "target"), TARGETS)
def test_tensor_cores_bound_the_loop(arch, head_dim, form, target, expected):
    """Tensor cycles over those of the busiest pipe, as recorded; test_gate holds the record."""
    assert expected[str(gates.Gate(arch, head_dim, form))]["mma_share"] >= target


@pytest.mark.slow
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_sm100(head_dim, measured):
    """Nobody publishes the rate of its mma.sync: of the model only what the code says by itself."""
    cubin = gates.compile_gate(gates.Gate("100", head_dim, "tile"))
    cuobjdump = toolchain.cuda_tool("cuobjdump")
    found, code = pipe_model.resources(cubin, cuobjdump), pipe_model.disassemble(cubin, cuobjdump)
    for form, scored in gates.ATTENTIONS:
        kernel = gates.Gate("100", head_dim, form, scored).kernel
        assert found[kernel]["stack_bytes"] <= STACK_BYTES_SM100.get(kernel, 0), kernel
        opcodes = {i.opcode for i in code[kernel]}
        assert any(op.startswith("IMMA.16832.S8.S8") for op in opcodes), kernel
        assert ("HMMA.16816.F32" if form == "half" else "IMMA.16832.U8.S8") in opcodes, kernel


def loop(*lines: str) -> list[pipe_model.Instruction]:
    """Instructions 16 bytes apart."""
    return [pipe_model.Instruction(16 * i, t.split()[-1 if t.startswith("@") else 0], t) for i, t in enumerate(lines)]


def test_pipe_model_counts():
    """By hand: an IMMA is 4096 multiply-adds, 512 per cycle and sub-partition on sm_80."""
    arch = pipe_model.ARCHITECTURES["80"]
    code = loop(
        "IMMA.16832.S8.S8 R0, R4.ROW, R8.COL, R0",
        "FFMA R1, R2, R3, R4",
        "I2F R1, R2",
        "LDSM.16.M88.4 R0, [R1]",
        "LDL R1, [R2]",
    )
    report = pipe_model.analyse(code, arch)
    assert report.cycles == {"tensor": 8.0, "fma": 2.0, "slow": 8.0, "shared": 16.0, "local": 4.0, "issue": 5}
    assert report.slow_conversions == ["I2F R1, R2"]
    assert report.local == ["LDL R1, [R2]"]
    assert (report.bottleneck, report.mma_share) == ("shared", 0.5)


def test_main_loop_is_the_plain_one():
    """Two loops with the same MMAs: the masked one is longer. The rescaling block does not count."""
    mma, other = "IMMA.16832.S8.S8 R0, R4.ROW, R8.COL, R0", "ISETP R1, R2, R3, R4"
    plain = [mma, mma, "@P0 BRA 0xd0", *["FMUL R1, R1, R2"] * 10, "@P1 BRA 0x0"]
    masked = [mma, mma, *[other] * 20, "BRA 0xe0"]
    code = [
        pipe_model.Instruction(16 * i, text.removeprefix("@P0 ").removeprefix("@P1 ").split()[0], text)
        for i, text in enumerate(plain + masked)
    ]
    found = pipe_model.main_loop(code, 2)
    assert [i.name for i in found] == ["IMMA", "IMMA", "BRA", "BRA"]
    with pytest.raises(ValueError, match="no loop with about 3 MMAs"):
        pipe_model.main_loop(code, 3)


def test_codes_in_place_do_not_count():
    """Blocks that clamp and copy codes go; scales that every tile reads, and a mask's terms, stay."""
    code = loop(
        "@!P0 BRA 0x60",
        "LDS.128 R4, [R0]",
        "@!P1 BRA 0x60",
        "LDS.128 R4, [R0]",
        "STS.128 [R0], R4",
        "@P2 BRA 0x30",
        "@!P3 BRA 0xb0",
        "@!P0 BRA 0xa0",
        "LDS.128 R4, [0x10]",
        "LDGSTS.E.BYPASS.128 [R0], [R4.64]",
        "LDGSTS.E.BYPASS.128 [R0], [R8.64]",
        "LDS.128 R4, [R0+0x2000]",
        "@!P4 BRA 0xf0",
        "LDG.E R4, [R8.64]",
        "STS.128 [R0], R4",
        "LDS.128 R4, [R0]",
    )
    kept = pipe_model.of_float_input(code)
    assert [i.address // 16 for i in kept] == [0, 6, 7, 10, 11, 12, 13, 14, 15]


def test_occupancy():
    """On sm_89 two blocks of 50 KB fit into 100 KB only without their reserved kilobyte."""
    ada = pipe_model.ARCHITECTURES["89"]
    assert pipe_model.blocks_per_sm(ada, registers=255, shared_bytes=49 * 1024, threads=128) == 2
    assert pipe_model.blocks_per_sm(ada, registers=255, shared_bytes=50 * 1024, threads=128) == 1
    assert pipe_model.blocks_per_sm(ada, registers=255, shared_bytes=1024, threads=256) == 1
