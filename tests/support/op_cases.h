// The cases that every op is tested on: op_checks.h says what is checked of them.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "graph/op.h"

namespace cleave::testing {

// A tensor's numbers in row-major order, whatever its element type.
struct HostTensor {
  TensorType type;
  std::vector<double> numbers;
};

// Numbers of an input are drawn uniformly from [low, high); of an i32 input, integers of it.
struct Range {
  double low = -1;
  double high = 1;
};

// One application of an op. Every factor must have size 1 or a multiple of 4, so that it can be
// split 2 and 4 ways, and better a size of its own, so that mistaken letters show.
struct OpCase {
  const OpDef* op = nullptr;
  std::string factors = {};  // empty: the op's own
  Attrs attrs = {};
  std::vector<TensorType> in = {};  // f64 and i32; the same case is run in f32 too
  std::vector<Range> ranges = {};   // by input; [-1, 1) where the list ends
  // Pairs (output, input) that may share memory.
  std::vector<std::pair<size_t, size_t>> in_place = {};
  size_t grad_outputs = 99;     // only the first so many outputs may have a gradient (not an lse)
  bool gradient = true;         // whether central differences make sense
  double f32_tolerance = 2e-5;  // of f32 against f64: |a - b| <= tolerance * (1 + |b|)
  // Whether check_on_gpu() knows how to compare; if not, the op has a test of its own on the GPU.
  bool gpu = true;
  // Changes the drawn numbers, when ranges cannot say what the op needs.
  void (*prepare)(std::vector<HostTensor>& in) = nullptr;
};

// Shorthands for the lists of cases.
inline TensorType f64(Shape shape) { return {DType::kF64, std::move(shape)}; }
inline TensorType i32(Shape shape) { return {DType::kI32, std::move(shape)}; }

std::vector<OpCase> basic_op_cases();   // op_cases_basic.cc
std::vector<OpCase> fused_op_cases();   // op_cases_fused.cc
std::vector<OpCase> expert_op_cases();  // op_cases_experts.cc
std::vector<OpCase> chain_op_cases();   // op_cases_chains.cc

}  // namespace cleave::testing
