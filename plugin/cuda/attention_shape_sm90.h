// Tile shape and shared memory of the wgmma kernel, by head size; as attention_shape.h for the mma.sync kernels.
//
// Shared memory, in this order:
//   kStages stages of {K [kKeys, Dp] s8, V^T [2, Dp, kTileN] s8, k_scale [kKeys] f32}
//   Q's codes [kTileM, Dp] s8
//   with kScored: the mask's terms for the tile [kTileM, kKeys] f32; shift [kTileM] f32 (RowTable)
//   unit [kTileM] f32 (RowTable), the CTA's Limits, the barriers of each stage
// K, V^T and Q in core-matrix order (ChunkOrder::kCoreMatrices).
#pragma once

#include "cuda/traits.cuh"

namespace intfa::cuda {

// kWarpgroups: each has 64 queries of its own; all share K and V. With one, three CTAs fill an SM, and each brings K
// and V from L2 for its 64 queries; with three, one CTA does, for a third of the traffic.
template <int kDim, bool kScored, int kWarpgroups>
struct WgmmaShape {
  static constexpr ChunkOrder kOrder = ChunkOrder::kCoreMatrices;
  static constexpr int kKeys = 2 * kTileN;  // per tile: two packed tiles, and part of the numerics
  static constexpr int kWarpRows = 16;
  static constexpr int kWarps = 4 * kWarpgroups;
  static constexpr int kTileM = kWarps * kWarpRows;
  static constexpr int kThreads = kWarps * 32;
  // Per SM: one warpgroup's softmax hides another's products, be they of one CTA or of several.
  static constexpr int kMinBlocks = kWarpgroups > 1 ? 1 : kScored || kDim == 256 ? 2 : 3;
  static constexpr bool kQInRegisters = kDim == 64;
  // K and V come and go by themselves, so that even one stage loads under products and softmax; at 256 a second would
  // leave one CTA per SM.
  static constexpr int kStages = kWarpgroups > 1 ? 4 : kDim == 256 ? 1 : 2;
  // By how many tiles the refill of a stage comes after its use by the thread that refills it: so far may the other
  // warpgroups fall behind without holding up that one.
  static constexpr int kLag = kWarpgroups > 1 ? 2 : 0;
  // P.V by this many channels: at 256 the accumulators of all would not fit beside O.
  static constexpr int kPart = kDim == 256 ? 128 : kDim;

  static constexpr int kVOffset = kKeys * kDim;
  static constexpr int kScaleOffset = 2 * kKeys * kDim;
  static constexpr int kStageBytes = kScaleOffset + 4 * kKeys;
  static constexpr int kQOffset = kStages * kStageBytes;
  static constexpr int kMaskOffset = kQOffset + kTileM * kDim;
  static constexpr int kShiftOffset = kMaskOffset + (kScored ? 4 * kTileM * kKeys : 0);
  static constexpr int kUnitOffset = kShiftOffset + (kScored ? 4 * kTileM : 0);
  static constexpr int kLimitsOffset = kUnitOffset + 4 * kTileM;
  static constexpr int kBarrierOffset = kLimitsOffset + 16;
  static constexpr int kSmemBytes = kBarrierOffset + 32 * kStages;
};

}  // namespace intfa::cuda
