// The two INT8 products on codes as the caller gave them, rows of K and V in natural order: where few queries read a
// head once, as in decoding, packing it costs more than both products.
//
// The scores are those of int8_product.h. The output's channels stand in the order in which the four-row interleaving
// leaves them, until order_channels() puts them right.
#pragma once

#include "cpu/tokens.h"

namespace intfa::cpu {

// Keys of a head from `first` on, where a tile starts; zeros stand for those from `end` on.
struct CodeTile {
  TokenRows<int8_t> rows;
  int64_t first, end;
};

// scores[r][j] = q[r] . k[j] for rows [0, rows) and the keys of chunks [chunk_begin, chunk_end) of a tile.
struct CodeScoreProduct {
  const int8_t* q_codes;  // [kRows][head_dim]; all 16 rows are readable
  const int32_t* q_sum;   // [kRows]
  CodeTile k;
  int32_t* scores;  // [kRows][stride]
  int64_t stride;
  int rows;
  int chunk_begin, chunk_end;
};

// output[r] = alpha[r] * output[r] + beta[r] * float32(p[r] . v).
struct CodeOutputProduct {
  const uint8_t* p;  // [kRows][stride], bytes in softmax.cpp's order
  int64_t stride;
  CodeTile v;
  const float* alpha;  // [kRows]
  const float* beta;   // [kRows]
  float* output;       // [kRows][output_width]
  int rows;
  int chunk_begin, chunk_end;
};

using CodeScoreProductFn = void (*)(const CodeScoreProduct&);
using CodeOutputProductFn = void (*)(const CodeOutputProduct&);
// From [rows][output_width] to [rows][channels rounded up to a multiple of kGroup], in place.
using OrderChannelsFn = void (*)(float* output, int rows, int64_t channels);

CodeScoreProductFn code_score_product();
CodeOutputProductFn code_output_product();
OrderChannelsFn order_channels();

}  // namespace intfa::cpu
