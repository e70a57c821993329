// Softmax over tiles of keys, per row, with P quantized tile by tile.
//
//   y      = S * k_scale                              float; x = y * unit is the score in log2 units
//   P      = rint(255 * 2^((y - tile_max) * unit))    one scale per row per tile: the tile's largest code is 255
//   O     += 2^((tile_max - reference) * unit) * (P . V)
//   sum   += 2^(...) * sum(P)                         of the rounded P
//
// Because P carries its tile's own scale, `reference` need not be the running max: it moves, and O is rescaled, only
// when a tile stands more than 2^32 above it. The paper's scheme and the float16 product take P against the running max
// instead: there the reference is the running max and moves whenever that does.
//
// Hazards:
//  - no inf - inf: a row's max starts at a finite floor, the lowest float, so that a key masked by finfo.min still
//  counts;
//  - a code of 256 would wrap: the exponent's offset log2(255) - tile_max * unit is rounded down, and y <= tile_max;
//  - unit > 0 always: 0 * -inf is NaN;
//  - O of integer products holds kBias times the sum of their weights, removed every kUnbiasEvery tiles and at the end,
//  before it
//    can cost precision.
#pragma once

#include <cfloat>
#include <cmath>

#include "core/numerics.h"
#include "cuda/fragment.cuh"
#include "cuda/traits.cuh"

namespace intfa::cuda {

constexpr float kFloor = -FLT_MAX;
constexpr float kSlack = 32.f;
constexpr int kUnbiasEvery = 8;

// Whether the tensor core sums P's rows (a product with ones) or dp4a does: the former where issue slots are short, the
// latter where the tensor core is what bounds the loop.
constexpr bool kSumByMma = ptx::kArch == 80 || ptx::kArch == 90 || ptx::kArch == 100;

// How P is coded, multiplied and summed.
template <Arithmetic kArithmetic, bool kWgmma = false>
struct Probability {
  static constexpr bool kHalf = kArithmetic == Arithmetic::kHalfPV;
  static constexpr bool kRunningMax = kArithmetic != Arithmetic::kTileInt8;
  static constexpr bool kIntegerSum = kArithmetic == Arithmetic::kTileInt8;
  static constexpr bool kFloatSum = kArithmetic == Arithmetic::kPaperInt8;
  // P.V comes as float bits with kBias. Not from wgmma, whose accumulators start at 0 for free, where a bias would cost
  // a move each.
  static constexpr bool kBiased = !kHalf && !kWgmma;
  static constexpr bool kMmaSum = !kFloatSum && (kHalf || (kSumByMma && !kWgmma));
  // Each lane of a quad holds its own part of the row sum, or all hold the whole.
  static constexpr bool kPartialSum = !kMmaSum;
  // log2 of P at the maximum; rounded down, so that rint never exceeds the code.
  static constexpr float kLog2Max = kHalf ? 0.f : kArithmetic == Arithmetic::kTileInt8 ? 7.99435344f : 6.98868465f;
  static constexpr int kKeysPerFragment = kHalf ? 16 : 32;
};

// State of the rows g and g + 8 of each strip, in every lane of the quad that shares them.
template <int kStrips>
struct RowState {
  float unit[kStrips][2];       // q_scale * softmax_scale * log2(e)
  float reference[kStrips][2];  // in units of y
  float bias_sum[kStrips][2];   // how many kBias O holds
  float sum[kStrips][2];        // of P, relative to 2^(reference * unit)
};

// The keys [begin, end) of a tile that a row attends, relative to the lane's first key.
struct LaneLimits {
  int begin, end;
};

// S (kBias + S where kBiased)  ->  y, as float bits in place. k_scales: shared address of the tile's k_scale, at this
// lane's first key. kColumns: keys of the tile / 8.
template <bool kBiased, int kStrips, int kColumns>
INTFA_DEVICE void scale_scores(int32_t (&s)[kStrips][kColumns][4], uint32_t k_scales) {
#pragma unroll
  for (int i = 0; i < kColumns / 2; ++i) {
    float scale[4];
    ptx::ld_shared(scale, k_scales + 64 * i);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const float bias = ptx::mul_rn(scale[k], -kBias);  // exact: k_scale has 22 bits
#pragma unroll
      for (int m = 0; m < kStrips; ++m) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          int32_t& x = s[m][2 * i + (k >> 1)][2 * h + (k & 1)];
          x = __float_as_int(kBiased ? ptx::fma_rn(__int_as_float(x), scale[k], bias)
                                     : ptx::mul_rn(ptx::f32_from_s32(x), scale[k]));
        }
      }
    }
  }
}

