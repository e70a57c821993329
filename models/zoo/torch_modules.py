"""Attention as people write it in PyTorch: torch.nn's modules, its fused function, by hand; and its look-alikes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from zoo.case import Call, Case, Input, define, prepare

HIDDEN, HEADS, SIZE = 64, 4, 16
ONE = ("torch",)  # there is no choice of implementation
_TOKENS = {"x": Input("float", ("batch", "seq", HIDDEN))}
_TEXT = {"batch": 2, "seq": 12}
_PAD = {"pad": Input("drop", ("batch", "seq"))}
_MASK_AXES = ("batch", 1, "sq", "sk")


# ---- modules of torch.nn ----


@define("torch.nn", ONE)
def mha_self(_: str) -> Case:
    module = prepare(nn.MultiheadAttention(HIDDEN, HEADS, batch_first=True))
    return Case(Call(module, lambda m, x: m(x, x, x, need_weights=False)[0]), _TOKENS, _TEXT, 1)


@define("torch.nn", ONE, negative=True)
def mha_weights(_: str) -> Case:
    """The probabilities, averaged over the heads, are an output: they have to exist."""
    module = prepare(nn.MultiheadAttention(HIDDEN, HEADS, batch_first=True))
    return Case(Call(module, lambda m, x: m(x, x, x, need_weights=True)), _TOKENS, _TEXT, 0)


@define("torch.nn", ONE)
def mha_cross_padded(_: str) -> Case:
    module = prepare(nn.MultiheadAttention(HIDDEN, HEADS, batch_first=True, kdim=32, vdim=48))
    inputs = {
        "q": Input("float", ("batch", "target", HIDDEN)),
        "k": Input("float", ("batch", "source", 32)),
        "v": Input("float", ("batch", "source", 48)),
        "pad": Input("drop", ("batch", "source")),
    }
    function = Call(module, lambda m, q, k, v, p: m(q, k, v, key_padding_mask=p, need_weights=False)[0])
    return Case(function, inputs, {"batch": 2, "target": 7, "source": 12}, 1)


def _encoder_layer(**options: Any) -> nn.Module:
    layer = nn.TransformerEncoderLayer(HIDDEN, HEADS, 64, batch_first=True, **options)
    return prepare(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))


@define("torch.nn", ONE)
def transformer_encoder(_: str) -> Case:
    return Case(_encoder_layer(), _TOKENS, _TEXT, 2)


@define("torch.nn", ONE)
def transformer_encoder_padded(_: str) -> Case:
    module = Call(_encoder_layer(norm_first=True), lambda m, x, p: m(x, src_key_padding_mask=p))
    return Case(module, {**_TOKENS, **_PAD}, _TEXT, 2)


@define("torch.nn", ONE)
def transformer(_: str) -> Case:
    module = prepare(nn.Transformer(HIDDEN, HEADS, 2, 2, 64, batch_first=True))

    def function(m: nn.Transformer, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return m(source, target, tgt_mask=nn.Transformer.generate_square_subsequent_mask(7), tgt_is_causal=True)

    inputs = {"source": Input("float", ("batch", "seq", HIDDEN)), "target": Input("float", ("batch", 7, HIDDEN))}
    return Case(Call(module, function), inputs, _TEXT, 6, peer=("bart", HEADS, HIDDEN))


# ---- functions of q, k and v ----


def _function(
    f: Callable[..., torch.Tensor],
    attentions: int = 1,
    kv_heads: int = HEADS,
    value_size: int = SIZE,
    mask: Input | None = None,
) -> Case:
    inputs = {
        "q": Input("float", ("batch", HEADS, "sq", SIZE)),
        "k": Input("float", ("batch", kv_heads, "sk", SIZE)),
        "v": Input("float", ("batch", kv_heads, "sk", value_size)),
    }
    if mask is not None:
        inputs["mask"] = mask
    module = Call(nn.Identity(), lambda _, *tensors: f(*tensors))
    return Case(module, inputs, {"batch": 2, "sq": 7, "sk": 12}, attentions)


@define("sdpa", ONE)
def sdpa(_: str) -> Case:
    return _function(F.scaled_dot_product_attention)


@define("sdpa", ONE)
def sdpa_scale(_: str) -> Case:
    return _function(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=0.3))


@define("sdpa", ONE)
def sdpa_causal(_: str) -> Case:
    return _function(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True))


@define("sdpa", ONE)
def sdpa_float_mask(_: str) -> Case:
    mask = Input("float", _MASK_AXES)
    return _function(lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, attn_mask=m), mask=mask)


@define("sdpa", ONE)
def sdpa_bool_mask(_: str) -> Case:
    mask = Input("keep", _MASK_AXES)
    return _function(lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, attn_mask=m), mask=mask)


@define("sdpa", ONE)
def sdpa_gqa(_: str) -> Case:
    return _function(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True), kv_heads=2)


@define("sdpa", ONE)
def sdpa_value_size(_: str) -> Case:
    return _function(F.scaled_dot_product_attention, value_size=24)


# ---- by hand ----


class _NanoGpt(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c_attn, self.c_proj = nn.Linear(HIDDEN, 3 * HIDDEN), nn.Linear(HIDDEN, HIDDEN)
        self.register_buffer("bias", torch.tril(torch.ones(64, 64)).view(1, 1, 64, 64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, t, c = x.shape
        q, k, v = (z.view(b, t, HEADS, c // HEADS).transpose(1, 2) for z in self.c_attn(x).split(HIDDEN, 2))
        scores = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        scores = scores.masked_fill(self.bias[:, :, :t, :t] == 0, float("-inf"))
        return self.c_proj((F.softmax(scores, -1) @ v).transpose(1, 2).contiguous().view(b, t, c))


@define("by hand", ONE)
def nanogpt(_: str) -> Case:
    return Case(prepare(_NanoGpt()), _TOKENS, _TEXT, 1, peer=("gpt2", HEADS, HIDDEN))


class _PackedQkv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.c_proj = nn.Linear(HIDDEN, 3 * HIDDEN), nn.Linear(HIDDEN, HIDDEN)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, HEADS, c // HEADS).permute(2, 0, 3, 1, 4).unbind(0)
        p = ((q * (c // HEADS) ** -0.5) @ k.transpose(-2, -1)).softmax(-1)
        return self.c_proj((p @ v).transpose(1, 2).reshape(b, n, c))


@define("by hand", ONE)
def packed_qkv(_: str) -> Case:
    """As in timm's vision transformers."""
    return Case(prepare(_PackedQkv()), _TOKENS, _TEXT, 1, peer=("vit", HEADS, HIDDEN))


