// Host SIMT runtime: runs CUDA kernels compiled by g++, one fiber per CUDA thread, so that they are tested where there
// is no GPU.
//
// What it finds: wrong indexing and fragment layout, missing barriers and waits (under adverse schedules and late
// asynchronous copies), warp collectives in divergent code, deadlock, shared-memory access out of bounds, bank
// conflicts; with the sanitizer builds also global access out of bounds (ASan) and data races (TSan). What it cannot
// see: the inline asm itself (the PTX interpreter in ptx_machine.h runs that), ptxas, and the weak memory model.
//
// Three kinds of users:
//   - plugin/cuda/ptx.cuh calls the functions under "instructions" in its host twins, with the caller's source
//   location;
//   - the launch seam of plugin/cuda calls launch_kernel() in place of <<<...>>>;
//   - drivers call set_launch_config() / launch() and read Statistics.
// The simulator is single-threaded: one launch at a time in a process.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <source_location>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "cuda_compat.h"
#include "scalar.h"

#define SIMT_API __attribute__((visibility("default")))

namespace simt {

using loc_t = std::source_location;

// Which runnable thread goes on when one blocks. The greedy ones run one end of the block as far ahead as barriers
// allow, which is what exposes a missing barrier before a buffer is reused; kRandom also switches at points where
// nobody blocks.
enum class Schedule { kRoundRobin, kRandom, kGreedyFirst, kGreedyLast };

// When the bytes of an asynchronous copy appear in shared memory: at the instruction, at the wait that covers them, or
// either.
enum class Visibility { kEarly, kLate, kRandom };

struct Config {
  Schedule schedule = Schedule::kRoundRobin;
  Visibility copies = Visibility::kLate;
  uint64_t seed = 1;
};

struct Statistics {
  uint64_t switches = 0;      // of fibers (host SIMT) or of warps (PTX interpreter)
  uint64_t instructions = 0;  // warp instructions (PTX interpreter only)
  uint64_t mma = 0;           // warp-wide matrix products
  uint64_t ldmatrix = 0;
  uint64_t shuffles = 0;
  uint64_t async_copies = 0;    // 16-byte copies
  uint64_t barriers = 0;        // completed block barriers
  uint64_t bank_conflicts = 0;  // extra passes over shared memory, 0 for a conflict-free kernel
};

// A kernel did what no GPU would accept or define. The message names the instruction, its source line, the block and
// the thread.
class SIMT_API Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// ----------------------------------------------------------------------------------------------------------------
// launching

struct LaunchRequest {
  const void* kernel = nullptr;  // address of the __global__ function, which names it to the PTX interpreter
  dim3 grid, block;
  size_t shared_bytes = 0;             // dynamic shared memory
  std::function<void()> body;          // calls the kernel with its arguments
  std::vector<std::string> arguments;  // their bytes, in order
};

// Runs a grid under the current configuration, block after block. Throws Error.
SIMT_API void launch(const LaunchRequest& request);

// What launch() does from now on: host SIMT by default; the PTX interpreter installs itself here.
using Launcher = std::function<void(const LaunchRequest&)>;
SIMT_API void set_launcher(Launcher launcher);  // an empty one restores the host SIMT

SIMT_API void set_launch_config(const Config& config);
SIMT_API const Config& launch_config();
// The simulated GPU, 10 * major + minor: sm_80 at first. On sm_90 the instructions of simt_sm90.h exist, and shared
// memory is checked for races (async_race.h).
SIMT_API void set_device(int architecture);
SIMT_API int device();
// Its SMs: 3 at first, so that a kernel that shares out a list of work among them does so for small problems. Blocks
// run one after another all the same.
SIMT_API void set_multiprocessors(int count);
SIMT_API int multiprocessors();
SIMT_API Statistics& statistics();  // summed over launches; the caller resets it

// The seam: kernel<<<grid, block, shared_bytes>>>(args...).
template <class... Parameters>
void launch_kernel(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
                   std::type_identity_t<Parameters>... args) {
  LaunchRequest request{reinterpret_cast<const void*>(kernel), grid, block, shared_bytes, [&] { kernel(args...); }, {}};
  (request.arguments.emplace_back(reinterpret_cast<const char*>(&args), sizeof(args)), ...);
  launch(request);
}

// -------------------------------------------------------------------------------------------------------------
// instructions Called by every thread of a warp where the PTX has .sync; the lanes must meet in the same call.

SIMT_API unsigned char* dyn_smem();  // the block's dynamic shared memory, 1024-byte aligned
SIMT_API uint32_t smem_u32(const void* p, loc_t l = loc_t::current());  // its 32-bit shared address

SIMT_API void syncthreads(loc_t l = loc_t::current());
SIMT_API void bar_sync(int id, int num_threads, loc_t l = loc_t::current());
SIMT_API bool bar_red_or(int id, int num_threads, bool predicate, loc_t l = loc_t::current());
SIMT_API void syncwarp(loc_t l = loc_t::current());

SIMT_API uint32_t shfl_xor(uint32_t value, int lane_mask, loc_t l = loc_t::current());
SIMT_API uint32_t shfl_idx(uint32_t value, int lane, loc_t l = loc_t::current());
SIMT_API uint32_t shfl_down(uint32_t value, int delta, loc_t l = loc_t::current());
SIMT_API bool warp_any(bool predicate, loc_t l = loc_t::current());
SIMT_API bool warp_all(bool predicate, loc_t l = loc_t::current());
SIMT_API uint32_t warp_ballot(bool predicate, loc_t l = loc_t::current());

// r[i] of lane l: bytes 4*(l%4)..+3 of row l/4 of the i-th 8x16-byte matrix; lane 8*i+j gives the address of its row j.
// count: 1, 2, 4.
SIMT_API void ldmatrix(uint32_t* r, int count, uint32_t address, loc_t l = loc_t::current());
// The same matrices as 8x8 of 16 bits, transposed.
SIMT_API void ldmatrix_trans(uint32_t* r, int count, uint32_t address, loc_t l = loc_t::current());

// d += A.B per warp, in place. m16n8k32: A 4 registers of s8 (or u8), B 2 registers of s8, d int32[4].
SIMT_API void mma_16832(int32_t* d, const uint32_t* a, const uint32_t* b, bool a_unsigned, loc_t l = loc_t::current());
// m16n8k16: A 4 registers, B 2 registers of f16x2 or bf16x2, d float[4]; products exact, their sum rounded once.
SIMT_API void mma_16816_f16(float* d, const uint32_t* a, const uint32_t* b, loc_t l = loc_t::current());
SIMT_API void mma_16816_bf16(float* d, const uint32_t* a, const uint32_t* b, loc_t l = loc_t::current());

// Plain shared access of 1, 2, 4, 8 or 16 bytes, aligned to its size.
SIMT_API void lds(void* dst, uint32_t address, unsigned bytes, loc_t l = loc_t::current());
SIMT_API void sts(uint32_t address, const void* src, unsigned bytes, loc_t l = loc_t::current());
inline void lds16(void* dst, uint32_t address, loc_t l = loc_t::current()) { lds(dst, address, 16, l); }

// Copies bytes <= 16 and zero-fills the rest of the 16; a copy of 0 bytes does not touch src.
SIMT_API void cp_async16(uint32_t dst, const void* src, unsigned bytes, loc_t l = loc_t::current());
SIMT_API void cp_async_commit();
SIMT_API void cp_async_wait(int groups_in_flight, loc_t l = loc_t::current());

}  // namespace simt
