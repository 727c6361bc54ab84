#include "planner/cluster_toml.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <variant>
#include <vector>

#include "graph/error.h"
#include "graph/signature.h"
#include "planner/cost.h"
#include "planner/toml_text.h"

namespace cleave {
namespace {

constexpr size_t kMostBytes = 1 << 20;
constexpr double kMost = 1e30;           // of any number
constexpr int64_t kMostCount = 1 << 20;  // of devices, nodes, tiles

// One key of a table: where its value goes, and what it may be.
struct Field {
  const char* key;
  std::variant<double*, int64_t*, std::string*, bool*> target;
  double least = 0, most = kMost;
  bool required = false;
  const char* help = "";
};

using Fields = std::vector<Field>;

// `fresh`: nothing was taken from a preset, so that what has no default must be given.
Fields device_fields(Device& d, bool fresh) {
  return {
      {"name", &d.name, 0, 0, false, "as reports call it"},
      {"memory", &d.memory, 1, kMost, fresh, "bytes that a plan may use"},
      {"bandwidth", &d.bandwidth, 1, kMost, fresh, "bytes/s, read and written, of a large copy"},
      {"vector_flops", &d.vector_flops, 1, kMost, fresh, "flop/s of what is no matrix product"},
      {"op_latency", &d.op_latency, 0, 1, false, "seconds to start an op"},
      {"host_bandwidth", &d.host_bandwidth, 1, kMost, false,
       "bytes/s to the node's memory, each way"},
      {"host_latency", &d.host_latency, 0, 1, false, "seconds to start such a copy"},
      {"overlaps", &d.overlaps, 0, 0, false, "whether it communicates while it computes"},
      {"gpu", &d.gpu, 0, 0, false, "whether it runs the kernels of GPUs"},
  };
}

Fields rate_fields(MatrixRate& r, bool required) {
  return {
      {"peak", &r.peak, 1, kMost, required, "flop/s"},
      {"efficiency", &r.efficiency, 1e-6, 1, false, "share of it that a large product reaches"},
      {"half_m", &r.half_m, 0, 1e9, false, "rows, columns and inner size at which a product"},
      {"half_n", &r.half_n, 0, 1e9, false, "has half of that rate"},
      {"half_k", &r.half_k, 0, 1e9, false, ""},
  };
}

Fields tiling_fields(Tiling& t) {
  constexpr double kSide = 1 << 16;
  return {
      {"units", &t.units, 1, kMostCount, false, "tiles computed at once"},
      {"rows", &t.rows, 1, kSide, false, "of the largest tile"},
      {"columns", &t.columns, 1, kSide, false, ""},
      {"smallest", &t.smallest, 1, kSide, false, "side of a tile"},
  };
}

Fields fused_fields(FusedProducts& f) {
  return {
      {"efficiency", &f.efficiency, 1e-6, 1e3, false, "share of the matrix peak"},
      {"half_width", &f.half_width, 0, 1e9, false, "heads so wide have half of it"},
      {"half_length", &f.half_length, 0, 1e9, false, "so many keys a query have half of it"},
      {"backward", &f.backward, 1e-6, 10, false, "the backward's rate, of the forward's"},
      {"most", &f.most, 1e-6, 1, false, "share that none exceeds"},
  };
}

Fields op_fields(OpRate& r) {
  return {
      {"name", &r.op, 0, 0, true, "the op's, as cleave trace prints it"},
      {"bandwidth", &r.bandwidth, 1, kMost, true, "bytes/s of what it reads and writes"},
      {"start", &r.start, 0, 1, false, ""},
      {"efficiency", &r.efficiency, 1e-6, 1, false, "share of the matrix peak"},
  };
}

Fields link_fields(Tier& t) {
  return {
      {"name", &t.name, 0, 0, false, "as reports call it"},
      {"bandwidth", &t.link.bandwidth, 1, kMost, true, "bytes/s of a link, each way"},
      {"latency", &t.link.latency, 0, 1, false, "seconds a message"},
      {"start", &t.link.start, 0, 1, false, "seconds to start a collective"},
      {"devices", &t.devices, 0, kMostCount, false, "that it joins; 0: all above it"},
      {"ports", &t.ports, 0, kMostCount, false,
       "links that leave a unit of the link above; 0: one a device"},
  };
}

Fields group_fields(NodeGroup& g) {
  return {
      {"count", &g.nodes, 1, kMostCount, false, "nodes"},
      {"devices", &g.devices, 1, kMostCount, false, "of each"},
  };
}

// --- Reading -------------------------------------------------------------------------------------

class Reader {
 public:
  Reader(const std::string& path, FindOp find_op) : path_(path), find_op_(find_op) {}

