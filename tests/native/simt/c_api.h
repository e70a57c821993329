// For the C entry points of drivers: no exception crosses them.
#pragma once

#include <cstddef>
#include <cstdio>
#include <exception>

namespace simt {

// Runs f(); returns 0, or 1 with the message of what it threw in `error`.
template <class F>
int guarded(char* error, size_t error_bytes, F f) {
  try {
    f();
    return 0;
  } catch (const std::exception& e) {
    std::snprintf(error, error_bytes, "%s", e.what());
    return 1;
  }
}

}  // namespace simt
