// K's tiles from INT8 K where the caller has it: rows of codes, past and new, that no prologue has copied.
//
// A row takes its place in the tile by packed_key, as the prologue would have put it there; rows beyond the last token
// repeat it, because position excludes them whatever they hold. A thread brings -128 into the range in the chunks that
// it copied itself, between their wait and the barrier that shows them to the others. Float input branches over all of
// it; loops are rolled, for few instructions and registers.
#pragma once

#include "cuda/ptx.cuh"
#include "cuda/quantize.cuh"
#include "cuda/smem_tile.cuh"
#include "cuda/work.cuh"

namespace intfa::cuda {

// Where token 0 of a K/V head is, or would be: of the past and of the new tokens, each with its stride.
struct CodeRows {
  const char *past_key, *k;

  INTFA_DEVICE static CodeRows of(const AttentionParams& params, const Work& work) {
    const int head = work.kv_head - work.batch * params.kv_num_heads;
    auto first = [&](const CodeView& view, int token) {
      return view.data + work.batch * view.batch + head * view.head - int64_t{token} * view.token;
    };
    return {first(params.past_key, 0), first(params.k, params.seqlen_past)};
  }
  // Kept in shared memory over the main loop, 16 bytes.
  INTFA_DEVICE void store(uint32_t address) const {
    const auto past = reinterpret_cast<uint64_t>(past_key), fresh = reinterpret_cast<uint64_t>(k);
    ptx::st_shared(address, {static_cast<uint32_t>(past), static_cast<uint32_t>(past >> 32),
                             static_cast<uint32_t>(fresh), static_cast<uint32_t>(fresh >> 32)});
  }
  INTFA_DEVICE static CodeRows kept(uint32_t address) {
    uint32_t words[4];
    ptx::ld_shared(words, address);
    auto pointer = [&](int i) { return reinterpret_cast<const char*>(uint64_t{words[i + 1]} << 32 | words[i]); };
    return {pointer(0), pointer(2)};
  }
};

// What a thread copies of a tile: chunks kWide apart of rows kSweep apart, whose keys and swizzles are then alike.
template <int kDim, int kThreads>
struct CodeTile {
  using Tile = SmemTile<kDim>;
  static constexpr int kChunks = kDim / 16, kWide = kDim == 96 ? 2 : kDim > 128 ? 8 : kChunks;
  static constexpr int kSweep = kThreads / kWide;
  static_assert(kSweep % 16 == 0 && kChunks % kWide == 0);

  // Byte offset of the first row's chunk.
  INTFA_DEVICE static uint32_t offset(unsigned thread, int i) {
    return Tile::offset(thread / kWide, thread % kWide + i * kWide);
  }

  // Starts the copy of one tile to shared memory, by all threads of the CTA.
  INTFA_DEVICE static void copy_async(const AttentionParams& params, const CodeRows& rows, int tile,
                                      uint32_t destination) {
    const unsigned thread = ptx::thread_index();
    const int last = params.seqlen_kv - 1 - tile * kTileN, past = params.seqlen_past - tile * kTileN;
    const int key = packed_key(thread / kWide);
#pragma unroll 1
    for (int row = 0; row < kTileN; row += kSweep) {
      const int read = min(key + row, last);
      const bool is_past = read < past;
      const uint32_t token = tile * kTileN + read, stride = is_past ? params.past_key.token : params.k.token;
      const char* codes = (is_past ? rows.past_key : rows.k) + uint64_t{token} * stride + 16 * (thread % kWide);
#pragma unroll
      for (int i = 0; i < kChunks / kWide; ++i) {
        ptx::cp_async16(destination + row * Tile::kPitch + offset(thread, i), codes + 16 * kWide * i);
      }
    }
  }

  // -128 -> -127 in the chunks that this thread copied. Codes from calibration have none, so looking comes first.
  INTFA_DEVICE static void clamp(uint32_t tile) {
    const unsigned thread = ptx::thread_index();
    // 0x80 where a byte's sign alone is set; other bits are noise
    auto lowest = [](uint32_t codes) { return codes & ~((codes & 0x7f7f7f7f) + 0x7f7f7f7f); };
    uint32_t codes[4], any = 0;
#pragma unroll
    for (int row = 0; row < kTileN; row += kSweep) {
#pragma unroll
      for (int i = 0; i < kChunks / kWide; ++i) {
        ptx::ld_shared(codes, tile + row * Tile::kPitch + offset(thread, i));
#pragma unroll
        for (int w = 0; w < 4; ++w) any |= lowest(codes[w]);
      }
    }
    if ((any & 0x80808080) == 0) return;
#pragma unroll 1
    for (int row = 0; row < kTileN; row += kSweep) {
#pragma unroll 1
      for (int i = 0; i < kChunks / kWide; ++i) {
        const uint32_t address = tile + row * Tile::kPitch + offset(thread, i);
        ptx::ld_shared(codes, address);
#pragma unroll
        for (int w = 0; w < 4; ++w) codes[w] |= (lowest(codes[w]) & 0x80808080) >> 7;
        ptx::st_shared(address, codes);
      }
    }
  }
};

}  // namespace intfa::cuda
