// Quantizing and packing with Highway. Every tensor type is read through one row of float32 scratch.
#include "cpu/pack.h"

#include <cmath>
#include <cstring>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/pack.cpp"
// clang-format off: foreach_target.h comes first
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
#include "cpu/vector-inl.h"
// clang-format on
#include "core/numerics.h"
#include "cpu/softmax.h"

HWY_BEFORE_NAMESPACE();
namespace intfa::cpu::HWY_NAMESPACE {

constexpr uint32_t kMagnitude = 0x7fffffffu;
constexpr uint32_t kInfinity = 0x7f800000u;

// Largest magnitude of a padded row, as float bits: bits order magnitudes, and infinities and NaNs come out on top.
HWY_INLINE uint32_t amax_bits(const float* HWY_RESTRICT row, int64_t n) {
  const DF d;
  const DU du;
  auto max = hn::Zero(du);
  for (int64_t i = 0; i < n; i += kLanes)
    max = hn::Max(max, hn::And(hn::BitCast(du, hn::Load(d, row + i)), hn::Set(du, kMagnitude)));
  return hn::ReduceMax(du, max);
}

HWY_INLINE float from_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// Stores rint(x) as codes, clamped.
HWY_INLINE void store_codes(VF x, int8_t* codes) {
  const DF d;
  const hn::Rebind<int8_t, DI> db;
  const VF clamped = hn::Min(hn::Max(x, hn::Set(d, -kMaxCode)), hn::Set(d, kMaxCode));
  hn::StoreU(hn::DemoteTo(db, hn::NearestInt(clamped)), db, codes);
}

// codes[i] = rint(row[i] * inverse).
HWY_INLINE void quantize_row(const float* HWY_RESTRICT row, int64_t n, float inverse, int8_t* HWY_RESTRICT codes) {
  const DF d;
  for (int64_t i = 0; i < n; i += kLanes) store_codes(hn::Mul(hn::Load(d, row + i), hn::Set(d, inverse)), codes + i);
}

// codes[i] = rint(row[i] / scale), for scales from calibration.
HWY_INLINE void quantize_row_static(const float* HWY_RESTRICT row, int64_t n, float scale, int8_t* HWY_RESTRICT codes) {
  const DF d;
  for (int64_t i = 0; i < n; i += kLanes) store_codes(hn::Div(hn::Load(d, row + i), hn::Set(d, scale)), codes + i);
}

// Rows of K or V of one head: past tokens first, then new ones.
template <typename T>
struct TokenRows {
  const T* past;
  const T* fresh;
  int64_t seqlen_past, token_stride, channels;

