#include "cpu/layout.h"

namespace intfa::cpu {
namespace {

// Hands out consecutive aligned pieces of memory; with a null base it only counts.
struct Carver {
  std::byte* base;
  size_t offset = 0;

  template <typename T>
  void operator()(T*& pointer, int64_t count) {
    pointer = base == nullptr ? nullptr : reinterpret_cast<T*>(base + offset);
    offset += round_up(count * static_cast<int64_t>(sizeof(T)), kAlignment);
  }
};

}  // namespace

Layout::Layout(const AttentionProblem& p, int num_threads, Heads heads)
    : half_pv(p.precision == Precision::kInt8QK), finite(p.dtype == DataType::kInt8), head_dim(p.head_dim) {
  tile_n = p.tile_n != 0 ? p.tile_n : kDefaultTileN;
  tile_stride = round_up(tile_n, kChunk);
  num_tiles = (p.seqlen_kv() + tile_n - 1) / tile_n;
  padded_keys = num_tiles * tile_stride;
  channel_groups = round_up(p.head_dim_v, kGroup) / kGroup;
  num_kv_heads = p.batch * p.kv_num_heads;
  const int64_t rows = p.num_heads / p.kv_num_heads * p.seqlen_q;
  blocks_per_head = (rows + kBlockRows - 1) / kBlockRows;
  whole_heads = heads == Heads::kWhole || blocks_per_head > 1;
  in_place = !whole_heads && rows <= kFewRows && finite && !half_pv;
  output_width = in_place ? round_up(p.head_dim_v, kChannelStep) : padded_channels();
  const int64_t tasks = std::max(num_kv_heads * blocks_per_head, num_kv_heads);
  num_workers = static_cast<int>(std::clamp<int64_t>(num_threads, 1, std::max<int64_t>(tasks, 1)));
  // where that leaves no worker idle for long, and where a head is packed by the block that uses it
  head_by_head = !whole_heads || num_kv_heads % num_workers == 0 || num_kv_heads >= 8 * num_workers;

  Carver count{nullptr};
  PackedHead head;
  visit_head(head, [&](auto*& pointer, int64_t n) { count(pointer, n); });
  head_bytes = count.offset;
  count.offset = 0;
  Block block;
  visit_block(block, [&](auto*& pointer, int64_t n) { count(pointer, n); });
  block_bytes = count.offset;
}

template <typename Visit>
void Layout::visit_head(PackedHead& head, Visit visit) const {
  const int64_t packed_keys = whole_heads ? padded_keys : tile_stride;
  visit(head.k_codes, in_place ? 0 : packed_keys * head_dim);
  visit(head.v_codes, in_place || half_pv ? 0 : packed_keys * padded_channels());
  visit(head.v_float, half_pv ? packed_keys * padded_channels() : 0);
  visit(head.k_scale, packed_keys);
  visit(head.v_scale, padded_channels());
  visit(head.v_inverse, padded_channels());
  visit(head.k_mean, kMaxHeadDim);
  visit(head.bad, finite ? 0 : padded_keys);
  visit(head.any_bad, 1);
}

template <typename Visit>
void Layout::visit_block(Block& block, Visit visit) const {
  visit(block.q_codes, kBlockRows * head_dim);
  visit(block.q_sum, kBlockRows);
  visit(block.row_factor, kBlockRows);
  visit(block.row_offset, kBlockRows);
  visit(block.row_max, kBlockRows);
  visit(block.row_sum, kBlockRows);
  visit(block.alpha, kRows);
  visit(block.beta, kRows);
  visit(block.key_begin, kBlockRows);
  visit(block.key_end, kBlockRows);
  visit(block.bad_row, kBlockRows);
  visit(block.output, kBlockRows * output_width);
  visit(block.scores, kRows * tile_stride);
  visit(block.p, kRows * tile_stride);
  visit(block.bias, kRows * tile_stride);
}

PackedHead Layout::packed(void* workspace, int64_t index) const {
  Carver carve{static_cast<std::byte*>(workspace) + index * head_bytes};
  PackedHead head;
  visit_head(head, [&](auto*& pointer, int64_t n) { carve(pointer, n); });
  return head;
}

Block Layout::block(void* workspace, int worker) const {
  Carver carve{static_cast<std::byte*>(workspace) + num_packed() * head_bytes + worker * block_bytes};
  Block block;
  visit_block(block, [&](auto*& pointer, int64_t n) { carve(pointer, n); });
  return block;
}

}  // namespace intfa::cpu
