// The fake with layouts of our own declaration, for TensorRT 10 and 11 in turn. fake_host_official.cpp is the one that
// NVIDIA's headers lay out.
#include "fake_host.h"

#include <algorithm>
#include <utility>

namespace fake_host {
namespace {

using nvinfer1::IPluginCreatorInterface;

int version = 11;
std::vector<Line> lines;

void unused() { lines.push_back({0, "a function was called that the plugin must not call"}); }

bool add(IPluginCreatorInterface& creator) {
  creators().push_back(&creator);
  return true;
}

bool remove(const IPluginCreatorInterface& creator) {
  const auto found = std::find(creators().begin(), creators().end(), &creator);
  if (found == creators().end()) return false;
  creators().erase(found);
  return true;
}

IPluginCreatorInterface* const* all(int32_t* count) {
  *count = static_cast<int32_t>(creators().size());
  return creators().data();
}

// Only the places count: a function that is not called is a placeholder.
struct Registry10 {
  virtual void place0() { unused(); }
  virtual void place1() { unused(); }
  virtual void place2() { unused(); }
  virtual void place3() { unused(); }
  virtual void place4() { unused(); }
  virtual void place5() { unused(); }
  virtual void place6() { unused(); }
  virtual void place7() { unused(); }
  virtual void place8() { unused(); }
  virtual void place9() { unused(); }
  virtual void place10() { unused(); }
  virtual void place11() { unused(); }
  virtual bool register_creator(IPluginCreatorInterface& creator, const char*) { return add(creator); }
  virtual IPluginCreatorInterface* const* all_creators(int32_t* count) { return all(count); }
  virtual void place14() { unused(); }
  virtual bool deregister_creator(const IPluginCreatorInterface& creator) { return remove(creator); }
};

struct Registry11 {
  virtual void place0() { unused(); }
  virtual void place1() { unused(); }
  virtual void place2() { unused(); }
  virtual void place3() { unused(); }
  virtual void place4() { unused(); }
  virtual void place5() { unused(); }
  virtual void place6() { unused(); }
  virtual void place7() { unused(); }
  virtual bool register_creator(IPluginCreatorInterface& creator, const char*) { return add(creator); }
  virtual IPluginCreatorInterface* const* all_creators(int32_t* count) { return all(count); }
  virtual void place10() { unused(); }
  virtual bool deregister_creator(const IPluginCreatorInterface& creator) { return remove(creator); }
};

struct Logger10 {
  virtual void log(int32_t severity, const char* text) { lines.push_back({severity, text}); }
};

struct Logger11 {
  virtual void place0() { unused(); }
  virtual void place1() { unused(); }
  virtual void place2() { unused(); }
  virtual void place3() { unused(); }
  virtual void log(int32_t severity, const char* text) { lines.push_back({severity, text}); }
};

Registry10 registry10;
Registry11 registry11;
Logger10 logger10;
Logger11 logger11;

void* logger() { return version == 10 ? static_cast<void*>(&logger10) : static_cast<void*>(&logger11); }

struct Finder10 {
  virtual void* find_logger() { return logger(); }
};
struct Finder11 {
  virtual void place0() { unused(); }
  virtual void place1() { unused(); }
  virtual void place2() { unused(); }
  virtual void place3() { unused(); }
  virtual void* find_logger() { return logger(); }
};
Finder10 finder10;
Finder11 finder11;

}  // namespace

void set_version(int major) { version = major; }
std::vector<int> versions() { return {10, 11}; }
std::vector<Line> take_log() { return std::exchange(lines, {}); }
std::vector<IPluginCreatorInterface*>& creators() {
  static std::vector<IPluginCreatorInterface*> all;
  return all;
}
void* logger_finder() { return version == 10 ? static_cast<void*>(&finder10) : static_cast<void*>(&finder11); }

}  // namespace fake_host

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT int32_t getInferLibMajorVersion() { return fake_host::version; }
EXPORT void* getPluginRegistry() {
  if (fake_host::version == 10) return &fake_host::registry10;
  return &fake_host::registry11;
}
EXPORT void* getLogger() { return fake_host::logger(); }
