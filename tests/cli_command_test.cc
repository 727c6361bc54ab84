// The command as a user meets it: exit statuses, one-line mistakes, JSON for programs.
#include "cli/command.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>

#include "cli/format.h"
#include "graph/error.h"
#include "tests/cli_run.h"
#include "tracer/nn.h"

namespace cleave {
namespace {

using Json = nlohmann::ordered_json;
namespace fs = std::filesystem;
using testing::cleave_run;
using testing::one_line;
using testing::Outcome;

// A folder for one test's files, with a text to train on and a small plan.
class Command : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::path(::testing::TempDir()) /
              ::testing::UnitTest::GetInstance()->current_test_info()->name();
    fs::remove_all(folder_);
    fs::create_directories(folder_);
    std::string text;
    for (int i = 0; i < 400; ++i) text += fmt::format("{} times {} is {}. ", i, i, i * i);
    write_file(path("data.txt"), text);
  }
  void TearDown() override { fs::remove_all(folder_); }
  std::string path(const std::string& name) const { return (folder_ / name).string(); }

  // A plan of a model of two layers for two devices.
  std::string small_plan() const {
    const std::string file = path("plan.json");
    const Outcome o = cleave_run(
        "plan gpt2:tiny --set layers=2 --set hidden=32 --cluster cpu:2 --batch 4 -o " + file);
    EXPECT_EQ(o.status, 0) << o.err;
    return file;
  }

  fs::path folder_;
};

struct Mistake {
  const char* line;
  const char* says;  // part of the message
};

TEST_F(Command, MistakesAreOneLineThatSaysWhatToDo) {
  write_file(path("broken.json"), "{\"format\": \"cleave-plan\", ");
  write_file(path("other.json"), "{\"a\": 1}");
  write_file(path("broken.txt"), "graph x\n\nparam %0 w: f32[2\n");
  write_file(path("tiny.txt"), "ab");
  const std::vector<Mistake> mistakes = {
      {"", "name a command"},
      {"pln gpt2:tiny", "there is no command 'pln'"},
      {"--nonsense", "--nonsense"},
      {"plan gpt2:tiny --cluster cpu:4 --nonsense", "--nonsense"},
      {"plan --cluster cpu:4", "MODEL"},
      {"plan gpt2:tiny", "--cluster is required"},
      {"plan gpt2:huge --cluster cpu:4", "there are gpt2:tiny, gpt2:124m"},
      {"plan gpt2:tiny --cluster gpu:4", "unknown cluster 'gpu:4'"},
      {"plan gpt2:tiny --cluster cpu:0", "not a number of devices"},
      {"plan gpt2:tiny --cluster cpu:4 --mesh 3x2", "6 devices"},
      {"plan gpt2:tiny --cluster cpu:4 --mesh pp=4", "'pp=4' is not an axis"},
      {"plan gpt2:tiny --cluster cpu:4 --batch x", "--batch"},
      {"plan gpt2:tiny --cluster cpu:4 --batch -3", "--batch -3"},
      {"plan gpt2:tiny --cluster cpu:4 --batch 0", "write at least 1"},
      {"plan gpt2:tiny --cluster cpu:4 --mesh dp=4 --batch 6", "try --batch 8"},
      {"plan gpt2:tiny --cluster cpu:4 --memory lots", "--memory lots: write a size"},
      {"plan gpt2:tiny --cluster cpu:4 --memory -1GB", "write a size"},
      {"plan gpt2:tiny --cluster cpu:4 --precision fp8", "write fp32, fp64, bf16 or fp16"},
      {"plan gpt2:tiny --cluster cpu:4 --optimizer lion", "write adamw or sgd"},
      {"plan gpt2:tiny --cluster cpu:4 --set layers", "write key=value"},
      {"plan gpt2:tiny --cluster cpu:4 --set depth=3", "the keys are"},
      {"plan gpt2:tiny --cluster cpu:4 --set heads=3", "not a multiple of heads=3"},
      {"plan gpt2:tiny --cluster cpu:4 -o /nowhere/plan.json", "cannot write '/nowhere/plan.json'"},
      {"trace gpt2:tiny --set layers=0", "layers=0 must be at least 1"},
      {"trace gpt2:tiny extra", "extra"},
      {"regions", "MODEL"},
      {"view gpt2:tiny", "--out"},
      {"view gpt2:tiny -o picture.png", "name a .svg, .html or .dot file"},
      {"view gpt2:124m --level raw -o x.svg", "boxes at --level raw, and an SVG of more than 600"},
      {"view gpt2:tiny -o x.dot --level atoms", "write model, block or raw"},
      {"view missing.txt -o x.dot", "cannot read 'missing.txt'"},
      {"view @broken.txt -o x.dot", "line 3:"},
      {"view @broken.json -o x.dot", "broken.json"},
      {"view @other.json -o x.dot", "other.json"},
      {"view @other.json --batch 3 -o x.dot", "--batch does not change the file"},
      {"train gpt2:tiny --devices cpu:1", "--data is required"},
      {"train gpt2:tiny --devices cpu:1 --data missing.txt", "missing.txt"},
      {"train gpt2:tiny --devices cpu:1 --data @tiny.txt", "tiny.txt"},
      {"train gpt2:tiny --devices 8xh100 --data @data.txt", "trains on cpu:N or on one GPU"},
      {"train gpt2:tiny --devices cpu:1 --data @data.txt --steps 0", "--steps 0"},
      {"train gpt2:tiny --devices cpu:1 --data @data.txt --lr -1", "--lr -1"},
      {"train gpt2:tiny --devices cpu:1 --data @data.txt --lr 1e-3 --min-lr 1", "--min-lr 1"},
      {"train gpt2:tiny --devices cpu:1 --data @data.txt --warmup 999", "--warmup 999"},
      {"train gpt2:tiny --devices cpu:1 --data @data.txt --schedule line", "cosine or constant"},
      {"train gpt2:tiny --devices cpu:1 --data @data.txt --precision bf16", "fp32 and fp64"},
      {"train gpt2:tiny --devices cpu:1 --data @data.txt --seed -1", "--seed"},
      {"train @other.json --devices cpu:1 --data @data.txt", "not a plan"},
      {"train missing.json --devices cpu:1 --data @data.txt", "cannot read"},
  };
  for (const Mistake& m : mistakes) {
    std::string line = m.line;
    for (size_t at; (at = line.find('@')) != std::string::npos;) line.replace(at, 1, path(""));
    const Outcome o = cleave_run(line);
    EXPECT_EQ(o.status, 1) << line << "\n" << o.err;
    EXPECT_TRUE(o.err.starts_with("cleave: error: ")) << line << "\n" << o.err;
    EXPECT_TRUE(one_line(o.err)) << line << "\n" << o.err;
    EXPECT_NE(o.err.find(m.says), std::string::npos) << line << "\n" << o.err;
    EXPECT_EQ(o.out, "") << line;
  }
}

