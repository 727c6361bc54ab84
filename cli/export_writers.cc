// What is written for each program. Names of flags, styles and fields are those of its own
// documentation; each writer says which.
#include <algorithm>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>

#include "cli/export_advice.h"
#include "cli/model_spec.h"
#include "graph/error.h"
#include "planner/outline.h"
#include "planner/remake_menu.h"
#include "viz/names.h"

namespace cleave {
namespace {

using Json = nlohmann::ordered_json;
using Kind = ModuleSplit::Kind;

bool in_layers(const std::string& name) { return name.find('*') != std::string::npos; }

// Along the sequence or whole: the same for targets that do not say it for each module.
bool alike(const ModuleSplit::Edges& a, const ModuleSplit::Edges& b, const std::string& target) {
  const auto seen = [&](Held held) {
    return held == Held::kSequence && target != "dtensor" ? Held::kWhole : held;
  };
  return seen(a.in) == seen(b.in) && seen(a.out) == seen(b.out);
}

// Modules by their names with layers folded, which must all be split alike.
std::map<std::string, ModuleSplit> folded(const Exported& e, const std::string& target,
                                          const std::string& again) {
  std::map<std::string, ModuleSplit> result;
  for (const ModuleSplit& m : e.modules) {
    const std::string name = folded_name(m.name);
    const auto [entry, added] = result.emplace(name, m);
    const ModuleSplit& first = entry->second;
    entry->second.kept_in_parts |= m.kept_in_parts;
    if (added ||
        (first.kind == m.kind && first.pieces == m.pieces && alike(first.edges, m.edges, target))) {
      continue;
    }
    fail(
        "--to {}: {} and {} are split in different ways, and it says one for all layers; plan "
        "again with {}",
        target, first.name, m.name, again);
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
    case Kind::kPositions: return "read in parts along the sequence";
    case Kind::kExperts: return "split by whole products of those that it has in one weight";
    case Kind::kBias: return "split like what it is added to";
    case Kind::kOther: return "split in some other way";
  }
  return "?";
}

[[noreturn]] void cannot(const std::string& target, const ModuleSplit& m, const std::string& why) {
  fail("--to {}: {} is {}; {}", target, m.name, words(m.kind), why);
}

void expect_one_stage(const Exported& e, const std::string& target, const std::string& why) {
  if (e.stages == 1) return;
  fail("--to {}: the plan has {} pipeline stages; {}; plan again with {}", target, e.stages, why,
       one_stage(e, target));
}

// A table that is a product's weight too is split by the vocabulary in both, or in none.
void expect_tied(const Exported& e, const ModuleSplit& m, const std::string& target) {
  if (!m.again || (m.kind == Kind::kTableRows && m.again == Kind::kColumns) ||
      (m.kind == Kind::kWhole && m.again == Kind::kWhole)) {
    return;
  }
  fail("--to {}: {} is {}, and {} where it is a product's weight; plan again with {}", target,
       m.name, words(m.kind), words(*m.again), target == "hf-tp" ? whole_ends(e) : only_data(e));
}

// A weight that is several products in one has no style but to be whole.
void expect_one_product(const Exported& e, const ModuleSplit& m, const std::string& target) {
  if (m.experts == 0 || m.kind == Kind::kWhole) return;
  fail(
      "--to {}: {} is {}, and has several products in one weight, which it has no words for; plan "
      "again with {}",
      target, m.name, words(m.kind), target == "hf-tp" ? part_whole(e, m.name) : only_data(e));
}

// What is split over tp must be so as all programs split it. `whole_too`: where the target has
// activations whole on each rank, that they are in parts along the sequence here changes nothing of
// what is computed; else it is refused.
void expect_usual_edges(const Exported& e, const std::string& target, const std::string& again,
                        bool whole_too) {
  if (target != "megatron") {
    for (const ModuleSplit& m : e.modules) expect_one_product(e, m, target);
  }
  // Attention that is not split by heads is why what is around it is not.
  for (const Misfit& m : e.misfits) {
    if (m.heads == 0 || (m.whole_attention && target != "megatron")) continue;
    fail("--to {}: {}; plan again with {}", target, m.what, fewer_tensor(e, m, target));
  }
  for (const Misfit& m : e.misfits) {
    if (m.of_batch_axes || m.heads > 0 || (m.of_sequence && whole_too)) continue;
    if (m.before_layers && target == "megatron") continue;
    fail("--to {}: {}; plan again with {}", target, m.what, again);
  }
}

bool any_in_parts(const Exported& e) {
  return std::any_of(e.modules.begin(), e.modules.end(),
                     [](const ModuleSplit& m) { return m.multiplies && m.kind != Kind::kWhole; });
}
// A tensor axis on which nothing is split repeats all work.
void expect_parts(const Exported& e, const std::string& target) {
  if (e.tensor == 1 || any_in_parts(e)) return;
  fail(
      "--to {}: no weight is in parts over tp, so that its {} ranks repeat all work; plan again "
      "with {}",
      target, e.tensor,
      target == "hf-tp" ? usual_split(e, target, Ends::kSplit)
                        : fmt::format("a --cluster of {0} devices and --mesh dp={0}",
                                      e.data * e.context * e.expert));
}
// A weight that is used whole and kept in parts is gathered each step; none of them does that.
void expect_kept_as_used(const Exported& e, const ModuleSplit& m, const std::string& target) {
  if (!m.multiplies || m.kind != Kind::kWhole || !m.kept_in_parts) return;
  fail("--to {}: {} is used whole on each rank of tp, and kept in parts; plan again with {}",
       target, m.name, kept_whole(e));
}

// Whether norms and what is between products is split along the sequence.
bool sequence_in_parts(const Exported& e) {
  return std::any_of(e.modules.begin(), e.modules.end(), [](const ModuleSplit& m) {
    return m.edges.in == Held::kSequence || m.edges.out == Held::kSequence;
  });
}

// Notes on what is the same computation: what lies in parts here and whole there.
std::vector<std::string> notes_on_tensor(const Exported& e, bool sequence, bool logits) {
  std::vector<std::string> notes;
  if (e.tensor == 1) return notes;
  if (sequence && sequence_in_parts(e)) {
    notes.push_back(
        "norms and activations between products are whole on each rank there; in the plan each has "
        "a part of the sequence");
  }
  const bool in_parts = std::any_of(e.modules.begin(), e.modules.end(), [](const ModuleSplit& m) {
    return (m.kind == Kind::kColumns && !in_layers(folded_name(m.name)) &&
            m.edges.out == Held::kInner) ||
           (m.again == Kind::kColumns && m.edges_again.out == Held::kInner);
  });
  if (logits && in_parts) {
    notes.push_back("logits are gathered for the loss there; in the plan each rank keeps its part");
  }
  std::vector<std::string> small;
  for (const ModuleSplit& m : e.modules) {
    const std::string name = folded_name(m.name);
    if (m.multiplies || m.kind == Kind::kBias) continue;
    if (!m.kept_in_parts && m.kind != Kind::kPositions) continue;
    if (std::find(small.begin(), small.end(), name) == small.end()) small.push_back(name);
  }
  if (!small.empty()) {
    notes.push_back(
        fmt::format("every rank keeps and updates all of {} there; in the plan each keeps a part",
                    fmt::join(small, ", ")));
  }
  return notes;
}

// What no target but Megatron has words for, and none has for states on the host.
void expect_nothing_else(const LoadedPlan& loaded, const Exported& e, const std::string& target) {
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
        "there; plan again with --pin recompute=none{}",
        target, plan.rewrite.remade.size(), without_pins(e, {}, "=recompute"));
  }
}

