// The block's shared memory: 32-bit addresses as on the device, checked; plain loads and stores.
#include <cstring>

#include "block.h"

namespace simt {

namespace {
constexpr uint32_t kWindow = 1024;  // shared address of byte 0: not 0, so that a null or a bare offset is caught
}

uint32_t shared_window() { return kWindow; }

void check_race(uint32_t address, unsigned bytes, bool is_write, loc_t l) {
  if (!block->engines) return;
  AsyncRace& race = block->engines->race;
  const size_t offset = address - kWindow;
  const char* wrong = is_write ? race.write(current->warp, offset, bytes) : race.read(current->warp, offset, bytes);
  if (wrong) fail(wrong, l);
}

unsigned char* dyn_smem() { return block->shared; }

uint32_t smem_u32(const void* p, loc_t l) {
  const ptrdiff_t offset = static_cast<const unsigned char*>(p) - block->shared;
  if (offset < 0 || size_t(offset) > block->shared_bytes) fail("pointer is not in shared memory", l);
  return kWindow + uint32_t(offset);
}

unsigned char* shared_pointer(uint32_t address, unsigned bytes, loc_t l) {
  const uint32_t offset = address - kWindow;
  if (address < kWindow || size_t(offset) + bytes > block->shared_bytes)
    fail("shared-memory access of " + std::to_string(bytes) + " bytes at offset " +
             std::to_string(int64_t(address) - kWindow) + " is out of bounds (" + std::to_string(block->shared_bytes) +
             " bytes)",
         l);
  if (offset % bytes != 0) fail("misaligned shared-memory access at offset " + std::to_string(offset), l);
  return block->shared + offset;
}

// TSan sees a 16-byte access whatever the size: shared memory is 16-byte granular in these kernels except for plain C++
// access, which TSan instruments itself. Narrower ones would only add false sharing, so they are left to the schedules.
void lds(void* dst, uint32_t address, unsigned bytes, loc_t l) {
  const unsigned char* p = shared_pointer(address, bytes, l);
  check_race(address, bytes, /*is_write=*/false, l);
  if (bytes == 16) tsan_read16(p);
  std::memcpy(dst, p, bytes);
}

void sts(uint32_t address, const void* src, unsigned bytes, loc_t l) {
  unsigned char* p = shared_pointer(address, bytes, l);
  check_race(address, bytes, /*is_write=*/true, l);
  if (bytes == 16) tsan_write16(p);
  std::memcpy(p, src, bytes);
}

}  // namespace simt
