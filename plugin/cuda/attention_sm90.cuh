// INT8 FlashAttention forward for sm_90a, by wgmma m64nNk32. What it computes: attention_sm80.cuh, with tiles of 128
// keys.
//
// CTA: kWarpgroups warpgroups of 64 queries, 16 per warp; those of the SM, in one CTA or several, hide what one of them
// waits for. Tiles of kKeys keys (two packed tiles) pass through kStages stages of shared memory. Thread 0 brings them
// by bulk copies: the prologue has packed K and V^T in core-matrix order, so a copy is contiguous and its target is at
// once an operand of wgmma, with no tensor map and no swizzle. S's accumulators become P's operands in place, as with
// mma.sync: wgmma's fragments are those of mma m16n8k32, and K's rows come in packed_row order.
//
// Barriers of a stage: full_k (K and k_scale have landed), full_v, empty_k (each warp has read K and k_scale), empty_v.
//
// Hazards:
//  - wgmma reads shared memory until the wait for its group: a stage is released after that wait, never before;
//  - Q's codes are ordinary stores read by wgmma: fence_async_proxy, then a barrier;
//  - no warp may skip a tile that its mask excludes: wgmma is the warpgroup's. Such a tile gives P = 0.
//
// Source: the scheme is attention_sm80.cuh's; one warpgroup per CTA with bulk loads after SageAttention's sm_90 kernel
// (arXiv 2411.10958). Simulated, not run on a GPU.
#pragma once

#include <type_traits>

#include "cuda/attention_shape_sm90.h"
#include "cuda/epilogue.cuh"
#include "cuda/online_softmax.cuh"
#include "cuda/ptx_sm90.cuh"
#include "cuda/query.cuh"
#include "cuda/scoring.cuh"
#include "cuda/work.cuh"

namespace intfa::cuda {

// A tile in core-matrix order: rows of kRowBytes.
template <int kRowBytes>
struct CoreTile {
  INTFA_DEVICE static int offset(int row, int chunk) {
    return chunk_offset<kRowBytes>(ChunkOrder::kCoreMatrices, row, chunk);
  }
  // Operand of wgmma: the rows from `tile` on, 32 bytes of each from byte 32 * column.
  INTFA_DEVICE static uint64_t operand(uint32_t tile, int column) {
    return ptx::matrix_descriptor(tile + 256 * column, 8 * kRowBytes);
  }
};

// Shared addresses of one stage, and the parity of its barriers' phase.
template <typename Shape>
struct Stage {
  uint32_t tile, barriers, parity;

  // of the i-th tile that the CTA visits
  INTFA_DEVICE Stage(uint32_t smem, unsigned i)
      : tile(smem + i % Shape::kStages * Shape::kStageBytes),
        barriers(smem + Shape::kBarrierOffset + i % Shape::kStages * 32),
        parity(i / Shape::kStages & 1) {}
  INTFA_DEVICE uint32_t v() const { return tile + Shape::kVOffset; }
  INTFA_DEVICE uint32_t k_scales() const { return tile + Shape::kScaleOffset; }
  INTFA_DEVICE uint32_t full_k() const { return barriers; }
  INTFA_DEVICE uint32_t full_v() const { return barriers + 8; }
  INTFA_DEVICE uint32_t empty_k() const { return barriers + 16; }
  INTFA_DEVICE uint32_t empty_v() const { return barriers + 24; }

  INTFA_DEVICE void init() const {
    ptx::mbarrier_init(full_k(), 1);
    ptx::mbarrier_init(full_v(), 1);
    ptx::mbarrier_init(empty_k(), Shape::kWarps);
    ptx::mbarrier_init(empty_v(), Shape::kWarps);
  }
};

// Starts the copies of a tile's K and k_scale, or V^T. source: its first packed tile.
template <int kDim, typename Shape>
INTFA_DEVICE void load_k(const Stage<Shape>& stage, const char* source) {
  using Source = PackedTile<kDim, false>;
  ptx::mbarrier_arrive_expect(stage.full_k(), Shape::kKeys * (kDim + 4));
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const char* part = source + half * Source::kBytes;
    ptx::bulk_copy(stage.tile + half * kTileN * kDim, part, kTileN * kDim, stage.full_k());
    ptx::bulk_copy(stage.k_scales() + half * 4 * kTileN, part + Source::kScale, 4 * kTileN, stage.full_k());
  }
}
template <int kDim, typename Shape>
INTFA_DEVICE void load_v(const Stage<Shape>& stage, const char* source) {
  using Source = PackedTile<kDim, false>;
  ptx::mbarrier_arrive_expect(stage.full_v(), Shape::kKeys * kDim);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    ptx::bulk_copy(stage.v() + half * kTileN * kDim, source + half * Source::kBytes + Source::kV, kTileN * kDim,
                   stage.full_v());
  }
}

