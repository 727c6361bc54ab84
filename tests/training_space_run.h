// Runs drawn plans, holds them against one device and against what they promised, and keeps a table
// of what was covered.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "planner/cut.h"
#include "planner/made_once.h"
#include "tests/arena_watch.h"
#include "tests/training_space.h"

namespace cleave::testing {

// --- What a plan is ------------------------------------------------------------------------------

// What it shows of the space, as "dimension:value", read off the plan and its graph.
inline std::set<std::string> facts_of(const Draw& d, const DrawnPlan& p, const Program& program) {
  const Graph& graph = *p.graph;
  Plan named = p.plan;
  name_axes(graph, named);
  std::set<std::string> facts;
  const std::string_view model = models()[d.model].name;
  facts.insert(model.starts_with("gpt")     ? "model:gpt"
               : model.starts_with("llama") ? "model:llama"
               : model.starts_with("bert")  ? "model:bert"
                                            : "model:moe");
  facts.insert(fmt::format("dtype:{}", name_of(d.dtype)));
  const Pipeline& pipe = p.plan.pipeline;
  facts.insert(fmt::format("sched:{}", pipe.stages == 1 ? "one" : name_of(pipe.schedule)));
  const int64_t m = graph.micro_batches;
  facts.insert(m > 2 ? "micro:3+" : fmt::format("micro:{}", m));
  if (pipe.stages > 1) facts.insert(d.anywhere ? "cuts:anywhere" : "cuts:pieces");
  int axes = 0;
  for (size_t a = 0; a < named.mesh.axes.size(); ++a) {
    if (named.mesh.axes[a].size == 1) continue;
    ++axes;
    std::string name = named.mesh.axes[a].name;
    while (name.back() >= '0' && name.back() <= '9') name.pop_back();
    if (name == "dp" || name == "tp" || name == "cp" || name == "ep") facts.insert("axis:" + name);
    for (size_t n = 0; n < graph.nodes().size(); ++n) {
      const Node& node = graph.nodes()[n];
      const MemberSplit::OnAxis& on = p.plan.nodes[n].axes[a];
      if (node.phase != Phase::kForward || on.factor < 0) continue;
      if (on.ring >= 0) facts.insert("axis:ring");
      const auto f = static_cast<size_t>(on.factor);
      const ClassId c =
          p.plan.dimensions->factors[n][f][static_cast<size_t>(on.atom)].dimension_class;
      const std::string& role = p.plan.dimensions->classes[static_cast<size_t>(c)].role;
      if (name == "tp" && role == "sequence") facts.insert("axis:sp");
      const std::string& scope = graph.scopes()[static_cast<size_t>(node.scope)];
      if (scope.ends_with(".experts") && node.signature->factors()[f].letter == 'e')
        facts.insert("axis:experts");
    }
    if (name != "dp" && name != "ep") continue;
    // The ZeRO stage of every weight.
    const std::vector<int> weights = weights_of(graph);
    const auto split = [&](Value v) {
      return p.plan.values[static_cast<size_t>(v)][0].placements[a].is_shard();
    };
    for (size_t w = 0; w < graph.sources().size(); ++w) {
      if (graph.sources()[w].kind != SourceKind::kParameter) continue;
      bool states = false, gradients = false, has_states = false;
      for (size_t s = 0; s < graph.sources().size(); ++s) {
        const Source& source = graph.sources()[s];
        if (weights[s] != static_cast<int>(w)) continue;
        if (source.kind == SourceKind::kState) has_states = true, states |= split(source.value);
        if (source.kind == SourceKind::kAccumulator) gradients |= split(source.value);
      }
      if (split(graph.sources()[w].value)) {
        facts.insert("zero:3");
      } else if (has_states) {
        facts.insert(states && gradients ? "zero:2" : states ? "zero:1" : "zero:0");
      }
    }
  }
  facts.insert(fmt::format("axes:{}", axes));
  constexpr const char* kRecompute[] = {"none", "selective", "full", "random"};
  if (p.plan.rewrite.remade.empty()) {
    facts.insert("again:none");
  } else {
    facts.insert(fmt::format("again:{}", kRecompute[static_cast<size_t>(d.recompute)]));
  }
  facts.insert(program.host_bytes > 0 ? "host:some" : "host:none");
  if (d.pinned) facts.insert("way:pins");
  if (d.saved) facts.insert("way:saved");
  if (d.halves) facts.insert("moments:bf16");
  return facts;
}

// What a step sends between stages, all ranks of one place in the mesh together, by the graph and
// the plan alone.
inline CollectiveCount promised_sends(const Graph& graph, const Plan& plan) {
  CollectiveCount sum{InstrKind::kSend, -1, 0, 0};
  if (plan.pipeline.stages == 1) return sum;
  const std::vector<int32_t>& chunk_of = plan.pipeline.chunk_of;
  const std::vector<int32_t> homes = source_chunks(graph, chunk_of);
  const std::vector<bool> made = made_once(graph);
  for (size_t n = 0; n < graph.nodes().size(); ++n) {
    const Node& node = graph.nodes()[n];
    if (!node.op->transfer) continue;
    const Value v = node.inputs[0];
    const ValueInfo& info = graph.value(v);
    const int32_t from = info.producer == kNoNode ? homes[static_cast<size_t>(info.source)]
                                                  : chunk_of[static_cast<size_t>(info.producer)];
    if (from == chunk_of[n]) continue;
    const bool once = node.phase == Phase::kUpdate || made[n];
    const int64_t times = once ? 1 : graph.micro_batches;
    const Shape local = plan.layout(node.outputs[0], 0).local_shape(plan.mesh);
    sum.count += times;
    sum.bytes += static_cast<double>(times * numel(local) * size_of(graph.type(v).dtype));
  }
  return sum;
}

// --- Running one ---------------------------------------------------------------------------------

struct Outcome {
  std::set<std::string> facts;
  std::string refused;  // why there is no plan; empty: it ran
  double distance = 0;  // from one device, of losses and gradient norms
  double weights = 0;   // the same of the weights at the end; in f64
  double seconds = 0;   // to plan
};

// Every rank has allocated its stage's arena and its part of the host's memory, to the byte, and
// has written it up to its topmost buffer of numbers. (Above it lies workspace, which kernels need
// not fill.) Messages on their way lie elsewhere.
inline void expect_arenas(const Program& program) {
  std::vector<int64_t> top(program.memory.size(), 0), want_bytes;
  for (const ProgramTensor& t : program.tensors) {
    const Buffer& b = program.buffers[static_cast<size_t>(t.buffer)];
    if (!is_float(t.dtype) || b.host || b.bytes == 0) continue;  // -1 looks like nothing written
    int64_t& end = top[static_cast<size_t>(program.stage_of(b.chunk))];
    end = std::max(end, b.offset + (b.slots - 1) * b.stride + b.bytes);
  }
  std::vector<std::pair<int64_t, int64_t>> want;
  for (size_t s = 0; s < top.size(); ++s) {
    for (int64_t r = 0; r < program.mesh.size(); ++r) {
      want.emplace_back(std::max<int64_t>(program.memory[s].arena_bytes, 1), top[s]);
      want.emplace_back(std::max<int64_t>(program.memory[s].host_bytes, 1), 0);
    }
  }
  std::sort(want.begin(), want.end());
  const std::vector<ArenaUse> used = arenas_in_use();
  ASSERT_EQ(used.size(), want.size());
  for (size_t i = 0; i < used.size(); ++i) {
    EXPECT_EQ(used[i].bytes, want[i].first);
    EXPECT_GE(used[i].written, want[i].second);
  }
}

// The largest difference of a weight from one device's, in parts of the tensor's largest.
inline double weights_distance(const CpuRuntime& runtime, const Traced& t) {
  double worst = 0;
  for (const auto& [name, bytes] : t.weights) {
    const std::vector<std::byte> mine = runtime.read_source(name);
    const std::span a(reinterpret_cast<const double*>(mine.data()), mine.size() / sizeof(double));
    const std::span b(reinterpret_cast<const double*>(bytes.data()), a.size());
    double largest = 0, difference = 0;
    for (size_t i = 0; i < a.size(); ++i) {
      largest = std::max(largest, std::abs(b[i]));
      difference = std::max(difference, std::abs(a[i] - b[i]));
    }
    worst = std::max(worst, difference / std::max(largest, 1e-300));
  }
  return worst;
}

inline void expect_sends(const StepResult& step, const CollectiveCount& promised) {
  CollectiveCount sent{InstrKind::kSend, -1, 0, 0};
  for (const CollectiveCount& c : step.collectives) {
    if (c.kind == InstrKind::kSend) sent.count += c.count, sent.bytes += c.bytes;
  }
  EXPECT_EQ(sent.count, promised.count);
  EXPECT_NEAR(sent.bytes, promised.bytes, 1e-9 * promised.bytes);
}

// What a file keeps of a plan, but for what the search compared.
inline std::string kept_of(const DrawnPlan& p) {
  auto json = plan_to_json(*p.graph, p.plan);
  for (const char* of_the_search : {"search", "certificate"}) json.erase(of_the_search);
  return json.dump(1);
}

inline Outcome run_draw(const Draw& d) {
  Outcome o;
  const Traced& t = traced(d);
  std::optional<DrawnPlan> p;
  try {
    p = d.pinned ? plan_by_pins(d, t, o.refused) : plan_directly(d, t);
    if (!p && o.refused.empty()) o.refused = "tables would grow too large";
  } catch (const Error& e) {
    o.refused = e.what();
  }
  EXPECT_EQ(o.refused.find('\n'), std::string::npos) << o.refused;
  if (!p) return o;
  o.seconds = p->plan.search_seconds;
  const Plan before = p->plan;
  if (d.saved) {
    p = saved_and_read(*p, *t.graph);
    EXPECT_EQ(kept_of(*p), kept_of({p->graph, before}));
  }
  const Plan& plan = p->plan;
  EXPECT_NEAR(plan.certificate.cost, before.certificate.cost, 1e-9 * before.certificate.cost);
  EXPECT_EQ(plan.predicted.peak_bytes, before.predicted.peak_bytes);
  Program program = lower(*p->graph, plan);
  EXPECT_EQ(program.ranks(), d.devices());
  EXPECT_EQ(plan.predicted.peak_bytes, program.arena_bytes);
  int64_t host = 0;
  for (const StageMemory& m : program.memory) host += m.host_bytes;
  EXPECT_EQ(plan.predicted.host_bytes, host);
  o.facts = facts_of(d, *p, program);
  const CollectiveCount sends = promised_sends(*p->graph, plan);

  CpuRuntime runtime(std::move(program), {.seed = 42, .compare_ranks = true});
  runtime.initialize();
  Curve curve;
  for (int step = 0; step < kPipelineSteps; ++step) {
    const StepResult r = step_in_parts(runtime, *p->graph, t.config, step);
    expect_planned(r.collectives, plan);
    expect_sends(r, sends);
    curve.loss.push_back(r.value("loss"));
    curve.grad_norm.push_back(r.value("grad_norm"));
  }
  expect_arenas(runtime.program());
  o.distance = distance(curve, t.one);
  EXPECT_LE(o.distance, d.dtype == DType::kF64 ? kF64 : kF32);
  if (d.dtype == DType::kF64) {
    o.weights = weights_distance(runtime, t);
    EXPECT_LE(o.weights, kF64);
  }
  return o;
}

// --- Many ----------------------------------------------------------------------------------------

// Every value of every dimension that must be met.
inline const std::vector<std::string>& space_dimensions() {
  static const std::vector<std::string> all = {"model:gpt",
                                               "model:llama",
                                               "model:bert",
                                               "model:moe",
                                               "dtype:f64",
                                               "dtype:f32",
                                               "sched:one",
                                               "sched:1f1b",
                                               "sched:interleaved",
                                               "sched:zero-bubble",
                                               "micro:1",
                                               "micro:2",
                                               "micro:3+",
                                               "cuts:pieces",
                                               "cuts:anywhere",
                                               "axes:0",
                                               "axes:1",
                                               "axes:2",
                                               "axes:3",
                                               "axis:dp",
                                               "axis:tp",
                                               "axis:sp",
                                               "axis:cp",
                                               "axis:ring",
                                               "axis:ep",
                                               "axis:experts",
                                               "zero:0",
                                               "zero:1",
                                               "zero:2",
                                               "zero:3",
                                               "again:none",
                                               "again:selective",
                                               "again:full",
                                               "again:random",
                                               "host:none",
                                               "host:some",
                                               "way:pins",
                                               "way:saved",
                                               "moments:bf16"};
  return all;
}

// Whether two values can meet in one plan.
inline bool can_meet(const std::string& a, const std::string& b) {
  const auto pair = [&](std::string_view x, std::string_view y) {
    return (a.starts_with(x) && b.starts_with(y)) || (b.starts_with(x) && a.starts_with(y));
  };
  const std::string_view dimension = std::string_view(a).substr(0, a.find(':'));
  const bool one_dimension = b.starts_with(dimension);
  if (one_dimension && dimension != "axis" && dimension != "zero" && dimension != "way")
    return false;
  if (pair("axes:0", "axis:") || pair("axes:0", "zero:")) return false;
  if (pair("sched:one", "cuts:") || pair("sched:one", "axes:0")) return false;
  if (pair("sched:interleaved", "micro:1")) return false;  // a multiple of the stages
  if (pair("sched:interleaved", "axes:3")) return false;   // drawn on eight devices
  if (pair("micro:1", "zero:2")) return false;             // there are no accumulators
  for (const char* dense : {"model:gpt", "model:llama", "model:bert"}) {
    if (pair("axis:experts", dense)) return false;
  }
  if (pair("dtype:f32", "moments:bf16")) return false;  // see draw()
  if (pair("way:pins", "axis:ring")) return false;      // chosen by cost: not for models as small
  if (pair("way:pins", "again:random") || pair("way:pins", "cuts:anywhere")) return false;
  return true;
}

class Coverage {
 public:
  void add(const Draw& d, const Outcome& o) {
    if (!o.refused.empty()) {
      ++refused_[o.refused];
      ++refusals_;
      return;
    }
    ++plans_;
    double& worst = d.dtype == DType::kF64 ? worst_f64_ : worst_f32_;
    worst = std::max(worst, o.distance);
    worst_weights_ = std::max(worst_weights_, o.weights);
    devices_[d.devices()]++;
    for (const std::string& a : o.facts) {
      for (const std::string& b : o.facts) ++met_[{a, b}];
    }
  }

