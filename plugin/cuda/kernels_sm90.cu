#include "cuda/instances_sm90.cuh"

INTFA_WGMMA(intfa_attention_wgmma_d64, false, 64)
INTFA_WGMMA(intfa_attention_wgmma_d96, false, 96)
INTFA_WGMMA(intfa_attention_wgmma_d128, false, 128)
INTFA_WGMMA(intfa_attention_wgmma_d256, false, 256)
INTFA_WGMMA(intfa_attention_wgmma_scored_d64, true, 64)
INTFA_WGMMA(intfa_attention_wgmma_scored_d96, true, 96)
INTFA_WGMMA(intfa_attention_wgmma_scored_d128, true, 128)
INTFA_WGMMA(intfa_attention_wgmma_scored_d256, true, 256)
INTFA_PERSISTENT(intfa_attention_wgmma192_d64, 64)
INTFA_PERSISTENT(intfa_attention_wgmma192_d96, 96)
INTFA_PERSISTENT(intfa_attention_wgmma192_d128, 128)

const intfa::cuda::WgmmaKernel intfa::cuda::kWgmmaKernels[] = {
    {64, wgmma_entry<WgmmaShape<64, false>>(intfa_attention_wgmma_d64)},
    {96, wgmma_entry<WgmmaShape<96, false>>(intfa_attention_wgmma_d96)},
    {128, wgmma_entry<WgmmaShape<128, false>>(intfa_attention_wgmma_d128)},
    {256, wgmma_entry<WgmmaShape<256, false>>(intfa_attention_wgmma_d256)},
    {64, wgmma_entry<WgmmaShape<64, true>>(intfa_attention_wgmma_scored_d64)},
    {96, wgmma_entry<WgmmaShape<96, true>>(intfa_attention_wgmma_scored_d96)},
    {128, wgmma_entry<WgmmaShape<128, true>>(intfa_attention_wgmma_scored_d128)},
    {256, wgmma_entry<WgmmaShape<256, true>>(intfa_attention_wgmma_scored_d256)},
    {64, wgmma_entry<PersistentShape<64>>(intfa_attention_wgmma192_d64)},
    {96, wgmma_entry<PersistentShape<96>>(intfa_attention_wgmma192_d96)},
    {128, wgmma_entry<PersistentShape<128>>(intfa_attention_wgmma192_d128)},
};
