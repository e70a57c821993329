// The runtime's state: one thread block, alive while launch() runs it. Blocks run one after another, threads of a block
// interleave.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "async_engines.h"
#include "fiber.h"
#include "simt.h"
#include "warp_math.h"

namespace simt {

// A cp.async that was issued but has not landed.
struct PendingCopy {
  uint32_t dst;
  const char* src;
  unsigned bytes;
  bool landed;
};

struct Thread : ThreadIndex {
  Fiber* fiber = nullptr;
  bool exited = false;
  const char* waits_in = "";  // for the deadlock report
  loc_t waits_at;
  std::vector<PendingCopy> copies;  // in issue order
  std::vector<int> groups;          // copies per committed group, oldest first
  int uncommitted = 0;
  int id() const { return warp * 32 + lane; }
};

// A warp collective is a meeting: every lane publishes its operands, the last one to come computes. Two generations
// alternate, since a quick lane may publish for the next meeting while a slow one still reads the results of this one;
// it cannot be two ahead.
struct Meeting {
  LaneRegister operands[10];
  LaneRegister results[4];
};
struct Warp {
  Meeting meetings[2];
  int generation = 0;
  uint32_t arrived = 0;  // lanes
  const char* instruction = "";
  loc_t location;
  char tsan_token = 0;
};

struct Barrier {
  int arrived = 0, expected = 0;
  std::vector<int> waiting;            // thread ids
  std::vector<unsigned> line_of_warp;  // where each warp's first lane arrived; bar.sync is warp-convergent
  Clock arrivals, completed;           // as an mbarrier's
  const char* instruction = "";        // of this phase's arrivals: bar.red may not meet bar.sync
  bool any = false, result = false;    // bar.red.or: of this phase's arrivals, of the last completed phase
  char tsan_token = 0;
};

struct Block {
  static constexpr int kBarriers = 16;

  Config config;
  uint64_t random_state = 1;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  Barrier barriers[kBarriers];
  std::unique_ptr<AsyncEngines> engines;  // on sm_90
  std::vector<uint64_t> runnable;         // bit set of thread ids
  int alive = 0;
  unsigned char* shared = nullptr;
  size_t shared_bytes = 0;
  Fiber launcher;
  const std::function<void()>* body = nullptr;
  std::string error;
  char started = 0,
       finished = 0;  // TSan tokens: host before the kernel, kernel before the host; blocks are not ordered
};

extern Block* block;

inline Thread& this_thread() { return *static_cast<Thread*>(current); }
inline Warp& this_warp() { return block->warps[current->warp]; }
inline void make_runnable(int thread) { block->runnable[thread / 64] |= uint64_t(1) << (thread % 64); }

// Ends the launch: the message goes to the caller of launch() as an Error, and every fiber is abandoned where it
// stands.
[[noreturn]] void fail(const std::string& what, loc_t l);

uint64_t next_random();
void block_on(const char* instruction, loc_t l);  // until make_runnable(this thread)
void maybe_yield();                               // Schedule::kRandom: sometimes lets another thread go first

// The address of bytes of shared memory: in bounds and aligned to their number, or fail().
unsigned char* shared_pointer(uint32_t address, unsigned bytes, loc_t l);
uint32_t shared_window();  // shared address of byte 0

// On sm_90, fails if the current thread's ordinary access is not ordered with others'.
void check_race(uint32_t address, unsigned bytes, bool is_write, loc_t l);

// A collective of the warp's lanes without operands; the last one to come calls `act`.
void meet_warp(const char* instruction, loc_t l, const std::function<void()>& act);

}  // namespace simt
