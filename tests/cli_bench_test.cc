// cleave bench: its report, its JSON, and the timeline of a measured step beside the predicted one.
#include <gtest/gtest.h>
#include <sched.h>
#include <unistd.h>

#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <regex>
#include <set>

#include "cli/format.h"
#include "cli/what_fits.h"
#include "executor/step_bench.h"
#include "tests/cli_run.h"

namespace cleave {
namespace {

using testing::cleave_run;
using testing::one_line;
using Json = nlohmann::json;

class Bench : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::temp_directory_path() / ("cleave-bench-" + std::to_string(getpid()));
    std::filesystem::create_directory(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::string path(const std::string& name) const { return (folder_ / name).string(); }

  std::filesystem::path folder_;
};

constexpr const char* kTiny = "bench gpt2:tiny --set layers=1 hidden=32 heads=2 --steps 3 ";

TEST(Median, OfAnEvenNumberIsTheMeanOfTheTwoInTheMiddle) {
  EXPECT_EQ(median({3}), 3);
  EXPECT_EQ(median({5, 1, 2}), 2);
  EXPECT_EQ(median({8, 1, 4, 2}), 3);
  EXPECT_EQ(median({2, 2, 2, 9}), 2);
}

TEST_F(Bench, ReportHasTheStepAndItsKernels) {
  const auto o = cleave_run(std::string(kTiny) + "--devices cpu:2 --mesh dp=2");
  ASSERT_EQ(o.status, 0) << o.err;
  for (const char* part :
       {"model     gpt2:tiny layers=1 hidden=32 heads=2, batch 8 x 64 tokens, fp32, adamw",
        "on        cpu:2, mesh dp 2", "step      ", "the median of 3 (", "predicted ", "tokens/s  ",
        "MFU       not known", "memory    ", "matrix products", "attention", "optimizer",
        "communication", "GFLOP/s", "GB/s", "nothing", "the recorded step", "gap"}) {
    EXPECT_NE(o.out.find(part), std::string::npos) << part << "\n" << o.out;
  }
  EXPECT_TRUE(std::regex_search(o.out, std::regex(R"(\npredicted +[0-9.]+ ms, .+ a device\n)")));
  EXPECT_TRUE(std::regex_search(o.out, std::regex(R"(\nstep +[0-9.]+ ms \([+-][0-9.]+ %\), the)")));
  EXPECT_TRUE(std::regex_search(o.out, std::regex(R"(\nmemory +.+ a device \(exact\)\n)")));
  EXPECT_EQ(o.out.find("of limit"), std::string::npos) << "no limits are known";
  EXPECT_TRUE(
      std::regex_search(o.out, std::regex(R"(gap +device +after +before\n *[0-9.]+ us +[01] )")))
      << o.out;
}

// An expert's products have a kernel for all experts, as attention's have for all of its own.
TEST_F(Bench, ExpertsAreProductsAndNotAttention) {
  const auto o = cleave_run("bench mixtral:tiny --set layers=2 --steps 1 --warm-up 0 --json");
  ASSERT_EQ(o.status, 0) << o.err;
  int64_t attention = 0;
  const Json json = Json::parse(o.out);
  for (const Json& k : json["kernels"]) {
    if (k["class"] == "attention") attention = k["runs"];
  }
  EXPECT_EQ(attention, 2 * 2) << o.out;  // forward and backward of two layers
}

TEST_F(Bench, JsonAddsUp) {
  const auto o = cleave_run(std::string(kTiny) + "--json --accumulate 2");
  ASSERT_EQ(o.status, 0) << o.err;
  const Json json = Json::parse(o.out);
  EXPECT_EQ(json["steps_seconds"].size(), 3u);
  EXPECT_GT(json["step_seconds"], 0);
  EXPECT_NEAR(json["tokens_per_second"].get<double>() * json["step_seconds"].get<double>(),
              2 * 8 * 64, 1e-6);
  double seconds = json["idle_seconds"];
  for (const Json& k : json["kernels"]) {
    seconds += k["seconds"].get<double>();
    EXPECT_GT(k["runs"], 0);
    if (k["class"] == "matrix products") {
      EXPECT_GT(k["flops"], 0);
    }
  }
  const double recorded = json["recorded_seconds"];
  EXPECT_GT(seconds, 0.5 * recorded);
  EXPECT_LT(seconds, 1.01 * recorded + 1e-4);
}

// Of a preset's CPUs no limit is known, as the report says; of a file's it is, as the report has
// it.
TEST_F(Bench, LimitsOfCpusAreKnownFromAFile) {
  const auto kernels = [&](const std::string& devices) {
    const auto o = cleave_run(std::string(kTiny) + "--json --devices " + devices);
    EXPECT_EQ(o.status, 0) << o.err;
    return Json::parse(o.out)["kernels"];
  };
  for (const Json& k : kernels("cpu:2")) EXPECT_TRUE(k.at("least_seconds").is_null()) << k;
  write_file(path("box.toml"), "kind = \"cpu\"\n[[node]]\ndevices = 2\n");
  for (const Json& k : kernels(path("box.toml") + " --mesh dp=2")) {
    EXPECT_EQ(k.at("least_seconds").is_number(), k.at("class") != "communication") << k;
  }
}

// Devices that share a core say so, before they are timed.
TEST_F(Bench, DevicesThatShareCoresAreToldOf) {
  cpu_set_t before, one;
  ASSERT_EQ(sched_getaffinity(0, sizeof(before), &before), 0);
  CPU_ZERO(&one);
  for (int core = 0; core < CPU_SETSIZE && CPU_COUNT(&one) == 0; ++core) {
    if (CPU_ISSET(core, &before)) CPU_SET(core, &one);
  }
  ASSERT_EQ(sched_setaffinity(0, sizeof(one), &one), 0);
  std::string text;
  for (int i = 0; i < 200; ++i) text += "the same line once more\n";
  write_file(path("data.txt"), text);
  const std::string note = "cleave: note: the 2 devices of cpu:2 share 1 core: ";
  const std::string train = "train gpt2:tiny --set layers=1 hidden=32 heads=2 --steps 1 --data " +
                            path("data.txt") + " --devices ";
  for (const std::string& line : {std::string(kTiny) + "--json --devices ", train}) {
    const auto shared = cleave_run(line + "cpu:2"), alone = cleave_run(line + "cpu:1");
    EXPECT_EQ(shared.status, 0) << shared.err;
    EXPECT_TRUE(shared.err.starts_with(note)) << shared.err;
    EXPECT_TRUE(one_line(shared.err)) << shared.err;
    EXPECT_EQ(alone.err, "");
  }
  sched_setaffinity(0, sizeof(before), &before);
}

// Two processes, predicted and measured: the same instructions with the same places in the model.
TEST_F(Bench, ProfileHasBothTimelines) {
  const auto o = cleave_run(std::string(kTiny) + "--profile " + path("p.json") + " --dump " +
                            path("program.txt"));
  ASSERT_EQ(o.status, 0) << o.err;
  const Json json = Json::parse(read_file(path("p.json")));
  EXPECT_GT(json["otherData"]["measured_step_seconds"], 0);
  std::map<int, std::string> names;
  std::map<int, std::multiset<std::string>> ran;
  std::map<int, int64_t> peaks;
  for (const Json& e : json["traceEvents"]) {
    const int process = e["pid"];
    if (e["name"] == "process_name") names[process] = e["args"]["name"];
    if (e["ph"] == "X") {
      ran[process].insert(e["name"].get<std::string>() + " " +
                          e["args"]["where"].get<std::string>());
      EXPECT_GE(e["dur"], 0);
    }
    if (e["ph"] == "C") {
      peaks[process] = std::max(peaks[process], e["args"]["bytes"].get<int64_t>());
    }
  }
  EXPECT_EQ(names, (std::map<int, std::string>{{0, "predicted"}, {1, "measured"}}));
  EXPECT_GT(ran[0].size(), 50u);
  EXPECT_TRUE(std::includes(ran[0].begin(), ran[0].end(), ran[1].begin(), ran[1].end()));
  EXPECT_EQ(peaks[0], peaks[1]);
  EXPECT_NE(read_file(path("program.txt")).find("adamw"), std::string::npos);
}

TEST_F(Bench, TrainingWritesBothToo) {
  std::string text;
  for (int i = 0; i < 500; ++i) text += "the same line once more\n";
  write_file(path("data.txt"), text);
  const auto o = cleave_run("train gpt2:tiny --set layers=1 hidden=32 heads=2 --devices cpu:2 " +
                            std::string("--mesh dp=2 --steps 5 --data ") + path("data.txt") +
                            " --profile " + path("p.json") + " --dump " + path("program.txt"));
  ASSERT_EQ(o.status, 0) << o.err;
  const Json json = Json::parse(read_file(path("p.json")));
  std::set<std::string> names;
  for (const Json& e : json["traceEvents"]) {
    if (e["name"] == "process_name") names.insert(e["args"]["name"].get<std::string>());
  }
  EXPECT_EQ(names, (std::set<std::string>{"predicted, rank 0", "predicted, rank 1",
                                          "measured, rank 0", "measured, rank 1"}));
  EXPECT_NE(read_file(path("program.txt")).find("reduce-scatter"), std::string::npos);
  // A profile that cannot be written in the end is told of; the training goes on.
  const auto no =
      cleave_run("train gpt2:tiny --set layers=1 hidden=32 heads=2 --devices cpu:1 " +
                 std::string("--steps 2 --data ") + path("data.txt") + " --profile /dev/full");
  EXPECT_EQ(no.status, 0) << no.err;
  EXPECT_NE(no.out.find("warning: no profile: cannot write"), std::string::npos) << no.out;
}

// One GPU's program says how it was fused.
TEST_F(Bench, ADumpOfAPlanForAGpu) {
  auto o = cleave_run("plan gpt2:tiny --cluster h100 --precision bf16 -o " + path("plan.json"));
  ASSERT_EQ(o.status, 0) << o.err;
  o = cleave_run("simulate " + path("plan.json") + " --dump " + path("program.txt"));
  ASSERT_EQ(o.status, 0) << o.err;
  const std::string text = read_file(path("program.txt"));
  EXPECT_NE(text.find("adamw"), std::string::npos);
  EXPECT_NE(text.find("cross_entropy_both"), std::string::npos);
  EXPECT_NE(o.out.find("\nfused     copies "), std::string::npos) << o.out;
  EXPECT_NE(o.out.find(", loss 1"), std::string::npos) << o.out;
  EXPECT_NE(o.out.find("written to " + path("program.txt")), std::string::npos) << o.out;
  o = cleave_run("simulate " + path("plan.json") + " --no-fuse loss --dump " + path("parts.txt"));
  ASSERT_EQ(o.status, 0) << o.err;
  EXPECT_EQ(o.out.find(", loss 1"), std::string::npos) << o.out;
  EXPECT_NE(read_file(path("parts.txt")).find("cross_entropy_backward"), std::string::npos);
  o = cleave_run("simulate " + path("plan.json") + " --no-fuse lose");
  EXPECT_EQ(o.status, 1);
  EXPECT_NE(o.err.find("--no-fuse lose: there is no fusion 'lose'; there are "), std::string::npos);
}

TEST_F(Bench, MistakesAreOneLine) {
  for (const auto& [line, says] : std::map<std::string, std::string>{
           {"bench", "MODEL is required"},
           {"bench gpt2:tiny --steps 0", "--steps 0: write at least 1"},
           {"bench gpt2:tiny --precision tf32", "a GPU (--devices h100) does in tf32"},
           {"bench gpt2:tiny --precision bf16", "--precision bf16: CPU devices"},
           {"bench gpt2:tiny --devices h100 --no-fuse x", "there is no fusion 'x'; there are "},
           {"bench gpt2:tiny --devices 2xh100", "on one GPU"}}) {
    const auto o = cleave_run(line);
    EXPECT_EQ(o.status, 1) << line;
    EXPECT_NE(o.err.find(says), std::string::npos) << o.err;
    EXPECT_TRUE(one_line(o.err)) << o.err;
  }
}

// The same step in more micro-batches, as few as fit.
TEST_F(Bench, ABatchThatFits) {
  ModelSpec spec;
  spec.name = "gpt2:tiny";
  spec.batch = 24;
  spec.dtype = DType::kBF16;
  const Cluster cluster = parse_cluster("h100");
  const auto peak = [&](int64_t batch, int64_t micro_batches) {
    ModelSpec s = spec;
    s.batch = batch;
    s.optimizer.micro_batches = micro_batches;
    const TracedModel model = trace_model(s, nullptr);
    const PlanResult found =
        find_plan(model.graph, cluster, planner_options(model.graph, "", "none"));
    return static_cast<double>(found.plan->predicted.peak_bytes);
  };
  for (const auto& [batch, micro_batches] : {std::pair(12, 2), std::pair(6, 4), std::pair(1, 24)}) {
    const double limit = peak(batch, micro_batches);
    const auto fits = batch_that_fits(spec, nullptr, cluster, limit);
    ASSERT_TRUE(fits.has_value());
    EXPECT_EQ(fits->batch, batch);
    EXPECT_EQ(fits->micro_batches, micro_batches);
    EXPECT_LE(static_cast<double>(fits->bytes), limit);
  }
  EXPECT_FALSE(batch_that_fits(spec, nullptr, cluster, peak(1, 24) - 1).has_value());
}

TEST_F(Bench, TooLittleDeviceMemoryIsToldWithABatchThatFits) {
  ModelSpec spec;
  spec.name = "gpt2:tiny";
  spec.batch = 64;
  const TracedModel model = trace_model(spec, nullptr);
  const Cluster cluster = parse_cluster("h100");
  for (const auto& [free, says] :
       {std::pair<int64_t, std::string>(80 << 20, "makes the same step and fits, with "),
        std::pair<int64_t, std::string>(1 << 20, "not even --batch 1 does")}) {
    try {
      throw_out_of_memory(model, nullptr, cluster, {int64_t{1} << 30, free});
      FAIL();
    } catch (const DoesNotFit& e) {
      const std::string what = e.what();
      EXPECT_NE(what.find("needs 1.00 GiB of the GPU's memory, of which"), std::string::npos)
          << what;
      EXPECT_NE(what.find(says), std::string::npos) << what;
      EXPECT_EQ(what.find('\n'), std::string::npos);
    }
  }
}

// A GPU's plan that needs more memory than there is.
TEST_F(Bench, AModelTooLargeForAGpuIsToldWhatFits) {
  const auto o = cleave_run("bench gpt2:124m --devices h100 --precision bf16 --batch 512");
  EXPECT_EQ(o.status, 3);
  EXPECT_NE(o.err.find("--accumulate"), std::string::npos) << o.err;
  EXPECT_TRUE(one_line(o.err)) << o.err;
}

}  // namespace
}  // namespace cleave
