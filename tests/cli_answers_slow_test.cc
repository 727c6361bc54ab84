// Ten pins, ten questions why not, five models that fit and five that do not, kept whole in
// tests/golden as a stranger reads them. After a change that is meant:
//   CLEAVE_UPDATE_GOLDEN=1 build/bin/cli_answers_slow_test && git diff tests/golden
#include <cstdlib>
#include <regex>

#include "cli/format.h"
#include "tests/cli_answers.h"

namespace cleave {
namespace {

using testing::capture;
using testing::Outcome;
using testing::plan;

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
  EXPECT_EQ(text, read_file(path)) << "see the head of tests/cli_answers_slow_test.cc";
}

// The lines that a pin can change: from the head to the memory.
std::string head_of(const std::string& report) { return report.substr(0, report.find("\nmemory")); }

TEST(Answers, TenPins) {
  std::string text;
  for (const std::string pin :
       {"tp=4", "dp=2", "pp=2", "schedule=zero-bubble", "zero=3", "micro=4", "recompute=full",
        "h.*.mlp=recompute", "h.1.mlp=keep", "h.*.attn.qkv:tp=shard(0)"}) {
    std::vector<std::string> args = {"plan",      "gpt2:124m", "--set", "layers=2",
                                     "--cluster", "8xh100",    "--pin", pin};
    if (pin == "schedule=zero-bubble") args.push_back("pp=2");
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
  for (auto args : commands) {
    args.push_back("--json");
    const auto json = nlohmann::ordered_json::parse(capture(args).out);
    if (json.contains("measures")) {
      testing::expect_rows_add_up(json["measures"], "chosen", "asked");
    }
  }
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
      {"fit", "gpt2:tiny", "--cluster", "cpu:1", "--memory", "7MB"},
      {"fit", "gpt2:tiny", "--cluster", "cpu:2", "--memory", "3MB", "--mesh", "dp=2"},
      {"fit", "gpt2:tiny", "--cluster", "cpu:2", "--memory", "8MB", "--pin", "micro=1",
       "recompute=none"},
      {"fit", "mlp:tiny", "--cluster", "cpu:1", "--memory", "5MB"}};
  // However slow the machine is.
  for (auto& c : commands) c.insert(c.end(), {"--seconds", "10000"});
  expect_golden("answers-does-not-fit.txt", transcript(commands, 3));
}

}  // namespace
}  // namespace cleave
