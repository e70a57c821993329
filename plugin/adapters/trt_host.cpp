// How the plugin gets known to TensorRT, and where its messages go.
//
// There are two ways to load a plugin library, and both are used:
//   dlopen alone          trtexec --staticPlugins, polygraphy --plugins, ONNX Runtime's trt_extra_plugin_lib_paths.
//                         A creator has to register itself, from a constructor of the library.
//   dlopen, getCreators   trtexec --dynamicPlugins and --setPluginsToSerialize, registry.load_library. TensorRT
//   registers
//                         what getCreators returns, and gives up if the registry has a creator of that name already.
// The second includes the first. So the constructor registers, and getCreators takes that back before it hands over.
// The registry that asks may be a builder's or runtime's own, though, which takes what it has with it when it goes.
// Hence a second creator for getCreators, and when one of the two is used, the first is put back if the process lacks
// both.
//
// The registry and the logger are called by the place of their functions in the virtual table, which is not the same in
// TensorRT 10 and 11. A version that is not known is left alone: then only getCreators works, and messages go to
// stderr.
#include "adapters/trt_host.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <mutex>

#define INTFA_EXPORT extern "C" __attribute__((visibility("default")))

namespace intfa::trt {
namespace {

// Places in virtual tables. Source: NVIDIA's headers of 10.0 to 11.1; 10.16, 11.4 and RTX 1.7 at run time.
struct Layout {
  int register_creator, all_creators, deregister_creator;  // IPluginRegistry
  int log;                                                 // ILogger
  int find_logger;                                         // ILoggerFinder
};
constexpr Layout kLayout10 = {12, 13, 15, 0, 0};
constexpr Layout kLayout11 = {8, 9, 11, 4, 4};

template <typename Function>
Function method(void* object, int place) {
  return reinterpret_cast<Function>((*static_cast<void***>(object))[place]);
}

// One TensorRT library of the process.
struct Library {
  void* handle = nullptr;
  const Layout* layout = nullptr;  // null: none found, or not known

  template <typename Function>
  Function symbol(const char* name) const {
    return reinterpret_cast<Function>(dlsym(handle, name));
  }
};

Library library_of(void* handle) {
  Library library{handle, nullptr};
  if (library.symbol<void* (*)()>("getPluginRegistry") == nullptr) return library;
  const auto number = [&](const char* name) {
    const auto function = library.symbol<int32_t (*)()>(name);
    return function != nullptr ? function() : 0;
  };
  const int32_t major = number("getInferLibMajorVersion");
  // TensorRT for RTX is at 1; its parser and registry know plugins, though its engines do not.
  const bool is_rtx = major == 1 && number("getInferLibMinorVersion") >= 7;
  library.layout = major == 10 ? &kLayout10 : major == 11 || is_rtx ? &kLayout11 : nullptr;
  return library;
}

// The library that an object of TensorRT's own comes from.
Library library_of_object(void* object) {
  Dl_info info;
  if (dladdr(*static_cast<void**>(object), &info) == 0 || info.dli_fname == nullptr) return {};
  void* handle = dlopen(info.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
  return handle != nullptr ? library_of(handle) : Library{};
}

Library loaded_library() {
  if (const Library library = library_of(RTLD_DEFAULT); library.layout != nullptr) return library;
  for (const char* name : {"libnvinfer.so.11", "libnvinfer.so.10", "libnvinfer_lean.so.11", "libnvinfer_lean.so.10",
                           "libnvinfer_dispatch.so.11", "libnvinfer_dispatch.so.10", "libtensorrt_rtx.so.1"}) {
    void* handle = dlopen(name, RTLD_LAZY | RTLD_NOLOAD);
    if (handle == nullptr) continue;
    if (const Library library = library_of(handle); library.layout != nullptr) return library;
  }
  return {};
}

// Polygraphy opens plugin libraries before it imports tensorrt. Its package keeps libnvinfer beside ours; elsewhere it
// is where the loader looks.
Library opened_library() {
  Dl_info self;
  std::string site_packages;
  if (dladdr(reinterpret_cast<void*>(&opened_library), &self) != 0 && self.dli_fname != nullptr) {
    const std::string path = self.dli_fname;  // <site-packages>/intfa_onnx/lib/libintfa_trt.so
    const size_t slash = path.rfind('/');
    if (slash != std::string::npos) site_packages = path.substr(0, slash) + "/../../tensorrt_libs/";
  }
  for (const std::string& folder : {site_packages, std::string()})
    for (const char* name : {"libnvinfer.so.11", "libnvinfer.so.10"}) {
      void* handle = dlopen((folder + name).c_str(), RTLD_LAZY | RTLD_GLOBAL);
      if (handle == nullptr) continue;
      if (const Library library = library_of(handle); library.layout != nullptr) return library;
    }
  return {};
}

nvinfer1::IPluginCreatorInterface& own_creator() {
  static auto& instance = *new_creator();
  return instance;
}

nvinfer1::IPluginCreatorInterface& library_creator() {
  static auto& instance = *new_creator();
  return instance;
}

// The process-wide registration that the constructor made.
class Registration {
 public:
  void make() {
    const std::lock_guard<std::mutex> lock(mutex_);
    library_ = loaded_library();
    if (library_.layout == nullptr) library_ = opened_library();
    if (library_.layout != nullptr) add();
  }

  void take_back() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!active_) return;
    const auto remove = method<bool (*)(void*, const nvinfer1::IPluginCreatorInterface&)>(
        registry(), library_.layout->deregister_creator);
    remove(registry(), own_creator());
    active_ = false;
    handed_over_ = true;
  }

