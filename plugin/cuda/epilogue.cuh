// O -> Y and lse, and the NaN that non-finite input owes to the rows that see it.
#pragma once

#include "cuda/attention_shape.h"
#include "cuda/online_softmax.cuh"
#include "cuda/quantize.cuh"
#include "cuda/scoring.cuh"
#include "cuda/traits.cuh"
#include "cuda/work.cuh"

namespace intfa::cuda {

// Stores the channels c and c + 1 of one row; those from `head_dim_v` on do not exist. index: of the row's channel 0.
INTFA_DEVICE void store2(const AttentionParams& params, int64_t index, int c, float y0, float y1) {
  const bool pair = params.y_pairs && c + 1 < params.head_dim_v;
  if (params.y_dtype == DataType::kFloat32) {
    float* y = static_cast<float*>(params.y) + index + c;
    if (pair) {
      ptx::st_global(y, float2{y0, y1});
    } else {
      if (c < params.head_dim_v) y[0] = y0;
      if (c + 1 < params.head_dim_v) y[1] = y1;
    }
  } else {
    const bool half = params.y_dtype == DataType::kFloat16;
    const uint16_t low = half ? ptx::f16_from_f32(y0) : ptx::bf16_from_f32(y0);
    const uint16_t high = half ? ptx::f16_from_f32(y1) : ptx::bf16_from_f32(y1);
    uint16_t* y = static_cast<uint16_t*>(params.y) + index + c;
    if (pair) {
      ptx::st_global(y, static_cast<uint32_t>(high) << 16 | low);
    } else {
      if (c < params.head_dim_v) y[0] = low;
      if (c + 1 < params.head_dim_v) y[1] = high;
    }
  }
}

INTFA_DEVICE int64_t y_index(const AttentionParams& params, const Work& work, int row) {
  return work.split * params.split_y + work.batch * params.y_batch +
         (work.head + params.rows.head(row)) * params.y_head + params.rows.query(row) * params.y_token;
}

// Y = O / sum * v_scale, and lse of the true scores. A row without keys gives 0 and -inf.
template <typename Shape, typename P, bool kScored, int kStrips, int kBlocks>
INTFA_DEVICE void store_rows(const AttentionParams& params, const Work& work, uint32_t smem,
                             const float (&o)[kStrips][kBlocks][4], const RowState<kStrips>& rows) {
  constexpr int kDim = 8 * kBlocks;
  const RowTable table = RowTable::of<Shape>(smem, ptx::thread_index() >> 5);
  const int g = work.lane >> 2, t = work.lane & 3;
  const float* v_scale = params.packed.v_scale + static_cast<int64_t>(work.kv_head) * kDim;  // [Dp]
#pragma unroll
  for (int m = 0; m < kStrips; ++m) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = 16 * m + 8 * h + g, group_row = work.warp_row + row;
      float sum = rows.sum[m][h];
      if constexpr (P::kPartialSum) {
        sum = ptx::add_rn(sum, ptx::shfl_xor(sum, 1));
        sum = ptx::add_rn(sum, ptx::shfl_xor(sum, 2));
      }
      const float unit = kScored ? ptx::ld_shared(table.unit + 4 * row) : rows.unit[m][h];
      const float poison = ptx::mul_rn(unit, 0.f);  // NaN for a non-finite query
      const float inverse = (sum > 0.f ? ptx::div_rn(1.f, sum) : 0.f) + poison;
      const float unbias = P::kBiased ? ptx::mul_rn(-kBias, rows.bias_sum[m][h]) : 0.f;
      if (group_row >= params.rows.count) continue;
      const int64_t index = y_index(params, work, group_row);
#pragma unroll
      for (int i = 0; i < kDim / 8; ++i) {
        const int c = 8 * i + 2 * t;
        const float2 scale = ptx::ld_global<float2>(v_scale + c);
        store2(params, index, c, ptx::mul_rn(ptx::mul_rn(ptx::add_rn(o[m][i][2 * h], unbias), inverse), scale.x),
               ptx::mul_rn(ptx::mul_rn(ptx::add_rn(o[m][i][2 * h + 1], unbias), inverse), scale.y));
      }
      if (params.lse != nullptr && t == 0) {
        const float top = kScored ? rows.reference[m][h] : ptx::mul_rn(rows.reference[m][h], unit);
        const float log2_sum = ptx::add_rn(ptx::lg2(sum), -P::kLog2Max);
        const float lse = ptx::mul_rn(ptx::add_rn(top, log2_sum), kLn2);
        // With a softcap the shift is already in the scores.
        float* out = lse_of(params, work, group_row);  // holds the shift: which with a softcap is in the scores already
        *out = (sum > 0.f ? params.softcap > 0.f ? lse : ptx::add_rn(lse, *out) : -INFINITY) + poison;
      }
    }
  }
}

