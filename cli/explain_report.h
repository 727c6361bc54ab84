// What `cleave explain` prints.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "cli/plan_file.h"
#include "cli/planned.h"

namespace cleave {

// What was chosen, what it beat and by how much, and where devices meet.
std::string explain_text(const LoadedPlan& loaded, bool colour);
std::string explain_json(const LoadedPlan& loaded);

// How the ops, or the ops that read the parameters, that a pattern names are split (planner/pins.h:
// names), every other way and its price, and the collectives around them. Throws Error when it
// names nothing.
std::string explain_op_text(const LoadedPlan& loaded, const std::string& pattern, bool colour);
std::string explain_op_json(const LoadedPlan& loaded, const std::string& pattern);

// Of the options that the plan was made with: those that the other plan keeps too, and those that
// gave way to what was asked for.
struct WhyNotTerms {
  std::vector<std::string> kept, gave_way;
};
// What another plan would cost, and why. `asked`: as written.
std::string why_not_text(const LoadedPlan& loaded, const Planned& other, const std::string& asked,
                         const WhyNotTerms& terms, bool colour);
std::string why_not_json(const LoadedPlan& loaded, const Planned& other, const std::string& asked,
                         const WhyNotTerms& terms);

}  // namespace cleave
