#include "cpu/amx.h"

#include <algorithm>

#include "cpu/instruction_set.h"

#if defined(INTFA_AMX_EMULATION)
#include INTFA_AMX_EMULATION  // the tile instructions in plain C++, for tests
#define INTFA_AMX_FUNCTION
#define INTFA_HAVE_AMX
#elif defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
// By function, not by file: an inline function of a header that was compiled for AVX-512 could become the whole
// program's.
#define INTFA_AMX_FUNCTION __attribute__((target("avx512f,amx-tile,amx-int8")))
#define INTFA_HAVE_AMX
#endif

namespace intfa::cpu {

#ifdef INTFA_HAVE_AMX
namespace {

constexpr int kTileRows = 16;   // rows of a tile
constexpr int kTileBytes = 64;  // bytes of a row: 16 int32 sums, or 64 INT8 factors
constexpr int kTileElements = kTileRows * kTileBytes / 4;
static_assert(kRows == kTileRows && kGroup == kTileRows && kChunk == kTileBytes);

// Tiles 0 to 3 hold sums; 4 and 5 the factors A and B over 64 products; 6 and 7 the same over the rest of the head
// size. They stand as numbers in the code: the intrinsics make the instruction's text of them.
constexpr int kSums = 4, kRestA = 6, kRestB = 7, kNumTiles = 8;

// Operand of ldtilecfg, palette 1 (Intel SDM volume 1, chapter 18).
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};
static_assert(sizeof(TileConfig) == 64);

constexpr int rest(int head_dim) { return head_dim % kTileBytes; }

// GCC's intrinsics do not say that they read memory: without this, what was just written for them may never be stored.
inline void publish() { asm volatile("" ::: "memory"); }

INTFA_AMX_FUNCTION void load_config(int head_dim) {
  TileConfig config;
  std::fill_n(config.row_bytes, kNumTiles, kTileBytes);
  std::fill_n(config.rows, kNumTiles, kTileRows);
  if (const int bytes = rest(head_dim); bytes != 0) {
    config.row_bytes[kRestA] = static_cast<uint16_t>(bytes);
    config.rows[kRestB] = static_cast<uint8_t>(bytes / 4);
  }
  publish();
  _tile_loadconfig(&config);
}

INTFA_AMX_FUNCTION void release_config() { _tile_release(); }

}  // namespace

AmxTiles::AmxTiles(int head_dim) { load_config(head_dim); }
AmxTiles::~AmxTiles() { release_config(); }

// Four groups of 16 keys at a time: the sums of one do not wait for those of another.
INTFA_AMX_FUNCTION void amx_scores(const ScoreProduct& a) {
  alignas(64) int32_t start[kTileElements];  // takes K's +128 off again
  for (int row = 0; row < kTileRows; ++row) std::fill_n(start + row * kGroup, kGroup, -128 * a.q_sum[row]);
  publish();
  const int64_t group_bytes = static_cast<int64_t>(kGroup) * a.head_dim;
  const int whole = a.head_dim - rest(a.head_dim);
  for (int64_t key = a.chunk_begin * kChunk; key < a.chunk_end * kChunk; key += kSums * kGroup) {
    const uint8_t* k = a.k_codes + key / kGroup * group_bytes;
    _tile_loadd(0, start, kTileBytes);
    _tile_loadd(1, start, kTileBytes);
    _tile_loadd(2, start, kTileBytes);
    _tile_loadd(3, start, kTileBytes);
    for (int c = 0; c < whole; c += kTileBytes) {
      const uint8_t* b = k + c * kGroup;
      _tile_loadd(4, a.q_codes + c, a.head_dim);
      _tile_loadd(5, b, kTileBytes);
      _tile_dpbsud(0, 4, 5);
      _tile_loadd(5, b + group_bytes, kTileBytes);
      _tile_dpbsud(1, 4, 5);
      _tile_loadd(5, b + 2 * group_bytes, kTileBytes);
      _tile_dpbsud(2, 4, 5);
      _tile_loadd(5, b + 3 * group_bytes, kTileBytes);
      _tile_dpbsud(3, 4, 5);
    }
    if (whole != a.head_dim) {
      const uint8_t* b = k + whole * kGroup;
      _tile_loadd(6, a.q_codes + whole, a.head_dim);
      _tile_loadd(7, b, kTileBytes);
      _tile_dpbsud(0, 6, 7);
      _tile_loadd(7, b + group_bytes, kTileBytes);
      _tile_dpbsud(1, 6, 7);
      _tile_loadd(7, b + 2 * group_bytes, kTileBytes);
      _tile_dpbsud(2, 6, 7);
      _tile_loadd(7, b + 3 * group_bytes, kTileBytes);
      _tile_dpbsud(3, 6, 7);
    }
    int32_t* scores = a.scores + key;
    const int64_t row_bytes = a.stride * 4;
    _tile_stored(0, scores, row_bytes);
    _tile_stored(1, scores + kGroup, row_bytes);
    _tile_stored(2, scores + 2 * kGroup, row_bytes);
    _tile_stored(3, scores + 3 * kGroup, row_bytes);
  }
}

