#include "planner/pin_preferences.h"

#include <algorithm>
#include <charconv>
#include <limits>
#include <map>
#include <utility>

#include "graph/error.h"
#include "planner/made_once.h"

namespace cleave {
namespace {

constexpr double kForbidden = std::numeric_limits<double>::infinity();

// The mesh axis that a pin names; -1: this mesh has none.
int axis_named(const std::string& name, const Mesh& mesh, const std::vector<AxisRole>& roles) {
  for (size_t a = 0; a < mesh.axes.size(); ++a) {
    const bool by_role = roles[a] != AxisRole::kAny && name_of(roles[a]) == name;
    if (by_role || mesh.axes[a].name == name || name == fmt::format("a{}", a)) {
      return static_cast<int>(a);
    }
  }
  return -1;
}

// Whether a placement on one axis is the pinned one.
bool is_pinned(const PlacementPin& pin, const Placement& p, const std::vector<ValueAtom>& atoms) {
  if (pin.kind != p.kind) return false;
  if (pin.kind != Placement::Kind::kShard) return true;
  const auto atom = static_cast<size_t>(p.atom);
  if (atoms[atom].dim != pin.dim) return false;
  if (pin.part < 0) return true;
  int part = 0;
  for (size_t k = 0; k < atom; ++k) part += atoms[k].dim == pin.dim;
  return part == pin.part;
}

// What is left of the choices of families and of held placements.
class Narrowing {
 public:
  Narrowing(const Graph& graph, const Dimensions& dims, const Families& families, const Mesh& mesh,
            const std::vector<AxisRole>& roles)
      : graph_(graph), dims_(dims), families_(families), mesh_(mesh), roles_(roles) {}

  void pin(const ValuePin& p) {
    const int axis = axis_named(p.pin->axis, mesh_, roles_);
    if (axis < 0) {
      impossible(fmt::format("it has no axis {}, which '{}' names", p.pin->axis, p.pin->text));
      return;
    }
    const auto a = static_cast<size_t>(axis);
    // The same axis by its role and by its place.
    const PlacementPin*& other = pinned_[{p.value, axis}];
    if (other != nullptr && contradict(*other, *p.pin)) {
      impossible(fmt::format("'{}' and '{}' contradict each other", other->text, p.pin->text));
    }
    other = p.pin;
    const auto& atoms = dims_.values[static_cast<size_t>(p.value)];
    const auto right = [&](const Placements& all) { return is_pinned(*p.pin, all[a], atoms); };
    const ValueInfo& info = graph_.value(p.value);
    if (info.source < 0) {
      const bool left = narrow(info.producer, [&](const MemberSplit& m) {
        return right(m.outputs[static_cast<size_t>(info.output)]);
      });
      if (!left) impossible(cannot(p, axis));
      return;
    }
    const bool state =
        graph_.sources()[static_cast<size_t>(info.source)].kind == SourceKind::kState;
    bool used = false;
    for (size_t n = 0; n < graph_.nodes().size(); ++n) {
      const Node& node = graph_.nodes()[n];
      // Where the update works on a parameter is for it to choose: it is brought there.
      if (node.phase == Phase::kUpdate && !state) continue;
      for (size_t i = 0; i < node.inputs.size(); ++i) {
        if (node.inputs[i] != p.value) continue;
        used |= narrow(static_cast<NodeId>(n),
                       [&](const MemberSplit& m) { return right(m.inputs[i]); });
      }
    }
    if (!used && !can_lie(p.value, right)) impossible(cannot(p, axis));
    held_[p.value].push_back({axis, p.pin, false});
  }

  // 0: nothing in parts along the dp axes; 1, 2: states; 3: parameters too. Where copies of a
  // parameter are made once a step they stand for it: it may lie in parts as a state does.
  void zero(int stage) {
    const auto copies = copies_made_once(graph_);
    for (size_t a = 0; a < roles_.size(); ++a) {
      if (roles_[a] != AxisRole::kData || mesh_.axes[a].size == 1) continue;
      for (const Source& s : graph_.sources()) {
        const bool parameter = s.kind == SourceKind::kParameter;
        if (!parameter && s.kind != SourceKind::kState) continue;
        const auto& made = copies[static_cast<size_t>(graph_.value(s.value).source)];
        const bool parts = parameter ? stage >= 3 : stage >= 1;
        const auto right = [&](const Placements& all) { return all[a].is_shard() == parts; };
        const auto pinned = pinned_.find({s.value, static_cast<int>(a)});
        if (pinned != pinned_.end() && (pinned->second->kind == Placement::Kind::kShard) != parts) {
          impossible(
              fmt::format("'{}' and zero={} contradict each other", pinned->second->text, stage));
        }
        // Small ones cannot be split at all.
        if (parts && !can_lie(s.value, right)) continue;
        for (Value copy : made) {
          if (parts && !can_lie(copy, right)) continue;
          held_[copy].push_back({static_cast<int>(a), nullptr, parts});
        }
        if (!made.empty() && stage > 0 && stage < 3) continue;
        if (!parameter) narrow_readers(s.value, right);
        held_[s.value].push_back({static_cast<int>(a), nullptr, parts});
      }
    }
  }

