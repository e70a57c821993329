#include "async_race.h"

#include <algorithm>

namespace simt {

AsyncRace::AsyncRace(int num_warps, size_t shared_bytes)
    : num_warps_(num_warps),
      num_clocks_(size_t(3 * num_warps + kMaxBarriers)),
      clocks_(size_t(num_warps), Clock(num_clocks_, 0)),
      cells_(shared_bytes / kGranule + 1),
      reads_(cells_.size() * num_clocks_, 0) {
  for (int w = 0; w < num_warps; w++) clocks_[size_t(w)][size_t(w)] = 1;
}

const char* AsyncRace::after_write(int warp, const Cell& cell, bool async) const {
  if (cell.writer < 0) return nullptr;
  if (!knows(warp, cell.writer, cell.time))
    return cell.writer >= num_warps_ ? "race: the bulk copy to here has not been waited for"
                                     : "race: another warp wrote here and no barrier is between";
  if (async && cell.writer < num_warps_ && !knows(warp, fences_of(cell.writer), cell.time))
    return "race: written by ordinary stores without fence.proxy.async before the async proxy's access";
  return nullptr;
}

const char* AsyncRace::after_reads(int warp, size_t cell) {
  uint32_t* reads = &reads_[cell * num_clocks_];
  for (int who = 0; who < 3 * num_warps_; who++) {
    if (!knows(warp, who, reads[who]))
      return who < num_warps_ ? "race: overwrites what another warp may still read"
                              : "race: overwrites what wgmma may still read";
  }
  std::fill_n(reads, num_clocks_, 0);
  return nullptr;
}

template <class Visit>
const char* AsyncRace::each_cell(size_t offset, size_t bytes, Visit visit) {
  for (size_t i = offset / kGranule; i <= (offset + bytes - 1) / kGranule; i++)
    if (const char* wrong = visit(i)) return wrong;
  return nullptr;
}

const char* AsyncRace::read(int warp, size_t offset, size_t bytes) {
  const uint32_t now = clocks_[size_t(warp)][size_t(warp)];
  return each_cell(offset, bytes, [&](size_t i) {
    reads_[i * num_clocks_ + size_t(warp)] = now;
    return after_write(warp, cells_[i], false);
  });
}

const char* AsyncRace::write(int warp, size_t offset, size_t bytes) {
  return each_cell(offset, bytes, [&](size_t i) {
    const char* wrong = after_write(warp, cells_[i], false);
    if (!wrong) wrong = after_reads(warp, i);
    cells_[i] = {warp, clocks_[size_t(warp)][size_t(warp)]};
    return wrong;
  });
}

const char* AsyncRace::product_read(int warp, size_t offset, size_t bytes, uint32_t group) {
  return each_cell(offset, bytes, [&](size_t i) {
    reads_[i * num_clocks_ + size_t(products_of(warp))] = group;
    return after_write(warp, cells_[i], true);
  });
}

const char* AsyncRace::copy_write(int warp, size_t offset, size_t bytes, int index, uint32_t phase) {
  return each_cell(offset, bytes, [&](size_t i) {
    const char* wrong = after_write(warp, cells_[i], true);
    if (!wrong) wrong = after_reads(warp, i);
    cells_[i] = {barrier(index), phase};
    return wrong;
  });
}

void AsyncRace::proxy_fence(int warp) {
  Clock& clock = clocks_[size_t(warp)];
  clock[size_t(fences_of(warp))] = clock[size_t(warp)]++;
}

const char* AsyncRace::meet(int warp, const Clock& completed) {
  for (size_t who = 0; who < completed.size(); who++)
    if (!knows(warp, int(who), completed[who])) return "race: other warps met at this barrier and nothing is between";
  return nullptr;
}

void AsyncRace::products_complete(int warp, uint32_t groups) {
  uint32_t& known = clocks_[size_t(warp)][size_t(products_of(warp))];
  known = std::max(known, groups);
}

void AsyncRace::release(int warp, Clock& into) {
  into.resize(num_clocks_, 0);
  Clock& clock = clocks_[size_t(warp)];
  for (size_t i = 0; i < num_clocks_; i++) into[i] = std::max(into[i], clock[i]);
  clock[size_t(warp)]++;
}

void AsyncRace::acquire(int warp, const Clock& from) {
  Clock& clock = clocks_[size_t(warp)];
  for (size_t i = 0; i < from.size(); i++) clock[i] = std::max(clock[i], from[i]);
}

void AsyncRace::complete_phase(int index, uint32_t phase, Clock& clock) {
  clock.resize(num_clocks_, 0);
  clock[size_t(barrier(index))] = phase;
}

}  // namespace simt
