"""Gates on the machine code of the wgmma kernels, as test_sass_gates.py: what can be said without a GPU.

expected_sm90.json is the record; ``bound_tops`` in it is what the loop's busiest pipe leaves at 132 SMs x 1.755 GHz,
not a speed. After a change that is meant: ``cd tests && python -m native.sass.gates_sm90``, and look at the difference.
"""

import json

import pytest
from native.sass import gates_sm90
from native.sass.gates_sm90 import GATES
from native.simt import toolchain
from native.simt.attention import AttentionSimulator

GROWTH = 1.03
WARPGROUPS = {64: 3, 96: 3, 128: 3, 256: 2}  # per SM: one's softmax hides others' products
PERSISTENT = 192  # queries of the kernels with a loading warpgroup


@pytest.fixture(scope="module")
def simulator() -> AttentionSimulator:
    if toolchain.nvcc() is None:
        pytest.skip("nvcc is not installed (PATH or /usr/local/cuda)")
    if toolchain.cuda_tool("cuobjdump") is None or toolchain.cuda_tool("nvdisasm") is None:
        pytest.skip("cuobjdump and nvdisasm are missing: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm")
    return AttentionSimulator()


@pytest.fixture(scope="module")
def expected() -> dict:
    return json.loads(gates_sm90.EXPECTED.read_text())


@pytest.mark.parametrize("gate", GATES, ids=str)
def test_gate(gate, simulator, expected):
    now, then = gates_sm90.measure(gate, simulator), expected[str(gate)]  # compiling rejects serialized wgmma
    assert now["stack_bytes"] == 0, "spills or local arrays"
    part = min(gate.head_dim, 128)
    qk, pv = gate.head_dim // 32, 4 * gate.head_dim // part
    assert now["mma"] == {"IGMMA.64x128x32.S8.S8": qk, f"IGMMA.64x{part}x32.U8.S8": pv}
    if gate.scored:
        assert now["blocks_per_sm"] >= then["blocks_per_sm"]
        return
    assert now["blocks_per_sm"] * gate.tile_m // 64 >= WARPGROUPS[gate.head_dim]
    assert now["local_in_loop"] == 0
    if gate.tile_m == PERSISTENT:  # 65536 registers for 512 threads, then for 384 and 128
        assert now["registers"] == 128
        assert now["setmaxnreg"] == {"take": 160, "give": 32}
        assert now["highest_register"] < 160
        assert now["highest_register_after_giving"] < 32
    else:
        assert now["setmaxnreg"] == {}
    assert now["slow_conversions_in_loop"] == []
    bottleneck = then["bottleneck"]
    assert now["cycles"][bottleneck] <= GROWTH * then["cycles"][bottleneck]
    assert max(now["cycles"].values()) <= GROWTH * max(then["cycles"].values())


def test_serialized_wgmma_is_rejected():
    """A kernel that reads accumulators in flight compiles, and ptxas only mentions that it takes away all overlap."""
    if toolchain.nvcc() is None:
        pytest.skip("nvcc is not installed (PATH or /usr/local/cuda)")
    patches = {"cuda/wgmma_rows.cuh": [("      ptx::wgmma_wait<0>(acc);\n", "")]}
    tree = toolchain.patched_tree("hopper-serialized", patches)
    source = tree / "cuda" / "serialized.cu"
    source.write_text('#include "cuda/instances_sm90.cuh"\nINTFA_WGMMA(intfa_attention_wgmma_d64, false, 64)\n')
    with pytest.raises(RuntimeError, match=r"\(C75\d\d\)"):
        toolchain.cubin(source, "wgmma-serialized", "90a", plugin=tree)
