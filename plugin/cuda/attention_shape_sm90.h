// Tile shape and shared memory of the wgmma kernels, by head size; as attention_shape.h for the mma.sync kernels.
//
// Shared memory, in this order:
//   kStages stages of {K [kKeys, Dp] s8, V^T [2, Dp, kTileN] s8, k_scale [kKeys] f32}
//   Q's codes [kTileM, Dp] s8
//   with kScored: the mask's terms for the tile [kTileM, kKeys] f32; shift [kTileM] f32 (RowTable)
//   unit [kTileM] f32 (RowTable), eight words of each warp (WgmmaRows::notes), the barriers of each stage
// K, V^T and Q in core-matrix order (ChunkOrder::kCoreMatrices).
#pragma once

#include "cuda/ptx.cuh"
#include "cuda/traits.cuh"

namespace intfa::cuda {

// kWarpgroups: each has 64 queries of its own; all share K and V.
template <int kDim, bool kScored_, int kWarpgroups, int kStages_>
struct WgmmaLayout {
  static constexpr bool kScored = kScored_;
  static constexpr ChunkOrder kOrder = ChunkOrder::kCoreMatrices;
  static constexpr int kKeys = 2 * kTileN;  // per tile: two packed tiles, and part of the numerics
  static constexpr int kWarpRows = 16;
  static constexpr int kWarps = 4 * kWarpgroups;  // that compute
  static constexpr int kTileM = kWarps * kWarpRows;
  static constexpr int kStages = kStages_;
  static constexpr bool kQInRegisters = kDim == 64;
  // P.V by this many channels: at 256 the accumulators of all would not fit beside O.
  static constexpr int kPart = kDim == 256 ? 128 : kDim;

  static constexpr int kVOffset = kKeys * kDim;
  static constexpr int kScaleOffset = 2 * kKeys * kDim;
  static constexpr int kStageBytes = kScaleOffset + 4 * kKeys;
  static constexpr int kQOffset = kStages * kStageBytes;
  static constexpr int kMaskOffset = kQOffset + kTileM * kDim;
  static constexpr int kShiftOffset = kMaskOffset + (kScored ? 4 * kTileM * kKeys : 0);
  static constexpr int kUnitOffset = kShiftOffset + (kScored ? 4 * kTileM : 0);
  static constexpr int kNotesOffset = kUnitOffset + 4 * kTileM;
  static constexpr int kBarrierOffset = kNotesOffset + 32 * kWarps;
  static constexpr int kSmemBytes = kBarrierOffset + 32 * kStages;
};

// One warpgroup, which loads for itself. Three CTAs fill an SM (two where registers or shared memory have no room for
// more): one's softmax hides another's products. K and V come and go by themselves, so that even one stage loads under
// products and softmax; at 256 a second would leave one CTA per SM.
template <int kDim, bool kScored>
struct WgmmaShape : WgmmaLayout<kDim, kScored, 1, kDim == 256 ? 1 : 2> {
  static constexpr bool kPersistent = false;
  static constexpr int kThreads = 128;
  static constexpr int kMinBlocks = kScored || kDim == 256 ? 2 : 3;
};

// Three warpgroups that compute and one that loads, in the only CTA of an SM: K and V come once for 192 queries.
template <int kDim>
struct PersistentShape : WgmmaLayout<kDim, /*kScored=*/false, 3, 3> {
  using Layout = WgmmaLayout<kDim, false, 3, 3>;
  static constexpr bool kPersistent = true;
  static constexpr int kThreads = 32 * Layout::kWarps + 128;
  static constexpr int kMinBlocks = 1;
  // 65536 registers are 128 for each thread; the loading warpgroup leaves most of its to the others.
  static constexpr int kRegisters = 160, kLoadingRegisters = 32;
  static_assert(32 * Layout::kWarps * kRegisters + 128 * kLoadingRegisters <= 65536);

  INTFA_DEVICE static int row_tiles(const AttentionParams& params) {
    return (params.rows.count + Layout::kTileM - 1) / Layout::kTileM;
  }
};

}  // namespace intfa::cuda
