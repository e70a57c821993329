// What the INT8 products multiply: a vector of packed codes, and four codes of a row in all lanes.
#if defined(INTFA_CPU_FACTORS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef INTFA_CPU_FACTORS_INL_H_
#undef INTFA_CPU_FACTORS_INL_H_
#else
#define INTFA_CPU_FACTORS_INL_H_
#endif

#include "cpu/layout.h"
#include "cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace intfa::cpu::HWY_NAMESPACE {

using DUB = hn::Repartition<uint8_t, DI>;

#if HWY_ARCH_X86 && HWY_TARGET > HWY_AVX3_DL
// There is no instruction for four products of bytes, but one for two of 16 bits (pmaddwd). It takes the first and the
// third of every four bytes, then the second and the fourth.
using D16 = hn::Repartition<int16_t, DI>;
struct Factors {
  hn::Vec<D16> even, odd;
};

HWY_INLINE Factors factors(hn::Vec<DUB> bytes) {
  const hn::RebindToUnsigned<D16> d;
  const auto words = hn::BitCast(d, bytes);
  return {hn::BitCast(D16(), hn::And(words, hn::Set(d, uint16_t{0xff}))), hn::BitCast(D16(), hn::ShiftRight<8>(words))};
}
HWY_INLINE Factors factors(hn::Vec<DB> bytes) {
  const auto words = hn::BitCast(D16(), bytes);
  return {hn::ShiftRight<8>(hn::ShiftLeft<8>(words)), hn::ShiftRight<8>(words)};
}

HWY_INLINE void add_products(Factors x, Factors y, VI& sum) {
  const DI di;
  const VI products = hn::Add(hn::WidenMulPairwiseAdd(di, x.even, y.even), hn::WidenMulPairwiseAdd(di, x.odd, y.odd));
#if HWY_TARGET <= HWY_AVX2
  asm("vpaddd %1, %0, %0" : "+v"(sum.raw) : "v"(products.raw));  // as in vector-inl.h
#else
  sum = hn::Add(sum, products);
#endif
}

// Rows of codes, split once for all vectors that they meet.
template <class D8>
struct RowCodes {
  const uint8_t *even, *odd;
  Factors at(int64_t i) const {
    return {hn::BitCast(D16(), broadcast4(even + i)), hn::BitCast(D16(), broadcast4(odd + i))};
  }
};

// `scratch`: twice as many bytes as codes, both rounded up to a vector.
template <class D8>
HWY_INLINE RowCodes<D8> row_codes(D8 d, const hn::TFromD<D8>* codes, int64_t count, uint8_t* HWY_RESTRICT scratch) {
  const DUB dub;
  uint8_t* even = scratch;
  uint8_t* odd = scratch + round_up(count, 4 * kLanes);
  for (int64_t i = 0; i < count; i += 4 * kLanes) {
    const Factors f = factors(hn::Load(d, codes + i));
    hn::Store(hn::BitCast(dub, f.even), dub, even + i);
    hn::Store(hn::BitCast(dub, f.odd), dub, odd + i);
  }
  return {even, odd};
}
#else
template <class V>
HWY_INLINE V factors(V bytes) {
  return bytes;
}

template <class D8>
struct RowCodes {
  const hn::TFromD<D8>* codes;
  hn::Vec<D8> at(int64_t i) const { return hn::BitCast(D8(), broadcast4(codes + i)); }
};

template <class D8>
HWY_INLINE RowCodes<D8> row_codes(D8, const hn::TFromD<D8>* codes, int64_t, uint8_t*) {
  return {codes};
}
#endif

}  // namespace intfa::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
