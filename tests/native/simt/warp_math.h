// What the warp-wide instructions compute: pure functions from 32 lanes of registers to 32 lanes of registers, shared
// by the host SIMT and the PTX interpreter. Layouts: PTX ISA, "Matrix multiply-accumulate" (m16n8k32, m16n8k16) and
// ldmatrix. g = lane / 4, t = lane % 4.
#pragma once

#include <cstdint>

namespace simt {

using LaneRegister = uint32_t[32];  // one register of a warp

// d[i] of lane: row g + 8*(i/2), column 2t + i%2 of the 16x8 result, for every shape here.
constexpr int accumulator_row(int lane, int i) { return lane / 4 + 8 * (i / 2); }
constexpr int accumulator_column(int lane, int i) { return 2 * (lane % 4) + i % 2; }

// D[16][8] += A[16][32] . B[32][8], int8 or uint8 in, int32 out, wrapping. a: 4 registers, b: 2.
void multiply_16832(int32_t (&d)[16][8], const LaneRegister* a, const LaneRegister* b, bool a_unsigned,
                    bool b_unsigned);

enum class Half { kF16, kBF16 };

// D[16][8] += A[16][16] . B[16][8]: the exact sum rounded once to float. (A device may round the partial sums; compare
// with a bound.)
void multiply_16816(float (&d)[16][8], const LaneRegister* a, const LaneRegister* b, Half type);

// rows[8*m + j]: the 16 bytes of row j of matrix m. r[m] of lane: 4 bytes, as two 16-bit elements where transposed.
void distribute_matrices(LaneRegister* r, int count, const uint8_t (*rows)[16], bool transposed);

// Extra passes that one warp-wide shared access needs, 0 if there are no bank conflicts: 32 banks of 4 bytes, and per
// pass at most one word of each bank (the same word serves every lane that wants it). An access of 8 or 16 bytes per
// lane runs as 2 or 4 passes of half- or quarter-warps; `bytes` and `lanes` describe the access.
int extra_passes(const uint32_t* addresses, uint32_t lanes, unsigned bytes);

}  // namespace simt
