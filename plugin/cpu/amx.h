// The two INT8 products on Intel's tile unit (AMX). The packed layouts are those of the portable unit: 16 keys or
// channels of 64 products each are one tile as they lie in memory.
#pragma once

#include "cpu/int8_product.h"

namespace intfa::cpu {

// True where the processor has AMX-INT8 and AVX-512, the kernel lets this process use the tiles, and INTFA_MAX_ISA does
// not leave them out; asked once.
bool amx_usable();

// Holds this thread's tile configuration for one head size. The other users of tiles in a process load their own
// configuration before they compute, so none is kept past this object's life.
class AmxTiles {
 public:
  explicit AmxTiles(int head_dim);
  ~AmxTiles();
  AmxTiles(const AmxTiles&) = delete;
  AmxTiles& operator=(const AmxTiles&) = delete;
};

// As score_product() and output_product(), and equal to them bit by bit; within an AmxTiles of the problem's head size.
void amx_scores(const ScoreProduct& a);
void amx_output(const OutputProduct& a);

}  // namespace intfa::cpu
