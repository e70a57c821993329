#include "wgmma_math.h"

namespace simt {

MatrixOperand::MatrixOperand(uint64_t descriptor)
    : start(uint32_t(descriptor & 0x3fff) << 4),
      chunk_bytes(uint32_t(descriptor >> 16 & 0x3fff) << 4),
      group_bytes(uint32_t(descriptor >> 32 & 0x3fff) << 4) {}

std::string unsupported_descriptor(uint64_t descriptor) {
  constexpr uint64_t kFields = 0x3fff | uint64_t(0x3fff) << 16 | uint64_t(0x3fff) << 32;
  return (descriptor & ~kFields) == 0 ? "" : "the simulators know operands without swizzle and base offset only";
}

WarpShare WarpShare::from_memory(const MatrixOperand& operand, int warp, const unsigned char* memory) {
  WarpShare share;
  for (int r = 0; r < 16; r++)
    for (int k = 0; k < 32; k++)
      share.a[r][k] = static_cast<int8_t>(memory[operand.row(16 * (warp % 4) + r, k / 16) + uint32_t(k % 16)]);
  return share;
}

void WarpShare::multiply(const MatrixOperand& operand, int n, bool accumulate, const unsigned char* memory,
                         std::vector<int32_t> (&values)[32]) const {
  for (int column = 0; column < n; column++) {
    int16_t b[32];
    for (int k = 0; k < 32; k++) b[k] = static_cast<int8_t>(memory[operand.row(column, k / 16) + uint32_t(k % 16)]);
    for (int r = 0; r < 16; r++) {
      int32_t sum = 0;
      for (int k = 0; k < 32; k++) sum += int32_t(a[r][k]) * b[k];
      const int lane = 4 * (r % 8) + column % 8 / 2, i = column / 8 * 4 + r / 8 * 2 + column % 2;
      int32_t& d = values[lane][size_t(i)];
      d = accumulate ? int32_t(uint32_t(d) + uint32_t(sum)) : sum;
    }
  }
}

}  // namespace simt
