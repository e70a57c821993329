// What the wgmma kernels share: stages of K and V in shared memory, and the work of one warpgroup on its 64 queries.
//
// Tiles of kKeys keys (two packed tiles) pass through the stages by bulk copies: the prologue has packed K and V^T in
// core-matrix order, so a copy is contiguous and its target is at once an operand of wgmma, with no tensor map and no
// swizzle. S's accumulators become P's operands in place, as with mma.sync: wgmma's fragments are those of mma
// m16n8k32, and K's rows come in packed_row order.
//
// Barriers of a stage: full_k (K and k_scale have landed), full_v, empty_k (each warp has read K and k_scale), empty_v.
//
// Hazards:
//  - wgmma reads shared memory until the wait for its group: a stage is released after that wait, never before;
//  - Q's codes are ordinary stores read by wgmma: fence_async_proxy, then a barrier;
//  - a tile that the mask excludes is skipped by all warps of the warpgroup or by none: wgmma is theirs together.
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
  // Operand of wgmma: 32 bytes of each of the rows from `tile` on; advanced by 256 bytes, the next 32.
  INTFA_DEVICE static uint64_t operand(uint32_t tile) { return ptx::matrix_descriptor(tile, 8 * kRowBytes); }
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

// Makes the barriers of all stages, by one thread; a barrier of the CTA comes before anyone uses them.
template <typename Shape>
INTFA_DEVICE void init_stages(uint32_t smem) {
#pragma unroll
  for (int i = 0; i < Shape::kStages; ++i) Stage<Shape>(smem, i).init();
  ptx::fence_mbarrier_init();
}

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

// The tile of that number of a K/V head, packed.
template <int kDim>
INTFA_DEVICE const char* packed_tile(const AttentionParams& params, const Work& work, int tile) {
  return params.packed.tiles +
         (static_cast<int64_t>(work.kv_head) * params.num_tiles + 2 * tile) * PackedTile<kDim, false>::kBytes;
}

// By the keys that the rows [row, row + count) attend: some do in the tiles [first, last), all in those of them from
// plain_begin on, up to where the limits of the first row end.
struct Tiles {
  int first, last, plain_begin;

  template <typename Shape>
  INTFA_DEVICE static Tiles of(const AttentionParams& params, const Work& work, const Limits& limits, int row,
                               int count) {
    constexpr int kKeys = Shape::kKeys;
    const int first_query = params.rows.query(row);
    const int last_query = params.rows.query(min(row + count, params.rows.count) - 1);
    Tiles tiles;
    tiles.first = max(limits.begin(first_query) / kKeys, work.split * params.tiles_per_split);
    tiles.last =
        max(tiles.first, min((limits.end(last_query) + kKeys - 1) / kKeys, (work.split + 1) * params.tiles_per_split));
    tiles.plain_begin = (limits.begin(last_query) + kKeys - 1) / kKeys;
    return tiles;
  }
};

INTFA_DEVICE void release(uint32_t barrier, int lane) {
  ptx::sync_warp();
  if (lane == 0) ptx::mbarrier_arrive(barrier);
}

// Gives a stage back unused, when its turn has come.
template <typename Shape>
INTFA_DEVICE void give_back(const Stage<Shape>& stage, int lane) {
  ptx::mbarrier_wait(stage.full_k(), stage.parity);
  release(stage.empty_k(), lane);
  ptx::mbarrier_wait(stage.full_v(), stage.parity);
  release(stage.empty_v(), lane);
}

// A warp's part of the 64 queries of its warpgroup.
template <int kDim, typename Shape>
struct WgmmaRows {
  static constexpr bool kScored = Shape::kScored;
  static constexpr int kKeys = Shape::kKeys;
  using P = Probability<Arithmetic::kTileInt8, /*kWgmma=*/true>;
  using Tile = CoreTile<kDim>;     // K and Q
  using VTile = CoreTile<kTileN>;  // half of V^T

  uint32_t smem;
  int lane;
  uint32_t q[Shape::kQInRegisters ? kDim / 32 : 1][4];  // where they live in registers
  RowState<1> rows;
  float o[1][kDim / 8][4];

  // Brings Q's codes, unit, shift and the limits to shared memory. A barrier of the warpgroup comes next.
  INTFA_DEVICE void quantize(const AttentionParams& params, const Work& work, const Limits& limits) {
    const int warp = threadIdx.x >> 5;
    const uint32_t q_warp = smem + Shape::kQOffset + warp * Shape::kWarpRows * kDim;
    if (lane == 0) {
      limits.store(notes());
      ptx::st_shared(notes() + 16, static_cast<uint32_t>(work.warp_row - (warp & 3) * Shape::kWarpRows));
    }
    ptx::sync_warp();
    quantize_queries<Tile, kDim, Shape::kWarpRows, kScored>(params, work, q_warp, RowTable::of<Shape>(smem, warp));
    ptx::fence_async_proxy();
  }

