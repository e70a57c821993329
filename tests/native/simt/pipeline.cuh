// A small kernel with the skeleton of the attention kernels, for testing the simulators themselves: C = A . B^T in
// int8, K streamed through two swizzled stages of shared memory by cp.async. test_simt_defects.py seeds bugs into its
// text; each must be found.
//
// CTA: 2 warps x 16 rows of A, 32 rows of B. A [m, k], B [n, k] int8, C [m, n] int32; m, n multiples of 32, k of 64.
#pragma once

#include <cstdint>

#include "cuda/ptx.cuh"

namespace intfa::probe {

constexpr int kRows = 32, kDepth = 64;  // of a tile of A or B
constexpr int kTileBytes = kRows * kDepth;
constexpr int kPipelineShared = 2 * 2 * kTileBytes;  // stages x {A, B}

// 16-byte chunk of a 64-byte row: XOR with row/2, so that eight rows of an ldmatrix use all banks once.
INTFA_DEVICE uint32_t chunk_offset(int row, int chunk) {
  return uint32_t(row * kDepth + ((chunk ^ ((row >> 1) & 3)) << 4));
}

INTFA_DEVICE void fetch_tile(uint32_t tile, const int8_t* rows, int pitch) {
  for (int i = int(threadIdx.x); i < kTileBytes / 16; i += 64)
    ptx::cp_async16(tile + chunk_offset(i / 4, i % 4), rows + (i / 4) * pitch + i % 4 * 16);
}

__global__ void pipeline(const int8_t* a, const int8_t* b, int32_t* c, int n, int k) {
  const int lane = int(threadIdx.x) & 31, warp = int(threadIdx.x) >> 5;
  const uint32_t smem = ptx::smem_u32(ptx::dynamic_smem());
  const int8_t* a_rows = a + int(blockIdx.y) * kRows * k;
  const int8_t* b_rows = b + int(blockIdx.x) * kRows * k;
  const int tiles = k / kDepth;
  auto fetch = [&](int tile) {
    if (tile < tiles) {
      const uint32_t stage = smem + uint32_t(tile % 2 * 2 * kTileBytes);
      fetch_tile(stage, a_rows + tile * kDepth, k);
      fetch_tile(stage + kTileBytes, b_rows + tile * kDepth, k);
    }
    ptx::cp_async_commit();
  };
  int32_t acc[4][4] = {};
  fetch(0);
  for (int tile = 0; tile < tiles; ++tile) {
    fetch(tile + 1);
    ptx::cp_async_wait<1>();
    ptx::sync_block();  // the tile is visible to all
    const uint32_t stage = smem + uint32_t(tile % 2 * 2 * kTileBytes);
    for (int step = 0; step < 2; ++step) {
      uint32_t x[4];
      ptx::ldmatrix_x4(x, stage + chunk_offset(warp * 16 + (lane & 15), 2 * step + (lane >> 4)));
      for (int pair = 0; pair < 2; ++pair) {
        uint32_t y[4];
        const int row = 16 * pair + (lane & 7) + (lane >> 4 << 3);
        ptx::ldmatrix_x4(y, stage + kTileBytes + chunk_offset(row, 2 * step + (lane >> 3 & 1)));
        for (int half = 0; half < 2; ++half) {
          int32_t (&d)[4] = acc[2 * pair + half];
          const int32_t start[4] = {d[0], d[1], d[2], d[3]};
          ptx::mma_s8s8(d, x, y[2 * half], y[2 * half + 1], start);
        }
      }
    }
    ptx::sync_block();  // everyone has read the stage that the next fetch overwrites
  }
  ptx::cp_async_wait<0>();
  int32_t* c_rows = c + (int64_t(blockIdx.y) * kRows + warp * 16) * n + int(blockIdx.x) * kRows;
  for (int j = 0; j < 4; ++j)
    for (int i = 0; i < 4; ++i) c_rows[(lane / 4 + 8 * (i / 2)) * n + 8 * j + 2 * (lane % 4) + i % 2] = acc[j][i];
}

// Kernels that are wrong in ways the simulators report as such. data: 32 or 64 words.
__global__ void divergent_shuffle(uint32_t* data) {
  uint32_t v = data[threadIdx.x];
  if (v & 1)
    v = ptx::shfl_xor(v, 1);
  else
    v = ptx::shfl_xor(v, 2) + 1;
  data[threadIdx.x] = v;
}
__global__ void divergent_barrier(uint32_t* data) {
  if (data[threadIdx.x] & 1) {
    data[threadIdx.x] += 2;
    ptx::sync_block();
  } else {
    ptx::sync_block();
    data[threadIdx.x] += 4;
  }
}
__global__ void missing_warp_at_barrier(uint32_t* data) {
  if (threadIdx.x < 32) ptx::sync_block();
  data[threadIdx.x] = 0;
}
__global__ void exit_before_copy(uint32_t* data) {
  ptx::cp_async16(ptx::smem_u32(ptx::dynamic_smem()) + 16 * (threadIdx.x & 31), data + 4 * (threadIdx.x & 7));
  ptx::cp_async_commit();
}
// For the sanitizers: one lane reads behind the array; two warps write the same word.
__global__ void out_of_bounds(uint32_t* data) { data[threadIdx.x] = data[threadIdx.x + (threadIdx.x == 63)]; }
__global__ void global_race(uint32_t* data) { data[threadIdx.x & 31] = threadIdx.x; }
// A warp reads what another lane of it copied, after its own wait alone.
__global__ void missing_warp_sync(uint32_t* data) {
  const uint32_t smem = ptx::smem_u32(ptx::dynamic_smem());
  ptx::cp_async16(smem + 16 * threadIdx.x, data + 4 * (threadIdx.x & 15));
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
  uint32_t v[4];
  ptx::ld_shared(v, smem + 16 * (threadIdx.x ^ 1));
  data[threadIdx.x] = v[0];
}
// Rows of 128 bytes: without a swizzle the eight rows of an ldmatrix share their banks.
__global__ void bank_conflict(uint32_t* data) {
  const uint32_t smem = ptx::smem_u32(ptx::dynamic_smem());
  for (int i = 0; i < 16; ++i) ptx::st_shared(smem + 4 * (threadIdx.x + 64 * uint32_t(i)), data[threadIdx.x]);
  ptx::sync_block();
  uint32_t r[4];
  ptx::ldmatrix_x4(r, smem + 128 * (threadIdx.x & 31));
  data[threadIdx.x] = r[0];
}

}  // namespace intfa::probe
