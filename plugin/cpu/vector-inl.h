// Vector helpers shared by the CPU units; compiled once per instruction set (Highway's foreach_target).
#include <cstdint>

#if defined(INTFA_CPU_VECTOR_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef INTFA_CPU_VECTOR_INL_H_
#undef INTFA_CPU_VECTOR_INL_H_
#else
#define INTFA_CPU_VECTOR_INL_H_
#endif

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace intfa::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// At most 16 lanes: 16 is the granularity of every packed buffer.
using DF = hn::CappedTag<float, 16>;
using DI = hn::RebindToSigned<DF>;
using DU = hn::RebindToUnsigned<DF>;
using VF = hn::Vec<DF>;
using VI = hn::Vec<DI>;
constexpr int kLanes = hn::MaxLanes(DF());

// Adding and subtracting 1.5 * 2^23 rounds to an integer, ties to even; the low bits of the sum are that integer.
constexpr float kRoundMagic = 12582912.f;

// 2^x for x <= 0, within 1 ulp; x below -126 gives 2^-126. Degree-6 minimax polynomial on [-1/2, 1/2], relative error
// 2e-9 before rounding.
HWY_INLINE VF exp2_nonpositive(VF x) {
  const DF d;
  const DI di;
  const VF clamped = hn::Max(x, hn::Set(d, -126.f));
  const VF shifted = hn::Add(clamped, hn::Set(d, kRoundMagic));
  const VF f = hn::Sub(clamped, hn::Sub(shifted, hn::Set(d, kRoundMagic)));
  VF y = hn::MulAdd(hn::Set(d, 0x1.41fbbcp-13f), f, hn::Set(d, 0x1.5f3e54p-10f));
  y = hn::MulAdd(y, f, hn::Set(d, 0x1.3b2d4cp-7f));
  y = hn::MulAdd(y, f, hn::Set(d, 0x1.c6aee8p-5f));
  y = hn::MulAdd(y, f, hn::Set(d, 0x1.ebfbdcp-3f));
  y = hn::MulAdd(y, f, hn::Set(d, 0x1.62e43p-1f));
  y = hn::MulAdd(y, f, hn::Set(d, 1.f));
  const VI exponent = hn::ShiftLeft<23>(hn::BitCast(di, shifted));
  return hn::BitCast(d, hn::Add(hn::BitCast(di, y), exponent));
}

// Loads a row of n elements as float32 and zeroes out[n .. round_up(n, 16)). n is a multiple of 8.
HWY_INLINE void load_row(const float* from, int64_t n, float* HWY_RESTRICT out) {
  const DF d;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) hn::Store(hn::LoadU(d, from + i), d, out + i);
  if (i < n) hn::Store(hn::LoadN(d, from + i, n - i), d, out + i);
}

HWY_INLINE void load_row(const hwy::float16_t* from, int64_t n, float* HWY_RESTRICT out) {
  const DF d;
  const hn::Rebind<hwy::float16_t, DF> dh;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) hn::Store(hn::PromoteTo(d, hn::LoadU(dh, from + i)), d, out + i);
  if (i < n) hn::Store(hn::PromoteTo(d, hn::LoadN(dh, from + i, n - i)), d, out + i);
}

HWY_INLINE void load_row(const hwy::bfloat16_t* from, int64_t n, float* HWY_RESTRICT out) {
  const DF d;
  const DU du;
  const hn::Rebind<uint16_t, DU> dh;
  const uint16_t* bits = reinterpret_cast<const uint16_t*>(from);
  const auto widen = [&](auto v) { return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(du, v))); };
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) hn::Store(widen(hn::LoadU(dh, bits + i)), d, out + i);
  if (i < n) hn::Store(widen(hn::LoadN(dh, bits + i, n - i)), d, out + i);
}

HWY_INLINE void load_row(const int8_t* from, int64_t n, float* HWY_RESTRICT out) {
  const DF d;
  const DI di;
  const hn::Rebind<int8_t, DI> db;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    hn::Store(hn::ConvertTo(d, hn::PromoteTo(di, hn::LoadU(db, from + i))), d, out + i);
  if (i < n) hn::Store(hn::ConvertTo(d, hn::PromoteTo(di, hn::LoadN(db, from + i, n - i))), d, out + i);
}

// Stores n float32 values, n a multiple of 8, rounding to nearest even.
HWY_INLINE void store_row(const float* HWY_RESTRICT from, int64_t n, float* out) {
  const DF d;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) hn::StoreU(hn::Load(d, from + i), d, out + i);
  if (i < n) hn::StoreN(hn::Load(d, from + i), d, out + i, n - i);
}

HWY_INLINE void store_row(const float* HWY_RESTRICT from, int64_t n, hwy::float16_t* out) {
  const DF d;
  const hn::Rebind<hwy::float16_t, DF> dh;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) hn::StoreU(hn::DemoteTo(dh, hn::Load(d, from + i)), dh, out + i);
  if (i < n) hn::StoreN(hn::DemoteTo(dh, hn::Load(d, from + i)), dh, out + i, n - i);
}

HWY_INLINE void store_row(const float* HWY_RESTRICT from, int64_t n, hwy::bfloat16_t* out) {
  const DF d;
  const DU du;
  const hn::Rebind<uint16_t, DU> dh;
  uint16_t* bits = reinterpret_cast<uint16_t*>(out);
  const auto narrow = [&](VF v) {
    const auto u = hn::BitCast(du, v);
    const auto odd = hn::And(hn::ShiftRight<16>(u), hn::Set(du, 1u));
    return hn::TruncateTo(dh, hn::ShiftRight<16>(hn::Add(hn::Add(u, hn::Set(du, 0x7fffu)), odd)));
  };
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) hn::StoreU(narrow(hn::Load(d, from + i)), dh, bits + i);
  if (i < n) hn::StoreN(narrow(hn::Load(d, from + i)), dh, bits + i, n - i);
}

}  // namespace intfa::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
