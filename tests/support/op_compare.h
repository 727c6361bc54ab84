// Comparison of numbers, shared by the checks.
#pragma once

#include <string>
#include <vector>

#include "tests/support/op_checks.h"

namespace cleave::testing {

// The first difference in words; empty when |got - want| <= tolerance * (1 + |want|) everywhere.
std::string difference(const HostTensor& got, const HostTensor& want, double tolerance);

void compare(const std::vector<HostTensor>& got, const std::vector<HostTensor>& want,
             const std::string& what, Mistakes& mistakes, double tolerance = 1e-9);

}  // namespace cleave::testing
