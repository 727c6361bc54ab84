// cleave explain
#include <algorithm>
#include <cstdio>
#include <sstream>

#include "cli/commands.h"
#include "cli/explain_report.h"
#include "cli/format.h"
#include "cli/plan_again.h"
#include "graph/error.h"

namespace cleave {
namespace {

// "tp=2,dp=4": commas stand between pins, not inside of them.
std::vector<std::string> pins_in(const std::string& text) {
  std::vector<std::string> pins;
  std::istringstream list(text);
  for (std::string pin; std::getline(list, pin, ',');) pins.push_back(pin);
  return pins;
}

// Whether pins leave no place for the plan's own mesh.
bool mesh_gives_way(const MeshRequest& mesh, const Pins& pins) {
  if (!pins.axes.empty() || pins.stages.value_or(1) > 1 || pins.chunks || pins.schedule)
    return true;
  const auto has = [&](AxisRole role) {
    return std::find(mesh.roles.begin(), mesh.roles.end(), role) != mesh.roles.end();
  };
  const bool open = has(AxisRole::kAny);
  if (pins.zero && (open || (*pins.zero > 0 && !has(AxisRole::kData)))) return true;
  const auto on_another = [&](const PlacementPin& p) {
    const auto role = role_named(p.axis);
    return role && !has(*role);
  };
  const auto of_stages = [](const NodePin& p) {
    return p.kind == NodePin::Kind::kStage || p.kind == NodePin::Kind::kCut;
  };
  return std::any_of(pins.placements.begin(), pins.placements.end(), on_another) ||
         std::any_of(pins.nodes.begin(), pins.nodes.end(), of_stages);
}

// Whether both fix the same thing of the whole plan, or what one fixes leaves the other no place.
bool gives_way(const Pins& own, const Pins& asked) {
  for (const AxisPin& a : own.axes) {
    for (const AxisPin& b : asked.axes) {
      if (a.role == b.role) return true;
    }
  }
  if (asked.recompute) {
    for (const NodePin& p : own.nodes) {
      if (p.kind == NodePin::Kind::kRemake || p.kind == NodePin::Kind::kKeep) return true;
    }
  }
  return (own.stages && asked.stages) || (own.chunks && (asked.chunks || asked.stages)) ||
         (own.schedule && (asked.schedule || asked.chunks || asked.stages)) ||
         (own.micro_batches && asked.micro_batches) || (own.zero && asked.zero) ||
         (own.recompute && asked.recompute) || (own.offload && asked.offload);
}

// What an alternative is asked with: the pins asked for, and what the plan itself was asked for.
struct Alternative {
  std::string mesh;               // empty: chosen
  int64_t micro_batches = 0;      // 0: chosen
  std::vector<std::string> pins;  // of the plan
  std::vector<std::string> words() const {
    std::vector<std::string> all;
    if (!mesh.empty()) all.push_back("--mesh " + mesh);
    if (micro_batches > 0) all.push_back(fmt::format("--accumulate {}", micro_batches));
    for (const std::string& p : pins) all.push_back("--pin " + p);
    return all;
  }
};

class WhyNot {
 public:
  WhyNot(const LoadedPlan& loaded, const ExplainArguments& a)
      : loaded_(loaded), arguments_(a), asked_(pins_in(a.why_not)) {}

