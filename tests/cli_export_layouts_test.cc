// What is exported, read back, against the placements in the plan: of every weight where a product
// reads it, and of the activations at its edges.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <regex>
#include <set>

#include "cli/format.h"
#include "cli/plan_file.h"
#include "tests/cli_run.h"
#include "viz/names.h"

namespace cleave {
namespace {

using testing::cleave_run;
using testing::Outcome;
using Json = nlohmann::ordered_json;
namespace fs = std::filesystem;

// What the ranks of tp have of a module, by the dimensions of tensors: -1 all of it.
struct Split {
  int weight = -1;  // the dimension of the weight, where a product or a look-up reads it
  bool looks_up = false;
  bool norm = false;      // no product
  int in = -1, out = -1;  // of the activation before it is gathered, and of the result
  bool partial = false;   // the result is in partial sums
};

class Layouts {
 public:
  explicit Layouts(const LoadedPlan& loaded) : graph_(loaded.model.graph), plan_(loaded.plan) {
    for (size_t a = 0; a < plan_.mesh.axes.size(); ++a) {
      if (plan_.mesh.axes[a].name == "tp") axis_ = static_cast<int>(a);
    }
  }
  int64_t tensor() const {
    return axis_ < 0 ? 1 : plan_.mesh.axes[static_cast<size_t>(axis_)].size;
  }

  // By the folded name of the module; the first use of each weight.
  std::map<std::string, Split> modules() const {
    std::map<std::string, Split> result;
    for (size_t n = 0; n < graph_.nodes().size(); ++n) {
      const Node& node = graph_.nodes()[n];
      if (node.phase != Phase::kForward || node.inputs.size() < 2) continue;
      for (size_t i = 0; i < node.inputs.size(); ++i) {
        const std::string weight = weight_name(node.inputs[i]);
        if (!weight.ends_with(".weight")) continue;
        const std::string module = folded_name(weight.substr(0, weight.rfind('.')));
        Split s;
        s.weight = dim(node.inputs[i], plan_.nodes[n].input_forms[i]);
        s.norm = graph_.type(node.inputs[i]).shape.size() == 1;
        const Value data = node.inputs[i == 0 ? 1 : 0];
        s.looks_up = !is_float(graph_.type(data).dtype);
        s.in = dim(data, 0);
        s.out = dim(node.outputs[0], 0);
        s.partial = axis_ >= 0 && placement(node.outputs[0], 0).is_partial();
        result.emplace(module, s);
      }
    }
    return result;
  }

 private:
  std::string weight_name(Value v) const {
    for (int depth = 0; depth < 3; ++depth) {
      if (const Source* s = graph_.source_of(v)) {
        return s->kind == SourceKind::kParameter ? s->name : "";
      }
      const NodeId producer = graph_.value(v).producer;
      if (producer == kNoNode || graph_.node(producer).inputs.size() != 1) return "";
      v = graph_.node(producer).inputs[0];
    }
    return "";
  }
  const Placement& placement(Value v, int32_t form) const {
    return plan_.values[static_cast<size_t>(v)][static_cast<size_t>(form)]
        .placements[static_cast<size_t>(axis_)];
  }
  int dim(Value v, int32_t form) const {
    if (axis_ < 0 || plan_.values[static_cast<size_t>(v)].empty()) return -1;
    const Placement& p = placement(v, form);
    return p.is_shard() ? plan_.layout(v, form).atom_dim[static_cast<size_t>(p.atom)] : -1;
  }

  const Graph& graph_;
  const Plan& plan_;
  int axis_ = -1;
};

struct Case {
  const char* line;
  std::set<std::string> targets;  // that have words for it
};
void PrintTo(const Case& c, std::ostream* out) { *out << c.line; }

class ExportLayouts : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    file_ = (fs::temp_directory_path() / fmt::format("layouts_{}", ::getpid())).string();
    const Outcome o = cleave_run(fmt::format("plan {} -o {}", GetParam().line, file_));
    ASSERT_EQ(o.status, 0) << o.err;
    const std::string text = read_file(file_);
    loaded_.emplace(load_plan(file_, text, spec_in_plan_file(file_, text), nullptr));
  }
  void TearDown() override { fs::remove(file_); }
  // Empty: refused.
  std::string exported(const char* to) const {
    const Outcome o = cleave_run(fmt::format("export {} --to {}", file_, to));
    EXPECT_EQ(o.status == 0, !o.out.empty()) << o.err;
    return o.out;
  }

  std::string file_;
  std::optional<LoadedPlan> loaded_;
};

void expect_dtensor(const std::string& script, const std::map<std::string, Split>& modules) {
  std::map<std::string, std::string> styles;
  const std::regex line("\"([^\"]+)\": (.*\\)),");
  for (auto m = std::sregex_iterator(script.begin(), script.end(), line);
       m != std::sregex_iterator(); ++m) {
    styles[(*m)[1]] = (*m)[2];
  }
  for (const auto& [name, s] : modules) {
    SCOPED_TRACE(name);
    const std::string style = styles.contains(name) ? styles[name] : "";
    const bool by_sequence = style.find("input_layouts=Shard(1)") != std::string::npos;
    if (s.norm) {
      EXPECT_EQ(style, s.out == 1 ? "SequenceParallel()" : "");
      EXPECT_EQ(s.weight, -1);
    } else if (s.looks_up) {
      EXPECT_EQ(style.starts_with("RowwiseParallel(input_layouts=Replicate()"), s.weight == 0);
      EXPECT_EQ(style.empty(), s.weight == -1);
    } else if (s.weight == 0) {
      EXPECT_TRUE(style.starts_with("ColwiseParallel(")) << style;
      EXPECT_EQ(by_sequence, s.in == 1) << style;
      EXPECT_EQ(s.out, 2);
    } else if (s.weight == 1) {
      EXPECT_TRUE(style.starts_with("RowwiseParallel(")) << style;
      EXPECT_EQ(s.in, 2);
      EXPECT_TRUE(s.partial);
    } else {
      EXPECT_EQ(style, "");
      EXPECT_EQ(s.in, -1);
      EXPECT_EQ(s.out, -1);
    }
    styles.erase(name);
  }
  EXPECT_TRUE(styles.empty()) << styles.begin()->first;
}

