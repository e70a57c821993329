// A tile in shared memory: rows of kRowBytes, their 16-byte chunks swizzled so that the eight rows of an ldmatrix never
// share a bank.
//
// ldmatrix reads, per 8x8 matrix, the same logical chunk of eight consecutive rows; 128 bytes hold all banks once. So
// the chunk index is XORed with the row (rows of 128 bytes and more), with row/2 (64 bytes: two rows per 128) or row/4
// (32 bytes). Rows of 96 bytes are kept 128 apart: six chunks have no XOR.
#pragma once

#include "cuda/ptx.cuh"

namespace intfa::cuda {

template <int kRowBytes>
struct SmemTile {
  static_assert(kRowBytes % 32 == 0);
  static constexpr int kPitch = kRowBytes == 96 ? 128 : kRowBytes;

  INTFA_DEVICE static int swizzle(int row) {
    return kPitch >= 128 ? row & 7 : kPitch == 64 ? (row >> 1) & 3 : (row >> 2) & 1;
  }
  // Byte offset of a 16-byte chunk.
  INTFA_DEVICE static uint32_t offset(int row, int chunk) { return row * kPitch + ((chunk ^ swizzle(row)) << 4); }

  // This lane's part of the ldmatrix addresses; fragment_offset() adds where in the tile. A: 16 rows x 32 bytes,
  // matrices in the order (rows 0-7, low), (8-15, low), (0-7, high), (8-15, high). B: (0-7, low), (0-7, high), (8-15,
  // low), (8-15, high), that is the two registers of rows 0-7, then those of rows 8-15.
  INTFA_DEVICE static uint32_t lane_offset_a(int lane) { return offset(lane & 15, lane >> 4); }
  INTFA_DEVICE static uint32_t lane_offset_b(int lane) { return offset((lane & 7) + (lane >> 4 << 3), lane >> 3 & 1); }

  // Where lane_offset moves for the 32-byte column `column` of rows from `row`, a multiple of 8: chunk bits 1 and 2 are
  // under the XOR, everything above is additive.
  INTFA_DEVICE static uint32_t fragment_offset(uint32_t lane_offset, int row, int column) {
    return (lane_offset ^ ((2 * column & 7) << 4)) + ((2 * column & ~7) << 4) + row * kPitch;
  }

  // Starts the copy of kRows rows that lie behind each other in global memory, by all kThreads of the CTA. rows: of
  // this thread's first chunk, that is the first row + 16 * threadIdx.x.
  template <int kRows, int kThreads>
  INTFA_DEVICE static void copy_async(uint32_t tile, const char* rows) {
    constexpr int kChunks = kRowBytes / 16, kTotal = kRows * kChunks;
    static_assert(kTotal % kThreads == 0, "whole passes");
    const uint32_t first = offset(threadIdx.x / kChunks, threadIdx.x % kChunks);
#pragma unroll
    for (int i = 0; i < kTotal / kThreads; ++i) {
      // Whole swizzle periods between passes leave the chunk's place in the row: one address and constant distances.
      constexpr bool kPeriodic = kThreads % (8 * kChunks) == 0;
      const int at = i * kThreads + threadIdx.x;
      const uint32_t to = kPeriodic ? first + i * (kThreads / kChunks) * kPitch : offset(at / kChunks, at % kChunks);
      ptx::cp_async16(tile + to, rows + i * kThreads * 16);
    }
  }
};

}  // namespace intfa::cuda
