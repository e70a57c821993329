"""The kernels under ASan (with UBSan) and TSan: every CUDA thread is a fiber that the sanitizers know as a thread.

TSan orders fibers by barriers only, so it sees a race whether or not the schedule makes it bite; ASan sees every byte
outside of the tensors and of shared memory.
"""

import pytest
from cases import CASES
from native.simt import sanitized, toolchain

FEW = ["ragged-tile", "d128-paper", "causal_past-half", "nonpad-tile", "mask_float_inf-tile", "bshd-half"]
FEW += ["gqa_decode-tile", "int8_tensor-tile"]  # heads packed; K read in place, to its last row


@pytest.mark.parametrize("sanitizer", ["asan", "tsan"])
def test_few_cases(sanitizer):
    done = sanitized.run(sanitizer, *FEW)
    assert done.returncode == 0, done.stderr[:4000]
    assert done.stdout.split() == [word for name in FEW for word in (name, "ok")]


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ["asan", "tsan"])
def test_all_cases(sanitizer):
    names = [f"{c.name}-{a}" for c in CASES for a in ("tile", "paper", "half")]
    done = sanitized.run(sanitizer, *names)
    assert done.returncode == 0, (done.stdout[-200:], done.stderr[:4000])


@pytest.mark.parametrize(
    ("sanitizer", "defect", "report"),
    [
        ("asan", "out_of_bounds", "heap-buffer-overflow"),
        ("tsan", "global_race", "data race"),
        ("tsan", "missing_warp_sync", "data race"),
    ],
)
def test_defect_is_found(sanitizer, defect, report):
    done = sanitized.run(sanitizer, f"defect-{defect}")
    assert done.returncode != 0
    assert report in done.stderr, (done.stdout, done.stderr[:2000])


def test_defects_pass_without_a_sanitizer():
    """They are defects that only a sanitizer sees: so the tests above test the sanitizers."""
    library = toolchain.host_library([toolchain.SIMT / "pipeline_driver.cc"], "libpipeline")
    simulator = sanitized.Simulator(library)
    simulator.use_host()
    for defect in (b"global_race", b"missing_warp_sync"):
        simulator.call("defect_run", defect, sanitized.pointer(sanitized.np.zeros(64, "uint32")))
