"""The one Python declaration of the C structures: against the header as a compiler sees it, and what it refuses."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from intfa_onnx import c_abi
from intfa_onnx.c_problem import make_problem
from intfa_onnx.errors import UnsupportedError

HEADER = Path(__file__).resolve().parent.parent / "plugin/include/intfa/c_api.h"
STRUCTURES = {"intfa_problem": c_abi.Problem, "intfa_tensors": c_abi.Tensors, "intfa_codes": c_abi.Codes}


def test_structures_are_the_headers(tmp_path: Path) -> None:
    """A C program prints size and offsets of every field, in the header's order."""
    compiler = shutil.which("gcc") or shutil.which("cc") or shutil.which("g++")
    if compiler is None:
        pytest.skip("no C compiler")
    lines = []
    for name, structure in STRUCTURES.items():
        lines += [f'printf("{name} %zu\\n", sizeof(struct {name}));']
        for field, *_ in structure._fields_:
            of = f"(({name}*)0)->{field}"
            lines += [f'printf("{name}.{field} %zu %zu\\n", offsetof(struct {name}, {field}), sizeof({of}));']
    source = tmp_path / "layout.c"
    source.write_text(f'#include <stdio.h>\n#include "{HEADER}"\nint main(void) {{ {" ".join(lines)} }}\n')
    subprocess.run([compiler, str(source), "-o", str(tmp_path / "layout")], check=True)
    answer = subprocess.run([str(tmp_path / "layout")], capture_output=True, text=True, check=True).stdout
    expected = []
    for name, structure in STRUCTURES.items():
        expected.append(f"{name} {ctypes.sizeof(structure)}")
        for field, *_ in structure._fields_:
            member = getattr(structure, field)
            expected.append(f"{name}.{field} {member.offset} {member.size}")
    assert answer.splitlines() == expected


def test_fields_are_the_headers_fields() -> None:
    """Two neighbours of one type may change places without moving a byte: so names and order are compared too."""
    text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.S)
    for name, structure in STRUCTURES.items():
        body = re.search(rf"struct {name} {{(.*?)}}", text, re.S)[1]  # type: ignore[index]
        declared = [
            re.findall(r"(\w+)(?:\[\d\])?$", part.strip())[0] for part in re.split(r"[,;]", body) if part.strip()
        ]
        assert declared == [field for field, *_ in structure._fields_]


@pytest.mark.parametrize(
    ("names", "enumeration"),
    [(c_abi.DTYPES, "DataType"), (c_abi.SCALES, "ScaleGranularity")],
)
def test_enumerations_are_the_headers(names: tuple[str, ...], enumeration: str) -> None:
    text = (HEADER.parent / "attention.h").read_text()
    body = re.search(rf"enum class {enumeration} {{(.*?)}}", text)[1]  # type: ignore[index]
    assert [name.replace("_", "") for name in names] == [e.strip()[1:].lower() for e in body.split(",")]


def arrays(**changed: np.ndarray | None) -> dict[str, np.ndarray]:
    """B 2, Hq 4, Hkv 2, Sq 3, S 5, P 6, D 16, Dv 8, with every optional array."""
    f32 = np.float32
    full: dict[str, np.ndarray | None] = {
        "q": np.zeros((2, 3, 4, 16), f32).swapaxes(1, 2),
        "k": np.zeros((2, 2, 5, 16), f32),
        "v": np.zeros((2, 2, 5, 8), f32),
        "y": np.zeros((2, 4, 3, 8), np.float16),
        "past_key": np.zeros((2, 2, 6, 16), f32),
        "past_value": np.zeros((2, 2, 6, 8), f32),
        "present_key": np.zeros((2, 2, 11, 16), f32),
        "present_value": np.zeros((2, 2, 11, 8), f32),
        "lse": np.zeros((2, 4, 3), f32),
        "nonpad_kv_seqlen": np.zeros(2, np.int64),
        "q_scale": np.ones(4, f32),
        "k_scale": np.ones(1, f32),
        "v_scale": np.ones((2, 8), f32),
        "mask": np.zeros((3, 9), ml_dtypes.bfloat16),
    }
    return {name: array for name, array in (full | changed).items() if array is not None}