  Cluster cluster(const toml::table& top) const {
    Cluster c;
    known_keys(top, "", {"kind", "host_memory", "device", "node", "link"});
    bool fresh = true;
    if (const toml::node* kind = top.get("kind")) {
      if (!kind->is_string()) refuse(*kind, "kind", "write a preset's name in quotes");
      c = preset(*kind, kind->as_string()->get());
      fresh = false;
    }
    device(top, c, fresh);
    read(top, {{"host_memory", &c.host_memory, 1, kMost, false, ""}}, "", top);
    nodes(top, c);
    links(top, c);
    return c;
  }

 private:
  std::string at(const toml::node& node) const {
    return fmt::format("{}:{}", path_, std::max(node.source().begin.line, toml::source_index{1}));
  }
  [[noreturn]] void refuse(const toml::node& node, const std::string& key,
                           const std::string& what) const {
    fail("{}: {}: {}", at(node), key, what);
  }

  Cluster preset(const toml::node& node, const std::string& kind) const {
    const std::vector<std::string> kinds = cluster_kinds();
    if (std::find(kinds.begin(), kinds.end(), kind) == kinds.end()) {
      refuse(node, "kind",
             fmt::format("there is no preset '{}'; there are {}", kind, fmt::join(kinds, ", ")));
    }
    return cluster_of_kind(kind);
  }

  void known_keys(const toml::table& table, const std::string& section,
                  const std::vector<std::string>& keys) const {
    for (const auto& [key, value] : table) {
      if (std::find(keys.begin(), keys.end(), std::string(key.str())) != keys.end()) continue;
      refuse(value, section + std::string(key.str()),
             fmt::format("there is no such key; the keys are {}", fmt::join(keys, ", ")));
    }
  }

  // A table below `key`; null when there is none.
  const toml::table* table(const toml::table& above, const std::string& key,
                           const std::string& section) const {
    const toml::node* node = above.get(key);
    if (node == nullptr) return nullptr;
    if (!node->is_table()) {
      refuse(*node, section + key, fmt::format("write [{}{}] above its keys", section, key));
    }
    return node->as_table();
  }

  void read(const toml::table& table, const Fields& fields, const std::string& section,
            const toml::node& where) const {
    for (const Field& f : fields) {
      const std::string key = section + f.key;
      const toml::node* node = table.get(f.key);
      if (node == nullptr) {
        if (f.required) refuse(where, key, fmt::format("is missing: {}", f.help));
        continue;
      }
      if (auto* const* text = std::get_if<std::string*>(&f.target)) {
        if (!node->is_string()) refuse(*node, key, "write text in quotes");
        **text = node->as_string()->get();
      } else if (auto* const* count = std::get_if<int64_t*>(&f.target)) {
        const auto* whole = node->as_integer();
        if (whole == nullptr || !within(static_cast<double>(whole->get()), f)) {
          refuse(*node, key, fmt::format("write a whole number from {} to {}", f.least, f.most));
        }
        **count = whole->get();
      } else if (auto* const* flag = std::get_if<bool*>(&f.target)) {
        if (!node->is_boolean()) refuse(*node, key, "write true or false");
        **flag = node->as_boolean()->get();
      } else {
        const double value = node->is_integer() ? static_cast<double>(node->as_integer()->get())
                             : node->is_floating_point() ? node->as_floating_point()->get()
                                                         : std::nan("");
        if (!within(value, f)) {
          refuse(*node, key, fmt::format("write a number from {} to {}", f.least, f.most));
        }
        **std::get_if<double*>(&f.target) = value;
      }
    }
  }

