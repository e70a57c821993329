// Per row: x = score * k_scale * factor (softcap, mask, key range), the tile's maximum, then P = 2^(x - reference) as
// codes.
#include "cpu/softmax.h"

#include <cmath>
#include <type_traits>

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

// rint(255 * 2^x) for x <= 0; pack_codes() makes 0 of what it gives for x = -inf. Each step is taken for all four
// vectors before the next one, so that few instructions stand right behind what they wait for.
HWY_INLINE void exp2_codes(const VF (&x)[4], VI (&code)[4]) {
  const DF d;
#if HWY_TARGET <= HWY_AVX3
  // AVX-512 takes x - floor(x) in one instruction, and multiplies by 2^floor(x) in one, which underflows by itself.
  // The polynomial is 255 * 2^f on [0, 1], relative error 1.5e-7 in float32: no more than that of a rounded 2^f
  // times 255.
  VF f[4], y[4];
  for (int v = 0; v < 4; ++v) f[v] = VF{_mm512_reduce_ps(x[v].raw, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)};
  for (int v = 0; v < 4; ++v) y[v] = hn::MulAdd(hn::Set(d, 0x1.ea45d8p-2f), f[v], hn::Set(d, 0x1.25697cp+1f));
  for (int v = 0; v < 4; ++v) y[v] = hn::MulAdd(y[v], f[v], hn::Set(d, 0x1.c78af2p+3f));
  for (int v = 0; v < 4; ++v) y[v] = hn::MulAdd(y[v], f[v], hn::Set(d, 0x1.e9e9d4p+5f));
  for (int v = 0; v < 4; ++v) y[v] = hn::MulAdd(y[v], f[v], hn::Set(d, 0x1.61821p+7f));
  for (int v = 0; v < 4; ++v) y[v] = hn::MulAdd(y[v], f[v], hn::Set(d, 0x1.fdfffep+7f));
  for (int v = 0; v < 4; ++v) code[v] = VI{_mm512_cvtps_epi32(_mm512_scalef_ps(y[v].raw, x[v].raw))};
#else
  for (int v = 0; v < 4; ++v) code[v] = to_code(exp2_nonpositive(x[v]), hn::Set(d, kMaxPCode));
#endif
}

// Pass 1 of a row: x in place of the scores, and the largest x of each lane.
template <bool kPlain>
HWY_INLINE void row_scores(const SoftmaxTile& a, int row, float* HWY_RESTRICT lane_max) {
  const DF d;
  const DI di;
  float* x_row = a.scores + row * a.stride;
  const int32_t* s_row = reinterpret_cast<const int32_t*>(x_row);
  const float* k_scale = a.k_scale;
  const int64_t last = a.chunk_end * kChunk;
  const VF factor = hn::Set(d, a.factor[row]);
  const VF excluded = hn::Set(d, -INFINITY);
  const VI begin = hn::Set(di, !kPlain && a.key_begin ? a.key_begin[row] : 0);
  const VI end = hn::Set(di, !kPlain && a.key_end ? a.key_end[row] : INT32_MAX);
  VF max = excluded;
  for (int64_t j = a.chunk_begin * kChunk; j < last; j += 4 * kLanes) {
    VF x[4];
    for (int v = 0; v < 4; ++v) x[v] = hn::ConvertTo(d, hn::Load(di, s_row + j + v * kLanes));
    for (int v = 0; v < 4; ++v) x[v] = hn::Mul(x[v], hn::Load(d, k_scale + j + v * kLanes));
    for (int v = 0; v < 4; ++v) x[v] = hn::Mul(x[v], factor);
    for (int v = 0; !kPlain && v < 4; ++v) {
      const int64_t at = j + v * kLanes;
      if (a.softcap != 0.f) {
        const VF cap = hn::Set(d, a.softcap);
        x[v] = hn::Mul(hn::Tanh(d, hn::Div(hn::Add(x[v], hn::Set(d, a.offset[row])), cap)), cap);
      }
      if (a.bias != nullptr) x[v] = hn::Add(x[v], hn::LoadU(d, a.bias + row * a.bias_stride + at));
      const VI key = hn::Iota(di, static_cast<int32_t>(at));
      const auto inside = hn::And(hn::Ge(key, begin), hn::Lt(key, end));
      x[v] = hn::IfThenElse(hn::RebindMask(d, inside), x[v], excluded);
    }
    for (int v = 0; v < 4; ++v) hn::Store(x[v], d, x_row + j + v * kLanes);
    max = hn::Max(max, hn::Max(hn::Max(x[0], x[1]), hn::Max(x[2], x[3])));
  }
  hn::Store(max, d, lane_max);
}

// Sums over the rows' P: integers for kTile, whose P are codes.
template <PForm kForm>
using SumTag = std::conditional_t<kForm == PForm::kTile, DI, DF>;

