"""Graphs that no exporter of PyTorch writes: other frameworks' idioms, quantized models, older optimizers, branches."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser

from zoo.case import Case, Input, define

ONE = ("graph",)
_QKV = {name: Input("float", ("batch", 4, "seq", 16)) for name in "qkv"}
_SIZES = {"batch": 2, "seq": 12}
_SIGNATURE = "(float[batch, 4, seq, 16] q, float[batch, 4, seq, 16] k, float[batch, 4, seq, 16] v)"
_OUT = "(float[batch, 4, seq, 16] y)"


def _parse(body: str, opset: int = 17, signature: str = _SIGNATURE, out: str = _OUT) -> onnx.ModelProto:
    domains = f'"": {opset}, "com.microsoft": 1'
    model = onnx.parser.parse_model(f"<ir_version: 8, opset_import: [{domains}]> g {signature} => {out} {body}")
    for i, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{i}"
    return model


@define("graph", ONE)
def keras_bert(_: str) -> Case:
    """tf2onnx: Dense as MatMul and Add, heads split by a constant shape, (1 - mask) * -10000 added to the scores."""
    rng = np.random.default_rng(0)
    body = """{
        one = Constant <value = float {1.0}> ()  low = Constant <value = float {-10000.0}> ()
        root = Constant <value = float {4.0}> ()
        shape = Constant <value_ints = [0, -1, 4, 16]> ()  merged = Constant <value_ints = [0, -1, 64]> ()
        axes = Constant <value_ints = [1, 2]> ()
        q0 = MatMul (x, wq) q1 = Add (q0, bq) q2 = Reshape (q1, shape) q = Transpose <perm = [0, 2, 1, 3]> (q2)
        k0 = MatMul (x, wk) k1 = Add (k0, bk) k2 = Reshape (k1, shape) k = Transpose <perm = [0, 2, 3, 1]> (k2)
        v0 = MatMul (x, wv) v1 = Add (v0, bv) v2 = Reshape (v1, shape) v = Transpose <perm = [0, 2, 1, 3]> (v2)
        s0 = MatMul (q, k) s1 = Div (s0, root)
        m0 = Cast <to = 1> (mask) m1 = Unsqueeze (m0, axes) m2 = Sub (one, m1) m3 = Mul (m2, low)
        s2 = Add (s1, m3) p = Softmax <axis = -1> (s2)
        o0 = MatMul (p, v) o1 = Transpose <perm = [0, 2, 1, 3]> (o0) y = Reshape (o1, merged)
    }"""
    signature = "(float[batch, seq, 64] x, int64[batch, seq] mask)"
    model = _parse(body, signature=signature, out="(float[batch, seq, 64] y)")
    for letter in "qkv":
        weight = rng.normal(size=(64, 64)).astype(np.float32) * (0.25 if letter != "v" else 0.125)
        for name, array in ((f"w{letter}", weight), (f"b{letter}", rng.normal(size=64).astype(np.float32))):
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    inputs = {"x": Input("float", ("batch", "seq", 64)), "mask": Input("mask", ("batch", "seq"))}
    return Case(model, inputs, dict(_SIZES), 1, peer=("bert_keras", 4, 64))


@define("graph", ONE)
def scores_times_mask(_: str) -> Case:
    """Scores * b - 10000 * (1 - b), from the first exports of GPT-2."""
    body = """{
        one = Constant <value = float {1.0}> ()  big = Constant <value = float {10000.0}> ()
        scale = Constant <value = float {0.25}> ()
        kt = Transpose <perm = [0, 1, 3, 2]> (k) s0 = MatMul (q, kt) s1 = Mul (s0, scale)
        b = Cast <to = 1> (keep) s2 = Mul (s1, b) c0 = Sub (one, b) c1 = Mul (c0, big) s3 = Sub (s2, c1)
        p = Softmax <axis = -1> (s3) y = MatMul (p, v)
    }"""
    model = _parse(body, signature=f"{_SIGNATURE[:-1]}, bool[batch, 1, 1, seq] keep)")
    return Case(model, {**_QKV, "keep": Input("keep", ("batch", 1, 1, "seq"))}, dict(_SIZES), 1)


@define("graph", ONE)
def qdq(_: str) -> Case:
    """Quantize and dequantize around both products, as static quantization writes them."""
    body = """{
        s = Constant <value = float {0.03}> ()  ps = Constant <value = float {0.00392157}> ()
        root = Constant <value = float {0.25}> ()
        qq = QuantizeLinear (q, s, z) qd = DequantizeLinear (qq, s, z)
        kt = Transpose <perm = [0, 1, 3, 2]> (k) kq = QuantizeLinear (kt, s, z) kd = DequantizeLinear (kq, s, z)
        s0 = MatMul (qd, kd) s1 = Mul (s0, root) p = Softmax <axis = -1> (s1)
        pq = QuantizeLinear (p, ps, pz) pd = DequantizeLinear (pq, ps, pz)
        vq = QuantizeLinear (v, s, z) vd = DequantizeLinear (vq, s, z) y = MatMul (pd, vd)
    }"""
    model = _parse(body)
    for name, zero in (("z", np.int8(0)), ("pz", np.uint8(0))):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(zero), name))
    plain = """{
        root = Constant <value = float {0.25}> () kt = Transpose <perm = [0, 1, 3, 2]> (k)
        s0 = MatMul (q, kt) s1 = Mul (s0, root) p = Softmax <axis = -1> (s1) y = MatMul (p, v)
    }"""
    return Case(model, _QKV, dict(_SIZES), 1, unquantized=_parse(plain))


@define("graph", ONE)
def contrib_multi_head_attention(_: str) -> Case:
    """com.microsoft MultiHeadAttention, as ONNX Runtime's own optimizer writes it."""
    signature = ", ".join(f"float[batch, seq, 64] {name}" for name in "qkv")
    body = "{ y = com.microsoft.MultiHeadAttention <num_heads = 4> (q, k, v) }"
    model = _parse(body, signature=f"({signature})", out="(float[batch, seq, 64] y)")
    return Case(model, {name: Input("float", ("batch", "seq", 64)) for name in "qkv"}, dict(_SIZES), 1)