  static bool within(double value, const Field& f) { return value >= f.least && value <= f.most; }

  static std::vector<std::string> keys_of(const Fields& fields) {
    std::vector<std::string> keys;
    for (const Field& f : fields) keys.emplace_back(f.key);
    return keys;
  }

  void device(const toml::table& top, Cluster& c, bool fresh) const {
    const toml::table* device = table(top, "device", "");
    if (device == nullptr) {
      if (fresh) refuse(top, "device", "is missing: write [device], or kind = \"a100\"");
      return;
    }
    const Fields fields = device_fields(c.device, fresh);
    std::vector<std::string> keys = keys_of(fields);
    for (const char* t :
         {"f64", "f32", "tf32", "bf16", "f16", "tiling", "fused", "fused_backward", "op"}) {
      keys.emplace_back(t);
    }
    known_keys(*device, "device.", keys);
    read(*device, fields, "device.", *device);
    const auto part = [&](const char* name, const Fields& f, bool required, MatrixRate* rate) {
      const toml::table* t = table(*device, name, "device.");
      const std::string section = fmt::format("device.{}.", name);
      if (t == nullptr && required) {
        refuse(*device, section.substr(0, section.size() - 1), "is missing: rates of products");
      }
      if (t == nullptr) return false;
      std::vector<std::string> known = keys_of(f);
      if (rate != nullptr) known.emplace_back("measured");
      known_keys(*t, section, known);
      read(*t, f, section, *t);
      if (rate != nullptr) measured(*t, section, *rate);
      return true;
    };
    const auto products = [&](const char* name, MatrixRate& rate, bool required) {
      return part(name, rate_fields(rate, fresh), required, &rate);
    };
    Device& d = c.device;
    products("f32", d.f32, fresh);
    if (!products("f64", d.f64, false) && fresh) d.f64 = d.f32;
    if (!products("bf16", d.bf16, false) && fresh) d.bf16 = d.f32;
    if (!products("f16", d.f16, false) && fresh) d.f16 = d.bf16;
    products("tf32", d.tf32, false);
    if (part("tiling", tiling_fields(d.tiling), false, nullptr)) check_tiling(*device, d.tiling);
    part("fused", fused_fields(d.fused), false, nullptr);
    part("fused_backward", fused_fields(d.fused_backward), false, nullptr);
    ops(*device, d);
    if (c.device.name.empty()) c.device.name = "device";
    if (c.device.host_bandwidth == 0) c.device.host_bandwidth = c.device.bandwidth;
  }

  void check_tiling(const toml::table& device, const Tiling& t) const {
    if (t.smallest <= std::min(t.rows, t.columns)) return;
    const toml::table& table = *device.get("tiling")->as_table();
    const toml::node* smallest = table.get("smallest");
    refuse(smallest != nullptr ? *smallest : table, "device.tiling.smallest",
           fmt::format("{} is more than a side of the largest tile, {} x {}", t.smallest, t.rows,
                       t.columns));
  }

