// The kernels that the SASS gates look at: the plain attention kernels of one head size, without their masked variants.
// INTFA_GATE_DIM is the head size.
#include "cuda/instances.cuh"

#define INTFA_GATE(NAME, ARITHMETIC, D) INTFA_ATTENTION(NAME##_d##D, intfa::cuda::Arithmetic::ARITHMETIC, false, D)
#define INTFA_GATES(D)                           \
  INTFA_GATE(intfa_attention_tile, kTileInt8, D) \
  INTFA_GATE(intfa_attention_half, kHalfPV, D)
#define INTFA_EXPAND(D) INTFA_GATES(D)
INTFA_EXPAND(INTFA_GATE_DIM)
