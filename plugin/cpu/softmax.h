// One step of the online softmax over a tile: integer scores -> P, and the factors that join the tile to the rows so
// far.
#pragma once

#include "cpu/layout.h"

namespace intfa::cpu {

// kTile:  P = u8 rint(255 * 2^(x - max of the tile)),    sums of the codes; on the grid of code_grid.h where bytes can
//         be looked up among 256
// kPaper: P = rint(127 * 2^(x - running max)) as u8,     sums of the unrounded P
// kHalf:  P = float16(2^(x - running max)) as float32,   sums of the rounded P
enum class PForm { kTile, kPaper, kHalf };

struct SoftmaxTile {
  float* scores;  // [kRows][stride]: int32 scores in; float32 P out (kHalf)
  uint8_t* p;     // [kRows][stride]: out (kTile, kPaper), bytes of each chunk in the order of quad_order()
  int64_t stride;
  int rows;
  int chunk_begin, chunk_end;
  const float* k_scale;      // of the tile's keys
  const float* factor;       // [rows] x = score * k_scale * factor
  const int32_t* key_begin;  // [rows] attended keys, relative to the tile
  const int32_t* key_end;
  int64_t all_begin, all_end;  // keys that all rows attend
  const float* bias;           // mask in log2, added to x; null: none
  int64_t bias_stride;         // 0: one row for all
  float softcap;               // log2 units; 0: none
  const float* offset;         // [rows] added before the cap, log2 units
  float* row_max;              // [rows] running, log2; in and out
  float* row_sum;              // [rows] running; in and out
  float* alpha;                // [kRows] out
  float* beta;                 // [kRows] out
};

using SoftmaxFn = void (*)(const SoftmaxTile&);
SoftmaxFn softmax_tile(PForm form);

// order[w]: which quad of consecutive keys of a chunk stands at P's byte 4w.
void quad_order(uint8_t order[kChunk / 4]);

// out[i] = 2^x[i] for x <= 0 as the kernel computes it.
void exp2_array(const float* x, float* out, int64_t count);

// out[i] = the code of P under kTile for x[i] <= 0.
void tile_codes_array(const float* x, uint8_t* out, int64_t count);

}  // namespace intfa::cpu
