#include "warp_math.h"

#include <algorithm>
#include <cstring>

#include "scalar.h"

namespace simt {

namespace {

int byte_of(uint32_t word, int i, bool is_unsigned) {
  const uint8_t byte = uint8_t(word >> (8 * i));
  return is_unsigned ? int(byte) : int(int8_t(byte));
}

float half_of(uint32_t word, int i, Half type) {
  const uint16_t bits = uint16_t(word >> (16 * i));
  return type == Half::kF16 ? f32_from_f16(bits) : f32_from_bf16(bits);
}

}  // namespace

void multiply_16832(int32_t (&d)[16][8], const LaneRegister* a, const LaneRegister* b, bool a_unsigned,
                    bool b_unsigned) {
  // 16-bit operands, B by column: the shape that a compiler turns into multiply-add instructions.
  int16_t matrix_a[16][32], matrix_b[8][32];
  for (int lane = 0; lane < 32; lane++) {
    const int g = lane / 4, t = lane % 4;
    for (int r = 0; r < 4; r++)
      for (int i = 0; i < 4; i++)
        matrix_a[g + 8 * (r % 2)][4 * t + i + 16 * (r / 2)] = int16_t(byte_of(a[r][lane], i, a_unsigned));
    for (int r = 0; r < 2; r++)
      for (int i = 0; i < 4; i++) matrix_b[g][4 * t + i + 16 * r] = int16_t(byte_of(b[r][lane], i, b_unsigned));
  }
  for (int row = 0; row < 16; row++)
    for (int column = 0; column < 8; column++) {
      int32_t sum = 0;
      for (int k = 0; k < 32; k++) sum += int32_t(matrix_a[row][k]) * matrix_b[column][k];
      d[row][column] = int32_t(uint32_t(d[row][column]) + uint32_t(sum));
    }
}

void multiply_16816(float (&d)[16][8], const LaneRegister* a, const LaneRegister* b, Half type) {
  float matrix_a[16][16], matrix_b[8][16];
  for (int lane = 0; lane < 32; lane++) {
    const int g = lane / 4, t = lane % 4;
    for (int r = 0; r < 4; r++)
      for (int i = 0; i < 2; i++) matrix_a[g + 8 * (r % 2)][2 * t + i + 8 * (r / 2)] = half_of(a[r][lane], i, type);
    for (int r = 0; r < 2; r++)
      for (int i = 0; i < 2; i++) matrix_b[g][2 * t + i + 8 * r] = half_of(b[r][lane], i, type);
  }
  for (int row = 0; row < 16; row++)
    for (int column = 0; column < 8; column++) {
      double sum = d[row][column];
      for (int k = 0; k < 16; k++) sum += double(matrix_a[row][k]) * matrix_b[column][k];
      d[row][column] = float(sum);
    }
}

void distribute_matrices(LaneRegister* r, int count, const uint8_t (*rows)[16], bool transposed) {
  for (int m = 0; m < count; m++)
    for (int lane = 0; lane < 32; lane++) {
      const int g = lane / 4, t = lane % 4;
      uint8_t word[4];
      if (transposed) {  // elements (2t, g) and (2t+1, g)
        std::memcpy(word, rows[8 * m + 2 * t] + 2 * g, 2);
        std::memcpy(word + 2, rows[8 * m + 2 * t + 1] + 2 * g, 2);
      } else {
        std::memcpy(word, rows[8 * m + g] + 4 * t, 4);
      }
      std::memcpy(&r[m][lane], word, 4);
    }
}

int extra_passes(const uint32_t* addresses, uint32_t lanes, unsigned bytes) {
  const int words = int(std::max(bytes / 4, 1u)), lanes_per_pass = 32 / words;
  int extra = 0;
  for (int first = 0; first < 32; first += lanes_per_pass) {
    uint32_t wanted[32][32];  // distinct words per bank
    int count[32] = {};
    int worst = 1;
    for (int lane = first; lane < first + lanes_per_pass; lane++) {
      if (!(lanes >> lane & 1)) continue;
      for (int i = 0; i < words; i++) {
        const uint32_t word = addresses[lane] / 4 + uint32_t(i), bank = word % 32;
        if (std::find(wanted[bank], wanted[bank] + count[bank], word) != wanted[bank] + count[bank]) continue;
        wanted[bank][count[bank]++] = word;
        worst = std::max(worst, count[bank]);
      }
    }
    extra += worst - 1;
  }
  return extra;
}

}  // namespace simt
