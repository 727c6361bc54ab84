// What answers keep of what was asked for: --why-not of the plan's own options, fit of the step and
// the pins.
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>

#include "tests/cli_answers.h"

namespace cleave {
namespace {

using testing::capture;
using testing::cleave_run;
using testing::Outcome;
using Json = nlohmann::ordered_json;
using Words = std::vector<std::string>;

class PlanFile {
 public:
  explicit PlanFile(const std::string& options)
      : path_((std::filesystem::temp_directory_path() /
               fmt::format("cleave_kept_{}.json", ::getpid()))
                  .string()) {
    const Outcome o =
        cleave_run("plan gpt2:124m --set layers=2 --cluster 8xh100 " + options + " -o " + path_);
    EXPECT_EQ(o.status, 0) << o.err;
  }
  ~PlanFile() { std::filesystem::remove(path_); }

  Json why_not(const std::string& asked, const std::string& more = "") const {
    const Outcome o = cleave_run("explain " + path_ + " --json --why-not " + asked +
                                 (more.empty() ? "" : " ") + more);
    EXPECT_EQ(o.status, 0) << o.err;
    return Json::parse(o.out);
  }

 private:
  std::string path_;
};

TEST(AnswersKept, MeshMemoryAndMicroBatches) {
  const PlanFile plan("--mesh dp=2,tp=4 --accumulate 2 --memory 330MB");
  Json j = plan.why_not("recompute=full");
  EXPECT_EQ(j["kept"], Json(Words{"--mesh dp=2,tp=4", "--accumulate 2", "--memory 330MB"}));
  EXPECT_TRUE(j["gave_way"].empty());
  EXPECT_TRUE(std::string(j["plan"]).starts_with("dp 2 × tp 4")) << j["plan"];
  j = plan.why_not("tp=8");
  EXPECT_EQ(j["kept"], Json(Words{"--accumulate 2", "--memory 330MB"}));
  EXPECT_EQ(j["gave_way"], Json(Words{"--mesh dp=2,tp=4"}));
  // It is the same memory that the alternative has to fit in, unless another is given.
  EXPECT_EQ(plan.why_not("dp=8,recompute=none,offload=off")["limit_bytes"], 330e6);
  EXPECT_EQ(plan.why_not("dp=8,recompute=none,offload=off", "--memory 340MB")["limit_bytes"],
            340e6);
  j = plan.why_not("pp=2");
  EXPECT_EQ(j["gave_way"], Json(Words{"--mesh dp=2,tp=4", "--accumulate 2"}));
}

TEST(AnswersKept, PinsThatDoNotContradict) {
  const PlanFile plan("--pin tp=4 recompute=full h.*.attn=recompute micro=2");
  Json j = plan.why_not("tp=8");
  EXPECT_EQ(j["gave_way"], Json(Words{"--pin tp=4"}));
  EXPECT_EQ(j["kept"],
            Json(Words{"--pin recompute=full", "--pin h.*.attn=recompute", "--pin micro=2"}));
  j = plan.why_not("h.1=keep");
  EXPECT_EQ(j["gave_way"], Json(Words{"--pin h.*.attn=recompute"}));
  j = plan.why_not("recompute=none");
  EXPECT_EQ(j["gave_way"], Json(Words{"--pin recompute=full", "--pin h.*.attn=recompute"}));
  j = plan.why_not("dp=8");  // which leaves no devices for tp=4
  EXPECT_EQ(j["gave_way"], Json(Words{"--pin tp=4"}));
  EXPECT_TRUE(std::string(j["plan"]).starts_with("dp 8")) << j["plan"];
}

// The words of a command line by option; pins by their key.
std::map<std::string, std::string> options_of(const std::string& line) {
  std::map<std::string, std::string> options;
  std::istringstream words(line);
  std::string option;
  for (std::string w; words >> w;) {
    if (w.starts_with("--")) {
      option = w;
    } else if (option == "--pin") {
      options["--pin " + w.substr(0, w.find('='))] = w.substr(w.find('=') + 1);
    } else {
      options[option] = w;
    }
  }
  return options;
}

// What fit offers makes it fit, with everything else as it was asked for, and is the same step
// unless it says otherwise.
class FitChanges : public ::testing::TestWithParam<const char*> {};

TEST_P(FitChanges, KeepWhatWasAskedFor) {
  const std::string model = "gpt2:tiny ";
  const auto asked = options_of(GetParam());
  const Outcome o = cleave_run("fit " + model + GetParam() + " --seconds 1000 --json");
  ASSERT_EQ(o.status, 3) << o.out << o.err;
  const auto sequences = [&](const std::map<std::string, std::string>& options) {
    std::string line = "plan " + model + "--json";
    std::string pins;
    for (const auto& [option, value] : options) {
      if (option.starts_with("--pin ")) pins += " " + option.substr(6) + "=" + value;
      if (!option.starts_with("--pin ")) line += " " + option + " " + value;
    }
    if (!pins.empty()) line += " --pin" + pins;
    const Outcome made = cleave_run(line);
    EXPECT_EQ(made.status, 0) << line << ": " << made.err;
    if (made.status != 0) return int64_t{0};
    const Json plan = Json::parse(made.out);
    return plan["model"]["batch"].get<int64_t>() * plan["model"]["micro_batches"].get<int64_t>();
  };
  auto roomy = asked;
  roomy["--memory"] = "none";
  const int64_t step = sequences(roomy);
  const Json changes = Json::parse(o.out)["changes"];
  EXPECT_FALSE(changes.empty());
  for (const Json& change : changes) {
    const std::string text = change["options"];
    if (text.starts_with("without")) continue;
    auto with = asked;
    for (const auto& [option, value] : options_of(text)) with[option] = value;
    const std::string what = change["change"];
    const bool smaller = what.find("a step instead of") != std::string::npos;
    const int64_t now = sequences(with);
    EXPECT_EQ(now, smaller ? std::stoll(what) : step) << text << ": " << what;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Requests, FitChanges,
    ::testing::Values("--cluster cpu:2 --memory 6MB --batch 4 --accumulate 2",
                      "--cluster cpu:2 --memory 9MB --pin micro=1 recompute=none offload=off",
                      "--cluster cpu:2 --memory 4MB --mesh dp=1,tp=2",
                      "--cluster cpu:2 --memory 4MB --pin pp=1 dp=1 tp=2"));

}  // namespace
}  // namespace cleave