// "layers": what the first scope with a number is a part of.
std::string layers_name(const Graph& graph) {
  for (const std::string& scope : graph.scopes()) {
    const size_t digit = scope.find_first_of("0123456789");
    if (digit != std::string::npos && digit > 0 && scope[digit - 1] == '.') {
      return scope.substr(0, digit - 1);
    }
  }
  return "";
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

// Pins of as many layers in each stage; of fewer stages, where they cannot have as many.
std::string even_chunks(const LoadedPlan& loaded, const Exported& e,
                        const std::vector<size_t>& by_chunk) {
  const Pipeline& p = loaded.plan.pipeline;
  const auto layers = static_cast<int64_t>(std::accumulate(by_chunk.begin(), by_chunk.end(), 0ul));
  const int64_t devices = p.stages * loaded.plan.mesh.size();
  int64_t stages = p.stages;
  while (layers % stages != 0 || devices % stages != 0) --stages;
  if (stages == 1) return one_stage(e, "megatron");
  std::string text = fmt::format("--pin pp={}", stages);
  if (stages < p.stages) return text + without_pins(e, {}, "=cut");
  text += " chunks=1 schedule=1f1b";
  const std::string of = layers_name(loaded.model.graph);
  for (int64_t s = 1; s < stages; ++s) {
    text += fmt::format(" '{}.{}=cut'", of, layers / stages * s);
  }
  return text;
}

// Whether norms are split along the sequence; throws Error when weights are not split as Megatron
// does it: every product of a layer by columns or rows, attention by heads, the vocabulary by rows.
bool expect_megatrons_split(const Exported& e) {
  const std::string target = "megatron";
  const bool experts = std::any_of(e.modules.begin(), e.modules.end(),
                                   [](const ModuleSplit& m) { return m.experts > 0; });
  const std::string again =
      experts ? experts_instead(e, target) : usual_split(e, target, Ends::kSplit);
  bool sequence = false, whole = false;
  for (const auto& [name, m] : folded(e, target, again)) {
    const bool by_sequence = m.edges.out == Held::kSequence;
    if (!m.multiplies && in_layers(name)) (by_sequence ? sequence : whole) = true;
    if (m.kind == Kind::kOther || (m.kind == Kind::kBias && in_layers(name))) {
      cannot(target, m, fmt::format("there it is whole; plan again with {}", only_data(e)));
    }
    if (m.kind == Kind::kExperts) {
      cannot(target, m,
             fmt::format("there --expert-model-parallel-size does that; plan again with {}",
                         experts_instead(e, target)));
    }
    if (!m.multiplies) continue;
    if (m.kind != m.usual) {
      cannot(target, m,
             fmt::format("--tensor-model-parallel-size splits every product of a layer by columns "
                         "or rows, and tables of the vocabulary by its rows; plan again with {}",
                         again));
    }
    if (m.again.value_or(Kind::kColumns) != Kind::kColumns) {
      fail(
          "--to megatron: the last product, with {}, is {}, and there split by columns; plan again "
          "with {}",
          m.name, words(*m.again), again);
    }
  }
  expect_usual_edges(e, target, again, false);
  if (sequence && whole) {
    fail(
        "--to megatron: some norms are split along the sequence over tp and others are not, and "
        "--sequence-parallel is for all; plan again with {}",
        only_data(e));
  }
  if (experts && !sequence) {
    fail(
        "--to megatron: experts go with tensor parallelism there only with --sequence-parallel, "
        "and "
        "the plan's norms are whole; plan again with {}",
        again);
  }
  return sequence;
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
Written megatron_flags(const LoadedPlan& loaded, const Exported& e, const UserModel* user) {
  const std::string target = "megatron";
  expect_nothing_else(loaded, e, target);
  const Plan& plan = loaded.plan;
  const Pipeline& p = plan.pipeline;
  bool sequence = false;
  if (e.tensor > 1) {
    expect_parts(e, target);
    sequence = expect_megatrons_split(e);
  }
  std::vector<std::string> notes = expect_whole_zero(loaded, e, target);
  for (const std::string& note : notes_on_tensor(e, false, false)) notes.push_back(note);
  std::vector<std::string> flags;
  flags.push_back(fmt::format("--tensor-model-parallel-size {}", e.tensor));
  if (sequence) flags.push_back("--sequence-parallel");
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
          "{}",
          fmt::join(layers, ", "), even_chunks(loaded, e, layers));
    }
  }
  flags.push_back(fmt::format("--context-parallel-size {}", e.context));
  if (e.expert > 1) flags.push_back(fmt::format("--expert-model-parallel-size {}", e.expert));
  flags.push_back(fmt::format("--micro-batch-size {}", e.sequences));
  flags.push_back(
      fmt::format("--global-batch-size {}", e.sequences * e.data * e.expert * e.micro_batches));
  flags.push_back(fmt::format("--seq-length {}", loaded.model.config.sequence));
  if (is_half(loaded.model.spec.dtype)) {
    flags.push_back(fmt::format("--{}", precision_name(loaded.model.spec.dtype)));
  }
  if (e.zero == 3) {
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
  if (e.zero > 0) flags.push_back("--use-distributed-optimizer");
  for (const std::string& flag : recompute_flags(loaded, user)) flags.push_back(flag);
  std::string text;
  for (const std::string& f : flags) text += f + "\n";
  if (e.context > 1 && !e.rings) {
    notes.push_back(
        "attention gathers keys and values over cp in the plan; there --cp-comm-type says how, and "
        "left out it is a ring");
  }
  return {text, notes};
}

