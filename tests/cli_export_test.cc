// Plans in the words of other programs: what is written parses, says what the plan says, and what
// cannot be said is refused with its reason.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "cli/format.h"
#include "tests/cli_run.h"

namespace cleave {
namespace {

using testing::cleave_run;
using testing::one_line;
using testing::Outcome;
using Json = nlohmann::ordered_json;
namespace fs = std::filesystem;

class Export : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = fs::temp_directory_path() / fmt::format("cleave_export_{}", ::getpid());
    fs::create_directories(folder_);
    made(
        "llama:8b --set layers=2 sequence=2048 --cluster 8xh100 --mesh dp=2,tp=4 --batch 16 "
        "--accumulate 2",
        "both");
    made(
        "llama:8b --set layers=2 sequence=2048 --cluster 4xh100 --mesh tp=4 --accumulate 1 --pin "
        "zero=0",
        "tp");
    made(
        "llama:8b --set layers=2 sequence=2048 --cluster 4xh100 --mesh tp=4 --accumulate 1 --pin "
        "zero=0 "
        "embed.embedding:tp=replicate embed:tp=replicate matmul:tp=replicate head:tp=replicate",
        "products");
    made(
        "llama:8b --set layers=2 sequence=2048 --cluster 8xh100 --mesh dp=8 --pin zero=3 "
        "--accumulate 1",
        "zero3");
    made(
        "llama:8b --set layers=2 sequence=2048 --cluster 8xh100 --mesh dp=8 --pin zero=1 "
        "--accumulate 1",
        "zero1");
    made("gpt2:124m --set layers=2 --cluster 4xh100 --mesh tp=4 --accumulate 1", "fused");
    made("gpt2:124m --set layers=2 --cluster 2xv100 --mesh dp=2 --pin zero=1", "v100");
    made(
        "gpt2:124m --set layers=4 --cluster 4xh100 --pin pp=2 dp=2 micro=4 schedule=1f1b "
        "recompute=none zero=1",
        "stages");
    made(
        "mixtral:8x7b --set layers=2 sequence=1024 --batch 8 --accumulate 1 --cluster 8xh100 "
        "--mesh "
        "dp=2,ep=4 --pin zero=3 embed.embedding:ep=shard(0) matmul:ep=shard(0)",
        "experts");
    made("llama:8b --set layers=2 sequence=2048 --forward --cluster 4xh100", "forward");
    const std::string small =
        "gpt2:124m --set layers=4 --cluster 4xh100 --accumulate 1 --pin zero=1 ";
    made(small + "dp=4 recompute=full", "full");
    made(small + "dp=4 recompute=selective", "selective");
    made(small + "dp=4 h.1.mlp=recompute", "one");
    made(
        "gpt2:124m --set layers=5 --cluster 2xh100 --pin pp=2 micro=4 schedule=1f1b recompute=none",
        "uneven");
    const std::string halves =
        "gpt2:124m --set layers=4 --cluster 4xh100 --accumulate 1 --moments bf16 --pin ";
    made(halves + "zero=1 dp=4 recompute=none", "halves");
    made(halves + "zero=0 dp=2 tp=2 recompute=none", "halves_whole");
    made(halves + "zero=1 dp=4 recompute=none --optimizer sgd", "halves_sgd");
    made("gpt2:tiny --cluster cpu:1 --moments bf16", "halves_one");
  }
  static void TearDownTestSuite() { fs::remove_all(folder_); }

  static void made(const std::string& line, const std::string& name) {
    const Outcome o = cleave_run("plan " + line + " -o " + file(name));
    EXPECT_EQ(o.status, 0) << line << ": " << o.err;
  }
  static std::string file(const std::string& name) { return (folder_ / (name + ".json")).string(); }

  static Outcome exported(const std::string& name, const std::string& to) {
    return cleave_run("export " + file(name) + " --to " + to);
  }
  static std::string text(const std::string& name, const std::string& to) {
    const Outcome o = exported(name, to);
    EXPECT_EQ(o.status, 0) << name << " to " << to << ": " << o.err;
    return o.out;
  }
  static void refused(const std::string& name, const std::string& to, const std::string& says) {
    const Outcome o = exported(name, to);
    EXPECT_EQ(o.status, 1) << name << " to " << to;
    EXPECT_TRUE(one_line(o.err)) << o.err;
    EXPECT_TRUE(o.out.empty()) << o.out;
    EXPECT_NE(o.err.find(says), std::string::npos) << o.err;
  }

  static inline fs::path folder_;
};

