// What a refused export advises works: the same line with the options that it names gives a plan
// that can be exported.
#include <fmt/ranges.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <regex>
#include <set>
#include <sstream>

#include "tests/cli_run.h"

namespace cleave {
namespace {

using testing::cleave_run;
using testing::one_line;
using testing::Outcome;
namespace fs = std::filesystem;
using Words = std::vector<std::string>;

Words words_of(const std::string& line) {
  Words words;
  std::istringstream in(line);
  for (std::string w; in >> w;) {
    std::erase(w, '\'');
    while (!w.empty() && w.back() == ',') w.pop_back();
    words.push_back(w);
  }
  return words;
}

// The plan's line with what is advised, as a reader follows it: an option takes the place of the
// same one, pins are added, and those that are to be left out are left out.
std::string followed(const std::string& line, std::string advice) {
  std::string without;
  if (advice.starts_with("without ")) advice = ", " + advice;
  if (const size_t at = advice.find(", without "); at != std::string::npos) {
    without = advice.substr(at + 10), advice.resize(at);
  }
  if (advice.starts_with("with ")) advice.erase(0, 5);
  Words options, pins;
  const auto read = [&](const Words& words) {
    for (size_t i = 0; i < words.size();) {
      const std::string option = words[i++];
      EXPECT_TRUE(option.starts_with("--")) << option << " in " << advice;
      Words values;
      while (i < words.size() && !words[i].starts_with("--")) values.push_back(words[i++]);
      if (option == "--pin") {
        pins.insert(pins.end(), values.begin(), values.end());
        continue;
      }
      std::erase_if(options, [&](const std::string& o) { return o.starts_with(option + " "); });
      options.push_back(fmt::format("{} {}", option, fmt::join(values, " ")));
    }
  };
  const size_t first = line.find(" --");
  read(words_of(line.substr(first)));
  for (const std::string& pin : words_of(without)) {
    EXPECT_EQ(std::count(pins.begin(), pins.end(), pin), 1) << pin << " in " << line;
    std::erase(pins, pin);
  }
  read(words_of(advice));
  return fmt::format("{} {}{}{}", line.substr(0, first), fmt::join(options, " "),
                     pins.empty() ? "" : " --pin ", fmt::join(pins, " "));
}

class ExportAdvice : public ::testing::Test {
 protected:
  void SetUp() override {
    file_ = fs::temp_directory_path() / fmt::format("advice_{}", ::getpid());
  }
  void TearDown() override { fs::remove(file_); }

  Outcome exported(const std::string& line, const std::string& to) {
    fs::remove(file_);
    const Outcome o = cleave_run("plan " + line + " -o " + file_.string());
    EXPECT_EQ(o.status, 0) << line << ": " << o.err << o.out;
    return cleave_run("export " + file_.string() + " --to " + to);
  }

  // It is refused because of this, and what it advises works.
  void works(const std::string& line, const std::string& to, const std::string& because) {
    SCOPED_TRACE(line + " --to " + to);
    const Outcome o = exported(line, to);
    EXPECT_EQ(o.status, 1);
    EXPECT_TRUE(o.out.empty()) << o.out;
    EXPECT_TRUE(one_line(o.err)) << o.err;
    EXPECT_NE(o.err.find(because), std::string::npos) << o.err;
    std::smatch match;
    ASSERT_TRUE(std::regex_search(o.err, match, std::regex("plan again (with.*)\n"))) << o.err;
    const std::string again = followed(line, match[1]);
    SCOPED_TRACE(match[1].str());
    const Outcome second = exported(again, to);
    EXPECT_EQ(second.status, 0) << again << ": " << second.err;
    EXPECT_FALSE(second.out.empty());
  }

