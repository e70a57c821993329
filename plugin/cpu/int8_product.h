// The two INT8 products as function pointers, so that an instruction set of its own (AMX) can stand in for the portable
// unit.
#pragma once

#include "cpu/layout.h"

namespace intfa::cpu {

// scores[r][j] = q[r] . k[j], exact int32, for rows [0, rows), one or a multiple of 4, and the keys of chunks
// [chunk_begin, chunk_end) of a tile.
struct ScoreProduct {
  const int8_t* q_codes;   // [kRows][head_dim]; all 16 rows are readable
  const int32_t* q_sum;    // [kRows]
  const uint8_t* k_codes;  // the tile, see layout.h
  int32_t* scores;         // [kRows][stride]
  int64_t stride;
  int head_dim;
  int rows;
  int chunk_begin, chunk_end;
};

// output[r] = alpha[r] * output[r] + beta[r] * float32(p[r] . v); the product is exact int32.
struct OutputProduct {
  const uint8_t* p;  // [kRows][stride], bytes in softmax.cpp's order
  int64_t stride;
  const int8_t* v_codes;  // the tile, see layout.h
  const float* alpha;     // [kRows]
  const float* beta;      // [kRows]
  float* output;          // [kRows][channel_groups * 16]
  uint8_t* scratch;       // [kRows][stride][2]
  int channel_groups;
  int rows;
  int chunk_begin, chunk_end;
};

// The same with P and V in float32 registers (values of float16 precision); keys in natural order.
struct FloatOutputProduct {
  const float* p;  // [kRows][stride]
  int64_t stride;
  const float* v_float;  // the tile: [tile_stride][channel_groups * 16]
  const float* alpha;
  float* output;
  int channel_groups;
  int rows;
  int chunk_begin, chunk_end;
};

using ScoreProductFn = void (*)(const ScoreProduct&);
using OutputProductFn = void (*)(const OutputProduct&);
using FloatOutputProductFn = void (*)(const FloatOutputProduct&);

ScoreProductFn score_product();
OutputProductFn output_product();
FloatOutputProductFn float_output_product();

// Highway's bit for the instruction set that these are compiled for.
int64_t dispatched_target();

}  // namespace intfa::cpu