@define("graph", ONE)
def attention_in_branches(_: str) -> Case:
    """A merged decoder: one branch attends the past as well, the other does not."""
    body = """{
        y = If (use_past) <
          then_branch = with_past () => (float[batch, 4, seq, 16] y1) {
            s = Constant <value = float {0.25}> ()
            ka = Concat <axis = 2> (past_k, k) va = Concat <axis = 2> (past_v, v)
            kt1 = Transpose <perm = [0, 1, 3, 2]> (ka) s1 = MatMul (q, kt1) t1 = Mul (s1, s)
            p1 = Softmax <axis = -1> (t1) y1 = MatMul (p1, va)
          },
          else_branch = without () => (float[batch, 4, seq, 16] y2) {
            s2 = Constant <value = float {0.25}> ()
            kt2 = Transpose <perm = [0, 1, 3, 2]> (k) u2 = MatMul (q, kt2) t2 = Mul (u2, s2)
            p2 = Softmax <axis = -1> (t2) y2 = MatMul (p2, v)
          }
        >
    }"""
    past = "float[batch, 4, past, 16]"
    signature = f"{_SIGNATURE[:-1]}, {past} past_k, {past} past_v, bool use_past)"
    model = _parse(body, signature=signature)
    caches = {name: Input("float", ("batch", 4, "past", 16)) for name in ("past_k", "past_v")}
    return Case(model, {**_QKV, **caches, "use_past": Input("keep", ())}, {**_SIZES, "past": 5}, 2)


@define("graph", ONE)
def attention_23(_: str) -> Case:
    model = _parse("{ y = Attention <is_causal = 1, scale = 0.3> (q, k, v) }", opset=23)
    return Case(model, _QKV, dict(_SIZES), 1)


@define("graph", ONE)
def attention_24_softcap(_: str) -> Case:
    return Case(_parse("{ y = Attention <softcap = 5.0> (q, k, v) }", opset=24), _QKV, dict(_SIZES), 1)
