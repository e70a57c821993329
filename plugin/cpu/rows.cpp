// Query rows in, output rows out.
#include <cstring>

#include "cpu/pack.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/rows.cpp"
// clang-format off: foreach_target.h comes first
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
#include "cpu/quantize-inl.h"
#include "cpu/vector-inl.h"
// clang-format on
#include "core/numerics.h"

HWY_BEFORE_NAMESPACE();
namespace intfa::cpu::HWY_NAMESPACE {

// codes . x, summed in float64.
HWY_INLINE float dot_codes(const int8_t* codes, const float* x, int64_t n) {
  const DF d;
  const hn::Repartition<double, DF> dd;
  auto sum = hn::Zero(dd);
  for (int64_t i = 0; i < n; i += kLanes) {
    const VF c = load_at(codes, i, n);
    const VF v = hn::Load(d, x + i);
    sum = hn::MulAdd(hn::PromoteLowerTo(dd, c), hn::PromoteLowerTo(dd, v), sum);
    sum = hn::MulAdd(hn::PromoteUpperTo(dd, c), hn::PromoteUpperTo(dd, v), sum);
  }
  return static_cast<float>(hn::ReduceSum(dd, sum));
}

template <typename T>
void pack_query_rows(const AttentionProblem& p, const AttentionTensors& t, const PackedHead& head,
                     const QueryRows& rows, const Block& block) {
  const float scale = softmax_scale(p) * kLog2E;
  const bool is_static = p.q_scale != ScaleGranularity::kNone;
  const bool needs_offset = p.softcap != 0.f || t.lse != nullptr;
  const T* q = static_cast<const T*>(t.q) + rows.batch * p.q_strides.batch;
  RowGroup g;
  for (int first = 0; first < rows.rows; first += kRows) {
    const int count = HWY_MIN(kRows, rows.rows - first);
    int8_t* codes = block.q_codes + first * p.head_dim;
    memset(block.bad_row + first, 0, kRows);
    const RowPosition* at = rows.positions + first;
    load_rows([&](int r) { return q + at[r].head * p.q_strides.head + at[r].query * p.q_strides.token; }, count,
              p.head_dim, nullptr, g);
    clear_non_finite(p.head_dim, g, [&](int r) { block.bad_row[first + r] = 1; });
    if (is_static) {
      const bool per_head = p.q_scale == ScaleGranularity::kPerHead;
      const auto given = [&](int r) { return t.q_scale[per_head && r < count ? at[r].head : 0]; };
      for (int r = 0; r < kRows; ++r) g.scale[r] = std::is_same_v<T, int8_t> ? 1.f : given(r);
      encode_rows<true>(g, p.head_dim, codes, p.head_dim, block.q_sum + first);
      for (int r = 0; r < kRows; ++r) g.scale[r] = given(r);
    } else {
      find_scales<false>(g);
      encode_rows<false>(g, p.head_dim, codes, p.head_dim, block.q_sum + first);
    }
    for (int r = 0; r < kRows; ++r) block.row_factor[first + r] = g.scale[r] * scale;
    memset(block.row_offset + first, 0, kRows * sizeof(float));
    for (int r = 0; needs_offset && r < count; ++r)
      block.row_offset[first + r] =
          dot_codes(codes + r * p.head_dim, head.k_mean, p.head_dim) * block.row_factor[first + r];
    if (rows.q_scale != nullptr) memcpy(rows.q_scale + first, g.scale, count * sizeof(float));
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

template <typename T>
HWY_INLINE void store_typed(const AttentionProblem& p, const OutputRows& rows, T* y) {
  const DF d;
  const int64_t channels = p.head_dim_v, width = round_up(channels, kGroup);
  const TensorStrides strides = p.y_strides;
  const float* HWY_RESTRICT scale = rows.scale;
  y += rows.batch * strides.batch;
  for (int r = 0; r < rows.rows; ++r) {
    const RowPosition at = rows.positions[r];
    T* out = y + at.head * strides.head + at.query * strides.token;
    const float* from = rows.output + r * width;
    const VF inverse = hn::Set(d, 1.f / rows.divisor[r]);
    for (int64_t i = 0; i < channels; i += kLanes) {
      const VF value = hn::Mul(hn::Mul(hn::Load(d, from + i), inverse), hn::Load(d, scale + i));
      store_lanes(value, static_cast<size_t>(channels - i), out + i);
    }
  }
}

void store_some_rows(const AttentionProblem& p, const OutputRows& rows, void* y) {
  switch (p.output_dtype) {
    case DataType::kFloat16:
      return store_typed(p, rows, static_cast<hwy::float16_t*>(y));
    case DataType::kBFloat16:
      return store_typed(p, rows, static_cast<hwy::bfloat16_t*>(y));
    default:
      return store_typed(p, rows, static_cast<float*>(y));
  }
}

}  // namespace intfa::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace intfa::cpu {

HWY_EXPORT(pack_some_queries);
HWY_EXPORT(store_some_rows);

PackQueriesFn pack_queries() { return HWY_DYNAMIC_POINTER(pack_some_queries); }
StoreRowsFn store_rows() { return HWY_DYNAMIC_POINTER(store_some_rows); }

}  // namespace intfa::cpu
#endif
