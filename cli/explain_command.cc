// cleave explain
#include <cstdio>
#include <sstream>

#include "cli/commands.h"
#include "cli/explain_report.h"
#include "cli/format.h"
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

// The model of the plan, to be planned again with other pins.
PlanRequest request_of(const LoadedPlan& loaded, const ExplainArguments& a, Pins pins) {
  PlanRequest request;
  request.spec = loaded.model.spec;
  request.user = a.user;
  request.cluster = loaded.plan.cluster;
  request.memory = a.memory;
  request.pins = std::move(pins);
  return request;
}

}  // namespace

void explain_command(const ExplainArguments& a) {
  if (!a.op.empty() && !a.why_not.empty()) {
    fail("--why-not asks about the whole plan; leave out {}, or pin it: --why-not '{}:tp=...'",
         a.op, a.op);
  }
  if (a.why_not.empty() && !a.memory.empty()) fail("--memory is for --why-not");
  const Pins pins = parse_pins(pins_in(a.why_not), "--why-not");
  const std::string text = read_file(a.plan);
  const LoadedPlan loaded = load_plan(a.plan, text, spec_in_plan_file(a.plan, text), a.user);
  const bool colour = colours_wanted();
  if (!a.why_not.empty()) {
    Planned other;
    try {
      other = planned(request_of(loaded, a, pins));
      if (!other.result.plan && static_cast<double>(other.result.smallest_peak) <= other.limit) {
        const auto nearest = nearest_to_fitting(request_of(loaded, a, pins), 1);
        if (nearest) other.result.smallest_peak = nearest->result.plan->predicted.peak_bytes;
      }
    } catch (const Error& e) {
      // An answer too: there is no such plan. What the pins name has to be there.
      node_pins(pins, loaded.model.graph);
      value_pins(pins, loaded.model.graph);
      Candidate impossible;
      impossible.why_not = e.what();
      other.result.candidates.push_back(impossible);
    }
    fmt::print("{}", a.json ? why_not_json(loaded, other, a.why_not)
                            : why_not_text(loaded, other, a.why_not, colour));
  } else if (!a.op.empty()) {
    fmt::print("{}",
               a.json ? explain_op_json(loaded, a.op) : explain_op_text(loaded, a.op, colour));
  } else {
    fmt::print("{}", a.json ? explain_json(loaded) : explain_text(loaded, colour));
  }
}

}  // namespace cleave
