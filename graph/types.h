// Element types, shapes and source locations: the vocabulary that every folder shares.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace cleave {

using Shape = std::vector<int64_t>;  // sizes, outermost first; empty for a scalar

using Value = int32_t;   // index of a value in its graph
using NodeId = int32_t;  // index of a node in its graph
inline constexpr Value kNoValue = -1;
inline constexpr NodeId kNoNode = -1;

// kF8E4M3 and kF8E5M2 are how products store floats that were scaled (graph/f8.h), kI16 is what a
// parameter keeps beside its bf16 (graph/bf16_rest.h).
enum class DType : uint8_t { kF64, kF32, kBF16, kF16, kI32, kF8E4M3, kF8E5M2, kI16 };

// Bytes of one element.
int64_t size_of(DType dtype);
bool is_float(DType dtype);  // that can be computed with: not those of 8 bits
bool is_half(DType dtype);   // a float of 16 bits: planned with, not run on the CPU
bool is_f8(DType dtype);
std::string_view name_of(DType dtype);     // "f32"
DType dtype_named(std::string_view name);  // throws Error when there is none

// A tensor with more elements is a mistake; offsets, strides and bytes then fit in 64 bits.
inline constexpr int64_t kMaxElements = int64_t{1} << 50;
// The product of two positive sizes; throws Error when it is above kMaxElements.
int64_t product(int64_t a, int64_t b);
// Throws Error unless every size is positive and there are at most kMaxElements.
void check_shape(const Shape& shape);

// Product of the sizes; 1 for a scalar.
int64_t numel(const Shape& shape);
// "[8, 128]"; "[]" for a scalar.
std::string to_string(const Shape& shape);
// Row-major strides, in elements.
Shape contiguous_strides(const Shape& shape);

// What a value is, without its numbers.
struct TensorType {
  DType dtype = DType::kF32;
  Shape shape;
  bool operator==(const TensorType&) const = default;
};
std::string to_string(const TensorType& type);  // "f32[8, 128]"

// A place in the user's model. `file` indexes the graph's table of file names; -1 when unknown.
struct SourceLoc {
  int32_t file = -1;
  int32_t line = 0;
  bool operator==(const SourceLoc&) const = default;
};

}  // namespace cleave
