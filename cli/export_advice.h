// With which options a plan that cannot be exported is planned again, so that it can.
#pragma once

#include <string>

#include "cli/export_plan.h"

namespace cleave {

// "dp=4,tp=2": the mesh of one stage, by roles.
std::string mesh_with_roles(const Exported& e);
// "--pin zero=1": as the plan mostly has it, as far as the target goes; "" without ranks for it.
std::string zero_for_all(const Exported& e, const std::string& target);
// The same mesh with a role for every axis.
std::string with_roles(const Exported& e, const std::string& target);
// No axis but that of the data.
std::string only_data(const Exported& e);
// Of attention that is not split by heads: fewer ranks of tp, as many as divide them, and more of
// dp.
std::string fewer_tensor(const Exported& e, const Misfit& m, const std::string& target);
// Experts over an axis of their own.
std::string experts_instead(const Exported& e, const std::string& target);
// What looks up and the last product are split along the batch over this axis.
std::string ends_by_batch(const Exported& e, const std::string& axis, const std::string& target);
// The ranks of all stages in one, with more of dp.
std::string one_stage(const Exported& e, const std::string& target);
// Pins of the plan that would be in the way, as ", without 'schedule=1f1b'"; empty: none.
std::string without_pins(const Exported& e, const std::vector<std::string>& starts,
                         const std::string& holding = "");
// What looks up and the last product are whole on each rank of tp.
std::string whole_ends(const Exported& e);
// Weights that are used whole are kept whole.
std::string kept_whole(const Exported& e);
// Those of the module's part of a layer, or of the model's end, are whole on each rank of tp.
std::string part_whole(const Exported& e, const std::string& module);

// The usual split by tensors, every product of layers by columns or rows; what is so already is not
// said. `ends`: look-ups and the last product too, or whole.
enum class Ends : uint8_t { kAsPlanned, kSplit, kWhole };
std::string usual_split(const Exported& e, const std::string& target, Ends ends = Ends::kAsPlanned);

}  // namespace cleave