template <int kDim, bool kScored, int kWarpgroups>
INTFA_DEVICE void attention_wgmma(const AttentionParams& params) {
  using P = Probability<Arithmetic::kTileInt8, /*kWgmma=*/true>;
  using Shape = WgmmaShape<kDim, kScored, kWarpgroups>;
  using Source = PackedTile<kDim, false>;
  using Tile = CoreTile<kDim>;     // K and Q
  using VTile = CoreTile<kTileN>;  // half of V^T
  constexpr int kKeys = Shape::kKeys;

  const Work work = Work::of<Shape>(params);
  const int lane = work.lane, warp = threadIdx.x >> 5, t = lane & 3;
  const uint32_t smem = ptx::smem_u32(ptx::dynamic_smem());
  const Limits limits(params, work.batch);

  // Tiles [first, last) of this split have keys for some row, [plain_begin, plain_end) only such that all rows attend.
  const int last_row = min(work.cta_row + Shape::kTileM, params.seqlen_q) - 1;
  const int first_tile = max(limits.begin(work.cta_row) / kKeys, work.split * params.tiles_per_split);
  const int last_tile =
      max(first_tile, min((limits.end(last_row) + kKeys - 1) / kKeys, (work.split + 1) * params.tiles_per_split));
  const int plain_begin = (limits.begin(last_row) + kKeys - 1) / kKeys;

  const char* source = params.packed.tiles +  // of the next tile to load
                       (static_cast<int64_t>(work.kv_head) * params.num_tiles + 2 * first_tile) * Source::kBytes;
  if (threadIdx.x == 0) {
#pragma unroll
    for (int i = 0; i < Shape::kStages; ++i) Stage<Shape>(smem, i).init();
    ptx::fence_mbarrier_init();
#pragma unroll
    for (int i = 0; i < Shape::kStages; ++i) {
      if (first_tile + i >= last_tile) break;
      load_k<kDim>(Stage<Shape>(smem, i), source);
      load_v<kDim>(Stage<Shape>(smem, i), source);
      source += 2 * Source::kBytes;
    }
    limits.store(smem + Shape::kLimitsOffset);
  }

  // Q: codes into shared memory, unit and shift per row; by each warp for itself.
  const uint32_t q_warp = smem + Shape::kQOffset + warp * Shape::kWarpRows * kDim;
  const int warpgroup = kWarpgroups == 1 ? 0 : warp / 4;
  const uint32_t q_tile = smem + Shape::kQOffset + warpgroup * 64 * kDim;
  const RowTable table = RowTable::of<Shape>(smem, warp);
  ptx::sync_warp();
  quantize_queries<Tile, kDim, Shape::kWarpRows, kScored>(params, work, q_warp, table);
  ptx::fence_async_proxy();
  ptx::sync_block();  // Q, the limits and the barriers are there for all

  uint32_t q[Shape::kQInRegisters ? kDim / 32 : 1][4];
  if constexpr (Shape::kQInRegisters) {
#pragma unroll
    for (int c = 0; c < kDim / 32; ++c) ptx::ldmatrix_x4(q[c], q_warp + Tile::offset(lane & 15, 2 * c + (lane >> 4)));
  }

  RowState<1> rows;
  float o[1][kDim / 8][4];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    rows.unit[0][h] = ptx::ld_shared(table.unit + 4 * (8 * h + lane / 4));
    rows.reference[0][h] = kFloor;
    rows.bias_sum[0][h] = rows.sum[0][h] = 0.f;
  }