TEST_F(Command, WhatAPlanFixesIsNotSaidAgain) {
  const std::string plan = small_plan();
  const std::string train = "train " + plan + " --data " + path("data.txt") + " --steps 1 ";
  for (const char* option : {"--batch 4", "--set layers=2", "--precision fp32", "--mesh 2"}) {
    const Outcome o = cleave_run(train + "--devices cpu:2 " + option);
    EXPECT_EQ(o.status, 1);
    EXPECT_NE(o.err.find("fixed by the plan"), std::string::npos) << o.err;
  }
  const Outcome o = cleave_run(train + "--devices cpu:4");
  EXPECT_EQ(o.status, 1);
  EXPECT_NE(o.err.find("a plan for 2 devices (cpu:2), not for the 4"), std::string::npos) << o.err;
}

TEST_F(Command, HelpIsNoMistake) {
  for (const char* line :
       {"--help", "trace --help", "regions --help", "plan --help", "view --help", "train --help"}) {
    const Outcome o = cleave_run(line);
    EXPECT_EQ(o.status, 0) << line;
    EXPECT_NE(o.out.find("Usage"), std::string::npos) << line;
    EXPECT_EQ(o.err, "") << line;
  }
}

TEST_F(Command, WhatDoesNotFitSaysByHowMuch) {
  const Outcome o = cleave_run("plan gpt2:tiny --cluster cpu:4 --memory 1MB --json");
  EXPECT_EQ(o.status, 3);
  EXPECT_TRUE(one_line(o.err)) << o.err;
  EXPECT_TRUE(o.err.starts_with("cleave: does not fit: ")) << o.err;
  const Json json = Json::parse(o.out);
  EXPECT_FALSE(json.at("fits").get<bool>());
  EXPECT_GT(json.at("smallest_peak_bytes").get<double>(), json.at("limit_bytes").get<double>());
  EXPECT_EQ(json.at("limit_bytes").get<double>(), 1e6);
  // Without a limit the same plan is made.
  EXPECT_EQ(cleave_run("plan gpt2:tiny --cluster cpu:4 --memory none").status, 0);
}

