// One layer from fields and tensors to results, for Python: build, serialize, deserialize, attach, run.
#include <dlfcn.h>

#include <cstdio>
#include <cstring>

#include "layer.h"

extern "C" {

struct FieldRecord {
  const char* name;
  const void* data;
  int32_t type;
  int32_t length;
};

struct TensorRecord {
  int32_t type;  // an nvinfer1::DataType
  int32_t rank;
  int64_t shape[8];
  void* data;  // of an output: null, to ask for type and shape
};

// Fills in the outputs' types and shapes, and their data where all have memory. Returns 0, or the number of the step
// that failed; why is on stderr.
int run_layer(const char* plugin, const FieldRecord* fields, int num_fields, const TensorRecord* inputs, int num_inputs,
              TensorRecord* outputs, int num_outputs, void* (*allocate)(size_t)) {
  using namespace nvinfer1;
  void* library = dlopen(plugin, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    std::fprintf(stderr, "%s\n", dlerror());
    return 100;
  }
  const auto getCreators =
      reinterpret_cast<IPluginCreatorInterface* const* (*)(int32_t&)>(dlsym(library, "getCreators"));
  int32_t count = 0;
  auto& creator = *static_cast<IPluginCreatorV3One*>(getCreators(count)[0]);
  trt_test::Fields given;
  for (int i = 0; i < num_fields; ++i) {
    const auto type = static_cast<PluginFieldType>(fields[i].type);
    const size_t size = type == PluginFieldType::kCHAR ? 1 : 4;
    given.add(fields[i].name, type, fields[i].data, size * fields[i].length, fields[i].length);
  }
  trt_test::Layer layer(creator.createPlugin("layer", given.collection(), TensorRTPhase::kBUILD));
  if (!layer) return 1;
  if (layer.build().getNbOutputs() != num_outputs) return 2;

  trt_test::Expressions expressions;
  std::vector<DataType> types, output_types(num_outputs);
  std::vector<DimsExprs> dims, output_dims(num_outputs);
  std::vector<DynamicPluginTensorDesc> tensors;
  for (int i = 0; i < num_inputs; ++i) {
    const std::vector<int64_t> shape(inputs[i].shape, inputs[i].shape + inputs[i].rank);
    types.push_back(static_cast<DataType>(inputs[i].type));
    dims.push_back(expressions.dims(shape));
    tensors.push_back(trt_test::dynamic(trt_test::describe(shape, types.back())));
  }
  if (layer.build().getOutputDataTypes(output_types.data(), num_outputs, types.data(), num_inputs) != 0) return 3;
  if (layer.build().getOutputShapes(dims.data(), num_inputs, nullptr, 0, output_dims.data(), num_outputs,
                                    expressions.builder()) != 0)
    return 4;
  bool complete = true;
  for (int i = 0; i < num_outputs; ++i) {
    const std::vector<int64_t> shape = trt_test::Expressions::shape(output_dims[i]);
    outputs[i].type = static_cast<int32_t>(output_types[i]);
    outputs[i].rank = static_cast<int32_t>(shape.size());
    std::copy(shape.begin(), shape.end(), outputs[i].shape);
    tensors.push_back(trt_test::dynamic(trt_test::describe(shape, output_types[i])));
    complete = complete && outputs[i].data != nullptr;
  }
  if (!complete) return 0;

  for (int i = 0; i < num_inputs + num_outputs; ++i)
    if (!layer.build().supportsFormatCombination(i, tensors.data(), num_inputs, num_outputs)) {
      std::fprintf(stderr, "tensor %d of type %d is not supported\n", i, static_cast<int>(tensors[i].desc.type));
      return 5;
    }
  if (layer.build().configurePlugin(tensors.data(), num_inputs, tensors.data() + num_inputs, num_outputs) != 0)
    return 6;
  const size_t bytes =
      layer.build().getWorkspaceSize(tensors.data(), num_inputs, tensors.data() + num_inputs, num_outputs);

  const PluginFieldCollection* kept = layer.runtime().getFieldsToSerialize();
  if (kept == nullptr) return 7;
  const trt_test::Layer loaded(creator.createPlugin("layer", kept, TensorRTPhase::kRUNTIME));
  if (!loaded || loaded.runtime().setTactic(0) != 0) return 8;
  const trt_test::Layer attached(loaded.runtime().attachToContext(nullptr));
  if (!attached) return 9;
  std::vector<PluginTensorDesc> descriptions;
  std::vector<const void*> in;
  std::vector<void*> out;
  for (const DynamicPluginTensorDesc& tensor : tensors) descriptions.push_back(tensor.desc);
  for (int i = 0; i < num_inputs; ++i) in.push_back(inputs[i].data);
  for (int i = 0; i < num_outputs; ++i) out.push_back(outputs[i].data);
  const PluginTensorDesc* output_descriptions = descriptions.data() + num_inputs;
  if (attached.runtime().onShapeChange(descriptions.data(), num_inputs, output_descriptions, num_outputs) != 0)
    return 10;
  void* workspace = allocate(bytes);
  if (workspace == nullptr) return 11;
  if (attached.runtime().enqueue(descriptions.data(), output_descriptions, in.data(), out.data(), workspace, nullptr) !=
      0)
    return 12;
  return 0;
}
}
