// A check that ends the program with its place and text; `checks` counts them, so that checking nothing shows.
#pragma once

#include <cstdio>
#include <cstdlib>

inline int checks = 0;

#define CHECK(condition)                                                   \
  do {                                                                     \
    ++checks;                                                              \
    if (!(condition)) {                                                    \
      std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
      std::exit(1);                                                        \
    }                                                                      \
  } while (false)
