// Shared-memory race detection by vector clocks, one clock per warp: two accesses of different warps to the same
// granule, one of them a write, must be ordered by a barrier. Independent of the schedule that happened to run.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace simt::ptx {

// kCopyIssue: a cp.async starts writing; the bytes are undefined until kCopyLand.
enum class Access { kRead, kWrite, kCopyIssue, kCopyLand };

class RaceCheck {
 public:
  void start(int num_warps, size_t bytes, int granule);

  // What is wrong with this access, or null.
  const char* access(int warp, size_t offset, size_t bytes, Access kind);

  // The warps that a barrier releases: each now comes after everything that all of them did before.
  void synchronize(const std::vector<int>& warps);

 private:
  struct Cell {
    int writer = -1;
    uint32_t write_clock = 0;
    bool in_flight = false;
  };
  uint32_t& clock(int warp, int of) { return clocks_[size_t(warp) * size_t(num_warps_) + size_t(of)]; }

  int num_warps_ = 0, granule_ = 16;
  std::vector<Cell> cells_;
  std::vector<uint32_t> read_clocks_;  // [cell][warp]: that warp's clock at its last read, 0: never
  std::vector<uint32_t> clocks_;       // [warp][of]: how much of `of`'s past this warp has seen
};

}  // namespace simt::ptx