// Masks y by row_limits(m, h), where kMasked, and finds the rows' maxima over the tile, quad-wide. transform(y, m, h,
// i): what else happens to the scores of keys 16i + 4t + {0..3} of row half h of strip m; nothing in the plain kernel.
template <bool kMasked, int kStrips, int kColumns, typename RowLimits, typename Scoring>
INTFA_DEVICE void mask_scores(int32_t (&s)[kStrips][kColumns][4], float (&tile_max)[kStrips][2], RowLimits row_limits,
                              Scoring scoring) {
#pragma unroll
  for (int m = 0; m < kStrips; ++m) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const LaneLimits limits = row_limits(m, h);
      const auto score = scoring(m, h);
      float max = kFloor;
#pragma unroll
      for (int i = 0; i < kColumns / 2; ++i) {
        float y[4];
#pragma unroll
        for (int k = 0; k < 4; ++k) y[k] = __int_as_float(s[m][2 * i + (k >> 1)][2 * h + (k & 1)]);
        score(y, i);
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          if (kMasked && (16 * i + k < limits.begin || 16 * i + k >= limits.end)) y[k] = -INFINITY;
          max = fmaxf(max, y[k]);
          s[m][2 * i + (k >> 1)][2 * h + (k & 1)] = __float_as_int(y[k]);
        }
      }
      max = fmaxf(max, ptx::shfl_xor(max, 1));
      tile_max[m][h] = fmaxf(max, ptx::shfl_xor(max, 2));
    }
  }
}

// P of one row half of one strip: `offset` is log2(max P) - max * unit. Returns the sum of P where it is taken here.
template <typename P, int kFragments, int kColumns>
INTFA_DEVICE float exponentials(uint32_t (&p)[kFragments][4], const int32_t (&s)[kColumns][4], int h, float unit,
                                float offset) {
  uint32_t codes = 0;
  float sum = 0.f;
#pragma unroll
  for (int i = 0; i < kColumns / 2; ++i) {
    float f[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      f[k] = ptx::ex2(ptx::fma_rn(__int_as_float(s[2 * i + (k >> 1)][2 * h + (k & 1)]), unit, offset));
      if constexpr (P::kFloatSum) sum = ptx::add_rn(sum, f[k]);
    }
    if constexpr (P::kHalf) {
      p[i][h] = ptx::f16x2_from_f32(f[1], f[0]);
      p[i][h + 2] = ptx::f16x2_from_f32(f[3], f[2]);
    } else {
      p[i >> 1][h + 2 * (i & 1)] = pack_u8x4(f[0], f[1], f[2], f[3]);
      if constexpr (P::kIntegerSum && !P::kMmaSum) codes = ptx::dot4_u8(p[i >> 1][h + 2 * (i & 1)], 0x01010101u, codes);
    }
  }
  // codes < 2^23: as the mantissa of 2^23 + codes it is a float at once.
  if constexpr (P::kIntegerSum && !P::kMmaSum) sum = ptx::add_rn(ptx::f32_bits(0x4B000000u + codes), -8388608.f);
  return sum;
}

// The rows' sums of P by the tensor core.
template <typename P, int kFragments>
INTFA_DEVICE void sum_by_mma(float (&sum)[2], const uint32_t (&p)[kFragments][4], const int32_t (&start)[4]) {
  if constexpr (P::kHalf) {
    float acc[4] = {0.f, 0.f, 0.f, 0.f};
#pragma unroll
    for (int i = 0; i < kFragments; ++i) ptx::mma_f16(acc, p[i], 0x3C003C00u, 0x3C003C00u);
    sum[0] = acc[0], sum[1] = acc[2];
  } else {
    int32_t acc[4];
#pragma unroll
    for (int i = 0; i < kFragments; ++i) ptx::mma_u8s8(acc, p[i], 0x01010101u, 0x01010101u, i == 0 ? start : acc);
    sum[0] = ptx::add_rn(__int_as_float(acc[0]), -kBias), sum[1] = ptx::add_rn(__int_as_float(acc[2]), -kBias);
  }
}

