// The creator: what TensorRT's registry knows of the plugin.
#include "adapters/trt_fields.h"
#include "adapters/trt_host.h"
#include "adapters/trt_plugin.h"
#include "core/backend.h"

namespace intfa::trt {
namespace {

class Creator : public nvinfer1::IPluginCreatorV3One {
 public:
  nvinfer1::IPluginV3* createPlugin(const char* name, const nvinfer1::PluginFieldCollection* fields,
                                    nvinfer1::TensorRTPhase) noexcept override {
    restore_registration();
    Plugin* plugin = nullptr;
    const char* layer = name != nullptr ? name : "";
    guarded(layer, [&] {
      plugin = new Plugin(layer, fields != nullptr ? read_fields(*fields) : node::Attributes{});
      if (log_enabled()) log_line("TensorRT: " + std::string(layer) + ": " + plugin->getMetadataString());
    });
    return plugin;
  }

  const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override {
    const nvinfer1::PluginFieldCollection* names = nullptr;
    guarded("", [&] { names = &field_names(); });
    return names;
  }
  const char* getPluginName() const noexcept override { return kName; }
  const char* getPluginVersion() const noexcept override { return kVersion; }
  const char* getPluginNamespace() const noexcept override { return kNamespace; }
};

}  // namespace

nvinfer1::IPluginCreatorV3One* new_creator() { return new Creator; }

}  // namespace intfa::trt
