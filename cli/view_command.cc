// cleave view
#include <cstdio>
#include <functional>
#include <limits>
#include <optional>

#include "cli/commands.h"
#include "cli/format.h"
#include "cli/plan_file.h"
#include "cli/plan_report.h"
#include "cli/planning.h"
#include "cli/regions_report.h"
#include "graph/error.h"
#include "graph/json.h"
#include "graph/text.h"
#include "kernels/ops.h"
#include "viz/draw.h"
#include "viz/html.h"
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
                       : !m.moments.empty()   ? "--moments"
                       : m.forward            ? "--forward"
                                              : nullptr;
  if (option != nullptr) fail("{} does not change the file {}; leave it out", option, m.model);
}

// What is drawn: a graph, and its plan when there is one.
struct Subject {
  Graph graph;
  std::optional<LoadedPlan> plan;  // with a graph of its own

  const Graph& drawn() const { return plan ? plan->model.graph : graph; }
  Picture picture(ViewLevel level) const {
    return plan ? draw(plan->model.graph, plan->plan, level) : draw(graph, level);
  }
};

Subject subject_of(const ModelArguments& m) {
  if (!is_file(m.model)) return {trace_model(spec_of(m), m.user).graph, {}};
  expect_no_model_options(m);
  const std::string text = read_file(m.model);
  try {
    if (m.model.ends_with(".txt")) return {graph_from_text(text, ops::find), {}};
    const bool plan = is_plan_file(text);
    if (!plan && text.find("cleave_graph") == text.npos && text.starts_with('{')) {
      fail("neither a graph nor a plan; cleave trace -o and cleave plan -o write them");
    }
    if (!plan) return {graph_from_json_text(text, ops::find), {}};
  } catch (const Error& e) {
    fail("{}: {}", m.model, e.what());
  }
  return {{}, load_plan(m.model, text, spec_in_plan_file(m.model, text), m.user)};
}

// Every level that can be read, the level that was asked for first, and the reports.
std::string page_of(const Subject& subject, ViewLevel first) {
  static constexpr std::pair<ViewLevel, const char*> kLevels[] = {{ViewLevel::kModel, "model"},
                                                                  {ViewLevel::kBlock, "one layer"},
                                                                  {ViewLevel::kRaw, "every op"}};
  std::vector<Tab> tabs;
  for (const auto& [level, name] : kLevels) {
    const Picture picture = subject.picture(level);
    if (picture.boxes.size() > kMostBoxes) continue;
    const Tab tab = {name, picture_tab(picture, fmt::format("p{}", tabs.size()))};
    tabs.insert(level == first ? tabs.begin() : tabs.end(), tab);
  }
  if (subject.plan) {
    const LoadedPlan& p = *subject.plan;
    const double limit = p.plan.cluster.device.memory;
    tabs.push_back({"plan", text_tab(plan_report(p.model, p.plan, limit))});
  }
  tabs.push_back({"regions", text_tab(regions_report(subject.drawn()))});
  return html_page(subject.drawn().name, tabs);
}

}  // namespace

void view_command(const ViewArguments& a) {
  const ViewLevel level = view_level_named(a.level);
  const bool svg = a.out.ends_with(".svg"), html = a.out.ends_with(".html");
  if (!svg && !html && !a.out.ends_with(".dot")) {
    fail("-o {}: name a .svg, .html or .dot file", a.out);
  }
  const Subject subject = subject_of(a.model);
  const Picture picture = subject.picture(level);
  if (!a.out.ends_with(".dot") && picture.boxes.size() > kMostBoxes) {
    fail(
        "-o {}: {} boxes at --level {}, and an SVG of more than {} cannot be read; write a .dot "
        "for Graphviz, or take --level block, or --set layers=1",
        a.out, picture.boxes.size(), a.level, kMostBoxes);
  }
  write_file(a.out, svg ? to_svg(picture) : html ? page_of(subject, level) : to_dot(picture));
  fmt::print("{}: {} boxes, {} arrows\n", a.out, picture.boxes.size(), picture.arrows.size());
}

}  // namespace cleave
