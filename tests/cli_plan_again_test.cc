// The line that a plan prints gives it back.
#include <nlohmann/json.hpp>
#include <regex>

#include "cli/plan_again.h"
#include "cli/plan_file.h"
#include "cli/plan_parts.h"
#include "tests/cli_run.h"

namespace cleave {
namespace {

using testing::capture;
using testing::Outcome;
using Json = nlohmann::ordered_json;

// As a shell takes a line apart, as far as single quotes and backslashes go.
std::vector<std::string> words_of(const std::string& line) {
  std::vector<std::string> words = {""};
  bool quoted = false, escaped = false;
  for (char c : line) {
    if (escaped) {
      words.back() += c;
      escaped = false;
    } else if (c == '\\' && !quoted) {
      escaped = true;
    } else if (c == '\'') {
      quoted = !quoted;
    } else if (c == ' ' && !quoted) {
      words.emplace_back();
    } else {
      words.back() += c;
    }
  }
  return words;
}

Json planned(const std::string& line) {
  std::vector<std::string> words = words_of(line);
  words.push_back("--json");
  const Outcome o = capture(words);
  EXPECT_EQ(o.status, 0) << line << ": " << o.err;
  return o.status == 0 ? Json::parse(o.out) : Json();
}

class PlanAgainLine : public ::testing::TestWithParam<const char*> {};

TEST_P(PlanAgainLine, GivesThePlanBack) {
  const Json first = planned(std::string("plan ") + GetParam());
  ASSERT_FALSE(first.is_null());
  const std::string line = first["again"]["command"];
  ASSERT_TRUE(line.starts_with("cleave plan ")) << line;
  const Json second = planned(line.substr(7));
  ASSERT_FALSE(second.is_null());
  for (const char* field : {"graph", "mesh", "zero"}) {
    EXPECT_EQ(first[field], second[field]) << line;
  }
  for (const char* field : {"stages", "virtual", "schedule", "micro_batches"}) {
    EXPECT_EQ(first["pipeline"][field], second["pipeline"][field]) << line;
  }
  EXPECT_EQ(first["choices"]["roles"], second["choices"]["roles"]) << line;
  EXPECT_TRUE(first["again"]["exact"]) << line;
  EXPECT_EQ(first["certificate"]["cost"], second["certificate"]["cost"]) << line;
  EXPECT_EQ(first["rewrite"], second["rewrite"]) << line;
  EXPECT_EQ(first["choices"], second["choices"]) << line;
  EXPECT_EQ(second["again"]["command"], line);
}

INSTANTIATE_TEST_SUITE_P(
    Plans, PlanAgainLine,
    ::testing::Values("gpt2:tiny --cluster cpu:4", "gpt2:tiny --cluster cpu:8 --batch 16",
                      "gpt2:tiny --cluster cpu:4 --set batch=16",
                      "llama:tiny --cluster 4xh100 --forward", "mlp:tiny --cluster cpu:1",
                      "gpt2:124m --set layers=2 --cluster 8xh100 --pin pp=2",
                      "gpt2:124m --set layers=2 --cluster 8xh100 --pin pp=4 schedule=zero-bubble",
                      "gpt2:124m --set layers=2 --cluster 8xh100 --mesh dp=2,tp=4 --accumulate 4",
                      "gpt2:124m --set layers=2 --cluster 2x8xh100 --pin zero=3 tp=4",
                      "gpt2:124m --set layers=2 --cluster 8xh100 --pin recompute=full cp=2",
                      "gpt2:124m --set layers=2 --cluster 4xa100 --pin h.0.mlp=recompute h.1=keep",
                      "gpt2:124m --set layers=2 --cluster 4xa100 --pin h.*.attn.qkv:tp=shard(0)",
                      "gpt2:124m --set layers=2 --cluster 4xa100 --pin 'h.1=stage 1' pp=2 "
                      "--optimizer sgd",
                      "mixtral:tiny --cluster 8xh100 --pin ep=2 --memory 60GB",
                      "bert:base --set layers=2 --cluster 2xv100 --precision fp32",
                      "gpt2:tiny --cluster cpu:4 --objective memory --pin dp=4 micro=1",
                      "gpt2:124m --set layers=2 --cluster 2xv100 --moments bf16",
                      "gpt2:124m --set layers=2 --cluster 8xh100 --pin zero=0"));

// The report's "same with" stands after the model's name and its cluster.
TEST(PlanAgainLine, OfTheReportGivesTheReportBack) {
  for (const char* options :
       {"--batch 16 --set layers=2 vocab=384 --precision fp32", "--optimizer sgd --batch 32",
        "--forward", "--moments bf16 --precision bf16 --mesh dp=4"}) {
    const std::string base = "plan gpt2:tiny --cluster 4xh100 ";
    // Without what was pinned, and how long the search took.
    const auto report = [&](const std::string& more) {
      const Outcome o = testing::cleave_run(base + more);
      EXPECT_EQ(o.status, 0) << base << more << "\n" << o.err;
      return std::pair(o.out, std::regex_replace(o.out.substr(0, o.out.find("bound ")),
                                                 std::regex("\npinned .*"), ""));
    };
    const auto [whole, first] = report(options);
    const std::regex line("\nsame with ((.|\n          --)*)");
    std::smatch same;
    ASSERT_TRUE(std::regex_search(whole, same, line)) << whole;
    EXPECT_EQ(report(std::regex_replace(same[1].str(), std::regex("\n *"), " ")).second, first);
  }
}

// What is computed again, and kept in parts, so that it fits is searched: what is printed does not
// claim more than the arrangement, and gives that.
TEST(PlanAgainLine, SaysWhereMemoryDecided) {
  const Json first = planned("plan gpt2:tiny --cluster cpu:4 --memory 4MB");
  ASSERT_FALSE(first.is_null());
  EXPECT_FALSE(first["again"]["exact"]);
  const std::string line = first["again"]["command"];
  EXPECT_NE(line.find(" --memory 4MB"), std::string::npos) << line;
  const Json second = planned(line.substr(7));
  ASSERT_FALSE(second.is_null());
  EXPECT_EQ(first["pipeline"]["micro_batches"], second["pipeline"]["micro_batches"]);
  EXPECT_EQ(first["choices"]["roles"], second["choices"]["roles"]);
  EXPECT_LE(second["predicted"]["peak_bytes"], 4e6);
  const Outcome shown = testing::cleave_run("plan gpt2:tiny --cluster cpu:4 --memory 4MB");
  EXPECT_NE(shown.out.find("searched anew"), std::string::npos) << shown.out;
}

// Limits that were tried on the way to the smallest peak are not printed: what is printed leads
// there.
TEST(PlanAgainLine, OfTheLeastMemoryAsksForTheLeastMemory) {
  const Json plan = planned("plan gpt2:tiny --cluster cpu:4 --objective memory --accumulate 2");
  ASSERT_FALSE(plan.is_null());
  const std::string line = plan["again"]["command"];
  EXPECT_NE(line.find(" --cluster cpu:4 --pin micro=2 --objective memory"), std::string::npos)
      << line;
  EXPECT_EQ(line.find("--memory"), std::string::npos) << line;
  EXPECT_EQ(plan["asked"]["memory_bytes"], 0);
  EXPECT_TRUE(plan["asked"]["least_memory"]);
}

LoadedPlan loaded(const Json& plan) {
  const std::string text = plan.dump();
  return load_plan("plan.json", text, spec_in_plan_file("plan.json", text), nullptr);
}

// What is computed again is fixed only by pins that name it.
TEST(PlanAgainLine, IsExactWhenPinsNameWhatIsComputedAgain) {
  Json plan =
      planned("plan gpt2:tiny --cluster cpu:2 --mesh dp=2 --accumulate 1 --pin h.0.mlp=recompute");
  ASSERT_FALSE(plan.is_null());
  ASSERT_FALSE(plan["rewrite"]["remade"].empty());
  const auto exact_with = [&](const std::string& pin) {
    plan["pins"] = {pin};
    const LoadedPlan l = loaded(plan);
    return plan_again(l.model, l.plan).exact;
  };
  EXPECT_TRUE(exact_with("h.0.mlp=recompute"));
  EXPECT_TRUE(exact_with("h.*=recompute"));
  EXPECT_FALSE(exact_with("h.0.mlp=keep"));
  EXPECT_FALSE(exact_with("h.1.mlp=recompute"));
  EXPECT_FALSE(exact_with("h.0=stage 0"));
}

TEST(PlanAgainLine, IsQuotedForAShell) {
  LoadedPlan l = loaded(planned("plan mlp:tiny --cluster cpu:1"));
  l.model.spec.name = "my model's {1}.py";
  l.model.spec.set = {"layers=2", "a=`b`"};
  l.plan.cluster.spec = "rack[1].toml";
  EXPECT_TRUE(command_of(l.model, l.plan)
                  .starts_with("cleave plan 'my model'\\''s {1}.py' --set layers=2 'a=`b`' "));
  EXPECT_NE(command_of(l.model, l.plan).find(" --cluster 'rack[1].toml' "), std::string::npos);
}

// What was not planned in full is not told as if it had been, nor as slower than nothing.
TEST(Beaten, SaysWhatWasOnlyEstimated) {
  Plan plan;
  plan.certificate.cost = 1;
  const auto add = [&](double cost, bool full, const char* why) {
    Candidate c;
    c.cost = cost, c.planned = full, c.why_not = why;
    plan.candidates.push_back(c);
  };
  add(0.9, false, "promising");
  add(1, true, "");  // chosen
  add(1.1, false, "slower");
  add(1.2, true, "slower");
  std::vector<std::string> lines;
  for (const Candidate* c : beaten(plan)) lines.push_back(why_not(*c, plan));
  EXPECT_EQ(lines, (std::vector<std::string>{"20.0 % slower",
                                             "promising by an estimate, not planned in full",
                                             "estimated, not planned: at best 10.0 % slower"}));
}

// A step of one sequence cannot be divided, and a forward is not; neither was asked for.
TEST(PlanAgainLine, SaysAccumulateOnlyWhereItWasGiven) {
  const char* base = "plan gpt2:tiny --cluster cpu:4";
  const auto asked = [&](const std::string& more) {
    return planned(base + more)["asked"]["micro_batches"].get<bool>();
  };
  EXPECT_FALSE(asked(" --forward"));
  EXPECT_FALSE(asked(" --batch 1"));
  EXPECT_FALSE(asked(""));
  EXPECT_TRUE(asked(" --accumulate 1"));
}

}  // namespace
}  // namespace cleave
