// cp.async: the copy takes effect at an unknown time between the instruction and the wait that covers its group.
#include <cstring>

#include "block.h"

namespace simt {

namespace {

void land(PendingCopy& copy, loc_t l) {
  if (copy.landed) return;
  copy.landed = true;
  unsigned char* dst = shared_pointer(copy.dst, 16, l);
  tsan_write16(dst);
  std::memcpy(dst, copy.src, copy.bytes);
  std::memset(dst + copy.bytes, 0, 16 - copy.bytes);
}

}  // namespace

void cp_async16(uint32_t dst, const void* src, unsigned bytes, loc_t l) {
  if (bytes > 16) fail("cp.async of " + std::to_string(bytes) + " bytes; at most 16", l);
  if (reinterpret_cast<uintptr_t>(src) % 16 != 0) fail("misaligned cp.async source", l);
  unsigned char* p = shared_pointer(dst, 16, l);
  tsan_write16(p);
  statistics().async_copies++;
  Thread& self = this_thread();
  self.copies.push_back({dst, static_cast<const char*>(src), bytes, false});
  self.uncommitted++;
  const Visibility mode = block->config.copies;
  if (mode == Visibility::kEarly || (mode == Visibility::kRandom && next_random() % 4 == 0))
    land(self.copies.back(), l);
  else
    std::memset(p, 0xA5, 16);  // neither the old bytes nor the new ones may be relied upon
}

void cp_async_commit() {
  maybe_yield();
  Thread& self = this_thread();
  self.groups.push_back(self.uncommitted);
  self.uncommitted = 0;
}

void cp_async_wait(int groups_in_flight, loc_t l) {
  Thread& self = this_thread();
  while (int(self.groups.size()) > groups_in_flight) {
    const int count = self.groups.front();
    self.groups.erase(self.groups.begin());
    for (int i = 0; i < count; i++) land(self.copies[i], l);
    self.copies.erase(self.copies.begin(), self.copies.begin() + count);
  }
}

}  // namespace simt
