// Rows of Q and K to codes, 16 rows at a time: what is one number per row is computed for all of them at once.
#if defined(INTFA_CPU_QUANTIZE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef INTFA_CPU_QUANTIZE_INL_H_
#undef INTFA_CPU_QUANTIZE_INL_H_
#else
#define INTFA_CPU_QUANTIZE_INL_H_
#endif

#include "core/numerics.h"
#include "cpu/layout.h"
#include "cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace intfa::cpu::HWY_NAMESPACE {

// Magnitudes as float bits: they order as the numbers do, and infinities and NaNs come out on top.
constexpr uint32_t kMagnitude = 0x7fffffffu;
constexpr uint32_t kInfinity = 0x7f800000u;

HWY_INLINE hn::Vec<DU> magnitude(VF x) { return hn::And(hn::BitCast(DU(), x), hn::Set(DU(), kMagnitude)); }

// 16 rows of channels, padded with zeros to a multiple of 16.
struct RowGroup {
  HWY_ALIGN float x[kGroup * kMaxHeadDim];
  HWY_ALIGN uint32_t amax[kGroup];  // bits
  HWY_ALIGN float scale[kGroup];
  HWY_ALIGN float inverse[kGroup];
};

// Fills x and amax of rows [0, rows), less `mean` where there is one. The other rows are zeros.
template <typename RowAt>
HWY_INLINE void load_rows(RowAt row_at, int rows, int64_t channels, const float* HWY_RESTRICT mean, RowGroup& g) {
  const DF d;
  const DU du;
  const int64_t n = round_up(channels, kGroup);
  HWY_ALIGN uint32_t lanes[kGroup * kGroup];
  for (int r = 0; r < rows; ++r) {
    const auto* row = row_at(r);
    auto max = hn::Zero(du);
    const auto take = [&](VF x, int64_t i) HWY_ATTR {
      if (mean != nullptr) x = hn::Sub(x, hn::Load(d, mean + i));
      hn::Store(x, d, g.x + r * n + i);
      max = hn::Max(max, magnitude(x));
    };
    int64_t i = 0;
    for (; i + 4 * kLanes <= channels; i += 4 * kLanes)
      for (int v = 0; v < 4; ++v) take(load_lanes(row + i + v * kLanes), i + v * kLanes);
    for (; i + kLanes <= channels; i += kLanes) take(load_lanes(row + i), i);
    for (; i < n; i += kLanes) take(load_at(row, i, channels), i);
    hn::Store(max, du, lanes + r * kGroup);
  }
  for (int r = rows; r < kGroup; ++r) {
    memset(g.x + r * n, 0, n * sizeof(float));
    hn::Store(hn::Zero(du), du, lanes + r * kGroup);
  }
  reduce_rows(du, lanes, g.amax, [](auto x, auto y) HWY_ATTR { return hn::Max(x, y); });
}

// A row that is not finite counts as zeros; calls bad(row) for each.
template <typename Bad>
HWY_INLINE void clear_non_finite(int64_t channels, RowGroup& g, Bad bad) {
  const int64_t n = round_up(channels, kGroup);
  for (int r = 0; r < kGroup; ++r) {
    if (g.amax[r] < kInfinity) continue;
    bad(r);
    g.amax[r] = 0;
    memset(g.x + r * n, 0, n * sizeof(float));
  }
}

// quantizer() of core/numerics.h, or k_quantizer(), of each row.
template <bool kKeys>
HWY_INLINE void find_scales(RowGroup& g) {
  const DF d;
  const DU du;
  const VF one = hn::Set(d, 1.f), top = hn::Set(d, kMaxCode);
  for (int r = 0; r < kGroup; r += kLanes) {
    const VF amax = hn::BitCast(d, hn::Load(du, g.amax + r));
    const auto tiny = hn::Lt(amax, hn::Set(d, 0x1p-119f));
    VF scale = hn::Div(amax, top), inverse;
    if constexpr (kKeys) {
      const auto up = hn::Add(hn::BitCast(du, scale), hn::Set(du, 3u));
      scale = hn::IfThenElse(tiny, one, hn::BitCast(d, hn::AndNot(hn::Set(du, 3u), up)));
      inverse = hn::Div(one, scale);
    } else {
      scale = hn::IfThenElse(tiny, one, scale);
      inverse = hn::IfThenElse(tiny, one, hn::Div(top, amax));
    }
    hn::Store(scale, d, g.scale + r);
    hn::Store(inverse, d, g.inverse + r);
  }
}

HWY_INLINE VF clamp_code(VF x) {
  const DF d;
  return hn::Min(hn::Max(x, hn::Set(d, -kMaxCode)), hn::Set(d, kMaxCode));
}

// codes[r][i] = rint(x * inverse), or clamped rint(x / scale) for scales from calibration. `stride`: of the rows of
// codes, at least `channels`. `sums`: of the codes of each row, or null.
template <bool kStatic>
HWY_INLINE void encode_rows(const RowGroup& g, int64_t channels, int8_t* HWY_RESTRICT codes, int64_t stride,
                            int32_t* HWY_RESTRICT sums) {
  const DF d;
  const DI di;
  const DI8 d8;
  const DB db;
  const auto ones = hn::Set(hn::Repartition<uint8_t, DI>(), uint8_t{1});
  const int64_t n = round_up(channels, kGroup);
  HWY_ALIGN int32_t lanes[kGroup * kGroup];
  for (int r = 0; r < kGroup; ++r) {
    const VF factor = hn::Set(d, kStatic ? g.scale[r] : g.inverse[r]);
    VI sum = hn::Zero(di);
    const auto code_at = [&](int64_t i) HWY_ATTR {
      const VF x = hn::Load(d, g.x + r * n + i);
      return nearest(kStatic ? clamp_code(hn::Div(x, factor)) : hn::Mul(x, factor));
    };
    int8_t* out = codes + r * stride;
    int64_t i = 0;
    for (; i + 4 * kLanes <= channels; i += 4 * kLanes) {
      const auto bytes =
          demote_in_order(code_at(i), code_at(i + kLanes), code_at(i + 2 * kLanes), code_at(i + 3 * kLanes));
      sum = hn::SumOfMulQuadAccumulate(di, ones, bytes, sum);
      hn::StoreU(bytes, db, out + i);
    }
    for (; i < channels; i += kLanes) {
      const VI code = code_at(i);
      sum = hn::Add(sum, code);
      hn::StoreN(hn::DemoteTo(d8, code), d8, out + i, channels - i);
    }
    hn::Store(sum, di, lanes + r * kGroup);
  }
  if (sums != nullptr) reduce_rows(di, lanes, sums, [](VI x, VI y) HWY_ATTR { return hn::Add(x, y); });
}

}  // namespace intfa::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
