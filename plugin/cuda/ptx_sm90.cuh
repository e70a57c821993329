// Hopper's instructions (sm_90a): mbarriers, bulk copies, wgmma, setmaxnreg. A part of ptx.cuh under the same rules:
// one instruction per wrapper, each with a host twin.
//
// Order of memory, per instruction:
//  - bulk copies and wgmma access shared memory through the async proxy. What they read after ordinary stores needs
//    fence_async_proxy() by the storing threads, then a barrier. What they wrote is visible to whoever waits for its
//    mbarrier;
//  - wgmma reads its operands, registers included, until the wait for its group; its accumulators are undefined until
//    then. wgmma_fence() comes between other accesses to these registers and wgmma.
//
// Source: PTX ISA, "mbarrier", "cp.async.bulk" and "Asynchronous Warpgroup Level Matrix Multiply-Accumulate
// Instructions". Simulated, not run on a GPU.
#pragma once

#include "cuda/ptx.cuh"

#if !defined(__CUDACC__)
#include "simt_sm90.h"
#define INTFA_LOC , simt::loc_t loc = simt::loc_t::current()
#define INTFA_LOC_ONLY simt::loc_t loc = simt::loc_t::current()
#endif

namespace intfa::ptx {

// Whether this compilation has the instructions.
#if !defined(__CUDACC__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
constexpr bool kHasWgmma = true;
#else
constexpr bool kHasWgmma = false;
#endif

// A K-major operand of wgmma in shared memory, without swizzle: core matrices of eight rows x 16 bytes, 128 bytes each.
// Adjacent 16-byte chunks of a row are 128 bytes apart, adjacent groups of eight rows `group_bytes`. `address` and
// `group_bytes` are multiples of 16.
INTFA_DEVICE uint64_t matrix_descriptor(uint32_t address, uint32_t group_bytes) {
  constexpr uint64_t kChunkBytes = 128;
  return (address & 0x3ffff) >> 4 | kChunkBytes >> 4 << 16 | static_cast<uint64_t>(group_bytes >> 4) << 32;
}
// The operand that lies `bytes` further on: in the low word, so that no 64-bit carry is computed.
INTFA_DEVICE uint64_t advance(uint64_t descriptor, int bytes) {
  return (descriptor & ~uint64_t{0xffffffff}) | (static_cast<uint32_t>(descriptor) + (bytes >> 4));
}

#if defined(__CUDACC__)

// The barrier completes a phase when `count` arrivals have come and all bytes announced to it have landed.
INTFA_DEVICE void mbarrier_init(uint32_t barrier, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0],%1;" ::"r"(barrier), "r"(count) : "memory");
}
// Makes initialized barriers known to the async proxy.
INTFA_DEVICE void fence_mbarrier_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
INTFA_DEVICE void mbarrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _,[%0];" ::"r"(barrier) : "memory");
}
// Arrives, and announces bytes that bulk copies will bring.
INTFA_DEVICE void mbarrier_arrive_expect(uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _,[%0],%1;" ::"r"(barrier), "r"(bytes) : "memory");
}
// Returns when the phase of this parity has completed; the phase before the first counts as completed, with parity 1.
INTFA_DEVICE void mbarrier_wait(uint32_t barrier, uint32_t parity) {
  uint32_t done;
  do {
    asm volatile("{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p,[%1],%2; selp.b32 %0,1,0,p;}"
                 : "=r"(done)
                 : "r"(barrier), "r"(parity)
                 : "memory");
  } while (done == 0);
}
// Copies bytes from global to shared memory, to be counted by the barrier. Addresses and bytes are multiples of 16.
INTFA_DEVICE void bulk_copy(uint32_t dst, const void* src, int bytes, uint32_t barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0],[%1],%2,[%3];" ::"r"(dst),
               "l"(__cvta_generic_to_global(src)), "r"(bytes), "r"(barrier)
               : "memory");
}
INTFA_DEVICE void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// A barrier of the calling warpgroup's 128 threads; id: its own, 1 to 15.
INTFA_DEVICE void sync_warpgroup(int id) { asm volatile("bar.sync %0,128;" ::"r"(id) : "memory"); }
// The same barrier, and whether any of the threads says so.
INTFA_DEVICE bool warpgroup_any(int id, bool predicate) {
  uint32_t any;
  asm volatile("{.reg .pred p,q; setp.ne.u32 p,%1,0; bar.red.or.pred q,%2,128,p; selp.b32 %0,1,0,q;}"
               : "=r"(any)
               : "r"(static_cast<uint32_t>(predicate)), "r"(id)
               : "memory");
  return any != 0;
}

