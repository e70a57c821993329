// Which query and head a row of a tile is.
//
// The rows of a head are its queries. Where query heads that share a K/V head are packed, the rows are, query after
// query, that of each of these heads: with few queries they fill a tile together, and K and V are read once for all of
// them. Tiles cut the rows wherever they end, within a query too.
#pragma once

#include <cstdint>

#include "core/numerics.h"

namespace intfa::cuda {

struct RowMap {
  int heads;            // packed: 1, or all that share a K/V head
  int groups;           // Hq / heads: how many times there are `count` rows in a batch entry
  int count;            // Sq * heads
  uint32_t reciprocal;  // 2^31 / heads, rounded up
  static constexpr int64_t kHalf = int64_t{1} << 31;

  static RowMap of(int heads, int num_heads, int seqlen_q) {
    return {heads, num_heads / heads, seqlen_q * heads, static_cast<uint32_t>((kHalf + heads - 1) / heads)};
  }
  // Whether query() is exact below so many rows: the reciprocal is less than 1 too large. For one head it is not.
  static bool divides(int64_t rows, int64_t heads) { return heads == 1 || rows <= kHalf / heads; }

  // row / heads
  INTFA_HOST_DEVICE int query(int row) const {
    return static_cast<int>((uint64_t{2} * static_cast<uint32_t>(row) * reciprocal) >> 32);
  }
  // row % heads: its head, counted from the group's first
  INTFA_HOST_DEVICE int head(int row) const { return row - query(row) * heads; }
};

}  // namespace intfa::cuda
