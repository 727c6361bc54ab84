#include "executor/cuda/elements.h"

#include "graph/f8.h"
#include "graph/half.h"

namespace cleave {
namespace {

double element(const std::byte* data, DType dtype) {
  switch (dtype) {
    case DType::kF64: return *reinterpret_cast<const double*>(data);
    case DType::kF32: return static_cast<double>(*reinterpret_cast<const float*>(data));
    case DType::kI32: return *reinterpret_cast<const int32_t*>(data);
    case DType::kBF16: return bf16_number(*reinterpret_cast<const uint16_t*>(data));
    case DType::kF16: return f16_number(*reinterpret_cast<const uint16_t*>(data));
    case DType::kI16: return *reinterpret_cast<const int16_t*>(data);
    case DType::kF8E4M3:
    case DType::kF8E5M2:
      return static_cast<double>(f8_number(*reinterpret_cast<const uint8_t*>(data), dtype));
  }
  return 0;
}

}  // namespace

std::vector<double> elements(const ProgramTensor& t, const std::byte* bytes) {
  const Geometry& g = t.geometry;
  std::vector<double> values;
  for (int64_t i = 0; i < numel(g.shape); ++i) {
    int64_t rest = i, at = 0;
    for (size_t d = g.shape.size(); d-- > 0; rest /= g.shape[d]) {
      at += rest % g.shape[d] * g.strides[d];
    }
    values.push_back(element(bytes + at * size_of(t.dtype), t.dtype));
  }
  return values;
}

}  // namespace cleave
