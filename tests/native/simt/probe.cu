#include "probe.cuh"
