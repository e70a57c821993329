// The part of CUDA C++ that kernels use besides inline asm, for g++: qualifiers, built-in variables, vector types,
// casts.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) alignas(n)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned vx = 1, unsigned vy = 1, unsigned vz = 1) : x(vx), y(vy), z(vz) {}
};

struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(4) char4 {
  signed char x, y, z, w;
};

namespace simt {
// The built-in variables of the thread that runs now.
struct ThreadIndex {
  dim3 thread, block, block_dim, grid_dim;
  int lane = 0, warp = 0;
};
extern __attribute__((visibility("default"))) ThreadIndex* current;

template <class To, class From>
inline To bit_copy(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}
}  // namespace simt

#define threadIdx (simt::current->thread)
#define blockIdx (simt::current->block)
#define blockDim (simt::current->block_dim)
#define gridDim (simt::current->grid_dim)

inline uint32_t __float_as_uint(float f) { return simt::bit_copy<uint32_t>(f); }
inline float __uint_as_float(uint32_t u) { return simt::bit_copy<float>(u); }
inline int __float_as_int(float f) { return simt::bit_copy<int>(f); }
inline float __int_as_float(int i) { return simt::bit_copy<float>(i); }

inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
inline long min(long a, long b) { return a < b ? a : b; }
inline long max(long a, long b) { return a > b ? a : b; }
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
