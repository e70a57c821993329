// The table of wgmma kernels: what a launcher prefers to kernels.h's on an sm_90 GPU, where the build has code for
// sm_90a. What is not in it stays on mma.sync:
//   head size 32    its products are too small to keep the tensor cores busy, and the exponentials bound either kernel
//   kPaperInt8      exists to reproduce a table, not for speed
//   kHalfPV         its second product is in float16; it waits for a measurement that asks for it
//   k_granularity group  has one scale per tile and group, and the prologue's tiles have 64 keys
//   tile_n 64       one scale of P for 64 keys, where these kernels have it for 128
// CTAs of 192 queries come after those of 64, and are preferred where dispatch.cu predicts a gain; none has scores
// (softcap, mask), which ask for more than its 160 registers, nor head size 256. No GPU has decided this yet.
#pragma once

#include "cuda/kernels.h"

namespace intfa::cuda {

struct WgmmaKernel {
  int head_dim;
  AttentionKernel attention;
};
constexpr int kWgmmaTileM = 64;  // the smallest, for any number of queries
constexpr int kNumWgmmaKernels = 11;
extern const WgmmaKernel kWgmmaKernels[kNumWgmmaKernels];

}  // namespace intfa::cuda
