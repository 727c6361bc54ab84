// What a device with too little memory is told: the same step in smaller pieces, which fits.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "cli/model_spec.h"
#include "cli/planning.h"
#include "executor/runtime.h"

namespace cleave {

// A step's sequences in more micro-batches.
struct FittingBatch {
  int64_t batch = 0, micro_batches = 1;
  int64_t bytes = 0;  // a device, as planned
};

// The most sequences at once, of those that divide the batch of the spec and are fewer, with which
// a plan for the cluster takes at most `limit` bytes a device; nothing when even one takes more.
std::optional<FittingBatch> batch_that_fits(const ModelSpec& spec, const UserModel* user,
                                            const Cluster& cluster, double limit);

// DoesNotFit, one line, for a model whose program does not fit into the device's free memory.
[[noreturn]] void throw_out_of_memory(const TracedModel& model, const UserModel* user,
                                      const Cluster& cluster, const OutOfDeviceMemory& error);

// What throw_no_plan() throws, or, for one device whose memory is too small, DoesNotFit with a
// batch that fits.
[[noreturn]] void throw_no_plan_here(const TracedModel& model, const UserModel* user,
                                     const Cluster& cluster, const PlannerOptions& options,
                                     const PlanResult& found);

}  // namespace cleave
