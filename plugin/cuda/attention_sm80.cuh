// INT8 FlashAttention forward for sm_80 and later, by mma.sync m16n8k32.
//
//   Y[b, h, i, :] = softmax_j(score(i, j)) . V[b, h / (Hq/Hkv), j, :]
//   score(i, j)   = softcap(softmax_scale * q_scale[i] * k_scale[j] * (Qi[i] . Ki[j])) + mask(i, j)
//
// CTA: kNumWarps warps, each with 16 or 32 rows of its own, a query of a head each (row_map.cuh); tiles of kTileN keys
// pass through kNumStages stages of shared memory by cp.async. A warp quantizes its rows, one scale for each, and keeps
// S, P and O of them in registers: only K, V^T and k_scale are shared. S's accumulators become P's operands in place
// (fragment.cuh); the softmax is online_softmax.cuh.
//
// Tensors (types and shapes: traits.cuh): Q as given, through its strides; K, V^T and scales as the prologue packed
// them, or INT8 K as given (code_rows.cuh); Y and lse out.
//
// kScored: the scores pass through softcap or a mask tensor, in log2 units. Causal, window, ragged ends and nonpad
// lengths are limits [begin, end) per row and belong to every kernel: tiles outside the limits of all rows are not
// visited, tiles inside those of all rows are not compared. A tile that the mask tensor excludes for a whole warp is
// skipped by it.
//
// Non-finite input: a query gets a NaN unit, which its row's sums carry to the end; keys and values are marked in the
// packed tensors and in tile_flags, and CTAs that see a flag overwrite with NaN what IEEE arithmetic would have, after
// the main loop and outside of it.
//
// Source: the scheme is `scheme=tile` of the operator's documentation; after FlashAttention-2 (arXiv 2307.08691).
#pragma once

#include <type_traits>

#include "cuda/attention_shape.h"
#include "cuda/code_rows.cuh"
#include "cuda/epilogue.cuh"
#include "cuda/fragment.cuh"
#include "cuda/online_softmax.cuh"
#include "cuda/query.cuh"
#include "cuda/scoring.cuh"
#include "cuda/smem_tile.cuh"
#include "cuda/work.cuh"

