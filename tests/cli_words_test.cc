// Words and numbers of the reports that one would stumble over: one number for one thing, cells
// that keep what tells rows apart, and nothing said that is not there.
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <regex>
#include <string>

#include "cli/format.h"
#include "cli/planned.h"
#include "planner/cluster_toml.h"
#include "tests/cli_run.h"

namespace cleave {
namespace {

using Json = nlohmann::ordered_json;
using testing::cleave_run;
using testing::Outcome;

constexpr const char* kTooLarge = " gpt2:tiny --cluster cpu:2 --memory 3500KB";

// The number that a text has behind these words.
std::string behind(const std::string& text, const std::string& words) {
  std::smatch match;
  const std::regex pattern(words + " ([0-9.]+ [KMG]iB)");
  return std::regex_search(text, match, pattern) ? match[1].str() : "";
}

TEST(Words, PlanAndFitNameOneSmallestPeak) {
  const Outcome plan = cleave_run("plan" + std::string(kTooLarge));
  const Outcome fit = cleave_run("fit --seconds 10000" + std::string(kTooLarge));
  EXPECT_EQ(plan.status, 3);
  EXPECT_EQ(fit.status, 3);
  const std::string words = "smallest peak found or estimated is";
  ASSERT_NE(behind(plan.err, words), "") << plan.err;
  EXPECT_EQ(behind(plan.err, words), behind(fit.out, words)) << plan.err << fit.out;
  EXPECT_NE(fit.err.find("a device on cpu:2 in the nearest plan found"), std::string::npos);
  const Json a = Json::parse(cleave_run("plan --json" + std::string(kTooLarge)).out);
  const Json b = Json::parse(cleave_run("fit --json --seconds 0" + std::string(kTooLarge)).out);
  EXPECT_EQ(a.at("smallest_peak_bytes"), b.at("smallest_peak_bytes"));
  EXPECT_EQ(b.at("complete"), false);  // in no time
}

// States on the host are searched too, so the peak is of that search where it is smaller.
TEST(Words, TheSmallestPeakIsWithStatesOnTheHost) {
  const Json with = Json::parse(cleave_run("plan --json" + std::string(kTooLarge)).out);
  const Json without =
      Json::parse(cleave_run("plan --json" + std::string(kTooLarge) + " --pin offload=off").out);
  EXPECT_LT(with.at("smallest_peak_bytes"), without.at("smallest_peak_bytes"));
}

TEST(Words, FitWithoutTimeSaysSo) {
  const Outcome o = cleave_run("fit --seconds 0" + std::string(kTooLarge));
  EXPECT_EQ(o.status, 3);
  EXPECT_NE(o.out.find("Not all was tried in the 0 s of --seconds."), std::string::npos) << o.out;
  EXPECT_EQ(o.out.find("nearest"), std::string::npos) << o.out;
  EXPECT_NE(o.err.find("at least by an estimate"), std::string::npos) << o.err;
}

// However slow the machine is: what is searched for the advice is counted, not timed.
TEST(Words, ARefusalNamesALargerClusterThatFits) {
  const Outcome o = cleave_run("plan" + std::string(kTooLarge));
  std::smatch match;
  ASSERT_TRUE(std::regex_search(o.err, match, std::regex("it fits on (cpu:[0-9]+);"))) << o.err;
  EXPECT_EQ(match[1], "cpu:8");
  EXPECT_EQ(cleave_run("plan gpt2:tiny --memory 3500KB --cluster " + match[1].str()).status, 0);
}

// Of a file, too: more devices in a node of it, whose link joins any number.
TEST(Words, ARefusalNamesMoreDevicesOfAFileThatFit) {
  const std::string file =
      (std::filesystem::path(::testing::TempDir()) / "cli_words_test.toml").string();
  write_file(file, cluster_to_toml(parse_cluster("cpu:2")));
  const std::string asked = " gpt2:tiny --memory 3500KB --cluster " + file;
  const Outcome plan = cleave_run("plan" + asked);
  EXPECT_EQ(plan.status, 3);
  EXPECT_NE(plan.err.find("it fits on " + file + ":8;"), std::string::npos) << plan.err;
  EXPECT_EQ(cleave_run("plan" + asked + ":8").status, 0);
  const Outcome fit = cleave_run("fit --seconds 10000" + asked);
  EXPECT_EQ(fit.status, 3);
  EXPECT_NE(fit.out.find("--cluster " + file + ":4: 4 devices instead of 2"), std::string::npos)
      << fit.out;
  EXPECT_EQ(cleave_run("plan --objective gpus gpt2:tiny --cluster " + file).status, 0);
  std::filesystem::remove(file);
}

// As many more as the file's links join: nodes of GPUs where there is a link between nodes.
TEST(Words, MoreDevicesOfAFileAreThoseThatItsLinksJoin) {
  const auto spec = [](const std::string& text, int64_t times) {
    const auto more = larger(cluster_from_toml(text, "box.toml"), times);
    return more ? more->spec : "";
  };
  const std::string preset = "kind = \"h100\"\n";
  EXPECT_EQ(spec(preset, 4), "box.toml:4");
  EXPECT_EQ(spec(preset, 8), "box.toml:8");
  EXPECT_EQ(spec(preset, 32), "box.toml:4x8");
  EXPECT_EQ(spec(preset + "[[node]]\ncount = 2\ndevices = 4\n", 2), "box.toml:4x4");
  const std::string link = "[[link]]\nbandwidth = 1e9\n";
  EXPECT_EQ(spec(preset + link, 8), "box.toml:8");
  EXPECT_EQ(spec(preset + link, 16), "");
  EXPECT_EQ(spec(preset + link + link + "devices = 32\n", 32), "box.toml:4x8");
  EXPECT_EQ(spec(preset + link + link + "devices = 32\n", 64), "");
  EXPECT_EQ(spec("kind = \"cpu\"\n" + link, 16), "box.toml:16");
}

// fp16 needs more than a plan says, and nobody asked for it.
TEST(Words, ThePrecisionThatWasNotAskedForIsSaid) {
  const std::string file =
      (std::filesystem::path(::testing::TempDir()) / "cli_words_test_f16.toml").string();
  write_file(file,
             "[device]\nmemory = 1e10\nbandwidth = 1e12\nvector_flops = 1e12\n[device.f32]\npeak = "
             "1e12\n[device.f16]\npeak = 8e12\n[[link]]\nbandwidth = 1e10\n");
  const std::string note =
      "precision fp16, as no --precision is given: products at 8 TFLOP/s, in bf16 at 1, in fp32 at "
      "1\n";
  for (const char* command : {"plan", "fit"}) {
    const std::string line = std::string(command) + " gpt2:tiny --cluster ";
    EXPECT_NE(cleave_run(line + file).out.find(note), std::string::npos) << command;
    EXPECT_EQ(cleave_run(line + file + " --precision fp16").out.find("precision fp16,"),
              std::string::npos);
    EXPECT_NE(cleave_run(line + "v100").out.find("precision fp16, as no"), std::string::npos);
    EXPECT_EQ(cleave_run(line + "h100").out.find("as no --precision"), std::string::npos);
  }
  std::filesystem::remove(file);
}

// What MODEL's help says of a wrong name.
TEST(Words, WrongModelsListWhatHelpSays) {
  EXPECT_NE(cleave_run("plan --help").out.find("wrong family lists"), std::string::npos);
  const std::string family = cleave_run("trace gpt9:tiny").err,
                    size = cleave_run("trace gpt2:x").err;
  for (const char* model : {"gpt2:124m", "llama:8b", "mlp:tiny"}) {
    EXPECT_NE(family.find(model), std::string::npos) << family;
  }
  EXPECT_NE(size.find("gpt2:124m"), std::string::npos) << size;
  EXPECT_EQ(size.find("llama:8b"), std::string::npos) << size;
}

TEST(Words, CalibratesHelpNamesTheGpu) {
  EXPECT_NE(cleave_run("calibrate --help").out.find("h100"), std::string::npos);
}

// On a larger cluster another mesh was found, and the one that was asked for does not even divide.
TEST(Words, WhatFitsOnAnotherMeshIsSaid) {
  const Outcome o = cleave_run("plan gpt2:tiny --cluster cpu:2 --memory 3500KB --mesh tp=2");
  std::smatch match;
  ASSERT_TRUE(
      std::regex_search(o.err, match, std::regex("it fits on (cpu:[0-9]+) without --mesh;")))
      << o.err;
  EXPECT_EQ(cleave_run("plan gpt2:tiny --memory 3500KB --cluster " + match[1].str()).status, 0);
}

TEST(Words, ARegularListOfLayersIsShortened) {
  const Outcome o = cleave_run(
      "plan gpt2:tiny --set layers=10 hidden=32 --cluster cpu:2 --pin pp=2 chunks=5 micro=2 "
      "schedule=interleaved recompute=full");
  ASSERT_EQ(o.status, 0) << o.err;
  EXPECT_NE(o.out.find("h 0, 2, … 8, "), std::string::npos) << o.out;
  EXPECT_NE(o.out.find("held all step"), std::string::npos) << o.out;
  EXPECT_TRUE(std::regex_search(o.out, std::regex("s a step on stage [01], the busiest"))) << o.out;
}

TEST(Words, NothingIsCommunicatedByOneDevice) {
  const Outcome o = cleave_run("plan gpt2:tiny --cluster cpu:1");
  EXPECT_EQ(o.status, 0);
  EXPECT_NE(o.out.find(" computing\n"), std::string::npos) << o.out;
  EXPECT_EQ(o.out.find("communicating"), std::string::npos) << o.out;
}

TEST(Words, NamesOfOpenAxesAreNoPins) {
  const std::string hint = "they are no pins";
  const std::string plan = "plan gpt2:tiny --cluster cpu:4";
  EXPECT_NE(cleave_run(plan + " --mesh 2x2").out.find(hint), std::string::npos);
  EXPECT_EQ(cleave_run(plan + " --mesh dp=2,tp=2").out.find(hint), std::string::npos);
}

TEST(Wrapped, KeepsEveryPart) {
  using Lines = std::vector<std::string>;
  EXPECT_EQ(wrapped("a part of attn, mlp; ln", 14), (Lines{"a part of attn,", "mlp; ln"}));
  EXPECT_EQ(wrapped("embed", 3), Lines{"embed"});
  EXPECT_EQ(wrapped("on dp=4,tp=2; or", 4), (Lines{"on dp=4,tp=2;", "or"}));
  EXPECT_EQ(wrapped("", 3), Lines{});
  EXPECT_EQ(wrapped({"dp 4", "tp 2"}, " × ", 11), Lines{"dp 4 × tp 2"});  // characters, not bytes
}

}  // namespace
}  // namespace cleave
