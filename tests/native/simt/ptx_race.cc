#include "ptx_race.h"

#include <algorithm>

namespace simt::ptx {

void RaceCheck::start(int num_warps, size_t bytes, int granule) {
  num_warps_ = num_warps;
  granule_ = granule;
  const size_t cells = bytes / size_t(granule) + 1;
  cells_.assign(cells, {});
  read_clocks_.assign(cells * size_t(num_warps), 0);
  clocks_.assign(size_t(num_warps) * size_t(num_warps), 0);
  for (int w = 0; w < num_warps; w++) clock(w, w) = 1;
}

const char* RaceCheck::access(int warp, size_t offset, size_t bytes, Access kind) {
  const size_t granule = size_t(granule_);
  for (size_t c = offset / granule; c <= (offset + bytes - 1) / granule; c++) {
    Cell& cell = cells_[c];
    if (cell.in_flight && kind != Access::kCopyLand)
      return kind == Access::kRead ? "race: read of cp.async data still in flight"
                                   : "race: write over cp.async data still in flight";
    if (cell.writer >= 0 && cell.writer != warp && cell.write_clock > clock(warp, cell.writer))
      return kind == Access::kRead ? "race: read after another warp's write without a barrier"
                                   : "race: write after another warp's write without a barrier";
    uint32_t* readers = &read_clocks_[c * size_t(num_warps_)];
    if (kind == Access::kRead) {
      readers[warp] = clock(warp, warp);
      continue;
    }
    for (int w = 0; w < num_warps_; w++)
      if (w != warp && readers[w] > clock(warp, w)) return "race: write after another warp's read without a barrier";
    cell.writer = warp;
    cell.write_clock = clock(warp, warp);
    cell.in_flight = kind == Access::kCopyIssue;
  }
  return nullptr;
}

void RaceCheck::synchronize(const std::vector<int>& warps) {
  std::vector<uint32_t> joined(size_t(num_warps_), 0);
  for (int w : warps)
    for (int of = 0; of < num_warps_; of++) joined[size_t(of)] = std::max(joined[size_t(of)], clock(w, of));
  for (int w : warps) {
    std::copy(joined.begin(), joined.end(), &clock(w, 0));
    clock(w, w)++;
  }
}

}  // namespace simt::ptx
