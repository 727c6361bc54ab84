#include "executor/cuda/product_trials.h"

#include <algorithm>
#include <cmath>
#include <exception>
#include <set>

#include "executor/measured.h"
#include "executor/trials.h"
#include "executor/typing.h"
#include "graph/error.h"

namespace cleave {
namespace {

// What is compared as a whole at last: algorithms that are fast may take so much power that
// everything else gets slower.
constexpr int kComparisons = 4;
constexpr double kComparedSeconds = 0.15, kComparedPasses = 30;  // the less of both
constexpr int kPasses = 2;                                       // of a round

using Choice = std::vector<size_t>;  // by product

}  // namespace

bool worth_a_trial(const Program& program, double least) {
  std::vector<bool> state(program.buffers.size(), false);  // of parameters and states, by buffer
  for (const ProgramSource& s : program.sources) {
    const bool kept = s.kind != SourceKind::kData && s.kind != SourceKind::kAccumulator;
    if (kept) state[static_cast<size_t>(program.tensor(s.tensor).buffer)] = true;
  }
  bool trains = false;
  double flops = 0;
  for (const Instr& instr : program.instrs) {
    if (is_view(program, instr)) continue;
    if (instr.part == Part::kUpdate) {
      trains = true;
      continue;
    }
    for (const TensorId t : instr.out) {
      if (state[static_cast<size_t>(program.tensor(t).buffer)]) return false;
    }
    if (instr.part != Part::kBegin) flops += work_of(program, instr).flops;
  }
  return trains && flops >= least;
}

void try_products(TriedPass& pass, const std::vector<TriedLaunch>& launches, DeviceContext& device,
                  const std::function<void(const std::string&)>& tell) {
  ProductAlgorithms& products = device.products();
  std::set<Product> open;
  for (const TriedLaunch& l : launches) {
    if (l.product && !products.tried(*l.product, device)) open.insert(*l.product);
  }
  if (open.empty()) return;
  const std::vector<Product> tasks(open.begin(), open.end());
  const Choice before(tasks.size(), 0);  // the first that is offered
  Choice counts;
  for (const Product& p : tasks) counts.push_back(products.count(p));
  const auto use = [&](const Choice& choice) {
    for (size_t t = 0; t < tasks.size(); ++t) products.choose(tasks[t], choice[t]);
  };
  // All that tells of the clock beside them is one more task.
  counts.push_back(1);
  Trials trials(counts);
  try {
    const double once = pass.in_a_row(0);
    const double compared = std::min(kComparedSeconds, kComparedPasses * once);
    if (tell) {
      const double passes = static_cast<double>(trials.rounds()) * (kPasses + 2) + 6 * kComparisons;
      tell(
          fmt::format("{} matrix product{} tried by all algorithms in this program, once on this "
                      "machine: {:.0f} "
                      "s of passes",
                      open.size(), open.size() == 1 ? " is" : "s are",
                      std::ceil(passes * once + 2 * kComparisons * compared)));
    }
    for (size_t round = 0; round < trials.rounds(); ++round) {
      Choice choice;
      for (size_t t = 0; t < tasks.size(); ++t) choice.push_back(trials.algorithm(t, round));
      use(choice);
      const std::vector<double> seconds = pass.launches(kPasses);
      std::vector<double> of_task(counts.size(), 0);
      for (size_t l = 0; l < launches.size(); ++l) {
        const TriedLaunch& launch = launches[l];
        if (launch.product && open.contains(*launch.product)) {
          const auto at = std::lower_bound(tasks.begin(), tasks.end(), *launch.product);
          of_task[static_cast<size_t>(at - tasks.begin())] += seconds[l];
        } else if (launch.product || launch.clocked) {
          of_task.back() += seconds[l];
        }
      }
      for (size_t t = 0; t < of_task.size(); ++t) {
        if (of_task[t] > 0) trials.add(t, round, of_task[t]);
      }
    }
    Choice found = trials.fastest();
    found.pop_back();
    double sum_found = 0, sum_before = 0;
    for (int turn = 0; turn < kComparisons; ++turn) {
      for (const bool first : {true, false}) {  // in turns: found, before, before, found, ...
        const bool of_found = first == (turn % 2 == 0);
        use(of_found ? found : before);
        (of_found ? sum_found : sum_before) += pass.in_a_row(compared);
      }
    }
    use(sum_found < sum_before ? found : before);
  } catch (const std::exception& e) {
    use(before);
    if (tell) tell(fmt::format("the trial failed, nothing is changed by it: {}", e.what()));
    return;
  }
  for (const Product& p : tasks) products.keep(p, device);
}

}  // namespace cleave