  PinnedPreferences result(const Preferences& base) && {
    PinnedPreferences r;
    r.impossible = std::move(impossible_);
    r.preferences = base;
    if (!allowed_.empty()) {
      // By leader: the choices, and which of them are left.
      struct Left {
        std::vector<std::vector<AxisOption>> choices;
        std::vector<bool> allowed;
      };
      std::map<NodeId, Left> left;
      for (auto& [leader, allowed] : allowed_) {
        left[leader] = {families_.kind_of(leader).choices, std::move(allowed)};
      }
      r.preferences.choice = [left = std::move(left), choice = base.choice](
                                 NodeId leader, const std::vector<AxisOption>& c) {
        const double more = choice ? choice(leader, c) : 0;
        const auto at = left.find(leader);
        if (at == left.end()) return more;
        const auto& all = at->second.choices;
        const auto index = static_cast<size_t>(std::find(all.begin(), all.end(), c) - all.begin());
        return index < all.size() && at->second.allowed[index] ? more : kForbidden;
      };
    }
    if (!held_.empty()) {
      std::map<Value, std::vector<ValueAtom>> atoms;
      for (const auto& [v, unused] : held_) atoms[v] = dims_.values[static_cast<size_t>(v)];
      std::map<Value, std::vector<std::pair<Held, PlacementPin>>> pins;
      for (const auto& [v, list] : held_) {
        for (const Held& h : list) {
          pins[v].push_back({h, h.pin != nullptr ? *h.pin : PlacementPin{}});
        }
      }
      r.preferences.held = [pins = std::move(pins), atoms = std::move(atoms), held = base.held](
                               Value v, const Placements& placements) {
        const double more = held ? held(v, placements) : 0;
        const auto at = pins.find(v);
        if (at == pins.end()) return more;
        for (const auto& [h, pin] : at->second) {
          const Placement& p = placements[static_cast<size_t>(h.axis)];
          const bool right =
              h.pin != nullptr ? is_pinned(pin, p, atoms.at(v)) : p.is_shard() == h.parts;
          if (!right) return kForbidden;
        }
        return more;
      };
    }
    return r;
  }

 private:
  struct Held {
    int axis = 0;
    const PlacementPin* pin = nullptr;  // null: in parts, or not
    bool parts = false;
  };

  void impossible(std::string why) {
    if (impossible_.empty()) impossible_ = std::move(why);
  }

  std::string cannot(const ValuePin& p, int axis) const {
    const Source* s = graph_.source_of(p.value);
    const std::string name =
        s != nullptr ? s->name : pin_name(graph_, graph_.value(p.value).producer);
    return fmt::format("'{}': {} cannot be so on {} {}", p.pin->text, name, p.pin->axis,
                       mesh_.axes[static_cast<size_t>(axis)].size);
  }

  // Leaves the choices of the node's family under which the node's split is right, if there is
  // one; whether there is.
  template <class Right>
  bool narrow(NodeId node, const Right& right) {
    const FamilyKind& kind = families_.kind_of(node);
    const auto& splits = kind.members[static_cast<size_t>(families_.member_of(node))];
    const NodeId leader =
        families_.all()[static_cast<size_t>(families_.family_of(node))].members[0];
    const auto known = allowed_.find(leader);
    std::vector<bool> left =
        known != allowed_.end() ? known->second : std::vector<bool>(splits.size(), true);
    bool any = false;
    for (size_t c = 0; c < splits.size(); ++c) {
      left[c] = left[c] && right(splits[c]);
      any |= left[c];
    }
    if (any) allowed_[leader] = std::move(left);
    return any;
  }

  template <class Right>
  void narrow_readers(Value v, const Right& right) {
    for (size_t n = 0; n < graph_.nodes().size(); ++n) {
      const Node& node = graph_.nodes()[n];
      for (size_t i = 0; i < node.inputs.size(); ++i) {
        if (node.inputs[i] != v) continue;
        narrow(static_cast<NodeId>(n), [&](const MemberSplit& m) { return right(m.inputs[i]); });
      }
    }
  }

