// The only file with inline PTX: one instruction per wrapper, each with a host twin of the same signature.
//
// Under nvcc a wrapper is its instruction. Under a host compiler it calls the SIMT runtime of tests/native/simt, in
// which every CUDA thread is a fiber and warp collectives are rendezvous, so the kernels themselves run, unchanged, on
// a CPU. The build of the tests gives the include path of simt.h; it also defines `__global__`, `threadIdx` and the
// like for the host.
//
// Rules that keep both sides the same program:
//  - kernels contain no asm, no `__CUDA_ARCH__` and no `__shared__` variables: shared memory is one dynamic block,
//  addressed in bytes;
//  - arithmetic whose rounding matters uses add_rn, mul_rn, fma_rn: never contracted, so both simulators give the same
//  bits;
//  - a host twin takes the caller's source location, by which the runtime sees lanes meeting in different collectives.
//
// Source: PTX ISA, "Data Movement and Conversion Instructions" (cp.async, cvt) and "Warp Level Matrix Instructions"
// (mma, ldmatrix).
#pragma once

#include <cstdint>

#if !defined(__CUDACC__)
#include <cstring>

#include "simt.h"
#define __grid_constant__
#define INTFA_LOC , simt::loc_t loc = simt::loc_t::current()
#define INTFA_LOC_ONLY simt::loc_t loc = simt::loc_t::current()
#else
#define INTFA_LOC
#define INTFA_LOC_ONLY
#endif

#define INTFA_DEVICE __device__ __forceinline__

namespace intfa::ptx {

// The architecture the code is compiled for, as 10 * major + minor: chooses between instruction sequences, never
// between results; only the parts that a row's sum is made of, and so its rounding, differ.
#if defined(__CUDA_ARCH__)
constexpr int kArch = __CUDA_ARCH__ / 10;
#elif defined(INTFA_SIMT_ARCH)
constexpr int kArch = INTFA_SIMT_ARCH;
#else
constexpr int kArch = 80;
#endif

#if defined(__CUDACC__)  // ---------------------------------------------------------------------------------------- the
                         // device

INTFA_DEVICE unsigned char* dynamic_smem() {
  extern __shared__ __align__(1024) unsigned char intfa_smem[];
  return intfa_smem;
}
INTFA_DEVICE uint32_t smem_u32(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// Special registers, volatile: read where they are needed rather than kept alive.
#define INTFA_SPECIAL_REGISTER(NAME, REGISTER)               \
  INTFA_DEVICE int NAME() {                                  \
    int value;                                               \
    asm volatile("mov.s32 %0, " REGISTER ";" : "=r"(value)); \
    return value;                                            \
  }
INTFA_SPECIAL_REGISTER(thread_index, "%%tid.x")
INTFA_SPECIAL_REGISTER(cta_x, "%%ctaid.x")
INTFA_SPECIAL_REGISTER(cta_y, "%%ctaid.y")
INTFA_SPECIAL_REGISTER(cta_z, "%%ctaid.z")
INTFA_SPECIAL_REGISTER(num_ctas_x, "%%nctaid.x")
#undef INTFA_SPECIAL_REGISTER

INTFA_DEVICE void sync_block() { __syncthreads(); }
INTFA_DEVICE void sync_warp() { __syncwarp(); }
INTFA_DEVICE uint32_t shfl_xor(uint32_t v, int mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }
INTFA_DEVICE float shfl_xor(float v, int mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }
INTFA_DEVICE float shfl(float v, int lane) { return __shfl_sync(0xffffffffu, v, lane); }
INTFA_DEVICE bool warp_any(bool p) { return __any_sync(0xffffffffu, p); }

// Four 8x8 matrices of 16-bit units (8 rows of 16 bytes): lane l gives the address of row l%8 of matrix l/8 and
// receives, in r[i], units 2*(l%4), 2*(l%4)+1 of row l/4 of matrix i.
INTFA_DEVICE void ldmatrix_x4(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3},[%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
INTFA_DEVICE void ld_shared(float (&v)[4], uint32_t address) {
  asm volatile("ld.shared.v4.f32 {%0,%1,%2,%3},[%4];"
               : "=f"(v[0]), "=f"(v[1]), "=f"(v[2]), "=f"(v[3])
               : "r"(address)
               : "memory");
}
INTFA_DEVICE void ld_shared(uint32_t (&v)[4], uint32_t address) {
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3},[%4];"
               : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3])
               : "r"(address)
               : "memory");
}
INTFA_DEVICE void ld_shared(int32_t (&v)[4], uint32_t address) {
  asm volatile("ld.shared.v4.s32 {%0,%1,%2,%3},[%4];"
               : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3])
               : "r"(address)
               : "memory");
}
INTFA_DEVICE float ld_shared(uint32_t address) {
  float v;
  asm volatile("ld.shared.f32 %0,[%1];" : "=f"(v) : "r"(address) : "memory");
  return v;
}
INTFA_DEVICE int32_t ld_shared_s32(uint32_t address) {
  int32_t v;
  asm volatile("ld.shared.s32 %0,[%1];" : "=r"(v) : "r"(address) : "memory");
  return v;
}
INTFA_DEVICE void st_shared(uint32_t address, float v) {
  asm volatile("st.shared.f32 [%0],%1;" ::"r"(address), "f"(v) : "memory");
}
INTFA_DEVICE void st_shared(uint32_t address, const float (&v)[4]) {
  asm volatile("st.shared.v4.f32 [%0],{%1,%2,%3,%4};" ::"r"(address), "f"(v[0]), "f"(v[1]), "f"(v[2]), "f"(v[3])
               : "memory");
}
INTFA_DEVICE void st_shared(uint32_t address, const uint32_t (&v)[4]) {
  asm volatile("st.shared.v4.u32 [%0],{%1,%2,%3,%4};" ::"r"(address), "r"(v[0]), "r"(v[1]), "r"(v[2]), "r"(v[3])
               : "memory");
}
INTFA_DEVICE void st_shared(uint32_t address, uint32_t v) {
  asm volatile("st.shared.u32 [%0],%1;" ::"r"(address), "r"(v) : "memory");
}
INTFA_DEVICE void st_shared(uint32_t address, uint16_t v) {
  asm volatile("st.shared.u16 [%0],%1;" ::"r"(address), "h"(v) : "memory");
}
INTFA_DEVICE void st_shared(uint32_t address, int8_t v) {
  asm volatile("st.shared.s8 [%0],%1;" ::"r"(address), "h"(static_cast<int16_t>(v)) : "memory");
}

