// The numbers that parameters and states start from. They depend on the run's seed, the source's
// name and an element's index in the whole tensor, so that every mesh starts from the same bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "executor/program.h"

namespace cleave {

// Element `index`, row-major in the whole tensor, of the source with this name.
double initial_value(const Init& init, uint64_t seed, std::string_view name, int64_t index);

// Fills the shard, contiguous at `data`, that the rank at these coordinates holds.
void fill_initial(const ProgramSource& source, const ProgramTensor& tensor, const Mesh& mesh,
                  const std::vector<int64_t>& coordinates, uint64_t seed, std::byte* data);

}  // namespace cleave