// A product with a table's weight has no module of its own: its style is a note.
std::string tied_style(const ModuleSplit& m) {
  return fmt::format(
      "{} is the last product's weight too: a module that shares it has the style "
      "ColwiseParallel({}{})",
      m.name, m.edges_again.in == Held::kSequence ? "input_layouts=Shard(1), " : "",
      m.edges_again.out == Held::kWhole ? "output_layouts=Replicate()" : "use_local_output=False");
}

// torch.distributed.tensor.parallel: parallelize_module and its styles; torch.distributed.fsdp.
Written dtensor_script(const LoadedPlan& loaded, const Exported& e) {
  const std::string target = "dtensor";
  expect_nothing_else(loaded, e, target);
  expect_one_stage(e, target,
                   "parallelize_module has no stages: they are written with "
                   "torch.distributed.pipelining");
  std::string styles;
  std::vector<std::string> notes;
  bool column = false, row = false, sequence = false;
  const std::string again = usual_split(e, target);
  if (e.tensor > 1) {
    expect_parts(e, target);
    expect_usual_edges(e, target, again, false);
    notes = notes_on_tensor(e, false, false);
  }
  for (const auto& [name, m] : folded(e, target, again)) {
    if (e.tensor == 1) break;
    expect_tied(e, m, target);
    if (m.pieces > 1) {
      cannot(target, m,
             fmt::format("its {} pieces are cut one by one, and parallelize_module cuts a "
                         "dimension in one piece a rank; plan again with {}",
                         m.pieces, only_data(e)));
    }
    expect_kept_as_used(e, m, target);
    std::vector<std::string> with;
    const auto layout = [&](const char* which, Held held) {
      if (held == Held::kSequence) with.push_back(fmt::format("{}=Shard(1)", which));
    };
    std::string style;
    switch (m.kind) {
      case Kind::kColumns:
        layout("input_layouts", m.edges.in);
        if (m.edges.out == Held::kWhole) with.push_back("output_layouts=Replicate()");
        // What comes out of the last product goes to the loss in parts.
        if (!in_layers(name) && m.edges.out == Held::kInner)
          with.push_back("use_local_output=False");
        style = fmt::format("ColwiseParallel({})", fmt::join(with, ", "));
        column = true;
        break;
      case Kind::kRows:
        layout("output_layouts", m.edges.out);
        style = fmt::format("RowwiseParallel({})", fmt::join(with, ", "));
        row = true;
        break;
      case Kind::kTableRows:
        with.push_back("input_layouts=Replicate()");
        layout("output_layouts", m.edges.out);
        style = fmt::format("RowwiseParallel({})", fmt::join(with, ", "));
        row = true;
        break;
      case Kind::kTableWidth:
        layout("output_layouts", m.edges.out);
        if (m.edges.out == Held::kWhole) with.push_back("output_layouts=Replicate()");
        style = fmt::format("ColwiseParallel({})", fmt::join(with, ", "));
        column = true;
        break;
      case Kind::kWhole:
        if (m.edges.in == Held::kInner) {
          cannot(
              target, m,
              fmt::format("what it works on is split inside, and no style sums its gradient then; "
                          "plan again with {}",
                          only_data(e)));
        }
        if (m.multiplies) {
          // A plain module reads and makes what is whole.
          if (m.edges == ModuleSplit::Edges{}) continue;
          cannot(
              target, m,
              fmt::format("what is around it is split along the sequence, and no style says that; "
                          "plan again with {}",
                          usual_split(e, target, Ends::kSplit)));
        }
        if (m.edges.in != Held::kSequence) continue;
        style = "SequenceParallel()";
        sequence = true;
        break;
      case Kind::kPositions:
      case Kind::kExperts:
      case Kind::kBias:
      case Kind::kOther:
        cannot(target, m,
               fmt::format("parallelize_module has no style for that; plan again with {}",
                           only_data(e)));
    }
    if (m.again == Kind::kColumns) notes.push_back(tied_style(m));
    styles += fmt::format("    \"{}\": {},\n", name, style);
  }
  for (const std::string& note : expect_whole_zero(loaded, e, target)) notes.push_back(note);
  const bool both = e.data > 1 && e.tensor > 1;
  std::string text = fmt::format(
      "# {}: dp {} x tp {}, micro-batches of {} sequences a rank, {} in a step.\n"
      "from torch.distributed.device_mesh import init_device_mesh\n",
      loaded.model.spec.name, e.data, e.tensor, e.sequences, e.micro_batches);
  for (const std::string& note : notes) text += fmt::format("# Note: {}.\n", note);
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
  return {text + "    return model, mesh\n", {}};
}