// Overwrites what a non-finite K token or V element reaches: whole rows, or one channel of them. Each thread only
// rewrites what it stored itself, so nothing needs to be ordered. Costs a few loads where the input is finite.
template <typename Shape, typename Source, bool kScored>
INTFA_DEVICE void poison_rows(const AttentionParams& params, const Work& work) {
  constexpr int kRowBytes = kTileN * Source::kElementV;  // of V^T
  const int g = work.lane >> 2, t = work.lane & 3;
  const uint32_t* k_flags = params.packed.tile_flags + static_cast<int64_t>(work.kv_head) * params.num_tiles;
  const uint32_t* v_flags = k_flags + static_cast<int64_t>(params.batch) * params.kv_num_heads * params.num_tiles;
  uint32_t found = 0;
  for (int i = work.lane; i < params.num_tiles; i += 32) found |= k_flags[i] | v_flags[i];
  if (!ptx::warp_any(found != 0)) return;
  const Limits limits(params, work.batch);

  auto tile_of = [&](int key) {
    return params.packed.tiles +
           (static_cast<int64_t>(work.kv_head) * params.num_tiles + key / kTileN) * Source::kBytes;
  };
  auto non_finite_k = [&](int key) {
    const float scale = reinterpret_cast<const float*>(tile_of(key) + Source::kScale)[key % kTileN];
    return scale != scale;
  };
  auto non_finite_v = [&](int channel, int key) {
    constexpr bool kHalf = Source::kElementV == 2;
    const int byte = kHalf ? 2 * packed_row(key % kTileN) : key % kTileN;
    const char* code =
        tile_of(key) + Source::kV + chunk_offset<kRowBytes>(Shape::kOrder, channel, byte / 16) + byte % 16;
    return kHalf ? *reinterpret_cast<const uint16_t*>(code) == kNonFiniteHalf
                 : *reinterpret_cast<const int8_t*>(code) == kNonFiniteCode;
  };
#pragma unroll 1
  for (int key = 0; key < params.seqlen_kv; ++key) {
    const bool k_poison = k_flags[key / kTileN] != 0 && non_finite_k(key);
    if (!k_poison && v_flags[key / kTileN] == 0) continue;
#pragma unroll 1
    for (int row = work.warp_row + g; row < work.warp_row + Shape::kWarpRows; row += 8) {
      if (row >= params.rows.count || !attends<kScored>(params, limits, work, row, key)) continue;
      if (k_poison && params.lse != nullptr && t == 0) *lse_of(params, work, row) = NAN;
#pragma unroll 1
      for (int c = 2 * t; c < params.head_dim_v; c += 8) {
        const bool first = k_poison || non_finite_v(c, key), second = k_poison || non_finite_v(c + 1, key);
        const int64_t index = y_index(params, work, row) + c;
        auto poison = [&](int64_t at) {
          if (params.y_dtype == DataType::kFloat32) {
            static_cast<float*>(params.y)[at] = NAN;
          } else {
            static_cast<uint16_t*>(params.y)[at] = params.y_dtype == DataType::kFloat16 ? 0x7e00 : 0x7fc0;
          }
        };
        if (first) poison(index);
        if (second && c + 1 < params.head_dim_v) poison(index + 1);
      }
    }
  }
}

}  // namespace intfa::cuda