// Pass 2 of a row: P from x, and the sum of each lane.
template <PForm kForm>
HWY_INLINE void row_exp(const SoftmaxTile& a, int row, float reference,
                        hn::TFromD<SumTag<kForm>>* HWY_RESTRICT lane_sum) {
  const DF d;
  const SumTag<kForm> ds;
  float* x_row = a.scores + row * a.stride;
  const int64_t last = a.chunk_end * kChunk;
  const VF ref = hn::Set(d, reference);
  auto sum = hn::Zero(ds);
  if constexpr (kForm == PForm::kHalf) {
    const hn::Rebind<hwy::float16_t, DF> dh;
    for (int64_t j = a.chunk_begin * kChunk; j < last; j += kLanes) {
      const VF y = exp2_nonpositive(hn::Sub(hn::Load(d, x_row + j), ref));
      const VF p = hn::PromoteTo(d, hn::DemoteTo(dh, y));
      hn::Store(p, d, x_row + j);
      sum = hn::Add(sum, p);
    }
  } else {
    const DUB dub;
    uint8_t* p_row = a.p + row * a.stride;
    for (int64_t j = a.chunk_begin * kChunk; j < last; j += 4 * kLanes) {
      VF x[4];
      VI code[4];
      for (int v = 0; v < 4; ++v) x[v] = hn::Sub(hn::Load(d, x_row + j + v * kLanes), ref);
      if constexpr (kForm == PForm::kTile) {
        exp2_codes(x, code);
      } else {
        for (int v = 0; v < 4; ++v) {
          const VF y = exp2_nonpositive(x[v]);
          sum = hn::Add(sum, y);
          code[v] = to_code(y, hn::Set(d, kMaxCode));
        }
      }
      const auto packed = pack_codes(code[0], code[1], code[2], code[3]);
      hn::Store(packed, dub, p_row + j);
      if constexpr (kForm == PForm::kTile) sum = hn::SumOfMulQuadAccumulate(ds, packed, hn::Set(DB(), int8_t{1}), sum);
    }
  }
  hn::Store(sum, ds, lane_sum);
}

// 2^x that is 0 from -126 down, where the polynomial stops.
HWY_INLINE VF exp2_or_zero(VF x) {
  const DF d;
  return hn::IfThenElseZero(hn::Gt(x, hn::Set(d, -126.f)), exp2_nonpositive(x));
}

// Each pass goes over all rows before the next one, and what is one number per row is computed for 16 rows at once.
template <PForm kForm>
void softmax(const SoftmaxTile& a) {
  const DF d;
  const SumTag<kForm> ds;
  HWY_ALIGN float lane_max[kRows * kGroup], tile_max[kRows], reference[kRows];
  HWY_ALIGN hn::TFromD<SumTag<kForm>> lane_sum[kRows * kGroup], sum[kRows];
  const VF excluded = hn::Set(d, -INFINITY);
  const int rows = a.rows;
  if (a.key_begin == nullptr && a.bias == nullptr && a.softcap == 0.f) {
    for (int row = 0; row < rows; ++row) row_scores<true>(a, row, lane_max + row * kGroup);
  } else {
    for (int row = 0; row < rows; ++row) row_scores<false>(a, row, lane_max + row * kGroup);
  }
  for (int row = rows; row < kRows; ++row) {
    hn::Store(excluded, d, lane_max + row * kGroup);
    hn::Store(hn::Zero(ds), ds, lane_sum + row * kGroup);
  }
  reduce_rows(d, lane_max, tile_max, [](VF x, VF y) { return hn::Max(x, y); });

  for (int row = 0; row < kRows; row += kLanes) {
    const VF tile = hn::Load(d, tile_max + row);
    const VF old = hn::Load(d, a.row_max + row);
    const VF max = hn::Max(old, tile);
    // a row that has seen no key keeps alpha = 1; its output and sum are 0
    const VF alpha = hn::IfThenElse(hn::Eq(max, excluded), hn::Set(d, 1.f), exp2_or_zero(hn::Sub(old, max)));
    const auto none = hn::Eq(tile, excluded);
    const VF ref = kForm == PForm::kTile ? tile : max;
    const VF beta = hn::IfThenZeroElse(none, exp2_or_zero(hn::Sub(ref, max)));
    hn::Store(alpha, d, a.alpha + row);
    hn::Store(beta, d, a.beta + row);
    hn::Store(max, d, a.row_max + row);
    // where the tile has no key for the row, x - 0 = -inf makes every P zero
    hn::Store(hn::IfThenZeroElse(none, ref), d, reference + row);
  }

  for (int row = 0; row < rows; ++row) row_exp<kForm>(a, row, reference[row], lane_sum + row * kGroup);
  reduce_rows(ds, lane_sum, sum, [](auto x, auto y) { return hn::Add(x, y); });
  for (int row = 0; row < kRows; row += kLanes) {
    VF tile;
    if constexpr (kForm == PForm::kTile) {
      tile = hn::ConvertTo(d, hn::Load(ds, sum + row));
    } else {
      tile = hn::Load(d, sum + row);
    }
    const VF before = hn::Mul(hn::Load(d, a.row_sum + row), hn::Load(d, a.alpha + row));
    hn::Store(hn::Add(before, hn::Mul(tile, hn::Load(d, a.beta + row))), d, a.row_sum + row);
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
