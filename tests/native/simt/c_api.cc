// The simulators' controls as a C ABI, for the Python tests.
#include "c_api.h"

#include <cstdio>
#include <memory>
#include <vector>

#include "ptx.h"

using simt::ptx::Module;

extern "C" {

SIMT_API void simt_configure(int schedule, int copies, uint64_t seed) {
  simt::set_launch_config({static_cast<simt::Schedule>(schedule), static_cast<simt::Visibility>(copies), seed});
}

SIMT_API void simt_set_device(int architecture) { simt::set_device(architecture); }

SIMT_API void simt_set_multiprocessors(int count) { simt::set_multiprocessors(count); }

SIMT_API void simt_use_host() { simt::set_launcher({}); }

SIMT_API void* simt_load_ptx(const char* path, char* error, size_t error_bytes) {
  std::shared_ptr<const Module>* module = nullptr;
  simt::guarded(error, error_bytes, [&] { module = new std::shared_ptr<const Module>(simt::ptx::load_module(path)); });
  return module;
}

SIMT_API void simt_use_ptx(void* module, const void* const* addresses, const size_t* bytes, int count) {
  std::vector<simt::ptx::Region> regions;
  for (int i = 0; i < count; i++) regions.push_back({addresses[i], bytes[i]});
  simt::ptx::install(*static_cast<std::shared_ptr<const Module>*>(module), std::move(regions));
}

// Counters since the last call, in the order of Statistics.
SIMT_API void simt_take_statistics(uint64_t* out) {
  simt::Statistics& s = simt::statistics();
  const uint64_t values[] = {s.switches, s.instructions, s.mma,      s.ldmatrix,
                             s.shuffles, s.async_copies, s.barriers, s.bank_conflicts};
  for (uint64_t value : values) *out++ = value;
  s = {};
}

}  // extern "C"
