// cleave fit
#include <chrono>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <optional>

#include "cli/commands.h"
#include "cli/comparison.h"
#include "cli/format.h"
#include "cli/memory_parts.h"
#include "cli/planned.h"
#include "cli/planning.h"
#include "graph/error.h"

namespace cleave {
namespace {

using Json = nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

// A change that makes it fit.
struct Change {
  std::string what;     // "16 micro-batches of 1 sequence instead of 1 of 16"
  std::string options;  // "--batch 1 --accumulate 16"
  int64_t peak = 0;
  double limit = 0, step_seconds = 0;
  std::string plan;  // in words
};

// What was tried, in the order of how little it changes.
class Changes {
 public:
  // `peak`: of the plan that came nearest, in bytes.
  Changes(const PlanRequest& request, const Planned& asked, double peak)
      : request_(request),
        asked_(asked),
        peak_(peak),
        sequences_(asked.model->spec.batch * asked.model->graph.micro_batches) {}

  std::vector<Change> find() {
    pins();
    micro_batches();
    devices();
    batch();
    return std::move(found_);
  }

  bool stopped_early() const { return stopped_; }

 private:
  // Whether the plan fits so; requests that make no sense do not.
  bool fits(const PlanRequest& request, std::string what, std::string options) {
    stopped_ |= Clock::now() >= request_.deadline;
    if (stopped_) return false;
    try {
      const Planned p = planned(request);
      if (!p.result.plan) return false;
      found_.push_back({std::move(what), std::move(options), p.result.plan->predicted.peak_bytes,
                        p.limit, p.result.plan->predicted.step_seconds,
                        plan_words(p.model->graph, *p.result.plan)});
      return true;
    } catch (const Error&) {
      impossible_ = true;
      return false;
    } catch (const SearchStopped&) {
      stopped_ = true;
      return false;
    }
  }

  // What the user fixed, taken back: one at a time, then all.
  void pins() {
    const std::vector<std::string>& texts = request_.pins.texts;
    if (!request_.mesh.empty()) {
      PlanRequest r = request_;
      r.mesh.clear();
      if (fits(r, fmt::format("another mesh than {}", request_.mesh), "without --mesh")) return;
    }
    for (size_t i = 0; i < texts.size(); ++i) {
      std::vector<std::string> others = texts;
      others.erase(others.begin() + static_cast<std::ptrdiff_t>(i));
      PlanRequest r = request_;
      r.pins = parse_pins(others, "--pin");
      const std::string without = fmt::format("without --pin {}", texts[i]);
      if (fits(r, "all else as asked", without)) return;
    }
    if (texts.size() < 2 && (texts.empty() || request_.mesh.empty())) return;
    PlanRequest r = request_;
    r.mesh.clear();
    r.pins = {};
    fits(r, "without anything pinned", "without --mesh and --pin");
  }

  // The request with one pin in place of those that say the same: "micro=8" for "micro=4".
  PlanRequest with_pin(const std::string& key, int64_t value) const {
    std::vector<std::string> texts = request_.pins.texts;
    std::erase_if(texts, [&](const std::string& t) { return t.starts_with(key + "="); });
    texts.push_back(fmt::format("{}={}", key, value));
    PlanRequest r = request_;
    r.pins = parse_pins(texts, "--pin");
    return r;
  }

  // The same sequences in a step, in more micro-batches than were asked for.
  void micro_batches() {
    const auto what = [&](int64_t micro) {
      const int64_t each = sequences_ / micro;
      return fmt::format("the same step in {} micro-batches of {} sequence{}", micro, each,
                         each == 1 ? "" : "s");
    };
    const int64_t pinned = request_.pins.micro_batches.value_or(0);
    if (!request_.fixed_micro_batches && pinned == 0) return;
    const int64_t now = pinned > 0 ? pinned : request_.spec.optimizer.micro_batches;
    for (int64_t micro = 2 * now; sequences_ % micro == 0; micro *= 2) {
      if (pinned > 0 && !request_.fixed_micro_batches) {
        const std::string options = fmt::format("--pin micro={}", micro);
        if (fits(with_pin("micro", micro), what(micro), options)) return;
        continue;
      }
      PlanRequest r = pinned > 0 ? with_pin("micro", micro) : request_;
      r.spec.batch = sequences_ / micro;
      r.spec.optimizer.micro_batches = micro;
      if (fits(r, what(micro),
               fmt::format("--batch {} --accumulate {}{}", r.spec.batch, micro,
                           pinned > 0 ? fmt::format(" --pin micro={}", micro) : ""))) {
        return;
      }
    }
  }