TEST_F(Command, OurBugsAreStatusTwo) {
  const UserModel broken{
      "broken", {}, [](const ModelConfig&, const Tensor&, const Tensor&) -> Tensor {
        CLEAVE_ASSERT(false, "planted");
        return {};
      }};
  const Outcome o = cleave_run("regions", &broken);
  EXPECT_EQ(o.status, 2);
  EXPECT_TRUE(one_line(o.err)) << o.err;
  EXPECT_NE(o.err.find("planted"), std::string::npos) << o.err;
  EXPECT_NE(o.err.find("please report"), std::string::npos) << o.err;
}

TEST_F(Command, AUsersModelTakesThePlaceOfABuiltInOne) {
  UserModel model;
  model.name = "bigram";
  model.defaults.hidden = 16;
  model.defaults.vocab = 128;
  model.loss = [](const ModelConfig& c, const Tensor& tokens, const Tensor& targets) {
    const Embedding embed("embed", c.vocab, c.hidden);
    const Linear head("head", c.hidden, c.vocab);
    return cross_entropy(head(embed(tokens)), targets);
  };
  const Outcome text = cleave_run("trace", &model);
  EXPECT_EQ(text.status, 0) << text.err;
  EXPECT_NE(text.out.find("embed.weight: f32[128, 16]"), std::string::npos) << text.out;
  // Its own numbers can be changed, and a plan of it be trained.
  const std::string plan = path("mine.json");
  Outcome o = cleave_run("plan --set hidden=32 --cluster cpu:2 -o " + plan, &model);
  EXPECT_EQ(o.status, 0) << o.err;
  o = cleave_run(
      "train " + plan + " --devices cpu:2 --steps 8 --lr 0.01 --data " + path("data.txt"), &model);
  EXPECT_EQ(o.status, 0) << o.err;
  EXPECT_NE(o.out.find("step 8/8"), std::string::npos) << o.out;
  // The built-in ones are still there; without the user's model its plan is a mistake.
  EXPECT_EQ(cleave_run("regions mlp:tiny", &model).status, 0);
  EXPECT_EQ(cleave_run("train " + plan + " --devices cpu:2 --data " + path("data.txt")).status, 1);
}

TEST_F(Command, PlanJsonHasWhatProgramsRead) {
  const Outcome o = cleave_run("plan gpt2:tiny --cluster 2x4xh100 --batch 64 --json");
  ASSERT_EQ(o.status, 0) << o.err;
  EXPECT_EQ(o.err, "");
  const Json j = Json::parse(o.out);
  int64_t devices = 1;
  for (const auto& [axis, size] : j.at("mesh").items()) devices *= size.get<int64_t>();
  EXPECT_EQ(devices, 8);
  for (const char* f : {"stages", "virtual", "schedule", "micro_batches"}) {
    EXPECT_TRUE(j.at("pipeline").contains(f)) << f;
  }
  EXPECT_TRUE(j.at("zero").is_number_integer());
  EXPECT_TRUE(j.contains("recompute"));
  for (const char* f :
       {"step_seconds", "tokens_per_second", "mfu_full", "mfu_causal", "peak_bytes"}) {
    EXPECT_GT(j.at("predicted").at(f).get<double>(), 0) << f;
  }
  EXPECT_NEAR(j["predicted"]["tokens_per_second"].get<double>() *
                  j["predicted"]["step_seconds"].get<double>(),
              64 * 64, 1e-6);
  int64_t memory = 0;
  for (const auto& [part, bytes] : j.at("memory").items()) {
    EXPECT_GE(bytes.get<int64_t>(), 0) << part;
    memory += part == "peak" ? 0 : bytes.get<int64_t>();
  }
  EXPECT_EQ(memory, j["memory"].at("peak").get<int64_t>());
  EXPECT_EQ(memory, j["predicted"].at("peak_bytes").get<int64_t>());
  ASSERT_FALSE(j.at("collectives").empty());
  for (const Json& c : j["collectives"]) {
    EXPECT_TRUE(j["mesh"].contains(c.at("axis").get<std::string>()));
    EXPECT_GT(c.at("count").get<int64_t>(), 0);
    EXPECT_GT(c.at("bytes").get<double>(), 0);
    EXPECT_TRUE(c.at("kind").is_string() && c.at("where").is_string());
  }
  EXPECT_GE(j.at("certificate").at("cost").get<double>(),
            j["certificate"].at("lower_bound").get<double>());
  EXPECT_TRUE(j["certificate"].contains("gap"));
  EXPECT_GT(j.at("search").at("seconds").get<double>(), 0);
  EXPECT_GE(j["search"].at("candidates").size(), 2u);
  for (const Json& v : j.at("values")) {
    EXPECT_TRUE(v.contains("name") && v.contains("shape") && v.contains("placement"));
  }
  const Json& model = j.at("model");
  EXPECT_EQ(model.at("name"), "gpt2:tiny");
  EXPECT_EQ(model.at("batch"), 64);
  EXPECT_EQ(model.at("precision"), "bf16");  // what its devices are fast in
}

