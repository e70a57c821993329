// K's tiles from INT8 K where the caller has it: rows of codes, past and new, that no prologue has copied.
//
// A row takes its place in the tile by packed_key, as the prologue would have put it there; rows beyond the last token
// repeat it, because position excludes them whatever they hold. A thread brings -128 into the range in the chunks that
// it copied itself, between their wait and the barrier that shows them to the others. The loops are rolled: float input
// branches over them, and they need few registers.
#pragma once

#include "cuda/ptx.cuh"
#include "cuda/quantize.cuh"
#include "cuda/smem_tile.cuh"
#include "cuda/work.cuh"

namespace intfa::cuda {

// The first rows of a K/V head.
struct CodeRows {
  const char *past_key, *k;

  INTFA_DEVICE static CodeRows of(const AttentionParams& params, const Work& work) {
    const int head = work.kv_head - work.batch * params.kv_num_heads;
    auto first = [&](const View& view) {
      return static_cast<const char*>(view.data) + work.batch * view.batch + head * view.head;
    };
    return {first(params.past_key), first(params.k)};
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

  // Starts the copy of one tile to shared memory, by all threads of the CTA.
  template <int kDim, int kThreads>
  INTFA_DEVICE void copy_async(const AttentionParams& params, int tile, uint32_t destination) const {
    constexpr int kChunks = kDim / 16;
    unsigned at = ptx::thread_index();
#pragma unroll 1
    do {
      const int row = at / kChunks, chunk = at % kChunks;
      const int token = min(tile * kTileN + packed_key(row), params.seqlen_kv - 1);
      const bool past = token < params.seqlen_past;
      const char* codes =
          past ? past_key + token * params.past_key.token : k + (token - params.seqlen_past) * params.k.token;
      ptx::cp_async16(destination + SmemTile<kDim>::offset(row, chunk), codes + 16 * chunk);
      at += kThreads;
    } while (at < kTileN * kChunks);
  }

  // -128 -> -127 in the chunks that this thread copied.
  template <int kDim, int kThreads>
  INTFA_DEVICE static void clamp(uint32_t tile) {
    constexpr int kChunks = kDim / 16;
    unsigned at = ptx::thread_index();
#pragma unroll 1
    do {
      const uint32_t address = tile + SmemTile<kDim>::offset(at / kChunks, at % kChunks);
      uint32_t codes[4], any = 0;
      ptx::ld_shared(codes, address);
#pragma unroll
      for (int i = 0; i < 4; ++i) {  // 0x80 where a byte's sign alone is set
        const uint32_t lowest = codes[i] & ~((codes[i] & 0x7f7f7f7f) + 0x7f7f7f7f) & 0x80808080;
        codes[i] |= lowest >> 7;
        any |= lowest;
      }
      if (any != 0) ptx::st_shared(address, codes);
      at += kThreads;
    } while (at < kTileN * kChunks);
  }
};

}  // namespace intfa::cuda
