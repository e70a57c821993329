// Reading tensors of any float type, and the rounding of INT8 codes (their scales: core/numerics.h): shared by the
// prologue (K, V) and by the attention kernel (Q), so that they cannot differ.
#pragma once

#include "core/numerics.h"
#include "cuda/ptx.cuh"
#include "cuda/traits.cuh"

namespace intfa::cuda {

constexpr uint32_t kInfinityBits = 0x7f800000;

// How a warp reads rows of kDim channels: kLanes lanes per row, kParts groups of four channels each, kRows rows at a
// time.
template <int kDim>
struct WarpRows {
  static constexpr int kLanes = kDim <= 64 ? 16 : 32;
  static constexpr int kRows = 32 / kLanes;
  static constexpr int kParts = kDim > 128 ? 2 : 1;
  INTFA_DEVICE static int slot(int lane) { return lane / kLanes; }
  INTFA_DEVICE static int channel(int lane, int part) { return 4 * (lane % kLanes) + part * 128; }
  // Combines the lanes of each row.
  INTFA_DEVICE static uint32_t max_bits(uint32_t v) {
#pragma unroll
    for (int m = 1; m < kLanes; m *= 2) {
      const uint32_t other = ptx::shfl_xor(v, m);
      v = v > other ? v : other;
    }
    return v;
  }
  INTFA_DEVICE static float sum(float v) {
#pragma unroll
    for (int m = 1; m < kLanes; m *= 2) v = ptx::add_rn(v, ptx::shfl_xor(v, m));
    return v;
  }
};

// The order of keys inside 16 consecutive rows of the packed K: row 8h + 2t + e holds key 4t + 2h + e (t < 4, h < 2, e
// < 2). By it the lane that owns accumulator columns 2t, 2t+1 of two adjacent 8-column tiles of S owns the keys
// 4t..4t+3: exactly what it needs as A operand of an 8-bit P.V product, so P never moves between lanes. The float16 V^T
// uses the same order.
INTFA_DEVICE int packed_row(int key) { return (key & ~15) | (key & 2) << 2 | (key >> 1 & 6) | (key & 1); }
// The key in a row.
INTFA_DEVICE int packed_key(int row) { return (row & ~15) | (row & 8) >> 2 | (row & 6) << 1 | (row & 1); }

// Byte offset of a 16-byte chunk of an operand whose rows have kRowBytes.
template <int kRowBytes>
INTFA_DEVICE int chunk_offset(ChunkOrder order, int row, int chunk) {
  if (order == ChunkOrder::kRows) return row * kRowBytes + 16 * chunk;
  return (row & ~7) * kRowBytes + 128 * chunk + 16 * (row & 7);
}

// Keys that exist for a batch entry.
INTFA_DEVICE int valid_keys(const int64_t* nonpad_kv_seqlen, int batch, int seqlen_kv) {
  if (nonpad_kv_seqlen == nullptr) return seqlen_kv;
  const int64_t n = nonpad_kv_seqlen[batch];
  return n < 0 ? 0 : n < seqlen_kv ? static_cast<int>(n) : seqlen_kv;
}

INTFA_DEVICE int element_bytes(DataType dtype) {
  return dtype == DataType::kFloat32 ? 4 : dtype == DataType::kFloat16 || dtype == DataType::kBFloat16 ? 2 : 1;
}

// The compiler's own conversion of a byte goes to the slow pipe. As the mantissa of 1.5 * 2^23 it is a float at once.
INTFA_DEVICE float f32_from_s8(int8_t x) { return ptx::add_rn(ptx::f32_bits(0x4B400000u + x), -12582912.f); }

INTFA_DEVICE float load1(const void* base, int64_t index, DataType dtype) {
  switch (dtype) {
    case DataType::kFloat32:
      return ptx::ld_global<float>(static_cast<const float*>(base) + index);
    case DataType::kFloat16:
      return ptx::f32_from_f16(ptx::ld_global<uint16_t>(static_cast<const uint16_t*>(base) + index));
    case DataType::kBFloat16:
      return ptx::f32_from_bf16(ptx::ld_global<uint16_t>(static_cast<const uint16_t*>(base) + index));
    default:
      return f32_from_s8(ptx::ld_global<int8_t>(static_cast<const int8_t*>(base) + index));
  }
}

// Four elements `stride` apart from `index`, of which the first `count` exist; the others are 0. `vector4`: stride is
// 1, and four elements from here are aligned to their own size.
INTFA_DEVICE void load4(float (&x)[4], const void* base, int64_t index, int64_t stride, int count, DataType dtype,
                        bool vector4) {
  if (vector4 && count >= 4) {
    const char* p = static_cast<const char*>(base) + index * element_bytes(dtype);
    if (dtype == DataType::kFloat32) {
      const float4 v = ptx::ld_global<float4>(p);
      x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
    } else if (dtype == DataType::kFloat16 || dtype == DataType::kBFloat16) {
      const uint2 v = ptx::ld_global<uint2>(p);
      const bool half = dtype == DataType::kFloat16;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const uint16_t bits = static_cast<uint16_t>((i < 2 ? v.x : v.y) >> 16 * (i & 1));
        x[i] = half ? ptx::f32_from_f16(bits) : ptx::f32_from_bf16(bits);
      }
    } else {
      const uint32_t v = ptx::ld_global<uint32_t>(p);
#pragma unroll
      for (int i = 0; i < 4; ++i) x[i] = f32_from_s8(static_cast<int8_t>(v >> 8 * i));
    }
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) x[i] = i < count ? load1(base, index + i * stride, dtype) : 0.f;
  }
}

// The larger magnitude, as bits: they order like the values, with inf above every finite one and NaN above inf.
INTFA_DEVICE uint32_t max_magnitude(uint32_t bits, float x) {
  const uint32_t other = ptx::u32_bits(x) & 0x7fffffff;
  return bits > other ? bits : other;
}

// Ties to even, clamped to [-127, 127]. Also brings INT8 input, -128 included, into the range.
INTFA_DEVICE int32_t code_of(float scaled) {
  const int32_t code = ptx::s32_from_f32(scaled);
  return code < -127 ? -127 : code > 127 ? 127 : code;
}

INTFA_DEVICE uint32_t pack_bytes(const int32_t (&code)[4]) {
  return (code[0] & 255) | (code[1] & 255) << 8 | (code[2] & 255) << 16 | static_cast<uint32_t>(code[3]) << 24;
}

}  // namespace intfa::cuda
