// What this machine offers to cleave, found by trying it: the compiler's work, BLAS, cores, memory,
// GPUs, programs and folders.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace cleave {

struct Finding {
  enum class Status : uint8_t {
    kOk,
    kMissing,  // optional: `cost` says what goes without it
    kWarning,  // works, worse than it could
    kBroken,   // required, and does not work
  };
  std::string name;
  Status status = Status::kOk;
  std::string detail;  // what was found
  std::string cost;    // of what was not found, or is wrong; empty when all is well
  std::string fix;     // a command, as it is typed; empty when there is none
};
std::string_view name_of(Finding::Status status);  // "ok"

struct MachineReport {
  std::vector<Finding> findings;   // in the order in which they are told
  double matrix_product_rate = 0;  // flops a second of one core in fp32; 0: the products are wrong
};

// Examines everything. Takes about half a second.
MachineReport examine_machine();

// The first GPU that the driver finds, by its name; empty: none, or a build without kernels for it.
std::string first_gpu();

}  // namespace cleave