// Registers per thread from now on, by all warps of a warpgroup: fewer, or more, which waits until the CTA has them.
template <int kRegisters>
INTFA_DEVICE void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
INTFA_DEVICE void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

INTFA_DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
INTFA_DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits for all but the kPending latest groups. `d`: the accumulators of a group that is complete then; the empty
// statement keeps the compiler from using them earlier, since a memory clobber does not order registers.
template <int kPending, int kColumns>
INTFA_DEVICE void wgmma_wait(int32_t (&d)[kColumns][4]) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
#pragma unroll
  for (int i = 0; i < kColumns; ++i)
    asm volatile("" : "+r"(d[i][0]), "+r"(d[i][1]), "+r"(d[i][2]), "+r"(d[i][3])::"memory");
}

// d = A.B, or d += A.B where `accumulate`, by a warpgroup: m64 n(8 * columns) k32. Warp w of the four has rows 16w to
// 16w + 15 of d and of A in registers, laid out as in mma m16n8k32; b and a: matrix_descriptor().
#define INTFA_D4(i) "+r"(d[i][0]), "+r"(d[i][1]), "+r"(d[i][2]), "+r"(d[i][3])
#define INTFA_D32 INTFA_D4(0), INTFA_D4(1), INTFA_D4(2), INTFA_D4(3), INTFA_D4(4), INTFA_D4(5), INTFA_D4(6), INTFA_D4(7)
#define INTFA_D48 INTFA_D32, INTFA_D4(8), INTFA_D4(9), INTFA_D4(10), INTFA_D4(11)
#define INTFA_D64 INTFA_D48, INTFA_D4(12), INTFA_D4(13), INTFA_D4(14), INTFA_D4(15)
// clang-format off
#define INTFA_R32 \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15," \
  "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define INTFA_R48 \
  INTFA_R32 "," \
  "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47"
#define INTFA_R64 \
  INTFA_R48 "," \
  "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
// A in registers. REGISTERS: of d; the others: operand numbers of a[0..3], b and accumulate.
#define INTFA_WGMMA_REGISTERS(NAME, TYPES, N, REGISTERS, A0, A1, A2, A3, B, ACCUMULATE)                             \
  INTFA_DEVICE void NAME(int32_t (&d)[N / 8][4], const uint32_t (&a)[4], uint64_t b, bool accumulate) {             \
    asm volatile("{.reg .pred p; setp.ne.b32 p,%" #ACCUMULATE ",0;"                                                 \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k32.s32." TYPES " {" INTFA_R##REGISTERS "},"               \
                 "{%" #A0 ",%" #A1 ",%" #A2 ",%" #A3 "},%" #B ",p;}"                                                \
                 : INTFA_D##REGISTERS                                                                               \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(accumulate)));          \
  }
INTFA_WGMMA_REGISTERS(wgmma_s8s8, "s8.s8", 128, 64, 64, 65, 66, 67, 68, 69)
INTFA_WGMMA_REGISTERS(wgmma_u8s8, "u8.s8", 64, 32, 32, 33, 34, 35, 36, 37)
INTFA_WGMMA_REGISTERS(wgmma_u8s8, "u8.s8", 96, 48, 48, 49, 50, 51, 52, 53)
INTFA_WGMMA_REGISTERS(wgmma_u8s8, "u8.s8", 128, 64, 64, 65, 66, 67, 68, 69)
// clang-format on
// A in shared memory.
INTFA_DEVICE void wgmma_s8s8(int32_t (&d)[16][4], uint64_t a, uint64_t b, bool accumulate) {
  asm volatile(
      "{.reg .pred p; setp.ne.b32 p,%66,0;"
      "wgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8 {" INTFA_R64 "},%64,%65,p;}"
      : INTFA_D64
      : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)));
}
#undef INTFA_WGMMA_REGISTERS
#undef INTFA_R64
#undef INTFA_R48
#undef INTFA_R32
#undef INTFA_D64
#undef INTFA_D48
#undef INTFA_D32
#undef INTFA_D4