  // "measured = [[m, n, k, times], ...]"
  void measured(const toml::table& table, const std::string& section, MatrixRate& rate) const {
    const toml::node* node = table.get("measured");
    if (node == nullptr) return;
    rate.measured.clear();
    const std::string key = section + "measured";
    const auto* list = node->as_array();
    if (list == nullptr) refuse(*node, key, "write [[m, n, k, times], ...]");
    for (const toml::node& entry : *list) {
      const auto* numbers = entry.as_array();
      if (numbers == nullptr || numbers->size() != 4) refuse(entry, key, "write [m, n, k, times]");
      ProductTimes p;
      const std::array<int64_t*, 3> sizes = {&p.m, &p.n, &p.k};
      for (size_t i = 0; i < 3; ++i) {
        const auto* whole = numbers->get(i)->as_integer();
        if (whole == nullptr || whole->get() < 1 || whole->get() > kMostCount) {
          refuse(entry, key, fmt::format("write a whole number from 1 to {}", kMostCount));
        }
        *sizes[i] = whole->get();
      }
      const std::optional<double> times = numbers->get(3)->value<double>();
      if (!times || !(*times >= 1e-3 && *times <= 1e3)) {
        refuse(entry, key, "times: write a number from 0.001 to 1000");
      }
      p.times = *times;
      rate.measured.push_back(p);
    }
  }

  // An entry that no cost would read.
  void check_op(const toml::table& table, const OpRate& rate) const {
    if (find_op_ == nullptr) return;
    const toml::node& name = *table.get("name");
    const OpDef* op = find_op_(rate.op);
    if (op == nullptr) {
      refuse(name, "device.op.name",
             fmt::format("there is no op '{}'; cleave trace MODEL prints the names", rate.op));
    }
    if (op->fused_products > 1) {
      refuse(name, "device.op.name",
             fmt::format("'{}' is attention: write [device.fused]", rate.op));
    }
    if (op->fused_products == 0 && is_product(*op)) {
      refuse(
          name, "device.op.name",
          fmt::format("'{}' is a matrix product: write [device.bf16], [device.f32], ...", rate.op));
    }
    if (rate.efficiency > 0 && op->fused_products == 0) {
      refuse(*table.get("efficiency"), "device.op.efficiency",
             fmt::format("'{}' is no product of experts, and only those (grouped_matmul, "
                         "grouped_matmul_backward) have one; leave it out",
                         rate.op));
    }
  }

  // Whether it multiplies matrices, whatever dimensions lead.
  static bool is_product(const OpDef& op) {
    std::string factors(op.factors.text());
    for (size_t i; (i = factors.find("...")) != std::string::npos;) factors.erase(i, 3);
    return !Signature::get(factors).product_roles().empty();
  }

  void ops(const toml::table& device, Device& d) const {
    const std::vector<const toml::table*> list = tables(device, "op", "device.");
    if (!list.empty()) d.ops.clear();
    for (const toml::table* t : list) {
      OpRate rate;
      const Fields fields = op_fields(rate);
      known_keys(*t, "device.op.", keys_of(fields));
      read(*t, fields, "device.op.", *t);
      check_op(*t, rate);
      d.ops.push_back(rate);
    }
    const auto by_name = [](const OpRate& a, const OpRate& b) { return a.op < b.op; };
    std::sort(d.ops.begin(), d.ops.end(), by_name);
    const auto same = [](const OpRate& a, const OpRate& b) { return a.op == b.op; };
    const auto twice = std::adjacent_find(d.ops.begin(), d.ops.end(), same);
    if (twice != d.ops.end()) {
      refuse(*device.get("op"), "device.op.name", fmt::format("'{}' is there twice", twice->op));
    }
  }

  // The tables of an array, written as [[key]].
  std::vector<const toml::table*> tables(const toml::table& top, const char* key,
                                         const std::string& section = "") const {
    std::vector<const toml::table*> result;
    const toml::node* node = top.get(key);
    if (node == nullptr) return result;
    const std::string whole = section + key,
                      advice = fmt::format("write [[{}]] above its keys", whole);
    const auto* list = node->as_array();
    if (list == nullptr) refuse(*node, whole, advice);
    for (const toml::node& entry : *list) {
      if (!entry.is_table()) refuse(entry, whole, advice);
      result.push_back(entry.as_table());
    }
    return result;
  }

