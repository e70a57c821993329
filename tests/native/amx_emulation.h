// Intel's tile instructions in plain C++, as the Software Developer's Manual's pseudo-code has them, for a processor
// without them. Whatever a processor would answer with a fault ends the program.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace amx_emulation {

struct Tile {
  int rows = 0, row_bytes = 0;
  uint8_t data[16][64];
};

inline thread_local bool configured = false;
inline thread_local Tile tiles[8];
inline thread_local long multiplications = 0;  // tile products so far: a test sees that it tests something

inline void require(bool condition, const char* what) {
  if (condition) return;
  fprintf(stderr, "AMX fault: %s\n", what);
  abort();
}

inline Tile& tile(int index) {
  require(configured, "no tile configuration is loaded");
  require(index >= 0 && index < 8, "no such tile");
  require(tiles[index].rows > 0, "a tile that the configuration leaves out");
  return tiles[index];
}

inline void load_config(const void* operand) {
  uint8_t bytes[64];
  memcpy(bytes, operand, sizeof bytes);
  require(bytes[0] == 1, "palette is not 1");
  for (int i = 1; i < 16; ++i) require(bytes[i] == 0, "a reserved byte or a restart row is set");
  for (int i = 32; i < 48; ++i) require(bytes[i] == 0, "a tile beyond the palette's eight");
  for (int i = 56; i < 64; ++i) require(bytes[i] == 0, "a tile beyond the palette's eight");
  for (int t = 0; t < 8; ++t) {
    uint16_t row_bytes;
    memcpy(&row_bytes, bytes + 16 + 2 * t, sizeof row_bytes);
    const int rows = bytes[48 + t];
    require(rows <= 16 && row_bytes <= 64, "a tile of more than 16 rows or 64 bytes");
    require((rows == 0) == (row_bytes == 0), "a tile with rows or columns only");
    tiles[t] = {};
    tiles[t].rows = rows;
    tiles[t].row_bytes = row_bytes;
  }
  configured = true;
}

inline void load(int index, const void* base, int64_t stride) {
  Tile& t = tile(index);
  memset(t.data, 0, sizeof t.data);
  for (int r = 0; r < t.rows; ++r) memcpy(t.data[r], static_cast<const char*>(base) + r * stride, t.row_bytes);
}

inline void store(int index, void* base, int64_t stride) {
  const Tile& t = tile(index);
  for (int r = 0; r < t.rows; ++r) memcpy(static_cast<char*>(base) + r * stride, t.data[r], t.row_bytes);
}

// sums += a . b, four products of bytes of the types A and B into each int32
template <typename A, typename B>
void multiply(int sums_index, int a_index, int b_index) {
  Tile& sums = tile(sums_index);
  const Tile &a = tile(a_index), &b = tile(b_index);
  require(sums_index != a_index && sums_index != b_index && a_index != b_index, "a tile twice in one instruction");
  require(a.row_bytes == 4 * b.rows, "A's columns are not B's rows");
  require(sums.rows == a.rows && sums.row_bytes == b.row_bytes, "the sums do not have the shape of the product");
  for (int m = 0; m < a.rows; ++m) {
    for (int k = 0; k < b.rows; ++k) {
      for (int n = 0; n < b.row_bytes / 4; ++n) {
        uint32_t sum;
        memcpy(&sum, sums.data[m] + 4 * n, sizeof sum);
        for (int i = 0; i < 4; ++i)
          sum += static_cast<uint32_t>(int32_t{static_cast<A>(a.data[m][4 * k + i])} *
                                       static_cast<B>(b.data[k][4 * n + i]));
        memcpy(sums.data[m] + 4 * n, &sum, sizeof sum);
      }
    }
  }
  ++multiplications;
}

}  // namespace amx_emulation

inline void _tile_loadconfig(const void* config) { amx_emulation::load_config(config); }
inline void _tile_release() { amx_emulation::configured = false; }
inline void _tile_zero(int tile) { memset(amx_emulation::tile(tile).data, 0, sizeof amx_emulation::tiles[0].data); }
inline void _tile_loadd(int tile, const void* base, int64_t stride) { amx_emulation::load(tile, base, stride); }
inline void _tile_stored(int tile, void* base, int64_t stride) { amx_emulation::store(tile, base, stride); }
inline void _tile_dpbsud(int sums, int a, int b) { amx_emulation::multiply<int8_t, uint8_t>(sums, a, b); }
inline void _tile_dpbusd(int sums, int a, int b) { amx_emulation::multiply<uint8_t, int8_t>(sums, a, b); }