// Copies 16 bytes from global to shared memory; both addresses are multiples of 16. Visible after the group's wait and
// a barrier.
INTFA_DEVICE void cp_async16(uint32_t dst, const void* src) {
  asm volatile("cp.async.cg.shared.global [%0],[%1],16;" ::"r"(dst), "l"(__cvta_generic_to_global(src)) : "memory");
}
INTFA_DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending>
INTFA_DEVICE void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// d = c + A*B, m16n8k32. `c` is an operand of its own: a start value shared by many products is then never copied.
INTFA_DEVICE void mma_s8s8(int32_t (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const int32_t* c) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%10,%11,%12,%13};"
      : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]));
}
INTFA_DEVICE void mma_u8s8(int32_t (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const int32_t* c) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%10,%11,%12,%13};"
      : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]));
}
// d += A*B, m16n8k16, float16 operands (two per word, the lower index in the low half), float32 accumulation.
INTFA_DEVICE void mma_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

INTFA_DEVICE float ex2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0,%1;" : "=f"(y) : "f"(x));
  return y;
}
INTFA_DEVICE float lg2(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0,%1;" : "=f"(y) : "f"(x));
  return y;
}
INTFA_DEVICE float rcp(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0,%1;" : "=f"(y) : "f"(x));
  return y;
}
// upper << 16 | clamp(hi, 0, 255) << 8 | clamp(lo, 0, 255)
INTFA_DEVICE uint32_t pack_u8x2(int32_t hi, int32_t lo, uint32_t upper) {
  uint32_t d;
  asm("cvt.pack.sat.u8.s32.b32 %0,%1,%2,%3;" : "=r"(d) : "r"(hi), "r"(lo), "r"(upper));
  return d;
}
INTFA_DEVICE float f32_from_f16(uint16_t h) {
  float f;
  asm("cvt.f32.f16 %0,%1;" : "=f"(f) : "h"(h));
  return f;
}
INTFA_DEVICE uint16_t f16_from_f32(float f) {
  uint16_t h;
  asm("cvt.rn.f16.f32 %0,%1;" : "=h"(h) : "f"(f));
  return h;
}
INTFA_DEVICE uint32_t f16x2_from_f32(float hi, float lo) {
  uint32_t h;
  asm("cvt.rn.f16x2.f32 %0,%1,%2;" : "=r"(h) : "f"(hi), "f"(lo));
  return h;
}
INTFA_DEVICE uint16_t bf16_from_f32(float f) {
  uint16_t h;
  asm("cvt.rn.bf16.f32 %0,%1;" : "=h"(h) : "f"(f));
  return h;
}