  // What gives way when everything that is pinned takes all devices and there are so many times as
  // many: the axis dp, or the first without a role.
  std::optional<PlanRequest> grown(int64_t times, std::string& options, std::string& what) const {
    PlanRequest r = request_;
    if (!request_.mesh.empty()) {
      MeshRequest mesh = parse_mesh(request_.mesh);
      size_t axis = 0;
      while (axis < mesh.roles.size() && mesh.roles[axis] != AxisRole::kData &&
             mesh.roles[axis] != AxisRole::kAny) {
        ++axis;
      }
      if (axis == mesh.sizes.size()) {
        mesh.sizes.insert(mesh.sizes.begin(), 1);
        mesh.roles.insert(mesh.roles.begin(), AxisRole::kData);
        axis = 0;
      }
      mesh.sizes[axis] *= times;
      r.mesh = mesh.to_string();
      options = " --mesh " + r.mesh;
      what = fmt::format(", and --mesh {} gives way to {}", request_.mesh, r.mesh);
      return r;
    }
    for (const AxisPin& a : request_.pins.axes) {
      if (a.role != AxisRole::kData) continue;
      r = with_pin("dp", a.size * times);
      options = fmt::format(" --pin dp={}", a.size * times);
      what = fmt::format(", and --pin dp={} gives way to dp={}", a.size, a.size * times);
      return r;
    }
    return std::nullopt;
  }

  void devices() {
    const Cluster& c = request_.cluster;
    // So many share no better than evenly.
    const double times = peak_ / asked_.limit;
    constexpr int64_t kMost = 1024;  // times as many
    for (int64_t more = 2; more <= kMost; more *= 2) {
      if (static_cast<double>(more) < times) continue;
      const auto cluster = larger(c, more);
      if (!cluster) return;
      const std::string what = fmt::format("{} devices instead of {}", cluster->size(), c.size());
      const std::string options = fmt::format("--cluster {}", cluster->spec);
      PlanRequest r = request_;
      r.cluster = *cluster;
      impossible_ = false;
      if (fits(r, what, options)) return;
      if (!impossible_) continue;
      std::string more_options, gives_way;
      auto other = grown(more, more_options, gives_way);
      if (!other) return;
      other->cluster = *cluster;
      if (fits(*other, what + gives_way, options + more_options)) return;
    }
  }

  // Fewer sequences in a step: that is another training. Micro-batches stay as many as were asked
  // for.
  void batch() {
    const int64_t micro =
        std::max(request_.spec.optimizer.micro_batches, request_.pins.micro_batches.value_or(1));
    const int64_t a_batch = request_.fixed_micro_batches ? micro : 1;  // what --batch counts
    for (int64_t left = sequences_ / 2; left >= micro; left /= 2) {
      if (left % micro != 0) continue;
      PlanRequest r = request_;
      r.spec.batch = left / a_batch;
      const std::string what =
          fmt::format("{} sequence{} a step instead of {}", left, left == 1 ? "" : "s", sequences_);
      if (fits(r, what, fmt::format("--batch {}", r.spec.batch))) return;
    }
  }