void expect_hf(const std::string& text, const std::map<std::string, Split>& modules) {
  Json plan = Json::parse(text);
  for (const auto& [name, s] : modules) {
    const std::string style = plan.value(name, "");
    // At the end of the model, what comes out is gathered for the loss.
    const bool in_layer = name.find('*') != std::string::npos;
    const std::string wanted = s.norm || s.weight < 0 ? ""
                               : s.looks_up           ? "embedding_rowwise"
                               : s.weight == 1        ? "rowwise"
                               : in_layer             ? "colwise"
                                                      : "colwise_gather_output";
    EXPECT_EQ(style, wanted) << name;
    plan.erase(name);
  }
  EXPECT_TRUE(plan.empty()) << plan;
}

void expect_deepspeed(const std::string& text, const std::map<std::string, Split>& modules) {
  std::vector<std::pair<std::regex, std::string>> specs;
  const Json json = Json::parse(text);
  for (const Json& spec : json["tensor_parallel"]["partition_config"]["layer_specs"]) {
    specs.emplace_back(std::regex(spec["patterns"][0].get<std::string>()), spec["partition_type"]);
  }
  for (const auto& [name, s] : modules) {
    std::string type;
    const std::string weight = std::regex_replace(name, std::regex("\\*"), "0") + ".weight";
    for (const auto& [pattern, of] : specs) {
      if (std::regex_match(weight, pattern)) type = of;
    }
    EXPECT_EQ(type, s.weight < 0 || s.norm ? "" : s.weight == 0 ? "column" : "row") << name;
    EXPECT_FALSE(s.looks_up && s.weight >= 0) << name;
  }
}

void expect_megatron(const std::string& text, const std::map<std::string, Split>& modules,
                     int64_t tensor) {
  EXPECT_NE(text.find(fmt::format("--tensor-model-parallel-size {}\n", tensor)), std::string::npos);
  const bool sequence = text.find("--sequence-parallel\n") != std::string::npos;
  for (const auto& [name, s] : modules) {
    SCOPED_TRACE(name);
    if (tensor == 1) continue;
    if (s.norm) {
      EXPECT_EQ(s.weight, -1);
      EXPECT_EQ(s.out, sequence ? 1 : -1);
    } else if (s.looks_up) {
      EXPECT_EQ(s.weight, 0);
    } else if (name != "wpe") {
      const bool rows = name.ends_with("proj");
      EXPECT_EQ(s.weight, rows ? 1 : 0);
      EXPECT_EQ(s.partial, rows);
    }
  }
}

TEST_P(ExportLayouts, AreThoseOfThePlan) {
  const Layouts layouts(*loaded_);
  const auto modules = layouts.modules();
  const int64_t tensor = layouts.tensor();
  ASSERT_FALSE(modules.empty());
  std::set<std::string> said;
  for (const char* to : {"megatron", "dtensor", "hf-tp", "deepspeed"}) {
    SCOPED_TRACE(to);
    const std::string target = to, text = exported(to);
    if (text.empty()) continue;
    said.insert(target);
    if (target == "megatron") expect_megatron(text, modules, tensor);
    if (target == "dtensor" && tensor > 1) expect_dtensor(text, modules);
    if (target == "hf-tp") expect_hf(text, modules);
    if (target == "deepspeed" && tensor > 1) expect_deepspeed(text, modules);
  }
  EXPECT_EQ(said, GetParam().targets);
}

INSTANTIATE_TEST_SUITE_P(
    Plans, ExportLayouts,
    ::testing::Values(
        Case{"llama:8b --set layers=2 sequence=1024 --cluster 8xh100 --mesh dp=2,tp=4 --pin zero=3",
             {"megatron", "dtensor"}},
        Case{"llama:8b --set layers=2 sequence=1024 --cluster 4xh100 --mesh tp=4",
             {"megatron", "dtensor", "hf-tp"}},
        Case{
            "llama:8b --set layers=2 sequence=1024 --cluster 4xh100 --mesh tp=4 --pin "
            "embed.embedding:tp=replicate embed:tp=replicate matmul:tp=replicate head:tp=replicate",
            {"hf-tp", "deepspeed"}},
        Case{"llama:1b --set layers=2 sequence=1024 --cluster 4xh100 --mesh tp=4",
             {"megatron", "dtensor", "hf-tp"}},
        Case{"llama:tiny --cluster cpu:2 --mesh tp=2", {"megatron", "dtensor", "hf-tp"}},
        Case{"gpt2:124m --set layers=2 --cluster 4xh100 --mesh tp=4", {"megatron"}},
        Case{"gpt2:124m --set layers=2 --cluster 4xh100 --mesh dp=2,tp=2 --pin zero=1",
             {"megatron"}},
        Case{"mlp:large --cluster 4xh100 --mesh tp=4", {"megatron", "dtensor", "hf-tp"}},
        Case{
            "mixtral:8x7b --set layers=2 sequence=1024 --batch 8 --cluster 8xh100 --mesh dp=4,ep=2 "
            "--pin zero=3 embed.embedding:ep=shard(0) matmul:ep=shard(0)",
            {"megatron"}}));

}  // namespace
}  // namespace cleave
