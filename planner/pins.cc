#include "planner/pins.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <utility>

#include "graph/error.h"

namespace cleave {
namespace {

constexpr const char* kKeys =
    "dp, tp, cp, ep, pp, chunks, micro, zero, schedule, recompute, offload";

constexpr std::array<std::pair<std::string_view, Recompute>, 3> kModes = {
    {{"none", Recompute::kNone}, {"selective", Recompute::kSelective}, {"full", Recompute::kFull}}};

constexpr std::array<std::pair<std::string_view, ScheduleKind>, 3> kSchedules = {
    {{"1f1b", ScheduleKind::kOneForwardOneBackward},
     {"interleaved", ScheduleKind::kInterleaved},
     {"zero-bubble", ScheduleKind::kZeroBubble}}};

std::optional<int64_t> number(std::string_view text) {
  int64_t n = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), n);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return n;
}

// One pin, taken apart.
class PinReader {
 public:
  PinReader(Pins& pins, const std::string& text, std::string_view where)
      : pins_(pins), text_(text), where_(where) {}

  void read() {
    const size_t equals = text_.find('=');
    if (equals == std::string::npos) {
      wrong("write KEY=VALUE, PATTERN=VALUE or PATTERN:AXIS=PLACEMENT");
    }
    key_ = text_.substr(0, equals);
    value_ = text_.substr(equals + 1);
    if (key_.empty()) wrong("something must stand before the '='");
    if (key_.find(':') != std::string::npos) {
      placement();
    } else if (!whole_plan() && !nodes()) {
      unknown();
    }
    pins_.texts.push_back(text_);
  }

 private:
  [[noreturn]] void wrong(const std::string& why) const { fail("{} '{}': {}", where_, text_, why); }

  [[noreturn]] void unknown() const {
    const bool one_word = key_.find_first_of(".*") == std::string::npos;
    if (one_word && number(value_)) {
      wrong(fmt::format("'{}' is nothing to pin; there are {}", key_, kKeys));
    }
    wrong(fmt::format(
        "'{}' is no value; write recompute, keep, cut or 'stage N' after a pattern, or a placement "
        "after PATTERN:AXIS{}",
        value_, one_word ? fmt::format("; keys are {}", kKeys) : ""));
  }

  int64_t count(int64_t least, int64_t most) const {
    const auto n = number(value_);
    if (!n || *n < least || *n > most) {
      wrong(fmt::format("'{}' is not a whole number from {} to {}", value_, least, most));
    }
    return *n;
  }

  // With the first pin that fixes the same.
  [[noreturn]] void contradicted() const {
    const auto key = [](const std::string& text) {
      const std::string k = text.substr(0, text.find('='));
      return k == "stages" ? "pp" : k;
    };
    const auto other = std::find_if(pins_.texts.begin(), pins_.texts.end(),
                                    [&](const auto& text) { return key(text) == key(text_); });
    CLEAVE_ASSERT(other != pins_.texts.end(), "nothing contradicts '{}'", text_);
    fail("{} '{}' and '{}' contradict each other", where_, *other, text_);
  }

  template <class T>
  void set(std::optional<T>& target, T value) const {
    if (target && *target != value) contradicted();
    target = value;
  }

  bool whole_plan() {
    constexpr int64_t kMost = 1'000'000;
    if (key_ == "pp" || key_ == "stages") {
      set(pins_.stages, static_cast<int32_t>(count(1, kMost)));
    } else if (key_ == "chunks") {
      set(pins_.chunks, static_cast<int32_t>(count(1, kMost)));
    } else if (key_ == "micro") {
      set(pins_.micro_batches, count(1, kMost));
    } else if (key_ == "zero") {
      set(pins_.zero, static_cast<int>(count(0, 3)));
    } else if (key_ == "schedule") {
      const auto at = std::find_if(kSchedules.begin(), kSchedules.end(),
                                   [&](const auto& k) { return k.first == value_; });
      if (at == kSchedules.end()) wrong("write 1f1b, interleaved or zero-bubble");
      set(pins_.schedule, at->second);
    } else if (key_ == "recompute") {
      const auto at = std::find_if(kModes.begin(), kModes.end(),
                                   [&](const auto& m) { return m.first == value_; });
      if (at == kModes.end()) wrong("write none, selective or full");
      set(pins_.recompute, at->second);
    } else if (key_ == "offload") {
      if (value_ != "on" && value_ != "off") wrong("write on or off");
      set(pins_.offload, value_ == "on");
    } else if (const auto role = role_named(key_); role && *role != AxisRole::kAny) {
      const int64_t size = count(1, kMost);
      for (const AxisPin& a : pins_.axes) {
        if (a.role == *role && a.size != size) contradicted();
        if (a.role == *role) return true;
      }
      pins_.axes.push_back({*role, size});
    } else {
      return false;
    }
    return true;
  }

