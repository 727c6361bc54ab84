// cleave view
#include <cstdio>

#include "cli/commands.h"
#include "cli/format.h"
#include "cli/plan_file.h"
#include "graph/error.h"
#include "graph/json.h"
#include "graph/text.h"
#include "kernels/ops.h"
#include "viz/draw.h"
#include "viz/svg.h"

namespace cleave {
namespace {

bool is_file(const std::string& model) {
  return model.ends_with(".json") || model.ends_with(".txt");
}

// Options that say what to trace mean nothing beside a file.
void expect_no_model_options(const ModelArguments& m) {
  const char* option = !m.set.empty()         ? "--set"
                       : m.batch != 0         ? "--batch"
                       : !m.precision.empty() ? "--precision"
                       : !m.optimizer.empty() ? "--optimizer"
                       : m.forward            ? "--forward"
                                              : nullptr;
  if (option != nullptr) fail("{} does not change the file {}; leave it out", option, m.model);
}

Picture picture_of(const ViewArguments& a, ViewLevel level) {
  const ModelArguments& m = a.model;
  if (!is_file(m.model)) return draw(trace_model(spec_of(m), m.user).graph, level);
  expect_no_model_options(m);
  const std::string text = read_file(m.model);
  try {
    if (m.model.ends_with(".txt")) return draw(graph_from_text(text, ops::find), level);
    if (!is_plan_file(text)) return draw(graph_from_json_text(text, ops::find), level);
  } catch (const Error& e) {
    fail("{}: {}", m.model, e.what());
  }
  const LoadedPlan loaded = load_plan(m.model, text, spec_in_plan_file(m.model, text), m.user);
  return draw(loaded.model.graph, loaded.plan, level);
}

// Why an SVG cannot be had, and what can.
void expect_drawable(const Picture& picture, const ViewArguments& a) {
  if (picture.boxes.size() <= kMostBoxes) return;
  fail(
      "-o {}: {} boxes at --level {}, and an SVG of more than {} cannot be read; write a .dot for "
      "Graphviz, or take --level block, or --set layers=1",
      a.out, picture.boxes.size(), a.level, kMostBoxes);
}

}  // namespace

void view_command(const ViewArguments& a) {
  const ViewLevel level = view_level_named(a.level);
  const bool svg = a.out.ends_with(".svg");
  if (!svg && !a.out.ends_with(".dot")) fail("-o {}: name a .dot or an .svg file", a.out);
  const Picture picture = picture_of(a, level);
  if (svg) expect_drawable(picture, a);
  write_file(a.out, svg ? to_svg(picture) : to_dot(picture));
  fmt::print("{}: {} boxes, {} arrows\n", a.out, picture.boxes.size(), picture.arrows.size());
}

}  // namespace cleave
