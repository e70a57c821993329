// Host SIMT runtime, Hopper's part: mbarriers, bulk copies and wgmma, which plugin/cuda/ptx_sm90.cuh calls.
//
// Time: a bulk copy lands, and a wgmma reads its operands, at any moment between the instruction and what waits for it,
// as Config::copies says. Until then the target's bytes and the accumulators are poison. Order: vector clocks over both
// proxies (async_race.h) find a missing wait, an early release, a wrong phase or a missing proxy fence in every
// schedule, not only in those in which it does harm.
#pragma once

#include "simt.h"

namespace simt {

// count: arrivals per phase.
SIMT_API void mbarrier_init(uint32_t barrier, int count, loc_t l);
SIMT_API void fence_mbarrier_init();
// Arrives, after announcing `bytes` that bulk copies will bring to this phase.
SIMT_API void mbarrier_arrive(uint32_t barrier, int bytes, loc_t l);
SIMT_API void mbarrier_wait(uint32_t barrier, uint32_t parity, loc_t l);

SIMT_API void bulk_copy(uint32_t dst, const void* src, int bytes, uint32_t barrier, loc_t l);
SIMT_API void fence_async_proxy();

// setmaxnreg by all warps of a warpgroup: down to `count` registers per thread, or up to it, which waits until the
// block has given enough back.
SIMT_API void give_registers(int count, loc_t l);
SIMT_API void take_registers(int count, loc_t l);

// Operand A: four registers of each thread, or a shared-memory descriptor.
struct WgmmaA {
  const uint32_t* registers = nullptr;
  uint64_t descriptor = 0;
  bool is_unsigned = false;
};

// d (n / 2 registers of each thread) = A.B, or += where `accumulate`: m64 n k32 by the warpgroup's 128 threads. b, a:
// descriptors of K-major operands without swizzle.
SIMT_API void wgmma(int32_t* d, int n, const WgmmaA& a, uint64_t b, bool accumulate, loc_t l);
SIMT_API void wgmma_fence(loc_t l);
SIMT_API void wgmma_commit(loc_t l);
SIMT_API void wgmma_wait(int groups_in_flight, loc_t l);

}  // namespace simt