  const T* operator()(int64_t j) const {
    return j < seqlen_past ? past + j * channels : fresh + (j - seqlen_past) * token_stride;
  }
};

template <typename T>
TokenRows<T> token_rows(const void* past, const void* fresh, const AttentionProblem& p, const TensorStrides& strides,
                        int64_t channels, int64_t batch, int64_t kv_head) {
  const T* past_rows = static_cast<const T*>(past);
  const T* fresh_rows = static_cast<const T*>(fresh);
  if (past_rows != nullptr) past_rows += (batch * p.kv_num_heads + kv_head) * p.seqlen_past * channels;
  if (fresh_rows != nullptr) fresh_rows += batch * strides.batch + kv_head * strides.head;
  return {past_rows, fresh_rows, p.seqlen_past, strides.token, channels};
}

template <typename T>
void copy_present(const TokenRows<T>& rows, const AttentionProblem& p, int64_t batch, int64_t kv_head, void* present) {
  if (present == nullptr) return;
  T* out = static_cast<T*>(present) + (batch * p.kv_num_heads + kv_head) * p.seqlen_kv() * rows.channels;
  for (int64_t j = 0; j < p.seqlen_kv(); ++j) memcpy(out + j * rows.channels, rows(j), rows.channels * sizeof(T));
}

float static_scale(const float* scale, ScaleGranularity granularity, int64_t head) {
  return scale[granularity == ScaleGranularity::kPerTensor ? 0 : head];
}

// Channel means of the finite tokens among the first `valid`, summed in float64.
template <typename T>
void mean_of_keys(const TokenRows<T>& k, int64_t valid, float* HWY_RESTRICT row, float* mean) {
  const DF d;
  const hn::Repartition<double, DF> dd;
  const int64_t n = round_up(k.channels, kGroup);
  HWY_ALIGN double sum[kMaxHeadDim] = {};
  int64_t count = 0;
  for (int64_t j = 0; j < valid; ++j) {
    load_row(k(j), k.channels, row);
    if (amax_bits(row, n) >= kInfinity) continue;
    ++count;
    for (int64_t i = 0; i < n; i += kLanes) {
      const VF x = hn::Load(d, row + i);
      double* s = sum + i;
      hn::Store(hn::Add(hn::Load(dd, s), hn::PromoteLowerTo(dd, x)), dd, s);
      hn::Store(hn::Add(hn::Load(dd, s + kLanes / 2), hn::PromoteUpperTo(dd, x)), dd, s + kLanes / 2);
    }
  }
  for (int64_t i = 0; i < n; ++i) mean[i] = count > 0 ? static_cast<float>(sum[i] / static_cast<double>(count)) : 0.f;
}

// 16 rows of D codes, one per key -> [D/4][16 keys][4 channels], codes + 128.
HWY_INLINE void interleave_keys(const int8_t* HWY_RESTRICT rows, int64_t head_dim, uint8_t* HWY_RESTRICT out) {
  for (int key = 0; key < kGroup; ++key) {
    const int8_t* row = rows + key * kMaxHeadDim;
    for (int64_t c = 0; c < head_dim / 4; ++c) {
      uint32_t word;
      memcpy(&word, row + 4 * c, 4);
      word ^= 0x80808080u;
      memcpy(out + c * (4 * kGroup) + 4 * key, &word, 4);
    }
  }
}

template <typename T>
void pack_keys(const AttentionProblem& p, const AttentionTensors& t, const Layout& layout, int64_t batch,
               int64_t kv_head, const PackedHead& head, int64_t valid) {
  const DF d;
  const TokenRows<T> k = token_rows<T>(t.past_key, t.k, p, p.k_strides, p.head_dim, batch, kv_head);
  copy_present(k, p, batch, kv_head, t.present_key);
  const int64_t n = round_up(p.head_dim, kGroup);
  HWY_ALIGN float row[kMaxHeadDim];
  memset(head.k_mean, 0, kMaxHeadDim * sizeof(float));
  const bool is_static = p.k_scale != ScaleGranularity::kNone;
  const bool smooth = p.smooth_k && p.scheme == Scheme::kTile && !is_static;
  if (smooth) mean_of_keys(k, valid, row, head.k_mean);

  // The row of key j, smoothed; returns its amax. A non-finite key counts as zeros.
  const auto load_key = [&](int64_t j) -> float {
    load_row(k(j), p.head_dim, row);
    const uint32_t bits = amax_bits(row, n);
    if (bits >= kInfinity) {
      head.bad[layout.tile_stride * (j / layout.tile_n) + j % layout.tile_n] |= kBadK;
      *head.any_bad |= kBadK;
      memset(row, 0, sizeof row);
    }
    if (!smooth) return from_bits(amax_bits(row, n));
    for (int64_t i = 0; i < n; i += kLanes)
      hn::Store(hn::Sub(hn::Load(d, row + i), hn::Load(d, head.k_mean + i)), d, row + i);
    return from_bits(amax_bits(row, n));
  };

  HWY_ALIGN int8_t codes[kGroup * kMaxHeadDim];
  for (int64_t tile = 0; tile * layout.tile_n < valid; ++tile) {
    const int64_t first = tile * layout.tile_n;
    const int64_t keys = HWY_MIN(layout.tile_n, valid - first);
    float group_amax[4] = {};
    if (p.k_granularity == KGranularity::kGroup && !is_static)
      for (int64_t j = 0; j < keys; ++j) {
        float& amax = group_amax[j % 8 / 2];
        amax = HWY_MAX(amax, load_key(first + j));
      }
    for (int64_t j = 0; j < round_up(keys, kChunk); ++j) {
      const int64_t packed = tile * layout.tile_stride + j;
      int8_t* key_codes = codes + j % kGroup * kMaxHeadDim;
      if (j >= keys) {
        memset(key_codes, 0, n);
        head.k_scale[packed] = 0.f;
      } else {
        const float amax = load_key(first + j);
        if (is_static) {
          const float scale = static_scale(t.k_scale, p.k_scale, kv_head);
          head.k_scale[packed] = scale;
          quantize_row_static(row, n, std::is_same_v<T, int8_t> ? 1.f : scale, key_codes);
        } else {
          const Quantizer q = k_quantizer(p.k_granularity == KGranularity::kGroup ? group_amax[j % 8 / 2] : amax);
          head.k_scale[packed] = q.scale;
          quantize_row(row, n, q.inverse, key_codes);
        }
      }
      if (j % kGroup == kGroup - 1)
        interleave_keys(codes, p.head_dim, head.k_codes + (packed - (kGroup - 1)) * p.head_dim);
    }
  }
}

// amax of every channel over the finite values of the first `valid` tokens.
template <typename T>
void amax_of_values(const TokenRows<T>& v, int64_t valid, float* HWY_RESTRICT row, float* amax) {
  const DF d;
  const DU du;
  const int64_t n = round_up(v.channels, kGroup);
  memset(amax, 0, n * sizeof(float));
  for (int64_t j = 0; j < valid; ++j) {
    load_row(v(j), v.channels, row);
    for (int64_t i = 0; i < n; i += kLanes) {
      const auto bits = hn::And(hn::BitCast(du, hn::Load(d, row + i)), hn::Set(du, kMagnitude));
      const auto finite = hn::IfThenElseZero(hn::Lt(bits, hn::Set(du, kInfinity)), bits);
      const auto max = hn::Max(hn::BitCast(du, hn::Load(d, amax + i)), finite);
      hn::Store(hn::BitCast(d, max), d, amax + i);
    }
  }
}

// The scale of every channel of V, and the inverse that its codes are made with (not set for static scales).
template <typename T>
void scales_of_values(const AttentionProblem& p, const AttentionTensors& t, const TokenRows<T>& v, int64_t valid,
                      int64_t kv_head, float* row, float* scale, float* inverse) {
  const int64_t n = round_up(v.channels, kGroup);
  if (p.v_scale != ScaleGranularity::kNone) {
    for (int64_t c = 0; c < n; ++c) {
      const bool per_channel = p.v_scale == ScaleGranularity::kPerChannel;
      scale[c] = c >= v.channels ? 1.f
                 : per_channel   ? t.v_scale[kv_head * v.channels + c]
                                 : static_scale(t.v_scale, p.v_scale, kv_head);
    }
    return;
  }
  HWY_ALIGN float amax[kMaxHeadDim];
  amax_of_values(v, valid, row, amax);
  if (p.scheme == Scheme::kPaper) {  // one scale for the head
    float all = 0.f;
    for (int64_t c = 0; c < n; ++c) all = HWY_MAX(all, amax[c]);
    for (int64_t c = 0; c < n; ++c) amax[c] = all;
  }
  for (int64_t c = 0; c < n; ++c) {
    const Quantizer q = quantizer(amax[c]);
    scale[c] = q.scale;
    inverse[c] = q.inverse;
  }
}

// Clears the values of a row whose magnitude is not below `limit`, NaNs too; returns whether there were any.
HWY_INLINE bool clear_from(float limit, float* row, int64_t n) {
  if (from_bits(amax_bits(row, n)) < limit) return false;
  for (int64_t i = 0; i < n; ++i)
    if (!(std::fabs(row[i]) < limit)) row[i] = 0.f;
  return true;
}

template <typename T>
void pack_values(const AttentionProblem& p, const AttentionTensors& t, const Layout& layout, int64_t batch,
                 int64_t kv_head, const PackedHead& head, int64_t valid) {
  const DF d;
  const hn::Rebind<hwy::float16_t, DF> dh;
  const hn::FixedTag<int8_t, kGroup> d16;
  const TokenRows<T> v = token_rows<T>(t.past_value, t.v, p, p.v_strides, p.head_dim_v, batch, kv_head);
  copy_present(v, p, batch, kv_head, t.present_value);
  const int64_t n = layout.padded_channels();
  const bool half = p.precision == Precision::kInt8QK;
  HWY_ALIGN float row[kMaxHeadDim];
  HWY_ALIGN float inverse[kMaxHeadDim];
  HWY_ALIGN int8_t codes[4 * kMaxHeadDim];
  constexpr bool kIsCode = std::is_same_v<T, int8_t>;
  const bool is_static = p.v_scale != ScaleGranularity::kNone;
  HWY_ALIGN float scale[kMaxHeadDim];
  if (!half || kIsCode) scales_of_values(p, t, v, valid, kv_head, row, scale, inverse);
  for (int64_t c = 0; c < n; ++c) head.v_scale[c] = half && !kIsCode ? 1.f : scale[c];
  uint8_t order[kChunk / 4], place[kChunk / 4];
  quad_order(order);
  for (int w = 0; w < kChunk / 4; ++w) place[order[w]] = w;

  for (int64_t tile = 0; tile * layout.tile_n < valid; ++tile) {
    const int64_t first = tile * layout.tile_n;
    const int64_t keys = HWY_MIN(layout.tile_n, valid - first);
    for (int64_t j = 0; j < round_up(keys, kChunk); ++j) {
      const int64_t packed = tile * layout.tile_stride + j;
      if (j < keys) {
        load_row(v(first + j), v.channels, row);
        if (clear_from(half ? kHalfOverflow : INFINITY, row, n)) {
          head.bad[packed] |= kBadV;
          *head.any_bad |= kBadV;
        }
      } else {
        memset(row, 0, n * sizeof(float));
      }
      if (half) {
        for (int64_t i = 0; i < n; i += kLanes) {
          VF x = hn::Load(d, row + i);
          if (kIsCode) x = hn::Max(x, hn::Set(d, -kMaxCode));
          hn::Store(hn::PromoteTo(d, hn::DemoteTo(dh, x)), d, head.v_float + packed * n + i);
        }
        continue;
      }
      int8_t* key_codes = codes + j % 4 * kMaxHeadDim;
      for (int64_t i = 0; i < n; i += kLanes) {
        const VF x = hn::Load(d, row + i);
        store_codes(kIsCode     ? x
                    : is_static ? hn::Div(x, hn::Load(d, scale + i))
                                : hn::Mul(x, hn::Load(d, inverse + i)),
                    key_codes + i);
      }
      if (j % 4 != 3) continue;
      int8_t* chunk = head.v_codes + (packed - packed % kChunk) * n;
      for (int64_t g = 0; g < layout.channel_groups; ++g) {
        const auto load = [&](int key) { return hn::LoadU(d16, codes + key * kMaxHeadDim + g * kGroup); };
        hn::StoreInterleaved4(load(0), load(1), load(2), load(3), d16,
                              chunk + g * (kGroup * kChunk) + place[j % kChunk / 4] * (4 * kGroup));
      }
    }
  }
}

template <typename T>
void pack_head_of(const AttentionProblem& p, const AttentionTensors& t, const Layout& layout, int64_t batch,
                  int64_t kv_head, const PackedHead& head) {
  const int64_t valid = valid_keys(p, t.nonpad_kv_seqlen, batch);
  memset(head.bad, 0, layout.padded_keys);
  *head.any_bad = 0;
  pack_keys<T>(p, t, layout, batch, kv_head, head, valid);
  pack_values<T>(p, t, layout, batch, kv_head, head, valid);
}

void pack_one_head(const AttentionProblem& p, const AttentionTensors& t, const Layout& layout, int64_t batch,
                   int64_t kv_head, const PackedHead& head) {
  switch (p.dtype) {
    case DataType::kFloat16:
      return pack_head_of<hwy::float16_t>(p, t, layout, batch, kv_head, head);
    case DataType::kBFloat16:
      return pack_head_of<hwy::bfloat16_t>(p, t, layout, batch, kv_head, head);
    case DataType::kInt8:
      return pack_head_of<int8_t>(p, t, layout, batch, kv_head, head);
    default:
      return pack_head_of<float>(p, t, layout, batch, kv_head, head);
  }
}

HWY_INLINE int32_t sum_codes(const int8_t* codes, int64_t n) {
  const DI di;
  const hn::Rebind<int8_t, DI> db;
  VI sum = hn::Zero(di);
  for (int64_t i = 0; i < n; i += kLanes) sum = hn::Add(sum, hn::PromoteTo(di, hn::LoadU(db, codes + i)));
  return hn::ReduceSum(di, sum);
}

// codes . x, summed in float64.
HWY_INLINE float dot_codes(const int8_t* codes, const float* x, int64_t n) {
  const DF d;
  const DI di;
  const hn::Repartition<double, DF> dd;
  const hn::Rebind<int8_t, DI> db;
  auto sum = hn::Zero(dd);
  for (int64_t i = 0; i < n; i += kLanes) {
    const VF c = hn::ConvertTo(d, hn::PromoteTo(di, hn::LoadU(db, codes + i)));
    const VF v = hn::Load(d, x + i);
    sum = hn::MulAdd(hn::PromoteLowerTo(dd, c), hn::PromoteLowerTo(dd, v), sum);
    sum = hn::MulAdd(hn::PromoteUpperTo(dd, c), hn::PromoteUpperTo(dd, v), sum);
  }
  return static_cast<float>(hn::ReduceSum(dd, sum));
}

template <typename T>
void pack_query_rows(const AttentionProblem& p, const AttentionTensors& t, const PackedHead& head,
                     const QueryRows& rows, const Block& block) {
  const int64_t n = round_up(p.head_dim, kGroup);
  const int64_t group = p.num_heads / p.kv_num_heads;
  const float scale = softmax_scale(p);
  const bool needs_offset = p.softcap != 0.f || t.lse != nullptr;
  HWY_ALIGN float row[kMaxHeadDim];
  HWY_ALIGN int8_t codes[kMaxHeadDim];
  for (int r = 0; r < round_up(rows.rows, kRows); ++r) {
    int8_t* out = block.q_codes + r * p.head_dim;
    block.bad_row[r] = 0;
    if (r >= rows.rows) {
      memset(out, 0, p.head_dim);
      block.q_sum[r] = 0;
      continue;
    }
    const int64_t q_head = rows.kv_head * group + (rows.first_row + r) / p.seqlen_q;
    const int64_t i = (rows.first_row + r) % p.seqlen_q;
    load_row(
        static_cast<const T*>(t.q) + rows.batch * p.q_strides.batch + q_head * p.q_strides.head + i * p.q_strides.token,
        p.head_dim, row);
    const uint32_t bits = amax_bits(row, n);
    if (bits >= kInfinity) {
      block.bad_row[r] = 1;
      memset(row, 0, sizeof row);
    }
    Quantizer q = quantizer(bits >= kInfinity ? 0.f : from_bits(bits));
    if (p.q_scale != ScaleGranularity::kNone) {
      q.scale = static_scale(t.q_scale, p.q_scale, q_head);
      quantize_row_static(row, n, std::is_same_v<T, int8_t> ? 1.f : q.scale, codes);
    } else {
      quantize_row(row, n, q.inverse, codes);
    }
    memcpy(out, codes, p.head_dim);
    block.q_sum[r] = sum_codes(codes, n);
    block.row_factor[r] = q.scale * (scale * kLog2E);
    block.row_offset[r] = needs_offset ? dot_codes(codes, head.k_mean, n) * block.row_factor[r] : 0.f;
    if (rows.q_scale != nullptr) rows.q_scale[r] = q.scale;
  }
}

void pack_some_queries(const AttentionProblem& p, const AttentionTensors& t, const PackedHead& head,
                       const QueryRows& rows, const Block& block) {
  switch (p.dtype) {
    case DataType::kFloat16:
      return pack_query_rows<hwy::float16_t>(p, t, head, rows, block);
    case DataType::kBFloat16:
      return pack_query_rows<hwy::bfloat16_t>(p, t, head, rows, block);
    case DataType::kInt8:
      return pack_query_rows<int8_t>(p, t, head, rows, block);
    default:
      return pack_query_rows<float>(p, t, head, rows, block);
  }
}

void normalize_one_row(float* row, int64_t n, float sum, const float* scale) {
  const DF d;
  for (int64_t i = 0; i < n; i += kLanes) {
    const VF y = hn::Mul(hn::Div(hn::Load(d, row + i), hn::Set(d, sum)), hn::Load(d, scale + i));
    hn::Store(y, d, row + i);
  }
}

void store_one_output(const float* row, int64_t n, DataType dtype, void* out, int64_t offset) {
  switch (dtype) {
    case DataType::kFloat16:
      return store_row(row, n, static_cast<hwy::float16_t*>(out) + offset);
    case DataType::kBFloat16:
      return store_row(row, n, static_cast<hwy::bfloat16_t*>(out) + offset);
    default:
      return store_row(row, n, static_cast<float*>(out) + offset);
  }
}

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

HWY_EXPORT(pack_one_head);
HWY_EXPORT(pack_some_queries);
HWY_EXPORT(normalize_one_row);
HWY_EXPORT(store_one_output);
HWY_EXPORT(load_mask_row);

PackHeadFn pack_head() { return HWY_DYNAMIC_POINTER(pack_one_head); }
PackQueriesFn pack_queries() { return HWY_DYNAMIC_POINTER(pack_some_queries); }
NormalizeRowFn normalize_row() { return HWY_DYNAMIC_POINTER(normalize_one_row); }
StoreOutputFn store_output() { return HWY_DYNAMIC_POINTER(store_one_output); }
LoadMaskFn load_mask() { return HWY_DYNAMIC_POINTER(load_mask_row); }

}  // namespace intfa::cpu
#endif
