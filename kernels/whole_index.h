// Where the elements of a shard lie in the whole tensor, for kernels that draw random numbers by
// that place.
#pragma once

#include <cstdint>
#include <numeric>
#include <optional>
#include <vector>

#include "kernels/loops.h"

namespace cleave {

// From row-major indices of an operand's shard to those of the whole. The arguments must outlive
// it.
class WholeIndex {
 public:
  WholeIndex(const KernelArgs& args, const OperandDims& dims)
      : args_(args), factors_(factors_of(dims)), weights_(factors_.size(), 1) {
    for (size_t d = factors_.size(); d-- > 1;) weights_[d - 1] = weights_[d] * extent(d).global;
    bool cut = false;
    for (size_t d = factors_.size(); d-- > 0 && !cut;) {
      cut = !extent(d).cuts.empty();
      run_ *= cut ? run_of(extent(d)) : extent(d).local;
    }
  }

  // From any multiple of this many elements to the next, they are neighbours in the whole tensor.
  int64_t run() const { return run_; }

  int64_t at(int64_t local) const {
    int64_t whole = 0;
    for (size_t d = factors_.size(); d-- > 0;) {
      const int64_t n = extent(d).local;
      whole += extent(d).position(local % n) * weights_[d];
      local /= n;
    }
    return whole;
  }

  // The strides of the shard's row-major indices, one a factor: an operand of a nest.
  Shape local_strides() const {
    Shape strides(args_.extents.size(), 0);
    int64_t stride = 1;
    for (size_t d = factors_.size(); d-- > 0; stride *= extent(d).local) {
      strides[static_cast<size_t>(factors_[d])] = stride;
    }
    return strides;
  }

  // Element i of the shard lies at first + i / run * stride + i % run.
  struct Spaced {
    int64_t first = 0, run = 1, stride = 0;
    bool operator==(const Spaced&) const = default;
  };
  // Nothing when it does not lie so.
  std::optional<Spaced> spaced() const {
    Spaced result;
    LoopNest<1> nest;
    for (size_t d = 0; d < factors_.size(); ++d) {
      const Extent& e = extent(d);
      const int64_t weight = weights_[d], r = run_of(e);
      result.first += e.position(0) * weight;
      if (r != e.local) {
        if (e.cuts.size() > 1) return std::nullopt;
        nest.add(e.local / r, {e.global / e.cuts[0].blocks * weight});
      }
      nest.add(r, {weight});
    }
    if (nest.sizes.size() > 2 || nest.inner_steps()[0] != 1) return std::nullopt;
    result.run = nest.inner();
    if (nest.sizes.size() == 2) result.stride = nest.steps[0][0];
    return result;
  }

 private:
  const Extent& extent(size_t d) const { return args_.extents[static_cast<size_t>(factors_[d])]; }

  // The same along one factor. Each cut leaves chunks of what it sees, whose sizes later cuts do
  // not know.
  static int64_t run_of(const Extent& extent) {
    int64_t run = extent.local, size = extent.global;
    for (const Cut& cut : extent.cuts) {
      size /= cut.parts;
      run = std::gcd(run, size / cut.blocks);
    }
    return run;
  }

  const KernelArgs& args_;
  std::vector<int8_t> factors_;
  Shape weights_;  // whole strides
  int64_t run_ = 1;
};

}  // namespace cleave