TEST_F(Command, RegionsJsonFindsTheInnerClassOfTheMlp) {
  const Outcome o = cleave_run("regions gpt2:tiny --json");
  ASSERT_EQ(o.status, 0) << o.err;
  const Json j = Json::parse(o.out);
  int found = 0;
  for (const Json& r : j.at("regions")) {
    if (r.at("class") != "h.0.mlp.fc.weight[0]") continue;
    ++found;
    EXPECT_EQ(r.at("size"), 512);
    EXPECT_EQ(r.at("count"), 4);
    EXPECT_GT(r.at("flops_share").get<double>(), 0.4);
    // It ends in one sum of the forward and one of the backward, of a residual stream each.
    std::map<std::string, double> bytes;
    for (const Json& s : r.at("sync_points")) {
      EXPECT_EQ(s.at("kind"), "reduction");
      EXPECT_TRUE(s.at("where").is_string());
      bytes[s.at("phase")] += s.at("bytes").get<double>() * s.at("count").get<double>();
    }
    EXPECT_EQ(bytes["forward"], 8 * 64 * 128 * 4);
    EXPECT_EQ(bytes["backward"], 8 * 64 * 128 * 4);
  }
  EXPECT_EQ(found, 1);
}

TEST_F(Command, RegionsAreCountedOnceAClass) {
  const Json j = Json::parse(cleave_run("regions mlp:tiny --json").out);
  for (const Json& r : j.at("regions")) {
    EXPECT_LE(r.at("flops_share").get<double>(), 1 + 1e-9) << r.dump();
  }
}

// One page: pictures of all levels that can be read, the reports, and no other file.
TEST_F(Command, AnHtmlPageNeedsNothingElse) {
  const Outcome o = cleave_run("view " + small_plan() + " -o " + path("p.html"));
  ASSERT_EQ(o.status, 0) << o.err;
  const std::string page = read_file(path("p.html"));
  const auto count = [&](const std::string& what) {
    int n = 0;
    for (size_t at = 0; (at = page.find(what, at)) != std::string::npos; ++at) ++n;
    return n;
  };
  EXPECT_EQ(count("</svg>"), 3);
  EXPECT_EQ(count("<section>"), 5);
  EXPECT_EQ(count("data-tab>"), 5);
  EXPECT_EQ(count("</pre>"), 2);
  EXPECT_EQ(count("id=\"p0e\""), 1);  // names are unique in the page
  for (const char* outside : {"<link", "src=", "@import", "href="}) EXPECT_EQ(count(outside), 0);
  // A text, a graph's JSON, and a graph that is too large for its raw level.
  EXPECT_EQ(cleave_run("view gpt2:124m -o " + path("q.html")).status, 0);
}

TEST_F(Command, TracesReadBack) {
  for (const char* name : {"graph.txt", "graph.json"}) {
    EXPECT_EQ(cleave_run("trace mlp:tiny -o " + path(name)).status, 0);
    EXPECT_EQ(cleave_run("view " + path(name) + " -o " + path("g.dot")).status, 0) << name;
    EXPECT_GT(fs::file_size(path("g.dot")), 1000u);
  }
  const Outcome o = cleave_run("trace mlp:tiny --forward");
  EXPECT_EQ(o.out.find("backward"), std::string::npos);
  EXPECT_NE(cleave_run("trace mlp:tiny").out.find("backward"), std::string::npos);
  EXPECT_EQ(read_file(path("graph.txt")), cleave_run("trace mlp:tiny").out);
}

