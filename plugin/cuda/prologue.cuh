// The prologue: K and V, new and past, into the packed INT8 tensors that the attention kernels read (struct Packed).
//
//   statistics   partial sums of K per channel and partial amax of V per channel, over chunks of tokens
//   quantize_kv  K -> codes of K - mean with one scale per key (or per group of keys); V -> codes of V^T with one scale
//   per channel
//                (or head); copies into the present caches where the caller asks for them. Of INT8 K that the attention
//                kernel reads in place, the scales alone
//
// Statistics run over the valid tokens, past and new, without padding: K's over those without a non-finite channel, V's
// over all finite elements, since the others of their token count as they are.
// Partial results are summed in a fixed order by every CTA that needs them, so that the output does not depend on
// scheduling and nothing needs to be zeroed beforehand. With static scales, or INT8 input, `statistics` is not
// launched.
//
// CTA: kPrologueThreads threads for one tile of kTileN tokens (quantize_kv) or one chunk (statistics) of one head; a
// warp reads rows of Dp channels as WarpRows tells. blockIdx.z: 2 * batch + (0: K, 1: V).
#pragma once

#include "cuda/quantize.cuh"
#include "cuda/traits.cuh"

namespace intfa::cuda {

constexpr int kPrologueWarps = kPrologueThreads / 32;

// Where a CTA is, and how it reads one token of its tensor.
template <int kDim>
struct PrologueBlock {
  const PrologueParams& params;
  const int lane, warp, batch, kv_head;
  const bool is_v;
  const int64_t index;  // batch * Hkv + kv_head
  const int channels;   // D or Dv
  const int valid;      // tokens that count

  INTFA_DEVICE explicit PrologueBlock(const PrologueParams& p)
      : params(p),
        lane(threadIdx.x & 31),
        warp(threadIdx.x >> 5),
        batch(blockIdx.z >> 1),
        kv_head(blockIdx.y),
        is_v(blockIdx.z & 1),
        index(static_cast<int64_t>(batch) * p.kv_num_heads + kv_head),
        channels(is_v ? p.head_dim_v : p.head_dim),
        valid(valid_keys(p.nonpad_kv_seqlen, batch, p.seqlen_kv)) {}

  // The packed tile that this CTA writes.
  template <bool kHalfV>
  INTFA_DEVICE char* packed_tile() const {
    return params.packed.tiles + (index * params.num_tiles + blockIdx.x) * PackedTile<kDim, kHalfV>::kBytes;
  }
  INTFA_DEVICE int64_t element(const View& view, int token) const {
    return batch * view.batch + kv_head * view.head + token * view.token;
  }
  // Channels of `token` that this lane holds; 0 beyond Skv and D. Returns whether the whole token is finite, to all its
  // lanes.
  INTFA_DEVICE bool read(float (&x)[WarpRows<kDim>::kParts][4], int token) const {
    const bool past = token < params.seqlen_past;
    const View& view = is_v ? (past ? params.past_value : params.v) : (past ? params.past_key : params.k);
    const int64_t base = element(view, past ? token : token - params.seqlen_past);
    uint32_t amax_bits = 0;
#pragma unroll
    for (int part = 0; part < WarpRows<kDim>::kParts; ++part) {
      const int channel = WarpRows<kDim>::channel(lane, part);
      load4(x[part], view.data, base + channel, 1, token < params.seqlen_kv ? channels - channel : 0, params.dtype,
            view.vector4);
#pragma unroll
      for (int i = 0; i < 4; ++i) amax_bits = max_magnitude(amax_bits, x[part][i]);
    }
    return WarpRows<kDim>::max_bits(amax_bits) < kInfinityBits;
  }
};

// Shared memory: [slots][Dp] f32 partial results, then [slots] f32 counts; a slot is a row that a warp reads at once.
template <int kDim>
constexpr int kStatisticsSlots = kPrologueWarps * WarpRows<kDim>::kRows;
template <int kDim>
constexpr int kStatisticsSmem = 4 * kStatisticsSlots<kDim> * (kDim + 1);

template <int kDim>
INTFA_DEVICE void statistics(const PrologueParams& params) {
  using Layout = WarpRows<kDim>;
  constexpr int kSlots = kStatisticsSlots<kDim>;
  const PrologueBlock<kDim> block(params);
  if (block.is_v ? !params.v_statistics : !params.k_statistics) return;
  const int chunk = blockIdx.x, slot = block.warp * Layout::kRows + Layout::slot(block.lane);

  float result[Layout::kParts][4] = {};
  float count = 0.f;
  const int first = chunk * params.chunk_tokens, end = min(first + params.chunk_tokens, block.valid);
  for (int pass = first; pass < end; pass += kSlots) {  // the same number of passes for all lanes of a warp
    const int token = pass + slot;
    float x[Layout::kParts][4];
    const bool finite = block.read(x, token);
    if (token >= end || !(finite || block.is_v)) continue;
    count += 1.f;
#pragma unroll
    for (int part = 0; part < Layout::kParts; ++part) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float& r = result[part][i];
        if (!block.is_v) {
          r = ptx::add_rn(r, x[part][i]);
        } else if (fabsf(x[part][i]) < INFINITY) {
          r = fmaxf(r, fabsf(x[part][i]));
        }
      }
    }
  }

  const uint32_t partials = ptx::smem_u32(ptx::dynamic_smem()), counts = partials + 4 * kSlots * kDim;
