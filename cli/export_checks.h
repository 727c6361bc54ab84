// What the writers of an export share: what they refuse, with advice, and what they note.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "cli/export_advice.h"
#include "cli/export_plan.h"

namespace cleave {

// Throws Error: what is in the way, and with which options to plan again.
[[noreturn]] void refuse(const Exported& e, const std::string& target, const std::string& what,
                         const Advice& again);
// The same of one module, with how it is split.
[[noreturn]] void refuse(const Exported& e, const std::string& target, const ModuleSplit& m,
                         const std::string& why, const Advice& again);

std::string_view words(ModuleSplit::Kind kind);

// Modules by their names with layers folded. Refused: layers that are split in different ways.
std::map<std::string, ModuleSplit> folded(const Exported& e, const std::string& target,
                                          const Advice& again);
// Refused: states on the host and, except by Megatron, ops that are computed again.
void expect_nothing_else(const LoadedPlan& loaded, const Exported& e, const std::string& target);
void expect_one_stage(const Exported& e, const std::string& target, const std::string& why);
// A table that is a product's weight too is split by the vocabulary in both, or in none.
void expect_tied(const Exported& e, const ModuleSplit& m, const std::string& target);
// Attention of so many heads as tp does not divide is why it and what is around it are not split.
void expect_heads(const Exported& e, const std::string& target);
// What is split over tp must be so as all programs split it. `whole_too`: where the target has
// activations whole on each rank, that they are in parts along the sequence here changes nothing of
// what is computed; else it is refused.
void expect_usual_edges(const Exported& e, const std::string& target, const Advice& again,
                        bool whole_too);
// A tensor axis on which nothing is split repeats all work.
void expect_parts(const Exported& e, const std::string& target);
// A weight that is used whole and kept in parts is gathered each step; none of them does that.
void expect_kept_as_used(const Exported& e, const ModuleSplit& m, const std::string& target);

// Of targets that do not say what optimizer there is.
std::vector<std::string> notes_on_moments(const LoadedPlan& loaded);

// What is the same computation: what lies in parts here and whole there. `sequence`: between
// products; `logits`: of the last one.
std::vector<std::string> notes_on_tensor(const Exported& e, bool sequence, bool logits);

}  // namespace cleave