  size_t plans() const { return plans_; }
  size_t refusals() const { return refusals_; }

  int met(const std::string& a, const std::string& b) const {
    const auto at = met_.find({a, b});
    return at == met_.end() ? 0 : at->second;
  }

  // Values, and pairs of values, that could have been met and were not.
  std::vector<std::string> never(bool pairs) const {
    std::vector<std::string> result;
    const auto& all = space_dimensions();
    for (size_t i = 0; i < all.size(); ++i) {
      if (met(all[i], all[i]) == 0) result.push_back(all[i]);
      for (size_t k = 0; pairs && k < i; ++k) {
        if (can_meet(all[k], all[i]) && met(all[k], all[i]) == 0)
          result.push_back(all[k] + " with " + all[i]);
      }
    }
    return result;
  }

  std::string table() const {
    std::string text = fmt::format(
        "{} plans trained like one device: losses and gradient norms differ by at most {:.1e} in "
        "f64, "
        "{:.1e} in f32; weights by {:.1e} in f64\n",
        plans_, worst_f64_, worst_f32_, worst_weights_);
    text += "devices:";
    for (const auto& [n, count] : devices_) text += fmt::format(" {} on {}", count, n);
    text += fmt::format("\n{} refused\n", refusals_);
    for (const auto& [why, count] : refused_) text += fmt::format("  {:4} {}\n", count, why);
    const auto& all = space_dimensions();
    text += "how many plans had both; on the diagonal, had it; a dot: they cannot meet\n";
    text += fmt::format("{:20}", "");
    for (size_t k = 0; k < all.size(); ++k) text += fmt::format("{:>4}", k + 1);
    text += '\n';
    for (size_t i = 0; i < all.size(); ++i) {
      text += fmt::format("{:2} {:18}", i + 1, all[i]).substr(0, 20);
      for (size_t k = 0; k <= i; ++k) {
        const bool can = k == i || can_meet(all[k], all[i]);
        text += can ? fmt::format("{:>4}", met(all[k], all[i])) : "   .";
      }
      text += '\n';
    }
    return text;
  }

