// torch.distributed.tensor.parallel: parallelize_module and its styles; torch.distributed.fsdp.
#include <fmt/ranges.h>

#include <algorithm>
#include <set>

#include "cli/export_checks.h"

namespace cleave {
namespace {

using Kind = ModuleSplit::Kind;
const std::string kTarget = "dtensor";

// A product with a table's weight has no module of its own: its style is a note.
std::string tied_style(const ModuleSplit& m) {
  return fmt::format(
      "{} is the last product's weight too: a module that shares it has the style "
      "ColwiseParallel({}{})",
      m.name, m.again->edges.in == Held::kSequence ? "input_layouts=Shard(1), " : "",
      m.again->edges.out == Held::kWhole ? "output_layouts=Replicate()" : "use_local_output=False");
}

// Of a module that has all of its weights; empty: it needs none.
std::string style_of_whole(const Exported& e, const ModuleSplit& m) {
  if (m.use.edges.in == Held::kInner) {
    refuse(e, kTarget, m, "what it works on is split inside, and no style sums its gradient then",
           only_data(e));
  }
  if (!m.multiplies) return m.use.edges.in == Held::kSequence ? "SequenceParallel()" : "";
  // A plain module reads and makes what is whole.
  if (m.use.edges == ModuleSplit::Edges{}) return "";
  refuse(e, kTarget, m, "what is around it is split along the sequence, and no style says that",
         usual_split(e, kTarget, Ends::kSplit));
}

std::string style_of(const Exported& e, const ModuleSplit& m) {
  const ModuleSplit::Edges& edges = m.use.edges;
  std::vector<std::string> with;
  const auto layout = [&](const char* which, Held held) {
    if (held == Held::kSequence) with.push_back(fmt::format("{}=Shard(1)", which));
  };
  switch (m.use.kind) {
    case Kind::kColumns:
      layout("input_layouts", edges.in);
      if (edges.out == Held::kWhole) with.push_back("output_layouts=Replicate()");
      // What comes out of the last product goes to the loss in parts.
      if (!in_layers(m.name) && edges.out == Held::kInner) with.push_back("use_local_output=False");
      return fmt::format("ColwiseParallel({})", fmt::join(with, ", "));
    case Kind::kRows:
      layout("output_layouts", edges.out);
      return fmt::format("RowwiseParallel({})", fmt::join(with, ", "));
    case Kind::kTableRows:
      with.push_back("input_layouts=Replicate()");
      layout("output_layouts", edges.out);
      return fmt::format("RowwiseParallel({})", fmt::join(with, ", "));
    case Kind::kTableWidth:
      layout("output_layouts", edges.out);
      if (edges.out == Held::kWhole) with.push_back("output_layouts=Replicate()");
      return fmt::format("ColwiseParallel({})", fmt::join(with, ", "));
    case Kind::kWhole: return style_of_whole(e, m);
    case Kind::kPositions:
    case Kind::kExperts:
    case Kind::kBias:
    case Kind::kOther: break;
  }
  refuse(e, kTarget, m, "parallelize_module has no style for that", only_data(e));
}

// The entries of STYLES; notes on what has no module.
std::string styles_of(const Exported& e, const Advice& again, std::vector<std::string>& notes) {
  std::string styles;
  for (const auto& [name, m] : folded(e, kTarget, again)) {
    expect_tied(e, m, kTarget);
    if (m.use.pieces > 1) {
      refuse(e, kTarget, m,
             fmt::format("its {} pieces are cut one by one, and parallelize_module cuts a "
                         "dimension in one piece a rank",
                         m.use.pieces),
             only_data(e));
    }
    expect_kept_as_used(e, m, kTarget);
    const std::string style = style_of(e, m);
    if (style.empty()) continue;
    if (m.again && m.again->kind == Kind::kColumns) notes.push_back(tied_style(m));
    styles += fmt::format("    \"{}\": {},\n", name, style);
  }
  return styles;
}

// What the styles name, imported, and the styles.
std::string with_imports(const std::string& styles) {
  const auto named = [&](std::initializer_list<const char*> words) {
    std::vector<std::string> found;
    for (const char* word : words) {
      if (styles.find(fmt::format("{}(", word)) != std::string::npos) found.push_back(word);
    }
    return found;
  };
  std::string text;
  if (const auto layouts = named({"Replicate", "Shard"}); !layouts.empty()) {
    text += fmt::format("from torch.distributed.tensor import {}\n", fmt::join(layouts, ", "));
  }
  auto names = named({"ColwiseParallel", "RowwiseParallel", "SequenceParallel"});
  names.push_back("parallelize_module");
  text += fmt::format("from torch.distributed.tensor.parallel import (\n    {},\n)\n",
                      fmt::join(names, ",\n    "));
  return text + fmt::format("\nSTYLES = {{\n{}}}\n", styles);
}

std::string function_text(const Exported& e) {
  std::string text = "\n\ndef parallelize(model, device_type=\"cuda\"):\n";
  text += e.data > 1 && e.tensor > 1 ? fmt::format(
                                           "    mesh = init_device_mesh(device_type, ({}, {}), "
                                           "mesh_dim_names=(\"dp\", \"tp\"))\n",
                                           e.data, e.tensor)
                                     : fmt::format(
                                           "    mesh = init_device_mesh(device_type, ({},), "
                                           "mesh_dim_names=(\"{}\",))\n",
                                           std::max(e.data, e.tensor), e.tensor > 1 ? "tp" : "dp");
  if (e.tensor > 1) text += "    parallelize_module(model, mesh[\"tp\"], STYLES)\n";
  if (e.data > 1 && e.zero == 3) {
    text +=
        "    for child in model.children():\n"
        "        for layer in child.children() if len(list(child.children())) > 1 else [child]:\n"
        "            fully_shard(layer, mesh=mesh[\"dp\"])\n"
        "    fully_shard(model, mesh=mesh[\"dp\"])\n";
  } else if (e.data > 1) {
    text += "    # Gradients are averaged over mesh[\"dp\"] by DistributedDataParallel or by hand";
    text +=
        e.zero == 1 ? ",\n    # optimizer states in parts by ZeroRedundancyOptimizer.\n" : ".\n";
  }
  return text + "    return model, mesh\n";
}

}  // namespace

Written dtensor_script(const LoadedPlan& loaded, const Exported& e) {
  expect_nothing_else(loaded, e, kTarget);
  expect_one_stage(e, kTarget,
                   "parallelize_module has no stages: they are written with "
                   "torch.distributed.pipelining");
  std::string styles;
  std::vector<std::string> notes;
  if (e.tensor > 1) {
    const Advice again = usual_split(e, kTarget);
    expect_parts(e, kTarget);
    expect_usual_edges(e, kTarget, again, false);
    notes = notes_on_tensor(e, false, false);
    styles = styles_of(e, again, notes);
  }
  for (const std::string& note : expect_whole_zero(loaded, e, kTarget)) notes.push_back(note);
  for (const std::string& note : notes_on_moments(loaded)) notes.push_back(note);
  std::string text = fmt::format(
      "# {}: dp {} x tp {}, micro-batches of {} sequences a rank, {} in a step.\n"
      "from torch.distributed.device_mesh import init_device_mesh\n",
      loaded.model.spec.name, e.data, e.tensor, e.sequences, e.micro_batches);
  for (const std::string& note : notes) text += fmt::format("# Note: {}.\n", note);
  if (e.zero == 3) text += "from torch.distributed.fsdp import fully_shard\n";
  if (e.tensor > 1) text += with_imports(styles);
  return {text + function_text(e), {}};
}

}  // namespace cleave
