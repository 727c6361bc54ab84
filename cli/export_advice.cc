#include "cli/export_advice.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cctype>
#include <numeric>

#include "cli/planned.h"
#include "planner/pins.h"
#include "viz/names.h"

namespace cleave {
namespace {

using Kind = ModuleSplit::Kind;

// "wte:dp=shard(0)": what it is of, up to the last "=", and what it says.
struct OwnPin {
  std::string key, value;
  std::string pattern, axis;  // of a placement
};

OwnPin read_pin(const std::string& text) {
  OwnPin pin;
  const size_t equals = text.rfind('=');
  pin.key = text.substr(0, equals);
  pin.value = text.substr(equals + 1);
  if (pin.key == "stages") pin.key = "pp";
  const size_t colon = pin.key.rfind(':');
  if (colon == std::string::npos) return pin;
  pin.pattern = folded_name(pin.key.substr(0, colon));
  pin.axis = pin.key.substr(colon + 1);
  return pin;
}

// "a0": the first axis, whatever its role.
bool by_number(const std::string& axis) {
  return axis.size() > 1 && axis[0] == 'a' && std::isdigit(static_cast<unsigned char>(axis[1]));
}

std::string parent(const std::string& name) { return name.substr(0, name.rfind('.')); }

// Names a parameter or state of the module, or all of them.
bool names_weights(const std::string& pattern, const ModuleSplit& m) {
  const std::string module = folded_name(m.name);
  return matches(pattern, module) || matches(parent(pattern), module) ||
         matches(parent(parent(pattern)), module);
}
bool names_ops(const std::string& pattern, const ModuleSplit& m) {
  return std::any_of(m.ops.begin(), m.ops.end(),
                     [&](const std::string& op) { return matches(pattern, op); });
}

// Whether a placement of the plan's own says something else of a module than an advised one.
bool in_the_way(const Exported& e, const OwnPin& own, const OwnPin& advised) {
  if (own.axis != advised.axis && !by_number(own.axis)) return false;
  if (own.value == "replicate" && advised.value == "replicate") return false;
  for (const ModuleSplit& m : e.modules) {
    if (folded_name(m.name) != advised.pattern && !m.ops.contains(advised.pattern)) continue;
    if (names_weights(own.pattern, m) || names_ops(own.pattern, m)) return true;
  }
  // Attention between products that are split is split too.
  return advised.value != "replicate" &&
         std::any_of(e.attention.begin(), e.attention.end(), [&](const std::string& op) {
           return advised.pattern.starts_with(parent(op) + ".") && matches(own.pattern, op);
         });
}

bool contradicts(const Exported& e, const std::string& text, const Advice& advice) {
  const OwnPin own = read_pin(text);
  if (const auto same = advice.pins.find(own.key); same != advice.pins.end()) {
    return same->second != own.value;
  }
  if (!advice.mesh.empty()) {
    static const std::set<std::string> kSizes = {"dp", "tp", "cp", "ep"};
    if (kSizes.contains(own.key)) return true;
    const bool there = ("," + advice.mesh).find("," + own.axis + "=") != std::string::npos;
    if (!own.axis.empty() && !there) return true;
  }
  if (own.axis.empty()) return false;
  return std::any_of(advice.pins.begin(), advice.pins.end(), [&](const auto& pin) {
    const OwnPin advised = read_pin(pin.first + "=" + pin.second);
    return !advised.axis.empty() && in_the_way(e, own, advised);
  });
}

std::string cluster_option(const Exported& e, int64_t devices) {
  const int64_t a_node = e.cluster.devices_per_node;
  std::optional<Cluster> other;
  if (devices <= a_node || is_one_node(e.cluster)) {
    other = resized(e.cluster, 1, devices);
  } else if (devices % a_node == 0) {
    other = resized(e.cluster, devices / a_node, a_node);
  }
  return other ? "--cluster " + other->spec : fmt::format("a --cluster of {} devices", devices);
}

bool has_pin(const Exported& e, const std::string& key) {
  return std::any_of(e.pins.begin(), e.pins.end(),
                     [&](const std::string& pin) { return read_pin(pin).key == key; });
}

int64_t rounded_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// A batch of which every rank has the same number of sequences in a micro-batch. --batch is that of
// a step, unless --accumulate says of how many micro-batches; a search that divides it itself needs
// at least as many as there are stages.
void set_batch(const Exported& e, const Exported& other, Advice& advice) {
  const int64_t ranks = other.data * other.expert;
  const bool pinned =
      has_pin(e, "micro") && !advice.without.contains(fmt::format("micro={}", e.micro_batches));
  if (e.fixed_micro_batches || pinned) {
    if (e.batch % ranks == 0) return;
    advice.batch = rounded_up(e.batch, ranks);
    advice.accumulate = e.micro_batches;
    return;
  }
  const int64_t step = e.batch * e.micro_batches;
  if (step % (ranks * other.stages) != 0) advice.batch = rounded_up(step, ranks * other.stages);
}

// The weight is kept whole, and what is done with it is done by every rank.
void add_whole(const ModuleSplit& m, Advice& advice) {
  advice.pins[folded_name(m.name) + ":tp"] = "replicate";
  for (const std::string& op : m.ops) advice.pins[op + ":tp"] = "replicate";
}

void add_whole_ends(const Exported& e, Advice& advice) {
  for (const ModuleSplit& m : e.modules) {
    if (m.multiplies && !in_layers(m.name)) add_whole(m, advice);
  }
}

void set_zero(const Exported& e, const Exported& other, const std::string& target, Advice& advice) {
  if (other.data > 1) {
    const bool little = (target == "deepspeed" && other.tensor > 1) || other.stages > 1;
    const int wanted = other.data > e.data ? std::max(e.zero, 1) : e.zero;
    const int zero = target == "hf-tp" ? 0 : std::min(wanted, little ? 1 : 3);
    advice.pins["zero"] = std::to_string(zero);
  }
  // What would be refused next.
  if (target == "deepspeed" && other.tensor > 1) add_whole_ends(e, advice);
}

Advice on_mesh_with(Advice advice, const Exported& e, const Exported& other,
                    const std::string& target) {
  if (target == "hf-tp") {
    const Advice tensor =
        only_tensor(e, other.stages * other.data * other.context * other.expert * other.tensor);
    advice.mesh = tensor.mesh, advice.devices = tensor.devices;
    for (const auto& pin : tensor.pins) advice.pins.insert(pin);
    return advice;
  }
  const auto add = [&](const char* role, int64_t size) {
    if (size > 1) advice.mesh += fmt::format("{}{}={}", advice.mesh.empty() ? "" : ",", role, size);
  };
  add("dp", other.data), add("cp", other.context), add("ep", other.expert);
  add("tp", other.tensor);
  if (advice.mesh.empty()) advice.mesh = "dp=1";
  if (other.stages > 1) advice.pins["pp"] = std::to_string(other.stages);
  set_zero(e, other, target, advice);
  set_batch(e, other, advice);
  return advice;
}

// All placements of the plan's own.
void leave_out_placements(const Exported& e, Advice& advice) {
  for (const std::string& pin : e.pins) {
    if (!read_pin(pin).axis.empty()) advice.without.insert(pin);
  }
}

void add_ends(const Exported& e, const std::string& axis, Advice& advice) {
  const char* split = axis.starts_with("cp") ? "shard(1)" : "shard(0)";
  for (const ModuleSplit& m : e.modules) {
    if (!m.multiplies || in_layers(m.name)) continue;
    for (const std::string& op : m.ops) advice.pins[fmt::format("{}:{}", op, axis)] = split;
  }
}

}  // namespace

std::string text_of(const Exported& e, const Advice& advice) {
  std::vector<std::string> options, pins, without;
  if (advice.devices > 0) options.push_back(cluster_option(e, advice.devices));
  if (!advice.mesh.empty()) options.push_back("--mesh " + advice.mesh);
  if (advice.batch > 0) options.push_back(fmt::format("--batch {}", advice.batch));
  if (advice.accumulate > 0) options.push_back(fmt::format("--accumulate {}", advice.accumulate));
  for (const auto& [key, value] : advice.pins) {
    const std::string pin = key + "=" + value;
    // What the plan has is said only where it is all there is to say.
    const bool there = std::find(e.pins.begin(), e.pins.end(), pin) != e.pins.end();
    if (there && (advice.pins.size() > 1 || !advice.mesh.empty())) continue;
    const bool plain = pin.find_first_of("*(: ") == std::string::npos;
    pins.push_back(plain ? pin : fmt::format("'{}'", pin));
  }
  if (!pins.empty()) options.push_back(fmt::format("--pin {}", fmt::join(pins, " ")));
  for (const std::string& pin : e.pins) {
    if (!advice.without.contains(pin) && !contradicts(e, pin, advice)) continue;
    without.push_back(fmt::format("'{}'", pin));
  }
  std::string text;
  if (!options.empty()) text = fmt::format("with {}", fmt::join(options, " "));
  if (without.empty()) return text;
  return fmt::format("{}{}without {}", text, text.empty() ? "" : ", ", fmt::join(without, ", "));
}

Advice pinned(const std::string& key, const std::string& value) {
  Advice advice;
  advice.pins[key] = value;
  return advice;
}

void leave_out(const Exported& e, const std::string& ending, Advice& advice) {
  for (const std::string& pin : e.pins) {
    // "=stage 1" says which.
    const size_t equals = pin.rfind('=');
    if (pin.compare(equals, ending.size(), ending) == 0 &&
        !advice.pins.contains(pin.substr(0, equals))) {
      advice.without.insert(pin);
    }
  }
}

Advice zero_for_all(const Exported& e, const std::string& target) {
  Advice advice;
  if (e.roles) {
    set_zero(e, e, target, advice);
  } else {
    advice = with_roles(e, target);
  }
  for (const std::string& pin : e.pins) {
    const OwnPin own = read_pin(pin);
    const bool data = own.axis.starts_with("dp") || own.axis.starts_with("ep");
    if (!data && !by_number(own.axis)) continue;
    const bool weights = std::any_of(e.modules.begin(), e.modules.end(), [&](const ModuleSplit& m) {
      return names_weights(own.pattern, m) && !names_ops(own.pattern, m);
    });
    if (weights) advice.without.insert(pin);
  }
  return advice;
}

Advice whole_over_experts(const Exported& e) {
  Advice advice;
  for (const ModuleSplit& m : e.modules) {
    if (m.multiplies && m.experts == 0) advice.pins[folded_name(m.name) + ":ep"] = "replicate";
  }
  return advice;
}

Advice on_mesh(const Exported& e, const Exported& other, const std::string& target) {
  return on_mesh_with({}, e, other, target);
}

Advice with_roles(const Exported& e, const std::string& target) { return on_mesh(e, e, target); }

Advice only_data(const Exported& e) {
  Exported other = e;
  other.data = e.data * e.tensor * e.context * e.expert;
  other.tensor = other.context = other.expert = 1;
  Advice advice;
  leave_out_placements(e, advice);
  return on_mesh_with(std::move(advice), e, other, "");
}

Advice only_tensor(const Exported& e, int64_t devices) {
  Advice advice;
  if (devices != e.cluster.size()) advice.devices = devices;
  advice.mesh = fmt::format("tp={}", devices);
  advice.pins["zero"] = "0";
  return advice;
}

Advice one_stage(const Exported& e, const std::string& target) {
  Exported one = e;
  one.data *= e.stages;
  one.stages = 1;
  Advice advice = pinned("pp", "1");
  for (const std::string& pin : e.pins) {
    const std::string key = read_pin(pin).key;
    if (key == "schedule" || key == "chunks" || key == "micro") advice.without.insert(pin);
  }
  leave_out(e, "=cut", advice), leave_out(e, "=stage", advice);
  return on_mesh_with(std::move(advice), e, one, target);
}

Advice whole_ends(const Exported& e) {
  Advice advice;
  add_whole_ends(e, advice);
  return advice;
}

Advice kept_whole(const Exported& e) {
  Advice advice;
  for (const ModuleSplit& m : e.modules) {
    if (m.multiplies && m.use.kind == Kind::kWhole && m.stored_in_parts) add_whole(m, advice);
  }
  return advice;
}

Advice fewer_tensor(const Exported& e, const Misfit& m, const std::string& target) {
  const int64_t tensor = std::gcd(e.tensor, m.heads);
  if (target == "hf-tp") return tensor == 1 ? part_whole(e, m.op) : only_tensor(e, tensor);
  if (tensor == 1) return only_data(e);
  Exported fewer = e;
  fewer.data *= e.tensor / tensor;
  fewer.tensor = tensor;
  return on_mesh(e, fewer, target);
}

Advice without_tensor(const Exported& e, const std::string& target) {
  Exported other = e;
  other.tensor = 1;
  Advice advice = on_mesh(e, other, target);
  advice.devices = e.stages * e.data * e.context * e.expert;
  return advice;
}

Advice split_by_role(const Exported& e, const Misfit& m, const std::string& target) {
  if (m.dim < 0) return only_data(e);
  Advice advice;
  set_zero(e, e, target, advice);
  add_ends(e, m.axis, advice);
  advice.pins[fmt::format("{}:{}", m.op, m.axis)] = fmt::format("shard({})", m.dim);
  return advice;
}

Advice experts_instead(const Exported& e, const std::string& target) {
  int64_t experts = 0;
  for (const ModuleSplit& m : e.modules) experts = std::gcd(experts, m.experts);
  Exported other = e;
  other.expert = std::gcd(e.tensor * e.expert, experts);
  if (other.expert == 1) return only_data(e);
  other.data = e.data * e.tensor * e.expert / other.expert;
  other.tensor = 1;
  Advice advice;
  leave_out_placements(e, advice);
  advice = on_mesh_with(std::move(advice), e, other, target);
  add_ends(e, "ep", advice);
  return advice;
}

Advice part_whole(const Exported& e, const std::string& module) {
  const std::string part = parent(folded_name(module));
  Advice advice;
  for (const ModuleSplit& m : e.modules) {
    const std::string name = folded_name(m.name);
    if (m.multiplies && (name == folded_name(module) || parent(name) == part)) add_whole(m, advice);
  }
  for (const std::string& op : e.attention) {
    if (parent(op) == part) advice.pins[op + ":tp"] = "replicate";
  }
  return advice;
}

Advice usual_split(const Exported& e, const std::string& target, Ends ends) {
  Advice advice;
  for (const ModuleSplit& m : e.modules) {
    if (!m.multiplies) continue;
    const bool end = !in_layers(m.name);
    if (end && ends == Ends::kAsPlanned) continue;
    if (end && ends == Ends::kWhole) {
      add_whole(m, advice);
    } else if (m.use.kind != m.usual) {
      advice.pins[folded_name(m.name) + ":tp"] =
          m.usual == Kind::kWhole ? "replicate" : fmt::format("shard({})", m.usual_dim);
    }
  }
  if (e.roles && advice.pins.empty()) return only_data(e);
  if (e.roles) return advice;
  const auto pins = advice.pins;
  advice = with_roles(e, target);
  // Ends that are whole are said with the mesh.
  for (const auto& pin : pins) advice.pins.insert(pin);
  return advice;
}

}  // namespace cleave
