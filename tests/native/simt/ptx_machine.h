// The interpreter's state: one thread block of warps. Registers are arrays of 32 lanes, so that most instructions are
// one loop that the host compiler vectorizes.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include "async_engines.h"
#include "ptx.h"
#include "ptx_global_race.h"
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
  int vote = -1;     // the predicate that bar.red gives its result to
  std::vector<PendingCopy> copies;
  std::vector<int> groups;
  int uncommitted = 0;
  const Mbarrier* waits_for = nullptr;  // its phase of this parity
  uint32_t parity = 0;
  int wants_registers = 0;  // setmaxnreg.inc has not got these yet

  bool can_run() const;
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
  Clock arrivals, completed;      // as an mbarrier's
  bool reduces = false;           // bar.red.or in this phase, which may not meet bar.sync
  bool any = false;
};

// Accumulators of one warp while products to them are in flight. Meanwhile each of the registers holds a mark of its
// own, in all lanes: nvcc's PTX moves accumulators from register to register between instructions, and ptxas does not.
struct MarkedAccumulator {
  uint32_t first_mark;  // of register 0
  std::vector<int32_t> values[32];
  int in_flight = 0;
};

struct WarpProduct {
  std::shared_ptr<MarkedAccumulator> accumulator;
  const Instruction* instruction;
  bool accumulate, done;
  uint64_t a, b;             // descriptors
  uint32_t a_values[4][32];  // of A in registers
};

// What the four warps of a warpgroup must agree upon.
struct IssuedProduct {
  const Instruction* instruction;
  uint64_t a, b;
  bool operator==(const IssuedProduct&) const = default;
};

struct ProductQueue {
  std::vector<WarpProduct> products;  // in issue order
  std::vector<int> groups;
  int uncommitted = 0;
  uint32_t committed_groups = 0, marks = 0;
  size_t issued = 0;  // in all
  bool fenced = false;
};

// What a kernel with mbarriers has besides.
struct AsyncUnits {
  AsyncUnits(int num_warps, size_t shared_bytes)
      : race(num_warps, shared_bytes),
        registers(num_warps),
        products(size_t(num_warps)),
        issued(size_t(num_warps + 3) / 4) {}
  AsyncRace race;
  RegisterFile registers;
  std::map<uint32_t, Mbarrier> barriers;  // by shared address
  std::vector<BulkCopy> copies;
  std::vector<ProductQueue> products;              // per warp
  std::vector<std::vector<IssuedProduct>> issued;  // per warpgroup, by the first of its warps to come so far
};

struct Machine {
  const Kernel* kernel = nullptr;
  Config config;
  uint64_t random_state = 1;
  dim3 index;
  int32_t block = -1;  // number of the block in the grid
  std::vector<Warp> warps;
  std::vector<unsigned char> shared;
  size_t shared_bytes = 0;
  std::vector<char> parameters;
  std::vector<Region> regions;
  RaceCheck races;
  GlobalRaceCheck global_races;
  std::unique_ptr<AsyncUnits> async;  // then its race check is used
  Barrier barriers[16];
};

[[noreturn]] void fail(const Warp& warp, const Instruction& instruction, const std::string& what);

uint64_t next_random(Machine& machine);

// Checked addresses: in bounds, aligned to `bytes`, and no race.
unsigned char* shared_pointer(Warp& warp, const Instruction& instruction, uint32_t address, uint32_t bytes,
                              Access access);
char* global_pointer(Warp& warp, const Instruction& instruction, uint64_t address, size_t bytes, bool is_write);

// Lets one bulk copy land; false if there is none.
bool advance_copies(Machine& machine);

// bar.sync id, threads: the warp stops running until the others are there. bar.red.or has a predicate slot for the
// result besides, and whether one of the warp's lanes votes for it.
void arrive_at_barrier(Warp& warp, const Instruction& instruction, int id, int num_threads, int result = -1,
                       bool vote = false);

}  // namespace simt::ptx
