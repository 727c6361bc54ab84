// Operands seen as rows along one factor, for kernels that treat a row at a time (norms, softmax,
// losses, embeddings).
#pragma once

#include <optional>
#include <vector>

#include "kernels/loops.h"

namespace cleave {

// The factors of an operand but the rows' own: what a kernel loops over, outermost first.
inline std::vector<int8_t> factors_without(const OperandDims& dims, int factor) {
  std::vector<int8_t> factors = factors_of(dims);
  std::erase(factors, static_cast<int8_t>(factor));
  return factors;
}

// Input i with elements along `factor` next to each other: its own memory when it lies so, a copy
// otherwise.
template <class T>
class RowInput {
 public:
  RowInput(const KernelArgs& args, size_t i, int factor)
      : view_(args.in[i]), strides_(in_strides(args, i)) {
    if (strides_[static_cast<size_t>(factor)] != 1) {
      copy_.emplace(view_);
      view_.data = const_cast<T*>(copy_->data());
      view_.strides = contiguous_strides(view_.shape);
      strides_ = factor_strides(args, args.signature.inputs()[i], view_);
    }
  }
  const T* data() const { return view_.as<const T>(); }
  const Shape& strides() const { return strides_; }  // one a factor

 private:
  TensorView view_;
  Shape strides_;
  std::optional<ContiguousInput<T>> copy_;
};

// The same for output i, which is complete when this object is destroyed.
template <class T>
class RowOutput {
 public:
  RowOutput(const KernelArgs& args, size_t i, int factor)
      : view_(args.out[i]), strides_(out_strides(args, i)) {
    if (strides_[static_cast<size_t>(factor)] != 1) {
      copy_.emplace(view_);
      view_.data = copy_->data();
      view_.strides = contiguous_strides(view_.shape);
      strides_ = factor_strides(args, args.signature.outputs()[i], view_);
    }
  }
  T* data() const { return view_.as<T>(); }
  const Shape& strides() const { return strides_; }

 private:
  TensorView view_;
  Shape strides_;
  std::optional<ContiguousOutput<T>> copy_;
};

}  // namespace cleave
