// What answers add up from: rows of a comparison, parts of a device's memory, synchronizations.
#include <map>
#include <nlohmann/json.hpp>

#include "cli/format.h"
#include "tests/cli_answers.h"

namespace cleave {
namespace {

using testing::cleave_run;
using testing::expect_rows_add_up;
using testing::Outcome;
using testing::plan;
using Json = nlohmann::ordered_json;

TEST(AnswersSums, RowsOfWhyNotAddUp) {
  for (const std::string asked : {"tp=8", "zero=3", "pp=2,schedule=1f1b,micro=4", "cp=2"}) {
    const Outcome o = cleave_run("explain " + plan("gpt.json") + " --json --why-not " + asked);
    ASSERT_EQ(o.status, 0) << o.err;
    expect_rows_add_up(Json::parse(o.out)["measures"], "chosen", "asked");
  }
}

TEST(AnswersSums, RowsOfDiffAddUp) {
  for (const char* other : {"dp.json", "stages.json", "host.json"}) {
    const Outcome o = cleave_run("diff " + plan("gpt.json") + " " + plan(other) + " --json");
    ASSERT_EQ(o.status, 0) << o.err;
    const Json measures = Json::parse(o.out)["measures"];
    expect_rows_add_up(measures, "a", "b");
    // States that lie on the host have a row of their own.
    const bool host = std::any_of(measures.begin(), measures.end(), [](const Json& m) {
      return m["name"] == "states to the host and back";
    });
    EXPECT_EQ(host, std::string(other) == "host.json");
  }
}

// Seconds too: starting a bundle is part of what its collectives take. Of one stage, and it is said
// which.
TEST(AnswersSums, SynchronizationsTakeWhatThePlanCounts) {
  for (const char* name : {"gpt.json", "dp.json", "stages.json"}) {
    const Json explained = Json::parse(cleave_run("explain " + plan(name) + " --json").out);
    const Json saved = Json::parse(read_file(plan(name)));
    double seconds = 0, planned = 0;
    const Json& stage = explained["synchronizations"][0]["stage"];
    for (const Json& s : explained["synchronizations"]) {
      EXPECT_EQ(s["stage"], stage);
      seconds += s["seconds"].get<double>();
    }
    for (const Json& c : saved["collectives"]) {
      if (c["stage"] == stage) planned += c["seconds"].get<double>();
    }
    EXPECT_NEAR(seconds, planned, 1e-9 * planned) << name;
  }
}

// The stage that needs most has all that it holds: the table that the model's ends share, either
// itself or the copy that its stage sends, and whole copies of what is kept in parts.
TEST(AnswersSums, MemoryPartsOfPipelines) {
  const double table = 50304.0 * 768 * 2;  // of tokens, in bf16
  for (const std::string pins : {"pp=2 schedule=1f1b", "pp=2 schedule=zero-bubble",
                                 "pp=2 schedule=interleaved chunks=2 micro=4", "pp=2 dp=2 zero=3",
                                 "pp=2 dp=2 recompute=full"}) {
    const std::string devices = pins.find("dp=2") == std::string::npos ? "2" : "4";
    const Outcome o = cleave_run("plan gpt2:124m --set layers=4 --cluster " + devices +
                                 "xh100 --json --pin " + pins);
    ASSERT_EQ(o.status, 0) << pins << ": " << o.err;
    const Json json = Json::parse(o.out);
    const Json& memory = json["memory"];
    int64_t parts = 0;
    for (const auto& [name, bytes] : memory.items()) {
      EXPECT_GE(bytes.get<int64_t>(), 0) << pins << ": " << name;
      if (name != "peak") parts += bytes.get<int64_t>();
    }
    EXPECT_EQ(parts, memory["peak"]) << pins;
    EXPECT_EQ(memory["peak"], json["predicted"]["peak_bytes"]) << pins;
    EXPECT_GE(memory["weights"].get<double>() + memory["weight_copies"].get<double>(), table)
        << pins;
    EXPECT_GT(memory["weight_copies"].get<double>(), 0) << pins;
  }
}

// On a GPU weights are kept as their bf16 and the rest of their bits, which are weights, too.
TEST(AnswersSums, WeightsInTwo) {
  const Outcome o = cleave_run("plan gpt2:124m --set layers=4 --cluster h100 --json");
  ASSERT_EQ(o.status, 0) << o.err;
  const Json memory = Json::parse(o.out)["memory"];
  const double parameters = (50304.0 + 1024) * 768 + 4 * (12.0 * 768 * 768 + 13 * 768) + 2 * 768;
  EXPECT_NEAR(memory["weights"].get<double>(), 4 * parameters, 1e-3 * 4 * parameters);
  EXPECT_NEAR(memory["optimizer"].get<double>(), 8 * parameters, 1e-3 * 8 * parameters);
  EXPECT_EQ(memory["weight_copies"], 0);
}

}  // namespace
}  // namespace cleave