#pragma unroll
  for (int part = 0; part < Layout::kParts; ++part) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int channel = Layout::channel(block.lane, part) + i;
      if (channel < kDim) ptx::st_shared(partials + 4 * (slot * kDim + channel), result[part][i]);
    }
  }
  if (block.lane % Layout::kLanes == 0) ptx::st_shared(counts + 4 * slot, count);
  ptx::sync_block();
  const int64_t out = block.index * params.num_chunks + chunk;
  for (int c = threadIdx.x; c < kDim; c += kPrologueThreads) {
    float total = 0.f;
    for (int i = 0; i < kSlots; ++i) {
      const float part = ptx::ld_shared(partials + 4 * (i * kDim + c));
      total = block.is_v ? fmaxf(total, part) : ptx::add_rn(total, part);
    }
    (block.is_v ? params.partial_amax : params.partial_sum)[out * kDim + c] = total;
  }
  if (!block.is_v && threadIdx.x == 0) {
    float total = 0.f;
    for (int i = 0; i < kSlots; ++i) total += ptx::ld_shared(counts + 4 * i);
    params.partial_count[out] = total;
  }
}

// Shared memory of quantize_kv: per channel mean of K, or scale and codes per unit of V [2][Dp] f32; per token amax
// [kTileN] f32 (K); V's codes, transposed [Dp][kTileN] with rows of kTransposePitch.
template <bool kHalfV>
constexpr int kTransposePitch = kTileN * (kHalfV ? 2 : 1) + 16;
template <int kDim>
constexpr int kQuantizeSmem = 8 * kDim + 4 * kTileN + kDim * kTransposePitch<true>;

// Static scale of this head: per tensor or per head.
INTFA_DEVICE float static_scale(const float* scale, ScaleGranularity kind, int kv_head) {
  return scale[kind == ScaleGranularity::kPerTensor ? 0 : kv_head];
}

