// Loops over strided tensors, and dispatch on their element type, for the CPU kernels. A kernel
// asks for the stride of every factor in every operand and walks the factors: broadcasting,
// transposed and compound dimensions then need no code of their own.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "graph/error.h"
#include "graph/kernel_args.h"

namespace cleave {

// Calls fn with a zero of the element's type: with_float(t.dtype, [&]<class T>(T) { ... }).
template <class Fn>
void with_float(DType dtype, Fn&& fn) {
  if (dtype == DType::kF32) return fn(float{});
  CLEAVE_ASSERT(dtype == DType::kF64, "no CPU kernel for {}", name_of(dtype));
  fn(double{});
}

// The same with int32_t allowed.
template <class Fn>
void with_element(DType dtype, Fn&& fn) {
  if (dtype == DType::kI32) return fn(int32_t{});
  with_float(dtype, fn);
}

// Nested loops, outermost first, and how far one step of each moves in each of N operands. Loops
// that can be one loop are merged as they are added.
template <size_t N>
struct LoopNest {
  using Offsets = std::array<int64_t, N>;
  std::vector<int64_t> sizes;
  std::vector<Offsets> steps;

  // Adds a loop inside the others.
  void add(int64_t size, const Offsets& step) {
    if (size == 1) return;
    if (!sizes.empty()) {
      bool merges = true;
      for (size_t i = 0; i < N; ++i) merges &= steps.back()[i] == step[i] * size;
      if (merges) {
        sizes.back() *= size;
        steps.back() = step;
        return;
      }
    }
    sizes.push_back(size);
    steps.push_back(step);
  }