def test_problem_of_arrays() -> None:
    given = arrays()
    problem, tensors = make_problem(
        given, is_causal=1, window_left=7, scale=0.5, precision="int8_qk", k_granularity="group", tile_n=64
    )
    values = {name: getattr(problem, name) for name, *_ in c_abi.Problem._fields_}
    values = {name: value if isinstance(value, int | float) else tuple(value) for name, value in values.items()}
    assert values == {
        "batch": 2, "num_heads": 4, "kv_num_heads": 2, "seqlen_q": 3, "seqlen_new": 5, "seqlen_past": 6,
        "head_dim": 16, "head_dim_v": 8, "dtype": 0, "output_dtype": 1,
        "q_strides": (192, 16, 64), "k_strides": (160, 80, 16), "v_strides": (80, 40, 8), "y_strides": (96, 24, 8),
        "causal": 1, "causal_alignment": 0, "window_left": 7, "window_right": -1,
        "mask_present": 1, "mask_dtype": 2, "mask_strides": (0, 0, 9, 1), "mask_seqlen_kv": 9,
        "has_nonpad_kv_seqlen": 1, "precision": 1, "scheme": 0, "k_granularity": 2, "smooth_k": 1, "tile_n": 64,
        "q_scale": 2, "k_scale": 1, "v_scale": 3, "softmax_scale": 0.5, "softcap": 0.0,
    }  # fmt: skip
    for name, array in given.items():
        assert getattr(tensors, name) == array.ctypes.data, name


@pytest.mark.parametrize(
    ("shape", "strides", "keys"),
    [((2, 1, 1, 11), (11, 0, 0, 1), 11), ((3, 1), (0, 0, 1, 0), 11), ((4,), (0, 0, 0, 1), 4), ((1,), (0, 0, 0, 0), 11)],
)
def test_mask_broadcasts(shape: tuple[int, ...], strides: tuple[int, ...], keys: int) -> None:
    problem, _ = make_problem(arrays(mask=np.zeros(shape, np.bool_)))
    assert (tuple(problem.mask_strides), problem.mask_seqlen_kv) == (strides, keys)


class OnDevice:
    """What pycuda's and torch's arrays have in common."""

    def __init__(self, like: np.ndarray, address: int) -> None:
        interface = like.__array_interface__
        self.dtype = f"torch.{like.dtype}"
        self.__cuda_array_interface__ = {**interface, "data": (address, False), "version": 2}


def test_device_arrays_are_taken_by_their_interface() -> None:
    given = {name: OnDevice(array, 4096 + 256 * i) for i, (name, array) in enumerate(arrays().items())}
    problem, tensors = make_problem(given)
    same, _ = make_problem(arrays())
    assert bytes(problem) == bytes(same)
    assert (tensors.q, tensors.k) == (4096, 4352)


@pytest.mark.parametrize(
    ("changed", "attributes", "said"),
    [
        ({"y": None}, {}, r"missing: \['y'\]"),
        ({"Q": np.zeros(1)}, {}, r"unknown: \['Q'\]"),
        ({}, {"causal": 1}, r"unknown: \['causal'\].*is_causal"),
        ({}, {"precision": "fp8"}, r"precision='fp8' \(supported: int8, int8_qk\)"),
        ({"q": np.zeros((2, 3, 64), np.float32)}, {}, r"q has shape \(2, 3, 64\) \(supported: 4 dimensions\)"),
        ({"q": np.zeros((2, 4, 3, 16), np.int16)}, {}, "q is of type int16"),
        ({"v": np.zeros((2, 2, 4, 8), np.float32)}, {}, r"v has shape .*\(2, 2, 5, 8\)"),
        ({"k": np.zeros((2, 2, 5, 16), np.float16)}, {}, "k is of type float16 .*float32"),
        ({"k": np.zeros((2, 2, 5, 32), np.float32)[..., ::2]}, {}, "channels of k are 2 elements apart"),
        ({"y": np.zeros((2, 3, 4, 8), np.float32)}, {}, r"y has shape \(2, 3, 4, 8\).*\(2, 4, 3, 8\)"),
        ({"past_value": None}, {}, "past_key and past_value come together"),
        ({"present_key": np.zeros((2, 2, 5, 16), np.float32)}, {}, r"present_key has shape .*\(2, 2, 11, 16\)"),
        ({"lse": np.zeros((2, 4, 6), np.float32)[..., ::2]}, {}, "lse is not contiguous"),
        ({"nonpad_kv_seqlen": np.zeros(2, np.int32)}, {}, "nonpad_kv_seqlen is of type int32"),
        ({"k_scale": np.zeros(4, np.float32)}, {}, r"k_scale has shape \(4,\) .*\(2,\)"),
        ({"mask": np.zeros((3, 12), np.float32)}, {}, r"mask has shape \(3, 12\) .*\(2, 4, 3, 11\)"),
        ({"mask": np.zeros((3, 11), np.int64)}, {}, "mask is of type int64"),
        ({"q": [1, 2]}, {}, "q is a list"),
    ],
)  # fmt: skip
def test_refusals(changed: dict[str, np.ndarray | None], attributes: dict[str, str | int], said: str) -> None:
    with pytest.raises(UnsupportedError, match=said):
        make_problem(arrays(**changed), **attributes)  # type: ignore[arg-type]
