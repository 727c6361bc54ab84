#include "cli/export_advice.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <numeric>

#include "viz/names.h"

namespace cleave {
namespace {

using Kind = ModuleSplit::Kind;

// Pins that a mesh of other sizes contradicts.
const std::vector<std::string> kSizes = {"dp", "tp", "cp", "ep"};

bool is_of_layers(const std::string& name) { return folded_name(name) != name; }

using PinsByName = std::map<std::string, std::string>;  // "h.*.mlp.fc:tp" -> "shard(0)"

std::string pinned(const PinsByName& pins) {
  std::string text;
  for (const auto& [name, to] : pins) {
    text += fmt::format("{}'{}={}'", text.empty() ? "--pin " : " ", name, to);
  }
  return text;
}

std::string joined(const std::string& a, const std::string& b) {
  return a + (a.empty() || b.empty() ? "" : " ") + b;
}

// The weight is kept whole, and what is done with it is done by every rank.
void add_whole(const ModuleSplit& m, PinsByName& pins) {
  pins[folded_name(m.name) + ":tp"] = "replicate";
  for (const std::string& op : m.ops) pins[op + ":tp"] = "replicate";
}

PinsByName whole_end_pins(const Exported& e) {
  PinsByName pins;
  for (const ModuleSplit& m : e.modules) {
    if (m.multiplies && !is_of_layers(m.name)) add_whole(m, pins);
  }
  return pins;
}

// The plan's own pins of these modules that say something else.
std::string without_others(const Exported& e, const PinsByName& pins) {
  std::vector<std::string> starts;
  for (const ModuleSplit& m : e.modules) {
    const bool of_these = std::any_of(pins.begin(), pins.end(), [&](const auto& pin) {
      return pin.first == folded_name(m.name) + ":tp" ||
             m.ops.contains(pin.first.substr(0, pin.first.rfind(':')));
    });
    if (!of_these) continue;
    starts.push_back(m.name + ":tp"), starts.push_back(folded_name(m.name) + ":tp");
    for (const std::string& op : m.ops) starts.push_back(op + ":tp");
  }
  // Attention between products that are split is split too.
  for (const std::string& op : e.attention) {
    const bool between = std::any_of(pins.begin(), pins.end(), [&](const auto& pin) {
      return pin.second != "replicate" && pin.first.starts_with(op.substr(0, op.rfind('.') + 1));
    });
    if (between) starts.push_back(op + ":tp");
  }
  Exported other = e;
  std::erase_if(other.pins, [&](const std::string& pin) {
    const auto same = pins.find(pin.substr(0, pin.rfind('=')));
    return same != pins.end() && pin.ends_with("=" + same->second);
  });
  return without_pins(other, starts);
}

}  // namespace

std::string without_pins(const Exported& e, const std::vector<std::string>& starts,
                         const std::string& holding) {
  std::vector<std::string> found;
  for (const std::string& pin : e.pins) {
    const bool starts_so = std::any_of(starts.begin(), starts.end(), [&](const std::string& start) {
      return pin.starts_with(start + "=");
    });
    if (starts_so || (!holding.empty() && pin.find(holding) != std::string::npos))
      found.push_back(fmt::format("'{}'", pin));
  }
  return found.empty() ? "" : fmt::format(", without {}", fmt::join(found, ", "));
}

std::string one_stage(const Exported& e, const std::string& target) {
  Exported one = e;
  one.data *= e.stages;
  one.stages = 1;
  const int64_t devices = one.data * one.context * one.expert * one.tensor;
  return (target == "hf-tp" ? fmt::format("--mesh tp={} --pin pp=1 zero=0", devices)
                            : "--pin pp=1 " + with_roles(one, target)) +
         without_pins(e, {"schedule", "chunks", "micro", "dp", "tp", "cp", "ep"}, "=cut") +
         without_pins(e, {}, "=stage");
}

std::string whole_ends(const Exported& e) {
  const PinsByName pins = whole_end_pins(e);
  return pinned(pins) + without_others(e, pins);
}

std::string kept_whole(const Exported& e) {
  PinsByName pins;
  for (const ModuleSplit& m : e.modules) {
    if (m.multiplies && m.kind == Kind::kWhole && m.kept_in_parts) add_whole(m, pins);
  }
  return pinned(pins) + without_others(e, pins);
}

std::string mesh_with_roles(const Exported& e) {
  std::string text;
  const auto add = [&](const char* role, int64_t size) {
    if (size > 1) text += fmt::format("{}{}={}", text.empty() ? "" : ",", role, size);
  };
  add("dp", e.data), add("cp", e.context), add("ep", e.expert), add("tp", e.tensor);
  return text.empty() ? "dp=1" : text;
}

// A mesh is that of one stage.
static std::string of_stages(const Exported& e) {
  const bool said = std::any_of(e.pins.begin(), e.pins.end(),
                                [](const std::string& pin) { return pin.starts_with("pp="); });
  return e.stages > 1 && !said ? fmt::format("--pin pp={}", e.stages) : "";
}

std::string zero_for_all(const Exported& e, const std::string& target) {
  if (e.data == 1) {
    return target == "deepspeed" && e.tensor > 1 ? pinned(whole_end_pins(e)) : "";
  }
  const bool little = (target == "deepspeed" && e.tensor > 1) || e.stages > 1;
  std::string text =
      fmt::format("--pin zero={}", target == "hf-tp" ? 0 : std::min(e.zero, little ? 1 : 3));
  // What would be refused next.
  if (target == "deepspeed" && e.tensor > 1) text = joined(text, pinned(whole_end_pins(e)));
  return text;
}

std::string with_roles(const Exported& e, const std::string& target) {
  return joined(joined("--mesh " + mesh_with_roles(e), of_stages(e)), zero_for_all(e, target));
}

std::string only_data(const Exported& e) {
  const int64_t ranks = e.data * e.tensor * e.context * e.expert;
  std::string text =
      fmt::format("--mesh dp={} --pin zero={}", ranks, e.zero == 3 && e.stages == 1 ? 3 : 1);
  text = joined(text, of_stages(e));
  if (e.batch % ranks != 0) {
    text += fmt::format(" --batch {}", (e.batch + ranks - 1) / ranks * ranks);
  }
  return text + without_pins(e, kSizes, ":");
}

std::string fewer_tensor(const Exported& e, const Misfit& m, const std::string& target) {
  const int64_t tensor = std::gcd(e.tensor, m.heads);
  if (target == "hf-tp" && tensor == 1) return part_whole(e, m.op);
  if (target == "hf-tp") return fmt::format("a --cluster of {0} devices and --mesh tp={0}", tensor);
  if (tensor == 1) return only_data(e);
  Exported fewer = e;
  fewer.data *= e.tensor / tensor;
  fewer.tensor = tensor;
  return with_roles(fewer, target) + without_pins(e, kSizes);
}

std::string ends_by_batch(const Exported& e, const std::string& axis, const std::string& target) {
  PinsByName pins;
  for (const ModuleSplit& m : e.modules) {
    if (!m.multiplies || is_of_layers(m.name)) continue;
    for (const std::string& op : m.ops) pins[fmt::format("{}:{}", op, axis)] = "shard(0)";
  }
  return joined(zero_for_all(e, target), pinned(pins));
}

std::string experts_instead(const Exported& e, const std::string& target) {
  int64_t experts = 0;
  for (const ModuleSplit& m : e.modules) experts = std::gcd(experts, m.experts);
  Exported other = e;
  other.expert = std::gcd(e.tensor * e.expert, experts);
  other.data = e.data * e.tensor * e.expert / other.expert;
  other.tensor = 1;
  return joined(joined("--mesh " + mesh_with_roles(other), of_stages(e)),
                ends_by_batch(other, "ep", target)) +
         without_pins(e, kSizes, ":");
}

std::string part_whole(const Exported& e, const std::string& module) {
  const auto part_of = [](const std::string& name) {
    return name.substr(0, std::min(name.rfind('.'), name.size()));
  };
  const std::string part = part_of(folded_name(module));
  PinsByName pins;
  for (const ModuleSplit& m : e.modules) {
    const std::string name = folded_name(m.name);
    if (m.multiplies && (name == folded_name(module) || part_of(name) == part)) add_whole(m, pins);
  }
  for (const std::string& op : e.attention) {
    if (part_of(op) == part) pins[op + ":tp"] = "replicate";
  }
  return pinned(pins) + without_others(e, pins);
}

std::string usual_split(const Exported& e, const std::string& target, Ends ends) {
  PinsByName pins;
  for (const ModuleSplit& m : e.modules) {
    if (!m.multiplies) continue;
    const bool end = !is_of_layers(m.name);
    if (end && ends == Ends::kAsPlanned) continue;
    if (end && ends == Ends::kWhole) {
      add_whole(m, pins);
    } else if (m.kind != m.usual) {
      pins[folded_name(m.name) + ":tp"] =
          m.usual == Kind::kWhole ? "replicate" : fmt::format("shard({})", m.usual_dim);
    }
  }
  if (e.roles && pins.empty()) return only_data(e);
  // Ends that are whole are said with the mesh.
  return joined(e.roles ? "" : with_roles(e, target), pinned(pins)) + without_others(e, pins);
}

}  // namespace cleave
