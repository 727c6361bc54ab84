// States in every position that a graph allows: read as they were after they changed, sharing a
// next value, exchanging theirs, put out, changed outside the update. On every mesh the program
// does what its plan says and what one device does.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <optional>
#include <regex>
#include <span>

#include "executor/cpu_runtime.h"
#include "executor/lower.h"
#include "executor/trainer.h"
#include "graph/philox.h"
#include "graph/text.h"
#include "graph/verify.h"
#include "kernels/ops.h"
#include "planner/planner.h"
#include "tests/support/interpreter.h"
#include "tests/support/sanitized.h"

namespace cleave {
namespace {

struct Case {
  const char* name;
  const char* text;
};

const Case kCases[] = {
    {"accumulated", R"(graph accumulated

data %0 x: f32[64, 4096] (batch, width)
state %1 total: f32[] = constant(0) -> %4

forward
%2: f32[64, 4096] = square(%0) "bw->bw"
%3: f32[] = sum(%2) "bw->"

update
%4: f32[] = add(%1, %3) ",->"
)"},
    {"product", R"(graph product

data %0 x: f32[64, 64] (row, col)
state %1 m: f32[64, 64] = normal(0.02) -> %2

forward
%2: f32[64, 64] = matmul(%1, %0) "ab,cb->ac"
%3: f32[] = sum(%0) "ab->"

output s %3
)"},
    {"maximum", R"(graph maximum

data %0 x: f32[64, 4096] (batch, width)
state %1 amax: f32[4096] = constant(0) -> %3

forward
%2: f32[] = sum(%0) "bw->"
%3: f32[4096] = max(%0) "bw->w|b:max"

output loss %2
)"},
    {"old_value_is_output", R"(graph old

data %0 x: f32[64, 4096] (batch, width)
param %1 w: f32[4096] = normal(0.02) -> %4

forward
%2: f32[4096] = sum(%0) "bw->w"

update
%3: f32[4096] = scale(%2) "w->w" {value: 0.5}
%4: f32[4096] = sub(%1, %3) "w,w->w"

output before %1
)"},
    {"old_value_is_output_and_in_place", R"(graph old

data %0 x: f32[64, 4096] (batch, width)
param %1 w: f32[4096] = normal(0.02) -> %4

forward
%2: f32[4096] = sum(%0) "bw->w"

update
%3: f32[4096] = scale(%2) "w->w" {value: 0.5}
%4: f32[4096] = sub(%1, %3) "w,w->w" writes %1

output before %1
output after %4
)"},
    {"only_the_update_reads", R"(graph only

param %0 w: f32[64] = normal(0.02) -> %1

update
%1: f32[64] = scale(%0) "w->w" {value: 0.5}
)"},
    {"only_the_update_and_an_output_read", R"(graph outstate

data %0 x: f32[64, 4096] (batch, width)
state %1 m: f32[4096] = constant(1) -> %4

forward
%2: f32[4096] = sum(%0) "bw->w"

update
%3: f32[4096] = scale(%2) "w->w" {value: 0.25}
%4: f32[4096] = mul(%1, %3) "w,w->w"

output before %1
)"},
    {"previous", R"(graph previous

data %0 x: f32[8, 64] (batch, width)
param %1 w: f32[64] = normal(0.02) -> %5
state %2 prev: f32[64] = normal(0.02) -> %1

forward
%3: f32[64] = sum(%0) "bw->w"

update
%4: f32[64] = scale(%3) "w->w" {value: 0.5}
%5: f32[64] = sub(%1, %4) "w,w->w"
)"},
    {"previous_of_previous", R"(graph previous

data %0 x: f32[8, 64] (batch, width)
param %1 w: f32[64] = normal(0.02) -> %5
state %2 prev: f32[64] = normal(0.02) -> %1
state %3 older: f32[64] = normal(0.02) -> %2

forward
%4: f32[64] = sum(%0) "bw->w"

update
%5: f32[64] = sub(%1, %4) "w,w->w"

output o %3
)"},
    {"running", R"(graph running

data %0 x: f32[64, 4097] (batch, width)
state %1 mean: f32[4097] = constant(0) -> %3
param %2 w: f32[4097] = normal(0.02) -> %6

forward
%3: f32[4097] = sum(%0) "bw->w"
%4: f32[64, 4097] = mul(%0, %2) "bw,w->bw"

backward
%5: f32[4097] = sum(%4) "bw->w"

update
%6: f32[4097] = sub(%2, %5) "w,w->w"
)"},
    {"shared_next_value", R"(graph shared

data %0 x: f32[64, 4096] (batch, width)
state %1 a: f32[4096] = constant(1) -> %4
state %2 c: f32[4096] = constant(2) -> %4

forward
%3: f32[4096] = sum(%0) "bw->w"

update
%4: f32[4096] = scale(%3) "w->w" {value: 0.5}
%5: f32[4095] = slice(%1) "X->Y" {Y: 4095, start: 0, stop: 4095, step: 1}
%6: f32[] = sum(%5) "y->"
%7: f32[4095] = slice(%2) "X->Y" {Y: 4095, start: 0, stop: 4095, step: 1}
%8: f32[] = sum(%7) "y->"

output o %6
output q %8
)"},
    {"exchanged", R"(graph exchanged

data %0 x: f32[64] (batch)
state %1 a: f32[64] = normal(0.02) -> %2
state %2 b: f32[64] = normal(0.03) -> %1

forward
%3: f32[64] = add(%2, %0) "w,w->w"
%4: f32[64] = add(%1, %3) "w,w->w"

output o %4
)"},
    {"turned", R"(graph turned

data %0 x: f32[64] (batch)
state %1 a: f32[64] = normal(0.02) -> %2
state %2 b: f32[64] = normal(0.03) -> %3
state %3 c: f32[64] = normal(0.04) -> %1
state %4 d: f32[64] = normal(0.05) -> %2

forward
%5: f32[64] = add(%3, %0) "w,w->w"

output o %5
output before %1
)"},
    {"later_source", R"(graph later

data %0 x: f32[63] (batch)
state %1 prev: f32[63] = normal(0.02) -> %2
param %2 w: f32[63] = normal(0.02) -> %3

forward
%3: f32[63] = add(%2, %0) "w,w->w"
%4: f32[63] = add(%1, %3) "w,w->w"

output o %4
)"},
    {"two_updates_of_one_gradient", R"(graph twograd

data %0 x: f32[64, 4096] (batch, width)
param %1 w: f32[4095] = normal(0.02) -> %5
state %2 m: f32[4096] = constant(0) -> %4

forward
%3: f32[4096] = sum(%0) "bw->w"

update
%4: f32[4096] = add(%2, %3) "w,w->w"
%5: f32[4095] = slice(%3) "X->Y" {Y: 4095, start: 0, stop: 4095, step: 1}
)"},
    {"next_value_read_by_the_update", R"(graph again

data %0 x: f32[64, 4096] (batch, width)
param %1 w: f32[4096] = normal(0.02) -> %4
state %2 short: f32[4095] = constant(0) -> %5

forward
%3: f32[4096] = sum(%0) "bw->w"

update
%4: f32[4096] = sub(%1, %3) "w,w->w"
%5: f32[4095] = slice(%4) "X->Y" {Y: 4095, start: 0, stop: 4095, step: 1}
)"},
    {"view_of_a_parameter", R"(graph viewparam

data %0 x: f32[4, 1024] (batch, width)
param %1 w: f32[1024, 1024] = normal(0.02)

forward
%2: f32[1024, 1024] = transpose(%1) "ab->ba"
%3: f32[4, 1024] = matmul(%0, %2) "bk,nk->bn"

backward
%4: f32[4, 1024] = matmul(%3, %2) "bn,nk->bk"
%5: f32[] = sum(%4) "bk->"

output s %5
)"},
    {"ends_as_its_own_view", R"(graph turning

data %0 x: f32[64, 64] (row, col)
state %1 m: f32[64, 64] = normal(0.02) -> %2

forward
%2: f32[64, 64] = transpose(%1) "ab->ba"
%3: f32[64, 64] = add(%1, %0) "ab,ab->ab"

output s %3
)"},
};

Graph graph_of(const std::string& text) {
  Graph g = graph_from_text(text, ops::find);
  verify(g);
  return g;
}

std::vector<float> data_of(const Graph& g, const Source& s) {
  std::vector<float> whole(static_cast<size_t>(numel(g.type(s.value).shape)));
  for (size_t i = 0; i < whole.size(); ++i) {
    whole[i] = static_cast<float>(uniform_at(5, stream_of(s.name), i) - 0.5);
  }
  return whole;
}

// --- What is expected ----------------------------------------------------------------------------

constexpr int kSteps = 3;
constexpr uint64_t kSeed = 42;

using Numbers = std::map<std::string, std::vector<double>>;  // outputs and final values, by name

// After each step, run node by node with nothing overwritten.
std::vector<Numbers> expected(const Case& c) {
  const Graph g = graph_of(std::regex_replace(c.text, std::regex(" writes %[0-9]+"), ""));
  Interpreter interpreter(g, kSeed);
  std::vector<Numbers> result;
  for (int step = 0; step < kSteps; ++step) {
    for (const Source& s : g.sources()) {
      if (s.kind == SourceKind::kData) {
        const std::vector<float> whole = data_of(g, s);
        interpreter.set(s.name, {whole.begin(), whole.end()});
      } else if (step > 0) {
        interpreter.set(s.name, result.back().at(s.name));
      }
    }
    interpreter.run();
    result.push_back(interpreter.results());
  }
  return result;
}

void expect_near(const std::string& name, const std::vector<double>& is,
                 const std::vector<double>& should) {
  ASSERT_EQ(is.size(), should.size());
  for (size_t i = 0; i < is.size(); ++i) {
    ASSERT_NEAR(is[i], should[i], 1e-3 * (1 + std::abs(should[i]))) << name << " at " << i;
  }
}

std::vector<double> numbers_of(const CpuRuntime& runtime, const std::string& source) {
  const std::vector<std::byte> bytes = runtime.read_source(source);
  std::vector<float> numbers(bytes.size() / sizeof(float));
  std::memcpy(numbers.data(), bytes.data(), bytes.size());
  return {numbers.begin(), numbers.end()};
}

// --- Plans ---------------------------------------------------------------------------------------

// seed 0: the best plan. Otherwise the search is steered to some other one.
std::optional<Plan> plan_of(const Graph& g, const char* cluster, const char* mesh, uint64_t seed) {
  PlannerOptions o;
  o.mesh = parse_mesh(mesh);
  o.memory_limit = std::numeric_limits<double>::infinity();
  o.live_bytes = stage_live_bytes;
  o.peak_bytes = stage_peak_bytes;
  if (seed > 0) {
    o.preferences.choice = [=](NodeId leader, const std::vector<AxisOption>& axes) {
      std::string what = fmt::format("{}", leader);
      for (const AxisOption& a : axes) {
        what += fmt::format(" {} {}", static_cast<int>(a.kind), static_cast<int>(a.letter));
      }
      return uniform_at(seed, stream_of(what), 0);
    };
    o.preferences.held = [=](Value v, const Placements& placements) {
      std::string what = fmt::format("held {}", v);
      for (const Placement& p : placements) {
        what += fmt::format(" {} {}", static_cast<int>(p.kind), static_cast<int>(p.atom));
      }
      return uniform_at(seed, stream_of(what), 0);
    };
  }
  return find_plan(g, parse_cluster(cluster), o).plan;
}

class States : public ::testing::TestWithParam<Case> {};

TEST_P(States, DoAsPlannedAndAsOnOneDevice) {
  const Graph g = graph_of(GetParam().text);
  const std::vector<Numbers> should = expected(GetParam());
  const auto expect_right = [&](const char* cluster, const char* mesh, uint64_t seed) {
    SCOPED_TRACE(fmt::format("{} on {}, seed {}", cluster, mesh, seed));
    const std::optional<Plan> plan = plan_of(g, cluster, mesh, seed);
    ASSERT_TRUE(plan.has_value());
    EXPECT_LE(plan->predicted.held_bytes, live_bytes(g, *plan));
    EXPECT_LE(plan->predicted.held_bytes, plan->predicted.peak_bytes);
    Program program = lower(g, *plan);
    expect_planned(count_collectives(program), *plan);
    CpuRuntime runtime(std::move(program), {.seed = kSeed, .compare_ranks = true});
    runtime.initialize();
    for (int step = 0; step < kSteps; ++step) {
      for (const Source& s : g.sources()) {
        if (s.kind != SourceKind::kData) continue;
        const std::vector<float> whole = data_of(g, s);
        runtime.set_data(s.name, std::as_bytes(std::span(whole)));
      }
      const StepResult r = runtime.step();
      expect_planned(r.collectives, *plan);
      const Numbers& now = should[static_cast<size_t>(step)];
      for (const StepOutput& o : r.outputs) expect_near(o.name, o.values, now.at(o.name));
      for (const Source& s : g.sources()) {
        if (s.kind == SourceKind::kData) continue;
        expect_near(s.name, numbers_of(runtime, s.name), now.at(s.name));
      }
      if (HasFatalFailure()) return;
    }
  };
  expect_right("cpu:1", "1", 0);
  for (uint64_t seed = 0; seed < drawn(8u); ++seed) {
    expect_right("cpu:4", "4", seed);
    expect_right("cpu:4", "2x2", seed);
    if (HasFatalFailure()) return;
  }
}

INSTANTIATE_TEST_SUITE_P(Graphs, States, ::testing::ValuesIn(kCases),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace cleave
