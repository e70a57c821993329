// One kernel per wrapper of plugin/cuda/ptx.cuh: 32 lanes, registers in, registers out. Compiled by g++ (host twins)
// and by nvcc (the instructions), they are checked against independent definitions in tests/test_simt_instructions.py.
//
// in: uint32 [inputs][32], out: uint32 [outputs][32]; a register's lane l is column l.
#pragma once

#include <cstdint>

#include "cuda/ptx.cuh"

namespace intfa::probe {

constexpr int kSharedBytes = 512;

struct Lane {
  const uint32_t* in;
  uint32_t* out;
  int lane = int(threadIdx.x);
  INTFA_DEVICE uint32_t get(int i) const { return in[i * 32 + lane]; }
  INTFA_DEVICE float getf(int i) const { return ptx::f32_bits(get(i)); }
  INTFA_DEVICE void put(int i, uint32_t v) const { out[i * 32 + lane] = v; }
  INTFA_DEVICE void putf(int i, float v) const { put(i, ptx::u32_bits(v)); }
};

// Copies in[first..first+3] into the 512 bytes of shared memory, row-major [4][32] words.
INTFA_DEVICE uint32_t fill_shared(const Lane& x, int first) {
  const uint32_t base = ptx::smem_u32(ptx::dynamic_smem());
  for (int i = 0; i < 4; ++i) ptx::st_shared(base + uint32_t(i * 128 + x.lane * 4), x.get(first + i));
  ptx::sync_block();
  return base;
}

template <bool kUnsigned>
INTFA_DEVICE void multiply_int8(const Lane& x) {  // a[4], b[2], c[4] -> d[4]
  uint32_t a[4];
  int32_t c[4], d[4];
  for (int i = 0; i < 4; ++i) a[i] = x.get(i);
  for (int i = 0; i < 4; ++i) c[i] = int32_t(x.get(6 + i));
  if (kUnsigned)
    ptx::mma_u8s8(d, a, x.get(4), x.get(5), c);
  else
    ptx::mma_s8s8(d, a, x.get(4), x.get(5), c);
  for (int i = 0; i < 4; ++i) x.put(i, uint32_t(d[i]));
}

#define INTFA_PROBE(name) __global__ void name(const uint32_t* in, uint32_t* out)

INTFA_PROBE(mma_s8s8) { multiply_int8<false>(Lane{in, out}); }
INTFA_PROBE(mma_u8s8) { multiply_int8<true>(Lane{in, out}); }
INTFA_PROBE(mma_f16) {
  const Lane x{in, out};
  uint32_t a[4];
  float d[4];
  for (int i = 0; i < 4; ++i) a[i] = x.get(i);
  for (int i = 0; i < 4; ++i) d[i] = x.getf(6 + i);
  ptx::mma_f16(d, a, x.get(4), x.get(5));
  for (int i = 0; i < 4; ++i) x.putf(i, d[i]);
}
INTFA_PROBE(ldmatrix_x4) {  // contents[4], byte offset of this lane's row -> r[4]
  const Lane x{in, out};
  const uint32_t base = fill_shared(x, 0);
  uint32_t r[4];
  ptx::ldmatrix_x4(r, base + x.get(4));
  for (int i = 0; i < 4; ++i) x.put(i, r[i]);
}
INTFA_PROBE(ld_shared_x4) {  // contents[4], byte offset -> four words
  const Lane x{in, out};
  const uint32_t base = fill_shared(x, 0);
  uint32_t r[4];
  ptx::ld_shared(r, base + x.get(4));
  for (int i = 0; i < 4; ++i) x.put(i, r[i]);
}
INTFA_PROBE(st_shared) {  // one byte and one 16-bit value per lane -> the words they make
  const Lane x{in, out};
  const uint32_t base = ptx::smem_u32(ptx::dynamic_smem()), lane = uint32_t(x.lane);
  ptx::st_shared(base + lane, static_cast<int8_t>(x.get(0)));
  ptx::st_shared(base + 128 + 2 * lane, static_cast<uint16_t>(x.get(1)));
  ptx::sync_block();
  x.put(0, lane < 8 ? ptx::u32_bits(ptx::ld_shared(base + 4 * lane)) : 0);
  x.put(1, lane < 16 ? ptx::u32_bits(ptx::ld_shared(base + 128 + 4 * lane)) : 0);
}
INTFA_PROBE(cp_async16) {  // in[0..3] row-major -> the same words, reversed by lane
  const Lane x{in, out};
  const uint32_t base = ptx::smem_u32(ptx::dynamic_smem());
  ptx::cp_async16(base + 16 * uint32_t(x.lane), in + 4 * x.lane);
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
  ptx::sync_block();
  for (int i = 0; i < 4; ++i) x.putf(i, ptx::ld_shared(base + uint32_t(i * 128 + (31 - x.lane) * 4)));
}
INTFA_PROBE(shfl_xor) {  // value -> value of lanes ^1, ^2, ^16
  const Lane x{in, out};
  x.put(0, ptx::shfl_xor(x.get(0), 1));
  x.putf(1, ptx::shfl_xor(x.getf(0), 2));
  x.put(2, ptx::shfl_xor(x.get(0), 16));
}
INTFA_PROBE(warp_any) {  // three flags -> any of each
  const Lane x{in, out};
  for (int i = 0; i < 3; ++i) x.put(i, ptx::warp_any(x.get(i) != 0));
}
INTFA_PROBE(scalar_float) {  // a, b, c
  const Lane x{in, out};
  const float a = x.getf(0), b = x.getf(1), c = x.getf(2);
  x.putf(0, ptx::ex2(a));
  x.putf(1, ptx::lg2(a));
  x.putf(2, ptx::fma_rn(a, b, c));
  x.putf(3, ptx::fma_rd(a, b, c));
  x.putf(4, ptx::mul_rn(a, b));
  x.putf(5, ptx::add_rn(a, b));
  x.putf(6, ptx::div_rn(a, b));
  x.put(7, uint32_t(ptx::s32_from_f32(a)));
  x.put(8, ptx::f16_from_f32(a));
  x.put(9, ptx::bf16_from_f32(a));
  x.put(10, ptx::f16x2_from_f32(a, b));
}
INTFA_PROBE(scalar_integer) {  // a, b, c
  const Lane x{in, out};
  const uint32_t a = x.get(0), b = x.get(1), c = x.get(2);
  x.put(0, ptx::pack_u8x2(int32_t(a), int32_t(b), c));
  x.put(1, ptx::byte_perm(a, b, c & 0x7777));
  x.put(2, ptx::dot4_u8(a, b, c));
  x.putf(3, ptx::f32_from_s32(int32_t(a)));
  x.putf(4, ptx::f32_from_f16(uint16_t(a)));
  x.putf(5, ptx::f32_from_bf16(uint16_t(a)));
}

#undef INTFA_PROBE

}  // namespace intfa::probe
