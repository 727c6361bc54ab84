// cleave simulate: its report, its JSON, and the trace that it writes, read back by the rules of
// the format.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "cli/format.h"
#include "tests/cli_run.h"

namespace cleave {
namespace {

using testing::cleave_run;
using testing::one_line;
using Json = nlohmann::json;

// A cluster of its own: the constants of the presets may change.
constexpr const char* kCluster = R"(
[[node]]
count = 2
devices = 4
[device]
name = "Toy"
memory = 8e9
bandwidth = 1e12
vector_flops = 1e13
op_latency = 3e-6
[device.bf16]
peak = 2e14
efficiency = 0.8
[device.f32]
peak = 2e13
efficiency = 0.8
[device.f64]
peak = 1e13
efficiency = 0.8
[[link]]
name = "in a node"
bandwidth = 2e11
latency = 1e-6
start = 1e-5
[[link]]
name = "between nodes"
bandwidth = 2e10
latency = 3e-6
start = 2e-5
)";

class Simulate : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ =
        std::filesystem::temp_directory_path() / ("cleave-simulate-" + std::to_string(getpid()));
    std::filesystem::create_directory(folder_);
    write_file(path("toy.toml"), kCluster);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::string path(const std::string& name) const { return (folder_ / name).string(); }
  std::string plan(const std::string& what, const std::string& cluster) const {
    const auto o =
        cleave_run("plan " + what + " --cluster " + cluster + " -o " + path("plan.json"));
    EXPECT_EQ(o.status, 0) << o.err;
    return path("plan.json");
  }

  std::filesystem::path folder_;
};

TEST_F(Simulate, ReportIsAsItWas) {
  const std::string file =
      plan("gpt2:124m --batch 32 --accumulate 4 --mesh dp=2,tp=4", path("toy.toml"));
  const auto o = cleave_run("simulate " + file);
  ASSERT_EQ(o.status, 0) << o.err;
  const std::string golden =
      std::string(CLEAVE_SOURCE_DIR) + "/tests/golden/simulate-gpt2-124m.txt";
  if (std::getenv("CLEAVE_UPDATE_GOLDEN") != nullptr) write_file(golden, o.out);
  EXPECT_EQ(o.out, read_file(golden)) << "CLEAVE_UPDATE_GOLDEN=1 writes it anew";
  EXPECT_LE(std::count(o.out.begin(), o.out.end(), '\n'), 42);
}

TEST_F(Simulate, CategoriesAddUp) {
  const std::string file = plan("llama:tiny --accumulate 2 --mesh dp=2,tp=4", path("toy.toml"));
  const auto o = cleave_run("simulate " + file + " --json");
  ASSERT_EQ(o.status, 0) << o.err;
  const Json json = Json::parse(o.out);
  ASSERT_TRUE(json["overlap"].get<bool>());
  for (const Json& s : json["stages"]) {
    const double sum = s["compute"].get<double>() + s["exposed_communication"].get<double>() +
                       s["bubble"].get<double>() + s["optimizer"].get<double>();
    EXPECT_NEAR(sum, json["step_seconds"].get<double>(), 1e-6 * sum);
    EXPECT_GT(s["peak_bytes"].get<int64_t>(), 0);
  }
}

// The plan pays for reshapes that the program finds to be views; all else is the same
// (executor_timeline_test).
TEST_F(Simulate, OnCpusNothingOverlaps) {
  const std::string file = plan("gpt2:tiny --mesh dp=2,tp=2", "cpu:4");
  const auto o = cleave_run("simulate " + file + " --json");
  ASSERT_EQ(o.status, 0) << o.err;
  const Json json = Json::parse(o.out), planned = Json::parse(read_file(file));
  EXPECT_FALSE(json["overlap"].get<bool>());
  const double predicted = planned["predicted"]["step_seconds"].get<double>();
  EXPECT_LE(json["step_seconds"].get<double>(), predicted * (1 + 1e-9));
  EXPECT_GE(json["step_seconds"].get<double>(), predicted * 0.9);
  for (const Json& s : json["stages"])
    EXPECT_EQ(s["exposed_communication"].get<double>(), s["communication"].get<double>());
}

