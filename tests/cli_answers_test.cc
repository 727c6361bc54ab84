// The commands that answer questions about plans: explain, its --why-not, diff, fit, pins and
// objectives. Ten pins, ten questions why not, five models that fit and five that do not are kept
// whole in tests/golden, as a stranger reads them. After a change that is meant:
//   CLEAVE_UPDATE_GOLDEN=1 build/bin/cli_answers_test && git diff tests/golden
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <regex>

#include "cli/format.h"
#include "tests/cli_run.h"

namespace cleave {
namespace {

using testing::capture;
using testing::cleave_run;
using testing::Outcome;
using Json = nlohmann::ordered_json;
namespace fs = std::filesystem;

// A folder with plans of small models, made once.
class Plans {
 public:
  static const Plans& get() {
    static const Plans plans;
    return plans;
  }
  std::string path(const std::string& name) const { return (folder_ / name).string(); }

 private:
  Plans() : folder_(fs::temp_directory_path() / fmt::format("cleave_answers_{}", ::getpid())) {
    fs::create_directories(folder_);
    const auto made = [&](const std::string& line, const std::string& name) {
      const Outcome o = cleave_run("plan " + line + " -o " + path(name));
      EXPECT_EQ(o.status, 0) << line << ": " << o.err;
    };
    made("gpt2:124m --set layers=2 --cluster 8xh100 --mesh dp=2,tp=4 --accumulate 1", "gpt.json");
    made("gpt2:124m --set layers=2 --cluster 8xh100 --mesh dp=8 --accumulate 1", "dp.json");
    made("gpt2:124m --set layers=2 --cluster 4xh100 --pin pp=2 dp=2 micro=4", "stages.json");
  }
  ~Plans() { fs::remove_all(folder_); }
  fs::path folder_;
};

std::string plan(const std::string& name) { return Plans::get().path(name); }

// What was printed, without what no two runs share: how long a search took, and where files are.
std::string steady(std::string text) {
  text = std::regex_replace(text, std::regex("searched in [0-9.]+ [mu]?s"), "searched in T");
  text = std::regex_replace(text, std::regex("searched \\([0-9.]+ [mu]?s\\)"), "searched (T)");
  for (size_t at; (at = text.find(plan(""))) != std::string::npos;) text.erase(at, plan("").size());
  return text;
}

// The command lines and what they said.
std::string transcript(const std::vector<std::vector<std::string>>& commands, int status) {
  std::string text;
  for (const auto& args : commands) {
    const Outcome o = capture(args);
    EXPECT_EQ(o.status, status) << args[1] << ": " << o.err;
    std::string line = "$ cleave";
    for (const std::string& a : args) {
      line += a.find_first_of(" *(") == std::string::npos ? " " + a : " '" + a + "'";
    }
    text += line + "\n" + o.out + o.err + "\n";
  }
  return steady(text);
}

void expect_golden(const std::string& file, const std::string& text) {
  const std::string path = std::string(CLEAVE_SOURCE_DIR) + "/tests/golden/" + file;
  if (std::getenv("CLEAVE_UPDATE_GOLDEN") != nullptr) write_file(path, text);
  EXPECT_EQ(text, read_file(path)) << "see the head of tests/cli_answers_test.cc";
}

// The lines that a pin can change: from the head to the memory.
std::string head_of(const std::string& report) { return report.substr(0, report.find("\nmemory")); }

TEST(Answers, TenPins) {
  std::string text;
  for (const std::string pin :
       {"tp=4", "dp=2", "pp=2", "schedule=zero-bubble", "zero=3", "micro=4", "recompute=full",
        "h.*.mlp=recompute", "h.1=stage 1", "h.*.attn.qkv:tp=shard(0)"}) {
    std::vector<std::string> args = {"plan",      "gpt2:124m", "--set", "layers=2",
                                     "--cluster", "8xh100",    "--pin", pin};
    if (pin == "schedule=zero-bubble" || pin.find("stage") != std::string::npos) {
      args.push_back("pp=2");
    }
    const Outcome o = capture(args);
    EXPECT_EQ(o.status, 0) << pin << ": " << o.err;
    text += "$ --pin '" + pin + "'\n" + head_of(o.out) + o.err + "\n\n";
  }
  expect_golden("answers-pins.txt", steady(text));
}

TEST(Answers, TenWhyNots) {
  std::vector<std::vector<std::string>> commands;
  for (const char* pins : {"tp=8", "dp=8", "tp=2,dp=4", "pp=2", "pp=2,micro=4,schedule=1f1b",
                           "zero=3", "recompute=full", "micro=8", "cp=2", "tp=8,zero=3"}) {
    commands.push_back({"explain", plan("gpt.json"), "--why-not", pins});
  }
  commands.push_back({"explain", plan("gpt.json"), "--why-not", "dp=8", "--memory", "100MB"});
  expect_golden("answers-why-not.txt", transcript(commands, 0));
}

TEST(Answers, FiveThatFit) {
  std::vector<std::vector<std::string>> commands;
  for (const std::vector<std::string>& model : std::vector<std::vector<std::string>>{
           {"gpt2:tiny", "--cluster", "cpu:2"},
           {"gpt2:124m", "--set", "layers=2", "--cluster", "h100"},
           {"bert:base", "--set", "layers=2", "--cluster", "2xv100"},
           {"mlp:tiny", "--cluster", "cpu:4"},
           {"llama:tiny", "--cluster", "cpu:1"}}) {
    commands.push_back({"fit"});
    commands.back().insert(commands.back().end(), model.begin(), model.end());
  }
  expect_golden("answers-fit.txt", transcript(commands, 0));
}

TEST(Answers, FiveThatDoNotFit) {
  std::vector<std::vector<std::string>> commands = {
      {"fit", "gpt2:tiny", "--cluster", "cpu:2", "--memory", "4MB"},
      {"fit", "llama:tiny", "--cluster", "cpu:2", "--memory", "2MB"},
      {"fit", "gpt2:tiny", "--cluster", "cpu:2", "--memory", "6MB", "--mesh", "dp=2"},
      {"fit", "gpt2:tiny", "--cluster", "cpu:2", "--memory", "8MB", "--pin", "micro=1",
       "recompute=none"},
      {"fit", "mlp:tiny", "--cluster", "cpu:1", "--memory", "10KB"}};
  // However slow the machine is.
  for (auto& c : commands) c.insert(c.end(), {"--seconds", "10000"});
  expect_golden("answers-does-not-fit.txt", transcript(commands, 3));
}

TEST(Answers, FitAsJson) {
  Outcome o = cleave_run("fit gpt2:tiny --cluster cpu:2 --json");
  EXPECT_EQ(o.status, 0) << o.err;
  Json json = Json::parse(o.out);
  EXPECT_EQ(json["fits"], true);
  EXPECT_GT(json["peak_bytes"], 0);
  int64_t parts = 0;
  for (const auto& [name, bytes] : json["memory"].items()) {
    if (name != "peak") parts += bytes.get<int64_t>();
  }
  EXPECT_EQ(parts, json["memory"]["peak"]);
  o = cleave_run("fit gpt2:tiny --cluster cpu:2 --memory 4MB --json");
  EXPECT_EQ(o.status, 3);
  EXPECT_TRUE(testing::one_line(o.err)) << o.err;
  json = Json::parse(o.out);
  EXPECT_EQ(json["fits"], false);
  EXPECT_EQ(json["limit_bytes"], 4e6);
  EXPECT_GT(json["over_bytes"], 0);
  // Every change that is offered does make it fit.
  for (const Json& change : json["changes"]) {
    EXPECT_LE(change["peak_bytes"], json["limit_bytes"]);
    const std::string options = change["options"];
    if (options.starts_with("without")) continue;
    const std::string line = options.starts_with("--cluster")
                                 ? "fit gpt2:tiny --memory 4MB " + options
                                 : "fit gpt2:tiny --cluster cpu:2 --memory 4MB " + options;
    EXPECT_EQ(cleave_run(line).status, 0) << line;
  }
}

TEST(Answers, ExplainNamesWhereDevicesMeet) {
  const Outcome o = cleave_run("explain " + plan("gpt.json"));
  EXPECT_EQ(o.status, 0) << o.err;
  EXPECT_NE(o.out.find("gpt2.cc:"), std::string::npos) << o.out;
  EXPECT_NE(o.out.find("over tp"), std::string::npos) << o.out;
  // Bytes of all synchronizations are those that the plan counts.
  const Json explained = Json::parse(cleave_run("explain " + plan("gpt.json") + " --json").out);
  const Json saved = Json::parse(read_file(plan("gpt.json")));
  double bytes = 0, planned = 0;
  for (const Json& s : explained["synchronizations"]) bytes += s["bytes"].get<double>();
  for (const Json& c : saved["collectives"]) planned += c["bytes"].get<double>();
  EXPECT_NEAR(bytes, planned, 1e-9 * planned);
}

TEST(Answers, AlternativesHaveExactPrices) {
  const Outcome o = cleave_run("explain " + plan("gpt.json") + " h.*.mlp.fc.matmul --json");
  ASSERT_EQ(o.status, 0) << o.err;
  const Json op = Json::parse(o.out)["ops"][0];
  EXPECT_EQ(op["name"], "h.*.mlp.fc.matmul");
  EXPECT_GT(op["alternatives"].size(), 2u);
  const Json& chosen = op["alternatives"][0];
  EXPECT_EQ(chosen["chosen"], true);
  const double cost = Json::parse(read_file(plan("gpt.json")))["certificate"]["cost"];
  EXPECT_NEAR(chosen["step_seconds"].get<double>(), cost, 1e-9 * cost);
  for (const Json& a : op["alternatives"]) {
    if (!a["possible"]) continue;
    EXPECT_GE(a["step_seconds"].get<double>(), cost * (1 - 1e-9)) << a;
    // With all layers changed it costs no less than with one.
    for (const Json& all : op["alternatives_of_all"]) {
      if (all["split"] != a["split"] || !all["possible"]) continue;
      EXPECT_GE(all["step_seconds"].get<double>(), a["step_seconds"].get<double>() * (1 - 1e-9));
    }
  }
}

TEST(Answers, ExplainFindsOpsByParametersAndScopes) {
  for (const char* pattern : {"h.1.mlp.fc", "wte.weight", "h.*.attn", "**.matmul"}) {
    const Outcome o = capture({"explain", plan("gpt.json"), pattern});
    EXPECT_EQ(o.status, 0) << pattern << ": " << o.err;
    EXPECT_NE(o.out.find("split"), std::string::npos) << o.out;
  }
}

TEST(Answers, Diff) {
  const std::string line = "diff " + plan("gpt.json") + " " + plan("dp.json");
  const Outcome o = cleave_run(line);
  EXPECT_EQ(o.status, 0) << o.err;
  EXPECT_NE(o.out.find("h.*.mlp.fc.matmul"), std::string::npos) << o.out;
  EXPECT_NE(o.out.find("sending over tp"), std::string::npos);
  const Json json = Json::parse(cleave_run(line + " --json").out);
  EXPECT_EQ(json["measures"][0]["name"], "step");
  const Json a = Json::parse(read_file(plan("gpt.json")));
  EXPECT_NEAR(json["measures"][0]["a"].get<double>(), a["predicted"]["step_seconds"].get<double>(),
              1e-12);
  // A plan does not differ from itself.
  const Json none =
      Json::parse(cleave_run("diff " + plan("gpt.json") + " " + plan("gpt.json") + " --json").out);
  EXPECT_TRUE(none["splits"].empty());
  EXPECT_TRUE(none["kept"].empty());
  for (const Json& m : none["measures"]) EXPECT_EQ(m["a"], m["b"]) << m;
}

TEST(Answers, StagesAreSavedAndMadeAgain) {
  const Json saved = Json::parse(read_file(plan("stages.json")));
  EXPECT_EQ(saved["pipeline"]["stages"], 2);
  EXPECT_EQ(saved["pipeline"]["micro_batches"], 4);
  EXPECT_FALSE(saved["rewrite"]["cuts"].empty());
  // Loading computes every cost anew: the same.
  const Json again = Json::parse(cleave_run("explain " + plan("stages.json") + " --json").out);
  EXPECT_NEAR(again["step_seconds"].get<double>(), saved["predicted"]["step_seconds"].get<double>(),
              1e-9);
}

TEST(Answers, Objectives) {
  const auto predicted = [](const std::string& objective) {
    const Outcome o = cleave_run(
        "plan gpt2:124m --set layers=2 --cluster 8xh100 --json --objective " + objective);
    EXPECT_EQ(o.status, 0) << o.err;
    return Json::parse(o.out);
  };
  const Json time = predicted("time"), memory = predicted("memory"), gpus = predicted("gpus");
  EXPECT_LT(memory["predicted"]["peak_bytes"], time["predicted"]["peak_bytes"]);
  EXPECT_GE(memory["predicted"]["step_seconds"].get<double>(),
            time["predicted"]["step_seconds"].get<double>());
  EXPECT_EQ(gpus["cluster"], "1xh100");
  // Where one device is too small, the fewest that are not.
  const Outcome o =
      cleave_run("plan gpt2:tiny --cluster cpu:8 --memory 12MB --objective gpus --json");
  ASSERT_EQ(o.status, 0) << o.err;
  const std::string fewest = Json::parse(o.out)["cluster"];
  EXPECT_NE(fewest, "cpu:1");
  EXPECT_NE(fewest, "cpu:8");
}

}  // namespace
}  // namespace cleave
