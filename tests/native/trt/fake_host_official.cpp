// The fake as NVIDIA's headers lay it out: whether the plugin calls the right places of the version they are of.
#include <algorithm>
#include <utility>

#include "NvInferVersion.h"
#include "fake_host.h"

#pragma GCC diagnostic ignored "-Wdeprecated-declarations"  // 10 declares what it deprecates as pure virtual

namespace fake_host {
namespace {

using nvinfer1::AsciiChar;
using nvinfer1::IPluginCreatorInterface;

std::vector<Line> lines;

struct Registry final : nvinfer1::IPluginRegistry {
#if NV_TENSORRT_MAJOR == 10
  bool registerCreator(nvinfer1::IPluginCreator&, AsciiChar const*) noexcept override { return false; }
  nvinfer1::IPluginCreator* const* getPluginCreatorList(int32_t*) const noexcept override { return nullptr; }
  nvinfer1::IPluginCreator* getPluginCreator(AsciiChar const*, AsciiChar const*, AsciiChar const*) noexcept override {
    return nullptr;
  }
  bool deregisterCreator(nvinfer1::IPluginCreator const&) noexcept override { return false; }
#endif
  void setErrorRecorder(nvinfer1::IErrorRecorder*) noexcept override {}
  nvinfer1::IErrorRecorder* getErrorRecorder() const noexcept override { return nullptr; }
  bool isParentSearchEnabled() const override { return true; }
  void setParentSearchEnabled(bool) override {}
  void* loadLibrary(AsciiChar const*) noexcept override { return nullptr; }
  void deregisterLibrary(void*) noexcept override {}
  bool registerCreator(IPluginCreatorInterface& creator, AsciiChar const*) noexcept override {
    creators().push_back(&creator);
    return true;
  }
  IPluginCreatorInterface* const* getAllCreators(int32_t* count) const noexcept override {
    *count = static_cast<int32_t>(creators().size());
    return creators().data();
  }
  IPluginCreatorInterface* getCreator(AsciiChar const*, AsciiChar const*, AsciiChar const*) noexcept override {
    return nullptr;
  }
  bool deregisterCreator(IPluginCreatorInterface const& creator) noexcept override {
    const auto found = std::find(creators().begin(), creators().end(), &creator);
    if (found == creators().end()) return false;
    creators().erase(found);
    return true;
  }
  nvinfer1::IPluginResource* acquirePluginResource(AsciiChar const*, nvinfer1::IPluginResource*) noexcept override {
    return nullptr;
  }
  int32_t releasePluginResource(AsciiChar const*) noexcept override { return 0; }
#if NV_TENSORRT_MAJOR * 100 + NV_TENSORRT_MINOR >= 1009
  IPluginCreatorInterface* const* getAllCreatorsRecursive(int32_t* count) noexcept override {
    return getAllCreators(count);
  }
#endif
};

struct Logger final : nvinfer1::ILogger {
  void log(Severity severity, AsciiChar const* text) noexcept override {
    lines.push_back({static_cast<int>(severity), text});
  }
};

Logger logger;
struct Finder final : nvinfer1::ILoggerFinder {
  nvinfer1::ILogger* findLogger() override { return &logger; }
};

// As in TensorRT, nothing of it is destroyed before the process is.
Registry& registry = *new Registry;
Finder& finder = *new Finder;

}  // namespace

void set_version(int) {}
std::vector<int> versions() { return {NV_TENSORRT_MAJOR}; }
std::vector<Line> take_log() { return std::exchange(lines, {}); }
std::vector<IPluginCreatorInterface*>& creators() {
  static std::vector<IPluginCreatorInterface*> all;
  return all;
}
void* logger_finder() { return &finder; }

}  // namespace fake_host

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT int32_t getInferLibMajorVersion() noexcept { return NV_TENSORRT_MAJOR; }
EXPORT nvinfer1::IPluginRegistry* getPluginRegistry() noexcept { return &fake_host::registry; }
EXPORT nvinfer1::ILogger* getLogger() noexcept { return &fake_host::logger; }