 private:
  size_t plans_ = 0, refusals_ = 0;
  double worst_f64_ = 0, worst_f32_ = 0, worst_weights_ = 0;
  std::map<int64_t, int> devices_;
  std::map<std::string, int> refused_;
  std::map<std::pair<std::string, std::string>, int> met_;
};

inline std::optional<uint64_t> number_in(const char* variable) {
  const char* text = std::getenv(variable);
  return text != nullptr ? std::optional(std::strtoull(text, nullptr, 10)) : std::nullopt;
}

// Runs as many plans, of the seeds from `first` on, and prints the table. CLEAVE_SPACE_PLANS asks
// for another number of them; CLEAVE_SPACE_SEED for the one of that seed.
inline Coverage run_space(uint64_t first, size_t plans) {
  Coverage coverage;
  const std::optional<uint64_t> one = number_in("CLEAVE_SPACE_SEED");
  plans = number_in("CLEAVE_SPACE_PLANS").value_or(plans);
  first = number_in("CLEAVE_SPACE_FIRST").value_or(first);
  const uint64_t begin = one.value_or(first), end = one ? begin + 1 : begin + 2 * plans;
  for (uint64_t seed = begin; seed < end && coverage.plans() < plans; ++seed) {
    const Draw d = draw(seed);
    SCOPED_TRACE(fmt::format("{}\n  again: CLEAVE_SPACE_SEED={} build/bin/training_space_test",
                             text_of(d), seed));
    if (one) fmt::print("{}\n", text_of(d));
    try {
      coverage.add(d, run_draw(d));
    } catch (const std::exception& e) {
      ADD_FAILURE() << e.what();
    }
  }
  fmt::print("{}", coverage.table());
  if (one) return coverage;
  EXPECT_EQ(coverage.plans(), plans);
  // Few are refused, each with one line.
  EXPECT_LE(coverage.refusals(), std::max<size_t>(plans / 20, 1));
  return coverage;
}

}  // namespace cleave::testing
