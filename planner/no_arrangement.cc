#include "planner/no_arrangement.h"

#include <algorithm>
#include <string_view>
#include <utility>
#include <vector>

#include "graph/error.h"

namespace cleave {
namespace {

// The size that was asked for; 0: the mesh has no such axis.
int64_t size_of(const MeshRequest& request, AxisRole role) {
  for (size_t a = 0; a < request.sizes.size(); ++a) {
    if (request.roles[a] == role) return request.sizes[a];
  }
  return 0;
}

int64_t product_of(const MeshRequest& request) {
  int64_t product = 1;
  for (int64_t n : request.sizes) product *= n;
  return product;
}

bool pins_axis(const Pins& pins, AxisRole role) {
  return std::any_of(pins.axes.begin(), pins.axes.end(),
                     [&](const AxisPin& a) { return a.role == role; });
}

// What is said of sizes: "pp=2" and the devices that it takes, each.
struct Size {
  std::string name;
  int64_t devices = 1;
};

std::vector<Size> sizes_of(const MeshRequest& request, const Pins& pins) {
  std::vector<Size> sizes;
  if (pins.stages) sizes.push_back({fmt::format("pp={}", *pins.stages), *pins.stages});
  if (!request.empty()) {
    sizes.push_back({fmt::format("the mesh {}", request.to_string()), product_of(request)});
    return sizes;
  }
  for (const AxisPin& a : pins.axes) {
    sizes.push_back({fmt::format("{}={}", name_of(a.role), a.size), a.size});
  }
  return sizes;
}

// What needs an axis of several devices, by that axis' role.
std::vector<std::pair<AxisRole, std::string>> needed_axes(const Pins& pins) {
  std::vector<std::pair<AxisRole, std::string>> needed;
  if (pins.zero.value_or(0) > 0) {
    needed.emplace_back(AxisRole::kData, fmt::format("zero={}", *pins.zero));
  }
  for (const PlacementPin& p : pins.placements) {
    if (const auto role = role_named(p.axis)) needed.emplace_back(*role, "'" + p.text + "'");
  }
  return needed;
}

// Parts of the batch that have no sequence each; empty: there are none.
std::string why_no_sequences(const MeshRequest& request, const Pins& pins,
                             const ArrangementLimits& limits) {
  int64_t parts = 1;
  std::vector<std::string> names;
  for (const AxisRole role : {AxisRole::kData, AxisRole::kExpert}) {
    int64_t size = std::max<int64_t>(size_of(request, role), 1);
    for (const AxisPin& a : pins.axes) {
      if (a.role == role) size = a.size;
    }
    if (size == 1) continue;
    parts *= size;
    names.push_back(fmt::format("{}={}", name_of(role), size));
  }
  if (limits.batch <= 0 || limits.batch % parts == 0) return "";
  return fmt::format("{}: the {} sequences of a step cannot be cut into {} equal parts",
                     fmt::join(names, " and "), limits.batch, parts);
}

// What no count of stages allows; empty: nothing. `left`: devices that sizes leave.
std::string why_no_pipeline(const Pins& pins, const ArrangementLimits& limits, int64_t left,
                            bool mesh) {
  if (!pins.schedule) return "";
  const std::string schedule = fmt::format("schedule={}", name_of(*pins.schedule));
  const int64_t most = pins.stages ? *pins.stages : left;
  if (most == 1) {
    return fmt::format("{}: it is of several pipeline stages, and {}; pin pp too", schedule,
                       pins.stages ? "pp=1 says one"
                       : mesh      ? "the mesh takes all devices for one"
                                   : "the axes take all devices for one");
  }
  if (*pins.schedule != ScheduleKind::kInterleaved) return "";
  for (int64_t stages : divisors(most)) {
    if (stages == 1 || (pins.stages && stages != most)) continue;
    for (int64_t micro : limits.micro_batches) {
      if (micro % stages == 0) return "";
    }
  }
  return fmt::format(
      "{}: the micro-batches ({}) do not divide by the stages ({}), as it needs; pin micro or pp",
      schedule, fmt::join(limits.micro_batches, ", "),
      pins.stages ? std::to_string(most) : fmt::format("divisors of {}", most));
}

}  // namespace

void check_mesh(const MeshRequest& request, const Pins& pins) {
  if (request.empty()) return;
  const std::string mesh = request.to_string();
  const bool open = std::any_of(request.roles.begin(), request.roles.end(),
                                [](AxisRole r) { return r == AxisRole::kAny; }) &&
                    product_of(request) > 1;
  for (const AxisPin& a : pins.axes) {
    const std::string text = fmt::format("{}={}", name_of(a.role), a.size);
    if (open) {
      fail("--pin {} and --mesh {}, which gives no roles, both fix the mesh; give one of them",
           text, mesh);
    }
    const int64_t size = std::max<int64_t>(size_of(request, a.role), 1);
    if (size != a.size) fail("--pin {}: --mesh {} says otherwise; give one of them", text, mesh);
  }
  // Over an axis without a role nobody can say what is data parallelism's.
  if (pins.zero && (open || (*pins.zero > 0 && size_of(request, AxisRole::kData) <= 1))) {
    fail("--pin zero={}: --mesh {} {}, over which states would be in parts", *pins.zero, mesh,
         open ? "does not say which axis is dp (write dp=N,tp=M)"
         : size_of(request, AxisRole::kData) == 1 ? "has one device on dp"
                                                  : "has no axis dp");
  }
}

std::string why_no_arrangement(const Cluster& cluster, const MeshRequest& request, const Pins& pins,
                               const ArrangementLimits& limits,
                               const std::function<bool(const Pins&)>& possible) {
  const int64_t devices = cluster.size();
  const int64_t stages = pins.stages.value_or(1), chunks = pins.chunks.value_or(1);
  if (stages > devices) {
    return fmt::format("pp={}: a stage needs a device at least, and {} has {}", stages,
                       cluster.spec, devices);
  }
  for (const NodePin& p : pins.nodes) {
    if (p.kind != NodePin::Kind::kStage || p.stage < devices) continue;
    return fmt::format("'{}': it needs {} stages, of a device each at least, and {} has {}", p.text,
                       p.stage + 1, cluster.spec, devices);
  }
  if (stages * chunks > limits.pieces) {
    return fmt::format(
        "{} stages of {} chunks are pinned, but the model can be cut into {} pieces at most",
        stages, chunks, limits.pieces);
  }
  int64_t product = 1;
  std::vector<std::string> names;
  for (const Size& s : sizes_of(request, pins)) {
    if (devices % s.devices != 0) {
      return fmt::format("{}: the {} devices of {} cannot be shared out to {}", s.name, devices,
                         cluster.spec, s.devices);
    }
    product *= s.devices;
    names.push_back(s.name);
  }
  std::string all;  // "pp=1, dp=2 and tp=2"
  for (size_t i = 0; i < names.size(); ++i) {
    all += (i == 0 ? "" : i + 1 < names.size() ? ", " : " and ") + names[i];
  }
  if (devices % product != 0) {
    return fmt::format("{} together are {} devices, and {} has {}", all, product, cluster.spec,
                       devices);
  }
  const int64_t left = devices / product;
  const auto needed = needed_axes(pins);
  for (const auto& [role, what] : needed) {
    if (!request.empty() || left > 1 || pins_axis(pins, role)) continue;
    return fmt::format(
        "{}: it needs an axis {}, and {} no devices for one", what, name_of(role),
        names.empty() ? cluster.spec + " has" : all + (names.size() > 1 ? " leave" : " leaves"));
  }
  // Whether anything may still take what is left.
  const bool stages_are_open = limits.stages && !pins.stages;
  bool axes_are_open =
      request.empty() && (!pins_axis(pins, AxisRole::kData) || !pins_axis(pins, AxisRole::kInner));
  for (const auto& [role, what] : needed) {
    axes_are_open |= request.empty() && !pins_axis(pins, role);
  }
  if (left > 1 && !stages_are_open && !axes_are_open) {
    return fmt::format("{} {} {} devices, and {} has {}; leave one of them out for the rest", all,
                       names.size() > 1 ? "together are" : "is", product, cluster.spec, devices);
  }
  if (auto why = why_no_sequences(request, pins, limits); !why.empty()) return why;
  if (auto why = why_no_pipeline(pins, limits, left, !request.empty()); !why.empty()) return why;
  for (size_t i = 0; i < pins.texts.size() && pins.texts.size() > 1; ++i) {
    std::vector<std::string> others = pins.texts;
    others.erase(others.begin() + static_cast<std::ptrdiff_t>(i));
    if (!possible(parse_pins(others, "--pin"))) continue;
    return fmt::format("no pipeline stages and mesh of {} devices keep {} beside {}", devices,
                       pins.texts[i], fmt::join(others, ", "));
  }
  return fmt::format("no pipeline stages and mesh of {} devices are as pinned: {}", devices,
                     fmt::join(pins.texts, ", "));
}

}  // namespace cleave
