// Rows of Q and Y that are asked for before they are needed.
#pragma once

#include "cpu/pack.h"
#include "hwy/base.h"

namespace intfa::cpu {

constexpr int64_t kCacheLine = 64;

// Inlined by force: GCC takes a function that only prefetches for one that does nothing, and drops the call.
HWY_INLINE void prefetch_row(const void* data, const TensorStrides& strides, DataType dtype, int64_t batch,
                             RowPosition at, int64_t channels) {
  const int64_t element_bytes = dtype == DataType::kFloat32 ? 4 : dtype == DataType::kInt8 ? 1 : 2;
  const char* row = static_cast<const char*>(data) +
                    element_bytes * (batch * strides.batch + at.head * strides.head + at.query * strides.token);
  for (int64_t i = 0; i < element_bytes * channels; i += kCacheLine) __builtin_prefetch(row + i);
}

}  // namespace intfa::cpu
