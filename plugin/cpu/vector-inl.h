// Vector helpers shared by the CPU units; compiled once per instruction set (Highway's foreach_target).
#include <cstdint>
#include <cstring>

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

// 2^f for f in [-1/2, 1/2]: degree-6 minimax polynomial, relative error 2e-9 before rounding.
HWY_INLINE VF exp2_fraction(VF f) {
  const DF d;
  VF y = hn::MulAdd(hn::Set(d, 0x1.41fbbcp-13f), f, hn::Set(d, 0x1.5f3e54p-10f));
  y = hn::MulAdd(y, f, hn::Set(d, 0x1.3b2d4cp-7f));
  y = hn::MulAdd(y, f, hn::Set(d, 0x1.c6aee8p-5f));
  y = hn::MulAdd(y, f, hn::Set(d, 0x1.ebfbdcp-3f));
  y = hn::MulAdd(y, f, hn::Set(d, 0x1.62e43p-1f));
  return hn::MulAdd(y, f, hn::Set(d, 1.f));
}

// 2^x for x <= 0, within 1 ulp; x below -126 gives 2^-126.
HWY_INLINE VF exp2_nonpositive(VF x) {
  const DF d;
  const DI di;
  const VF clamped = hn::Max(x, hn::Set(d, -126.f));
  const VF shifted = hn::Add(clamped, hn::Set(d, kRoundMagic));
  const VF y = exp2_fraction(hn::Sub(clamped, hn::Sub(shifted, hn::Set(d, kRoundMagic))));
  const VI exponent = hn::ShiftLeft<23>(hn::BitCast(di, shifted));
  return hn::BitCast(d, hn::Add(hn::BitCast(di, y), exponent));
}

// In every block of 128 bits: op over neighbouring lanes of D, those of x and y in turn.
template <class D, class V = hn::Vec<D>, class Op>
HWY_INLINE V reduce_pairs(D d, V x, V y, Op op) {
  return op(hn::InterleaveLower(d, x, y), hn::InterleaveUpper(d, x, y));
}

// In every block of 128 bits, of what reduce_pairs() made of vectors 0 and 1, and 2 and 3: op over all lanes of each.
template <class D, class V = hn::Vec<D>, class Op>
HWY_INLINE V reduce_fours(D d, V x01, V x23, Op op) {
  const hn::Repartition<uint64_t, D> d64;
  const auto x = hn::BitCast(d64, x01), y = hn::BitCast(d64, x23);
  return op(hn::BitCast(d, hn::InterleaveLower(d64, x, y)), hn::BitCast(d, hn::InterleaveUpper(d64, x, y)));
}

// Block b of the result: op over the blocks of fours[b].
template <class D, class V = hn::Vec<D>, class Op>
HWY_INLINE V reduce_blocks(D d, const V* fours, Op op) {
  [[maybe_unused]] const auto halves = [&](V x, V y) HWY_ATTR {
    return op(hn::ConcatLowerLower(d, y, x), hn::ConcatUpperUpper(d, y, x));
  };
  if constexpr (kLanes == 4) {
    return fours[0];
  } else if constexpr (kLanes == 8) {
    return halves(fours[0], fours[1]);
  } else {
    const V x = halves(fours[0], fours[2]), y = halves(fours[1], fours[3]);  // blocks: fours 0, 0, 2, 2 and 1, 1, 3, 3
    return op(hn::OddEvenBlocks(hn::SwapAdjacentBlocks(y), x), hn::OddEvenBlocks(y, hn::SwapAdjacentBlocks(x)));
  }
}

// out[r] = op over the lanes of row r, for 16 rows at rows + 16 r: with each op two vectors become one.
template <class D, class Op>
HWY_INLINE void reduce_rows(D d, const hn::TFromD<D>* HWY_RESTRICT rows, hn::TFromD<D>* HWY_RESTRICT out, Op op) {
  for (int r = 0; r < 16; r += kLanes) {
    hn::Vec<D> fours[kLanes / 4];
    for (int i = 0; i < kLanes / 4; ++i) {
      const auto row = [&](int n) HWY_ATTR { return hn::Load(d, rows + (r + 4 * i + n) * 16); };
      fours[i] = reduce_fours(d, reduce_pairs(d, row(0), row(1), op), reduce_pairs(d, row(2), row(3), op), op);
    }
    hn::Store(reduce_blocks(d, fours, op), d, out + r);
  }
}

// rint(x) of a magnitude under 2^22, ties to even.
HWY_INLINE VI nearest(VF x) {
#if HWY_TARGET <= HWY_AVX3
  return VI{_mm512_cvtps_epi32(x.raw)};
#else
  const DI di;
  const VF magic = hn::Set(DF(), kRoundMagic);
  return hn::Sub(hn::BitCast(di, hn::Add(x, magic)), hn::BitCast(di, magic));
#endif
}

using DB = hn::Repartition<int8_t, DI>;