template <int kDim, bool kHalfV>
INTFA_DEVICE void quantize_k_tile(const PrologueParams& params, const PrologueBlock<kDim>& block, uint32_t smem) {
  using Layout = WarpRows<kDim>;
  constexpr int kWarpTokens = kTileN / kPrologueWarps, kPasses = kWarpTokens / Layout::kRows;
  const int tile = blockIdx.x;
  const uint32_t means = smem, amaxes = smem + 8 * kDim;
  char* packed = block.template packed_tile<kHalfV>();
  float* k_scales = reinterpret_cast<float*>(packed + PackedTile<kDim, kHalfV>::kScale);
  uint32_t& flag = params.packed.tile_flags[block.index * params.num_tiles + tile];

  if (params.k_in_place) {
    for (int row = threadIdx.x; row < kTileN; row += kPrologueThreads) {
      const float scale = static_scale(params.k_scale, params.k_scale_kind, block.kv_head);
      k_scales[row] = tile * kTileN + row < block.valid ? round_up_22_bits(scale) : 1.f;
    }
    if (threadIdx.x == 0) flag = 0;
    return;
  }

  for (int c = threadIdx.x; c < kDim; c += kPrologueThreads) {
    float mean = 0.f;
    if (params.smooth) {
      const int64_t first = block.index * params.num_chunks;
      float sum = 0.f, count = 0.f;
      for (int i = 0; i < params.num_chunks; ++i) {
        sum = ptx::add_rn(sum, params.partial_sum[(first + i) * kDim + c]);
        count += params.partial_count[first + i];
      }
      mean = count > 0.f ? ptx::div_rn(sum, count) : 0.f;
      if (tile == 0) params.packed.k_mean[block.index * kDim + c] = mean;
    }
    ptx::st_shared(means + 4 * c, mean);
  }
  ptx::sync_block();

  // Read, smooth, and find each token's amax; -1 marks a non-finite token.
  float x[kPasses][Layout::kParts][4];
  bool finite[kPasses];
#pragma unroll
  for (int pass = 0; pass < kPasses; ++pass) {
    const int row = block.warp * kWarpTokens + pass * Layout::kRows + Layout::slot(block.lane);
    const int token = tile * kTileN + row;
    finite[pass] = block.read(x[pass], token);
    uint32_t amax_bits = 0;
#pragma unroll
    for (int part = 0; part < Layout::kParts; ++part) {
      const int channel = Layout::channel(block.lane, part);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float mean = channel + i < kDim ? ptx::ld_shared(means + 4 * (channel + i)) : 0.f;
        x[pass][part][i] = token < block.valid ? ptx::add_rn(x[pass][part][i], -mean) : 0.f;
        amax_bits = max_magnitude(amax_bits, x[pass][part][i]);
      }
    }
    amax_bits = Layout::max_bits(amax_bits);
    finite[pass] |= token >= block.valid;
    if (block.lane % Layout::kLanes == 0)
      ptx::st_shared(amaxes + 4 * row, finite[pass] ? ptx::f32_bits(amax_bits) : -1.f);
  }
  ptx::sync_block();

#pragma unroll
  for (int pass = 0; pass < kPasses; ++pass) {
    const int row = block.warp * kWarpTokens + pass * Layout::kRows + Layout::slot(block.lane);
    const int token = tile * kTileN + row;
    float scale, inverse = 1.f;
    if (params.k_scale != nullptr) {
      scale = static_scale(params.k_scale, params.k_scale_kind, block.kv_head);
    } else {
      float amax = fmaxf(ptx::ld_shared(amaxes + 4 * row), 0.f);
      if (params.group_scale) {  // keys of the tile with equal (j % 8) / 2
        for (int i = 0; i < kTileN / 4; ++i) {
          amax = fmaxf(amax, ptx::ld_shared(amaxes + 4 * (8 * (i >> 1) + (row & 6) + (i & 1))));
        }
      }
      const Quantizer q = k_quantizer(amax);
      scale = q.scale;
      inverse = q.inverse;
    }
#pragma unroll
    for (int part = 0; part < Layout::kParts; ++part) {
      const int channel = Layout::channel(block.lane, part);
      int32_t code[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float value = x[pass][part][i];
        const float scaled = params.dtype == DataType::kInt8 ? value
                             : params.k_scale != nullptr     ? ptx::div_rn(value, scale)
                                                             : ptx::mul_rn(value, inverse);
        code[i] = finite[pass] ? code_of(scaled) : 0;
      }
      if (channel < kDim) {
        const int chunk = chunk_offset<kDim>(params.order, packed_row(row), channel / 16);
        ptx::st_global(packed + chunk + channel % 16, pack_bytes(code));
      }
    }
    if (block.lane % Layout::kLanes == 0) {
      k_scales[row] = !finite[pass] ? NAN : token < block.valid ? round_up_22_bits(scale) : 1.f;
    }
  }
  if (block.warp == 0) {
    const bool marked =
        ptx::ld_shared(amaxes + 4 * block.lane) < 0.f || ptx::ld_shared(amaxes + 4 * (block.lane + 32)) < 0.f;
    const bool any = ptx::warp_any(marked);
    if (block.lane == 0) flag = any;
  }
}

