// What is written for each program. Names of flags, styles and fields are those of its own
// documentation; each writer says which.
#include <algorithm>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>

#include "cli/export_plan.h"
#include "cli/model_spec.h"
#include "graph/error.h"
#include "planner/outline.h"
#include "planner/remake_menu.h"
#include "viz/names.h"

namespace cleave {
namespace {

using Json = nlohmann::ordered_json;
using Kind = ModuleSplit::Kind;

// Modules by their names with layers folded, which must all be split alike.
std::map<std::string, ModuleSplit> folded(const Exported& e, const std::string& target) {
  std::map<std::string, ModuleSplit> result;
  for (const ModuleSplit& m : e.modules) {
    const std::string name = folded_name(m.name);
    const auto [entry, added] = result.emplace(name, m);
    const ModuleSplit& first = entry->second;
    if (added || (first.kind == m.kind && first.pieces == m.pieces)) continue;
    fail("--to {}: {} and {} are split in different ways; it says one for all layers", target,
         first.name, m.name);
  }
  return result;
}

std::string_view words(Kind kind) {
  switch (kind) {
    case Kind::kWhole: return "whole on each rank";
    case Kind::kColumns: return "split by columns";
    case Kind::kRows: return "split by rows";
    case Kind::kTableRows: return "split by the rows that are looked up";
    case Kind::kTableWidth: return "split by what a row holds";
    case Kind::kOther: return "split in some other way";
  }
  return "?";
}

[[noreturn]] void cannot(const std::string& target, const ModuleSplit& m, const std::string& why) {
  fail("--to {}: {} is {}; {}", target, m.name, words(m.kind), why);
}

void expect_one_stage(const LoadedPlan& loaded, const std::string& target, const std::string& why) {
  const int32_t stages = loaded.plan.pipeline.stages;
  if (stages > 1) fail("--to {}: the plan has {} pipeline stages; {}", target, stages, why);
}

void expect_no_axis(int64_t size, const char* what, const std::string& target) {
  if (size > 1)
    fail("--to {}: it has no words for {} parallelism over {} ranks", target, what, size);
}

// What no target but Megatron has words for, and none has for states on the host.
void expect_nothing_else(const LoadedPlan& loaded, const std::string& target) {
  const Plan& plan = loaded.plan;
  const auto host = std::count(plan.on_host.begin(), plan.on_host.end(), true);
  if (host > 0) {
    fail(
        "--to {}: {} optimizer states lie in the host's memory, one by one; plan again for more "
        "devices, or a smaller --batch",
        target, host);
  }
  if (target != "megatron" && !plan.rewrite.remade.empty()) {
    fail(
        "--to {}: the plan computes {} ops again in the backward, which is written in the model "
        "there; plan again with --pin recompute=none",
        target, plan.rewrite.remade.size());
  }
}

// By chunk: how many of the model's layers begin in it.
std::vector<size_t> layers_by_chunk(const Graph& graph, const Plan& plan) {
  std::vector<size_t> layers(static_cast<size_t>(plan.pipeline.stages * plan.pipeline.chunks), 0);
  std::set<std::string> known;
  for (size_t n = 0; n < graph.nodes().size(); ++n) {
    const Node& node = graph.nodes()[n];
    if (node.phase != Phase::kForward) continue;
    const std::string& scope = graph.scopes()[static_cast<size_t>(node.scope)];
    const size_t digit = scope.find_first_of("0123456789");
    if (digit == std::string::npos || digit == 0 || scope[digit - 1] != '.') continue;
    const std::string layer = scope.substr(0, scope.find('.', digit));
    if (known.insert(layer).second) ++layers[static_cast<size_t>(plan.pipeline.chunk_of[n])];
  }
  return layers;
}

// Megatron's words for what is computed again; throws Error when it has none.
std::vector<std::string> recompute_flags(const LoadedPlan& loaded, const UserModel* user) {
  const std::vector<NodeId>& remade = loaded.plan.rewrite.remade;
  if (remade.empty()) return {};
  const TracedModel traced = trace_model(loaded.model.spec, user);
  const Outline outline = outline_of(std::make_shared<const Graph>(traced.graph));
  if (remade == outline.nodes_of(full_mode(outline))) {
    return {"--recompute-granularity full", "--recompute-method uniform",
            "--recompute-num-layers 1"};
  }
  if (remade == outline.nodes_of(selective_mode(outline))) {
    return {"--recompute-granularity selective"};
  }
  fail(
      "--to megatron: the plan computes {} ops again, chosen one by one; there it is whole layers "
      "or attention: plan again with --pin recompute=full or recompute=selective",
      remade.size());
}

}  // namespace

// Megatron-LM's training arguments (megatron/training/arguments.py).
std::string megatron_flags(const LoadedPlan& loaded, const Exported& e, const UserModel* user) {
  const std::string target = "megatron";
  expect_nothing_else(loaded, target);
  const Plan& plan = loaded.plan;
  const Pipeline& p = plan.pipeline;
  for (const auto& [name, m] : folded(e, target)) {
    if (e.tensor == 1 || !m.multiplies) continue;
    if (m.kind == Kind::kColumns || m.kind == Kind::kRows || m.kind == Kind::kTableRows) continue;
    // Small tables (of positions) are whole there too.
    if (m.kind == Kind::kWhole && name.find('*') == std::string::npos) continue;
    cannot(target, m,
           "with --tensor-model-parallel-size it splits every product of a layer by columns or "
           "rows; plan again with --mesh dp=N,tp=M, or --pin what differs");
  }
  std::vector<std::string> flags;
  flags.push_back(fmt::format("--tensor-model-parallel-size {}", e.tensor));
  if (e.tensor > 1 && e.sequence_parallel) flags.push_back("--sequence-parallel");
  flags.push_back(fmt::format("--pipeline-model-parallel-size {}", p.stages));
  if (p.chunks > 1)
    flags.push_back(fmt::format("--num-virtual-stages-per-pipeline-rank {}", p.chunks));
  if (p.schedule == ScheduleKind::kZeroBubble && p.stages > 1) {
    fail(
        "--to megatron: it has no flag for the zero-bubble schedule; plan again with --pin "
        "schedule=1f1b");
  }
  if (p.stages > 1) {
    const std::vector<size_t> layers = layers_by_chunk(loaded.model.graph, plan);
    if (std::any_of(layers.begin(), layers.end(), [&](size_t n) { return n != layers[0]; })) {
      fail(
          "--to megatron: its chunks have as many layers each, the plan's {}; plan again with "
          "other --pin pp or chunks, or cuts where they are there",
          fmt::join(layers, ", "));
    }
  }
  flags.push_back(fmt::format("--context-parallel-size {}", e.context));
  if (e.expert > 1) flags.push_back(fmt::format("--expert-model-parallel-size {}", e.expert));
  flags.push_back(fmt::format("--micro-batch-size {}", e.sequences));
  flags.push_back(fmt::format("--global-batch-size {}", e.sequences * e.data * e.micro_batches));
  flags.push_back(fmt::format("--seq-length {}", loaded.model.config.sequence));
  if (is_half(loaded.model.spec.dtype)) {
    flags.push_back(fmt::format("--{}", precision_name(loaded.model.spec.dtype)));
  }
  if (plan.zero == 3) {
    if (p.stages > 1) {
      fail(
          "--to megatron: parameters in parts over dp (ZeRO 3) do not go with pipeline stages "
          "there; plan again with --pin zero=1");
    }
    flags.push_back("--use-megatron-fsdp");
    flags.push_back("--data-parallel-sharding-strategy optim_grads_params");
    flags.push_back("--no-gradient-accumulation-fusion");
    flags.push_back("--ckpt-format fsdp_dtensor");
  }
  if (plan.zero > 0) flags.push_back("--use-distributed-optimizer");
  for (const std::string& flag : recompute_flags(loaded, user)) flags.push_back(flag);
  std::string text;
  for (const std::string& f : flags) text += f + "\n";
  return text;
}

// torch.distributed.tensor.parallel: parallelize_module and its styles; torch.distributed.fsdp.
std::string dtensor_script(const LoadedPlan& loaded, const Exported& e) {
  const std::string target = "dtensor";
  expect_nothing_else(loaded, target);
  expect_one_stage(loaded, target,
                   "parallelize_module has no stages: they are written with "
                   "torch.distributed.pipelining; plan again with --pin pp=1");
  expect_no_axis(e.context, "context", target);
  expect_no_axis(e.expert, "expert", target);
  std::string styles;
  bool column = false, row = false, sequence = false;
  for (const auto& [name, m] : folded(e, target)) {
    if (e.tensor == 1) break;
    std::string style;
    if (m.pieces > 1) {
      cannot(
          target, m,
          fmt::format("its {} pieces are cut one by one, and parallelize_module cuts a "
                      "dimension in one piece a rank; a model with a weight for each can be said",
                      m.pieces));
    }
    const char* in = e.sequence_parallel ? "input_layouts=Shard(1)" : "";
    const char* out = e.sequence_parallel ? "output_layouts=Shard(1)" : "";
    const bool in_layers = name.find('*') != std::string::npos;
    switch (m.kind) {
      case Kind::kColumns:
        // What comes out of the last product goes to the loss in parts.
        style = fmt::format(
            "ColwiseParallel({})",
            in_layers ? in : fmt::format("{}{}use_local_output=False", in, *in != 0 ? ", " : ""));
        column = true;
        break;
      case Kind::kRows:
        style = fmt::format("RowwiseParallel({})", out);
        row = true;
        break;
      case Kind::kTableRows:
        style = fmt::format("RowwiseParallel(input_layouts=Replicate(){}{})", *out != 0 ? ", " : "",
                            out);
        row = true;
        break;
      case Kind::kTableWidth:
        style = fmt::format("ColwiseParallel({})", out);
        column = true;
        break;
      case Kind::kWhole:
        if (m.multiplies || !e.sequence_parallel) continue;
        style = "SequenceParallel()";
        sequence = true;
        break;
      case Kind::kOther: cannot(target, m, "parallelize_module has no style for that");
    }
    styles += fmt::format("    \"{}\": {},\n", name, style);
  }
  const bool both = e.data > 1 && e.tensor > 1;
  std::string text = fmt::format(
      "# {}: dp {} x tp {}, micro-batches of {} sequences a rank, {} in a step.\n"
      "from torch.distributed.device_mesh import init_device_mesh\n",
      loaded.model.spec.name, e.data, e.tensor, e.sequences, e.micro_batches);
  if (loaded.plan.zero == 3) text += "from torch.distributed.fsdp import fully_shard\n";
  if (e.tensor > 1) {
    const bool shard = styles.find("Shard(") != std::string::npos;
    const bool replicate = styles.find("Replicate(") != std::string::npos;
    std::vector<std::string> names, layouts;
    if (column) names.push_back("ColwiseParallel");
    if (row) names.push_back("RowwiseParallel");
    if (sequence) names.push_back("SequenceParallel");
    names.push_back("parallelize_module");
    if (replicate) layouts.push_back("Replicate");
    if (shard) layouts.push_back("Shard");
    if (!layouts.empty()) {
      text += fmt::format("from torch.distributed.tensor import {}\n", fmt::join(layouts, ", "));
    }
    text += fmt::format("from torch.distributed.tensor.parallel import (\n    {},\n)\n",
                        fmt::join(names, ",\n    "));
    text += fmt::format("\nSTYLES = {{\n{}}}\n", styles);
  }
  text += "\n\ndef parallelize(model, device_type=\"cuda\"):\n";
  text += both ? fmt::format(
                     "    mesh = init_device_mesh(device_type, ({}, {}), "
                     "mesh_dim_names=(\"dp\", \"tp\"))\n",
                     e.data, e.tensor)
               : fmt::format(
                     "    mesh = init_device_mesh(device_type, ({},), "
                     "mesh_dim_names=(\"{}\",))\n",
                     std::max(e.data, e.tensor), e.tensor > 1 ? "tp" : "dp");
  if (e.tensor > 1) text += "    parallelize_module(model, mesh[\"tp\"], STYLES)\n";
  if (e.data > 1 && loaded.plan.zero == 3) {
    text +=
        "    for child in model.children():\n"
        "        for layer in child.children() if len(list(child.children())) > 1 else [child]:\n"
        "            fully_shard(layer, mesh=mesh[\"dp\"])\n"
        "    fully_shard(model, mesh=mesh[\"dp\"])\n";
  } else if (e.data > 1) {
    text += "    # Gradients are averaged over mesh[\"dp\"] by DistributedDataParallel or by hand";
    text += loaded.plan.zero == 1
                ? ",\n    # optimizer states in parts by ZeroRedundancyOptimizer.\n"
                : ".\n";
  }
  return text + "    return model, mesh\n";
}

// transformers' tp_plan: a style by module, layers as `*`.
std::string hf_tp_plan(const LoadedPlan& loaded, const Exported& e) {
  const std::string target = "hf-tp";
  expect_nothing_else(loaded, target);
  expect_one_stage(loaded, target, "a tp_plan has no stages; plan again with --pin pp=1");
  expect_no_axis(e.context, "context", target);
  expect_no_axis(e.expert, "expert", target);
  if (e.data > 1) {
    fail(
        "--to hf-tp: a tp_plan says nothing of the dp {} of the plan; plan for the {} devices of "
        "one tensor-parallel group",
        e.data, e.tensor);
  }
  if (e.tensor == 1) fail("--to hf-tp: the plan splits no weights over a tp axis");
  if (loaded.plan.zero > 0) fail("--to hf-tp: a tp_plan has no words for ZeRO");
  Json plan = Json::object();
  for (const auto& [name, m] : folded(e, target)) {
    if (m.pieces > 1) {
      cannot(target, m,
             fmt::format("its {} pieces are cut one by one, which a tp_plan says of "
                         "two at most; a model with a weight for each can be said",
                         m.pieces));
    }
    const bool in_layers = name.find('*') != std::string::npos;
    switch (m.kind) {
      case Kind::kColumns: plan[name] = in_layers ? "colwise" : "colwise_gather_output"; break;
      case Kind::kRows: plan[name] = "rowwise"; break;
      case Kind::kTableRows: plan[name] = "embedding_rowwise"; break;
      case Kind::kTableWidth:
      case Kind::kOther: cannot(target, m, "a tp_plan has no style for that"); break;
      case Kind::kWhole: break;
    }
  }
  return plan.dump(2) + "\n";
}

// DeepSpeed's configuration: zero_optimization, and tensor_parallel for AutoTP training.
std::string deepspeed_config(const LoadedPlan& loaded, const Exported& e) {
  const std::string target = "deepspeed";
  expect_nothing_else(loaded, target);
  expect_one_stage(loaded, target,
                   "stages are written in the program there (PipelineModule), not in the "
                   "configuration; plan again with --pin pp=1");
  expect_no_axis(e.context, "context", target);
  expect_no_axis(e.expert, "expert", target);
  if (e.tensor > 1 && loaded.plan.zero == 3) {
    fail(
        "--to deepspeed: tensor_parallel goes with ZeRO 0 to 2, and the plan has 3; plan again "
        "with --pin zero=1");
  }
  Json json = {{"train_batch_size", e.sequences * e.data * e.micro_batches},
               {"train_micro_batch_size_per_gpu", e.sequences},
               {"gradient_accumulation_steps", e.micro_batches},
               {"zero_optimization", {{"stage", loaded.plan.zero}}}};
  if (is_half(loaded.model.spec.dtype)) {
    json[std::string(precision_name(loaded.model.spec.dtype))] = {{"enabled", true}};
  }
  if (e.tensor == 1) return json.dump(2) + "\n";
  Json specs = Json::array();
  for (const auto& [name, m] : folded(e, target)) {
    std::string pattern = "^";
    for (char c : name) {
      if (c == '*') {
        pattern += "\\d+";
      } else {
        pattern += c == '.' ? std::string("\\.") : std::string(1, c);
      }
    }
    pattern += "\\.weight$";
    Json spec = {{"patterns", {pattern}}};
    switch (m.kind) {
      case Kind::kColumns: spec["partition_type"] = "column"; break;
      case Kind::kRows: spec["partition_type"] = "row"; break;
      case Kind::kTableRows:
      case Kind::kTableWidth:
      case Kind::kOther:
        cannot(target, m,
               fmt::format("AutoTP splits products by columns or rows only; plan again with --pin "
                           "'{}:tp=replicate'",
                           name));
        break;
      case Kind::kWhole: continue;
    }
    if (m.pieces > 1) {
      spec["shape"] = m.first ? Json{m.pieces, -1} : Json{-1, m.pieces};
      spec["partition_dim"] = m.first ? 0 : 1;
    }
    specs.push_back(spec);
  }
  json["tensor_parallel"] = {
      {"autotp_size", e.tensor},
      {"partition_config", {{"use_default_specs", false}, {"layer_specs", specs}}}};
  return json.dump(2) + "\n";
}

}  // namespace cleave
