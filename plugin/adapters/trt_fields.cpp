#include "adapters/trt_fields.h"

#include <cstring>
#include <limits>

namespace intfa::trt {
namespace {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

template <typename... Functions>
struct Overloaded : Functions... {
  using Functions::operator()...;
};
template <typename... Functions>
Overloaded(Functions...) -> Overloaded<Functions...>;

const char* name(PluginFieldType type) {
  switch (type) {
    case PluginFieldType::kINT32:
      return "int32";
    case PluginFieldType::kINT64:
      return "int64";
    case PluginFieldType::kFLOAT32:
      return "float32";
    case PluginFieldType::kFLOAT64:
      return "float64";
    case PluginFieldType::kCHAR:
      return "char";
    default:
      return "another type";
  }
}

template <typename T>
T value_of(const PluginField& field) {
  T value;
  std::memcpy(&value, field.data, sizeof value);  // the data of a serialized engine need not be aligned
  return value;
}

void expect_one(const PluginField& field) {
  if (field.length != 1 || field.data == nullptr)
    node::refuse("attribute ", field.name, " has ", field.data == nullptr ? 0 : field.length, " values, expected 1");
}

void read(const PluginField& field, int64_t& value) {
  expect_one(field);
  if (field.type == PluginFieldType::kINT32)
    value = value_of<int32_t>(field);
  else if (field.type == PluginFieldType::kINT64)
    value = value_of<int64_t>(field);
  else
    node::refuse("attribute ", field.name, " is ", name(field.type), " (supported: int32, int64)");
}

void read(const PluginField& field, float& value) {
  expect_one(field);
  if (field.type == PluginFieldType::kFLOAT32)
    value = value_of<float>(field);
  else if (field.type == PluginFieldType::kFLOAT64)
    value = static_cast<float>(value_of<double>(field));
  else
    node::refuse("attribute ", field.name, " is ", name(field.type), " (supported: float32, float64)");
}

void read(const PluginField& field, std::string& value) {
  if (field.type != PluginFieldType::kCHAR)
    node::refuse("attribute ", field.name, " is ", name(field.type), " (supported: char)");
  if (field.length < 0 || (field.length > 0 && field.data == nullptr))
    node::refuse("attribute ", field.name, " has no value");
  const auto* data = static_cast<const char*>(field.data);
  value =
      field.length == 0 ? std::string() : std::string(data, strnlen(data, field.length));  // with or without a final 0
}

const node::AttributeField& find(const char* name) {
  std::string known;
  for (const node::AttributeField& field : node::kAttributeFields) {
    if (name != nullptr && std::strcmp(name, field.name) == 0) return field;
    known += (known.empty() ? "" : ", ") + std::string(field.name);
  }
  node::refuse("attribute '", name == nullptr ? "" : name, "' is unknown (supported: ", known, ")");
}

}  // namespace

const nvinfer1::PluginFieldCollection& field_names() {
  static const auto& fields = *new std::vector<PluginField>([] {
    const node::Attributes defaults;
    std::vector<PluginField> result = write_fields(defaults);
    for (PluginField& field : result) {
      field.data = nullptr;
      if (field.type == PluginFieldType::kINT64) field.type = PluginFieldType::kINT32;  // as ONNX's parser gives them
      field.length = field.type == PluginFieldType::kCHAR ? 0 : 1;
    }
    return result;
  }());
  static const auto& collection =
      *new nvinfer1::PluginFieldCollection{static_cast<int32_t>(fields.size()), fields.data()};
  return collection;
}

node::Attributes read_fields(const nvinfer1::PluginFieldCollection& fields) {
  node::Attributes attributes;
  for (int32_t i = 0; i < fields.nbFields; ++i) {
    const PluginField& field = fields.fields[i];
    std::visit([&](auto member) { read(field, attributes.*member); }, find(field.name).member);
  }
  return attributes;
}

std::vector<PluginField> write_fields(const node::Attributes& attributes) {
  std::vector<PluginField> fields;
  for (const node::AttributeField& field : node::kAttributeFields) {
    const auto add = [&](const void* data, PluginFieldType type, size_t length) {
      fields.push_back({field.name, data, type, static_cast<int32_t>(length)});
    };
    std::visit(
        Overloaded{[&](int64_t node::Attributes::* member) { add(&(attributes.*member), PluginFieldType::kINT64, 1); },
                   [&](float node::Attributes::* member) { add(&(attributes.*member), PluginFieldType::kFLOAT32, 1); },
                   [&](std::string node::Attributes::* member) {
                     const std::string& value = attributes.*member;
                     add(value.c_str(), PluginFieldType::kCHAR, value.size() + 1);
                   }},
        field.member);
  }
  return fields;
}

std::string text(const node::Attributes& attributes) {
  std::ostringstream out;
  out.precision(std::numeric_limits<float>::max_digits10);
  for (const node::AttributeField& field : node::kAttributeFields)
    std::visit([&](auto member) { out << field.name << '=' << attributes.*member << ';'; }, field.member);
  return out.str();
}

}  // namespace intfa::trt
