// The training loop: what it logs and writes, the validation loss, and when it stops.
#include "executor/trainer.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <regex>
#include <sstream>

#include "tests/training_plans.h"

namespace cleave {
namespace {

using namespace testing;  // NOLINT
using nlohmann::json;

class Training : public ::testing::Test {
 protected:
  Training() {
    folder_ = std::filesystem::temp_directory_path() /
              ("cleave_train_" + std::to_string(::getpid()) + "_" +
               ::testing::UnitTest::GetInstance()->current_test_info()->name());
    std::filesystem::create_directories(folder_);
    std::ofstream file(path("data"));
    for (int i = 0; i < 3000; ++i) file << static_cast<char>(i * 7 % 60 + 1);
  }
  ~Training() override { std::filesystem::remove_all(folder_); }

  std::string path(const std::string& name) const { return (folder_ / name).string(); }
  TokenData data() const { return {{path("data")}, 16}; }

  // A training graph and its evaluation, both planned for this mesh.
  struct Job {
    ModelConfig config;
    Graph graph, loss_only;
    Plan plan, loss_plan;
    TrainOptions options;
    TelemetryOptions told;
  };
  static Job job(const char* name, const std::string& mesh, int64_t steps) {
    Job j;
    j.config = config_for({"", name, {}}, 2);
    j.graph = training_graph(j.config, DType::kF64);
    j.loss_only = trace(j.config, {.dtype = DType::kF64, .training = false, .optimizer = {}});
    j.plan = plan_for(j.graph, mesh, {});
    j.loss_plan = plan_for(j.loss_only, mesh, {});
    j.options.steps = steps;
    j.options.seed = 5;
    j.options.vocab = j.config.vocab;
    if (objective_of(j.config) == Objective::kMaskedTokens) {
      j.options.targets = Targets::kMaskedTokens;
    }
    j.options.compare_ranks = true;
    return j;
  }
  static void evaluate(Job& j) { j.options.evaluation = {&j.loss_only, &j.loss_plan}; }

  TrainResult train(const Job& j) {
    log_.clear();
    TelemetryOptions told = j.told;
    told.progress = Progress::kOff;
    told.lines = [this](const std::string& line) { log_.push_back(line); };
    Telemetry telemetry(told);
    return cleave::train(j.graph, j.plan, data(), j.options, telemetry);
  }
  std::string error_of(const Job& j) {
    try {
      train(j);
    } catch (const Error& e) {
      return e.what();
    }
    return "no error";
  }

  std::vector<json> metrics(const std::string& out) const {
    std::vector<json> lines;
    std::ifstream file(path(out) + "/metrics.jsonl");
    for (std::string line; std::getline(file, line);) lines.push_back(json::parse(line));
    return lines;
  }

