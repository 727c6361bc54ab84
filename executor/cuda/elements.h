// The numbers of a tensor that lies in the host's memory as it does on the device.
#pragma once

#include <cstddef>
#include <vector>

#include "executor/program.h"

namespace cleave {

// Row-major; `bytes`: where its first element is.
std::vector<double> elements(const ProgramTensor& t, const std::byte* bytes);

}  // namespace cleave
