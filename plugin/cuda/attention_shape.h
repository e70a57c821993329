// Tile shape and shared memory of the attention kernels, by head size: what the kernel and its launcher must agree on.
//
// Shared memory, in this order:
//   kNumStages stages of {K tile [kTileN, Dp] s8, V^T tile [Dp, kTileN] s8 or f16, k_scale [kTileN] f32}
//   Q's codes [kTileM, Dp] s8, where they do not live in registers
//   per warp eight words: four times the bits of kBias, then Limits (of warp 0) or CodeRows (of the others)
//   with kScored: the mask's terms for the tile and kMaskStrips strips of each warp [16 * kNumWarps, kTileN] f32, as
//   their lanes need them, unless kMaskInNextStage; shift [kTileM] f32 (RowTable) unit [kTileM] f32 (RowTable)
#pragma once

#include "cuda/traits.cuh"

namespace intfa::cuda {

constexpr int kMaxSmemBytes = 99 * 1024;  // of a block on sm_86, 89 and 120; others have more

template <int kDim, Arithmetic kArithmetic, bool kScored>
struct AttentionShape {
  // 32 rows per warp use each K and V fragment twice; at 256 the output alone would fill the registers, so 16.
  static constexpr int kStrips = kDim <= 128 ? 2 : 1;
  static constexpr ChunkOrder kOrder = ChunkOrder::kRows;
  static constexpr int kWarpRows = 16 * kStrips;
  static constexpr int kTileM = kNumWarps * kWarpRows;
  static constexpr int kThreads = kNumWarps * 32;
  static constexpr int kMinBlocks = kDim <= 128 ? 2 : 1;  // per SM: the register ceiling
  static constexpr bool kQInRegisters = kDim <= 64 || kDim == 256;
  static constexpr bool kHalf = kArithmetic == Arithmetic::kHalfPV;
  // Channels of P.V between which the compiler moves nothing, in kernels with scores or of 256 channels: found by
  // compiling for sm_80, 89 and 90a, none of which spills with them; nor does sm_100 at 256.
  static constexpr int kChannelsAtOnce = kHalf && kScored           ? 128
                                         : kHalf && kDim == 256     ? 256
                                         : kDim == 64 || kDim == 96 ? 32
                                                                    : 64;

  static constexpr int kRowBytes = kDim == 96 ? 128 : kDim;  // SmemTile's pitch
  static constexpr int kKBytes = kTileN * kRowBytes;
  static constexpr int kVBytes = kDim * kTileN * (kHalf ? 2 : 1);
  static constexpr int kScaleOffset = kKBytes + kVBytes;
  static constexpr int kStageBytes = kScaleOffset + 4 * kTileN;
  static constexpr int kQBytes = kTileM * kRowBytes;
  // Q in registers is staged where the last stage's tile comes later.
  static constexpr int kQOffset = (kQInRegisters ? kNumStages - 1 : kNumStages) * kStageBytes;
  static constexpr int kConstantsOffset = kNumStages * kStageBytes + (kQInRegisters ? 0 : kQBytes);
  static constexpr int kMaskOffset = kConstantsOffset + 32 * kNumWarps;
  // Strips of each warp whose mask terms there is room for. One at a time lets two CTAs into an SM, of 100 KB at 64 and
  // of 164 KB at 96; at 128 there are no registers for it.
  static constexpr int kMaskStrips = kDim == 128 ? kStrips : 1;
  static constexpr int kMaskBytes = kScored ? 4 * 16 * kMaskStrips * kNumWarps * kTileN : 0;
  // Where a place of its own would be too much, the mask's terms take the stage that is fetched next, and the fetch
  // waits until the scores are masked.
  static constexpr bool kMaskInNextStage = kMaskOffset + kMaskBytes + 8 * kTileM > kMaxSmemBytes;
  static constexpr int kShiftOffset = kMaskOffset + (kMaskInNextStage ? 0 : kMaskBytes);
  static constexpr int kOwnUnitOffset = kShiftOffset + (kScored ? 4 * kTileM : 0);
  // The plain kernel needs the units only before the last stage's first tile comes. At 128, two CTAs per SM of 100 KB
  // depend on it.
  static constexpr bool kUnitInStage = !kScored && !kQInRegisters;
  static constexpr int kUnitOffset = kUnitInStage ? (kNumStages - 1) * kStageBytes : kOwnUnitOffset;
  static constexpr int kSmemBytes = kOwnUnitOffset + (kUnitInStage ? 0 : 4 * kTileM);
  static_assert(!kQInRegisters || kQBytes <= kStageBytes);
  static_assert(!kMaskInNextStage || kMaskBytes <= kStageBytes);
  static_assert(kSmemBytes <= kMaxSmemBytes);
};

}  // namespace intfa::cuda
