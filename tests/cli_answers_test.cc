// The commands that answer questions about plans: explain, its --why-not, diff, fit and objectives,
// by what their JSON says. What they print stands in cli_answers_slow_test.cc.
#include <nlohmann/json.hpp>

#include "cli/format.h"
#include "tests/cli_answers.h"

namespace cleave {
namespace {

using testing::capture;
using testing::cleave_run;
using testing::Outcome;
using testing::plan;
using Json = nlohmann::ordered_json;

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
  o = cleave_run("fit mlp:tiny --cluster cpu:1 --memory 5MB --json");
  EXPECT_EQ(o.status, 3);
  EXPECT_TRUE(testing::one_line(o.err)) << o.err;
  json = Json::parse(o.out);
  EXPECT_EQ(json["fits"], false);
  EXPECT_EQ(json["limit_bytes"], 5e6);
  EXPECT_GT(json["over_bytes"], 0);
  // Every change that is offered does make it fit.
  for (const Json& change : json["changes"]) {
    EXPECT_LE(change["peak_bytes"], json["limit_bytes"]);
    const std::string options = change["options"];
    if (options.starts_with("without")) continue;
    const std::string line = options.starts_with("--cluster")
                                 ? "fit mlp:tiny --memory 5MB " + options
                                 : "fit mlp:tiny --cluster cpu:1 --memory 5MB " + options;
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
    const Outcome o = cleave_run("plan mlp:tiny --cluster cpu:4 --json --objective " + objective);
    EXPECT_EQ(o.status, 0) << o.err;
    return Json::parse(o.out);
  };
  const Json time = predicted("time"), memory = predicted("memory"), gpus = predicted("gpus");
  EXPECT_LT(memory["predicted"]["peak_bytes"], time["predicted"]["peak_bytes"]);
  EXPECT_GE(memory["predicted"]["step_seconds"].get<double>(),
            time["predicted"]["step_seconds"].get<double>());
  EXPECT_EQ(gpus["cluster"], "cpu:1");
  // Where one device is too small, the fewest that are not.
  const Outcome o =
      cleave_run("plan mlp:tiny --cluster cpu:4 --memory 5MB --objective gpus --json");
  ASSERT_EQ(o.status, 0) << o.err;
  const std::string fewest = Json::parse(o.out)["cluster"];
  EXPECT_EQ(fewest, "cpu:2");
}

}  // namespace
}  // namespace cleave
