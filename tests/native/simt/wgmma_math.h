// wgmma m64 n k32 for int8, for both simulators: a warp's share, 16 of the 64 rows.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace simt {

// A K-major operand in shared memory, without swizzle: core matrices of eight rows x 16 bytes, 128 bytes each.
struct MatrixOperand {
  uint32_t start, chunk_bytes, group_bytes;  // shared address; between 16-byte chunks, between groups of eight rows

  explicit MatrixOperand(uint64_t descriptor);
  // Shared address of a core matrix, and of a row's chunk.
  uint32_t core_matrix(int group, int chunk) const {
    return start + uint32_t(group) * group_bytes + uint32_t(chunk) * chunk_bytes;
  }
  uint32_t row(int row, int chunk) const { return core_matrix(row / 8, chunk) + 16 * uint32_t(row % 8); }
};

// What the simulators do not know about a descriptor, or "".
std::string unsupported_descriptor(uint64_t descriptor);

// 128 bytes from each core matrix of `rows` rows: visit(shared address).
template <class Visit>
void each_core_matrix(const MatrixOperand& operand, int rows, Visit visit) {
  for (int group = 0; group < rows / 8; group++)
    for (int chunk = 0; chunk < 2; chunk++) visit(operand.core_matrix(group, chunk));
}

struct WarpShare {
  int16_t a[16][32];

  // From registers: a(lane, register), as mma.m16n8k32's. From memory: rows of warp `warp` of the warpgroup; memory:
  // where shared address 0 would be.
  template <class Register>
  static WarpShare from_registers(Register a, bool is_unsigned) {
    WarpShare share;
    for (int lane = 0; lane < 32; lane++)
      for (int i = 0; i < 16; i++) {
        const uint8_t byte = uint8_t(a(lane, i / 4) >> 8 * (i % 4));
        share.a[lane / 4 + (i / 4 % 2 ? 8 : 0)][4 * (lane % 4) + i % 4 + (i >= 8 ? 16 : 0)] =
            is_unsigned ? int16_t(byte) : int16_t(int8_t(byte));
      }
    return share;
  }
  static WarpShare from_memory(const MatrixOperand& operand, int warp, const unsigned char* memory);

  // values[lane][i] = or += the product with n columns of B: row lane / 4 + 8 * (i / 2 % 2), column 8 * (i / 4) +
  // 2 * (lane % 4) + i % 2.
  void multiply(const MatrixOperand& b, int n, bool accumulate, const unsigned char* memory,
                std::vector<int32_t> (&values)[32]) const;
};

}  // namespace simt