// https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU: every event has
// a phase, a name and a process; complete events have a thread, a start and a length, and those of
// one thread may only nest, which ours never need; counters have numbers; metadata name what they
// are of.
void expect_trace(const std::string& text, const std::set<int64_t>& ranks) {
  const Json json = Json::parse(text);
  std::map<std::pair<int64_t, int64_t>, std::vector<std::pair<double, double>>> threads;
  std::map<int64_t, std::string> processes;
  std::set<std::pair<int64_t, int64_t>> named;
  std::map<int64_t, std::vector<double>> counters;
  for (const Json& e : json["traceEvents"]) {
    const auto phase = e["ph"].get<std::string>();
    const auto pid = e["pid"].get<int64_t>();
    ASSERT_TRUE(e["name"].is_string());
    if (phase == "M") {
      if (e["name"] == "process_name") processes[pid] = e["args"]["name"].get<std::string>();
      if (e["name"] == "thread_name") named.emplace(pid, e["tid"].get<int64_t>());
    } else if (phase == "X") {
      const double start = e["ts"].get<double>(), length = e["dur"].get<double>();
      ASSERT_GE(start, 0);
      ASSERT_GE(length, 0);
      threads[{pid, e["tid"].get<int64_t>()}].emplace_back(start, start + length);
      ASSERT_TRUE(e["cat"].is_string());
      ASSERT_TRUE(e["args"]["where"].is_string());
    } else {
      ASSERT_EQ(phase, "C");
      ASSERT_EQ(e["name"], "memory");
      ASSERT_GT(e["args"]["bytes"].get<int64_t>(), 0);
      counters[pid].push_back(e["ts"].get<double>());
    }
  }
  std::set<int64_t> seen;
  for (const auto& [pid, name] : processes) seen.insert(pid);
  EXPECT_EQ(seen, ranks);
  double end = 0;
  for (auto& [thread, events] : threads) {
    EXPECT_TRUE(named.contains(thread)) << thread.first << " " << thread.second;
    std::sort(events.begin(), events.end());
    for (size_t i = 1; i < events.size(); ++i)
      ASSERT_GE(events[i].first, events[i - 1].second - 5e-4) << "of one thread at once";
    end = std::max(end, events.back().second);
  }
  EXPECT_NEAR(end, 1e6 * json["otherData"]["step_seconds"].get<double>(), 2e-3 + 1e-6 * end);
  EXPECT_EQ(counters.size(), ranks.size());
  for (const auto& [pid, times] : counters) EXPECT_TRUE(std::is_sorted(times.begin(), times.end()));
}

TEST_F(Simulate, TraceKeepsToTheFormat) {
  const std::string file = plan("llama:tiny --accumulate 2 --mesh dp=2,tp=4", path("toy.toml"));
  const std::string trace = path("step.json");
  auto o = cleave_run("simulate " + file + " -o " + trace);
  ASSERT_EQ(o.status, 0) << o.err;
  EXPECT_NE(o.out.find("written to"), std::string::npos);
  expect_trace(read_file(trace), {0, 1, 2, 3, 4, 5, 6, 7});
  o = cleave_run("simulate " + file + " --ranks stage -o " + trace);
  ASSERT_EQ(o.status, 0) << o.err;
  expect_trace(read_file(trace), {0});
}

TEST_F(Simulate, MistakesAreOneLine) {
  write_file(path("graph.json"), "{}");
  for (const std::string& line :
       {std::string("simulate"), std::string("simulate nowhere.json"),
        "simulate " + path("graph.json"), "simulate " + path("graph.json") + " --ranks some"}) {
    const auto o = cleave_run(line);
    EXPECT_EQ(o.status, 1) << line;
    EXPECT_TRUE(one_line(o.err)) << o.err;
  }
}

}  // namespace
}  // namespace cleave
