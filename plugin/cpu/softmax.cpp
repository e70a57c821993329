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

// The low bytes of four vectors as one; quad_order() says where each went.
HWY_INLINE hn::Vec<DUB> low_bytes(VI a, VI b, VI c, VI e) {
#if HWY_TARGET <= HWY_AVX3_DL
  const DUB d;
  const __m512i every_fourth = hn::ShiftLeft<2>(hn::And(hn::Iota(d, 0), hn::Set(d, 31))).raw;
  const __m512i ab = _mm512_maskz_permutex2var_epi8(0x00000000ffffffff, a.raw, every_fourth, b.raw);
  const __m512i ce = _mm512_maskz_permutex2var_epi8(0xffffffff00000000, c.raw, every_fourth, e.raw);
  return hn::Vec<DUB>{_mm512_or_si512(ab, ce)};
#else
  const DI16 d16;
  const DI di;
  const auto byte = [&](VI x) HWY_ATTR { return hn::And(x, hn::Set(di, 0xff)); };
  return hn::ReorderDemote2To(DUB(), hn::ReorderDemote2To(d16, byte(a), byte(b)),
                              hn::ReorderDemote2To(d16, byte(c), byte(e)));
#endif
}

// The low byte is rint(factor * y), for results in [0, 255].
HWY_INLINE VI to_code(VF y, VF factor) { return hn::BitCast(DI(), hn::MulAdd(y, factor, hn::Set(DF(), kRoundMagic))); }

// The codes of P = 2^(gain * x) of four vectors, gain * x <= 0, for PForm::kTile. Each step is taken for all four
// before the next one, so that few instructions stand right behind what they wait for.
#if HWY_TARGET <= HWY_AVX3_DL
class TileCodes {
 public:
  TileCodes() {
    for (int i = 0; i < 4; ++i) grid_[i] = hn::Load(DUB(), code_grid().code + i * 64);
  }

  // What x is multiplied by to be in units of the grid.
  static VF unit(VF gain) { return hn::Mul(gain, hn::Set(DF(), kSqrtMaxPCode / kGridOctaves)); }