namespace intfa::cuda {

template <int kDim, Arithmetic kArithmetic, bool kScored>
INTFA_DEVICE void attention(const AttentionParams& params) {
  using P = Probability<kArithmetic>;
  using Shape = AttentionShape<kDim, kArithmetic, kScored>;
  constexpr int kStrips = Shape::kStrips, kTileM = Shape::kTileM, kThreads = Shape::kThreads;
  using Source = PackedTile<kDim, P::kHalf>;
  using KTile = SmemTile<kDim>;
  using KCodes = CodeTile<kDim, kThreads>;
  using VTile = SmemTile<kTileN * Source::kElementV>;

  const Work work = Work::of<Shape>(params);
  const int lane = work.lane, warp = threadIdx.x >> 5, t = lane & 3;
  const uint32_t smem = ptx::smem_u32(ptx::dynamic_smem());
  const Limits limits(params, work.batch);

  // Tiles [first, last) of this split have keys for some row, [plain_begin, plain_end) only such that all rows attend.
  const int first_query = params.rows.query(work.cta_row);
  const int last_query = params.rows.query(min(work.cta_row + kTileM, params.rows.count) - 1);
  const int first_tile = max(limits.begin(first_query) / kTileN, work.split * params.tiles_per_split);
  const int last_tile =
      max(first_tile, min((limits.end(last_query) + kTileN - 1) / kTileN, (work.split + 1) * params.tiles_per_split));
  const int plain_begin = (limits.begin(last_query) + kTileN - 1) / kTileN;

  // K and V tiles on their way: `source` is the next one to fetch.
  const char* source = params.packed.tiles + 16 * threadIdx.x +
                       (static_cast<int64_t>(work.kv_head) * params.num_tiles + first_tile) * Source::kBytes;
  static_assert(kNumStages == 2, "the next stage is the other one");
  auto next_stage = [&](uint32_t stage) { return 2 * smem + Shape::kStageBytes - stage; };
  auto fetch = [&](int tile, uint32_t destination, auto code_rows) {
    if (tile < last_tile) {
      if (params.k_in_place) KCodes::copy_async(params, code_rows(), tile, destination);
      if (!params.k_in_place) KTile::template copy_async<kTileN, kThreads>(destination, source);
      VTile::template copy_async<kDim, kThreads>(destination + Shape::kKBytes, source + Source::kV);
      if (threadIdx.x < kTileN / 4) {
        ptx::cp_async16(destination + Shape::kScaleOffset + 16 * threadIdx.x, source + Source::kScale);
      }
      source += Source::kBytes;
    }
    ptx::cp_async_commit();  // an empty group too, so that the waits count alike
  };
  fetch(first_tile, smem, [&] { return CodeRows::of(params, work); });

  // Q: codes into shared memory, unit and shift per row; by each warp for itself.
  const uint32_t q_tile = smem + Shape::kQOffset + warp * Shape::kWarpRows * KTile::kPitch;
  const RowTable table = RowTable::of<Shape>(smem, warp);
  quantize_queries<KTile, kDim, Shape::kWarpRows, kScored>(params, work, q_tile, table);
  // What every accumulator starts from, through shared memory: of four values that the compiler cannot know to be
  // constant it keeps one quad of registers, where known ones would cost four moves per accumulator.
  const uint32_t constants = smem + Shape::kConstantsOffset + 32 * warp;
  if (lane < 4) ptx::st_shared(constants + 4 * lane, static_cast<uint32_t>(kBiasBits));
  if (lane == 0) {
    warp == 0 ? limits.store(constants + 16) : CodeRows::of(params, work).store(constants + 16);
  }
  ptx::sync_warp();
  int32_t start[4];
  ptx::ld_shared(start, constants);
  uint32_t q[kStrips][Shape::kQInRegisters ? kDim / 32 : 1][4];
  if constexpr (Shape::kQInRegisters) {
#pragma unroll
    for (int m = 0; m < kStrips; ++m) {
#pragma unroll
      for (int c = 0; c < kDim / 32; ++c) {
        ptx::ldmatrix_x4(q[m][c], q_tile + KTile::fragment_offset(KTile::lane_offset_a(lane), 16 * m, c));
      }
    }
  }

  RowState<kStrips> rows;
  float o[kStrips][kDim / 8][4];
#pragma unroll
  for (int m = 0; m < kStrips; ++m) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      rows.unit[m][h] = ptx::ld_shared(table.unit + 4 * (16 * m + 8 * h + lane / 4));
      rows.reference[m][h] = kFloor;
      rows.bias_sum[m][h] = rows.sum[m][h] = 0.f;
    }
#pragma unroll
    for (int i = 0; i < kDim / 8; ++i) o[m][i][0] = o[m][i][1] = o[m][i][2] = o[m][i][3] = 0.f;
  }

  const uint32_t k_lane = KTile::lane_offset_b(lane), v_lane = VTile::lane_offset_b(lane);

  uint32_t k_tile = smem;  // of the current stage
  auto fetch_ahead = [&](int tile) {
    fetch(tile + 1, next_stage(k_tile), [&] { return CodeRows::kept(smem + Shape::kConstantsOffset + 48); });
  };
  auto late_fetch = [&](int tile) {
    if constexpr (Shape::kMaskInNextStage) {
      ptx::sync_block();  // all have read their mask terms
      fetch_ahead(tile);
    }
  };

  auto step = [&](auto masked, unsigned tile) {
    constexpr bool kMasked = decltype(masked)::value;
    ptx::cp_async_wait<kNumStages - 2>();
    if (params.k_in_place) KCodes::clamp(k_tile);
    ptx::sync_block();  // the tile is visible to all, and all have left the stage that the next copy overwrites
    if constexpr (!Shape::kMaskInNextStage) fetch_ahead(tile);
    const uint32_t v_tile = k_tile + Shape::kKBytes, k_scales = k_tile + Shape::kScaleOffset + 16 * t;
    const int lane_key = tile * kTileN + 4 * t;
    constexpr int kMaskStrips = Shape::kMaskStrips;
    constexpr bool kWholeMask = kMaskStrips == kStrips, kSameRows = kMaskStrips == 1;
    auto mask_terms = [&](int m) {
      const int strip = (ptx::thread_index() >> 5) * kMaskStrips + (kWholeMask ? m : 0);
      const uint32_t offset = strip * 16 * kTileN * 4;
      if constexpr (Shape::kMaskInNextStage) {
        return next_stage(k_tile) + offset;
      } else {
        return smem + Shape::kMaskOffset + offset;
      }
    };
    auto stage_strips = [&](int m) {
      const Work again = Work::of<Shape>(params);
      return stage_mask<kTileN, kMaskStrips, kSameRows>(params, again, again.warp_row + 16 * m, lane_key,
                                                        mask_terms(m));
    };
    if (kScored && params.mask.data != nullptr) {
      // With room for one strip's terms, strip 1 is looked at where strip 0 attends nothing, and then makes way again.
      bool attended = false;
#pragma unroll 1
      for (int turn = 0; turn < (kWholeMask || same_rows<kSameRows>(params) ? 1 : 3); ++turn) {
        attended |= ptx::warp_any(stage_strips(turn & 1));
        if (attended == (turn != 1)) break;
      }
      if (!attended) {  // nothing for this warp
        late_fetch(tile);
        k_tile = next_stage(k_tile);
        return;
      }
    }

    int32_t s[kStrips][kTileN / 8][4];
    // With scores there are no registers to keep Q's addresses in: see Work.
    const int q_thread = kScored && !Shape::kQInRegisters ? ptx::thread_index() : threadIdx.x;
    [[maybe_unused]] const uint32_t q_lane = KTile::lane_offset_a(q_thread & 31);
    [[maybe_unused]] const uint32_t q_rows =
        smem + Shape::kQOffset + (q_thread >> 5) * Shape::kWarpRows * KTile::kPitch;
    auto load_q = [&](int m, int c, uint32_t (&fragment)[4]) {
      if constexpr (Shape::kQInRegisters) {
#pragma unroll
        for (int i = 0; i < 4; ++i) fragment[i] = q[m][c][i];
      } else {
        ptx::ldmatrix_x4(fragment, q_rows + KTile::fragment_offset(q_lane, 16 * m, c));
      }
    };
    multiply_qk<kDim, kStrips>(s, load_q, k_tile, k_lane, start);

    float tile_max[kStrips][2];
    scale_scores<true>(s, k_scales);
    auto row_limits = [&](int m, int h) -> LaneLimits {
      if constexpr (!kMasked) return {};
      const int query = params.rows.query(Work::of<Shape>(params).warp_row + 16 * m + 8 * h + lane / 4);
      const Limits kept(params, smem + Shape::kConstantsOffset + 16);  // the same in all warps; after a barrier
      return {kept.begin(query) - lane_key, kept.end(query) - lane_key};
    };
    auto scoring = [&](int m, int h) {
      if constexpr (kScored) {
        const bool own_terms = !kWholeMask && params.mask.data != nullptr && !same_rows<kSameRows>(params);
        if (own_terms && m > 0 && h == 0) stage_strips(m);
        const int thread = ptx::thread_index(), own_lane = thread & 31;  // not kept: see Work
        const RowTable again = RowTable::of<Shape>(smem, thread >> 5);
        const int row = 16 * m + 8 * h + own_lane / 4;
        return RowScoring<kTileN, kSameRows>(params, again, row, h, own_lane, mask_terms(m));
      } else {
        return NoScoring{};
      }
    };
    mask_scores<kMasked>(s, tile_max, row_limits, scoring);
    late_fetch(tile);

    uint32_t p[kStrips][kTileN / P::kKeysPerFragment][4];
    float weight[kStrips][2];
    const bool unbias = P::kBiased && tile % kUnbiasEvery == kUnbiasEvery - 1;
    softmax_tile<P, kScored>(p, weight, o, rows, s, tile_max, start, unbias);

#pragma unroll
    for (int channel = 0; channel < kDim; channel += 16) {  // 16 at a time: few live accumulators
      // Nothing to synchronize: it keeps the compiler from hoisting more products than it has registers for.
      if ((kScored || kDim == 256) && channel % Shape::kChannelsAtOnce == 0) ptx::sync_warp();
      if constexpr (P::kHalf) {
        multiply_pv_half<kStrips>(o, p, v_tile, v_lane, channel);
      } else {
        int32_t acc[kStrips][2][4];
        multiply_pv<kStrips>(acc, p, v_tile, v_lane, channel, start);
#pragma unroll
        for (int m = 0; m < kStrips; ++m) {
#pragma unroll
          for (int n = 0; n < 2; ++n) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
              float& sum = o[m][channel / 8 + n][e];
              sum = ptx::fma_rn(__int_as_float(acc[m][n][e]), weight[m][e >> 1], sum);
            }
          }
        }
      }
    }
    k_tile = next_stage(k_tile);
  };

  // Masked tiles, plain tiles, masked tiles, in the order of the keys.
  int tile = first_tile, masked_until = kScored ? last_tile : max(first_tile, min(plain_begin, last_tile));
  while (true) {
#pragma unroll 1
    for (; tile < masked_until; ++tile) step(std::true_type{}, tile);
    if (tile >= last_tile) break;
    if constexpr (!kScored) {
      const Work again = Work::of<Shape>(params);  // not kept: see Work
      const int query = params.rows.query(again.cta_row);
      const int plain_end = min(last_tile, Limits(params, again.batch).end(query) / kTileN);
#pragma unroll 1
      for (; tile < plain_end; ++tile) step(std::false_type{}, tile);
    }
    masked_until = last_tile;
  }
  ptx::cp_async_wait<0>();

  store_rows<Shape, P, kScored>(params, Work::of<Shape>(params), smem, o, rows);
  poison_rows<Shape, Source, kScored>(params, Work::of<Shape>(params));
}

}  // namespace intfa::cuda
