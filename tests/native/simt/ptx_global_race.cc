#include "ptx_global_race.h"

namespace simt::ptx {

GlobalRaceCheck::Page& GlobalRaceCheck::page_of(uint64_t address) {
  const uint64_t number = address / kPage;
  if (last_page_ == nullptr || number != last_number_) {
    std::unique_ptr<Page>& page = pages_[number];
    if (!page) page = std::make_unique<Page>();
    last_number_ = number;
    last_page_ = page.get();
  }
  return *last_page_;
}

const char* GlobalRaceCheck::access(int32_t block, uint64_t address, size_t bytes, bool is_write) {
  for (uint64_t at = address; at < address + bytes; at++) {
    Byte& byte = page_of(at).bytes[at % kPage];
    if (byte.writer != kNone && byte.writer != block)
      return is_write ? "global race: another block of this launch also writes here"
                      : "global race: read of what another block of this launch writes";
    if (is_write) {
      if (byte.reader != kNone && byte.reader != block)
        return "global race: write over what another block of this launch reads";
      byte.writer = block;
    } else if (byte.reader != block) {
      byte.reader = byte.reader == kNone ? block : kSeveral;
    }
  }
  return nullptr;
}

}  // namespace simt::ptx