#pragma unroll
  for (int i = 0; i < kDim / 8; ++i) o[0][i][0] = o[0][i][1] = o[0][i][2] = o[0][i][3] = 0.f;

  auto release = [&](uint32_t barrier) {
    ptx::sync_warp();
    if (lane == 0) ptx::mbarrier_arrive(barrier);
  };

  auto step = [&](auto masked, int tile) {
    constexpr bool kMasked = decltype(masked)::value;
    const Stage<Shape> stage(smem, tile - first_tile);
    const int lane_key = tile * kKeys + 4 * t;
    auto mask_terms = [&] {
      return smem + Shape::kMaskOffset + (ptx::thread_index() >> 5) * Shape::kWarpRows * kKeys * 4;
    };
    if (kScored && params.mask.data != nullptr) {
      stage_mask<1, kKeys>(params, Work::of<Shape>(params), lane_key, mask_terms());
    }

    ptx::mbarrier_wait(stage.full_k(), stage.parity);
    int32_t s[1][kKeys / 8][4];
    ptx::wgmma_fence();
#pragma unroll
    for (int c = 0; c < kDim / 32; ++c) {
      if constexpr (Shape::kQInRegisters) {
        ptx::wgmma_s8s8(s[0], q[c], Tile::operand(stage.tile, c), c > 0);
      } else {
        ptx::wgmma_s8s8(s[0], Tile::operand(q_tile, c), Tile::operand(stage.tile, c), c > 0);
      }
    }
    ptx::wgmma_commit();
    ptx::wgmma_wait<0>(s[0]);

    float tile_max[1][2];
    scale_scores</*kBiased=*/false>(s, stage.k_scales() + 16 * t);
    release(stage.empty_k());
    auto row_limits = [&](int, int h) -> LaneLimits {
      if constexpr (!kMasked) return {};
      const int row = Work::of<Shape>(params).warp_row + 8 * h + lane / 4;
      const Limits kept(params, smem + Shape::kLimitsOffset);
      return {kept.begin(row) - lane_key, kept.end(row) - lane_key};
    };
    auto scoring = [&](int, int h) {
      if constexpr (kScored) {
        const RowTable again = RowTable::of<Shape>(smem, ptx::thread_index() >> 5);
        return RowScoring<kKeys>(params, again, 8 * h + lane / 4, h, lane, mask_terms());
      } else {
        return NoScoring{};
      }
    };
    mask_scores<kMasked>(s, tile_max, row_limits, scoring);

    uint32_t p[1][kKeys / P::kKeysPerFragment][4];
    float weight[1][2];
    constexpr int32_t kUnused[4] = {};  // wgmma's sums need no start value
    softmax_tile<P, kScored>(p, weight, o, rows, s, tile_max, kUnused, /*unbias=*/false);

    const int used = tile - Shape::kLag;  // the tile whose stage is refilled
    const Stage<Shape> refilled = Shape::kLag == 0 ? stage : Stage<Shape>(smem, used - first_tile);
    const bool loads =
        threadIdx.x == 0 && (Shape::kLag == 0 || used >= first_tile) && used + Shape::kStages < last_tile;
    if (loads) {
      ptx::mbarrier_wait(refilled.empty_k(), refilled.parity);
      load_k<kDim>(refilled, source);
    }
    ptx::sync_warp();

    ptx::mbarrier_wait(stage.full_v(), stage.parity);
#pragma unroll
    for (int part = 0; part < kDim / Shape::kPart; ++part) {
      int32_t acc[Shape::kPart / 8][4];
      ptx::wgmma_fence();
#pragma unroll
      for (int c = 0; c < kKeys / 32; ++c) {
        const uint32_t half = stage.v() + c / 2 * kTileN * kDim;
        ptx::wgmma_u8s8(acc, p[0][c], VTile::operand(half + part * Shape::kPart * kTileN, c % 2), c > 0);
      }
      ptx::wgmma_commit();
      ptx::wgmma_wait<0>(acc);
      if (part == kDim / Shape::kPart - 1) release(stage.empty_v());
#pragma unroll
      for (int i = 0; i < Shape::kPart / 8; ++i) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          float& sum = o[0][part * Shape::kPart / 8 + i][e];
          sum = ptx::fma_rn(ptx::f32_from_s32(acc[i][e]), weight[0][e >> 1], sum);
        }
      }
    }

    if (loads) {
      ptx::mbarrier_wait(refilled.empty_v(), refilled.parity);
      load_v<kDim>(refilled, source);
      source += 2 * Source::kBytes;
    }
    ptx::sync_warp();
  };

  // Masked tiles, plain tiles, masked tiles, in the order of the keys.
  int tile = first_tile, masked_until = kScored ? last_tile : max(first_tile, min(plain_begin, last_tile));
  while (true) {
#pragma unroll 1
    for (; tile < masked_until; ++tile) step(std::true_type{}, tile);
    if (tile >= last_tile) break;
    if constexpr (!kScored) {
      const Work again = Work::of<Shape>(params);  // not kept: see Work
      const int plain_end = min(last_tile, Limits(params, again.batch).end(again.cta_row) / kKeys);
#pragma unroll 1
      for (; tile < plain_end; ++tile) step(std::false_type{}, tile);
    }
    masked_until = last_tile;
  }

  store_rows<Shape, P, kScored>(params, smem, o, rows);
  poison_rows<Shape, Source, kScored>(params);
}

}  // namespace intfa::cuda
