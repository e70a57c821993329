#include "cpu/inspect.h"

#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#include "core/numerics.h"
#include "cpu/instruction_set.h"
#include "cpu/pack.h"
#include "cpu/softmax.h"

namespace intfa::cpu {
namespace {

void inspect_queries(const AttentionProblem& p, const AttentionTensors& t, int64_t batch, int64_t kv_head,
                     const PackedHead& head, const Block& block, const intfa_codes& codes) {
  const int64_t all_rows = p.num_heads / p.kv_num_heads * p.seqlen_q;
  for (int64_t first = 0; first < all_rows; first += kBlockRows) {
    const int rows = static_cast<int>(std::min<int64_t>(kBlockRows, all_rows - first));
    float scale[kBlockRows];
    RowPosition positions[kBlockRows];
    find_positions(p, kv_head, first, rows, positions);
    pack_queries()(p, t, head, {batch, positions, rows, scale}, block);
    if (codes.q != nullptr) memcpy(codes.q + first * p.head_dim, block.q_codes, rows * p.head_dim);
    if (codes.q_scale != nullptr) memcpy(codes.q_scale + first, scale, rows * sizeof(float));
  }
}

}  // namespace

void inspect_codes(const AttentionProblem& p, const AttentionTensors& t, int64_t batch, int64_t kv_head,
                   const intfa_codes& codes) {
  choose_instruction_set();
  const Layout layout(p, 1, Layout::Heads::kWhole);
  const auto release = [](void* memory) { std::free(memory); };
  const std::unique_ptr<void, decltype(release)> workspace(
      std::aligned_alloc(kAlignment, round_up(layout.bytes(), kAlignment)), release);
  if (workspace == nullptr) throw std::bad_alloc();
  const PackedHead head = layout.packed(workspace.get(), 0);
  prepare_head()(p, t, layout, batch, kv_head, head);
  for (int64_t i = 0; i < layout.num_tiles; ++i) pack_tile()(p, t, layout, batch, kv_head, head, i);
  inspect_queries(p, t, batch, kv_head, head, layout.block(workspace.get(), 0), codes);

  uint8_t order[kChunk / 4], place[kChunk / 4];
  quad_order(order);
  for (int w = 0; w < kChunk / 4; ++w) place[order[w]] = w;
  const int64_t width = layout.padded_channels();
  for (int64_t j = 0; j < valid_keys(p, t.nonpad_kv_seqlen, batch); ++j) {
    const int64_t packed = j / layout.tile_n * layout.tile_stride + j % layout.tile_n;
    const uint8_t* k = head.k_codes + packed / kGroup * kGroup * p.head_dim + packed % kGroup * 4;
    const int8_t* v =
        head.v_codes + packed / kChunk * kChunk * width + place[packed % kChunk / 4] * (4 * kGroup) + packed % 4;
    for (int64_t c = 0; c < p.head_dim && codes.k != nullptr; ++c)
      codes.k[j * p.head_dim + c] = static_cast<int8_t>(k[c / 4 * (4 * kGroup) + c % 4] - 128);
    for (int64_t c = 0; c < p.head_dim_v && codes.v != nullptr; ++c)
      codes.v[j * p.head_dim_v + c] = v[c / kGroup * (kGroup * kChunk) + c % kGroup * 4];
    if (codes.k_scale != nullptr) codes.k_scale[j] = head.k_scale[packed];
  }
  if (codes.k_mean != nullptr) memcpy(codes.k_mean, head.k_mean, p.head_dim * sizeof(float));
  if (codes.v_scale != nullptr) memcpy(codes.v_scale, head.v_scale, p.head_dim_v * sizeof(float));
}

}  // namespace intfa::cpu
