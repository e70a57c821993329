// Packing of K and V: statistics over all tokens of a head, then codes in the layouts of the products.
#include "cpu/pack.h"

#include <cmath>
#include <cstring>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/pack.cpp"
// clang-format off: foreach_target.h comes first
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
#include "cpu/quantize-inl.h"
#include "cpu/vector-inl.h"
// clang-format on
#include "core/numerics.h"
#include "cpu/softmax.h"
#include "cpu/tokens.h"

HWY_BEFORE_NAMESPACE();
namespace intfa::cpu::HWY_NAMESPACE {

// Asks for the rows of `count` tokens from j on, of `valid` ones: a tile that is packed only when its turn comes lies
// in pages of its own, to which the processor's prefetcher does not run ahead.
// Into the second level, which was the faster of the two over long caches (AVX-512, Zen 5).
template <typename T>
HWY_INLINE void prefetch_rows(const TokenRows<T>& rows, int64_t j, int64_t count, int64_t valid) {
  constexpr int64_t kLine = 64 / sizeof(T);
  const T* row = rows(j);
  const int64_t channels = rows.channels, stride = j < rows.seqlen_past ? channels : rows.token_stride;
  for (const int64_t end = HWY_MIN(j + count, valid); j < end; ++j, row += stride)
    for (int64_t i = 0; i < channels; i += kLine) __builtin_prefetch(row + i, 0, 2);
}

// Tokens [first, last) into the cache that comes out.
template <typename T>
void copy_tokens(const TokenRows<T>& rows, const AttentionProblem& p, int64_t batch, int64_t kv_head, int64_t first,
                 int64_t last, void* present) {
  if (present == nullptr) return;
  T* out = static_cast<T*>(present) + (batch * p.kv_num_heads + kv_head) * p.seqlen_kv() * rows.channels;
  const auto copy = [&](int64_t j, int64_t count) {
    memcpy(out + j * rows.channels, rows(j), count * rows.channels * sizeof(T));
  };
  const int64_t past = HWY_MIN(last, rows.seqlen_past);
  if (first < past) copy(first, past - first);
  first = HWY_MAX(first, past);
  if (rows.token_stride == rows.channels) {
    if (first < last) copy(first, last - first);
  } else {
    for (int64_t j = first; j < last; ++j) copy(j, 1);
  }
}

// Calls visit(first token, end, first channel, number of vectors as a constant) for all channels of tokens [first,
// last), four vectors at a time where there are as many: a walk over the tokens then keeps its results in registers.
// By blocks of tokens, whose rows are in the cache when the next channels' turn comes.
template <typename Visit>
HWY_INLINE void for_columns(int64_t first, int64_t last, int64_t channels, Visit visit) {
  constexpr int64_t kTokens = 32;
  for (int64_t j = first; j < last; j += kTokens) {
    const int64_t end = HWY_MIN(j + kTokens, last);
    int64_t i = 0;
    for (; i + 4 * kLanes <= channels; i += 4 * kLanes) visit(j, end, i, std::integral_constant<int, 4>());
    for (; i < channels; i += kLanes) visit(j, end, i, std::integral_constant<int, 1>());
  }
}

// Vector v of kV from channel i of a row of n; of four all are within the row. Asks for what lies `ahead` elements on.
template <int kV, typename T>
HWY_INLINE VF load_column(const T* row, int64_t i, int v, int64_t n, int64_t ahead) {
  const T* from = row + i + v * kLanes;
  if (v * kLanes * sizeof(T) % 64 == 0) __builtin_prefetch(from + ahead, 0, 2);
  return kV == 4 ? load_lanes(from) : load_at(row, i, n);
}

using DD = hn::Repartition<double, DF>;

HWY_INLINE void store_means(const double* sum, int64_t count, float* mean) {
  for (int l = 0; l < kLanes; ++l) mean[l] = static_cast<float>(sum[l] / static_cast<double>(count));
}

// How many tokens ahead of the one at hand the statistics ask for rows.
constexpr int64_t kTokensAhead = 32;

// Channel means of the first `valid` tokens, summed in float64; false if one of them is not finite.
template <typename T>
bool mean_of_keys(const TokenRows<T>& k, int64_t valid, float* HWY_RESTRICT mean) {
  const DD dd;
  HWY_ALIGN double sums[kMaxHeadDim] = {};  // in every vector's lanes the lower half comes first
  for_columns(0, valid, k.channels, [&](int64_t j, int64_t end, int64_t i, auto vectors) HWY_ATTR {
    constexpr int kV = decltype(vectors)::value;
    const int64_t ahead = kTokensAhead * k.stride_at(j);
    hn::Vec<DD> sum[2 * kV];
    for (int h = 0; h < 2 * kV; ++h) sum[h] = hn::Load(dd, sums + i + h * (kLanes / 2));
    for (; j < end; ++j) {
      const T* row = k(j);
      for (int v = 0; v < kV; ++v) {
        const VF x = load_column<kV>(row, i, v, k.channels, ahead);
        sum[2 * v] = hn::Add(sum[2 * v], hn::PromoteLowerTo(dd, x));
        sum[2 * v + 1] = hn::Add(sum[2 * v + 1], hn::PromoteUpperTo(dd, x));
      }
    }
    for (int h = 0; h < 2 * kV; ++h) hn::Store(sum[h], dd, sums + i + h * (kLanes / 2));
  });
  bool finite = true;
  // a sum in float64 of float32 values is finite where all of them are
  for (int64_t i = 0; i < k.channels; ++i) finite &= std::isfinite(sums[i]);
  for (int64_t i = 0; i < k.channels; i += kLanes) store_means(sums + i, valid, mean + i);
  return finite;
}

// The same over the finite ones among them.
template <typename T>
void mean_of_finite_keys(const TokenRows<T>& k, int64_t valid, float* HWY_RESTRICT mean) {
  const DU du;
  double sum[kMaxHeadDim] = {};
  int64_t count = 0;
  for (int64_t j = 0; j < valid; ++j) {
    HWY_ALIGN float row[kMaxHeadDim] = {};
    auto max = hn::Zero(du);
    for (int64_t i = 0; i < k.channels; i += kLanes) {
      const VF x = load_at(k(j), i, k.channels);
      hn::Store(x, DF(), row + i);
      max = hn::Max(max, magnitude(x));
    }
    if (hn::ReduceMax(du, max) >= kInfinity) continue;
    ++count;
    for (int64_t i = 0; i < k.channels; ++i) sum[i] += static_cast<double>(row[i]);
  }
  for (int64_t i = 0; i < k.channels; i += kLanes) store_means(sum + i, HWY_MAX(count, int64_t{1}), mean + i);
}

// Block b of the vector: 16 bytes at rows[step * b] + offset; with kHalf 8 of them and zeros, as a head size is a
// multiple of 8.
template <bool kHalf>
HWY_INLINE hn::Vec<DB> gather_blocks(const int8_t* const* rows, int step, int64_t offset) {
  const DB d;
  const hn::FixedTag<int8_t, 16> d128;
  const auto block = [&](int b) HWY_ATTR {
    const int8_t* from = rows[step * b] + offset;
    return kHalf ? hn::LoadN(d128, from, 8) : hn::LoadU(d128, from);
  };
  auto all = hn::ResizeBitCast(d, block(0));
#if HWY_TARGET <= HWY_AVX3
  all = hn::InsertBlock<1>(all, block(1));
  all = hn::InsertBlock<2>(all, block(2));
  all = hn::InsertBlock<3>(all, block(3));
#elif HWY_TARGET <= HWY_AVX2
  all = hn::InsertBlock<1>(all, block(1));
#endif
  return all;
}

// 16 rows of codes, one per key -> [D/4][16 keys][4 channels], codes + 128; by blocks of 4 keys x 16 channels, as many
// at once as a vector has blocks. A code of -128 becomes -127.
HWY_INLINE void interleave_keys(const int8_t* const* rows, int64_t head_dim, uint8_t* HWY_RESTRICT out) {
  const DU d;
  const hn::Repartition<uint64_t, DU> d64;
  const DB d8;
  const auto flip = hn::Set(d, 0x80808080u);
  const auto lowest = hn::Set(d8, int8_t{-127});
  const auto interleave = [&](int key, int64_t c, auto half) HWY_ATTR {
    constexpr bool kHalf = decltype(half)::value;
    const auto row = [&](int i) HWY_ATTR {
      return hn::Xor(hn::BitCast(d, hn::Max(gather_blocks<kHalf>(rows + key + i, 4, c), lowest)), flip);
    };
    const auto r0 = row(0), r1 = row(1), r2 = row(2), r3 = row(3);
    const auto low01 = hn::BitCast(d64, hn::InterleaveLower(d, r0, r1));
    const auto low23 = hn::BitCast(d64, hn::InterleaveLower(d, r2, r3));
    uint8_t* to = out + c * kGroup + key * 4;
    const auto store = [&](auto v, int quad) HWY_ATTR {
      hn::Store(hn::BitCast(d, v), d, reinterpret_cast<uint32_t*>(to + quad * (4 * kGroup)));
    };
    store(hn::InterleaveLower(d64, low01, low23), 0);
    store(hn::InterleaveUpper(d64, low01, low23), 1);
    if constexpr (kHalf) return;
    const auto high01 = hn::BitCast(d64, hn::InterleaveUpper(d, r0, r1));
    const auto high23 = hn::BitCast(d64, hn::InterleaveUpper(d, r2, r3));
    store(hn::InterleaveLower(d64, high01, high23), 2);
    store(hn::InterleaveUpper(d64, high01, high23), 3);
  };
  const int64_t whole = head_dim / 16 * 16;
  for (int key = 0; key < kGroup; key += kLanes) {
    for (int64_t c = 0; c < whole; c += 16) interleave(key, c, std::false_type());
    if (whole < head_dim) interleave(key, whole, std::true_type());
  }
}

bool smooths_keys(const AttentionProblem& p) {
  return p.smooth_k && p.scheme == Scheme::kTile && p.k_scale == ScaleGranularity::kNone;
}

template <typename T>
void prepare_keys(const AttentionProblem& p, const AttentionTensors& t, int64_t batch, int64_t kv_head,
                  const PackedHead& head, int64_t valid) {
  const TokenRows<T> k = key_rows<T>(p, t, batch, kv_head);
  memset(head.k_mean, 0, kMaxHeadDim * sizeof(float));
  if (smooths_keys(p) && valid > 0 && !mean_of_keys(k, valid, head.k_mean)) mean_of_finite_keys(k, valid, head.k_mean);
}

float given_k_scale(const AttentionProblem& p, const AttentionTensors& t, int64_t kv_head) {
  return t.k_scale[p.k_scale == ScaleGranularity::kPerTensor ? 0 : kv_head];
}

// Keys [first, first + keys) as tile `tile`.
template <typename T>
void pack_keys(const AttentionProblem& p, const AttentionTensors& t, const Layout& layout, int64_t batch,
               int64_t kv_head, const PackedHead& head, int64_t first, int64_t keys, int64_t packed) {
  const TokenRows<T> k = key_rows<T>(p, t, batch, kv_head);
  const bool is_static = p.k_scale != ScaleGranularity::kNone;
  const bool grouped = p.k_granularity == KGranularity::kGroup && !is_static;
  const bool smooth = smooths_keys(p);
  RowGroup rows;
  // Keys [j, j + count) of the tile.
  const auto load = [&](int64_t j, int64_t count) {
    const auto row_at = [&](int r) {
      if (!layout.whole_heads) prefetch_rows(k, first + j + r + layout.tile_n, 1, p.seqlen_kv());
      return k(first + j + r);
    };
    load_rows(row_at, static_cast<int>(count), p.head_dim, smooth ? head.k_mean : nullptr, rows);
    clear_non_finite(p.head_dim, rows, [&](int r) {
      head.bad[layout.bad_index(first + j + r)] |= kBadK;
      *head.any_bad |= kBadK;
    });
  };
  uint32_t group_amax[4] = {};
  for (int64_t j = 0; grouped && j < keys; j += kGroup) {
    load(j, HWY_MIN(int64_t{kGroup}, keys - j));
    for (int r = 0; r < kGroup; ++r) group_amax[r % 8 / 2] = HWY_MAX(group_amax[r % 8 / 2], rows.amax[r]);
  }
  const float given = is_static ? given_k_scale(p, t, kv_head) : 0.f;
  HWY_ALIGN int8_t codes[kGroup * kMaxHeadDim];
  const int8_t* code_rows[kGroup];
  for (int r = 0; r < kGroup; ++r) code_rows[r] = codes + r * kMaxHeadDim;
  for (int64_t j = 0; j < round_up(keys, kChunk); j += kGroup) {
    const int64_t count = HWY_MAX(HWY_MIN(int64_t{kGroup}, keys - j), int64_t{0});
    if constexpr (std::is_same_v<T, int8_t>) {  // codes already
      if (!layout.whole_heads) prefetch_rows(k, first + j + layout.tile_n, kGroup, p.seqlen_kv());
      for (int r = 0; r < count; ++r) code_rows[r] = k(first + j + r);
      for (int64_t r = count; r < kGroup; ++r) code_rows[r] = kZeros<T>;
    } else {
      load(j, count);
      for (int r = 0; grouped && r < kGroup; ++r) rows.amax[r] = group_amax[r % 8 / 2];
      if (is_static) {
        for (float& scale : rows.scale) scale = given;
      } else {
        find_scales<true>(rows);
      }
      const auto encode = is_static ? encode_rows<true> : encode_rows<false>;
      encode(rows, p.head_dim, codes, kMaxHeadDim, nullptr);
    }
    if (is_static)
      for (float& scale : rows.scale) scale = round_up_22_bits(given);
    float* k_scale = head.k_scale + packed + j;
    for (int r = 0; r < kGroup; ++r) k_scale[r] = r < count ? rows.scale[r] : 0.f;  // 0 makes the scores zeros
    interleave_keys(code_rows, p.head_dim, head.k_codes + (packed + j) * p.head_dim);
  }
}

// amax of every channel over tokens [first, last); with kClear of the magnitudes below `limit` only. Returns the
// largest of all, which without kClear tells whether all are finite.
template <bool kClear, typename T>
float amax_of_values(const TokenRows<T>& v, int64_t first, int64_t last, float limit, float* amax) {
  const DF d;
  const DU du;
  const auto bound = hn::BitCast(du, hn::Set(d, limit));
  const int64_t n = round_up(v.channels, kGroup);
  memset(amax, 0, n * sizeof(float));
  for_columns(first, last, v.channels, [&](int64_t j, int64_t end, int64_t i, auto vectors) HWY_ATTR {
    constexpr int kV = decltype(vectors)::value;
    const int64_t ahead = kTokensAhead * v.stride_at(j);
    hn::Vec<DU> max[kV];
    for (int u = 0; u < kV; ++u) max[u] = hn::BitCast(du, hn::Load(d, amax + i + u * kLanes));
    for (; j < end; ++j) {
      const T* row = v(j);
      for (int u = 0; u < kV; ++u) {
        auto x = magnitude(load_column<kV>(row, i, u, v.channels, ahead));
        if constexpr (kClear) x = hn::IfThenElseZero(hn::Lt(x, bound), x);
        max[u] = hn::Max(max[u], x);
      }
    }
    for (int u = 0; u < kV; ++u) hn::Store(hn::BitCast(d, max[u]), d, amax + i + u * kLanes);
  });
  auto largest = hn::Zero(du);
  for (int64_t i = 0; i < n; i += kLanes) largest = hn::Max(largest, hn::BitCast(du, hn::Load(d, amax + i)));
  const uint32_t bits = hn::ReduceMax(du, largest);
  float top;
  memcpy(&top, &bits, sizeof top);
  return top;
}

// The scale of every channel of V, and the inverse that its codes are made with (not set for static scales).
void scales_of_values(const AttentionProblem& p, const AttentionTensors& t, int64_t kv_head, float* amax, float* scale,
                      float* inverse) {
  const int64_t n = round_up(p.head_dim_v, kGroup);
  if (p.v_scale != ScaleGranularity::kNone) {
    for (int64_t c = 0; c < n; ++c) {
      const bool per_channel = p.v_scale == ScaleGranularity::kPerChannel;
      const int64_t given = per_channel                               ? kv_head * p.head_dim_v + c
                            : p.v_scale == ScaleGranularity::kPerHead ? kv_head
                                                                      : 0;
      scale[c] = c < p.head_dim_v ? t.v_scale[given] : 1.f;
    }
    return;
  }
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

// Where the values of V stop to be usable.
float value_limit(const AttentionProblem& p) { return p.precision == Precision::kInt8QK ? kHalfOverflow : INFINITY; }

// The rows of V of one tile, zeros after the last; with kClear only zeros are left of what is not below `limit`.
template <bool kClear, typename T>
struct ValueRows {
  const TokenRows<T>& v;
  int64_t first, keys;
  int64_t ahead, valid;  // how far ahead to prefetch, 0: not
  float limit;

  const T* row(int64_t j) const { return j < keys ? v(first + j) : kZeros<T>; }
  void prefetch(int64_t j, int64_t count) const {
    if (ahead != 0) prefetch_rows(v, first + j + ahead, count, valid);
  }
  // Channels [i, i + kLanes); kWhole: all of them are there
  template <bool kWhole>
  VF load(const T* row, int64_t i) const {
    const DF d;
    const VF x = kWhole ? load_lanes(row + i) : load_at(row, i, v.channels);
    return kClear ? hn::IfThenElseZero(hn::Lt(hn::Abs(x), hn::Set(d, limit)), x) : x;
  }
};

HWY_ALIGN constexpr int8_t kTranspose4[16] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};

// One tile of V: [channel_groups][16 quads][16 channels][4 keys] per chunk. encode(x, channel) gives codes.
template <class Rows, typename Encode>
HWY_INLINE void pack_value_codes(const Rows& rows, int64_t width, const uint8_t* place, int8_t* HWY_RESTRICT out,
                                 Encode encode) {
  const hn::Repartition<int16_t, DI> d16;
  const DB d8;
  // four keys' codes of four channels each stand one after the other in a block; their channels shall
  const auto by_channel = hn::LoadDup128(d8, kTranspose4);
  const int64_t whole = rows.v.channels / kLanes * kLanes;
  for (int64_t j = 0; j < round_up(rows.keys, kChunk); j += 4) {
    int8_t* chunk = out + j / kChunk * (kChunk * width) + place[j % kChunk / 4] * (4 * kGroup);
    rows.prefetch(j, 4);
    const auto *r0 = rows.row(j), *r1 = rows.row(j + 1), *r2 = rows.row(j + 2), *r3 = rows.row(j + 3);
    const auto pack = [&](int64_t i, auto is_whole) HWY_ATTR {
      const auto code = [&](const auto* row) HWY_ATTR {
        return nearest(encode(rows.template load<decltype(is_whole)::value>(row, i), i));
      };
      const auto ab = hn::ReorderDemote2To(d16, code(r0), code(r1)), ce = hn::ReorderDemote2To(d16, code(r2), code(r3));
      const auto codes = hn::TableLookupBytes(hn::ReorderDemote2To(d8, ab, ce), by_channel);
      hn::Store(codes, d8, chunk + i / kGroup * (kGroup * kChunk) + i % kGroup * 4);
    };
    int64_t i = 0;
    for (; i < whole; i += kLanes) pack(i, std::true_type());
    for (; i < width; i += kLanes) pack(i, std::false_type());
  }
}

// One tile of V in float16 precision: [keys][channels].
template <class Rows>
HWY_INLINE void pack_value_halves(const Rows& rows, int64_t width, bool is_code, float* HWY_RESTRICT out) {
  const DF d;
  const DF16 d16;
  for (int64_t j = 0; j < round_up(rows.keys, kChunk); ++j) {
    rows.prefetch(j, 1);
    const auto* row = rows.row(j);
    for (int64_t i = 0; i < width; i += kLanes) {
      const VF value = rows.template load<false>(row, i);
      const VF x = is_code ? hn::Max(value, hn::Set(d, -kMaxCode)) : value;
      hn::Store(hn::PromoteTo(d, hn::DemoteTo(d16, x)), d, out + j * width + i);
    }
  }
}

// 16 channels of four rows of codes -> [16 channels][4 keys]. A code of -128 becomes -127.
template <bool kHalf>
HWY_INLINE void interleave_values(const int8_t* const* rows, int64_t channel, int8_t* HWY_RESTRICT out) {
#if HWY_TARGET <= HWY_AVX3
  // block k: four words, one of each row; then their bytes as in pack_value_codes()
  HWY_ALIGN static constexpr int32_t kWord[16] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
  const DB d;
  const auto codes = hn::Max(gather_blocks<kHalf>(rows, 1, channel), hn::Set(d, int8_t{-127}));
  const auto words = hn::TableLookupLanes(hn::BitCast(DI(), codes), hn::SetTableIndices(DI(), kWord));
  hn::Store(hn::TableLookupBytes(hn::BitCast(d, words), hn::LoadDup128(d, kTranspose4)), d, out);
#else
  const hn::FixedTag<int8_t, kGroup> d;
  const auto load = [&](int key) HWY_ATTR {
    const int8_t* from = rows[key] + channel;
    return hn::Max(kHalf ? hn::LoadN(d, from, 8) : hn::LoadU(d, from), hn::Set(d, int8_t{-127}));
  };
  hn::StoreInterleaved4(load(0), load(1), load(2), load(3), d, out);
#endif
}

// The same from codes: whole bytes change places.
HWY_INLINE void pack_given_codes(const ValueRows<false, int8_t>& rows, int64_t width, const uint8_t* place,
                                 int8_t* HWY_RESTRICT out) {
  for (int64_t j = 0; j < round_up(rows.keys, kChunk); j += 4) {
    int8_t* chunk = out + j / kChunk * (kChunk * width) + place[j % kChunk / 4] * (4 * kGroup);
    rows.prefetch(j, 4);
    const int8_t* row[4] = {rows.row(j), rows.row(j + 1), rows.row(j + 2), rows.row(j + 3)};
    int64_t i = 0;
    for (; i + kGroup <= rows.v.channels; i += kGroup) interleave_values<false>(row, i, chunk + i * kChunk);
    if (i < width) interleave_values<true>(row, i, chunk + i * kChunk);
  }
}

// Values [first, first + keys) as a tile.
template <bool kClear, typename T>
void pack_values(const AttentionProblem& p, const AttentionTensors& t, const Layout& layout, int64_t batch,
                 int64_t kv_head, const PackedHead& head, int64_t first, int64_t keys, int64_t packed) {
  const DF d;
  constexpr bool kIsCode = std::is_same_v<T, int8_t>;
  const TokenRows<T> v = value_rows<T>(p, t, batch, kv_head);
  const int64_t n = layout.padded_channels();
  const bool half = p.precision == Precision::kInt8QK;
  const ValueRows<kClear, T> rows{
      v, first, keys, layout.whole_heads ? 0 : layout.tile_n, p.seqlen_kv(), value_limit(p)};
  if (half) return pack_value_halves(rows, n, kIsCode, head.v_float + packed * n);
  uint8_t order[kChunk / 4], place[kChunk / 4];
  quad_order(order);
  for (int w = 0; w < kChunk / 4; ++w) place[order[w]] = w;
  int8_t* codes = head.v_codes + packed * n;
  if constexpr (kIsCode) {
    pack_given_codes(rows, n, place, codes);
  } else if (p.v_scale != ScaleGranularity::kNone) {
    pack_value_codes(rows, n, place, codes,
                     [&](VF x, int64_t i) HWY_ATTR { return clamp_code(hn::Div(x, hn::Load(d, head.v_scale + i))); });
  } else {
    pack_value_codes(rows, n, place, codes,
                     [&](VF x, int64_t i) HWY_ATTR { return hn::Mul(x, hn::Load(d, head.v_inverse + i)); });
  }
}

// Notes in head.bad which tokens of V have values that are not below `limit`.
template <typename T>
void mark_bad_values(const Layout& layout, const TokenRows<T>& v, int64_t first, int64_t last, float limit,
                     const PackedHead& head) {
  const DF d;
  *head.any_bad |= kBadV;
  for (int64_t j = first; j < last; ++j) {
    auto ok = hn::FirstN(d, kLanes);
    for (int64_t i = 0; i < v.channels; i += kLanes)
      ok = hn::And(ok, hn::Lt(hn::Abs(load_at(v(j), i, v.channels)), hn::Set(d, limit)));
    if (!hn::AllTrue(d, ok)) head.bad[layout.bad_index(j)] |= kBadV;
  }
}

// amax of every channel over tokens [first, last), without the values that are no usable numbers, which it notes.
template <typename T>
void measure_values(const AttentionProblem& p, const Layout& layout, const TokenRows<T>& v, int64_t first, int64_t last,
                    const PackedHead& head, float* amax) {
  const float limit = value_limit(p);
  if (amax_of_values<false>(v, first, last, limit, amax) < limit) return;
  amax_of_values<true>(v, first, last, limit, amax);
  mark_bad_values(layout, v, first, last, limit, head);
}

// Whether V's scales come of its values. Otherwise a tile is looked at for bad values only, when it is packed.
bool scales_by_values(const AttentionProblem& p) {
  return p.precision != Precision::kInt8QK && p.v_scale == ScaleGranularity::kNone;
}

template <typename T>
void prepare_values(const AttentionProblem& p, const AttentionTensors& t, const Layout& layout, int64_t batch,
                    int64_t kv_head, const PackedHead& head, int64_t valid) {
  constexpr bool kIsCode = std::is_same_v<T, int8_t>;
  HWY_ALIGN float amax[kMaxHeadDim];
  if constexpr (!kIsCode) {
    if (scales_by_values(p)) measure_values(p, layout, value_rows<T>(p, t, batch, kv_head), 0, valid, head, amax);
  }
  if (p.precision == Precision::kInt8QK && !kIsCode) {
    for (int64_t c = 0; c < layout.padded_channels(); ++c) head.v_scale[c] = 1.f;
  } else {
    scales_of_values(p, t, kv_head, amax, head.v_scale, head.v_inverse);
  }
}

// Calls function(a null pointer to the element type of Q, K and V).
template <typename Function>
HWY_INLINE void with_type(DataType dtype, Function function) {
  switch (dtype) {
    case DataType::kFloat16:
      return function(static_cast<hwy::float16_t*>(nullptr));
    case DataType::kBFloat16:
      return function(static_cast<hwy::bfloat16_t*>(nullptr));
    case DataType::kInt8:
      return function(static_cast<int8_t*>(nullptr));
    default:
      return function(static_cast<float*>(nullptr));
  }
}

void prepare_one_head(const AttentionProblem& p, const AttentionTensors& t, const Layout& layout, int64_t batch,
                      int64_t kv_head, const PackedHead& head) {
  const int64_t valid = valid_keys(p, t.nonpad_kv_seqlen, batch);
  *head.any_bad = 0;
  with_type(p.dtype, [&]<typename T>(T*) {
    if constexpr (!std::is_same_v<T, int8_t>) memset(head.bad, 0, layout.padded_keys);
    prepare_keys<T>(p, t, batch, kv_head, head, valid);
    prepare_values<T>(p, t, layout, batch, kv_head, head, valid);
  });
  if (layout.in_place) std::fill_n(head.k_scale, layout.tile_stride, round_up_22_bits(given_k_scale(p, t, kv_head)));
}

void copy_to_present(const AttentionProblem& p, const AttentionTensors& t, int64_t batch, int64_t kv_head,
                     int64_t first, int64_t last) {
  with_type(p.dtype, [&]<typename T>(T*) {
    copy_tokens(key_rows<T>(p, t, batch, kv_head), p, batch, kv_head, first, last, t.present_key);
    copy_tokens(value_rows<T>(p, t, batch, kv_head), p, batch, kv_head, first, last, t.present_value);
  });
}

void pack_one_tile(const AttentionProblem& p, const AttentionTensors& t, const Layout& layout, int64_t batch,
                   int64_t kv_head, const PackedHead& head, int64_t tile) {
  const int64_t first = tile * layout.tile_n, packed = layout.packed_start(tile);
  const int64_t keys = HWY_MIN(layout.tile_n, valid_keys(p, t.nonpad_kv_seqlen, batch) - first);
  if (keys <= 0) return;
  with_type(p.dtype, [&]<typename T>(T*) {
    pack_keys<T>(p, t, layout, batch, kv_head, head, first, keys, packed);
    if constexpr (!std::is_same_v<T, int8_t>) {
      HWY_ALIGN float amax[kMaxHeadDim];
      if (!scales_by_values(p))
        measure_values(p, layout, value_rows<T>(p, t, batch, kv_head), first, first + keys, head, amax);
      if ((*head.any_bad & kBadV) != 0)
        return pack_values<true, T>(p, t, layout, batch, kv_head, head, first, keys, packed);
    }
    pack_values<false, T>(p, t, layout, batch, kv_head, head, first, keys, packed);
  });
}

}  // namespace intfa::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace intfa::cpu {

HWY_EXPORT(prepare_one_head);
HWY_EXPORT(pack_one_tile);
HWY_EXPORT(copy_to_present);

PrepareHeadFn prepare_head() { return HWY_DYNAMIC_POINTER(prepare_one_head); }
PackTileFn pack_tile() { return HWY_DYNAMIC_POINTER(pack_one_tile); }
CopyPresentFn copy_present() { return HWY_DYNAMIC_POINTER(copy_to_present); }

}  // namespace intfa::cpu
#endif
