#include "graph/kernel_args.h"

namespace cleave {

int64_t Extent::position(int64_t i) const {
  int64_t size = local;  // of the dimension after the cuts not yet undone
  for (size_t c = cuts.size(); c-- > 0;) {
    const Cut& cut = cuts[c];
    const int64_t chunk = size / cut.blocks;
    i = (i / chunk) * chunk * cut.parts + cut.index * chunk + i % chunk;
    size *= cut.parts;
  }
  return i;
}

std::vector<int64_t> Extent::positions() const {
  std::vector<int64_t> result(static_cast<size_t>(local));
  for (int64_t i = 0; i < local; ++i) result[static_cast<size_t>(i)] = position(i);
  return result;
}

}  // namespace cleave