  fs::path file_;
};

const std::string kLlama = "llama:8b --set layers=2 sequence=1024 --batch 8 ";
const std::string kLlamaTied = "llama:1b --set layers=2 sequence=1024 --batch 8 ";
const std::string kGpt = "gpt2:124m --set layers=2 ";
const std::string kMixtral = "mixtral:8x7b --set layers=2 sequence=1024 --batch 8 ";

TEST_F(ExportAdvice, AxesThatDoOtherWorkThanTheirName) {
  const std::string searched = "llama:8b --set layers=4 --cluster 8xh100";
  for (const char* to : {"megatron", "dtensor", "deepspeed"}) {
    works(searched, to, "embed.embedding is split by width over dp");
  }
  works(kMixtral + "--cluster 8xh100 --mesh ep=8", "megatron", "over ep");
}

// 25 heads.
TEST_F(ExportAdvice, HeadsThatDoNotDivide) {
  const std::string line =
      "gpt2:1558m --set layers=2 --cluster 8xa100 --batch 64 --mesh dp=4,tp=2 --pin pp=1 zero=1";
  for (const char* to : {"megatron", "dtensor", "deepspeed"}) works(line, to, "not split by heads");
  works("gpt2:1558m --set layers=2 --cluster 2xh100 --mesh tp=2", "hf-tp", "not split by heads");
  works(kLlama + "--cluster 16xh100 --mesh tp=16", "megatron", "not split by heads");
  works(kLlama + "--cluster 16xh100 --mesh tp=16", "hf-tp", "not split by heads");
}

TEST_F(ExportAdvice, WholeTables) {
  works(kLlama + "--cluster 8xh100 --mesh tp=8 --pin embed:tp=replicate", "megatron",
        "embed is whole on each rank");
  works(kLlama + "--cluster 8xh100 --mesh tp=8 --pin embed.embedding:tp=replicate", "megatron",
        "embed is whole on each rank");
  works(kLlamaTied + "--cluster 4xh100 --mesh tp=4 --pin embed.embedding:tp=replicate", "megatron",
        "embed is whole on each rank");
  works(kLlamaTied + "--cluster 4xh100 --mesh tp=4 --pin embed.embedding:tp=replicate", "hf-tp",
        "and split by columns where it is a product's weight");
  works("bert:base --set layers=2 --cluster 4xh100 --mesh tp=4 --pin wte.embedding:tp=replicate",
        "megatron", "wte is whole on each rank");
  works(kLlama + "--cluster 4xh100 --mesh tp=4 --pin embed:tp=replicate", "dtensor",
        "reads split along the sequence over tp what is made whole");
}

TEST_F(ExportAdvice, WholeProducts) {
  const std::string whole =
      kLlama +
      "--cluster 4xh100 --mesh tp=4 --pin layers.*.attn.q.matmul:tp=replicate "
      "layers.*.attn.k.matmul:tp=replicate layers.*.attn.v.matmul:tp=replicate "
      "layers.*.attn.attention:tp=replicate layers.*.attn.proj.matmul:tp=replicate";
  works(whole, "megatron", "layers.0.attn.k is whole on each rank");
  works(whole, "dtensor", "reads split along the sequence over tp what is made whole");
  works(whole, "hf-tp", "is used whole on each rank of tp, and kept in parts");
  works(kGpt + "--cluster 4xh100", "megatron", "h.0.attn.proj is whole on each rank");
  works(kGpt + "--cluster 4xh100", "deepspeed", "there a part of the batch");
}

TEST_F(ExportAdvice, VocabularyInParts) {
  works(kLlama + "--cluster 4xh100 --mesh tp=4", "deepspeed", "AutoTP splits products");
  works(kLlamaTied + "--cluster 4xh100 --mesh tp=4", "deepspeed", "AutoTP does not gather logits");
  works("bert:base --set layers=2 --cluster 4xh100 --mesh tp=4", "deepspeed",
        "head is split like what it is added to");
}

TEST_F(ExportAdvice, Pieces) {
  works(kGpt + "--cluster 4xh100 --mesh tp=4", "dtensor", "3 pieces are cut one by one");
  works(kGpt + "--cluster 4xh100 --mesh tp=4", "hf-tp", "3 pieces are cut one by one");
}

TEST_F(ExportAdvice, Experts) {
  const std::string line = kMixtral + "--cluster 8xh100 --mesh dp=4,tp=2";
  works(line, "megatron", "--expert-model-parallel-size does that");
  works(line, "dtensor", "has several products in one weight");
  works(kMixtral + "--cluster 4xh100 --mesh tp=4", "hf-tp", "has several products in one weight");
  works(kMixtral + "--cluster 8xh100 --mesh dp=4,ep=2", "deepspeed",
        "no words for expert parallelism over 2 ranks");
}

TEST_F(ExportAdvice, Zero) {
  for (const char* to : {"megatron", "deepspeed"}) {
    works(kGpt + "--cluster 4xh100 --mesh dp=2,tp=2", to,
          to[0] == 'm' ? "all or none" : "ZeRO 0 to 2");
  }
  works(kLlama +
            "--cluster 8xh100 --mesh dp=2,tp=4 --pin zero=3 embed.embedding:tp=replicate "
            "embed:tp=replicate head:tp=replicate matmul:tp=replicate",
        "deepspeed", "goes with ZeRO 0 to 2");
  works(kLlama + "--cluster 4xh100 --mesh dp=4 --pin zero=1", "hf-tp", "over a tp axis");
  works(kGpt + "--cluster 1xh100", "hf-tp", "over a tp axis");
  works(kLlama + "--cluster 4xh100 --pin dp=4 zero=1 pp=1", "hf-tp", "over a tp axis");
  // Weights that a pin keeps in parts, below half of all.
  const std::string table = "gpt2:124m --set layers=12 --cluster 4xh100 --mesh dp=4 --pin ";
  for (const char* to : {"megatron", "deepspeed", "dtensor"}) {
    works(table + "wte:dp=shard(0)", to, "31 % of the weights are in parts");
  }
  works("deepseek:tiny --cluster cpu:4 --mesh ep=4", "megatron", "of the weights are in parts");
  works(kLlama + "--cluster 4xh100 --mesh dp=2,tp=2", "hf-tp", "says nothing of the dp 2");
}

TEST_F(ExportAdvice, NothingInParts) {
  const std::string line = "mixtral:tiny --cluster 4xh100 --mesh dp=2,tp=2 --batch 1024";
  for (const char* to : {"megatron", "dtensor", "deepspeed"}) {
    works(line, to, "no weight is in parts over tp, so that its 2 ranks repeat all work");
  }
}

TEST_F(ExportAdvice, StagesContextAndRecomputation) {
  const std::string gpt = "gpt2:124m --cluster 4xh100 ";
  const std::string uneven =
      "gpt2:124m --set layers=5 --cluster 2xh100 --pin pp=2 micro=4 schedule=1f1b recompute=none";
  works(uneven, "megatron", "its chunks have as many layers each");
  works(gpt + "--set layers=6 --pin pp=2 dp=2 chunks=2 micro=4 recompute=none zero=1", "megatron",
        "its chunks have as many layers each");
  works(gpt + "--set layers=4 --pin pp=2 dp=2 micro=4 schedule=zero-bubble recompute=none zero=1",
        "megatron", "no flag for the zero-bubble schedule");
  works(gpt + "--set layers=4 --pin pp=2 dp=2 micro=4 schedule=1f1b recompute=none zero=3",
        "megatron", "do not go with pipeline stages");
  works(gpt + "--set layers=4 --pin pp=2 dp=2 micro=4 schedule=1f1b recompute=none zero=1",
        "dtensor", "parallelize_module has no stages");
  works(gpt + "--set layers=4 --pin zero=1 dp=4 h.1.mlp=recompute", "megatron",
        "recompute=selective");
  works(gpt + "--set layers=4 --pin zero=1 dp=4 h.1.mlp=recompute", "dtensor",
        "--pin recompute=none");
  works(kLlama + "--cluster 8xh100 --mesh cp=2,tp=4", "dtensor",
        "no words for context parallelism over 2 ranks");
}

// The plan's own pins that would be in the way are named.
TEST_F(ExportAdvice, PinsInTheWay) {
  const std::string gpt = "gpt2:124m --cluster 4xh100 ";
  const std::string stages = gpt + "--set layers=6 --pin pp=2 dp=2 schedule=1f1b recompute=none ";
  works(stages + "zero=1 micro=4 h.2=cut", "megatron", "as many layers each, the plan's 2, 4");
  works(stages + "zero=1 micro=4 h.1=cut", "dtensor", "parallelize_module has no stages");
  works(stages + "zero=1 micro=4 h.0.*=stage:0 h.4.*=stage:1 h.2=cut", "megatron",
        "as many layers each, the plan's 2, 4");
  works(stages + "zero=1 micro=4 h.0.*=stage:0", "deepspeed", "PipelineModule");
  works(gpt + "--set layers=4 --pin zero=1 dp=4 h.1.mlp=recompute h.2.mlp.*=keep", "megatron",
        "chosen one by one");
  works(kLlama + "--cluster 8xh100 --pin pp=1 tp=4 cp=2", "dtensor", "no words for context");
  works(kLlama + "--cluster 8xh100 --pin pp=1 dp=2 tp=4 zero=1", "hf-tp", "nothing of the dp 2");
}

// The mesh is that of one stage.
TEST_F(ExportAdvice, AxesOfStages) {
  works("mixtral:tiny --cluster 4xh100 --mesh 2 --pin pp=2 micro=2 schedule=1f1b", "megatron",
        "axis rep only repeats work on 2 devices");
  works(
      "llama:8b --set layers=4 sequence=1024 --cluster 8xh100 --batch 8 --mesh 2x2 --pin pp=2 "
      "micro=4 schedule=1f1b layers.2=cut layers.*.mlp.up.matmul:a0=shard(2) "
      "layers.*.attn.q.matmul:a0=shard(2) layers.*.mlp.gate.matmul:a0=shard(2)",
      "megatron", "splits layers over two axes, tp and tp2");
}

// Layers that are split in different ways.
TEST_F(ExportAdvice, OneLayerOfSeveral) {
  const std::string whole =
      "embed.embedding:tp=replicate embed:tp=replicate matmul:tp=replicate head:tp=replicate ";
  const std::string other =
      "layers.1.mlp.up:tp=replicate layers.1.mlp.gate:tp=replicate layers.1.mlp.proj:tp=replicate "
      "layers.1.mlp.up.matmul:tp=replicate layers.1.mlp.gate.matmul:tp=replicate "
      "layers.1.mlp.proj.matmul:tp=replicate";
  for (const char* to : {"deepspeed", "hf-tp", "megatron"}) {
    works(kLlama + "--cluster 4xh100 --mesh tp=4 --pin " + whole + other, to, "layers.");
  }
}

// Batches that the advised ranks of data do not divide, of a step and of a micro-batch.
TEST_F(ExportAdvice, Batches) {
  works(kGpt + "--cluster 8xh100 --batch 6 --mesh dp=2,tp=4 --pin zero=1", "dtensor",
        "3 pieces are cut one by one");
  works("gpt2:1558m --set layers=2 --cluster 8xh100 --mesh dp=4,tp=2 --batch 12 --pin zero=1",
        "megatron", "not split by heads");
  works(
      "gpt2:1558m --set layers=2 --cluster 8xh100 --mesh dp=4,tp=2 --batch 4 --accumulate 3 "
      "--pin zero=1",
      "megatron", "not split by heads");
  works(
      "gpt2:1558m --set layers=2 --cluster 8xh100 --mesh dp=4,tp=2 --batch 12 --pin zero=1 "
      "micro=3",
      "megatron", "not split by heads");
  works(
      "gpt2:124m --set layers=4 --cluster 4xh100 --batch 6 --pin pp=2 dp=2 micro=3 "
      "schedule=1f1b recompute=none zero=1",
      "dtensor", "parallelize_module has no stages");
  works(
      "gpt2:124m --set layers=4 --cluster 4xh100 --batch 2 --accumulate 3 --pin pp=2 dp=2 "
      "schedule=1f1b recompute=none zero=1",
      "dtensor", "parallelize_module has no stages");
  works("mixtral:8x7b --set layers=2 sequence=1024 --batch 4 --cluster 8xh100 --mesh dp=2,tp=4",
        "megatron", "--expert-model-parallel-size does that");
}

// Where only fewer devices help.
TEST_F(ExportAdvice, WorkThatIsRepeated) {
  const Outcome o = exported("mixtral:tiny --cluster 4xh100 --mesh dp=2,tp=2", "dtensor");
  EXPECT_EQ(o.status, 1);
  EXPECT_NE(o.err.find("each of the 2 ranks of dp does all of"), std::string::npos) << o.err;
  EXPECT_NE(o.err.find("plan again for fewer devices"), std::string::npos) << o.err;
  EXPECT_EQ(exported("mixtral:tiny --cluster 1xh100", "dtensor").status, 0);
  works("mixtral:tiny --cluster 2xh100", "megatron", "only repeats work on 2 devices");
}

}  // namespace
}  // namespace cleave
