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
#include "viz/render.h"

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

}  // namespace

void view_command(const ViewArguments& a) {
  const ViewLevel level = view_level_named(a.level);
  const bool svg = a.out.ends_with(".svg");
  if (!svg && !a.out.ends_with(".dot")) fail("-o {}: name a .dot or an .svg file", a.out);
  if (!(a.time_limit > 0)) fail("--time-limit {}: write a number above 0", a.time_limit);
  const Picture picture = picture_of(a, level);
  const std::string dot_path = svg ? a.out.substr(0, a.out.size() - 4) + ".dot" : a.out;
  write_file(dot_path, to_dot(picture));
  if (svg) {
    const Rendering rendering = render_svg(dot_path, a.out, a.time_limit);
    if (!rendering.done) {
      fail("{}; {} is written{}", rendering.why_not, dot_path,
           level == ViewLevel::kRaw ? ", and --level block draws less" : "");
    }
  }
  fmt::print("{}: {} boxes, {} arrows\n", a.out, picture.boxes.size(), picture.arrows.size());
}

}  // namespace cleave
