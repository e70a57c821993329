// What a lane owns of the matrices of mma.sync, and the two products built on it. g = lane / 4, t = lane % 4.
//
//   m16n8k32 (8-bit)   A  bytes 4t..4t+3 of rows g, g+8, then bytes 16+4t.. of rows g, g+8
//                      B  bytes 4t..4t+3, then 16+4t.., of column g
//                      C  columns 2t, 2t+1 of row g, then of row g+8
//   m16n8k16 (16-bit)  A  columns 2t, 2t+1 of rows g, g+8, then columns 8+2t.. of rows g, g+8;  B  rows 2t, 2t+1, then
//   8+2t..;  C as above
//
// With K's rows in packed_row order (quantize.cuh), accumulators C of columns 16i..16i+15 of S belong to keys 16i + 4t
// + {0,1,2,3}: after the exponential they are packed in place into A operands of P.V. Source: PTX ISA, "Matrix
// fragments for mma.m16n8k32 / k16".
#pragma once

#include "cuda/ptx.cuh"
#include "cuda/smem_tile.cuh"
#include "cuda/traits.cuh"

namespace intfa::cuda {

// Integer accumulators start at the bits of 1.5 * 2^23: then int32 accumulation yields the float kBias + n directly,
// exact for |n| < 2^22, and removing the bias is part of the FFMA that follows anyway. |S| <= 127^2 * 256 and |P.V| <=
// 255 * 127 * 64 hold it.
constexpr float kBias = 12582912.f;
constexpr int32_t kBiasBits = 0x4B400000;

// Packs four probabilities in [0, 255.5) into codes, ties to even. sm_80 has no fast float -> integer: adding 2^23
// leaves the integer in the low byte. Later architectures convert and saturate two at a time.
INTFA_DEVICE uint32_t pack_u8x4(float p0, float p1, float p2, float p3) {
  if constexpr (ptx::kArch < 86) {
    auto low_byte = [](float p) { return ptx::u32_bits(ptx::add_rn(p, 8388608.f)); };
    return ptx::byte_perm(ptx::byte_perm(low_byte(p0), low_byte(p1), 0x0040),
                          ptx::byte_perm(low_byte(p2), low_byte(p3), 0x0040), 0x5410);
  } else {
    const uint32_t upper = ptx::pack_u8x2(ptx::s32_from_f32(p3), ptx::s32_from_f32(p2), 0);
    return ptx::pack_u8x2(ptx::s32_from_f32(p1), ptx::s32_from_f32(p0), upper);
  }
}

// S = Q.K^T for kStrips strips of 16 rows and a tile of kTileN keys, as kBias + S in float bits.
// q(strip, column, fragment): loads the A fragment of 32 channels. k: shared address of the tile [kTileN, kDim].
template <int kDim, int kStrips, typename LoadQ>
INTFA_DEVICE void multiply_qk(int32_t (&s)[kStrips][kTileN / 8][4], LoadQ q, uint32_t k, uint32_t lane_offset,
                              const int32_t (&start)[4]) {
  using Tile = SmemTile<kDim>;
#pragma unroll
  for (int c = 0; c < kDim / 32; ++c) {
    uint32_t a[kStrips][4];
#pragma unroll
    for (int m = 0; m < kStrips; ++m) q(m, c, a[m]);
#pragma unroll
    for (int i = 0; i < kTileN / 16; ++i) {
      uint32_t b[4];
      ptx::ldmatrix_x4(b, k + Tile::fragment_offset(lane_offset, 16 * i, c));
#pragma unroll
      for (int m = 0; m < kStrips; ++m) {
        ptx::mma_s8s8(s[m][2 * i], a[m], b[0], b[1], c == 0 ? start : s[m][2 * i]);
        ptx::mma_s8s8(s[m][2 * i + 1], a[m], b[2], b[3], c == 0 ? start : s[m][2 * i + 1]);
      }
    }
  }
}

// One 16-channel block of P.V, 8-bit, as kBias + P.V in float bits. v: shared address of V^T's tile [kDim, kTileN].
template <int kStrips>
INTFA_DEVICE void multiply_pv(int32_t (&acc)[kStrips][2][4], const uint32_t (&p)[kStrips][kTileN / 32][4], uint32_t v,
                              uint32_t lane_offset, int channel, const int32_t (&start)[4]) {
  using Tile = SmemTile<kTileN>;
#pragma unroll
  for (int k = 0; k < kTileN / 32; ++k) {
    uint32_t b[4];
    ptx::ldmatrix_x4(b, v + Tile::fragment_offset(lane_offset, channel, k));
#pragma unroll
    for (int m = 0; m < kStrips; ++m) {
      ptx::mma_u8s8(acc[m][0], p[m][k], b[0], b[1], k == 0 ? start : acc[m][0]);
      ptx::mma_u8s8(acc[m][1], p[m][k], b[2], b[3], k == 0 ? start : acc[m][1]);
    }
  }
}

// O += P.V in float16, 16 channels. v: shared address of V^T's tile [kDim, kTileN] of float16.
template <int kStrips, int kBlocks>
INTFA_DEVICE void multiply_pv_half(float (&o)[kStrips][kBlocks][4], const uint32_t (&p)[kStrips][kTileN / 16][4],
                                   uint32_t v, uint32_t lane_offset, int channel) {
  using Tile = SmemTile<2 * kTileN>;
#pragma unroll
  for (int k = 0; k < kTileN / 16; ++k) {
    uint32_t b[4];
    ptx::ldmatrix_x4(b, v + Tile::fragment_offset(lane_offset, channel, k));
#pragma unroll
    for (int m = 0; m < kStrips; ++m) {
      ptx::mma_f16(o[m][channel / 8], p[m][k], b[0], b[1]);
      ptx::mma_f16(o[m][channel / 8 + 1], p[m][k], b[2], b[3]);
    }
  }
}

}  // namespace intfa::cuda
