// A grid over x, log2 of P, and the code of P at each of its points: 2^x for 64 keys in a few instructions, where there
// is one that looks bytes up among 256.
//
// Point i is x = kGridOctaves * (sqrt(i / 255) - 1), so that x belongs to point rint(255 * (1 + x / kGridOctaves)^2). P
// is at most 2.2 codes off at x = 0, 1.1 at -2 and 0.67, little more than where it is rounded, from -4 down.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace intfa::cpu {

constexpr float kGridOctaves = 10.f;

struct CodeGrid {
  CodeGrid() {
    // A weight under half a code becomes one from 0.34 on: of weights as many in each octave, as in the tail behind a
    // sink, those that become 1 then make up for those that become 0.
    for (int i = 1; i < 256; ++i)
      code[i] =
          static_cast<uint8_t>(std::max(1.0, std::rint(255 * std::exp2(kGridOctaves * (std::sqrt(i / 255.) - 1)))));
  }
  alignas(64) uint8_t code[256] = {};
};

inline const CodeGrid& code_grid() {
  static const CodeGrid grid;
  return grid;
}

}  // namespace intfa::cpu
