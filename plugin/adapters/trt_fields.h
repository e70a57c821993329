// A node's attributes as TensorRT's plugin fields, in both directions.
#pragma once

#include <string>
#include <vector>

#include "adapters/node.h"
#include "adapters/trt_api.h"

namespace intfa::trt {

// What the creator answers when asked which fields it takes: node::kAttributeFields, without values.
const nvinfer1::PluginFieldCollection& field_names();

// Reads what the ONNX parser, a serialized engine or an application gives. An absent field keeps its default; throws
// node::Refusal for an unknown name, a wrong type or a wrong length.
node::Attributes read_fields(const nvinfer1::PluginFieldCollection& fields);

// Fields that point into `attributes`, for an engine to keep.
std::vector<nvinfer1::PluginField> write_fields(const node::Attributes& attributes);

// All attributes as "name=value;...".
std::string text(const node::Attributes& attributes);

}  // namespace intfa::trt
