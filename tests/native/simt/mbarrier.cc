// mbarriers, and the bulk copies that they count.
#include <cstring>

#include "async_engines.h"
#include "block.h"

namespace simt {

namespace {

Mbarrier& find(uint32_t address, const char* instruction, loc_t l) {
  AsyncEngines& e = engines(instruction, l);
  const auto it = e.barriers.find(address);
  if (it == e.barriers.end()) fail(std::string(instruction) + " before mbarrier.init", l);
  check_race(address, 8, /*is_write=*/false, l);
  return it->second;
}

void complete_if_due(Mbarrier& barrier) {
  if (!barrier.complete_if_due(block->engines->race)) return;
  for (int id : barrier.waiting) make_runnable(id);
  barrier.waiting.clear();
}

void land(size_t index) {
  AsyncEngines& e = *block->engines;
  const BulkCopy copy = e.copies[index];
  e.copies.erase(e.copies.begin() + ptrdiff_t(index));
  std::memcpy(block->shared + (copy.dst - shared_window()), copy.src, size_t(copy.bytes));
  Mbarrier& barrier = e.barriers.at(copy.barrier);
  barrier.bytes -= copy.bytes;
  complete_if_due(barrier);
}

}  // namespace

AsyncEngines& engines(const char* instruction, loc_t l) {
  if (!block->engines) fail(std::string(instruction) + " on a device before sm_90", l);
  return *block->engines;
}

bool advance_copies() {
  if (!block->engines || block->engines->copies.empty()) return false;
  const size_t count = block->engines->copies.size();
  land(block->config.copies == Visibility::kRandom ? size_t(next_random() % count)
                                                   : count - 1);  // any order is allowed
  return true;
}

void mbarrier_init(uint32_t address, int count, loc_t l) {
  AsyncEngines& e = engines("mbarrier.init", l);
  shared_pointer(address, 8, l);
  check_race(address, 8, /*is_write=*/true, l);
  if (count <= 0) fail("mbarrier of " + std::to_string(count) + " arrivals", l);
  if (e.barriers.contains(address)) fail("mbarrier initialized twice", l);
  const int index = int(e.barriers.size());
  if (index == AsyncRace::kMaxBarriers) fail("more mbarriers than the simulator has clocks for", l);
  Mbarrier& barrier = e.barriers[address];
  barrier.count = barrier.pending = count;
  barrier.index = index;
}

void fence_mbarrier_init() {
  for (auto& [address, barrier] : block->engines->barriers) barrier.fenced = true;
}

void mbarrier_arrive(uint32_t address, int bytes, loc_t l) {
  Mbarrier& barrier = find(address, "mbarrier.arrive", l);
  if (barrier.pending == 0) fail("more arrivals at an mbarrier than its count", l);
  block->engines->race.release(current->warp, barrier.arrivals);
  barrier.bytes += bytes;
  barrier.pending--;
  complete_if_due(barrier);
  maybe_yield();
}

void mbarrier_wait(uint32_t address, uint32_t parity, loc_t l) {
  Mbarrier& barrier = find(address, "mbarrier.try_wait", l);
  if (block->config.copies == Visibility::kRandom && next_random() % 2 == 0) advance_copies();
  while (!barrier.is_past(parity)) {
    barrier.waiting.push_back(this_thread().id());
    block_on("mbarrier.try_wait", l);
  }
  block->engines->race.acquire(current->warp, barrier.completed);
  maybe_yield();
}

void bulk_copy(uint32_t dst, const void* src, int bytes, uint32_t address, loc_t l) {
  Mbarrier& barrier = find(address, "cp.async.bulk", l);
  if (!barrier.fenced) fail("cp.async.bulk: no fence.mbarrier_init after the barrier's init", l);
  if (bytes <= 0 || bytes % 16 != 0 || dst % 16 != 0 || reinterpret_cast<uintptr_t>(src) % 16 != 0)
    fail("cp.async.bulk: addresses and size must be multiples of 16", l);
  AsyncEngines& e = *block->engines;
  unsigned char* target = shared_pointer(dst, 16, l);
  shared_pointer(dst + uint32_t(bytes) - 16, 16, l);
  const size_t offset = dst - shared_window();
  if (const char* wrong = e.race.copy_write(current->warp, offset, size_t(bytes), barrier.index, barrier.phases + 1))
    fail(std::string("cp.async.bulk: ") + wrong, l);
  statistics().async_copies += uint64_t(bytes) / 16;
  e.copies.push_back({dst, static_cast<const char*>(src), bytes, address});
  const Visibility mode = block->config.copies;
  if (mode == Visibility::kEarly || (mode == Visibility::kRandom && next_random() % 4 == 0))
    land(e.copies.size() - 1);
  else
    std::memset(target, 0xA5, size_t(bytes));  // neither the old bytes nor the new ones may be relied upon
  maybe_yield();
}

void give_registers(int count, loc_t l) {
  meet_warp("setmaxnreg.dec", l, [&] {
    AsyncEngines& e = engines("setmaxnreg", l);
    if (const std::string wrong = e.registers.wrong(current->warp, count, /*more=*/false); !wrong.empty())
      fail(wrong, l);
    e.registers.set(current->warp, count);
    for (int id : e.want_registers) make_runnable(id);
    e.want_registers.clear();
  });
}

void take_registers(int count, loc_t l) {
  meet_warp("setmaxnreg.inc", l, [&] {
    AsyncEngines& e = engines("setmaxnreg", l);
    if (const std::string wrong = e.registers.wrong(current->warp, count, /*more=*/true); !wrong.empty())
      fail(wrong, l);
    while (!e.registers.set(current->warp, count)) {
      e.want_registers.push_back(this_thread().id());
      block_on("setmaxnreg.inc, for registers that no warp has given", l);
    }
  });
}

void fence_async_proxy() {
  if (block->engines) block->engines->race.proxy_fence(current->warp);
}

}  // namespace simt
