"""The GPU's candidates without a GPU: what is absent says so, and what is there is called with the right arguments.

torch.cuda is replaced at its boundary, so that tensors stay on the CPU; the packages by records of their calls, which
compute the attention that they are asked for. ``bench_problem`` then verifies the result, so that a wrong argument
(layout, scale, mask) shows as a wrong result.
"""

from __future__ import annotations

import contextlib
import sys
import types
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from intfa_onnx import c_abi  # noqa: E402
from intfa_onnx.bench import on_device, peers_cuda, peers_cuda_hosts  # noqa: E402
from intfa_onnx.bench.candidate import Peer  # noqa: E402
from intfa_onnx.bench.op import bench_problem  # noqa: E402
from intfa_onnx.bench.problem import Problem  # noqa: E402

STREAM = 0x5117
PROBLEMS = [
    Problem(2, 4, 4, 48, 32, causal, decode=decode) for causal, decode in ((False, False), (True, False), (False, True))
]


def sdpa(q: Any, k: Any, v: Any, causal: bool) -> Any:
    q, k, v = (x.float() for x in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)


def run(name: str, problem: Problem) -> Any:
    (row,) = bench_problem(problem, {name: peers_cuda.CUDA_PEERS[name]}, rounds=3, round_seconds=0).rows
    return row


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Make torch see a GPU; returns a dictionary for what the fakes record."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)
    fake = types.SimpleNamespace(cuda_stream=STREAM)
    for module in (on_device, peers_cuda, peers_cuda_hosts):
        monkeypatch.setattr(module, "stream", lambda: fake)
    return {}


def test_without_a_gpu_every_candidate_says_why() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    result = bench_problem(PROBLEMS[0], peers_cuda.CUDA_PEERS, rounds=3, round_seconds=0)
    assert {row.skipped for row in result.rows} == {"torch sees no CUDA device"}
    assert [row.candidate for row in result.rows] == list(peers_cuda.CUDA_PEERS)