  std::filesystem::path folder_;
  std::vector<std::string> log_;
};

std::vector<double> losses(const TrainResult& r) {
  std::vector<double> result;
  for (const StepRecord& s : r.steps) result.push_back(s.loss);
  return result;
}

TEST_F(Training, LearnsAndIsTheSameOnAnyMesh) {
  const std::vector<double> one = losses(train(job("gpt2:124m", "1", 20)));
  ASSERT_EQ(one.size(), 20u);
  EXPECT_LT(one.back(), one.front() - 0.2);
  for (const char* mesh : {"2", "dp=2,tp=2", "tp=4"}) {
    const std::vector<double> many = losses(train(job("gpt2:124m", mesh, 20)));
    for (size_t i = 0; i < one.size(); ++i) EXPECT_NEAR(many[i], one[i], 1e-10 * one[i]) << mesh;
  }
}

// How lines look is executor_telemetry_test's.
TEST_F(Training, TellsWhatIsDue) {
  Job j = job("llama:8b", "2", 12);
  evaluate(j);
  j.told.log_every = 5;
  train(j);
  std::vector<std::string> steps;
  for (const std::string& line : log_) {
    if (line.starts_with("step")) steps.push_back(line.substr(0, line.find('|', 13)));
  }
  ASSERT_EQ(steps.size(), 4u);
  EXPECT_TRUE(steps[0].starts_with("step  5/12 | loss")) << steps[0];
  EXPECT_TRUE(steps[2].starts_with("step 12/12 | loss")) << steps[2];
  EXPECT_TRUE(steps[3].starts_with("step 12/12 | val loss")) << steps[3];
}

TEST_F(Training, MetricsHoldEveryNumberExactly) {
  Job j = job("gpt2:124m", "dp=2,tp=2", 6);
  evaluate(j);
  j.options.eval_every = 4;
  j.told.out_dir = path("run/here");
  const TrainResult r = train(j);
  const std::vector<json> lines = metrics("run/here");
  ASSERT_EQ(lines.size(), 6u + 2u + 1u);
  size_t step = 0, evaluation = 0;
  for (const json& line : lines) {
    if (line.contains("val_loss")) {
      EXPECT_EQ(line["step"], r.evaluations[evaluation].step);
      EXPECT_EQ(line["val_loss"], r.evaluations[evaluation++].loss);
    } else if (line.contains("step")) {
      const StepRecord& s = r.steps[step++];
      EXPECT_EQ(line["step"], s.step);
      EXPECT_EQ(line["loss"], s.loss);
      EXPECT_EQ(line["grad_norm"], s.grad_norm);
      EXPECT_EQ(line["lr"], s.lr);
      EXPECT_EQ(line["step_seconds"], s.seconds);
      EXPECT_EQ(line["tokens_per_second"], s.tokens_per_second);
    }
  }
  EXPECT_EQ(lines[4]["step"], 4);  // after step 4's own line
  EXPECT_TRUE(lines[4].contains("val_loss"));
  const json& summary = lines.back()["summary"];
  EXPECT_EQ(summary["steps"], 6);
  EXPECT_GT(summary["measured"]["collectives"].size(), 1u);
  EXPECT_EQ(summary["measured"]["collectives"].size(), summary["predicted"]["collectives"].size());
  for (size_t i = 0; i < summary["measured"]["collectives"].size(); ++i) {
    const json &m = summary["measured"]["collectives"][i],
               &p = summary["predicted"]["collectives"][i];
    for (const char* key : {"kind", "axis", "count"}) EXPECT_EQ(m[key], p[key]);
    EXPECT_NEAR(m["bytes"].get<double>(), p["bytes"].get<double>(), 1e-6);
  }
  EXPECT_EQ(summary["measured"]["peak_bytes"], r.arena_bytes);
  EXPECT_EQ(summary["measured"]["step_seconds"], r.median_seconds);
  EXPECT_EQ(summary["predicted"]["step_seconds"], j.plan.predicted.step_seconds);
}

// The weights after k steps, seen by a training program that is given the validation batch next.
TEST_F(Training, ValidationTakesTheWeightsAsTheyAre) {
  for (const char* name : {"gpt2:124m", "bert:base"}) {
    Job j = job(name, "2x2", 5);
    evaluate(j);
    j.options.eval_batches = 2;
    const TrainResult r = train(j);
    ASSERT_EQ(r.evaluations.size(), 1u);

    const TokenData text = data();
    const BatchOptions batch{j.config.batch, j.config.vocab, j.options.targets, j.options.seed};
    double sum = 0, count = 0;
    ASSERT_EQ(text.validation_batches(batch.batch), 3);
    for (int64_t b = 0; b < 2; ++b) {
      CpuRuntime runtime(lower(j.graph, plan_for(j.graph, "1", {})), {.seed = j.options.seed});
      runtime.initialize();
      const auto loss_of = [&](const Batch& numbers) {
        runtime.set_data("tokens", std::as_bytes(std::span<const int32_t>(numbers.tokens)));
        runtime.set_data("targets", std::as_bytes(std::span<const int32_t>(numbers.targets)));
        return runtime.step().value("loss");
      };
      for (int64_t step = 0; step < 5; ++step)
        loss_of(text.training_batch(step * batch.batch, batch));
      const Batch last = text.validation_batch(b, batch);
      double targets = 0;
      for (int32_t t : last.targets) targets += t != kNoTarget;
      sum += loss_of(last) * targets;
      count += targets;
    }
    EXPECT_NEAR(r.evaluations[0].loss, sum / count, 1e-10) << name;
  }
}

TEST_F(Training, ValidationDisturbsNothing) {
  Job j = job("gpt2:124m", "2", 6);
  const std::vector<double> alone = losses(train(j));
  evaluate(j);
  j.options.eval_every = 1;
  const TrainResult r = train(j);
  EXPECT_EQ(losses(r), alone);
  ASSERT_EQ(r.evaluations.size(), 6u);
  EXPECT_LT(r.evaluations.back().loss, r.evaluations.front().loss);
}

// Results that are read while the next step runs are the same, and told in the same order.
TEST_F(Training, LateResultsAreTheSame) {
  for (const int64_t every : {0, 2}) {
    std::vector<std::vector<double>> found;
    std::vector<std::vector<json>> told;
    for (const bool late : {false, true}) {
      Job j = job("gpt2:124m", "2", 6);
      evaluate(j);
      j.options.eval_every = every;
      j.options.late = late;
      const std::string folder = (late ? "late" : "soon") + std::to_string(every);
      j.told.out_dir = path(folder);
      const TrainResult r = train(j);
      found.push_back(losses(r));
      ASSERT_EQ(r.steps.size(), 6u);
      for (size_t i = 0; i < 6; ++i) EXPECT_EQ(r.steps[i].step, static_cast<int64_t>(i) + 1);
      std::vector<json> lines = metrics(folder);
      ASSERT_TRUE(lines.back().contains("summary"));
      lines.pop_back();
      for (json& line : lines) {
        for (const char* time : {"step_seconds", "tokens_per_second", "mfu"}) line.erase(time);
      }
      told.push_back(std::move(lines));
    }
    EXPECT_EQ(found[0], found[1]);
    EXPECT_EQ(told[0], told[1]);
  }
}

// A run that is stopped has read the results of every step that it started.
TEST_F(Training, ALateRunStopsWithAllResults) {
  Job j = job("gpt2:124m", "1", 10);
  j.options.late = true;
  int asked = 0;
  j.options.stop = [&] { return ++asked > 4; };
  const TrainResult r = train(j);
  EXPECT_TRUE(r.stopped);
  EXPECT_EQ(r.steps.size(), 4u);
}

TEST_F(Training, AStepIsProfiled) {
  for (const int64_t steps : {1, 2, 8}) {
    Job j = job("gpt2:124m", "dp=2", steps);
    int calls = 0;
    j.options.profiled = [&](const Program& p, const StepResult& r) {
      ++calls;
      ASSERT_EQ(r.runs.size(), 2u);
      EXPECT_GT(r.runs[0].size(), 0u);
      EXPECT_LE(r.runs[0].size(), p.instrs.size());
    };
    train(j);
    EXPECT_EQ(calls, std::min<int64_t>(steps, 2));
  }
}

TEST_F(Training, SaysWhenThereIsNothingToValidateOn) {
  std::ofstream(path("data")) << std::string(30, '\7');
  Job j = job("gpt2:124m", "1", 1);
  evaluate(j);
  EXPECT_TRUE(train(j).evaluations.empty());
  const std::string line = "no validation loss: '" + path("data") + "' has no sequence to spare";
  EXPECT_EQ(std::count(log_.begin(), log_.end(), line), 1);
}

// Steps so large that numbers overflow: their updates are left out, and told of, and after
// kMostSkipped in a row the run ends.
TEST_F(Training, SkipsWhatIsNotFinite) {
  Job j = job("gpt2:124m", "2", 100);
  OptimizerOptions wild;
  wild.lr = 1e200;
  wild.warmup = 0;
  wild.max_norm = 0;
  j.graph = trace(j.config, {.dtype = DType::kF64, .training = true, .optimizer = wild});
  j.plan = plan_for(j.graph, "2", {});
  j.told.out_dir = path("run");
  j.options.find_nonfinite = true;
  const std::string error = error_of(j);
  const std::regex message(
      R"(step \d+/100: 20 updates in a row were left out, the last for: (loss|gradient) not finite; try a smaller learning rate or a longer warm-up)");
  EXPECT_TRUE(std::regex_match(error, message)) << error;
  const std::vector<json> lines = metrics("run");
  EXPECT_GE(lines.size(), 21u);  // what was sound is there
  EXPECT_FALSE(lines[0].contains("skipped"));
  EXPECT_TRUE(lines.back().contains("skipped"));
  // And the op that began it is named, with its line in the model.
  const auto told = std::find_if(log_.begin(), log_.end(), [](const std::string& line) {
    return line.find(" numbers NaN or infinite") != std::string::npos;
  });
  ASSERT_NE(told, log_.end());
  EXPECT_TRUE(std::regex_search(*told, std::regex(R"(step \d+: \w+ at \S* ?\w+\.cc:\d+ makes )")))
      << *told;
}

TEST_F(Training, RefusesAnOutputFolderBeforeItTrains) {
  Job j = job("gpt2:124m", "1", 1);
  j.told.out_dir = path("data") + "/run";
  EXPECT_NE(error_of(j).find("cannot make the output folder '" + j.told.out_dir + "'"),
            std::string::npos);
  EXPECT_TRUE(log_.empty());
  j.told.out_dir = path("taken");
  std::filesystem::create_directories(path("taken/metrics.jsonl"));
  EXPECT_NE(error_of(j).find(path("taken/metrics.jsonl")), std::string::npos);
}

TEST_F(Training, RefusesBytesThatTheModelDoesNotKnow) {
  Job j = job("gpt2:124m", "1", 1);
  j.options.vocab = 50;
  EXPECT_NE(error_of(j).find("but the model knows tokens 0 to 49"), std::string::npos);
}

TEST_F(Training, RefusesOtherCollectivesThanThePlans) {
  for (const bool bytes : {false, true}) {
    Job j = job("gpt2:124m", "dp=2", 3);
    ASSERT_FALSE(j.plan.collectives.empty());
    if (bytes) {
      j.plan.collectives[0].bytes *= 1.001;
    } else {
      ++j.plan.collectives[0].count;
    }
    EXPECT_THROW(train(j), InternalError);
  }
}

}  // namespace
}  // namespace cleave