// Four groups of 16 channels at a time; past the last one the group before it is computed again, and not used.
INTFA_AMX_FUNCTION void amx_output(const OutputProduct& a) {
  alignas(64) int32_t product[kSums * kTileElements];
  const int64_t width = a.channel_groups * kGroup;
  const int64_t chunk_bytes = width * kChunk;
  constexpr int kGroupBytes = kGroup * kChunk;
  for (int first = 0; first < a.channel_groups; first += kSums) {
    const int groups = std::min(kSums, a.channel_groups - first);
    int64_t at[kSums];
    for (int g = 0; g < kSums; ++g) at[g] = static_cast<int64_t>(first + std::min(g, groups - 1)) * kGroupBytes;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int chunk = a.chunk_begin; chunk < a.chunk_end; ++chunk) {
      const int8_t* v = a.v_codes + chunk * chunk_bytes;
      _tile_loadd(4, a.p + chunk * kChunk, a.stride);
      _tile_loadd(5, v + at[0], kTileBytes);
      _tile_dpbusd(0, 4, 5);
      _tile_loadd(5, v + at[1], kTileBytes);
      _tile_dpbusd(1, 4, 5);
      _tile_loadd(5, v + at[2], kTileBytes);
      _tile_dpbusd(2, 4, 5);
      _tile_loadd(5, v + at[3], kTileBytes);
      _tile_dpbusd(3, 4, 5);
    }
    _tile_stored(0, product, kTileBytes);
    _tile_stored(1, product + kTileElements, kTileBytes);
    _tile_stored(2, product + 2 * kTileElements, kTileBytes);
    _tile_stored(3, product + 3 * kTileElements, kTileBytes);
    for (int row = 0; row < a.rows; ++row) {
      for (int g = 0; g < groups; ++g) {
        const int32_t* sums = product + g * kTileElements + row * kGroup;
        float* out = a.output + row * width + (first + g) * kGroup;
        for (int c = 0; c < kGroup; ++c)  // one fused multiply-add, as in the portable unit
          out[c] = __builtin_fmaf(static_cast<float>(sums[c]), a.beta[row], a.alpha[row] * out[c]);
      }
    }
  }
}
#else
AmxTiles::AmxTiles(int) {}
AmxTiles::~AmxTiles() = default;
void amx_scores(const ScoreProduct&) {}
void amx_output(const OutputProduct&) {}
#endif

#if defined(INTFA_AMX_EMULATION)
bool amx_usable() { return amx_allowed(); }
#elif defined(INTFA_HAVE_AMX)
bool amx_usable() {
  static const bool usable = [] {
    if (!amx_allowed()) return false;
    if (!__builtin_cpu_supports("avx512f")) return false;  // with the kernel's consent
    unsigned a, b, c, d;
    constexpr unsigned kTileBit = 1u << 24, kInt8Bit = 1u << 25;  // leaf 7, edx
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & kTileBit) == 0 || (d & kInt8Bit) == 0) return false;
    constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM; Linux 5.16 and later
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  }();
  return usable;
}
#else
bool amx_usable() { return false; }
#endif

}  // namespace intfa::cpu
