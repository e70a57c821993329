#include "cuda/instances.cuh"

INTFA_KERNELS(32)