#else

INTFA_DEVICE void mbarrier_init(uint32_t barrier, int count INTFA_LOC) { simt::mbarrier_init(barrier, count, loc); }
INTFA_DEVICE void fence_mbarrier_init() { simt::fence_mbarrier_init(); }
INTFA_DEVICE void mbarrier_arrive(uint32_t barrier INTFA_LOC) { simt::mbarrier_arrive(barrier, 0, loc); }
INTFA_DEVICE void mbarrier_arrive_expect(uint32_t barrier, int bytes INTFA_LOC) {
  simt::mbarrier_arrive(barrier, bytes, loc);
}
INTFA_DEVICE void mbarrier_wait(uint32_t barrier, uint32_t parity INTFA_LOC) {
  simt::mbarrier_wait(barrier, parity, loc);
}
INTFA_DEVICE void bulk_copy(uint32_t dst, const void* src, int bytes, uint32_t barrier INTFA_LOC) {
  simt::bulk_copy(dst, src, bytes, barrier, loc);
}
INTFA_DEVICE void fence_async_proxy() { simt::fence_async_proxy(); }
INTFA_DEVICE void sync_warpgroup(int id INTFA_LOC) { simt::bar_sync(id, 128, loc); }
INTFA_DEVICE bool warpgroup_any(int id, bool predicate INTFA_LOC) { return simt::bar_red_or(id, 128, predicate, loc); }
template <int kRegisters>
INTFA_DEVICE void give_registers(INTFA_LOC_ONLY) {
  simt::give_registers(kRegisters, loc);
}
template <int kRegisters>
INTFA_DEVICE void take_registers(INTFA_LOC_ONLY) {
  simt::take_registers(kRegisters, loc);
}
INTFA_DEVICE void wgmma_fence(INTFA_LOC_ONLY) { simt::wgmma_fence(loc); }
INTFA_DEVICE void wgmma_commit(INTFA_LOC_ONLY) { simt::wgmma_commit(loc); }
template <int kPending, int kColumns>
INTFA_DEVICE void wgmma_wait(int32_t (&)[kColumns][4] INTFA_LOC) {
  simt::wgmma_wait(kPending, loc);
}
template <int kColumns>
INTFA_DEVICE void wgmma_s8s8(int32_t (&d)[kColumns][4], const uint32_t (&a)[4], uint64_t b, bool accumulate INTFA_LOC) {
  simt::wgmma(d[0], 8 * kColumns, {.registers = a}, b, accumulate, loc);
}
template <int kColumns>
INTFA_DEVICE void wgmma_s8s8(int32_t (&d)[kColumns][4], uint64_t a, uint64_t b, bool accumulate INTFA_LOC) {
  simt::wgmma(d[0], 8 * kColumns, {.descriptor = a}, b, accumulate, loc);
}
template <int kColumns>
INTFA_DEVICE void wgmma_u8s8(int32_t (&d)[kColumns][4], const uint32_t (&a)[4], uint64_t b, bool accumulate INTFA_LOC) {
  simt::wgmma(d[0], 8 * kColumns, {.registers = a, .is_unsigned = true}, b, accumulate, loc);
}

#undef INTFA_LOC
#undef INTFA_LOC_ONLY
#endif

}  // namespace intfa::ptx
