// Which keys a query attends, and what happens to a score before the softmax: limits, softcap, masks.
#pragma once

#include <cfloat>
#include <cmath>

#include "cuda/online_softmax.cuh"
#include "cuda/quantize.cuh"
#include "cuda/traits.cuh"

namespace intfa::cuda {

// The keys [begin, end) that limits of position leave to a query: lengths, causal, window. With everything masked,
// begin >= end.
struct Limits {
  int valid;   // keys that exist for this batch entry and that the mask covers
  int offset;  // query i stands at key i + offset
  int window_left, window_right;

  INTFA_DEVICE Limits(const AttentionParams& params, int batch)
      : valid(min(params.seqlen_kv, params.mask_seqlen_kv)),
        offset(params.offset),
        window_left(params.window_left),
        window_right(params.window_right) {
    if (params.nonpad_kv_seqlen != nullptr) {
      const int nonpad = valid_keys(params.nonpad_kv_seqlen, batch, params.seqlen_kv);
      valid = min(valid, nonpad);
      if (params.offset_from_nonpad) offset = nonpad - params.seqlen_q;
    }
  }
  INTFA_DEVICE int begin(int query) const { return max(0, query + offset - window_left); }
  INTFA_DEVICE int end(int query) const { return max(0, min(valid, query + offset + window_right + 1)); }
};

// What the mask adds to a score, in log2 units: -inf excludes the key, finfo.min does not.
INTFA_DEVICE float mask_term(float value, DataType dtype) {
  if (dtype == DataType::kBool) return value != 0.f ? 0.f : -INFINITY;
  return mask_log2(value);
}

INTFA_DEVICE int64_t mask_index(const AttentionParams& params, int batch, int head, int query, int key) {
  const MaskParams& mask = params.mask;
  return batch * mask.batch + head * mask.head + min(query, params.seqlen_q - 1) * mask.query + key * mask.key;
}

// y -> score in log2 units, for the keys key..key+3 of one query. unit: log2 units per unit of y; shift: shared address
// of the row's softmax_scale * q . mean(K), which a softcap, unlike the softmax, does see.
INTFA_DEVICE void score4(float (&y)[4], const AttentionParams& params, int batch, int head, int query, int key,
                         float unit, uint32_t shift) {
#pragma unroll
  for (int k = 0; k < 4; ++k) y[k] = ptx::mul_rn(y[k], unit);
  if (params.softcap > 0.f) {
    // cap * tanh(x / cap) with tanh(u) = 1 - 2 / (1 + e^2u): an absolute error of cap * 2^-22, where tanh.approx has
    // 2^-11.
    const float to_log2 = 2.f / params.softcap, shift_log2 = ptx::ld_shared(shift) * kLog2E;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const float e = ptx::ex2(ptx::mul_rn(ptx::add_rn(y[k], shift_log2), to_log2));
      y[k] = ptx::mul_rn(ptx::fma_rn(-2.f, ptx::rcp(ptx::add_rn(1.f, e)), 1.f), params.softcap * kLog2E);
    }
  }
  if (params.mask.data != nullptr) {
    float m[4];
    load4(m, params.mask.data, mask_index(params, batch, head, query, key), params.mask.key,
          params.mask_seqlen_kv - key, params.mask.dtype, params.mask.vector4);
#pragma unroll
    for (int k = 0; k < 4; ++k) y[k] = ptx::add_rn(y[k], mask_term(m[k], params.mask.dtype));
  }
}

// Whether the query attends the key: limits and mask together.
template <bool kScored>
INTFA_DEVICE bool attends(const AttentionParams& params, const Limits& limits, int batch, int head, int query,
                          int key) {
  if (key < limits.begin(query) || key >= limits.end(query)) return false;
  if (!kScored || params.mask.data == nullptr) return true;
  const float m = load1(params.mask.data, mask_index(params, batch, head, query, key), params.mask.dtype);
  return mask_term(m, params.mask.dtype) != -INFINITY;
}

}  // namespace intfa::cuda