// "--name value" a line.
std::set<std::string> flags(const std::string& text) {
  std::set<std::string> all;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    EXPECT_TRUE(line.starts_with("--")) << line;
    all.insert(line);
  }
  return all;
}

// Where the optimizer's moments are named they are in bf16 too, or it is refused; elsewhere it is
// said that they are not.
TEST_F(Export, MomentsInBf16) {
  const Outcome o = exported("halves", "megatron");
  EXPECT_EQ(o.status, 0) << o.err;
  const auto f = flags(o.out);
  for (const char* flag : {"--use-distributed-optimizer", "--use-precision-aware-optimizer",
                           "--exp-avg-dtype bf16", "--exp-avg-sq-dtype bf16"}) {
    EXPECT_TRUE(f.contains(flag)) << flag;
  }
  EXPECT_NE(o.err.find("rounded to the nearest there"), std::string::npos) << o.err;
  EXPECT_TRUE(flags(text("halves_one", "megatron")).contains("--use-distributed-optimizer"));
  EXPECT_FALSE(flags(text("zero1", "megatron")).contains("--exp-avg-dtype bf16"));
  refused("halves_whole", "megatron", "moments in bf16 go with --use-distributed-optimizer");
  refused("halves_sgd", "megatron", "only Adam keeps moments in bf16 there");
  refused("halves", "deepspeed", "plan again without --moments bf16");
  EXPECT_NE(text("halves", "dtensor").find("rounded stochastically"), std::string::npos);
}

TEST_F(Export, Megatron) {
  const auto f = flags(text("both", "megatron"));
  EXPECT_TRUE(f.contains("--tensor-model-parallel-size 4"));
  EXPECT_TRUE(f.contains("--pipeline-model-parallel-size 1"));
  EXPECT_TRUE(f.contains("--micro-batch-size 8"));
  EXPECT_TRUE(f.contains("--global-batch-size 32"));
  EXPECT_TRUE(f.contains("--bf16"));
  const auto z = flags(text("zero3", "megatron"));
  EXPECT_TRUE(z.contains("--data-parallel-sharding-strategy optim_grads_params"));
  EXPECT_TRUE(z.contains("--use-megatron-fsdp"));
  EXPECT_TRUE(flags(text("zero1", "megatron")).contains("--use-distributed-optimizer"));
  // Ranks among which experts are split are ranks of the data there.
  const auto e = flags(text("experts", "megatron"));
  EXPECT_TRUE(e.contains("--expert-model-parallel-size 4"));
  EXPECT_TRUE(e.contains("--micro-batch-size 1"));
  EXPECT_TRUE(e.contains("--global-batch-size 8"));
  // Experts that are split are no ZeRO.
  made(
      "deepseek:tiny --cluster cpu:4 --mesh ep=4 --pin layers.*.mlp.gate:ep=replicate "
      "layers.*.mlp.up:ep=replicate layers.*.mlp.proj:ep=replicate",
      "ep");
  const auto ep = flags(text("ep", "megatron"));
  EXPECT_TRUE(ep.contains("--expert-model-parallel-size 4"));
  EXPECT_FALSE(ep.contains("--use-megatron-fsdp"));
  const auto s = flags(text("stages", "megatron"));
  EXPECT_TRUE(s.contains("--pipeline-model-parallel-size 2"));
  EXPECT_TRUE(s.contains("--micro-batch-size 1"));
  EXPECT_TRUE(s.contains("--global-batch-size 8"));
}

TEST_F(Export, DTensorScriptsParse) {
  if (std::system("python3 -c 'import ast' >/dev/null 2>&1") != 0) GTEST_SKIP() << "no python3";
  for (const char* name : {"both", "tp", "zero3", "zero1"}) {
    const std::string path = file(name) + ".py";
    const Outcome o = cleave_run("export " + file(name) + " --to dtensor -o " + path);
    ASSERT_EQ(o.status, 0) << o.err;
    // It parses, defines parallelize, and imports every name that it calls.
    const std::string check =
        "import ast,sys,builtins\n"
        "t=ast.parse(open(sys.argv[1]).read())\n"
        "known={a.name for n in ast.walk(t) if isinstance(n,ast.ImportFrom) for a in n.names}\n"
        "known|={n.name for n in ast.walk(t) if isinstance(n,ast.FunctionDef)}\n"
        "called={n.func.id for n in ast.walk(t) if isinstance(n,ast.Call) and "
        "isinstance(n.func,ast.Name)}\n"
        "lost=called-known-set(dir(builtins))\n"
        "unused=known-called-{'parallelize'}\n"
        "assert 'parallelize' in known\n"
        "assert not lost, lost\n"
        "assert not unused, unused\n";
    write_file(folder_ / "check.py", check);
    const std::string command =
        fmt::format("python3 {} {} 2>&1", (folder_ / "check.py").string(), path);
    EXPECT_EQ(std::system(command.c_str()), 0) << read_file(path);
  }
  const std::string script = text("tp", "dtensor");
  EXPECT_NE(script.find("\"layers.*.mlp.gate\": ColwiseParallel("), std::string::npos) << script;
  EXPECT_NE(script.find("\"layers.*.mlp.proj\": RowwiseParallel("), std::string::npos) << script;
  EXPECT_NE(text("zero3", "dtensor").find("fully_shard(model"), std::string::npos);
}