// One device and a saved plan for two give the same curve; what is written can be read.
TEST_F(Command, ASavedPlanTrainsLikeOneDevice) {
  const std::string common = " --steps 6 --seed 3 --lr 0.003 --data " + path("data.txt");
  Outcome o =
      cleave_run("train gpt2:tiny --set layers=2 --set hidden=32 --batch 4 --devices cpu:1 " +
                 common + " --out " + path("one"));
  ASSERT_EQ(o.status, 0) << o.err;
  o = cleave_run("train " + small_plan() + " --devices cpu:2" + common + " --out " + path("two"));
  ASSERT_EQ(o.status, 0) << o.err;
  const auto losses = [&](const std::string& run) {
    std::vector<double> result;
    std::ifstream file(path(run + "/metrics.jsonl"));
    for (std::string line; std::getline(file, line);) {
      const Json j = Json::parse(line);
      if (j.contains("loss")) result.push_back(j["loss"].get<double>());
    }
    return result;
  };
  const std::vector<double> one = losses("one"), two = losses("two");
  ASSERT_EQ(one.size(), 6u);
  ASSERT_EQ(two.size(), 6u);
  for (size_t i = 0; i < one.size(); ++i) EXPECT_NEAR(one[i], two[i], 1e-4) << i;
  EXPECT_LT(one.back(), one.front());
  // The plan that was trained is beside the metrics, the same but for the time of the search.
  Json saved = Json::parse(read_file(path("plan.json")));
  Json trained = Json::parse(read_file(path("two/plan.json")));
  saved.erase("search");
  trained.erase("search");
  EXPECT_EQ(saved, trained);
}

// A plan file with any field gone, or of another type, is refused in one line or still a plan.
TEST_F(Command, DamagedPlansAreMistakesNotBugs) {
  const Json whole = Json::parse(read_file(small_plan()));
  const std::string file = path("damaged.json");
  int refused = 0, tried = 0;
  const auto attempt = [&](const Json& damaged, const std::string& how) {
    write_file(file, damaged.dump());
    const Outcome o = cleave_run("view " + file + " -o " + path("d.dot"));
    EXPECT_TRUE(o.status == 0 || o.status == 1) << how << "\n" << o.err;
    EXPECT_TRUE(o.status == 0 || one_line(o.err)) << how << "\n" << o.err;
    refused += o.status == 1;
    ++tried;
  };
  for (const char* part : {"", "model", "choices", "graph", "mesh"}) {
    const Json::json_pointer at(*part == 0 ? "" : std::string("/") + part);
    for (const auto& [key, value] : whole.at(at).items()) {
      Json damaged = whole;
      damaged.at(at).erase(key);
      attempt(damaged, fmt::format("{} without {}", part, key));
      for (const Json& other : {Json(), Json(7), Json(-1), Json("x"), Json::array({1, "y"}),
                                Json::object({{"z", Json()}})}) {
        damaged.at(at)[key] = other;
        attempt(damaged, fmt::format("{}: {} is {}", part, key, other.dump()));
      }
    }
  }
  EXPECT_GT(refused, tried / 3);
  Json other = whole;
  other["model"]["set"] = Json::array({"layers=3"});
  attempt(other, "another model");
  EXPECT_NE(cleave_run("view " + file + " -o " + path("d.dot")).err.find("another graph"),
            std::string::npos);
}

TEST(Format, Bytes) {
  EXPECT_EQ(bytes_text(0), "0 B");
  EXPECT_EQ(bytes_text(999), "999 B");
  EXPECT_EQ(bytes_text(1024), "1.00 KiB");
  EXPECT_EQ(bytes_text(12.6 * 1048576), "12.6 MiB");
  EXPECT_EQ(bytes_text(1023.9 * 1048576), "1.00 GiB");
  EXPECT_EQ(parse_bytes("60GB", "--memory"), 60e9);
  EXPECT_EQ(parse_bytes("1.5 GiB", "--memory"), 1.5 * 1073741824);
  for (const char* bad : {"", "GB", "12XB", "0", "-3GB", "nan", "inf", "1e999"}) {
    EXPECT_THROW(parse_bytes(bad, "--memory"), Error) << bad;
  }
}

TEST(Format, Tables) {
  Table table({"name", ">n", "rest"});
  table.add({"a", "1", "→ x"});
  table.add({"long", "200", ""});
  EXPECT_EQ(table.to_string(),
            "name    n  rest\n"
            "a       1  → x\n"
            "long  200\n");
}

}  // namespace
}  // namespace cleave