template <int kDim, bool kHalfV>
INTFA_DEVICE void quantize_v_tile(const PrologueParams& params, const PrologueBlock<kDim>& block, uint32_t smem) {
  using Layout = WarpRows<kDim>;
  constexpr int kWarpTokens = kTileN / kPrologueWarps, kSlotTokens = kWarpTokens / Layout::kRows;
  constexpr int kPitch = kTransposePitch<kHalfV>;
  static_assert(kSlotTokens % 4 == 0, "four keys make one word of V^T");
  const int tile = blockIdx.x;
  const uint32_t scales = smem, inverses = smem + 4 * kDim;
  const uint32_t flags = smem + 8 * kDim, transposed = flags + 4 * kTileN;
  const bool is_codes = params.dtype == DataType::kInt8;
  const bool has_static = params.v_scale != nullptr && (is_codes || !kHalfV);  // a float V stays unscaled in float16

  // Scales: static ones, ones for a float16 V, or from the statistics. Paper's scheme: one amax for the head.
  for (int c = threadIdx.x; c < kDim; c += kPrologueThreads) {
    float amax = 0.f;
    if (params.v_statistics) {
      const int64_t first = block.index * params.num_chunks;
      for (int i = 0; i < params.num_chunks; ++i) amax = fmaxf(amax, params.partial_amax[(first + i) * kDim + c]);
    }
    ptx::st_shared(scales + 4 * c, amax);
  }
  ptx::sync_block();
  float head_amax = 0.f;
  if (params.head_v_scale) {
    for (int c = 0; c < kDim; ++c) head_amax = fmaxf(head_amax, ptx::ld_shared(scales + 4 * c));
  }
  ptx::sync_block();
  for (int c = threadIdx.x; c < kDim; c += kPrologueThreads) {
    const float amax = params.head_v_scale ? head_amax : ptx::ld_shared(scales + 4 * c);
    const Quantizer q = quantizer(amax);
    float scale = q.scale;
    if (has_static) {
      const bool per_channel = params.v_scale_kind == ScaleGranularity::kPerChannel;
      scale = per_channel ? (c < block.channels ? params.v_scale[block.kv_head * block.channels + c] : 1.f)
                          : static_scale(params.v_scale, params.v_scale_kind, block.kv_head);
    }
    ptx::st_shared(scales + 4 * c, scale);
    ptx::st_shared(inverses + 4 * c, q.inverse);
    // A channel (or head) of zeros: scale 0 instead of 1 makes its output 0, whatever removing kBias leaves in O.
    const bool zeros = params.v_statistics && ptx::mul_rn(amax, q.inverse) < 0.5f;
    if (tile == 0) params.packed.v_scale[block.index * kDim + c] = zeros ? 0.f : scale;
  }
  ptx::sync_block();

  bool marked = false;
#pragma unroll
  for (int quad = 0; quad < kSlotTokens / 4; ++quad) {  // four consecutive keys: one word per channel, two in float16
    const int row = block.warp * kWarpTokens + Layout::slot(block.lane) * kSlotTokens + 4 * quad;
    float x[4][Layout::kParts][4];
#pragma unroll
    for (int k = 0; k < 4; ++k) block.read(x[k], tile * kTileN + row + k);
#pragma unroll
    for (int part = 0; part < Layout::kParts; ++part) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int channel = Layout::channel(block.lane, part) + i;
        if (channel >= kDim) continue;
        const float scale = ptx::ld_shared(scales + 4 * channel), inverse = ptx::ld_shared(inverses + 4 * channel);
        uint32_t word[2] = {0, 0};
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const float value = tile * kTileN + row + k < block.valid ? x[k][part][i] : 0.f;
          uint32_t code;
          if constexpr (kHalfV) {
            const uint32_t half = ptx::f16_from_f32(is_codes ? ptx::f32_from_s32(code_of(value)) : value);
            const bool finite = (half & 0x7c00) != 0x7c00;
            marked |= !finite;
            code = !finite ? kNonFiniteHalf : half == kNonFiniteHalf ? 0 : half;
            word[k >> 1] |= code << 16 * (k & 1);
          } else {
            const bool finite = (ptx::u32_bits(value) & 0x7fffffff) < kInfinityBits;
            marked |= !finite;
            const float scaled = is_codes     ? value
                                 : has_static ? ptx::div_rn(value, scale)
                                              : ptx::mul_rn(value, inverse);
            code = static_cast<uint32_t>(finite ? code_of(scaled) : kNonFiniteCode) & 255;
            word[0] |= code << 8 * k;
          }
        }
        const uint32_t at = transposed + channel * kPitch;
        if constexpr (kHalfV) {  // packed_row order: keys 4t, 4t + 1, and 16 bytes on keys 4t + 2, 4t + 3
          ptx::st_shared(at + 2 * packed_row(row), word[0]);
          ptx::st_shared(at + 2 * packed_row(row + 2), word[1]);
        } else {
          ptx::st_shared(at + row, word[0]);
        }
      }
    }
  }
  const bool warp_marked = ptx::warp_any(marked);
  if (block.lane == 0) ptx::st_shared(flags + 4 * block.warp, warp_marked ? 1.f : 0.f);
  ptx::sync_block();

  constexpr int kChunks = kTileN * PackedTile<kDim, kHalfV>::kElementV / 16;
  char* vt = block.template packed_tile<kHalfV>() + PackedTile<kDim, kHalfV>::kV;
  for (int at = threadIdx.x; at < kDim * kChunks; at += kPrologueThreads) {
    const int channel = at / kChunks, chunk = at % kChunks;
    uint32_t words[4];
    ptx::ld_shared(words, transposed + channel * kPitch + 16 * chunk);
    ptx::st_global(vt + chunk_offset<16 * kChunks>(params.order, channel, chunk),
                   uint4{words[0], words[1], words[2], words[3]});
  }
  if (threadIdx.x == 0) {
    const int64_t heads = static_cast<int64_t>(params.batch) * params.kv_num_heads;
    float any = 0.f;
    for (int w = 0; w < kPrologueWarps; ++w) any += ptx::ld_shared(flags + 4 * w);
    params.packed.tile_flags[(heads + block.index) * params.num_tiles + tile] = any != 0.f;
  }
}

