#include "cli/profile.h"

#include <vector>

#include "cli/format.h"
#include "executor/chrome_trace.h"
#include "executor/measured.h"

namespace cleave {
namespace {

constexpr int64_t kMostRanks = 8;  // of more, one a stage

}  // namespace

void write_profile(const std::string& path, const Program& program, const Plan& plan,
                   const StepResult& step) {
  const StepTimeline predicted =
      simulate_step(program, plan.cluster, timeline_options(plan.cluster), &plan);
  const MeasuredStep measured = {step.seconds, measured_timelines(program, step)};
  std::vector<int64_t> ranks;
  const int64_t every = program.ranks() <= kMostRanks ? 1 : program.mesh.size();
  for (int64_t r = 0; r < program.ranks(); r += every) ranks.push_back(r);
  write_file(path, chrome_trace(program, plan.cluster, predicted, ranks, &measured));
}

}  // namespace cleave