  // Whether some op reads the value, or makes it (a source: its next value), in such a placement.
  template <class Right>
  bool can_lie(Value v, const Right& right) const {
    const Source* source = graph_.source_of(v);
    const Value made = source != nullptr ? source->final : v;
    for (size_t n = 0; n < graph_.nodes().size(); ++n) {
      const Node& node = graph_.nodes()[n];
      const auto& splits =
          families_.kind_of(static_cast<NodeId>(n))
              .members[static_cast<size_t>(families_.member_of(static_cast<NodeId>(n)))];
      for (size_t i = 0; i < node.inputs.size(); ++i) {
        if (node.inputs[i] != v) continue;
        if (std::any_of(splits.begin(), splits.end(),
                        [&](const MemberSplit& m) { return right(m.inputs[i]); })) {
          return true;
        }
      }
      for (size_t o = 0; o < node.outputs.size(); ++o) {
        if (node.outputs[o] != made) continue;
        if (std::any_of(splits.begin(), splits.end(),
                        [&](const MemberSplit& m) { return right(m.outputs[o]); })) {
          return true;
        }
      }
    }
    return false;
  }

  const Graph& graph_;
  const Dimensions& dims_;
  const Families& families_;
  const Mesh& mesh_;
  const std::vector<AxisRole>& roles_;
  std::map<NodeId, std::vector<bool>> allowed_;  // by leader, choice
  std::map<Value, std::vector<Held>> held_;
  std::map<std::pair<Value, int>, const PlacementPin*> pinned_;  // by value, axis
  std::string impossible_;
};

}  // namespace

PinnedPreferences pinned_preferences(const Pins& pins, const Graph& graph,
                                     const Dimensions& dimensions, const Families& families,
                                     const Mesh& mesh, const std::vector<AxisRole>& roles,
                                     const Preferences& base) {
  Narrowing narrowing(graph, dimensions, families, mesh, roles);
  for (const ValuePin& pin : value_pins(pins, graph)) narrowing.pin(pin);
  if (pins.zero) narrowing.zero(*pins.zero);
  return std::move(narrowing).result(base);
}

bool pins_axes(const Pins& pins) {
  return !pins.axes.empty() || pins.zero ||
         std::any_of(pins.placements.begin(), pins.placements.end(),
                     [](const PlacementPin& p) { return role_named(p.axis).has_value(); });
}

std::vector<PinnedMesh> pinned_meshes(const Pins& pins, int64_t devices, size_t max_axes) {
  // Tensor parallelism talks most and stands last, where devices are side by side.
  const std::vector<AxisRole> order = {AxisRole::kData, AxisRole::kExpert, AxisRole::kContext,
                                       AxisRole::kInner};
  std::vector<int64_t> size(order.size(), 0);  // 0: free
  std::vector<bool> named(order.size(), false);
  int64_t pinned = 1;
  for (size_t r = 0; r < order.size(); ++r) {
    for (const AxisPin& a : pins.axes) {
      if (a.role == order[r]) size[r] = a.size, pinned *= a.size;
    }
    for (const PlacementPin& p : pins.placements)
      named[r] = named[r] || p.axis == name_of(order[r]);
    if (order[r] == AxisRole::kData && pins.zero.value_or(0) > 0) named[r] = true;
  }
  if (devices % pinned != 0) return {};
  std::vector<PinnedMesh> result;
  PinnedMesh mesh;
  const auto rest_of = [&](auto&& self, size_t r, int64_t left) -> void {
    if (r == order.size()) {
      if (left == 1 && mesh.sizes.size() <= max_axes) result.push_back(mesh);
      return;
    }
    const auto with = [&](int64_t n) {
      const bool shown = n > 1 || named[r];
      if (shown) mesh.sizes.push_back(n), mesh.roles.push_back(order[r]);
      self(self, r + 1, size[r] > 0 ? left : left / n);
      if (shown) mesh.sizes.pop_back(), mesh.roles.pop_back();
    };
    if (size[r] > 0) return with(size[r]);
    // Context and expert parallelism are for who asks for them.
    const bool usual = order[r] == AxisRole::kData || order[r] == AxisRole::kInner;
    if (!usual && !named[r]) return with(1);
    for (int64_t n = named[r] ? 2 : 1; n <= left; ++n) {
      if (left % n == 0) with(n);
    }
  };
  rest_of(rest_of, 0, devices / pinned);
  // One device in all, on axes that were named.
  for (PinnedMesh& m : result) {
    if (m.sizes.empty()) m = {{1}, {AxisRole::kAny}};
  }
  return result;
}

}  // namespace cleave
