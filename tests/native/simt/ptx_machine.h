// The interpreter's state: one thread block of warps. Registers are arrays of 32 lanes, so that most instructions are
// one loop that the host compiler vectorizes.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>
#include <vector>

#include "ptx.h"
#include "ptx_program.h"
#include "ptx_race.h"
#include "simt.h"

namespace simt::ptx {

struct Machine;

struct PendingCopy {
  uint32_t dst;
  const char* src;
  uint32_t bytes;
  bool landed;
};

struct Warp {
  Machine* machine = nullptr;
  int id = 0;
  std::vector<uint32_t> registers_32;
  std::vector<uint64_t> registers_64;
  std::vector<LaneMask> predicates;
  LaneMask alive = ~LaneMask(0);
  int pc[32] = {};
  int barrier = -1;  // waits at this one
  std::vector<PendingCopy> copies;
  std::vector<int> groups;
  int uncommitted = 0;

  template <class T>
  using Storage = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
  template <class T>
  Storage<T>* lanes(int slot) {
    if constexpr (sizeof(T) == 8)
      return &registers_64[size_t(slot) * 32];
    else
      return &registers_32[size_t(slot) * 32];
  }
};

struct Barrier {
  int arrived = 0, expected = 0;  // warps
};

struct Machine {
  const Kernel* kernel = nullptr;
  Config config;
  uint64_t random_state = 1;
  dim3 index;
  std::vector<Warp> warps;
  std::vector<unsigned char> shared;
  size_t shared_bytes = 0;
  std::vector<char> parameters;
  std::vector<Region> regions;
  RaceCheck races;
  Barrier barriers[16];
};

[[noreturn]] void fail(const Warp& warp, const Instruction& instruction, const std::string& what);

uint64_t next_random(Machine& machine);

// Checked addresses: in bounds and aligned to `bytes`; shared accesses also go through the race check.
unsigned char* shared_pointer(Warp& warp, const Instruction& instruction, uint32_t address, uint32_t bytes,
                              Access access);
char* global_pointer(Warp& warp, const Instruction& instruction, uint64_t address, size_t bytes);

// bar.sync id, threads: the warp stops running until the others are there.
void arrive_at_barrier(Warp& warp, const Instruction& instruction, int id, int num_threads);

}  // namespace simt::ptx
