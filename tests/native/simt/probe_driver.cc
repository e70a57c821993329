#include <map>
#include <string>

#include "c_api.h"
#include "probe.cuh"

namespace {
using Probe = void (*)(const uint32_t*, uint32_t*);
const std::map<std::string, Probe> kProbes = {
    {"mma_s8s8", intfa::probe::mma_s8s8},
    {"mma_u8s8", intfa::probe::mma_u8s8},
    {"mma_f16", intfa::probe::mma_f16},
    {"ldmatrix_x4", intfa::probe::ldmatrix_x4},
    {"ld_shared_x4", intfa::probe::ld_shared_x4},
    {"st_shared", intfa::probe::st_shared},
    {"cp_async16", intfa::probe::cp_async16},
    {"shfl_xor", intfa::probe::shfl_xor},
    {"warp_any", intfa::probe::warp_any},
    {"scalar_float", intfa::probe::scalar_float},
    {"scalar_integer", intfa::probe::scalar_integer},
};
}  // namespace

// One warp runs the named probe.
extern "C" SIMT_API int probe_run(const char* name, const uint32_t* in, uint32_t* out, char* error,
                                  size_t error_bytes) {
  return simt::guarded(error, error_bytes,
                       [&] { simt::launch_kernel(kProbes.at(name), 1, 32, intfa::probe::kSharedBytes, in, out); });
}
