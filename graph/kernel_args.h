// What a kernel is handed. Small on purpose: .cu files include this and no IR.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "graph/attrs.h"
#include "graph/signature.h"
#include "graph/types.h"

namespace cleave {

class DeviceContext;
class ThreadTeam;

// A strided tensor in the device's memory; not owned.
struct TensorView {
  void* data = nullptr;  // the element at index 0; null when the tensor is empty
  DType dtype = DType::kF32;
  Shape shape;    // local sizes, outermost first
  Shape strides;  // in elements; 0 along a broadcast dimension

  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
  int64_t numel() const { return cleave::numel(shape); }
  bool contiguous() const { return strides == contiguous_strides(shape); }
};

// One cut of a factor. The dimension before the cut is seen as `blocks` equal blocks; each is
// divided into `parts`, of which this shard holds number `index` of every block.
struct Cut {
  int64_t blocks = 1;
  int64_t parts = 1;
  int64_t index = 0;
};

// The part of one factor that this shard holds. Cuts apply in order, each to what the one before
// left over; no cut: the factor is whole here.
struct Extent {
  int64_t local = 1;
  int64_t global = 1;
  std::vector<Cut> cuts;

  // Where the shard's index `i` lies along the whole factor, 0 <= i < local.
  int64_t position(int64_t i) const;
  // position(0), position(1), ...: for kernels of ops with indexed factors.
  std::vector<int64_t> positions() const;
};

struct KernelArgs {
  const Signature& signature;
  const Attrs& attrs;
  std::span<const TensorView> in;
  std::span<const TensorView> out;  // in-place outputs share data with the input they overwrite
  std::span<const Extent> extents;  // one for each factor of the signature, in its order
  void* workspace = nullptr;        // OpDef::workspace bytes, uninitialised, 64-byte aligned
  uint64_t seed = 0;                // the run's seed; the same on every rank
  ThreadTeam* team = nullptr;  // threads of this rank, for CPU kernels; null: the caller's only
  DeviceContext* device = nullptr;  // of GPU kernels: see kernels/cuda/context.h
  void* stream = nullptr;           // of GPU kernels: the cudaStream_t to launch in
  std::string_view element = {};    // of generated kernels: OpDef::element

  // The extent of the factor with this letter.
  const Extent& extent(char letter) const {
    return extents[static_cast<size_t>(signature.factor(letter))];
  }
};

}  // namespace cleave
