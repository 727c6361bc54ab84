#include "cli/what_fits.h"

#include <vector>

#include "graph/error.h"
#include "graph/number_text.h"

namespace cleave {
namespace {

// What the spec plans to, with so many sequences at once, if that fits.
std::optional<FittingBatch> fitting(ModelSpec spec, const UserModel* user, const Cluster& cluster,
                                    double limit) {
  const TracedModel model = trace_model(std::move(spec), user);
  PlannerOptions options = planner_options(model.graph, "", "");
  options.memory_limit = limit;
  const PlanResult found = find_plan(model.graph, cluster, options);
  if (!found.plan) return std::nullopt;
  return FittingBatch{model.config.batch, model.graph.micro_batches,
                      static_cast<int64_t>(found.plan->predicted.peak_bytes)};
}

// "; --batch 8 --accumulate 4 fits, with 70.1 GiB", or what else may help.
std::string advice(const TracedModel& model, const UserModel* user, const Cluster& cluster,
                   double limit) {
  const std::optional<FittingBatch> fits = batch_that_fits(model.spec, user, cluster, limit);
  if (!fits) {
    return fmt::format(
        "; not even {} does, nothing recomputed: cleave plan --pin offload=off -o FILE may find a "
        "plan that recomputes, which is trained by its file; or use a smaller model",
        model.config.batch == 1 ? "one sequence at once" : "--batch 1");
  }
  return fmt::format("; --batch {} --accumulate {} makes the same step and fits, with {}",
                     fits->batch, fits->micro_batches,
                     bytes_text(static_cast<double>(fits->bytes)));
}

}  // namespace

std::optional<FittingBatch> batch_that_fits(const ModelSpec& spec, const UserModel* user,
                                            const Cluster& cluster, double limit) {
  ModelSpec tried = spec;
  const int64_t whole = config_of(tried, user).batch;
  std::vector<int64_t> parts;  // that the batch is cut into
  for (int64_t n = 2; n <= whole; ++n) {
    if (whole % n == 0) parts.push_back(n);
  }
  // More parts never take more memory.
  std::optional<FittingBatch> best;
  for (size_t from = 0, to = parts.size(); from < to;) {
    const size_t middle = from + (to - from) / 2;
    tried.batch = whole / parts[middle];
    tried.optimizer.micro_batches = spec.optimizer.micro_batches * parts[middle];
    if (const auto fits = fitting(tried, user, cluster, limit)) {
      best = fits;
      to = middle;
    } else {
      from = middle + 1;
    }
  }
  return best;
}

void throw_out_of_memory(const TracedModel& model, const UserModel* user, const Cluster& cluster,
                         const OutOfDeviceMemory& error) {
  const auto free = static_cast<double>(error.free);
  throw DoesNotFit(fmt::format("{} needs {} of the GPU's memory, of which {} are free{}",
                               describe(model), bytes_text(static_cast<double>(error.needed)),
                               bytes_text(free), advice(model, user, cluster, free)));
}

void throw_no_plan_here(const TracedModel& model, const UserModel* user, const Cluster& cluster,
                        const PlannerOptions& options, const PlanResult& found) {
  const double limit = memory_limit(options, cluster);
  const auto peak = static_cast<double>(found.smallest_peak);
  if (cluster.size() > 1 || peak <= limit) {
    throw_no_plan(model.spec.name, model.graph, cluster, options, found);
  }
  throw DoesNotFit(fmt::format("{} needs {} of memory, and {} has {}{}", describe(model),
                               bytes_text(peak), cluster.spec, bytes_text(limit),
                               advice(model, user, cluster, limit)));
}

}  // namespace cleave
