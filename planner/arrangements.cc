#include "planner/arrangements.h"

#include <algorithm>
#include <charconv>
#include <functional>
#include <optional>
#include <set>

#include "graph/error.h"
#include "planner/no_arrangement.h"
#include "planner/pin_preferences.h"

namespace cleave {
namespace {

// Up to so many devices two axes may be split in any way; above, by roles, which is much quicker.
constexpr int64_t kFreeRoles = 16, kFreeCluster = 128;

constexpr int64_t kMostSequences = 8;  // of one micro-batch of a pipeline, for each part

struct MeshChoice {
  Mesh mesh;
  std::vector<AxisRole> roles;
};

MeshChoice make_mesh(const std::vector<int64_t>& sizes, const std::vector<AxisRole>& roles) {
  MeshChoice m;
  for (size_t a = 0; a < sizes.size(); ++a) {
    if (sizes[a] == 1) continue;  // an axis of one device splits nothing
    m.mesh.axes.push_back({fmt::format("a{}", m.roles.size()), sizes[a]});
    m.roles.push_back(roles[a]);
  }
  if (m.mesh.axes.empty()) {
    m.mesh.axes.push_back({"a0", 1});
    m.roles.push_back(AxisRole::kAny);
  }
  return m;
}

// Every way to write n as an ordered product of at most `axes` factors above 1; {n} comes first.
void factorisations(int64_t n, size_t axes, std::vector<int64_t>& head,
                    std::vector<std::vector<int64_t>>& result) {
  if (n > 1 || head.empty()) {
    head.push_back(n);
    result.push_back(head);
    head.pop_back();
  }
  if (axes < 2) return;
  for (int64_t f = 2; f * 2 <= n; ++f) {
    if (n % f != 0) continue;
    head.push_back(f);
    factorisations(n / f, axes - 1, head, result);
    head.pop_back();
  }
}

std::vector<MeshChoice> meshes(int64_t devices, const Cluster& cluster,
                               const ArrangementLimits& limits) {
  std::vector<MeshChoice> result;
  const bool free = devices <= kFreeRoles && cluster.size() <= kFreeCluster;
  if (free) {
    std::vector<int64_t> head;
    std::vector<std::vector<int64_t>> sizes;
    factorisations(devices, std::min<size_t>(limits.max_axes, 2), head, sizes);
    for (const auto& s : sizes) {
      result.push_back(make_mesh(s, std::vector<AxisRole>(s.size(), AxisRole::kAny)));
    }
  }
  // An inner axis that leaves the node pays for every layer; a few times its size is enough.
  const int64_t most_inner = 2 * std::max<int64_t>(cluster.devices_per_node, 8);
  for (int64_t tp : divisors(devices)) {
    if (tp > most_inner) break;
    if (!free) {
      result.push_back(make_mesh({devices / tp, tp}, {AxisRole::kData, AxisRole::kInner}));
    }
  }
  return result;
}

// How many of a micro-batch's sequences each part of the data axes gets; 0: it does not divide.
int64_t sequences_each(const ArrangementLimits& limits, int64_t micro_batches,
                       const MeshChoice& m) {
  if (limits.batch % micro_batches != 0) return 0;
  int64_t parts = 1;
  for (size_t a = 0; a < m.roles.size(); ++a) {
    const AxisRole r = m.roles[a];
    if (r == AxisRole::kData || r == AxisRole::kExpert) parts *= m.mesh.axes[a].size;
  }
  const int64_t all = limits.batch / micro_batches;
  return all % parts == 0 ? all / parts : 0;
}

// The meshes of one stage of so many devices.
std::vector<MeshChoice> choices(int64_t devices, const Cluster& cluster, const MeshRequest& request,
                                const Pins& pins, const ArrangementLimits& limits) {
  if (!request.empty()) return {make_mesh(request.sizes, request.roles)};
  if (!pins_axes(pins)) return meshes(devices, cluster, limits);
  std::vector<MeshChoice> result;
  for (const PinnedMesh& m : pinned_meshes(pins, devices, limits.max_axes)) {
    result.push_back(make_mesh(m.sizes, m.roles));
  }
  return result;
}

// The schedules of a arrangement with these stages and micro-batches, as far as pins leave them.
void add_pipelines(const ArrangementLimits& limits, const Pins& pins, Arrangement arrangement,
                   std::vector<Arrangement>& result) {
  const auto add = [&](ScheduleKind kind, int32_t chunks) {
    if (pins.schedule && *pins.schedule != kind) return;
    if (pins.chunks && *pins.chunks != chunks) return;
    arrangement.schedule = kind;
    arrangement.chunks = chunks;
    result.push_back(arrangement);
  };
  if (arrangement.stages == 1) {  // has neither a schedule nor chunks
    if (!pins.schedule && pins.chunks.value_or(1) == 1) result.push_back(std::move(arrangement));
    return;
  }
  add(ScheduleKind::kOneForwardOneBackward, 1);
  // Of one micro-batch it is 1f1b.
  if (arrangement.micro_batches > 1 || pins.schedule) add(ScheduleKind::kZeroBubble, 1);
  if (arrangement.micro_batches % arrangement.stages != 0) return;
  for (int32_t v = 2; v <= std::max(8, pins.chunks.value_or(0)); ++v) {
    if (int64_t{v} * arrangement.stages > limits.pieces) break;
    if ((v == 5 || v == 7) && !pins.chunks) continue;
    add(ScheduleKind::kInterleaved, v);
  }
}

// Counts in between are never far from one of these: powers of two of sequences in a pipeline's
// micro-batch; without one, powers of two of micro-batches, or one sequence in each.
bool worth_trying(int64_t stages, int64_t micro_batches, int64_t sequences) {
  const auto power = [](int64_t n) { return (n & (n - 1)) == 0; };
  if (stages == 1) return power(micro_batches) || sequences == 1;
  return sequences <= kMostSequences && power(sequences);
}

Mesh named(const std::vector<int64_t>& sizes) {
  Mesh mesh;
  for (size_t a = 0; a < sizes.size(); ++a) mesh.axes.push_back({fmt::format("a{}", a), sizes[a]});
  return mesh;
}

// Every one that is as asked for, maybe none.
std::vector<Arrangement> all_of(const Cluster& cluster, const MeshRequest& request,
                                const Pins& pins, const ArrangementLimits& limits) {
  std::vector<Arrangement> result;
  const int64_t devices = cluster.size();
  const int64_t asked = request.empty() ? 0 : named(request.sizes).size();
  int64_t least_stages = 1;
  for (const NodePin& p : pins.nodes) {
    if (p.kind == NodePin::Kind::kStage)
      least_stages = std::max<int64_t>(least_stages, p.stage + 1);
  }
  for (int64_t stages : divisors(devices)) {
    if (stages < least_stages) continue;
    if (stages > 1 && (!limits.stages || stages > limits.pieces)) break;
    if (asked != 0 && devices / stages != asked) continue;
    if (pins.stages && stages != *pins.stages) continue;
    for (const MeshChoice& m : choices(devices / stages, cluster, request, pins, limits)) {
      for (int64_t micro : limits.micro_batches) {
        if (pins.micro_batches && micro != *pins.micro_batches) continue;
        // What is asked for is not second-guessed.
        const bool chosen = limits.micro_batches.size() > 1;
        const bool mesh_too = pins.micro_batches && (asked != 0 || pins_axes(pins));
        // A part of the data axes that has no sequence of a micro-batch would idle.
        if (chosen && !mesh_too && limits.batch > 0 && sequences_each(limits, micro, m) == 0)
          continue;
        // Fewer micro-batches than stages leave most of them idle; more than a few sequences in
        // one gain nothing.
        const bool more = limits.batch % stages == 0 && limits.batch >= stages;
        const bool stages_too = pins.micro_batches && pins.stages;
        if (chosen && !stages_too && stages > 1 && micro < (more ? stages : 2)) continue;
        if (chosen && !pins.micro_batches && limits.batch > 0 && !limits.every_count &&
            !worth_trying(stages, micro, sequences_each(limits, micro, m))) {
          continue;
        }
        Arrangement arrangement;
        arrangement.stages = static_cast<int32_t>(stages);
        arrangement.micro_batches = micro;
        arrangement.mesh = m.mesh;
        arrangement.roles = m.roles;
        add_pipelines(limits, pins, std::move(arrangement), result);
      }
    }
  }
  return result;
}

}  // namespace

Pipeline pipeline_of(const Arrangement& a) {
  Pipeline pipeline;
  pipeline.schedule = a.schedule;
  pipeline.stages = a.stages;
  pipeline.chunks = a.chunks;
  return pipeline;
}

Candidate candidate_of(const Arrangement& a) {
  Candidate candidate;
  candidate.mesh = a.mesh;
  for (size_t i = 0; i < a.roles.size(); ++i) {
    if (a.roles[i] != AxisRole::kAny) candidate.mesh.axes[i].name = name_of(a.roles[i]);
  }
  candidate.stages = a.stages;
  candidate.chunks = a.chunks;
  candidate.schedule = a.schedule;
  candidate.micro_batches = a.micro_batches;
  return candidate;
}

std::vector<int64_t> divisors(int64_t n) {
  std::vector<int64_t> result;
  for (int64_t d = 1; d <= n; ++d) {
    if (n % d == 0) result.push_back(d);
  }
  return result;
}

std::string Arrangement::to_string() const {
  std::string text;
  if (stages > 1) {
    text = fmt::format("pp {} {}", stages, name_of(schedule));
    if (chunks > 1) text += fmt::format(" of {} chunks", chunks);
    text += " x ";
  }
  text += mesh.to_string();
  if (micro_batches > 1) text += fmt::format(", {} micro-batches", micro_batches);
  return text;
}

std::vector<Arrangement> with_other_counts(const Arrangement& from,
                                           const ArrangementLimits& limits) {
  std::vector<Arrangement> result;
  if (limits.batch <= 0) return result;
  const MeshChoice mesh{from.mesh, from.roles};
  for (int64_t micro : limits.micro_batches) {
    const int64_t each = sequences_each(limits, micro, mesh);
    if (each == 0 || worth_trying(from.stages, micro, each)) continue;
    if (from.stages > 1 && (each > kMostSequences || micro < from.stages)) continue;
    if (from.schedule == ScheduleKind::kInterleaved && micro % from.stages != 0) continue;
    Arrangement next = from;
    next.micro_batches = micro;
    result.push_back(std::move(next));
  }
  return result;
}

std::vector<Arrangement> with_third_axis(const Arrangement& from, const Cluster& cluster,
                                         const ArrangementLimits& limits) {
  int64_t data = 1, inner = 1;
  for (size_t a = 0; a < from.roles.size(); ++a) {
    const bool splits_data = from.roles[a] == AxisRole::kData ||
                             (from.roles[a] == AxisRole::kAny && a + 1 < from.roles.size());
    (splits_data ? data : inner) *= from.mesh.axes[a].size;
  }
  const int64_t devices = data * inner;
  const int64_t most = 2 * std::max<int64_t>(cluster.devices_per_node, 8);
  std::vector<Arrangement> result;
  std::set<std::vector<int64_t>> known;
  for (AxisRole role : {AxisRole::kContext, AxisRole::kExpert}) {
    if (role == AxisRole::kContext ? !limits.sequence : !limits.experts) continue;
    for (int64_t tp : {inner, inner / 2, inner / 4}) {
      for (int64_t third = 2; third <= most && tp > 0; third *= 2) {
        if (devices % (tp * third) != 0) continue;
        const std::vector<int64_t> sizes = {devices / tp / third, third, tp};
        if (!known.insert({static_cast<int64_t>(role), sizes[0], third, tp}).second) continue;
        const MeshChoice m = make_mesh(sizes, {AxisRole::kData, role, AxisRole::kInner});
        if (limits.batch > 0 && sequences_each(limits, from.micro_batches, m) == 0) continue;
        Arrangement next = from;
        next.mesh = m.mesh;
        next.roles = m.roles;
        result.push_back(std::move(next));
      }
    }
  }
  return result;
}

std::vector<Arrangement> arrangements_of(const Cluster& cluster, const MeshRequest& request,
                                         const Pins& pins, const ArrangementLimits& limits) {
  check_mesh(request, pins);
  const int64_t devices = cluster.size();
  const int64_t asked = request.empty() ? 0 : named(request.sizes).size();
  if (asked != 0 && (devices % asked != 0 || (!limits.stages && asked != devices))) {
    fail("mesh {} has {} devices, the cluster {} has {}", request.to_string(), asked, cluster.spec,
         devices);
  }
  std::vector<Arrangement> result = all_of(cluster, request, pins, limits);
  if (!result.empty()) return result;
  if (pins.empty()) {
    fail("no split of {} devices in pipeline stages and a mesh is as asked for", devices);
  }
  fail("{}", why_no_arrangement(cluster, request, pins, limits, [&](const Pins& others) {
         return !all_of(cluster, request, others, limits).empty();
       }));
}

std::string MeshRequest::to_string() const {
  std::vector<std::string> parts;
  const bool named =
      std::any_of(roles.begin(), roles.end(), [](AxisRole r) { return r != AxisRole::kAny; });
  for (size_t a = 0; a < sizes.size(); ++a) {
    parts.push_back(named ? fmt::format("{}={}", name_of(roles[a]), sizes[a])
                          : std::to_string(sizes[a]));
  }
  return fmt::format("{}", fmt::join(parts, named ? "," : "x"));
}

MeshRequest parse_mesh(std::string_view text) {
  MeshRequest request;
  const auto number = [&](std::string_view s) {
    int64_t n = 0;
    const auto [end, error] = std::from_chars(s.data(), s.data() + s.size(), n);
    if (error != std::errc() || end != s.data() + s.size() || n < 1 || n > 1'000'000) {
      fail("mesh '{}': '{}' is not a size; write 2x4, or dp=2,tp=4", text, s);
    }
    return n;
  };
  const bool named = text.find('=') != std::string_view::npos;
  for (std::string_view rest = text;;) {
    const std::string_view part = rest.substr(0, rest.find(named ? ',' : 'x'));
    if (named) {
      const size_t equals = part.find('=');
      const std::string_view role = part.substr(0, equals);
      const std::optional<AxisRole> known =
          equals == std::string_view::npos ? std::nullopt : role_named(role);
      if (!known || *known == AxisRole::kAny) {
        fail(
            "mesh '{}': '{}' is not an axis; write dp=N, ep=N, cp=N or tp=N, or sizes alone as in "
            "2x4",
            text, part);
      }
      const AxisRole r = *known;
      if (std::find(request.roles.begin(), request.roles.end(), r) != request.roles.end()) {
        fail("mesh '{}' has two axes named {}", text, role);
      }
      request.roles.push_back(r);
      request.sizes.push_back(number(part.substr(equals + 1)));
    } else {
      request.roles.push_back(AxisRole::kAny);
      request.sizes.push_back(number(part));
    }
    if (part.size() == rest.size()) break;
    rest.remove_prefix(part.size() + 1);
  }
  if (request.sizes.size() > 4) {
    fail("mesh '{}' has {} axes; at most 4 are planned", text, request.sizes.size());
  }
  return request;
}

}  // namespace cleave