// transformers' tp_plan: a style by module, layers as `*`.
Written hf_tp_plan(const LoadedPlan& loaded, const Exported& e) {
  const std::string target = "hf-tp";
  expect_nothing_else(loaded, e, target);
  expect_one_stage(e, target, "a tp_plan has no stages");
  if (loaded.plan.zero > 0) {
    fail("--to hf-tp: a tp_plan has no words for ZeRO {}; plan again with --pin zero=0",
         loaded.plan.zero);
  }
  expect_parts(e, target);
  const std::string again = usual_split(e, target);
  expect_usual_edges(e, target, again, true);
  Json plan = Json::object();
  for (const auto& [name, m] : folded(e, target, again)) {
    expect_tied(e, m, target);
    if (m.pieces > 1) {
      cannot(target, m,
             fmt::format("its {} pieces are cut one by one, and a tp_plan cuts a dimension in one "
                         "piece a rank; plan again with {}",
                         m.pieces, part_whole(e, m.name)));
    }
    expect_kept_as_used(e, m, target);
    switch (m.kind) {
      case Kind::kColumns:
        plan[name] =
            in_layers(name) && m.edges.out != Held::kWhole ? "colwise" : "colwise_gather_output";
        break;
      case Kind::kRows: plan[name] = "rowwise"; break;
      case Kind::kTableRows: plan[name] = "embedding_rowwise"; break;
      case Kind::kTableWidth:
        cannot(target, m,
               fmt::format("a tp_plan has no style for that; plan again with {}",
                           usual_split(e, target, Ends::kSplit)));
      case Kind::kExperts:
      case Kind::kBias:
      case Kind::kOther:
        cannot(target, m,
               fmt::format("a tp_plan has no style for that; plan again with {}", whole_ends(e)));
      case Kind::kPositions: break;
      case Kind::kWhole:
        if (m.edges.in == Held::kInner) plan[name] = "replicated_with_grad_allreduce";
        break;
    }
  }
  return {plan.dump(2) + "\n", notes_on_tensor(e, true, true)};
}

