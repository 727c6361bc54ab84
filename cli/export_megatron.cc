// Megatron-LM's training arguments (megatron/training/arguments.py).
#include <fmt/ranges.h>

#include <algorithm>
#include <memory>
#include <numeric>
#include <set>

#include "cli/export_checks.h"
#include "cli/model_spec.h"
#include "graph/error.h"
#include "planner/outline.h"
#include "planner/remake_menu.h"
#include "viz/names.h"

namespace cleave {
namespace {

using Kind = ModuleSplit::Kind;
const std::string kTarget = "megatron";

// "layers.3" of "layers.3.attn.core"; empty: it is in no layer.
std::string layer_of(const std::string& scope) {
  const std::string star = folded_name(scope);
  for (size_t at = 0, star_at = 0; star_at < star.size(); ++at, ++star_at) {
    if (star[star_at] == '*') return scope.substr(0, scope.find('.', at));
  }
  return "";
}

// "layers": what the first layer is a part of.
std::string layers_name(const Graph& graph) {
  for (const std::string& scope : graph.scopes()) {
    const std::string layer = layer_of(scope);
    if (!layer.empty()) return layer.substr(0, layer.rfind('.'));
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
    const std::string layer = layer_of(graph.scopes()[static_cast<size_t>(node.scope)]);
    if (layer.empty() || !known.insert(layer).second) continue;
    ++layers[static_cast<size_t>(plan.pipeline.chunk_of[n])];
  }
  return layers;
}

// As many layers in each stage; fewer stages, where they cannot have as many.
Advice even_chunks(const LoadedPlan& loaded, const Exported& e,
                   const std::vector<size_t>& by_chunk) {
  const auto layers = static_cast<int64_t>(std::accumulate(by_chunk.begin(), by_chunk.end(), 0ul));
  const int64_t devices = e.stages * loaded.plan.mesh.size();
  int64_t stages = e.stages;
  while (layers % stages != 0 || devices % stages != 0) --stages;
  if (stages == 1) return one_stage(e, kTarget);
  Advice advice;
  if (stages < e.stages) {
    // The mesh of a stage grows with it.
    Exported fewer = e;
    fewer.data *= e.stages / stages;
    fewer.stages = static_cast<int32_t>(stages);
    advice = on_mesh(e, fewer, kTarget);
  }
  advice.pins["pp"] = std::to_string(stages);
  advice.pins["chunks"] = "1";
  advice.pins["schedule"] = "1f1b";
  const std::string of = layers_name(loaded.model.graph);
  for (int64_t s = 1; s < stages; ++s) {
    advice.pins[fmt::format("{}.{}", of, layers / stages * s)] = "cut";
  }
  leave_out(e, "=cut", advice), leave_out(e, "=stage", advice);
  return advice;
}

void expect_usual_kind(const Exported& e, const ModuleSplit& m, const Advice& again) {
  const Kind kind = m.use.kind;
  if (kind == Kind::kOther || (kind == Kind::kBias && in_layers(m.name))) {
    refuse(e, kTarget, m, "there it is whole", only_data(e));
  }
  if (kind == Kind::kExperts) {
    refuse(e, kTarget, m, "there --expert-model-parallel-size does that",
           experts_instead(e, kTarget));
  }
  if (!m.multiplies) return;
  if (kind != m.usual) {
    refuse(e, kTarget, m,
           "--tensor-model-parallel-size splits every product of a layer by columns or rows, and "
           "tables of the vocabulary by its rows",
           again);
  }
  if (m.again && m.again->kind != Kind::kColumns) {
    refuse(e, kTarget,
           fmt::format("the last product, with {}, is {}, and there split by columns", m.name,
                       words(m.again->kind)),
           again);
  }
}

// Whether norms are split along the sequence. Refused: weights that are not split as Megatron does
// it: every product of a layer by columns or rows, attention by heads, the vocabulary by rows.
bool expect_megatrons_split(const Exported& e) {
  const bool experts = std::any_of(e.modules.begin(), e.modules.end(),
                                   [](const ModuleSplit& m) { return m.experts > 0; });
  const Advice again =
      experts ? experts_instead(e, kTarget) : usual_split(e, kTarget, Ends::kSplit);
  expect_heads(e, kTarget);
  bool sequence = false, whole = false;
  for (const auto& [name, m] : folded(e, kTarget, again)) {
    const bool by_sequence = m.use.edges.out == Held::kSequence;
    if (!m.multiplies && in_layers(name)) (by_sequence ? sequence : whole) = true;
    expect_usual_kind(e, m, again);
  }
  expect_usual_edges(e, kTarget, again, false);
  if (sequence && whole) {
    refuse(e, kTarget,
           "some norms are split along the sequence over tp and others are not, and "
           "--sequence-parallel is for all",
           only_data(e));
  }
  if (experts && !sequence) {
    refuse(e, kTarget,
           "experts go with tensor parallelism there only with --sequence-parallel, and the plan's "
           "norms are whole",
           again);
  }
  return sequence;
}

// Megatron's words for what is computed again; refused when it has none.
std::vector<std::string> recompute_flags(const LoadedPlan& loaded, const Exported& e,
                                         const UserModel* user) {
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
  Advice full = pinned("recompute", "full");
  leave_out(e, "=keep", full), leave_out(e, "=recompute", full);
  refuse(e, kTarget,
         fmt::format("the plan computes {} ops again, chosen one by one; there it is whole layers, "
                     "or attention (recompute=selective)",
                     remade.size()),
         full);
}

// Refused: schedules and stages that no flags say.
std::vector<std::string> stage_flags(const LoadedPlan& loaded, const Exported& e) {
  const Pipeline& p = loaded.plan.pipeline;
  std::vector<std::string> flags = {fmt::format("--pipeline-model-parallel-size {}", p.stages)};
  if (p.chunks > 1) {
    flags.push_back(fmt::format("--num-virtual-stages-per-pipeline-rank {}", p.chunks));
  }
  if (p.stages == 1) return flags;
  if (p.schedule == ScheduleKind::kZeroBubble) {
    refuse(e, kTarget, "it has no flag for the zero-bubble schedule", pinned("schedule", "1f1b"));
  }
  const std::vector<size_t> layers = layers_by_chunk(loaded.model.graph, loaded.plan);
  if (std::any_of(layers.begin(), layers.end(), [&](size_t n) { return n != layers[0]; })) {
    refuse(
        e, kTarget,
        fmt::format("its chunks have as many layers each, the plan's {}", fmt::join(layers, ", ")),
        even_chunks(loaded, e, layers));
  }
  return flags;
}

std::vector<std::string> zero_flags(const Exported& e) {
  if (e.zero == 0) return {};
  if (e.zero < 3) return {"--use-distributed-optimizer"};
  if (e.stages > 1) {
    refuse(e, kTarget, "parameters in parts over dp (ZeRO 3) do not go with pipeline stages there",
           zero_for_all(e, kTarget));
  }
  return {"--use-megatron-fsdp", "--data-parallel-sharding-strategy optim_grads_params",
          "--no-gradient-accumulation-fusion", "--ckpt-format fsdp_dtensor",
          "--use-distributed-optimizer"};
}

// Refused: moments in bf16 that its optimizer does not have so.
std::vector<std::string> moment_flags(const LoadedPlan& loaded, const Exported& e) {
  const OptimizerOptions& optimizer = loaded.model.spec.optimizer;
  if (!optimizer.moments) return {};
  if (optimizer.kind != OptimizerOptions::Kind::kAdamW) {
    fail("--to {}: only Adam keeps moments in bf16 there; plan again without --moments bf16",
         kTarget);
  }
  if (e.zero == 0 && e.data > 1) {
    refuse(e, kTarget,
           "moments in bf16 go with --use-distributed-optimizer, and the plan has all of them on "
           "each rank",
           pinned("zero", "1"));
  }
  std::vector<std::string> flags = {"--use-precision-aware-optimizer", "--exp-avg-dtype bf16",
                                    "--exp-avg-sq-dtype bf16"};
  if (e.zero == 0) flags.insert(flags.begin(), "--use-distributed-optimizer");
  return flags;
}

}  // namespace

Written megatron_flags(const LoadedPlan& loaded, const Exported& e, const UserModel* user) {
  expect_nothing_else(loaded, e, kTarget);
  bool sequence = false;
  if (e.tensor > 1) {
    expect_parts(e, kTarget);
    sequence = expect_megatrons_split(e);
  }
  std::vector<std::string> notes = expect_whole_zero(loaded, e, kTarget);
  for (const std::string& note : notes_on_tensor(e, false, false)) notes.push_back(note);
  std::vector<std::string> flags = {fmt::format("--tensor-model-parallel-size {}", e.tensor)};
  if (sequence) flags.push_back("--sequence-parallel");
  const auto add = [&](const std::vector<std::string>& more) {
    flags.insert(flags.end(), more.begin(), more.end());
  };
  add(stage_flags(loaded, e));
  flags.push_back(fmt::format("--context-parallel-size {}", e.context));
  if (e.expert > 1) flags.push_back(fmt::format("--expert-model-parallel-size {}", e.expert));
  flags.push_back(fmt::format("--micro-batch-size {}", e.sequences));
  flags.push_back(fmt::format("--global-batch-size {}", e.batch * e.micro_batches));
  flags.push_back(fmt::format("--seq-length {}", loaded.model.config.sequence));
  if (is_half(loaded.model.spec.dtype)) {
    flags.push_back(fmt::format("--{}", precision_name(loaded.model.spec.dtype)));
  }
  add(zero_flags(e));
  add(moment_flags(loaded, e));
  if (loaded.model.spec.optimizer.moments) {
    notes.push_back("moments in bf16 are rounded to the nearest there, and stochastically here");
  }
  add(recompute_flags(loaded, e, user));
  if (e.context > 1 && !e.rings) {
    notes.push_back(
        "attention gathers keys and values over cp in the plan; there --cp-comm-type says how, and "
        "left out it is a ring");
  }
  std::string text;
  for (const std::string& f : flags) text += f + "\n";
  return {text, notes};
}

}  // namespace cleave
