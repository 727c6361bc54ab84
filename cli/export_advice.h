// With which options a plan that cannot be exported is planned again, so that it can.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>

#include "cli/export_plan.h"

namespace cleave {

// Options beside the plan's own: each takes the place of the same one, pins are more of them.
struct Advice {
  int64_t devices = 0;                      // of the cluster; 0: as many as the plan has
  std::string mesh;                         // "dp=4,tp=2"; empty: the plan's
  int64_t batch = 0;                        // 0: the plan's
  int64_t accumulate = 0;                   // else the batch is that of one micro-batch
  std::map<std::string, std::string> pins;  // "h.*.mlp.fc:tp" -> "shard(0)", "zero" -> "1"
  std::set<std::string> without;            // pins of the plan
};

// "with --mesh dp=4 --pin zero=1, without 'tp=2'". What is in the way is said too: pins of the plan
// that contradict the advised ones, and of sizes and axes that the advised mesh has not.
std::string text_of(const Exported& e, const Advice& advice);

// One pin.
Advice pinned(const std::string& key, const std::string& value);
// ZeRO as the plan mostly has it, as far as the target goes, and of all parameters.
Advice zero_for_all(const Exported& e, const std::string& target);
// Weights that are no experts are whole on every rank of ep.
Advice whole_over_experts(const Exported& e);
// The mesh of one stage with the sizes of `other`, and a role for every axis; with a batch that
// divides by it. For hf-tp one axis, tp.
Advice on_mesh(const Exported& e, const Exported& other, const std::string& target);
// The same mesh with a role for every axis.
Advice with_roles(const Exported& e, const std::string& target);
// No axis but that of the data.
Advice only_data(const Exported& e);
// One axis of tp on so many devices.
Advice only_tensor(const Exported& e, int64_t devices);
// Of attention that is not split by heads: fewer ranks of tp, as many as divide them, and more of
// dp.
Advice fewer_tensor(const Exported& e, const Misfit& m, const std::string& target);
// Ranks of tp that repeat all work are left out.
Advice without_tensor(const Exported& e, const std::string& target);
// Experts over an axis of their own; without any: no axis but that of the data.
Advice experts_instead(const Exported& e, const std::string& target);
// The op, what looks up and the last product are split along the batch, over cp along the
// sequence, on the misfit's axis.
Advice split_by_role(const Exported& e, const Misfit& m, const std::string& target);
// The ranks of all stages in one, with more of dp.
Advice one_stage(const Exported& e, const std::string& target);
// No pin of the plan that ends so: "=cut".
void leave_out(const Exported& e, const std::string& ending, Advice& advice);
// What looks up and the last product are whole on each rank of tp.
Advice whole_ends(const Exported& e);
// Weights that are used whole are kept whole.
Advice kept_whole(const Exported& e);
// Those of the module's part of a layer, or of the model's end, are whole on each rank of tp.
Advice part_whole(const Exported& e, const std::string& module);

// The usual split by tensors, every product of layers by columns or rows; what is so already is not
// said. `ends`: look-ups and the last product too, or whole.
enum class Ends : uint8_t { kAsPlanned, kSplit, kWhole };
Advice usual_split(const Exported& e, const std::string& target, Ends ends = Ends::kAsPlanned);

}  // namespace cleave