  void nodes(const toml::table& top, Cluster& c) const {
    int64_t all = 0;
    for (const toml::table* t : tables(top, "node")) {
      NodeGroup g;
      const Fields fields = group_fields(g);
      known_keys(*t, "node.", keys_of(fields));
      read(*t, fields, "node.", *t);
      all += g.nodes * g.devices;
      if (all > kMostCount) refuse(*t, "node", fmt::format("more than {} devices", kMostCount));
      const auto same = std::find_if(c.groups.begin(), c.groups.end(), [&](const NodeGroup& other) {
        return other.devices == g.devices;
      });
      if (same != c.groups.end()) {
        same->nodes += g.nodes;
      } else {
        c.groups.push_back(g);
      }
    }
    if (c.groups.size() <= 1) {
      if (!c.groups.empty()) {
        c.nodes = c.groups[0].nodes;
        c.devices_per_node = c.groups[0].devices;
      }
      c.groups.clear();
    } else {
      use_common_nodes(c);
    }
  }

  void links(const toml::table& top, Cluster& c) const {
    const auto list = tables(top, "link");
    if (!list.empty()) c.tiers.clear();
    for (const toml::table* t : list) {
      Tier tier;
      tier.name = fmt::format("link {}", c.tiers.size() + 1);
      const Fields fields = link_fields(tier);
      known_keys(*t, "link.", keys_of(fields));
      read(*t, fields, "link.", *t);
      if (c.tiers.empty() && (tier.ports != 0 || tier.devices != 0)) {
        refuse(*t, "link",
               "the first joins the devices of a node: it has no 'devices', no 'ports'");
      }
      if (!c.tiers.empty() && c.tiers.back().devices == 0 && c.tiers.size() > 1) {
        refuse(*t, "link.devices", "every link but the first and the last says how many it joins");
      }
      const int64_t below = c.tiers.size() > 1 ? c.tiers.back().devices : c.devices_per_node;
      if (tier.devices > 0 && (tier.devices <= below || tier.devices % below != 0)) {
        refuse(*t, "link.devices",
               fmt::format("must be a multiple of {}, which the link before it "
                           "joins",
                           below));
      }
      c.tiers.push_back(tier);
      if (c.tiers.size() > AxisLinks::kMostTiers) {
        refuse(*t, "link", fmt::format("at most {} are planned for", AxisLinks::kMostTiers));
      }
    }
    if (c.tiers.empty()) refuse(top, "link", "is missing: write [[link]] for the links of a node");
    if (c.nodes > 1 && c.tiers.size() < 2) {
      refuse(top, "link", "several nodes need a second [[link]], between them");
    }
    if (c.tiers.size() > 1 && c.tiers.back().devices > 0 && c.tiers.back().devices < c.size()) {
      refuse(top, "link.devices",
             fmt::format("the last link joins {} of {} devices", c.tiers.back().devices, c.size()));
    }
  }

