// The cases of the fused ops.
#include "kernels/ops.h"
#include "tests/support/op_cases.h"

namespace cleave::testing {

std::vector<OpCase> fused_op_cases() { return {}; }

}  // namespace cleave::testing
