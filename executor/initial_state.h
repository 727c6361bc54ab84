// The numbers that parameters and states start from. They depend on the run's seed, the source's
// name and an element's index in the whole tensor, so that every mesh starts from the same bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "executor/program.h"

namespace cleave {

// Element `index`, row-major in the whole tensor, of the source with this name.
double initial_value(const Init& init, uint64_t seed, std::string_view name, int64_t index);

// The shard of a source that a rank holds, contiguous at `data`, and that of its rest, if the
// source has one.
struct InitialShard {
  const ProgramSource& source;
  const ProgramTensor& tensor;
  std::byte* data = nullptr;
  std::byte* rest = nullptr;
};

// Fills the shard of the rank at these coordinates.
void fill_initial(const InitialShard& shard, const Mesh& mesh,
                  const std::vector<int64_t>& coordinates, uint64_t seed);
// Fills several, in pieces, on all of the machine's cores.
void fill_initial(std::span<const InitialShard> shards, const Mesh& mesh,
                  const std::vector<int64_t>& coordinates, uint64_t seed);
// Whether all that is filled in are zeros.
bool is_zero(const Init& init);

}  // namespace cleave
