#include "graph/types.h"

#include <array>

#include "graph/error.h"

namespace cleave {
namespace {

struct DTypeInfo {
  DType dtype;
  std::string_view name;
  int64_t bytes;
  bool floating;
};

constexpr std::array<DTypeInfo, 8> kDTypes = {{
    {DType::kF64, "f64", 8, true},
    {DType::kF32, "f32", 4, true},
    {DType::kBF16, "bf16", 2, true},
    {DType::kF16, "f16", 2, true},
    {DType::kI32, "i32", 4, false},
    {DType::kF8E4M3, "f8e4m3", 1, false},
    {DType::kF8E5M2, "f8e5m2", 1, false},
    {DType::kI16, "i16", 2, false},
}};

const DTypeInfo& info(DType dtype) { return kDTypes[static_cast<size_t>(dtype)]; }

}  // namespace

int64_t size_of(DType dtype) { return info(dtype).bytes; }
bool is_float(DType dtype) { return info(dtype).floating; }
bool is_half(DType dtype) { return is_float(dtype) && size_of(dtype) == 2; }
bool is_f8(DType dtype) { return dtype == DType::kF8E4M3 || dtype == DType::kF8E5M2; }
std::string_view name_of(DType dtype) { return info(dtype).name; }

DType dtype_named(std::string_view name) {
  for (const DTypeInfo& d : kDTypes) {
    if (d.name == name) return d.dtype;
  }
  fail("unknown element type '{}' (one of f64, f32, bf16, f16, i32, f8e4m3, f8e5m2, i16)", name);
}

int64_t product(int64_t a, int64_t b) {
  if (a > kMaxElements / b) fail("{} x {} elements are more than a tensor can have", a, b);
  return a * b;
}

void check_shape(const Shape& shape) {
  int64_t elements = 1;
  for (int64_t size : shape) {
    if (size < 1) fail("sizes are 1 or more, got {}", to_string(shape));
    if (elements > kMaxElements / size) {
      fail("{} has more than 2^50 elements, which no tensor can have", to_string(shape));
    }
    elements *= size;
  }
}

int64_t numel(const Shape& shape) {
  int64_t n = 1;
  for (int64_t d : shape) n *= d;
  return n;
}

std::string to_string(const Shape& shape) { return fmt::format("[{}]", fmt::join(shape, ", ")); }

Shape contiguous_strides(const Shape& shape) {
  Shape strides(shape.size());
  int64_t stride = 1;
  for (size_t i = shape.size(); i-- > 0; stride *= shape[i]) strides[i] = stride;
  return strides;
}

std::string to_string(const TensorType& type) {
  return fmt::format("{}{}", name_of(type.dtype), to_string(type.shape));
}

}  // namespace cleave