// present = past then new, bit by bit, for this tile's tokens.
template <int kDim>
INTFA_DEVICE void copy_to_present(const PrologueParams& params, const PrologueBlock<kDim>& block, void* present) {
  const int bytes = element_bytes(params.dtype);
  for (int row = block.warp; row < kTileN; row += kPrologueWarps) {
    const int token = blockIdx.x * kTileN + row;
    if (token >= params.seqlen_kv) break;
    const bool past = token < params.seqlen_past;
    const View& view = block.is_v ? (past ? params.past_value : params.v) : (past ? params.past_key : params.k);
    const int64_t from = block.element(view, past ? token : token - params.seqlen_past);
    const int64_t to = (block.index * params.seqlen_kv + token) * block.channels;
    for (int c = block.lane; c < block.channels; c += 32) {
      const char* src = static_cast<const char*>(view.data) + (from + c) * bytes;
      char* dst = static_cast<char*>(present) + (to + c) * bytes;
      if (bytes == 4) {
        ptx::st_global(dst, ptx::ld_global<uint32_t>(src));
      } else if (bytes == 2) {
        ptx::st_global(dst, ptx::ld_global<uint16_t>(src));
      } else {
        ptx::st_global(dst, ptx::ld_global<uint8_t>(src));
      }
    }
  }
}

template <int kDim>
INTFA_DEVICE void quantize_kv(const PrologueParams& params) {
  const PrologueBlock<kDim> block(params);
  const uint32_t smem = ptx::smem_u32(ptx::dynamic_smem());
  if (params.half_v) {
    block.is_v ? quantize_v_tile<kDim, true>(params, block, smem) : quantize_k_tile<kDim, true>(params, block, smem);
  } else {
    block.is_v ? quantize_v_tile<kDim, false>(params, block, smem) : quantize_k_tile<kDim, false>(params, block, smem);
  }
  void* present = block.is_v ? params.present_value : params.present_key;
  if (present != nullptr) copy_to_present<kDim>(params, block, present);
}

}  // namespace intfa::cuda