  HWY_INLINE hn::Vec<DUB> operator()(const VF (&x)[4], VF unit) const {
    const DF d;
    VF s[4];
    VI point[4];
    for (int v = 0; v < 4; ++v) s[v] = hn::MulAdd(x[v], unit, hn::Set(d, kSqrtMaxPCode));
    // before the grid begins s is negative; among integers that comparison costs least
    for (int v = 0; v < 4; ++v) s[v] = hn::BitCast(d, hn::Max(hn::BitCast(DI(), s[v]), hn::Zero(DI())));
    for (int v = 0; v < 4; ++v) point[v] = to_code(s[v], s[v]);
    const __m512i at = low_bytes(point[0], point[1], point[2], point[3]).raw;
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
  static VF unit(VF gain) { return gain; }

  HWY_INLINE hn::Vec<DUB> operator()(const VF (&x)[4], VF unit) const {
    VI code[4];
    for (int v = 0; v < 4; ++v) code[v] = to_code(exp2_nonpositive(hn::Mul(x[v], unit)), hn::Set(DF(), kMaxPCode));
    return low_bytes(code[0], code[1], code[2], code[3]);
  }
};
#endif

// Pass 1 of 4 * kLanes keys: x in place of the scores, where kPlain without its factor, and the largest of each lane.
// kAll: all rows attend all of these keys.
template <bool kPlain, bool kAll>
HWY_INLINE void key_scores(const SoftmaxTile& a, int64_t j, bool first, float* HWY_RESTRICT lane_max) {
  const DF d;
  const DI di;
  const int rows = a.rows;
  const int64_t stride = a.stride;
  float* x_row = a.scores + j;
  VF k_scale[4];
  for (int v = 0; v < 4; ++v) k_scale[v] = hn::Load(d, a.k_scale + j + v * kLanes);
  for (int row = 0; row < rows; ++row, x_row += stride, lane_max += kGroup) {
    VF x[4];
    for (int v = 0; v < 4; ++v) x[v] = hn::ConvertTo(d, hn::Load(di, reinterpret_cast<int32_t*>(x_row) + v * kLanes));
    for (int v = 0; v < 4; ++v) x[v] = hn::Mul(x[v], k_scale[v]);
    if constexpr (!kPlain) {
      const VF factor = hn::Set(d, a.factor[row]), cap = hn::Set(d, a.softcap);
      for (int v = 0; v < 4; ++v) {
        x[v] = hn::Mul(x[v], factor);
        if (a.softcap != 0.f) x[v] = hn::Mul(hn::Tanh(d, hn::Div(hn::Add(x[v], hn::Set(d, a.offset[row])), cap)), cap);
        if (a.bias != nullptr) x[v] = hn::Add(x[v], hn::LoadU(d, a.bias + row * a.bias_stride + j + v * kLanes));
      }
    }
    if constexpr (!kAll) {
      const VI begin = hn::Set(di, a.key_begin[row]), end = hn::Set(di, a.key_end[row]);
      for (int v = 0; v < 4; ++v) {
        const VI key = hn::Iota(di, static_cast<int32_t>(j + v * kLanes));
        const auto inside = hn::And(hn::Ge(key, begin), hn::Lt(key, end));
        x[v] = hn::IfThenElse(hn::RebindMask(d, inside), x[v], hn::Set(d, -INFINITY));
      }
    }
    for (int v = 0; v < 4; ++v) hn::Store(x[v], d, x_row + v * kLanes);
    const VF max = hn::Max(hn::Max(x[0], x[1]), hn::Max(x[2], x[3]));
    hn::Store(first ? max : hn::Max(max, hn::Load(d, lane_max)), d, lane_max);
  }
}

// Sums over the rows' P: integers for kTile, whose P are codes.
template <PForm kForm>
using SumTag = std::conditional_t<kForm == PForm::kTile, DI, DF>;

// Pass 2 of 4 * kLanes keys: P from x, and the sum of each lane.
template <PForm kForm>
HWY_INLINE void key_exp(const SoftmaxTile& a, int64_t j, bool first, const float* reference, const float* unit,
                        const TileCodes& tile_codes, hn::TFromD<SumTag<kForm>>* HWY_RESTRICT lane_sum) {
  const DF d;
  const SumTag<kForm> ds;
  const int rows = a.rows;
  const int64_t stride = a.stride;
  float* x_row = a.scores + j;
  [[maybe_unused]] uint8_t* p_row = a.p + j;
  for (int row = 0; row < rows; ++row, x_row += stride, p_row += stride, lane_sum += kGroup) {
    const VF ref = hn::Set(d, reference[row]);
    VF x[4];
    for (int v = 0; v < 4; ++v) x[v] = hn::Sub(hn::Load(d, x_row + v * kLanes), ref);
    auto sum = first ? hn::Zero(ds) : hn::Load(ds, lane_sum);
    if constexpr (kForm == PForm::kTile) {
      const auto codes = tile_codes(x, hn::Set(d, unit[row]));
      hn::Store(codes, DUB(), p_row);
      sum = hn::SumOfMulQuadAccumulate(ds, codes, hn::Set(DB(), int8_t{1}), sum);
    } else if constexpr (kForm == PForm::kPaper) {
      VI code[4];
      for (int v = 0; v < 4; ++v) {
        const VF y = exp2_nonpositive(x[v]);
        sum = hn::Add(sum, y);
        code[v] = to_code(y, hn::Set(d, kMaxCode));
      }
      hn::Store(low_bytes(code[0], code[1], code[2], code[3]), DUB(), p_row);
    } else {
      const hn::Rebind<hwy::float16_t, DF> dh;
      for (int v = 0; v < 4; ++v) {
        const VF p = hn::PromoteTo(d, hn::DemoteTo(dh, exp2_nonpositive(x[v])));
        hn::Store(p, d, x_row + v * kLanes);
        sum = hn::Add(sum, p);
      }
    }
    hn::Store(sum, ds, lane_sum);
  }
}

// 2^x that is 0 from -126 down, where the polynomial stops.
HWY_INLINE VF exp2_or_zero(VF x) {
  const DF d;
  return hn::IfThenElseZero(hn::Gt(x, hn::Set(d, -126.f)), exp2_nonpositive(x));
}

// Nothing but the scales enters x, and they are positive: the largest of score * k_scale is that of x.
HWY_INLINE bool is_plain(const SoftmaxTile& a) {
  const DF d;
  bool plain = a.bias == nullptr && a.softcap == 0.f;
  for (int row = 0; row < a.rows; row += kLanes)
    plain &= hn::AllTrue(d, hn::Ge(hn::LoadN(d, a.factor + row, a.rows - row), hn::Zero(d)));
  return plain;
}

// Each pass goes over all rows before the next one, and what is one number per row is computed for 16 rows at once.
template <PForm kForm>
void softmax(const SoftmaxTile& a) {
  const DF d;
  const SumTag<kForm> ds;
  HWY_ALIGN float lane_max[kRows * kGroup], tile_max[kRows], reference[kRows], unit[kRows];
  HWY_ALIGN hn::TFromD<SumTag<kForm>> lane_sum[kRows * kGroup], sum[kRows];
  const VF excluded = hn::Set(d, -INFINITY);
  const int rows = a.rows;
  const int64_t begin = a.chunk_begin * kChunk, end = a.chunk_end * kChunk;
  const bool plain = kForm == PForm::kTile && is_plain(a);
  for (int64_t j = begin; j < end; j += 4 * kLanes) {
    const bool all = a.all_begin <= j && j + 4 * kLanes <= a.all_end;
    if (plain && all) {
      key_scores<true, true>(a, j, j == begin, lane_max);
    } else if (plain) {
      key_scores<true, false>(a, j, j == begin, lane_max);
    } else if (all) {
      key_scores<false, true>(a, j, j == begin, lane_max);
    } else {
      key_scores<false, false>(a, j, j == begin, lane_max);
    }
  }
  for (int row = rows; row < kRows; ++row) {
    hn::Store(excluded, d, lane_max + row * kGroup);
    hn::Store(hn::Zero(ds), ds, lane_sum + row * kGroup);
  }
  reduce_rows(d, lane_max, tile_max, [](VF x, VF y) { return hn::Max(x, y); });

  for (int row = 0; row < kRows; row += kLanes) {
    const VF gain = plain ? hn::Load(d, a.factor + row) : hn::Set(d, 1.f);
    const VF largest = hn::Load(d, tile_max + row);
    const auto none = hn::Eq(largest, excluded);
    const VF tile = hn::IfThenElse(none, excluded, hn::Mul(largest, gain));
    const VF old = hn::Load(d, a.row_max + row);
    const VF max = hn::Max(old, tile);
    // a row that has seen no key keeps alpha = 1; its output and sum are 0
    const VF alpha = hn::IfThenElse(hn::Eq(max, excluded), hn::Set(d, 1.f), exp2_or_zero(hn::Sub(old, max)));
    const VF ref = kForm == PForm::kTile ? tile : max;
    const VF beta = hn::IfThenZeroElse(none, exp2_or_zero(hn::Sub(ref, max)));
    hn::Store(alpha, d, a.alpha + row);
    hn::Store(beta, d, a.beta + row);
    hn::Store(max, d, a.row_max + row);
    // where the tile has no key for the row, x - 0 = -inf makes every P zero
    hn::Store(hn::IfThenZeroElse(none, kForm == PForm::kTile ? largest : max), d, reference + row);
    hn::Store(TileCodes::unit(gain), d, unit + row);
  }

  const TileCodes tile_codes;
  for (int64_t j = begin; j < end; j += 4 * kLanes)
    key_exp<kForm>(a, j, j == begin, reference, unit, tile_codes, lane_sum);
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
    hn::Store(low_bytes(iota(0), iota(1), iota(2), iota(3)), DUB(), key + j);
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
      hn::Store(tile_codes(part, TileCodes::unit(hn::Set(DF(), 1.f))), DUB(), packed + j);
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