TEST_F(Export, HuggingFace) {
  const Json plan = Json::parse(text("tp", "hf-tp"));
  EXPECT_EQ(plan["layers.*.attn.q"], "colwise");
  EXPECT_EQ(plan["layers.*.attn.proj"], "rowwise");
  EXPECT_EQ(plan["layers.*.mlp.up"], "colwise");
  EXPECT_EQ(plan["layers.*.mlp.proj"], "rowwise");
  EXPECT_FALSE(plan.contains("layers.*.attn_norm"));
  // What is the same computation, and not in the text, is a note.
  const Outcome o = exported("tp", "hf-tp");
  EXPECT_TRUE(one_line(o.err)) << o.err;
  EXPECT_NE(o.err.find("in the plan each has a part of the sequence"), std::string::npos) << o.err;
}

// V100s have no bf16.
TEST_F(Export, InTheTypeThatTheDevicesCompute) {
  const auto f = flags(text("v100", "megatron"));
  EXPECT_TRUE(f.contains("--fp16"));
  EXPECT_FALSE(f.contains("--bf16"));
  const Json zero = Json::parse(text("v100", "deepspeed"));
  EXPECT_EQ(zero["fp16"]["enabled"], true);
  EXPECT_FALSE(zero.contains("bf16"));
  const Outcome explained = cleave_run("explain " + file("v100"));
  EXPECT_NE(explained.out.find(", fp16, adamw"), std::string::npos) << explained.out;
}

TEST_F(Export, DeepSpeed) {
  const Json zero = Json::parse(text("zero3", "deepspeed"));
  EXPECT_EQ(zero["zero_optimization"]["stage"], 3);
  EXPECT_EQ(zero["train_batch_size"], zero["train_micro_batch_size_per_gpu"].get<int>() * 8 *
                                          zero["gradient_accumulation_steps"].get<int>());
  EXPECT_EQ(zero["bf16"]["enabled"], true);
  EXPECT_FALSE(zero.contains("tensor_parallel"));
  const Json tp = Json::parse(text("products", "deepspeed"));
  EXPECT_EQ(tp["tensor_parallel"]["autotp_size"], 4);
  std::set<std::string> rows, columns;
  for (const Json& spec : tp["tensor_parallel"]["partition_config"]["layer_specs"]) {
    (spec["partition_type"] == "row" ? rows : columns).insert(spec["patterns"][0]);
  }
  EXPECT_TRUE(rows.contains("^layers\\.\\d+\\.mlp\\.proj\\.weight$"));
  EXPECT_TRUE(columns.contains("^layers\\.\\d+\\.mlp\\.gate\\.weight$"));
}

TEST_F(Export, MegatronsRecomputation) {
  EXPECT_NE(text("full", "megatron").find("--recompute-granularity full\n"), std::string::npos);
  EXPECT_NE(text("selective", "megatron").find("--recompute-granularity selective\n"),
            std::string::npos);
  EXPECT_EQ(text("zero1", "megatron").find("--recompute"), std::string::npos);
}

TEST_F(Export, WhatCannotBeSaidIsRefused) {
  refused("one", "megatron",
          "attention (recompute=selective); plan again with --pin recompute=full, without "
          "'h.1.mlp=recompute'");
  refused("full", "deepspeed", "written in the model there");
  refused("uneven", "megatron", "its chunks have as many layers each, the plan's");
  refused("stages", "hf-tp", "a tp_plan has no stages");
  refused("stages", "dtensor", "parallelize_module has no stages");
  refused("stages", "deepspeed", "PipelineModule");
  refused("both", "hf-tp", "says nothing of the dp 2");
  refused("zero1", "hf-tp", "splits no weights over a tp axis");
  refused("fused", "hf-tp", "3 pieces are cut one by one");
  refused("fused", "dtensor", "3 pieces are cut one by one");
  refused("tp", "deepspeed", "'embed:tp=replicate'");
  refused("forward", "megatron", "a plan of the forward alone");
}

}  // namespace
}  // namespace cleave
