// Global-memory races between the blocks of one launch. Nothing orders blocks there (the interpreter knows no atomics
// and no grid barrier), so a byte that one block writes must be left alone by every other, in whatever order they
// happened to run. Launches are ordered by their stream: each starts with a new check.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <unordered_map>

namespace simt::ptx {

class GlobalRaceCheck {
 public:
  // block: number of the accessing block in its grid. Returns what is wrong with this access, or null.
  const char* access(int32_t block, uint64_t address, size_t bytes, bool is_write);

 private:
  static constexpr int32_t kNone = -1, kSeveral = -2;
  static constexpr uint64_t kPage = 4096;  // bytes
  struct Byte {
    int32_t writer = kNone, reader = kNone;  // blocks
  };
  struct Page {
    Byte bytes[kPage];
  };
  Page& page_of(uint64_t address);

  std::unordered_map<uint64_t, std::unique_ptr<Page>> pages_;  // those that were touched
  uint64_t last_number_ = 0;                                   // of last_page_: neighbours come one after another
  Page* last_page_ = nullptr;
};

}  // namespace simt::ptx
