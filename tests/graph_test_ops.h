// A few ops without kernels, for tests of the graph alone.
#pragma once

#include <string_view>

#include "graph/graph.h"

namespace cleave::test_ops {

inline Source source(std::string name, SourceKind kind = SourceKind::kData) {
  Source result;
  result.kind = kind;
  result.name = std::move(name);
  return result;
}

inline Geometry contiguous(const Shape& shape) { return {0, shape, contiguous_strides(shape)}; }

// The slice of input 0 along its whole factor X, by attributes start and step, of length Y.
inline std::optional<std::vector<Geometry>> slice_view(const OpCall& call, const Geometry& in) {
  Geometry out = in;
  for (size_t d = 0; d < in.shape.size(); ++d) {
    const DimFactors& dim = call.signature.inputs()[0][d];
    if (dim.size() != 1 || call.signature.factors()[static_cast<size_t>(dim[0])].letter != 'X') {
      continue;
    }
    out.offset += call.attrs.integer("start") * in.strides[d];
    out.strides[d] *= call.attrs.integer("step");
    out.shape[d] = call.extent('Y');
  }
  return std::vector<Geometry>{out};
}

inline std::optional<std::vector<Geometry>> transpose_view(const OpCall& call, const Geometry& in) {
  Geometry out{in.offset, {}, {}};
  for (const DimFactors& dim : call.signature.outputs()[0]) {
    for (size_t d = 0; d < in.shape.size(); ++d) {
      if (call.signature.inputs()[0][d] != dim) continue;
      out.shape.push_back(in.shape[d]);
      out.strides.push_back(in.strides[d]);
    }
  }
  return std::vector<Geometry>{out};
}

// Of contiguous input only.
inline std::optional<std::vector<Geometry>> reshape_view(const OpCall& call, const Geometry& in) {
  if (in.strides != contiguous_strides(in.shape)) return std::nullopt;
  Geometry out = contiguous(shape_of(call.signature.outputs()[0], call.extents));
  out.offset = in.offset;
  return std::vector<Geometry>{out};
}

inline std::optional<std::vector<Geometry>> expand_view(const OpCall& call, const Geometry& in) {
  Geometry out{in.offset, shape_of(call.signature.outputs()[0], call.extents), {}};
  size_t d = 0;
  for (const DimFactors& dim : call.signature.outputs()[0]) {
    const bool from_input = d < in.shape.size() && call.signature.inputs()[0][d] == dim;
    out.strides.push_back(from_input ? in.strides[d++] : 0);
  }
  return std::vector<Geometry>{out};
}

inline constexpr OpDef add{.name = "add", .factors = "...,...->...", .linear = true};
inline constexpr OpDef mul{.name = "mul", .factors = "...,...->..."};
inline constexpr OpDef gelu{.name = "gelu", .factors = "...->..."};
inline constexpr OpDef copy{.name = "copy", .factors = "...->...", .linear = true};
inline constexpr OpDef matmul{.name = "matmul", .factors = "...k,nk->...n"};
inline constexpr OpDef sum{.name = "sum", .factors = "ab->a", .linear = true};
inline constexpr OpDef fill{.name = "fill", .factors = "->a"};
inline constexpr OpDef both{.name = "both", .factors = "...,...->...,..."};
inline constexpr OpDef sgd{.name = "sgd", .factors = "ab,ab->ab"};
inline constexpr OpDef dropout{.name = "dropout", .factors = "ab->ab|a:indexed,b:indexed"};
inline constexpr OpDef slice{.name = "slice", .factors = "aXc->aYc", .view = slice_view};
inline constexpr OpDef transpose{.name = "transpose", .factors = "ab->ba", .view = transpose_view};
inline constexpr OpDef reshape{.name = "reshape", .factors = "(ab)->ab", .view = reshape_view};
inline constexpr OpDef expand{.name = "expand", .factors = "a->ab", .view = expand_view};
inline constexpr OpDef write_slice{
    .name = "write_slice", .factors = "aXc,aYc->aXc", .written = slice_view, .linear = true};

inline const OpDef* find(std::string_view name) {
  for (const OpDef* op : {&add, &mul, &gelu, &copy, &matmul, &sum, &fill, &both, &sgd, &dropout,
                          &slice, &transpose, &reshape, &expand, &write_slice}) {
    if (op->name == name) return op;
  }
  return nullptr;
}

}  // namespace cleave::test_ops