def test_without_torch_every_candidate_says_so(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    result = bench_problem(PROBLEMS[0], peers_cuda.CUDA_PEERS, rounds=3, round_seconds=0)
    assert all(row.skipped.startswith("torch cannot be imported") for row in result.rows)


@pytest.mark.parametrize(
    ("name", "package", "text"),
    [
        ("sageattention", "sageattention", "sageattention cannot be imported"),
        ("FlashAttention-3 f16", "flash_attn_interface", "flash_attn_interface cannot be imported"),
        ("FlashAttention-3 fp8, codes given", "flash_attn_interface", "flash_attn_interface cannot be imported"),
        ("tensorrt unfused f16", "tensorrt", "TensorRT cannot be imported"),
        ("INT-FlashAttention Triton, codes given", "", "set INT_FLASHATTENTION_DIR"),
        ("ort MultiHeadAttention f16", "", "CUDAExecutionProvider"),
        ("intfa int8 in ort", "", "CUDAExecutionProvider"),
    ],
)
def test_an_absent_package_is_named(gpu: dict, monkeypatch, name: str, package: str, text: str) -> None:
    monkeypatch.delenv(peers_cuda.AUTHORS_CHECKOUT, raising=False)
    if package:
        monkeypatch.setitem(sys.modules, package, None)
    row = run(name, PROBLEMS[0])
    assert row.timing is None
    assert text in row.skipped


@pytest.mark.parametrize("problem", PROBLEMS, ids=Problem.label)
@pytest.mark.parametrize(
    ("name", "backend"), [("torch cuDNN f16", "CUDNN_ATTENTION"), ("torch FlashAttention-2 f16", "FLASH_ATTENTION")]
)
def test_torch_is_held_to_one_backend(gpu: dict, monkeypatch, problem: Problem, name: str, backend: str) -> None:
    seen = []

    @contextlib.contextmanager
    def only(chosen: Any) -> Any:
        seen.append(chosen)
        yield

    monkeypatch.setattr(torch.nn.attention, "sdpa_kernel", only)
    row = run(name, problem)
    assert row.timing, row.skipped
    assert {b.name for b in seen} == {backend}


@pytest.mark.parametrize("problem", PROBLEMS, ids=Problem.label)
def test_sageattention(gpu: dict, monkeypatch, problem: Problem) -> None:
    def sageattn(q: Any, k: Any, v: Any, tensor_layout: str, is_causal: bool) -> Any:
        assert tensor_layout == "HND"
        assert q.dtype == torch.float16
        return sdpa(q, k, v, is_causal).half()

    monkeypatch.setitem(sys.modules, "sageattention", types.SimpleNamespace(sageattn=sageattn))
    row = run("sageattention", problem)
    assert row.timing, row.skipped


@pytest.mark.parametrize("problem", [*PROBLEMS, Problem(2, 4, 2, 48, 32, True)], ids=Problem.label)
@pytest.mark.parametrize("name", ["FlashAttention-3 f16", "FlashAttention-3 fp8, codes given"])
def test_flash3(gpu: dict, monkeypatch, problem: Problem, name: str) -> None:
    """Its layout is [batch, seqlen, heads, head_dim], its scales are per batch and KV head."""

    def flash_attn_func(q: Any, k: Any, v: Any, causal: bool, **scales: Any) -> Any:
        group = q.shape[2] // k.shape[2]
        arrays = [x.float() for x in (q, k, v)]
        if "fp8" in name:
            assert q.dtype == torch.float8_e4m3fn
            for scale in scales.values():
                assert scale.shape == (problem.batch, problem.kv_num_heads)
            scaled = (scales["q_descale"].repeat_interleave(group, 1), scales["k_descale"], scales["v_descale"])
            arrays = [x * s[:, None, :, None] for x, s in zip(arrays, scaled, strict=True)]
        else:
            assert not scales
        heads_first = [x.transpose(1, 2) for x in arrays]
        heads_first[1:] = [x.repeat_interleave(group, 1) for x in heads_first[1:]]
        return sdpa(*heads_first, causal).transpose(1, 2), "lse"

    monkeypatch.setitem(sys.modules, "flash_attn_interface", types.SimpleNamespace(flash_attn_func=flash_attn_func))
    row = run(name, problem)
    assert row.timing, row.skipped


@pytest.mark.parametrize("problem", PROBLEMS, ids=Problem.label)
def test_authors_kernel_from_its_checkout(gpu: dict, monkeypatch, tmp_path, problem: Problem) -> None:
    """Codes and scales of Q and K per token, of V per head: what their function takes, in its order."""

    def attention_full_int8(q, k, v, q_scale, k_scale, v_scale, causal, sm_scale) -> Any:
        assert {x.dtype for x in (q, k, v)} == {torch.int8}
        assert sm_scale == pytest.approx(problem.head_dim**-0.5)
        x = [q * q_scale[..., None], k * k_scale[..., None], v * v_scale[..., None, None]]
        return sdpa(*x, causal).half()

    fake = types.SimpleNamespace(attention_full_int8=attention_full_int8)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv(peers_cuda.AUTHORS_CHECKOUT, str(tmp_path))
    assert "has no flash_atten_full_int8.py" in run("INT-FlashAttention Triton, codes given", problem).skipped
    (tmp_path / "flash_atten_full_int8.py").touch()
    monkeypatch.setitem(sys.modules, "flash_atten_full_int8", fake)
    row = run("INT-FlashAttention Triton, codes given", problem)
    assert row.timing, row.skipped
    assert sys.path[-1] == str(tmp_path)


def test_a_broken_package_does_not_stop_the_others(gpu: dict, monkeypatch) -> None:
    def sageattn(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no kernel for sm_90")

    monkeypatch.setitem(sys.modules, "sageattention", types.SimpleNamespace(sageattn=sageattn))
    good = Peer(lambda problem, inputs, threads: on_device.candidate(lambda: sdpa(*on_device.tensors(inputs), False)))
    peers = {"sageattention": peers_cuda.CUDA_PEERS["sageattention"], "good": good}
    first, second = bench_problem(PROBLEMS[0], peers, rounds=3, round_seconds=0).rows
    assert "no kernel for sm_90" in first.skipped
    assert second.timing


@pytest.mark.parametrize("name", ["intfa int8", "intfa int8_qk", "intfa int8, codes given"])
def test_our_kernels_get_problem_stream_and_scales(gpu: dict, monkeypatch, name: str) -> None:
    """The C interface's structures: what they point at is what was drawn."""
    problem = PROBLEMS[1]
    monkeypatch.setattr(peers_cuda, "make_problem", _described(gpu))
    monkeypatch.setattr(c_abi, "cuda_workspace_bytes", lambda described: 256)

    def run_cuda(described: Any, pointers: Any, workspace: int, stream: int) -> None:
        assert stream == STREAM
        assert workspace
        arrays, attributes = described
        assert attributes == {"is_causal": True, "precision": "int8_qk" if "qk" in name else "int8"}
        q, k, v = (arrays[n].float() for n in "qkv")
        if "codes" in name:
            assert arrays["q"].dtype == torch.int8
            q, k, v = (x * arrays[f"{n}_scale"].view(1, -1, 1, 1) for n, x in zip("qkv", (q, k, v), strict=True))
        arrays["y"].copy_(sdpa(q, k, v, True))

    monkeypatch.setattr(c_abi, "run_cuda", run_cuda)
    row = run(name, problem)
    assert row.timing, row.skipped


def _described(gpu: dict) -> Any:
    return lambda arrays, **attributes: ((arrays, attributes), None)


@pytest.mark.parametrize("name", ["intfa int8 in ort", "ort MultiHeadAttention f16"])
def test_onnx_runtime_gets_our_stream_and_device_addresses(gpu: dict, monkeypatch, name: str) -> None:
    pytest.importorskip("onnxruntime")
    import onnx

    bound: dict[str, Any] = {}

    class Binding:
        def bind_input(self, value: str, *rest: Any) -> None:
            bound[value] = rest

        bind_output = bind_input

    class Session:
        def io_binding(self) -> Binding:
            return Binding()

        def run_with_iobinding(self, binding: Binding, options: Any) -> None:
            key = "disable_synchronize_execution_providers"
            assert options.get_run_config_entry(key) == "1"
            raise RuntimeError("bound")

    def open_session(model: bytes, providers: Any) -> Session:
        assert providers == [("CUDAExecutionProvider", {"user_compute_stream": str(STREAM)})]
        (node,) = onnx.load_model_from_string(model).graph.node
        bound["op_type"] = node.op_type
        return Session()

    monkeypatch.setattr(peers_cuda_hosts, "open_session", open_session)
    assert run(name, PROBLEMS[1]).skipped == "bound"
    shape = (2, 48, 128) if "Multi" in name else (2, 4, 48, 32)
    assert bound.pop("op_type") == ("MultiHeadAttention" if "Multi" in name else "IntFlashAttention")
    assert set(bound) == {"Q", "K", "V", "Y"}
    for device, index, dtype, found, address in bound.values():
        assert (device, index, dtype, found) == ("cuda", 0, np.float16, shape)
        assert address
