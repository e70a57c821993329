// Races in shared memory between threads, bulk copies and wgmma, by vector clocks: independent of the schedule that
// happened to run.
//
// Who has a clock, per block of W warps:
//   warp w          its ordinary accesses
//   fences of w     which of its ordinary writes the async proxy may see (fence.proxy.async)
//   products of w   the warp's share of wgmma: its time is the number of committed groups
//   mbarrier        the bulk copies that it counts: its time is the number of completed phases
// Two accesses of which one is a write must be ordered: the later one's issuer knows, through barriers and waits, the
// time of the earlier one. An access through the async proxy must also know the fence after an ordinary write.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace simt {

using Clock = std::vector<uint32_t>;

class AsyncRace {
 public:
  static constexpr int kMaxBarriers = 16;

  AsyncRace(int num_warps, size_t shared_bytes);

  // Each returns what is wrong, or null. offset: in shared memory.
  const char* read(int warp, size_t offset, size_t bytes);
  const char* write(int warp, size_t offset, size_t bytes);
  const char* product_read(int warp, size_t offset, size_t bytes, uint32_t group);
  const char* copy_write(int warp, size_t offset, size_t bytes, int barrier, uint32_t phase);

  void proxy_fence(int warp);
  // The warp comes to a barrier (bar.sync) whose last phase completed at that time: it must have met there or know of
  // it, or whose arrival completes which phase would be the schedule's choice.
  const char* meet(int warp, const Clock& completed);
  // The warp knows now that its products of the first `groups` groups are complete.
  void products_complete(int warp, uint32_t groups);
  // A barrier's side: an arrival passes on what the warp knows; whoever waits learns it.
  void release(int warp, Clock& into);
  void acquire(int warp, const Clock& from);
  void complete_phase(int barrier, uint32_t phase, Clock& clock);

 private:
  struct Cell {
    int writer = -1;
    uint32_t time = 0;
  };
  static constexpr size_t kGranule = 4;
  int fences_of(int warp) const { return num_warps_ + warp; }
  int products_of(int warp) const { return 2 * num_warps_ + warp; }
  int barrier(int index) const { return 3 * num_warps_ + index; }
  bool knows(int warp, int who, uint32_t time) const { return clocks_[size_t(warp)][size_t(who)] >= time; }
  const char* after_write(int warp, const Cell& cell, bool async) const;
  const char* after_reads(int warp, size_t cell);
  template <class Visit>
  const char* each_cell(size_t offset, size_t bytes, Visit visit);

  int num_warps_;
  size_t num_clocks_;
  std::vector<Clock> clocks_;  // of the warps
  std::vector<Cell> cells_;
  std::vector<uint32_t> reads_;  // [cell][who]: time of the last read, 0: none since the last write
};

}  // namespace simt