INTFA_DEVICE float div_rn(float a, float b) { return __fdiv_rn(a, b); }
INTFA_DEVICE uint32_t dot4_u8(uint32_t a, uint32_t b, uint32_t c) { return __dp4a(a, b, c); }

// The same value, unknown to the compiler: what depends on it is computed where it is used, not kept over a loop.
INTFA_DEVICE int opaque(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

// A global access as wide as T, aligned to its size.
template <typename T>
INTFA_DEVICE T ld_global(const void* p) {
  return *static_cast<const T*>(p);
}
template <typename T>
INTFA_DEVICE void st_global(void* p, T value) {
  *static_cast<T*>(p) = value;
}

#else  // -------------------------------------------------------------------------------------------------- the host's
       // twins

INTFA_DEVICE unsigned char* dynamic_smem() { return simt::dyn_smem(); }
INTFA_DEVICE uint32_t smem_u32(const void* p INTFA_LOC) { return simt::smem_u32(p, loc); }

INTFA_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
INTFA_DEVICE int cta_x() { return static_cast<int>(blockIdx.x); }
INTFA_DEVICE int cta_y() { return static_cast<int>(blockIdx.y); }
INTFA_DEVICE int cta_z() { return static_cast<int>(blockIdx.z); }
INTFA_DEVICE int num_ctas_x() { return static_cast<int>(gridDim.x); }

INTFA_DEVICE void sync_block(INTFA_LOC_ONLY) { simt::syncthreads(loc); }
INTFA_DEVICE void sync_warp(INTFA_LOC_ONLY) { simt::syncwarp(loc); }
INTFA_DEVICE uint32_t shfl_xor(uint32_t v, int mask INTFA_LOC) { return simt::shfl_xor(v, mask, loc); }
INTFA_DEVICE float shfl_xor(float v, int mask INTFA_LOC) {
  return __uint_as_float(simt::shfl_xor(__float_as_uint(v), mask, loc));
}
INTFA_DEVICE float shfl(float v, int lane INTFA_LOC) {
  return __uint_as_float(simt::shfl_idx(__float_as_uint(v), lane, loc));
}
INTFA_DEVICE bool warp_any(bool p INTFA_LOC) { return simt::warp_any(p, loc); }

INTFA_DEVICE void ldmatrix_x4(uint32_t (&r)[4], uint32_t address INTFA_LOC) { simt::ldmatrix(r, 4, address, loc); }
INTFA_DEVICE void ld_shared(float (&v)[4], uint32_t address INTFA_LOC) { simt::lds(v, address, 16, loc); }
INTFA_DEVICE void ld_shared(uint32_t (&v)[4], uint32_t address INTFA_LOC) { simt::lds(v, address, 16, loc); }
INTFA_DEVICE void ld_shared(int32_t (&v)[4], uint32_t address INTFA_LOC) { simt::lds(v, address, 16, loc); }
INTFA_DEVICE float ld_shared(uint32_t address INTFA_LOC) {
  float v;
  simt::lds(&v, address, 4, loc);
  return v;
}
INTFA_DEVICE int32_t ld_shared_s32(uint32_t address INTFA_LOC) {
  int32_t v;
  simt::lds(&v, address, 4, loc);
  return v;
}
INTFA_DEVICE void st_shared(uint32_t address, float v INTFA_LOC) { simt::sts(address, &v, 4, loc); }
INTFA_DEVICE void st_shared(uint32_t address, const float (&v)[4] INTFA_LOC) { simt::sts(address, v, 16, loc); }
INTFA_DEVICE void st_shared(uint32_t address, const uint32_t (&v)[4] INTFA_LOC) { simt::sts(address, v, 16, loc); }
INTFA_DEVICE void st_shared(uint32_t address, uint32_t v INTFA_LOC) { simt::sts(address, &v, 4, loc); }
INTFA_DEVICE void st_shared(uint32_t address, uint16_t v INTFA_LOC) { simt::sts(address, &v, 2, loc); }
INTFA_DEVICE void st_shared(uint32_t address, int8_t v INTFA_LOC) { simt::sts(address, &v, 1, loc); }

INTFA_DEVICE void cp_async16(uint32_t dst, const void* src INTFA_LOC) { simt::cp_async16(dst, src, 16, loc); }
INTFA_DEVICE void cp_async_commit() { simt::cp_async_commit(); }
template <int kPending>
INTFA_DEVICE void cp_async_wait(INTFA_LOC_ONLY) {
  simt::cp_async_wait(kPending, loc);
}

INTFA_DEVICE void mma_s8s8(int32_t (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                           const int32_t* c INTFA_LOC) {
  const uint32_t b[2] = {b0, b1};
  for (int i = 0; i < 4; ++i) d[i] = c[i];
  simt::mma_16832(d, a, b, /*a_unsigned=*/false, loc);
}
INTFA_DEVICE void mma_u8s8(int32_t (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                           const int32_t* c INTFA_LOC) {
  const uint32_t b[2] = {b0, b1};
  for (int i = 0; i < 4; ++i) d[i] = c[i];
  simt::mma_16832(d, a, b, /*a_unsigned=*/true, loc);
}
INTFA_DEVICE void mma_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1 INTFA_LOC) {
  const uint32_t b[2] = {b0, b1};
  simt::mma_16816_f16(d, a, b, loc);
}

INTFA_DEVICE float ex2(float x) { return simt::ex2(x); }
INTFA_DEVICE float lg2(float x) { return simt::lg2(x); }
INTFA_DEVICE float rcp(float x) { return simt::rcp(x); }
INTFA_DEVICE uint32_t pack_u8x2(int32_t hi, int32_t lo, uint32_t upper) {
  return simt::pack_saturated<uint8_t>(hi, lo, upper);
}
INTFA_DEVICE float f32_from_f16(uint16_t h) { return simt::f32_from_f16(h); }
INTFA_DEVICE uint16_t f16_from_f32(float f) { return simt::f16_from_f32(f); }
INTFA_DEVICE uint32_t f16x2_from_f32(float hi, float lo) {
  return static_cast<uint32_t>(simt::f16_from_f32(hi)) << 16 | simt::f16_from_f32(lo);
}
INTFA_DEVICE uint16_t bf16_from_f32(float f) { return simt::bf16_from_f32(f); }
INTFA_DEVICE int opaque(int x) { return x; }
INTFA_DEVICE float div_rn(float a, float b) { return a / b; }
INTFA_DEVICE uint32_t dot4_u8(uint32_t a, uint32_t b, uint32_t c) { return simt::dp4a<uint8_t, uint8_t>(a, b, c); }

template <typename T>
INTFA_DEVICE T ld_global(const void* p) {
  T value;
  std::memcpy(&value, p, sizeof(T));
  return value;
}
template <typename T>
INTFA_DEVICE void st_global(void* p, T value) {
  std::memcpy(p, &value, sizeof(T));
}

#endif

// Arithmetic that is never contracted, and the other intrinsics that simt.h declares under CUDA's own names.
INTFA_DEVICE float fma_rn(float a, float b, float c) { return __fmaf_rn(a, b, c); }
INTFA_DEVICE float fma_rd(float a, float b, float c) { return __fmaf_rd(a, b, c); }
INTFA_DEVICE float mul_rn(float a, float b) { return __fmul_rn(a, b); }
INTFA_DEVICE float add_rn(float a, float b) { return __fadd_rn(a, b); }
INTFA_DEVICE int32_t s32_from_f32(float x) { return __float2int_rn(x); }  // ties to even, saturating; NaN gives 0
INTFA_DEVICE float f32_from_s32(int32_t x) { return __int2float_rn(x); }
INTFA_DEVICE float f32_bits(uint32_t x) { return __uint_as_float(x); }
INTFA_DEVICE uint32_t u32_bits(float x) { return __float_as_uint(x); }
INTFA_DEVICE float f32_from_bf16(uint16_t h) { return f32_bits(static_cast<uint32_t>(h) << 16); }
// Four bytes of the eight {b,a}, one per nibble of `selector`.
INTFA_DEVICE uint32_t byte_perm(uint32_t a, uint32_t b, uint32_t selector) { return __byte_perm(a, b, selector); }

}  // namespace intfa::ptx

#undef INTFA_LOC
#undef INTFA_LOC_ONLY
