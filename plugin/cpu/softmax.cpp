// Per row: x = score * k_scale * factor (softcap, mask, key range), the tile's maximum, then P = 2^(x - reference) as
// codes.
#include "cpu/softmax.h"

#include <algorithm>
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
#include "cpu/code_grid.h"

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

// The codes of P = 2^x, x <= 0, of four vectors, for PForm::kTile. Each step is taken for all four before the next one,
// so that few instructions stand right behind what they wait for.
#if HWY_TARGET <= HWY_AVX3_DL
class TileCodes {
 public:
  TileCodes() {
    for (int i = 0; i < 4; ++i) grid_[i] = hn::Load(DUB(), code_grid().code + i * 64);
  }

  HWY_INLINE hn::Vec<DUB> operator()(const VF (&x)[4]) const {
    const DF d;
    const VF slope = hn::Set(d, kSqrtMaxPCode / kGridOctaves), top = hn::Set(d, kSqrtMaxPCode);
    VF s[4];
    VI point[4];
    for (int v = 0; v < 4; ++v) s[v] = hn::MulAdd(x[v], slope, top);
    for (int v = 0; v < 4; ++v) s[v] = hn::Mul(s[v], hn::Abs(s[v]));
    // what lies before the grid is negative; packing makes a 0 of it, also of x = -inf
    for (int v = 0; v < 4; ++v) point[v] = nearest(s[v]);
    const __m512i at = pack_codes(point[0], point[1], point[2], point[3]).raw;
    const __m512i low = _mm512_permutex2var_epi8(grid_[0].raw, at, grid_[1].raw);
    const __m512i high = _mm512_permutex2var_epi8(grid_[2].raw, at, grid_[3].raw);
    return hn::Vec<DUB>{_mm512_mask_mov_epi8(low, _mm512_movepi8_mask(at), high)};
  }

 private:
  static constexpr float kSqrtMaxPCode = 15.9687194f;
  hn::Vec<DUB> grid_[4];
};
#else
struct TileCodes {
  HWY_INLINE hn::Vec<DUB> operator()(const VF (&x)[4]) const {
    VF y[4];
    for (int v = 0; v < 4; ++v) y[v] = exp2_nonpositive(x[v]);
    VI code[4];
    for (int v = 0; v < 4; ++v) code[v] = to_code(y[v], hn::Set(DF(), kMaxPCode));
    return pack_codes(code[0], code[1], code[2], code[3]);
  }
};
#endif

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
HWY_INLINE void row_exp(const SoftmaxTile& a, int row, float reference, const TileCodes& tile_codes,
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
      for (int v = 0; v < 4; ++v) x[v] = hn::Sub(hn::Load(d, x_row + j + v * kLanes), ref);
      if constexpr (kForm == PForm::kTile) {
        const auto codes = tile_codes(x);
        hn::Store(codes, dub, p_row + j);
        sum = hn::SumOfMulQuadAccumulate(ds, codes, hn::Set(DB(), int8_t{1}), sum);
      } else {
        VI code[4];
        for (int v = 0; v < 4; ++v) {
          const VF y = exp2_nonpositive(x[v]);
          sum = hn::Add(sum, y);
          code[v] = to_code(y, hn::Set(d, kMaxCode));
        }
        hn::Store(pack_codes(code[0], code[1], code[2], code[3]), dub, p_row + j);
      }
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

  const TileCodes tile_codes;
  for (int row = 0; row < rows; ++row) row_exp<kForm>(a, row, reference[row], tile_codes, lane_sum + row * kGroup);
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

void tile_codes_many(const float* x, uint8_t* out, int64_t count) {
  const TileCodes tile_codes;
  uint8_t order[kChunk / 4];
  find_quad_order(order);
  for (int64_t i = 0; i < count; i += kChunk) {
    HWY_ALIGN float chunk[kChunk] = {};
    HWY_ALIGN uint8_t packed[kChunk], codes[kChunk];
    std::copy_n(x + i, std::min<int64_t>(kChunk, count - i), chunk);
    for (int j = 0; j < kChunk; j += 4 * kLanes) {
      VF part[4];
      for (int v = 0; v < 4; ++v) part[v] = hn::Load(DF(), chunk + j + v * kLanes);
      hn::Store(tile_codes(part), DUB(), packed + j);
    }
    for (int w = 0; w < kChunk / 4; ++w) std::copy_n(packed + 4 * w, 4, codes + 4 * order[w]);
    std::copy_n(codes, std::min<int64_t>(kChunk, count - i), out + i);
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
HWY_EXPORT(tile_codes_many);

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
void tile_codes_array(const float* x, uint8_t* out, int64_t count) {
  HWY_DYNAMIC_DISPATCH(tile_codes_many)(x, out, count);
}

}  // namespace intfa::cpu
#endif
