// Which keys a query attends, and what happens to a score before the softmax: limits, softcap, masks.
#pragma once

#include <cfloat>
#include <cmath>

#include "cuda/online_softmax.cuh"
#include "cuda/quantize.cuh"
#include "cuda/traits.cuh"
#include "cuda/work.cuh"

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

// Index of the mask's element for key 0 of a query of this head.
INTFA_DEVICE int64_t mask_row(const AttentionParams& params, const Work& work, int query) {
  const MaskParams& mask = params.mask;
  return work.batch * mask.batch + work.head * mask.head + min(query, params.seqlen_q - 1) * mask.query;
}

// The plain kernel: scores stay y.
struct NoScoring {
  INTFA_DEVICE void operator()(float (&)[4], int) const {}
};

// y -> score in log2 units, for one row of a tile; see mask_scores.
class RowScoring {
 public:
  // row: in the warp. key: the lane's first key of the tile. unit: log2 units per unit of y. shift: shared address of
  // the row's softmax_scale * q . mean(K), which a softcap, unlike the softmax, does see.
  // row: in the warp. key: the lane's first key of the tile.
  template <int kTileM>
  INTFA_DEVICE RowScoring(const AttentionParams& params, const Work& work, const RowTable<kTileM>& rows, int row,
                          int key)
      : params_(params),
        mask_row_(mask_row(params, work, work.warp_row + row)),
        key_(key),
        unit_(ptx::ld_shared(rows.unit(row))),
        shift_(ptx::ld_shared(rows.shift(row))) {}

  INTFA_DEVICE void operator()(float (&y)[4], int group) const {
#pragma unroll
    for (int k = 0; k < 4; ++k) y[k] = ptx::mul_rn(y[k], unit_);
    if (params_.softcap > 0.f) {
      // cap * tanh(x / cap) with tanh(u) = 1 - 2 / (1 + e^2u): an absolute error of cap * 2^-22, where tanh.approx has
      // 2^-11.
      const float to_log2 = 2.f / params_.softcap,
                  shift_log2 = ptx::mul_rn(shift_, kLog2E);  // a softcap, unlike the softmax, sees it
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const float e = ptx::ex2(ptx::mul_rn(ptx::add_rn(y[k], shift_log2), to_log2));
        y[k] = ptx::mul_rn(ptx::fma_rn(-2.f, ptx::rcp(ptx::add_rn(1.f, e)), 1.f), params_.softcap * kLog2E);
      }
    }
    if (params_.mask.data != nullptr) {
      const int key = key_ + 16 * group;
      float m[4];
      load4(m, params_.mask.data, mask_row_ + key * params_.mask.key, params_.mask.key, params_.mask_seqlen_kv - key,
            params_.mask.dtype, params_.mask.vector4);
#pragma unroll
      for (int k = 0; k < 4; ++k) y[k] = ptx::add_rn(y[k], mask_term(m[k], params_.mask.dtype));
    }
  }

 private:
  const AttentionParams& params_;
  int64_t mask_row_;
  int key_;
  float unit_;
  float shift_;
};

// Whether the query attends the key: limits and mask together.
template <bool kScored>
INTFA_DEVICE bool attends(const AttentionParams& params, const Limits& limits, const Work& work, int query, int key) {
  if (key < limits.begin(query) || key >= limits.end(query)) return false;
  if (!kScored || params.mask.data == nullptr) return true;
  const float m = load1(params.mask.data, mask_row(params, work, query) + key * params.mask.key, params.mask.dtype);
  return mask_term(m, params.mask.dtype) != -INFINITY;
}

}  // namespace intfa::cuda