  void restore() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!handed_over_) return;
    handed_over_ = false;
    int32_t count = 0;
    const auto all = method<nvinfer1::IPluginCreatorInterface* const* (*)(void*, int32_t*)>(
        registry(), library_.layout->all_creators);
    nvinfer1::IPluginCreatorInterface* const* creators = all(registry(), &count);
    if (std::find(creators, creators + count, &library_creator()) == creators + count) add();
  }

 private:
  void* registry() const { return library_.symbol<void* (*)()>("getPluginRegistry")(); }

  void add() {
    const auto add = method<bool (*)(void*, nvinfer1::IPluginCreatorInterface&, const char*)>(
        registry(), library_.layout->register_creator);
    active_ = add(registry(), own_creator(), kNamespace);
  }

  Library library_;
  bool active_ = false;
  bool handed_over_ = false;
  std::mutex mutex_;
};

// None of these is ever destroyed: TensorRT may call in while the process ends, in an order that nobody defines. The
// library is never unmapped either (linked with -z nodelete).
Registration& registration() {
  static auto& instance = *new Registration;
  return instance;
}

void* logger_finder = nullptr;

struct Logger {
  void* object = nullptr;
  const Layout* layout = nullptr;
};

Logger find_logger() {
  if (logger_finder != nullptr) {
    const Library library = library_of_object(logger_finder);
    if (library.layout != nullptr) {
      const auto find = method<void* (*)(void*)>(logger_finder, library.layout->find_logger);
      if (void* logger = find(logger_finder)) return {logger, library.layout};
    }
  }
  const Library library = loaded_library();
  if (library.layout == nullptr) return {};
  const auto get = library.symbol<void* (*)()>("getLogger");
  return {get != nullptr ? get() : nullptr, library.layout};
}

__attribute__((constructor)) void register_on_load() {
  try {
    registration().make();
  } catch (const std::exception&) {  // no memory; getCreators still works
  }
}

}  // namespace

void restore_registration() noexcept { registration().restore(); }

void log_error(const char* layer, const char* what) noexcept {
  char line[2000];
  std::snprintf(line, sizeof line, "intfa: %s '%s': %s", kName, layer, what);
  try {
    const Logger logger = find_logger();
    if (logger.object != nullptr) {
      constexpr int32_t kError = 1;  // ILogger::Severity
      method<void (*)(void*, int32_t, const char*)>(logger.object, logger.layout->log)(logger.object, kError, line);
      return;
    }
  } catch (const std::exception&) {  // a finder or logger of the application's own may throw
  }
  std::fprintf(stderr, "%s\n", line);
}

}  // namespace intfa::trt

// Called by IPluginRegistry::loadLibrary, which silently gives up where one of the two is missing.
INTFA_EXPORT void setLoggerFinder(void* finder) { intfa::trt::logger_finder = finder; }

INTFA_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
  static nvinfer1::IPluginCreatorInterface* const creators[] = {&intfa::trt::library_creator()};
  intfa::trt::registration().take_back();
  count = 1;
  return creators;
}
