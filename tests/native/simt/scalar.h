// Scalar instructions, one definition for both simulators: where PTX leaves a result approximate (ex2, rcp, ...) the
// host SIMT and the PTX interpreter must round alike, because their outputs are compared bit for bit.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>
#include <limits>

#include "cuda_compat.h"

namespace simt {

inline float flush_denormal(float x) { return std::fabs(x) < FLT_MIN ? std::copysign(0.f, x) : x; }

// MUFU instructions (.approx.ftz): the correctly rounded result stands for the approximate one.
inline float ex2(float x) { return flush_denormal(exp2f(flush_denormal(x))); }
inline float lg2(float x) { return flush_denormal(log2f(flush_denormal(x))); }
inline float rcp(float x) { return flush_denormal(1.f / flush_denormal(x)); }
inline float tanh_approx(float x) { return tanhf(x); }

// fma rounded toward minus infinity. The product of two floats is exact in double; two-sum gives the addition's error
// exactly, so the rounded-to-nearest result is one step too high exactly when it exceeds the true value.
inline float fma_rd(float a, float b, float c) {
  const double product = double(a) * b, sum = product + c;
  if (!std::isfinite(sum)) return float(sum);
  const double part = sum - product, error = (product - (sum - part)) + (c - part);
  const float nearest = float(sum);
  const bool too_high = nearest > sum || (nearest == sum && error < 0);
  return too_high ? std::nextafter(nearest, -INFINITY) : nearest;
}

// cvt.rni / cvt.rzi: saturating, NaN gives 0.
template <class Integer>
inline Integer float_to_integer(double rounded) {
  if (rounded != rounded) return 0;
  if (rounded < double(std::numeric_limits<Integer>::min())) return std::numeric_limits<Integer>::min();
  if (rounded >= std::ldexp(1.0, std::numeric_limits<Integer>::digits)) return std::numeric_limits<Integer>::max();
  return Integer(rounded);
}

// f16 and bf16 as bits. Conversions from float round to nearest even; a NaN becomes the canonical 0x7FFF, as on the
// device.
inline float f32_from_f16(uint16_t bits) { return float(bit_copy<_Float16>(bits)); }
inline uint16_t f16_from_f32(float x) { return x != x ? 0x7FFF : bit_copy<uint16_t>(_Float16(x)); }
inline float f32_from_bf16(uint16_t bits) { return bit_copy<float>(uint32_t(bits) << 16); }
inline uint16_t bf16_from_f32(float x) {
  if (x != x) return 0x7FFF;
  const uint32_t u = bit_copy<uint32_t>(x);
  return uint16_t((u + 0x7FFF + ((u >> 16) & 1)) >> 16);
}

// prmt.b32, default mode: byte i of the result is byte (selector nibble i) of {b, a}; bit 3 of the nibble replicates
// its sign.
inline uint32_t prmt(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = uint64_t(b) << 32 | a;
  uint32_t result = 0;
  for (int i = 0; i < 4; i++) {
    const uint32_t nibble = selector >> (4 * i) & 15;
    uint32_t byte = uint32_t(bytes >> (8 * (nibble & 7))) & 255;
    if (nibble & 8) byte = byte & 128 ? 255 : 0;
    result |= byte << (8 * i);
  }
  return result;
}

// Sum of four byte products plus c; Byte is uint8_t or int8_t for each operand.
template <class ByteA, class ByteB>
inline uint32_t dp4a(uint32_t a, uint32_t b, uint32_t c) {
  for (int i = 0; i < 4; i++) c += uint32_t(int(ByteA(a >> 8 * i)) * int(ByteB(b >> 8 * i)));
  return c;
}

// cvt.pack.sat.{u8,s8}.s32.b32 d, a, b, c: d = low half of c above sat(a) above sat(b).
template <class Byte>
inline uint32_t pack_saturated(int32_t a, int32_t b, uint32_t c) {
  const auto clamp = [](int32_t x) {
    const int32_t low = std::numeric_limits<Byte>::min(), high = std::numeric_limits<Byte>::max();
    return uint32_t(x < low ? low : x > high ? high : x) & 255;
  };
  return clamp(b) | clamp(a) << 8 | c << 16;
}

}  // namespace simt

// CUDA's own names for some of them.
inline int __float2int_rn(float f) { return simt::float_to_integer<int>(std::nearbyint(double(f))); }
inline float __int2float_rn(int i) { return float(i); }
inline uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t selector) { return simt::prmt(a, b, selector & 0x7777); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fmaf_rd(float a, float b, float c) { return simt::fma_rd(a, b, c); }
