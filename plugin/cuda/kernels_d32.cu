#include "instances.cuh"

INTFA_KERNELS(32)