  // After that barrier.
  INTFA_DEVICE void begin() {
    const int warp = threadIdx.x >> 5;
    if constexpr (Shape::kQInRegisters) {
      const uint32_t q_warp = smem + Shape::kQOffset + warp * Shape::kWarpRows * kDim;
#pragma unroll
      for (int c = 0; c < kDim / 32; ++c) ptx::ldmatrix_x4(q[c], q_warp + Tile::offset(lane & 15, 2 * c + (lane >> 4)));
    }
    const RowTable table = RowTable::of<Shape>(smem, warp);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      rows.unit[0][h] = ptx::ld_shared(table.unit + 4 * (8 * h + lane / 4));
      rows.reference[0][h] = kFloor;
      rows.bias_sum[0][h] = rows.sum[0][h] = 0.f;
    }
#pragma unroll
    for (int i = 0; i < kDim / 8; ++i) o[0][i][0] = o[0][i][1] = o[0][i][2] = o[0][i][3] = 0.f;
  }

  // Q's codes of the warpgroup.
  INTFA_DEVICE uint32_t q_tile() const {
    return smem + Shape::kQOffset + (Shape::kWarps == 4 ? 0 : ptx::thread_index() / 128 * 64 * kDim);
  }
  // Eight words of the warp, for what the main loop has no registers to carry.
  INTFA_DEVICE uint32_t notes() const { return smem + Shape::kNotesOffset + 32 * (ptx::thread_index() >> 5); }
  INTFA_DEVICE Limits limits(const AttentionParams& params) const { return {params, notes()}; }
  // See attend_all.
  INTFA_DEVICE int first_tile() const { return ptx::ld_shared_s32(notes() + 8); }
  INTFA_DEVICE int last_visit() const { return ptx::ld_shared_s32(notes() + 12); }
  INTFA_DEVICE int first_row() const { return ptx::ld_shared_s32(notes() + 16); }  // of the warpgroup
  INTFA_DEVICE uint32_t own_notes() const { return notes() + 24; }                 // the kernel's two

  // One tile: S, its scores, P, and O += P.V. k_used() and v_used() run when the warp has given K and V back.
  template <bool kMasked, typename KUsed, typename VUsed>
  INTFA_DEVICE void attend(const AttentionParams& params, const Stage<Shape>& stage, int visit, KUsed k_used,
                           VUsed v_used) {
    const int lane_key = kMasked ? (first_tile() + visit) * kKeys + 4 * (lane & 3) : 0;
    constexpr bool kSameRows = kDim <= 128;
    auto mask_terms = [&] {
      return smem + Shape::kMaskOffset + (ptx::thread_index() >> 5) * Shape::kWarpRows * kKeys * 4;
    };
    if (kScored && params.mask.data != nullptr) {
      const Work again = Work::of<Shape>(params);
      bool attended = stage_mask<kKeys, 1, kSameRows>(params, again, again.warp_row, lane_key, mask_terms());
      if (lane_key + kKeys > params.mask_seqlen_kv) {
        attended = attends_covered<kKeys, kSameRows>(params, lane_key, again.lane, mask_terms());
      }
      if (!ptx::warpgroup_any(1, attended)) {
        give_back(stage, lane);
        k_used();
        v_used();
        return;
      }
    }

    ptx::mbarrier_wait(stage.full_k(), stage.parity);
    int32_t s[1][kKeys / 8][4];
    const uint64_t queries = Tile::operand(q_tile()), keys = Tile::operand(stage.tile);
    ptx::wgmma_fence();
#pragma unroll
    for (int c = 0; c < kDim / 32; ++c) {
      if constexpr (Shape::kQInRegisters) {
        ptx::wgmma_s8s8(s[0], q[c], ptx::advance(keys, 256 * c), c > 0);
      } else {
        ptx::wgmma_s8s8(s[0], ptx::advance(queries, 256 * c), ptx::advance(keys, 256 * c), c > 0);
      }
    }
    ptx::wgmma_commit();
    ptx::wgmma_wait<0>(s[0]);

    float tile_max[1][2];
    scale_scores</*kBiased=*/false>(s, stage.k_scales() + 16 * (lane & 3));
    release(stage.empty_k(), lane);
    auto row_limits = [&](int, int h) -> LaneLimits {
      if constexpr (!kMasked) return {};
      const int row = (ptx::thread_index() >> 5 & 3) * Shape::kWarpRows + 8 * h + lane / 4;
      const int query = params.rows.query(first_row() + row);
      const Limits kept = limits(params);
      return {kept.begin(query) - lane_key, kept.end(query) - lane_key};
    };
    auto scoring = [&](int, int h) {
      if constexpr (kScored) {
        const RowTable again = RowTable::of<Shape>(smem, ptx::thread_index() >> 5);
        return RowScoring<kKeys, kSameRows>(params, again, 8 * h + lane / 4, h, lane, mask_terms());
      } else {
        return NoScoring{};
      }
    };
    mask_scores<kMasked>(s, tile_max, row_limits, scoring);

    uint32_t p[1][kKeys / P::kKeysPerFragment][4];
    float weight[1][2];
    constexpr int32_t kUnused[4] = {};  // wgmma's sums need no start value
    softmax_tile<P, kScored>(p, weight, o, rows, s, tile_max, kUnused, /*unbias=*/false);
    k_used();

    ptx::mbarrier_wait(stage.full_v(), stage.parity);
    const uint64_t values = VTile::operand(stage.v());
#pragma unroll
    for (int part = 0; part < kDim / Shape::kPart; ++part) {
      int32_t acc[Shape::kPart / 8][4];
      ptx::wgmma_fence();
#pragma unroll
      for (int c = 0; c < kKeys / 32; ++c) {
        const int place = c / 2 * kTileN * kDim + part * Shape::kPart * kTileN + 256 * (c % 2);
        ptx::wgmma_u8s8(acc, p[0][c], ptx::advance(values, place), c > 0);
      }
      ptx::wgmma_commit();
      ptx::wgmma_wait<0>(acc);
      if (part == kDim / Shape::kPart - 1) release(stage.empty_v(), lane);
#pragma unroll
      for (int i = 0; i < Shape::kPart / 8; ++i) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          float& sum = o[0][part * Shape::kPart / 8 + i][e];
          sum = ptx::fma_rn(ptx::f32_from_s32(acc[i][e]), weight[0][e >> 1], sum);
        }
      }
    }
    v_used();
  }

  // All tiles: masked, plain, masked, in the order of the keys. The CTA counts its visits to tiles, over all that it
  // works on; visit i is to the tile first_tile + i.
  template <typename KUsed, typename VUsed>
  INTFA_DEVICE void attend_all(const AttentionParams& params, const Tiles& tiles, int first_tile, KUsed k_used,
                               VUsed v_used) {
    int end = (kScored ? tiles.last : max(tiles.first, min(tiles.plain_begin, tiles.last))) - first_tile;
    if (lane == 0) {
      ptx::st_shared(notes() + 8, static_cast<uint32_t>(first_tile));
      ptx::st_shared(notes() + 12, static_cast<uint32_t>(tiles.last - first_tile));
      if (Shape::kPersistent) ptx::st_shared(notes() + 20, static_cast<uint32_t>(end));
    }
    ptx::sync_warp();
    // Of the masked tiles; three warpgroups have no register for it.
    auto masked_end = [&] { return Shape::kPersistent ? ptx::ld_shared_s32(notes() + 20) : end; };
    int visit = tiles.first - first_tile;
    auto step = [&](auto masked) {
      const Stage<Shape> stage(smem, visit);
      attend<decltype(masked)::value>(
          params, stage, visit, [&] { k_used(stage, visit); }, [&] { v_used(stage, visit); });
    };
    while (true) {
#pragma unroll 1
      for (; visit < masked_end(); ++visit) step(std::true_type{});
      if (visit >= last_visit()) break;
      if constexpr (!kScored) {
        const int query = params.rows.query(first_row());
        const int plain_end = min(last_visit(), limits(params).end(query) / kKeys - this->first_tile());
#pragma unroll 1
        for (; visit < plain_end; ++visit) step(std::false_type{});
      }
      end = last_visit();
      if constexpr (Shape::kPersistent) {
        ptx::sync_warp();                                          // all have read the end before
        ptx::st_shared(notes() + 20, static_cast<uint32_t>(end));  // by all lanes alike
      }
    }
  }

  INTFA_DEVICE void store(const AttentionParams& params, const Work& work) const {
    store_rows<Shape, P, kScored>(params, work, smem, o, rows);
    poison_rows<Shape, PackedTile<kDim, false>, kScored>(params, work);
  }
};

}  // namespace intfa::cuda