// Four bytes in every lane.
HWY_INLINE VI broadcast4(const void* four_bytes) {
  int32_t word;
  memcpy(&word, four_bytes, sizeof word);
  return hn::Set(DI(), word);
}

// sum += u . s, by fours.
HWY_INLINE void add_products(hn::Vec<hn::Repartition<uint8_t, DI>> u, hn::Vec<DB> s, VI& sum) {
#if HWY_TARGET <= HWY_AVX3_DL
  // what SumOfMulQuadAccumulate is here; but around its intrinsic GCC 12 copies every sum at every turn of a loop
  asm("vpdpbusd %2, %1, %0" : "+v"(sum.raw) : "v"(u.raw), "v"(s.raw));
#else
  sum = hn::SumOfMulQuadAccumulate(DI(), u, s, sum);
#endif
}

// The codes of four vectors as bytes, in order. Demoting leaves word w in block w % kBlocks of vector w / kBlocks.
HWY_INLINE hn::Vec<DB> demote_in_order(VI a, VI b, VI c, VI e) {
  const hn::Repartition<int16_t, DI> d16;
  struct Order {
    alignas(64) int32_t word[kLanes];
    constexpr Order() : word() {
      constexpr int kBlocks = kLanes / 4;
      for (int w = 0; w < kLanes; ++w) word[w] = 4 * (w % kBlocks) + w / kBlocks;
    }
  };
  static constexpr Order kOrder;
  const auto bytes = hn::ReorderDemote2To(DB(), hn::ReorderDemote2To(d16, a, b), hn::ReorderDemote2To(d16, c, e));
  return hn::BitCast(DB(), hn::TableLookupLanes(hn::BitCast(DI(), bytes), hn::SetTableIndices(DI(), kOrder.word)));
}

// A vector of elements as float32: all of its lanes, or the first n and zeros.
HWY_INLINE VF load_lanes(const float* from) { return hn::LoadU(DF(), from); }
HWY_INLINE VF load_lanes(const float* from, size_t n) { return hn::LoadN(DF(), from, n); }

using DF16 = hn::Rebind<hwy::float16_t, DF>;
HWY_INLINE VF load_lanes(const hwy::float16_t* from) { return hn::PromoteTo(DF(), hn::LoadU(DF16(), from)); }
HWY_INLINE VF load_lanes(const hwy::float16_t* from, size_t n) {
  return hn::PromoteTo(DF(), hn::LoadN(DF16(), from, n));
}

using DU16 = hn::Rebind<uint16_t, DU>;
HWY_INLINE VF widen_bfloat16(hn::Vec<DU16> bits) {
  return hn::BitCast(DF(), hn::ShiftLeft<16>(hn::PromoteTo(DU(), bits)));
}
HWY_INLINE VF load_lanes(const hwy::bfloat16_t* from) {
  return widen_bfloat16(hn::LoadU(DU16(), reinterpret_cast<const uint16_t*>(from)));
}
HWY_INLINE VF load_lanes(const hwy::bfloat16_t* from, size_t n) {
  return widen_bfloat16(hn::LoadN(DU16(), reinterpret_cast<const uint16_t*>(from), n));
}

using DI8 = hn::Rebind<int8_t, DI>;
HWY_INLINE VF load_lanes(const int8_t* from) {
  return hn::ConvertTo(DF(), hn::PromoteTo(DI(), hn::LoadU(DI8(), from)));
}
HWY_INLINE VF load_lanes(const int8_t* from, size_t n) {
  return hn::ConvertTo(DF(), hn::PromoteTo(DI(), hn::LoadN(DI8(), from, n)));
}

// Elements [i, i + kLanes) of a row of n, zeros past its end.
template <typename T>
HWY_INLINE VF load_at(const T* row, int64_t i, int64_t n) {
  return i + kLanes <= n ? load_lanes(row + i) : i < n ? load_lanes(row + i, n - i) : hn::Zero(DF());
}

// Stores the first n lanes, rounding to nearest even.
HWY_INLINE void store_lanes(VF x, size_t n, float* out) {
  const DF d;
  if (n >= kLanes) return hn::StoreU(x, d, out);
  hn::StoreN(x, d, out, n);
}

HWY_INLINE void store_lanes(VF x, size_t n, hwy::float16_t* out) {
  const DF16 d;
  if (n >= kLanes) return hn::StoreU(hn::DemoteTo(d, x), d, out);
  hn::StoreN(hn::DemoteTo(d, x), d, out, n);
}

HWY_INLINE void store_lanes(VF x, size_t n, hwy::bfloat16_t* out) {
  const DU du;
  const DU16 d;
  const auto bits = hn::BitCast(du, x);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1u));
  const auto rounded = hn::ShiftRight<16>(hn::Add(hn::Add(bits, hn::Set(du, 0x7fffu)), odd));
  uint16_t* to = reinterpret_cast<uint16_t*>(out);
  if (n >= kLanes) return hn::StoreU(hn::TruncateTo(d, rounded), d, to);
  hn::StoreN(hn::TruncateTo(d, rounded), d, to, n);
}

}  // namespace intfa::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