  bool nodes() {
    NodePin pin{text_, key_, {}, -1};
    if (value_ == "recompute") {
      pin.kind = NodePin::Kind::kRemake;
    } else if (value_ == "keep") {
      pin.kind = NodePin::Kind::kKeep;
    } else if (value_ == "cut") {
      pin.kind = NodePin::Kind::kCut;
    } else if (value_.starts_with("stage ") || value_.starts_with("stage:")) {
      const auto stage = number(std::string_view(value_).substr(6));
      if (!stage || *stage < 0 || *stage > 1'000'000) wrong("stages are counted from 0");
      pin.kind = NodePin::Kind::kStage;
      pin.stage = static_cast<int32_t>(*stage);
    } else {
      return false;
    }
    pins_.nodes.push_back(std::move(pin));
    return true;
  }

  void placement() {
    PlacementPin pin;
    pin.text = text_;
    const size_t colon = key_.rfind(':');
    pin.pattern = key_.substr(0, colon);
    pin.axis = key_.substr(colon + 1);
    if (pin.pattern.empty()) wrong("a pattern must stand before the ':'");
    const bool numbered = pin.axis.size() > 1 && pin.axis[0] == 'a' && number(pin.axis.substr(1));
    if (!numbered && (!role_named(pin.axis) || pin.axis == "any")) {
      wrong(
          fmt::format("'{}' is no axis; write dp, tp, ..., or a0, a1, ... by its place", pin.axis));
    }
    if (value_ == "replicate") {
      pin.kind = Placement::Kind::kReplicate;
    } else if (value_ == "partial" || value_ == "partial(sum)") {
      pin.kind = Placement::Kind::kPartial;
    } else if (!shard(pin)) {
      wrong(
          fmt::format("'{}' is no placement; write replicate, partial, or shard(D): dimension D "
                      "counted from 0",
                      value_));
    }
    pins_.placements.push_back(std::move(pin));
  }

  // "shard(1)", "shard(0.2)"
  bool shard(PlacementPin& pin) const {
    if (!value_.starts_with("shard(") || !value_.ends_with(')')) return false;
    const std::string inside = value_.substr(6, value_.size() - 7);
    const size_t dot = inside.find('.');
    const auto dim = number(std::string_view(inside).substr(0, dot));
    if (!dim || *dim < 0 || *dim > 100) return false;
    pin.kind = Placement::Kind::kShard;
    pin.dim = static_cast<int8_t>(*dim);
    if (dot == std::string::npos) return true;
    const auto part = number(std::string_view(inside).substr(dot + 1));
    if (!part || *part < 0 || *part > 100) return false;
    pin.part = static_cast<int8_t>(*part);
    return true;
  }

  Pins& pins_;
  const std::string& text_;
  std::string_view where_;
  std::string key_, value_;
};

}  // namespace

std::string_view name_of(Recompute mode) {
  for (const auto& [name, m] : kModes) {
    if (m == mode) return name;
  }
  return "?";
}

Pins parse_pins(std::span<const std::string> texts, std::string_view where) {
  Pins pins;
  for (const std::string& text : texts) PinReader(pins, text, where).read();
  const bool one_stage = pins.stages == 1;
  if (one_stage && pins.chunks.value_or(1) > 1) {
    fail("{} chunks={}: a model on one stage is not cut; pin pp too", where, *pins.chunks);
  }
  if (pins.chunks.value_or(1) > 1 && pins.schedule &&
      *pins.schedule != ScheduleKind::kInterleaved) {
    fail("{} chunks={}: only schedule=interleaved has several chunks a stage", where, *pins.chunks);
  }
  for (const AxisPin& a : pins.axes) {
    if (a.role != AxisRole::kData || a.size > 1 || pins.zero.value_or(0) == 0) continue;
    fail("{} zero={}: dp=1 leaves nothing over which states would be in parts", where, *pins.zero);
  }
  for (const NodePin& pin : pins.nodes) {
    if (pin.kind != NodePin::Kind::kStage || !pins.stages || pin.stage < *pins.stages) continue;
    fail("{} '{}': there are {} stages, counted from 0", where, pin.text, *pins.stages);
  }
  return pins;
}

}  // namespace cleave