@define("by hand", ONE)
def einsum(_: str) -> Case:
    def f(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        scores = torch.einsum("bhid,bhjd->bhij", q, k) * SIZE**-0.5
        return torch.einsum("bhij,bhjd->bhid", scores.softmax(-1), v)

    return _function(f)


@define("by hand", ONE)
def manual_softmax(_: str) -> Case:
    def f(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        scores = (q @ k.transpose(-1, -2)) / 4.0
        e = (scores - scores.amax(-1, keepdim=True)).exp()
        return (e / e.sum(-1, keepdim=True)) @ v

    return _function(f)


@define("by hand", ONE)
def divided_later(_: str) -> Case:
    """As in FlashAttention: the product with V is divided by the sums of the rows."""

    def f(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        scores = (q @ k.transpose(-1, -2) * 0.25).masked_fill(~keep, torch.finfo(torch.float32).min)
        e = torch.exp(scores - scores.max(-1, keepdim=True).values)
        return (e @ v) / e.sum(-1, keepdim=True)

    return _function(f, mask=Input("keep", _MASK_AXES))


@define("by hand", ONE)
def luong(_: str) -> Case:
    """One head between a decoder's and an encoder's states, which are K (projected) and V (as they are)."""

    def f(m: nn.Module, states: torch.Tensor, source: torch.Tensor, pad: torch.Tensor) -> torch.Tensor:
        scores = torch.bmm(states, m(source).transpose(1, 2)).masked_fill(pad[:, None], -1e9)
        return torch.tanh(torch.cat([torch.bmm(scores.softmax(-1), source), states], -1))

    inputs = {
        "states": Input("float", ("batch", "target", HIDDEN)),
        "source": Input("float", ("batch", "source", HIDDEN)),
        "pad": Input("drop", ("batch", "source")),
    }
    return Case(Call(nn.Linear(HIDDEN, HIDDEN).eval(), f), inputs, {"batch": 2, "target": 7, "source": 12}, 1)


@define("by hand", ONE)
def where_finfo_min(_: str) -> Case:
    def f(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        scores = (q / 4.0) @ k.transpose(-1, -2)
        scores = torch.where(keep, scores, torch.tensor(torch.finfo(torch.float32).min))
        return scores.float().softmax(-1).to(q.dtype) @ v

    return _function(f, mask=Input("keep", _MASK_AXES))


@define("by hand", ONE)
def merged_heads(_: str) -> Case:
    """Batch and heads are one axis of both products, and apart for the mask, as in transformers before 4.48 (OPT)."""

    class Merged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.value, self.out_proj = (nn.Linear(HIDDEN, HIDDEN) for _ in range(4))

        def forward(self, x: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
            batch, seq, _ = x.shape
            low = torch.finfo(x.dtype).min
            q, k, v = (
                f(x).view(batch, -1, HEADS, SIZE).transpose(1, 2).reshape(batch * HEADS, -1, SIZE)
                for f in (self.query, self.key, self.value)
            )
            attended = torch.ones(seq, seq, dtype=torch.bool).tril() & keep[:, None, None, :]
            scores = torch.bmm(q * SIZE**-0.5, k.transpose(1, 2)).view(batch, HEADS, seq, seq)
            scores = torch.max(scores + torch.where(attended, 0.0, low), torch.tensor(low))
            p = scores.view(batch * HEADS, seq, seq).softmax(-1)
            y = torch.bmm(p, v).view(batch, HEADS, seq, SIZE).transpose(1, 2)
            return self.out_proj(y.reshape(batch, seq, HIDDEN))

    inputs = {**_TOKENS, "keep": Input("keep", ("batch", "seq"))}
    return Case(prepare(Merged(), gain=2), inputs, _TEXT, 1)


@define("by hand", ONE)
def sinks(_: str) -> Case:
    """A learned logit per head takes part in the softmax and is dropped after it, as in gpt-oss."""

    class Sinks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.sinks = nn.Parameter(torch.randn(1, HEADS, 1, 1))

        def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            scores = q @ k.transpose(-1, -2) * 0.25
            sink = self.sinks.expand(scores.shape[0], -1, scores.shape[2], -1)
            return torch.cat([scores, sink], -1).softmax(-1)[..., :-1] @ v

    case = _function(F.scaled_dot_product_attention)
    case.model = Sinks().eval()
    return case


@define("by hand", ONE)
def alibi(_: str) -> Case:
    """A slope per head times the distance."""

    def f(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        slopes = torch.tensor([2.0 ** (-2 * (h + 1)) for h in range(HEADS)]).view(1, HEADS, 1, 1)
        distance = torch.arange(k.shape[2])[None, :] - torch.arange(q.shape[2])[:, None]
        return (q @ k.transpose(-1, -2) * 0.25 - slopes * distance.abs()).softmax(-1) @ v

    return _function(f)


@define("by hand", ONE)
def split_cache(_: str) -> Case:
    """Scores against the past and against the new keys are computed apart and joined before the softmax."""

    def f(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, past_k: torch.Tensor, past_v: torch.Tensor
    ) -> torch.Tensor:
        scores = torch.cat([q @ past_k.transpose(-1, -2), q @ k.transpose(-1, -2)], -1) * 0.25
        p = scores.softmax(-1)
        n = past_k.shape[2]
        return p[..., :n] @ past_v + p[..., n:] @ v

    case = _function(f)
    for name in ("past_k", "past_v"):
        case.inputs[name] = Input("float", ("batch", HEADS, "past", SIZE))
    case.sizes["past"] = 5
    return case


# ---- a softmax, and no attention ----


@define("negative", ONE, negative=True)
def linear_attention(_: str) -> Case:
    return _function(lambda q, k, v: q.softmax(-1) @ (k.softmax(-2).transpose(-1, -2) @ v), 0)


@define("negative", ONE, negative=True)
def linear_attention_divided_later(_: str) -> Case:
    def f(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        e = q.exp()
        return (e @ (k.softmax(-2).transpose(-1, -2) @ v)) / e.sum(-1, keepdim=True)

    return _function(f, 0)


@define("negative", ONE, negative=True)
def bahdanau(_: str) -> Case:
    """The scores are a small network's, not a product."""
    module = nn.ModuleList([nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, 1)]).eval()

    def f(m: Any, states: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        scores = m[2](torch.tanh(m[0](states)[:, :, None] + m[1](source)[:, None])).squeeze(-1)
        return torch.bmm(scores.softmax(-1), source)

    inputs = {"states": Input("float", ("batch", "target", HIDDEN)), "source": Input("float", ("batch", "sk", HIDDEN))}
    return Case(Call(module, f), inputs, {"batch": 2, "target": 7, "sk": 12}, 0)


@define("negative", ONE, negative=True)
def scores_escape(_: str) -> Case:
    def f(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Any:
        p = (q @ k.transpose(-1, -2)).softmax(-1)
        return p @ v, p

    return _function(f, 0)


@define("negative", ONE, negative=True)
def softmax_over_queries(_: str) -> Case:
    return _function(lambda q, k, v: (q @ k.transpose(-1, -2)).softmax(-2) @ v, 0)


@define("negative", ONE, negative=True)
def talking_heads(_: str) -> Case:
    """The probabilities of all heads are mixed before the second product."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Parameter(torch.randn(HEADS, HEADS))

        def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            p = (q @ k.transpose(-1, -2)).softmax(-1)
            return torch.einsum("gh,bhij->bgij", self.mix, p) @ v

    case = _function(F.scaled_dot_product_attention, 0)
    case.model = Mixed().eval()
    return case