  const PlanRequest& request_;
  const Planned& asked_;
  const double peak_;
  const int64_t sequences_;  // of a step, as asked for
  bool stopped_ = false;
  bool impossible_ = false;  // what was tried last makes no sense
  std::vector<Change> found_;
};

void print_memory(const MemoryParts& m) {
  const auto peak = static_cast<double>(m.peak);
  Table table({"memory of a device", ">", ">"});
  for (const auto& [name, bytes] :
       {std::pair("weights", m.weights), std::pair("optimizer states", m.optimizer),
        std::pair("gradients", m.gradients), std::pair("activations", m.activations),
        std::pair("weight copies", m.copies), std::pair("working", m.working)}) {
    if (bytes == 0) continue;
    const auto b = static_cast<double>(bytes);
    table.add({name, bytes_text(b), fmt::format("{:.0f} %", 100 * b / peak)});
  }
  table.add({"together", bytes_text(peak), ""});
  fmt::print("{}", table.to_string(colours_wanted()));
}

Json change_json(const Change& c) {
  return {{"change", c.what},
          {"options", c.options},
          {"plan", c.plan},
          {"peak_bytes", c.peak},
          {"step_seconds", c.step_seconds}};
}

// So many seconds from now; never when that is beyond what a clock counts.
Clock::time_point after(double seconds) {
  constexpr double kForever = 1e8;  // seconds: three years
  if (seconds >= kForever) return Clock::time_point::max();
  return Clock::now() +
         std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
}

// The plan that comes nearest, as far as the time lets it; nothing when the time did not suffice
// for one. Throws when there is none.
std::optional<Planned> nearest_in_time(const PlanRequest& request, const Planned& asked,
                                       Clock::time_point deadline) {
  PlanRequest r = request;
  r.deadline = deadline;
  try {
    std::optional<Planned> nearest =
        nearest_to_fitting(r, static_cast<double>(asked.result.smallest_peak));
    if (!nearest) {
      throw_no_plan(asked.model->spec.name, asked.model->graph, request.cluster, asked.options,
                    asked.result, false);
    }
    return nearest;
  } catch (const SearchStopped&) {
    return std::nullopt;
  }
}

// The model, and what about it was not asked for.
std::string head_of(const FitArguments& a, const PlanRequest& request, const Planned& p) {
  const std::string note = precision_note(a.model, request.cluster);
  return describe(*p.model) + (note.empty() ? "" : "\nprecision " + note);
}

// What a request needs that nothing fits, and what would make it fit, found in so many seconds.
[[noreturn]] void does_not_fit(const FitArguments& a, PlanRequest request, const Planned& p,
                               Json json) {
  const std::string name = head_of(a, request, p);
  request.deadline = after(a.seconds);
  const auto half = after(a.seconds / 2);
  const std::optional<Planned> nearest = nearest_in_time(request, p, half);
  const bool nearest_stopped = !nearest || nearest->stopped;
  // What no plan was made of may be estimated as less than the limit.
  const auto estimate = static_cast<double>(p.result.smallest_peak);
  const bool estimated = estimate > p.limit;
  const double peak =
      nearest ? static_cast<double>(nearest->result.plan->predicted.peak_bytes) : estimate;
  Changes changes(request, p, peak);
  const std::vector<Change> all = changes.find();
  if (estimated) json["smallest_peak_bytes"] = p.result.smallest_peak;
  if (nearest) {
    json["peak_bytes"] = nearest->result.plan->predicted.peak_bytes;
    json["over_bytes"] = peak - p.limit;
    json["plan"] = plan_words(nearest->model->graph, *nearest->result.plan);
    json["memory"] = memory_json(memory_parts(nearest->model->graph, *nearest->result.plan));
  }
  json["changes"] = Json::array();
  for (const Change& c : all) json["changes"].push_back(change_json(c));
  const bool complete = !nearest_stopped && !changes.stopped_early();
  json["complete"] = complete;
  const std::string by_estimate =
      fmt::format("the smallest peak found or estimated is {} a device", bytes_text(estimate));
  if (a.json) {
    fmt::print("{}\n", json.dump(2));
  } else {
    if (nearest) {
      fmt::print(
          "{}\ndoes not fit on {}: {} a device in the nearest plan found, of {}: {} too much\n",
          name, request.cluster.spec, bytes_text(peak), bytes_text(p.limit),
          bytes_text(peak - p.limit));
      if (estimated && estimate < peak) {
        fmt::print("{}, before plans were made in full\n", by_estimate);
      }
      fmt::print("nearest: {}\n\n", plan_words(nearest->model->graph, *nearest->result.plan));
      print_memory(memory_parts(nearest->model->graph, *nearest->result.plan));
    } else {
      fmt::print("{}\ndoes not fit on {}, of {} a device{}\n", name, request.cluster.spec,
                 bytes_text(p.limit), estimated ? ": " + by_estimate : "");
    }
    if (!all.empty()) fmt::print("\nIt fits with one of these, the smallest change first:\n");
    for (const Change& c : all) {
      fmt::print("  {}: {}\n    {} a device, {} a step, as {}\n", c.options, c.what,
                 bytes_text(static_cast<double>(c.peak)), seconds_text(c.step_seconds), c.plan);
    }
    if (all.empty()) fmt::print("\nNo change that was tried makes it fit.\n");
    if (!complete) fmt::print("Not all was tried in the {} s of --seconds.\n", a.seconds);
  }
  const std::string& model = p.model->spec.name;
  const std::string needs =
      nearest || estimated
          ? fmt::format("{} needs {} a device on {}{}, {} more than one may use", model,
                        bytes_text(peak), request.cluster.spec,
                        nearest ? " in the nearest plan found" : " at least by an estimate",
                        bytes_text(peak - p.limit))
          : fmt::format("{} has no plan on {} that was found to fit", model, request.cluster.spec);
  throw DoesNotFit(needs + (all.empty()
                                ? ""
                                : fmt::format("; it fits {}{}",
                                              all[0].options.starts_with("without") ? "" : "with ",
                                              all[0].options)));
}

}  // namespace

void fit_command(const FitArguments& a) {
  PlanRequest request = request_of(a.model, a.cluster, a.mesh, a.memory, a.pins);
  const Planned p = planned(request);
  Json json = {{"model", p.model->spec.name},
               {"cluster", request.cluster.spec},
               {"fits", p.result.plan.has_value()},
               {"limit_bytes", std::isfinite(p.limit) ? Json(p.limit) : Json()}};
  if (p.result.plan) {
    const Plan& plan = *p.result.plan;
    const auto peak = static_cast<double>(plan.predicted.peak_bytes);
    const MemoryParts parts = memory_parts(p.model->graph, plan);
    if (a.json) {
      json["peak_bytes"] = plan.predicted.peak_bytes;
      json["plan"] = plan_words(p.model->graph, plan);
      json["step_seconds"] = plan.predicted.step_seconds;
      json["memory"] = memory_json(parts);
      fmt::print("{}\n", json.dump(2));
      return;
    }
    fmt::print("{}\nfits on {}: {} of {} a device, {} free\n", head_of(a, request, p),
               request.cluster.spec, bytes_text(peak),
               std::isinf(p.limit) ? "no limit" : bytes_text(p.limit),
               std::isinf(p.limit) ? "all" : bytes_text(p.limit - peak));
    fmt::print("as {}, {} a step\n\n", plan_words(p.model->graph, plan),
               seconds_text(plan.predicted.step_seconds));
    print_memory(parts);
    return;
  }
  does_not_fit(a, std::move(request), p, std::move(json));
}

}  // namespace cleave
