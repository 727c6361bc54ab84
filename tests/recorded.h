// What must hold of steps that are started before the last one is finished, and of the times of
// their instructions, on any processor.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "executor/typing.h"
#include "tests/training_plans.h"

namespace cleave::testing {

inline std::unique_ptr<Runtime> runtime_of(const Graph& graph, const std::string& mesh,
                                           Processor processor = Processor::kCpu) {
  auto runtime = make_runtime(lower(graph, plan_for(graph, mesh, {}), processor == Processor::kGpu),
                              processor, {.seed = 42});
  runtime->initialize();
  return runtime;
}

inline std::vector<double> losses(Runtime& runtime, const ModelConfig& config, bool late) {
  std::vector<double> found;
  for (int step = 0; step < 6; ++step) {
    feed(runtime, config, step);
    runtime.start();
    if (late && step == 0) continue;
    found.push_back(runtime.finish().value("loss"));
  }
  if (late) found.push_back(runtime.finish().value("loss"));
  return found;
}

// Every instruction that is no view ran once, in its order, inside the step.
inline void expect_recorded(const Runtime& runtime, const StepResult& r) {
  const Program& p = runtime.program();
  size_t ran = 0;
  for (const Instr& instr : p.instrs) ran += !is_view(p, instr);
  ASSERT_EQ(static_cast<int64_t>(r.runs.size()), p.ranks());
  for (const std::vector<InstrRun>& runs : r.runs) {
    EXPECT_EQ(runs.size(), ran);
    double before = 0;
    for (const InstrRun& run : runs) {
      EXPECT_GE(run.start, before - 1e-6);
      EXPECT_GE(run.seconds, 0);
      before = run.start + run.seconds;
    }
    EXPECT_LE(before, r.seconds * 1.01 + 1e-4);
    EXPECT_GT(before, 0);
  }
}

inline void expect_late_and_recorded(const std::string& mesh, Processor processor) {
  const ModelConfig config = model_named("gpt2:tiny");
  const Graph graph = training_graph(config, DType::kF32);
  const auto a = runtime_of(graph, mesh, processor), b = runtime_of(graph, mesh, processor);
  EXPECT_EQ(losses(*a, config, false), losses(*b, config, true));
  for (const bool on : {true, true, false}) {  // the second time what was captured runs again
    b->record(on);
    feed(*b, config, 7);
    const StepResult r = b->step();
    if (on) {
      expect_recorded(*b, r);
    } else {
      EXPECT_TRUE(r.runs.empty());
    }
  }
}

}  // namespace cleave::testing
