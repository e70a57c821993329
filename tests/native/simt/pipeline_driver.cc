#include <map>
#include <string>

#include "c_api.h"
#include "pipeline.cuh"

using namespace intfa::probe;

// C [m, n] = A [m, k] . B [n, k]^T
extern "C" SIMT_API int pipeline_run(const int8_t* a, const int8_t* b, int32_t* c, int m, int n, int k, char* error,
                                     size_t error_bytes) {
  return simt::guarded(error, error_bytes, [&] {
    simt::launch_kernel(pipeline, dim3(unsigned(n / kRows), unsigned(m / kRows)), 64, kPipelineShared, a, b, c, n, k);
  });
}

// Two warps run the named kernel on 64 words.
extern "C" SIMT_API int defect_run(const char* name, uint32_t* data, char* error, size_t error_bytes) {
  static const std::map<std::string, void (*)(uint32_t*)> kDefects = {
      {"divergent_shuffle", divergent_shuffle},
      {"divergent_barrier", divergent_barrier},
      {"missing_warp_at_barrier", missing_warp_at_barrier},
      {"exit_before_copy", exit_before_copy},
      {"out_of_bounds", out_of_bounds},
      {"global_race", global_race},
      {"missing_warp_sync", missing_warp_sync},
      {"bank_conflict", bank_conflict},
  };
  return simt::guarded(error, error_bytes,
                       [&] { simt::launch_kernel(kDefects.at(name), 1, 64, kPipelineShared, data); });
}