  int64_t inner() const { return sizes.empty() ? 1 : sizes.back(); }
  Offsets inner_steps() const {
    if (!steps.empty()) return steps.back();
    Offsets ones;
    ones.fill(1);
    return ones;
  }
  int64_t count() const {  // of elements
    int64_t n = 1;
    for (const int64_t size : sizes) n *= size;
    return n;
  }
  // Where the element with this row-major index lies.
  Offsets offsets_of(int64_t element) const {
    Offsets at = offsets_of_row(element / inner());
    const Offsets step = inner_steps();
    for (size_t i = 0; i < N; ++i) at[i] += element % inner() * step[i];
    return at;
  }
  // Where the row-th pass of the innermost loop begins.
  Offsets offsets_of_row(int64_t row) const {
    Offsets at{};
    for (size_t d = sizes.size(); d-- > 1;) {
      const int64_t index = row % sizes[d - 1];
      row /= sizes[d - 1];
      for (size_t i = 0; i < N; ++i) at[i] += index * steps[d - 1][i];
    }
    return at;
  }
};

// Calls fn(offsets, n, steps) for the passes [first, last) of the innermost loop: its n elements
// lie at offsets[i] + j * steps[i] in operand i.
template <size_t N, class Fn>
void for_each_row(const LoopNest<N>& nest, int64_t first, int64_t last, Fn&& fn) {
  if (first >= last) return;
  const int64_t n = nest.inner();
  const std::array<int64_t, N> step = nest.inner_steps();
  const size_t outer = nest.sizes.empty() ? 0 : nest.sizes.size() - 1;
  std::array<int64_t, N> at{};
  std::vector<int64_t> index(outer, 0);
  for (int64_t d = static_cast<int64_t>(outer) - 1, row = first; d >= 0; --d) {
    const auto dim = static_cast<size_t>(d);
    index[dim] = row % nest.sizes[dim];
    row /= nest.sizes[dim];
    for (size_t i = 0; i < N; ++i) at[i] += index[dim] * nest.steps[dim][i];
  }
  for (int64_t row = first;;) {
    fn(std::as_const(at), n, step);
    if (++row == last) return;
    for (size_t d = outer; d-- > 0;) {
      for (size_t i = 0; i < N; ++i) at[i] += nest.steps[d][i];
      if (++index[d] < nest.sizes[d]) break;
      for (size_t i = 0; i < N; ++i) at[i] -= nest.steps[d][i] * nest.sizes[d];
      index[d] = 0;
    }
  }
}
template <size_t N, class Fn>
void for_each_row(const LoopNest<N>& nest, Fn&& fn) {
  const int64_t n = nest.inner();
  for_each_row(nest, 0, n == 0 ? 0 : nest.count() / n, fn);
}

// Calls fn(offsets) for the elements [first, last).
template <size_t N, class Fn>
void for_each_element(const LoopNest<N>& nest, int64_t first, int64_t last, Fn&& fn) {
  if (first >= last) return;
  const int64_t n = nest.inner();
  const std::array<int64_t, N> step = nest.inner_steps();
  for (int64_t row = first / n; row * n < last; ++row) {
    std::array<int64_t, N> at = nest.offsets_of_row(row);
    const int64_t begin = std::max(first - row * n, int64_t{0}), end = std::min(last - row * n, n);
    for (size_t i = 0; i < N; ++i) at[i] += begin * step[i];
    for (int64_t j = begin; j < end; ++j) {
      fn(std::as_const(at));
      for (size_t i = 0; i < N; ++i) at[i] += step[i];
    }
  }
}
template <size_t N, class Fn>
void for_each_element(const LoopNest<N>& nest, Fn&& fn) {
  for_each_element(nest, 0, nest.count(), fn);
}

// The stride of every factor of the signature in one operand; 0 for those it does not carry.
inline Shape factor_strides(const KernelArgs& args, const OperandDims& dims, const TensorView& t) {
  Shape strides(args.extents.size(), 0);
  for (size_t d = 0; d < dims.size(); ++d) {
    int64_t stride = t.strides[d];
    for (size_t i = dims[d].size(); i-- > 0;) {
      const size_t f = static_cast<size_t>(dims[d][i]);
      strides[f] = stride;
      stride *= args.extents[f].local;
    }
  }
  return strides;
}
inline Shape in_strides(const KernelArgs& args, size_t i) {
  return factor_strides(args, args.signature.inputs()[i], args.in[i]);
}
inline Shape out_strides(const KernelArgs& args, size_t i) {
  return factor_strides(args, args.signature.outputs()[i], args.out[i]);
}

// The factors of an operand, outermost first.
inline std::vector<int8_t> factors_of(const OperandDims& dims) {
  std::vector<int8_t> factors;
  for (const DimFactors& dim : dims) factors.insert(factors.end(), dim.begin(), dim.end());
  return factors;
}

// Loops over these factors; `strides` as given by in_strides and out_strides.
template <size_t N>
LoopNest<N> nest_over(const KernelArgs& args, std::span<const int8_t> factors,
                      const std::array<Shape, N>& strides) {
  LoopNest<N> nest;
  for (const int8_t factor : factors) {
    const size_t f = static_cast<size_t>(factor);
    std::array<int64_t, N> step;
    for (size_t i = 0; i < N; ++i) step[i] = strides[i][f];
    nest.add(args.extents[f].local, step);
  }
  return nest;
}

template <class T>
void copy_row(const T* from, int64_t from_step, T* to, int64_t to_step, int64_t n) {
  if (from_step == 1 && to_step == 1) {
    std::copy(from, from + n, to);
  } else {
    for (int64_t j = 0; j < n; ++j) to[j * to_step] = from[j * from_step];
  }
}

// Copies element by element over a nest of (from, to).
template <class T>
void copy_rows(const LoopNest<2>& nest, const T* from, T* to) {
  for_each_row(nest, [&](const auto& at, int64_t n, const auto& step) {
    copy_row(from + at[0], step[0], to + at[1], step[1], n);
  });
}

// Copies between tensors of one shape and element type, with any strides.
template <class T>
void copy_elements(const T* from, const Shape& from_strides, T* to, const Shape& to_strides,
                   const Shape& shape) {
  LoopNest<2> nest;
  for (size_t d = 0; d < shape.size(); ++d) nest.add(shape[d], {from_strides[d], to_strides[d]});
  copy_rows(nest, from, to);
}
inline void copy_elements(const TensorView& from, const TensorView& to) {
  with_element(from.dtype, [&]<class T>(T) {
    copy_elements(from.as<const T>(), from.strides, to.as<T>(), to.strides, from.shape);
  });
}

// An input's elements in row-major order: its own memory when it lies so, a copy otherwise.
template <class T>
class ContiguousInput {
 public:
  explicit ContiguousInput(const TensorView& t) : data_(t.as<const T>()) {
    if (t.contiguous()) return;
    copy_.resize(static_cast<size_t>(t.numel()));
    copy_elements(data_, t.strides, copy_.data(), contiguous_strides(t.shape), t.shape);
    data_ = copy_.data();
  }
  ContiguousInput(const ContiguousInput&) = delete;
  const T* data() const { return data_; }

 private:
  const T* data_;
  std::vector<T> copy_;
};

// Row-major memory for an output's elements, which reach the output at the latest when this object
// is destroyed. Starts uninitialised; it may be the output's own memory.
template <class T>
class ContiguousOutput {
 public:
  explicit ContiguousOutput(const TensorView& t) : view_(t), data_(t.as<T>()) {
    if (t.contiguous()) return;
    copy_.resize(static_cast<size_t>(t.numel()));
    data_ = copy_.data();
  }
  ContiguousOutput(const ContiguousOutput&) = delete;
  ~ContiguousOutput() {
    if (data_ == view_.as<T>()) return;
    copy_elements(copy_.data(), contiguous_strides(view_.shape), view_.as<T>(), view_.strides,
                  view_.shape);
  }
  T* data() const { return data_; }

 private:
  TensorView view_;
  T* data_;
  std::vector<T> copy_;
};

}  // namespace cleave