// DeepSpeed's configuration: zero_optimization, and tensor_parallel for AutoTP training.
Written deepspeed_config(const LoadedPlan& loaded, const Exported& e) {
  const std::string target = "deepspeed";
  expect_nothing_else(loaded, e, target);
  expect_one_stage(e, target,
                   "stages are written in the program there (PipelineModule), not in the "
                   "configuration");
  if (e.tensor > 1) {
    expect_parts(e, target);
    expect_usual_edges(e, target, usual_split(e, target, Ends::kWhole), true);
    if (loaded.plan.zero == 3) {
      fail(
          "--to deepspeed: tensor_parallel goes with ZeRO 0 to 2, and the plan has 3; plan again "
          "with {}",
          zero_for_all(e, target));
    }
  }
  std::vector<std::string> notes = expect_whole_zero(loaded, e, target);
  Json json = {{"train_batch_size", e.sequences * e.data * e.micro_batches},
               {"train_micro_batch_size_per_gpu", e.sequences},
               {"gradient_accumulation_steps", e.micro_batches},
               {"zero_optimization", {{"stage", loaded.plan.zero}}}};
  if (is_half(loaded.model.spec.dtype)) {
    json[std::string(precision_name(loaded.model.spec.dtype))] = {{"enabled", true}};
  }
  if (e.tensor == 1) return {json.dump(2) + "\n", notes};
  const std::string ends = whole_ends(e);
  Json specs = Json::array();
  for (const auto& [name, m] : folded(e, target, ends)) {
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
    if ((!in_layers(name) && m.kind == Kind::kColumns) ||
        m.again.value_or(Kind::kWhole) != Kind::kWhole) {
      fail(
          "--to deepspeed: the last product, with {}, is split by columns, and AutoTP does not "
          "gather logits or make the loss of parts; plan again with {}",
          m.name, ends);
    }
    expect_kept_as_used(e, m, target);
    switch (m.kind) {
      case Kind::kColumns: spec["partition_type"] = "column"; break;
      case Kind::kRows: spec["partition_type"] = "row"; break;
      case Kind::kTableRows:
      case Kind::kTableWidth:
        cannot(target, m,
               fmt::format("AutoTP splits products by columns or rows only; plan again with {}",
                           ends));
      case Kind::kExperts:
      case Kind::kBias:
      case Kind::kOther:
        cannot(target, m,
               fmt::format("AutoTP splits products by columns or rows only; plan again with {}",
                           only_data(e)));
      case Kind::kPositions: continue;
      case Kind::kWhole:
        if (m.edges.in == Held::kInner) {
          cannot(
              target, m,
              fmt::format("what it works on is split inside, and nothing there sums its gradient; "
                          "plan again with {}",
                          only_data(e)));
        }
        continue;
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
  for (const std::string& note : notes_on_tensor(e, true, false)) notes.push_back(note);
  return {json.dump(2) + "\n", notes};
}

}  // namespace cleave
