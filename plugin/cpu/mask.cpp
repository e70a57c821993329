// Rows of the attention mask, whatever its type and strides.
#include <cfloat>
#include <cmath>
#include <cstring>

#include "cpu/pack.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/mask.cpp"
// clang-format off: foreach_target.h comes first
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
#include "cpu/vector-inl.h"
// clang-format on
#include "core/numerics.h"

HWY_BEFORE_NAMESPACE();
namespace intfa::cpu::HWY_NAMESPACE {

// Mask values of 16 keys at a time: `load(j)` gives them as float32 in nats, -inf excluding a key.
template <typename Load>
HWY_INLINE bool mask_row(int64_t keys, float* HWY_RESTRICT out, Load load) {
  const DF d;
  const VF excluded = hn::Set(d, -INFINITY);
  VF max = excluded;
  for (int64_t j = 0; j < round_up(keys, kChunk); j += kLanes) {
    VF x = excluded;
    if (j < keys) {
      const VF value = load(j, HWY_MIN(static_cast<int64_t>(kLanes), keys - j));
      const VF scaled = hn::Max(hn::Mul(value, hn::Set(d, kLog2E)), hn::Set(d, -FLT_MAX));
      const auto attended =
          hn::And(hn::FirstN(d, HWY_MIN(static_cast<int64_t>(kLanes), keys - j)), hn::Not(hn::Eq(value, excluded)));
      x = hn::IfThenElse(attended, scaled, excluded);
    }
    hn::Store(x, d, out + j);
    max = hn::Max(max, x);
  }
  return hn::ReduceMax(d, max) != -INFINITY;
}

// Whether `bytes` bytes are all `value`.
HWY_INLINE bool all_bytes(const uint8_t* data, int64_t bytes, uint8_t value) {
  const hn::Repartition<uint8_t, DU> d;
  const auto wanted = hn::Set(d, value);
  const int64_t n = hn::MaxLanes(d);
  auto different = hn::Zero(d);
  int64_t i = 0;
  for (; i + n <= bytes; i += n) different = hn::Or(different, hn::Xor(hn::LoadU(d, data + i), wanted));
  if (i < bytes) different = hn::Or(different, hn::Xor(hn::LoadNOr(wanted, d, data + i, bytes - i), wanted));
  return hn::AllTrue(d, hn::Eq(different, hn::Zero(d)));
}

bool zero_mask_row(const MaskProblem& mask, const void* data, int64_t offset, int64_t first_key, int64_t keys) {
  if (mask.stride_key != 1 || first_key + keys > mask.seqlen_kv) return false;
  const uint8_t* bytes = static_cast<const uint8_t*>(data);
  offset += first_key;
  if (mask.dtype == DataType::kBool) return all_bytes(bytes + offset, keys, 1);
  if (mask.dtype == DataType::kFloat32) return all_bytes(bytes + offset * 4, keys * 4, 0);
  return false;
}

bool load_mask_row(const MaskProblem& mask, const void* data, int64_t offset, int64_t first_key, int64_t keys,
                   float* out) {
  const DF d;
  const DU du;
  keys = HWY_MAX(HWY_MIN(keys, mask.seqlen_kv - first_key), int64_t{0});
  offset += first_key * mask.stride_key;
  const int64_t step = mask.stride_key;
  // A strided or broadcast mask is gathered lane by lane; contiguous ones are loaded.
  HWY_ALIGN float lanes[kGroup];
  const auto gather = [&](int64_t j, int64_t n, auto value_at) {
    for (int64_t i = 0; i < n; ++i) lanes[i] = value_at(offset + (j + i) * step);
    return hn::Load(d, lanes);
  };
  memset(lanes, 0, sizeof lanes);
  switch (mask.dtype) {
    case DataType::kBool: {
      const uint8_t* bools = static_cast<const uint8_t*>(data);
      const hn::Rebind<uint8_t, DU> db;
      if (step == 1)
        return mask_row(keys, out, [&](int64_t j, int64_t n) {
          const auto zero = hn::Eq(hn::PromoteTo(du, hn::LoadN(db, bools + offset + j, n)), hn::Zero(du));
          return hn::IfThenElse(hn::RebindMask(d, zero), hn::Set(d, -INFINITY), hn::Zero(d));
        });
      return mask_row(keys, out, [&](int64_t j, int64_t n) {
        return gather(j, n, [&](int64_t at) { return bools[at] != 0 ? 0.f : -INFINITY; });
      });
    }
    case DataType::kFloat32: {
      const float* values = static_cast<const float*>(data);
      if (step == 1)
        return mask_row(keys, out, [&](int64_t j, int64_t n) { return hn::LoadN(d, values + offset + j, n); });
      return mask_row(keys, out,
                      [&](int64_t j, int64_t n) { return gather(j, n, [&](int64_t at) { return values[at]; }); });
    }
    case DataType::kFloat16: {
      const hwy::float16_t* values = static_cast<const hwy::float16_t*>(data);
      return mask_row(keys, out, [&](int64_t j, int64_t n) {
        return gather(j, n, [&](int64_t at) { return hwy::F32FromF16(values[at]); });
      });
    }
    default: {
      const hwy::bfloat16_t* values = static_cast<const hwy::bfloat16_t*>(data);
      return mask_row(keys, out, [&](int64_t j, int64_t n) {
        return gather(j, n, [&](int64_t at) { return hwy::F32FromBF16(values[at]); });
      });
    }
  }
}

}  // namespace intfa::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace intfa::cpu {

HWY_EXPORT(zero_mask_row);
HWY_EXPORT(load_mask_row);

MaskIsZeroFn mask_is_zero() { return HWY_DYNAMIC_POINTER(zero_mask_row); }
LoadMaskFn load_mask() { return HWY_DYNAMIC_POINTER(load_mask_row); }

}  // namespace intfa::cpu
#endif
