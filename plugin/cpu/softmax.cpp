// Per row: x = score * k_scale * factor (softcap, mask, key range), the tile's maximum, then P = 2^(x - reference) as
// codes.
#include "cpu/softmax.h"

#include <cmath>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/softmax.cpp"
// clang-format off: foreach_target.h comes first
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
#include "hwy/contrib/math/math-inl.h"
#include "cpu/vector-inl.h"
// clang-format on
#include "core/numerics.h"

HWY_BEFORE_NAMESPACE();
namespace intfa::cpu::HWY_NAMESPACE {

using DI16 = hn::Repartition<int16_t, DI>;
using DB = hn::Repartition<int8_t, DI>;
using DUB = hn::Repartition<uint8_t, DI>;

// Four vectors of codes 0..255 become one vector of bytes without a cross-lane shuffle; quad_order() says where each
// went.
HWY_INLINE hn::Vec<DUB> pack_codes(VI a, VI b, VI c, VI e) {
  const DI16 d16;
  return hn::ReorderDemote2To(DUB(), hn::ReorderDemote2To(d16, a, b), hn::ReorderDemote2To(d16, c, e));
}

// rint(factor * y) as an integer, for results in [0, 255].
HWY_INLINE VI to_code(VF y, VF factor) {
  const VF shifted = hn::MulAdd(y, factor, hn::Set(DF(), kRoundMagic));
  return hn::And(hn::BitCast(DI(), shifted), hn::Set(DI(), 0xff));
}

// Pass 1 of a row: x in place of the scores. Returns the row's maximum over this tile.
template <bool kPlain>
HWY_INLINE float row_scores(const SoftmaxTile& a, int row) {
  const DF d;
  const DI di;
  float* x_row = a.scores + row * a.stride;
  const int32_t* s_row = reinterpret_cast<const int32_t*>(x_row);
  const VF factor = hn::Set(d, a.factor[row]);
  const VF excluded = hn::Set(d, -INFINITY);
  const VI begin = hn::Set(di, !kPlain && a.key_begin ? a.key_begin[row] : 0);
  const VI end = hn::Set(di, !kPlain && a.key_end ? a.key_end[row] : INT32_MAX);
  VF max = excluded;
  for (int64_t j = a.chunk_begin * kChunk; j < a.chunk_end * kChunk; j += kLanes) {
    VF x = hn::Mul(hn::Mul(hn::ConvertTo(d, hn::Load(di, s_row + j)), hn::Load(d, a.k_scale + j)), factor);
    if constexpr (!kPlain) {
      if (a.softcap != 0.f) {
        const VF cap = hn::Set(d, a.softcap);
        x = hn::Mul(hn::Tanh(d, hn::Div(hn::Add(x, hn::Set(d, a.offset[row])), cap)), cap);
      }
      if (a.bias != nullptr) x = hn::Add(x, hn::LoadU(d, a.bias + row * a.bias_stride + j));
      const VI key = hn::Iota(di, static_cast<int32_t>(j));
      const auto inside = hn::And(hn::Ge(key, begin), hn::Lt(key, end));
      x = hn::IfThenElse(hn::RebindMask(d, inside), x, excluded);
    }
    hn::Store(x, d, x_row + j);
    max = hn::Max(max, x);
  }
  return hn::ReduceMax(d, max);
}

// Pass 2 of a row: P from x. Returns the row's sum over this tile.
template <PForm kForm>
HWY_INLINE float row_exp(const SoftmaxTile& a, int row, float reference) {
  const DF d;
  const DI di;
  float* x_row = a.scores + row * a.stride;
  const VF ref = hn::Set(d, reference);
  if constexpr (kForm == PForm::kHalf) {
    const hn::Rebind<hwy::float16_t, DF> dh;
    VF sum = hn::Zero(d);
    for (int64_t j = a.chunk_begin * kChunk; j < a.chunk_end * kChunk; j += kLanes) {
      const VF y = exp2_nonpositive(hn::Sub(hn::Load(d, x_row + j), ref));
      const VF p = hn::PromoteTo(d, hn::DemoteTo(dh, y));
      hn::Store(p, d, x_row + j);
      sum = hn::Add(sum, p);
    }
    return hn::ReduceSum(d, sum);
  } else {
    constexpr bool kSumCodes = kForm == PForm::kTile;
    const VF scale = hn::Set(d, kSumCodes ? kMaxPCode : kMaxCode);
    const DUB dub;
    const auto ones = hn::Set(DB(), int8_t{1});
    uint8_t* p_row = a.p + row * a.stride;
    VI code_sum = hn::Zero(di);
    VF sum = hn::Zero(d);
    for (int64_t j = a.chunk_begin * kChunk; j < a.chunk_end * kChunk; j += 4 * kLanes) {
      VI code[4];
      for (int v = 0; v < 4; ++v) {
        const VF y = exp2_nonpositive(hn::Sub(hn::Load(d, x_row + j + v * kLanes), ref));
        if constexpr (!kSumCodes) sum = hn::Add(sum, y);
        code[v] = to_code(y, scale);
      }
      const auto packed = pack_codes(code[0], code[1], code[2], code[3]);
      hn::Store(packed, dub, p_row + j);
      if constexpr (kSumCodes) code_sum = hn::SumOfMulQuadAccumulate(di, packed, ones, code_sum);
    }
    return kSumCodes ? static_cast<float>(hn::ReduceSum(di, code_sum)) : hn::ReduceSum(d, sum);
  }
}

// A row without attended keys in this tile: P = 0.
HWY_INLINE void clear_row(const SoftmaxTile& a, int row) {
  for (int64_t j = a.chunk_begin * kChunk; j < a.chunk_end * kChunk; ++j) {
    a.scores[row * a.stride + j] = 0.f;
    a.p[row * a.stride + j] = 0;
  }
}

// 2^x that is 0 from -126 down, where the polynomial stops.
HWY_INLINE VF exp2_or_zero(VF x) {
  const DF d;
  return hn::IfThenElseZero(hn::Gt(x, hn::Set(d, -126.f)), exp2_nonpositive(x));
}

template <PForm kForm>
void softmax(const SoftmaxTile& a) {
  const DF d;
  HWY_ALIGN float old_max[kRows], tile_max[kRows], new_max[kRows], sum[kRows];
  const bool plain = a.key_begin == nullptr && a.bias == nullptr && a.softcap == 0.f;
  for (int row = 0; row < kRows; ++row) {
    old_max[row] = row < a.rows ? a.row_max[row] : -INFINITY;
    tile_max[row] = -INFINITY;
    sum[row] = 0.f;
  }
  // one pass over all rows, then the other: the rows' reductions do not wait for each other
  for (int row = 0; row < a.rows; ++row) {
    tile_max[row] = plain ? row_scores<true>(a, row) : row_scores<false>(a, row);
    new_max[row] = HWY_MAX(old_max[row], tile_max[row]);
  }
  for (int row = 0; row < a.rows; ++row) {
    if (tile_max[row] == -INFINITY) {
      clear_row(a, row);
    } else {
      sum[row] = row_exp<kForm>(a, row, kForm == PForm::kTile ? tile_max[row] : new_max[row]);
    }
  }
  for (int row = a.rows; row < kRows; ++row) new_max[row] = -INFINITY;

  const VF excluded = hn::Set(d, -INFINITY);
  for (int row = 0; row < kRows; row += kLanes) {
    const VF max = hn::Load(d, new_max + row);
    const VF tile = hn::Load(d, tile_max + row);
    // a row that has seen no key keeps alpha = 1; its output and sum are 0
    const VF alpha =
        hn::IfThenElse(hn::Eq(max, excluded), hn::Set(d, 1.f), exp2_or_zero(hn::Sub(hn::Load(d, old_max + row), max)));
    const VF reference = kForm == PForm::kTile ? tile : max;
    const VF beta = hn::IfThenZeroElse(hn::Eq(tile, excluded), exp2_or_zero(hn::Sub(reference, max)));
    hn::Store(alpha, d, a.alpha + row);
    hn::Store(beta, d, a.beta + row);
  }
  for (int row = 0; row < a.rows; ++row) {
    a.row_max[row] = new_max[row];
    a.row_sum[row] = a.alpha[row] * a.row_sum[row] + a.beta[row] * sum[row];
  }
}

void softmax_tile_form(const SoftmaxTile& a) { softmax<PForm::kTile>(a); }
void softmax_paper_form(const SoftmaxTile& a) { softmax<PForm::kPaper>(a); }
void softmax_half_form(const SoftmaxTile& a) { softmax<PForm::kHalf>(a); }

void find_quad_order(uint8_t* order) {
  const DI di;
  HWY_ALIGN uint8_t key[kChunk];
  for (int j = 0; j < kChunk; j += 4 * kLanes) {
    const auto iota = [&](int v) { return hn::Iota(di, j + v * kLanes); };
    hn::Store(pack_codes(iota(0), iota(1), iota(2), iota(3)), DUB(), key + j);
  }
  for (int w = 0; w < kChunk / 4; ++w) order[w] = key[4 * w] / 4;
}

void exp2_many(const float* x, float* out, int64_t count) {
  const DF d;
  for (int64_t i = 0; i < count; i += kLanes) {
    const size_t n = HWY_MIN(static_cast<int64_t>(kLanes), count - i);
    hn::StoreN(exp2_nonpositive(hn::LoadN(d, x + i, n)), d, out + i, n);
  }
}

}  // namespace intfa::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace intfa::cpu {

HWY_EXPORT(softmax_tile_form);
HWY_EXPORT(softmax_paper_form);
HWY_EXPORT(softmax_half_form);
HWY_EXPORT(find_quad_order);
HWY_EXPORT(exp2_many);

SoftmaxFn softmax_tile(PForm form) {
  switch (form) {
    case PForm::kTile:
      return HWY_DYNAMIC_POINTER(softmax_tile_form);
    case PForm::kPaper:
      return HWY_DYNAMIC_POINTER(softmax_paper_form);
    case PForm::kHalf:
      return HWY_DYNAMIC_POINTER(softmax_half_form);
  }
  return nullptr;
}

void quad_order(uint8_t order[kChunk / 4]) { HWY_DYNAMIC_DISPATCH(find_quad_order)(order); }

void exp2_array(const float* x, float* out, int64_t count) { HWY_DYNAMIC_DISPATCH(exp2_many)(x, out, count); }

}  // namespace intfa::cpu
#endif