  const std::string& path_;
  const FindOp find_op_;
};

// --- Writing -------------------------------------------------------------------------------------

std::string text_of(const Field& f) {
  if (auto* const* text = std::get_if<std::string*>(&f.target)) {
    // A JSON string is one of TOML too, but for one character.
    std::string quoted =
        nlohmann::json(**text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
    for (size_t i; (i = quoted.find('\x7f')) != std::string::npos;) quoted.replace(i, 1, "\\u007f");
    return quoted;
  }
  if (auto* const* count = std::get_if<int64_t*>(&f.target)) return fmt::format("{}", **count);
  if (auto* const* flag = std::get_if<bool*>(&f.target)) return fmt::format("{}", **flag);
  return fmt::format("{}", **std::get_if<double*>(&f.target));
}

// Read back as a number with a fraction.
std::string number(double x) {
  std::string text = fmt::format("{}", x);
  return text.find_first_of(".e") == std::string::npos ? text + ".0" : text;
}

std::string section(const std::string& title, const Fields& fields) {
  std::string text = fmt::format("\n{}\n", title);
  for (const Field& f : fields) {
    const std::string line = fmt::format("{} = {}", f.key, text_of(f));
    text += *f.help == '\0' ? line + "\n" : fmt::format("{:<34}  # {}\n", line, f.help);
  }
  return text;
}

std::string rate_section(const char* name, MatrixRate& rate) {
  std::string text = section(fmt::format("[device.{}]", name), rate_fields(rate, false));
  if (rate.measured.empty()) return text;
  text +=
      "# m, n, k of products, and how many times the seconds of the above each took\nmeasured = "
      "[\n";
  for (const ProductTimes& p : rate.measured) {
    text += fmt::format("  [{}, {}, {}, {}],\n", p.m, p.n, p.k, number(p.times));
  }
  return text + "]\n";
}

}  // namespace

Cluster cluster_from_toml(std::string_view text, const std::string& path, FindOp find_op) {
  Cluster c = Reader(path, find_op).cluster(parse_toml(text, path));
  c.spec = path;
  c.description = text;
  return c;
}

Cluster read_cluster(const std::string& path, FindOp find_op) {
  std::ifstream file(path, std::ios::binary);
  std::string text(kMostBytes + 1, '\0');
  if (file) file.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (!file.is_open() || file.bad() || (file.gcount() == 0 && !file.eof())) {
    fail(
        "cannot read '{}': devices are a kind, as in 8xh100, or the TOML of a cluster, which "
        "cleave calibrate -o makes",
        path);
  }
  text.resize(static_cast<size_t>(file.gcount()));
  if (text.size() > kMostBytes) fail("{}: larger than 1 MiB, so not the TOML of a cluster", path);
  return cluster_from_toml(text, path, find_op);
}

std::string cluster_to_toml(const Cluster& cluster, std::string_view head) {
  Cluster c = cluster;
  std::string text;
  while (!head.empty()) {
    const std::string_view line = head.substr(0, head.find('\n'));
    text += fmt::format("# {}\n", line);
    head.remove_prefix(std::min(head.size(), line.size() + 1));
  }
  if (c.host_memory > 0) {
    const Field f{"host_memory", &c.host_memory};
    text += fmt::format("{} = {}  # bytes of a node\n", f.key, text_of(f));
  }
  std::vector<NodeGroup> groups = c.groups;
  if (groups.empty()) groups.push_back({c.nodes, c.devices_per_node});
  for (NodeGroup& g : groups) text += section("[[node]]", group_fields(g));
  text += section("[device]", device_fields(c.device, false));
  text += rate_section("bf16", c.device.bf16);
  text += rate_section("f16", c.device.f16);
  text += rate_section("f32", c.device.f32);
  if (c.device.tf32.peak > 0) text += rate_section("tf32", c.device.tf32);
  text += rate_section("f64", c.device.f64);
  text += section("[device.tiling]", tiling_fields(c.device.tiling));
  text += section("[device.fused]", fused_fields(c.device.fused));
  if (c.device.fused_backward.efficiency > 0) {
    text += section("[device.fused_backward]", fused_fields(c.device.fused_backward));
  }
  if (!c.device.ops.empty()) {
    text +=
        "\n# What an op's bytes take: start + bytes / bandwidth. The others: op_latency, "
        "bandwidth.\n";
  }
  for (OpRate& r : c.device.ops) {
    Fields fields = op_fields(r);
    if (r.efficiency == 0) fields.pop_back();
    fields[0].help = fields[1].help = "";  // said once, above
    text += section("[[device.op]]", fields).substr(1);
  }
  for (size_t i = 0; i < c.tiers.size(); ++i) {
    Fields fields = link_fields(c.tiers[i]);
    if (i == 0) fields.resize(4);  // a node's own links have neither units nor ports
    text += section("[[link]]", fields);
  }
  return text;
}

}  // namespace cleave