// 2^x of one value per row half, the same in all lanes of the quad. kSpread: each lane takes one of four, and the quad
// exchanges them.
template <bool kSpread, int kStrips>
INTFA_DEVICE void exponentials_of_quad(float (&x)[kStrips][2]) {
  if constexpr (kSpread && kStrips == 2) {
    const int lane = ptx::thread_index() & 31;
    const float low = lane & 1 ? x[0][1] : x[0][0], high = lane & 1 ? x[1][1] : x[1][0];
    const float mine = ptx::ex2(lane & 2 ? high : low);
#pragma unroll
    for (int i = 0; i < 4; ++i) x[i >> 1][i & 1] = ptx::shfl(mine, (lane & ~3) + i);
  } else {
#pragma unroll
    for (int m = 0; m < kStrips; ++m) x[m][0] = ptx::ex2(x[m][0]), x[m][1] = ptx::ex2(x[m][1]);
  }
}

// P of a tile from its y, the rows' sums, and the weight with which the tile's product enters O. Moves the reference
// (and rescales O) where it must; `unbias`: also removes the bias from O.
template <typename P, bool kScored, int kStrips, int kBlocks, int kFragments, int kColumns>
INTFA_DEVICE void softmax_tile(uint32_t (&p)[kStrips][kFragments][4], float (&weight)[kStrips][2],
                               float (&o)[kStrips][kBlocks][4], RowState<kStrips>& rows,
                               const int32_t (&s)[kStrips][kColumns][4], const float (&tile_max)[kStrips][2],
                               const int32_t (&start)[4], bool unbias) {
  auto unit = [&](int m, int h) { return kScored ? 1.f : rows.unit[m][h]; };
  float sum[kStrips][2];
  bool moved = false;
#pragma unroll
  for (int m = 0; m < kStrips; ++m) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float reference = rows.reference[m][h], top = tile_max[m][h];
      const float max = P::kRunningMax ? fmaxf(reference, top) : top;
      sum[m][h] = exponentials<P>(p[m], s[m], h, unit(m, h), ptx::fma_rd(-max, unit(m, h), P::kLog2Max));
      weight[m][h] = ptx::mul_rn(ptx::add_rn(max, -reference), unit(m, h));  // its log2, for now
      moved |= weight[m][h] > (P::kRunningMax ? 0.f : kSlack);
    }
    if constexpr (P::kMmaSum) sum_by_mma<P>(sum[m], p[m], start);
  }
  if (ptx::warp_any(moved) || unbias) {
#pragma unroll
    for (int m = 0; m < kStrips; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const bool move = weight[m][h] > (P::kRunningMax ? 0.f : kSlack);
        const float target = move ? tile_max[m][h] : rows.reference[m][h];
        const float a = ptx::ex2(ptx::mul_rn(ptx::add_rn(rows.reference[m][h], -target), unit(m, h)));
        // A row that stays is not rounded because another of the warp moves: what it computes is its own affair.
        const float bias_sum = move || unbias ? rows.bias_sum[m][h] : 0.f;
        const float unbiased = ptx::mul_rn(ptx::mul_rn(-kBias, bias_sum), a);
        rows.reference[m][h] = target;
        if (move || unbias) rows.bias_sum[m][h] = 0.f;
        rows.sum[m][h] = ptx::mul_rn(rows.sum[m][h], a);
        if (move) weight[m][h] = 0.f;
#pragma unroll
        for (int i = 0; i < kBlocks; ++i) {
#pragma unroll
          for (int e = 2 * h; e < 2 * h + 2; ++e) {
            o[m][i][e] = P::kBiased ? ptx::fma_rn(o[m][i][e], a, unbiased) : ptx::mul_rn(o[m][i][e], a);
          }
        }
      }
    }
  }
  // At head size 32 it is ex2 that bounds the loop, but on sm_80 the number of instructions.
  if constexpr (!P::kRunningMax) exponentials_of_quad<kBlocks == 4 && ptx::kArch != 80>(weight);
#pragma unroll
  for (int m = 0; m < kStrips; ++m) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if constexpr (P::kRunningMax) weight[m][h] = 1.f;
      rows.sum[m][h] = ptx::fma_rn(sum[m][h], weight[m][h], rows.sum[m][h]);
      if constexpr (P::kBiased) rows.bias_sum[m][h] = ptx::add_rn(rows.bias_sum[m][h], weight[m][h]);
    }
  }
}

}  // namespace intfa::cuda
