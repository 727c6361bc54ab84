// Operands seen as rows along one factor, for kernels that treat a row at a time (norms, softmax,
// losses, embeddings).
#pragma once

#include <utility>
#include <vector>

#include "kernels/loops.h"

namespace cleave {

// The one whole factor of the signature; -1 when there is none.
inline int whole_factor(const Signature& s) {
  for (size_t f = 0; f < s.factors().size(); ++f) {
    if (s.factors()[f].whole) return static_cast<int>(f);
  }
  return -1;
}

// The factors of an operand but the rows' own: what a kernel loops over, outermost first.
inline std::vector<int8_t> factors_without(const OperandDims& dims, int factor) {
  std::vector<int8_t> factors = factors_of(dims);
  std::erase(factors, static_cast<int8_t>(factor));
  return factors;
}

// An operand of which the elements along one factor, a row, are to be next to each other: its own
// memory when they are, else room for a copy. With `apart`, rows that follow along that factor must
// not overlap either, as those of an expanded tensor do: a matrix for BLAS.
template <class T>
class Rows {
 public:
  const Shape& strides() const { return strides_; }  // one a factor

 protected:
  Rows(const KernelArgs& args, const OperandDims& dims, const TensorView& view, int factor,
       int apart = -1)
      : own_(view.as<T>()), data_(own_), strides_(factor_strides(args, dims, view)) {
    const auto extent = [&](int f) { return args.extents[static_cast<size_t>(f)].local; };
    const bool dense = strides_[static_cast<size_t>(factor)] == 1 || extent(factor) == 1;
    const bool overlap =
        apart >= 0 && extent(apart) > 1 && strides_[static_cast<size_t>(apart)] < extent(factor);
    if (dense && !overlap) return;
    std::vector<int8_t> order = factors_without(dims, factor);
    order.push_back(static_cast<int8_t>(factor));
    const Shape own_strides = strides_;
    int64_t size = 1;
    for (size_t d = order.size(); d-- > 0; size *= extent(order[d])) {
      strides_[static_cast<size_t>(order[d])] = size;
    }
    copy_.resize(static_cast<size_t>(size));
    data_ = copy_.data();
    own_and_copy_ = nest_over<2>(args, order, {own_strides, strides_});
  }

  T* own_;
  T* data_;
  Shape strides_;
  std::vector<T> copy_;
  LoopNest<2> own_and_copy_;
};

// Input i with rows along `factor`.
template <class T>
class RowInput : public Rows<T> {
 public:
  RowInput(const KernelArgs& args, size_t i, int factor, int apart = -1)
      : Rows<T>(args, args.signature.inputs()[i], args.in[i], factor, apart) {
    if (this->data_ != this->own_) copy_rows<T>(this->own_and_copy_, this->own_, this->data_);
  }
  RowInput(const RowInput&) = delete;
  const T* data() const { return this->data_; }
};

// Output i with rows along `factor`; complete when this object is destroyed.
template <class T>
class RowOutput : public Rows<T> {
 public:
  RowOutput(const KernelArgs& args, size_t i, int factor)
      : Rows<T>(args, args.signature.outputs()[i], args.out[i], factor) {}
  RowOutput(const RowOutput&) = delete;
  ~RowOutput() {
    if (this->data_ == this->own_) return;
    LoopNest<2> back = this->own_and_copy_;
    for (auto& step : back.steps) std::swap(step[0], step[1]);
    copy_rows<T>(back, this->data_, this->own_);
  }
  T* data() const { return this->data_; }
};

}  // namespace cleave
