#include "executor/step_limits.h"

#include <limits>
#include <span>

namespace cleave {
namespace {

void set_scalar(Runtime& runtime, std::string_view name, double value) {
  if (runtime.source_type(name).dtype == DType::kF64) {
    runtime.set_data(name, std::as_bytes(std::span(&value, 1)));
  } else {
    const auto narrow = static_cast<float>(value);
    runtime.set_data(name, std::as_bytes(std::span(&narrow, 1)));
  }
}

}  // namespace

StepLimits no_limits() {
  constexpr double kNone = std::numeric_limits<double>::infinity();
  return {kNone, kNone};
}

void set_limits(Runtime& runtime, const Graph& graph, const StepLimits& limits) {
  if (graph.source_named("loss_limit") == nullptr) return;
  set_scalar(runtime, "loss_limit", limits.loss);
  set_scalar(runtime, "norm_limit", limits.norm);
}

}  // namespace cleave
