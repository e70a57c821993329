// State of a block on a Hopper device: what its bulk-copy engine and its tensor cores have not finished.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "async_race.h"
#include "simt_sm90.h"

namespace simt {

// Of either simulator.
struct Mbarrier {
  int count = 0, pending = 0;  // arrivals per phase; still to come
  int64_t bytes = 0;           // announced and not yet landed; negative while copies are ahead of the announcement
  uint32_t phases = 0;         // completed
  int index = 0;               // of its clock
  bool fenced = false;         // its initialization, for the async proxy
  std::vector<int> waiting;    // thread ids
  Clock arrivals, completed;   // what the arrivals of this phase know, and those of the last completed one

  // Ends the phase if nothing more is to come, and says so.
  bool complete_if_due(AsyncRace& race) {
    if (pending != 0 || bytes != 0) return false;
    pending = count;
    completed = arrivals;
    race.complete_phase(index, ++phases, completed);
    return true;
  }
  // The phase of this parity has completed.
  bool is_past(uint32_t parity) const { return (phases & 1) != (parity & 1); }
};

// setmaxnreg, of either simulator: what each warp has, and what the block has to give. A block starts with its share of
// the SM's 65536 registers, as __launch_bounds__(threads, 1) has it.
struct RegisterFile {
  explicit RegisterFile(int num_warps) : of_warp(size_t(num_warps), 65536 / (32 * num_warps) / 8 * 8) {}

  // What is wrong with asking for `count`, or empty.
  std::string wrong(int warp, int count, bool more) const {
    const int has = of_warp[size_t(warp)];
    if (count < 24 || count > 256 || count % 8 != 0)
      return "setmaxnreg of " + std::to_string(count) + ": it takes multiples of 8 from 24 to 256";
    if (more ? count < has : count > has)
      return "setmaxnreg to " + std::to_string(count) + " of a warp that has " + std::to_string(has);
    return {};
  }
  // Whether the warp has `count` now; false: others must give first.
  bool set(int warp, int count) {
    int& has = of_warp[size_t(warp)];
    if (count - has > free) return false;
    free -= count - has;
    has = count;
    return true;
  }
  // At the end of a block: the warps of a warpgroup have all done the same.
  bool uniform() const {
    for (size_t w = 0; w < of_warp.size(); w++)
      if (of_warp[w] != of_warp[w / 4 * 4]) return false;
    return true;
  }

  std::vector<int> of_warp;  // registers per thread
  int free = 0;              // per thread of a warp
};

struct BulkCopy {
  uint32_t dst;
  const char* src;
  int bytes;
  uint32_t barrier;
};

// The accumulators of one warp while products to them are in flight.
struct Accumulator {
  int32_t* registers[32];
  std::vector<int32_t> values[32];
  int in_flight = 0;
};

// One warp's share of a wgmma.
struct Product {
  std::shared_ptr<Accumulator> accumulator;
  int n;
  WgmmaA a;
  uint64_t b;
  bool accumulate;
  const uint32_t* a_registers[32];  // where they are, and what they held
  uint32_t a_values[32][4];
  bool done;
  loc_t location;
};

struct WarpProducts {
  std::vector<Product> products;  // in issue order
  std::vector<int> groups;        // products per committed group, oldest first
  int uncommitted = 0;
  uint32_t committed_groups = 0;
  bool fenced = false;  // wgmma.fence since the registers were last accessed
};

// The 128 threads of a warpgroup on their way into one wgmma.
struct WarpgroupMeeting {
  int arrived = 0;
  loc_t location;
  int32_t* d[128];
  WgmmaA a[128];
  uint64_t b = 0;
};

struct AsyncEngines {
  AsyncEngines(int num_warps, size_t shared_bytes)
      : race(num_warps, shared_bytes),
        registers(num_warps),
        products(size_t(num_warps)),
        meetings(size_t(num_warps + 3) / 4) {}

  AsyncRace race;
  RegisterFile registers;
  std::vector<int> want_registers;        // thread ids
  std::map<uint32_t, Mbarrier> barriers;  // by shared address
  std::vector<BulkCopy> copies;
  std::vector<WarpProducts> products;  // per warp
  std::vector<WarpgroupMeeting> meetings;
};

// The current block's; fails on a device that has none.
AsyncEngines& engines(const char* instruction, loc_t l);

// Lets one bulk copy land; false if there is none.
bool advance_copies();

// A thread may not exit before its warp's wgmma are complete.
void check_products_complete();

}  // namespace simt
