// PTX interpreter: runs what nvcc emitted, so it sees what the host SIMT cannot, the inline asm and its operands. A
// warp executes its 32 lanes together; divergent lanes run lowest address first. It checks: global access against
// registered regions, shared access against the block's size, alignment, warp collectives and barriers in divergent
// code; by vector clocks per warp, whether every pair of conflicting shared accesses is ordered by barriers and waits,
// whatever the schedule; and whether blocks of one launch share global memory that one of them writes. Blind to: races
// between lanes of one warp, and in global memory between warps of one block (TSan on the host SIMT sees both), ptxas,
// weak memory.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "simt.h"

namespace simt::ptx {

struct Module;

// Throws Error: no such file, or an instruction that the interpreter does not know, by name.
SIMT_API std::shared_ptr<const Module> load_module(const std::string& path);

// Global memory that kernels may touch.
struct Region {
  const void* address;
  size_t bytes;
};

// From now on simt::launch() runs the kernel of the same (mangled) name in `module`; simt::set_launcher({}) undoes it.
SIMT_API void install(std::shared_ptr<const Module> module, std::vector<Region> regions);

}  // namespace simt::ptx
