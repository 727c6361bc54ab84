// What a checkpoint holds, in memory: whole tensors by name, which no mesh has left a trace in, and
// the run's own text.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "graph/types.h"

namespace cleave {

struct SavedTensor {
  std::string name;  // UTF-8, unique in its snapshot
  TensorType type;
  std::vector<std::byte> bytes;  // row-major, the whole tensor
  bool parameter = true;         // false: a state of the optimizer, ...
};

struct Snapshot {
  int64_t step = 0;  // not negative
  std::vector<SavedTensor> tensors;
  std::string run_json;  // anything the run wants back, to the byte: written as run.json
};

}  // namespace cleave