  // The best plan with the pins, under what the plan was asked for as far as that is possible with
  // them: what fixes the same gives way, then one thing after another, then all.
  Planned find(WhyNotTerms& terms) {
    const Pins pins = parse_pins(asked_, "--why-not");
    const Asked& own = loaded_.plan.asked;
    Alternative whole{own.mesh, own.micro_batches ? loaded_.model.graph.micro_batches : 0,
                      loaded_.plan.pins};
    const std::vector<std::string> all = whole.words();
    if (!own.mesh.empty() && mesh_gives_way(parse_mesh(own.mesh), pins)) whole.mesh.clear();
    // A step that is not divided has no use for stages.
    if (pins.micro_batches || pins.stages || pins.chunks || pins.schedule) {
      whole.micro_batches = 0;
    }
    std::erase_if(whole.pins, [&](const std::string& text) {
      return gives_way(parse_pins(std::vector<std::string>{text}, "--pin"), pins);
    });
    std::vector<Alternative> tries = {whole};
    if (!whole.mesh.empty()) tries.push_back({"", whole.micro_batches, whole.pins});
    for (size_t i = 0; i < whole.pins.size(); ++i) {
      tries.push_back(whole);
      tries.back().pins.erase(tries.back().pins.begin() + static_cast<std::ptrdiff_t>(i));
    }
    if (whole.words().size() > 1) tries.push_back({});
    Planned result;
    for (size_t t = 0; t < tries.size(); ++t) {
      const bool last = t + 1 == tries.size();
      result = priced(tries[t]);
      const bool impossible =
          !result.result.plan && static_cast<double>(result.result.smallest_peak) <= result.limit;
      if (impossible && !last) continue;
      terms.kept = tries[t].words();
      break;
    }
    for (const std::string& word : all) {
      if (std::find(terms.kept.begin(), terms.kept.end(), word) == terms.kept.end()) {
        terms.gave_way.push_back(word);
      }
    }
    if (arguments_.memory.empty() && own.memory_limit > 0) {
      terms.kept.push_back("--memory " + exact_bytes(own.memory_limit));
    }
    return result;
  }

 private:
  PlanRequest request_of(const Alternative& alternative) const {
    std::vector<std::string> texts = asked_;
    texts.insert(texts.end(), alternative.pins.begin(), alternative.pins.end());
    const Asked& own = loaded_.plan.asked;
    PlanRequest request;
    request.spec = loaded_.model.spec;
    request.user = arguments_.user;
    request.cluster = loaded_.plan.cluster;
    request.mesh = alternative.mesh;
    request.fixed_micro_batches = alternative.micro_batches > 0;
    request.memory = arguments_.memory;
    if (request.memory.empty() && own.memory_limit > 0) {
      request.memory = exact_bytes(own.memory_limit);
    }
    request.pins = parse_pins(texts, "--why-not");
    return request;
  }

  // A plan, or a result that says why there is none.
  Planned priced(const Alternative& alternative) const {
    Planned other;
    try {
      const PlanRequest request = request_of(alternative);
      other = planned(request);
      if (!other.result.plan && static_cast<double>(other.result.smallest_peak) <= other.limit) {
        replace_by_nearest(request, other);
      }
    } catch (const Error& e) {
      // An answer too: there is no such plan. What the pins name has to be there.
      const Pins pins = parse_pins(asked_, "--why-not");
      node_pins(pins, loaded_.model.graph);
      value_pins(pins, loaded_.model.graph);
      Candidate impossible;
      impossible.why_not = e.what();
      other.result.candidates.push_back(impossible);
    }
    return other;
  }

  const LoadedPlan& loaded_;
  const ExplainArguments& arguments_;
  const std::vector<std::string> asked_;
};

}  // namespace

void explain_command(const ExplainArguments& a) {
  if (!a.op.empty() && !a.why_not.empty()) {
    fail("--why-not asks about the whole plan; leave out {}, or pin it: --why-not '{}:tp=...'",
         a.op, a.op);
  }
  if (a.why_not.empty() && !a.memory.empty()) fail("--memory is for --why-not");
  parse_pins(pins_in(a.why_not), "--why-not");  // before anything is read
  const std::string text = read_file(a.plan);
  const LoadedPlan loaded = load_plan(a.plan, text, spec_in_plan_file(a.plan, text), a.user);
  const bool colour = colours_wanted();
  if (!a.why_not.empty()) {
    WhyNotTerms terms;
    const Planned other = WhyNot(loaded, a).find(terms);
    fmt::print("{}", a.json ? why_not_json(loaded, other, a.why_not, terms)
                            : why_not_text(loaded, other, a.why_not, terms, colour));
  } else if (!a.op.empty()) {
    fmt::print("{}",
               a.json ? explain_op_json(loaded, a.op) : explain_op_text(loaded, a.op, colour));
  } else {
    fmt::print("{}", a.json ? explain_json(loaded) : explain_text(loaded, colour));
  }
}

}  // namespace cleave
