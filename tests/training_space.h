// Plans drawn at random out of the whole joint space: pipeline, mesh, placements, ZeRO stage of
// every weight, recomputation and offload at once. By a seed; what came out is read off the plan.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "planner/offload.h"
#include "planner/outline.h"
#include "planner/plan_json.h"
#include "planner/remake.h"
#include "planner/remake_menu.h"
#include "planner/roles.h"
#include "tests/training_pipeline.h"

namespace cleave::testing {

// --- What a seed says ----------------------------------------------------------------------------

enum class RecomputeDraw : uint8_t { kNone, kSelective, kFull, kRandom };
enum class OffloadDraw : uint8_t { kNone, kSome, kAll };

struct Draw {
  static constexpr int kAnyZero = -2, kMixedZero = -1;

  uint64_t seed = 0;
  size_t model = 0;  // of models()
  int64_t layers = 2;
  DType dtype = DType::kF64;
  PipelineShape shape;
  std::vector<int64_t> sizes;   // of the mesh of a stage
  std::vector<AxisRole> roles;  // as many
  int zero = kAnyZero;          // 0 to 3: of every weight; mixed: each weight has its own
  RecomputeDraw recompute = RecomputeDraw::kNone;
  OffloadDraw offload = OffloadDraw::kNone;
  bool anywhere = false;  // cuts before any node, rather than between pieces
  bool steered = true;    // by random preferences; else the best plan of all that
  double price = 0;       // of memory, seconds a byte
  bool halves = false;    // moments are stored in bf16
  bool pinned = false;    // asked for as users do, by pins, of find_plan
  bool saved = false;     // written as JSON and read again before it runs

  int64_t devices() const {
    int64_t n = shape.stages;
    for (int64_t s : sizes) n *= s;
    return n;
  }
};

inline std::string mesh_text(const Draw& d) {
  std::string text;
  for (size_t a = 0; a < d.sizes.size(); ++a) {
    text += fmt::format("{}{} {}", a == 0 ? "" : " x ", name_of(d.roles[a]), d.sizes[a]);
  }
  return text.empty() ? "1" : text;
}

inline std::string text_of(const Draw& d) {
  constexpr const char* kRecompute[] = {"none", "selective", "full", "random"};
  constexpr const char* kOffload[] = {"none", "some", "all"};
  return fmt::format(
      "{} of {} layers in {}, {} {} stages x {} chunks, {} micro-batches, mesh {}, ZeRO {}, "
      "recompute {}, offload {}, cuts {}, price {:.0e}{}{}{}{}",
      models()[d.model].label, d.layers, name_of(d.dtype), name_of(d.shape.kind), d.shape.stages,
      d.shape.chunks, d.shape.micro_batches, mesh_text(d),
      d.zero == Draw::kAnyZero     ? "any"
      : d.zero == Draw::kMixedZero ? "mixed"
                                   : fmt::to_string(d.zero),
      kRecompute[static_cast<size_t>(d.recompute)], kOffload[static_cast<size_t>(d.offload)],
      d.anywhere ? "anywhere" : "between pieces", d.price, d.steered ? "" : ", best",
      d.pinned ? ", by pins" : "", d.saved ? ", saved" : "", d.halves ? ", moments in bf16" : "");
}

// Independent draws, each named.
class Dice {
 public:
  explicit Dice(uint64_t seed) : seed_(seed) {}
  bool once_in(double n, std::string_view what) const { return chance(seed_, what) * n < 1; }
  size_t below(size_t n, std::string_view what) const {
    return std::min(n - 1, static_cast<size_t>(chance(seed_, what) * static_cast<double>(n)));
  }
  template <class T>
  const T& of(const std::vector<T>& all, std::string_view what) const {
    return all[below(all.size(), what)];
  }

 private:
  uint64_t seed_;
};

inline Draw draw(uint64_t seed) {
  const Dice dice(seed);
  Draw d;
  d.seed = seed;
  d.model = dice.below(models().size(), "model");
  d.layers = 2 + static_cast<int64_t>(dice.below(2, "layers"));
  d.dtype = dice.once_in(3, "dtype") ? DType::kF32 : DType::kF64;

  constexpr ScheduleKind k1F1B = ScheduleKind::kOneForwardOneBackward;
  constexpr ScheduleKind kInter = ScheduleKind::kInterleaved, kZero = ScheduleKind::kZeroBubble;
  const size_t schedule = dice.below(4, "schedule");  // 0: one stage
  d.shape.kind = std::vector<ScheduleKind>{k1F1B, k1F1B, kInter, kZero}[schedule];
  d.shape.stages = schedule == 0 ? 1 : dice.of<int>({2, 2, 2, 3, 4}, "stages");
  d.shape.chunks = schedule == 2 ? dice.of<int>({2, 2, 3}, "chunks") : 1;
  using Sizes = std::vector<int64_t>;
  std::vector<Sizes> meshes = {{2}, {3}, {4}, {2, 2}};
  if (schedule == 0) {
    meshes.insert(meshes.end(),
                  {{6}, {8}, {2, 2}, {2, 3}, {3, 2}, {2, 4}, {4, 2}, {2, 2, 2}, {2, 2, 2}});
  }
  // Three axes meet a pipeline on twice as many devices.
  if (d.shape.stages == 2) meshes = {{1}, {2}, {2}, {3}, {4}, {2, 2}, {2, 2}, {2, 2, 2}};
  if (d.shape.stages > 2) meshes = {{1}, {2}, {2}};
  d.sizes = dice.of(meshes, "mesh");
  // Each role once; at most one axis of three is left open, since tables would grow too large.
  std::vector<AxisRole> roles = {AxisRole::kData, AxisRole::kInner, AxisRole::kContext,
                                 AxisRole::kExpert, AxisRole::kAny};
  for (size_t a = 0; a < d.sizes.size(); ++a) {
    const size_t i = dice.below(roles.size(), fmt::format("role {}", a));
    d.roles.push_back(roles[i]);
    if (roles[i] != AxisRole::kAny || d.sizes.size() > 2)
      roles.erase(roles.begin() + static_cast<int64_t>(i));
  }

  const int64_t size = d.devices() / d.shape.stages;
  const bool thirds = size % 3 == 0;
  std::vector<int> counts =
      thirds ? std::vector<int>{1, 2, 2, 3, 3, 6} : std::vector<int>{1, 1, 2, 2, 2, 4, 4, 4, 8};
  if (schedule == 2 && d.shape.stages == 3) counts = {3, 6};  // see config_of
  if (schedule == 2) std::erase_if(counts, [&](int m) { return m % d.shape.stages != 0; });
  d.shape.micro_batches = dice.of(counts, "micro-batches");
  // A single masked sequence may have no target, and then no loss.
  const bool masked = objective_of(model_named(models()[d.model].name)) == Objective::kMaskedTokens;
  if (masked && d.shape.micro_batches > 4)
    d.shape.micro_batches = schedule == 2 ? d.shape.stages : d.shape.micro_batches / 2;

  d.zero = dice.of<int>({0, 1, 2, 3, -1, -1, -2}, "zero");
  d.recompute = static_cast<RecomputeDraw>(dice.below(4, "recompute"));
  d.offload = dice.of<OffloadDraw>({OffloadDraw::kNone, OffloadDraw::kNone, OffloadDraw::kSome,
                                    OffloadDraw::kSome, OffloadDraw::kAll},
                                   "offload");
  d.anywhere = d.shape.stages > 1 && dice.once_in(2, "anywhere");
  d.steered = !dice.once_in(5, "steered");
  d.price = dice.once_in(2, "price") ? 0 : std::pow(10, -12 + 10 * chance(seed, "price of a byte"));
  const bool named = std::count(d.roles.begin(), d.roles.end(), AxisRole::kAny) == 0;
  d.pinned = named && dice.once_in(3, "pinned");
  if (d.pinned) {
    if (d.recompute == RecomputeDraw::kRandom) d.recompute = RecomputeDraw::kFull;
    if (d.zero == Draw::kMixedZero) d.zero = Draw::kAnyZero;
    d.price = 0;
    d.anywhere = false;
  }
  d.saved = dice.once_in(4, "saved");
  // Of numbers that differ by 1e-16, one in 1e13 is rounded to another bf16; in single precision it
  // would be one in ten thousand.
  d.halves = d.dtype == DType::kF64 && dice.once_in(3, "moments");
  return d;
}

inline Graph graph_of(const Draw& d, const ModelConfig& config, int64_t micro_batches) {
  return step_graph(config, micro_batches, d.dtype, models()[d.model].optimizer,
                    d.halves ? std::optional(DType::kBF16) : std::nullopt);
}

// --- The traced model ----------------------------------------------------------------------------

inline ModelConfig config_of(const Draw& d) {
  const int64_t size = d.devices() / d.shape.stages;
  const bool thirds = size % 3 == 0 || d.shape.micro_batches % 3 == 0;
  ModelConfig c = config_for(models()[d.model], thirds ? 3 : 2);
  c.layers = d.layers;
  return c;
}

// One model as it is traced, and what it trains to on one device: shared by draws.
struct Traced {
  ModelConfig config;
  std::shared_ptr<const Graph> graph;
  Outline outline;
  Curve one;
  std::map<std::string, std::vector<std::byte>> weights;  // by name, after the last step
};

inline const Traced& traced(const Draw& d) {
  static std::map<std::string, Traced> known;
  const ModelConfig config = config_of(d);
  const std::string key = fmt::format("{} {} {} {} {} {}", d.model, d.layers, config.hidden,
                                      d.shape.micro_batches, name_of(d.dtype), d.halves);
  const auto at = known.find(key);
  if (at != known.end()) return at->second;
  Traced t;
  t.config = config;
  t.graph = std::make_shared<const Graph>(graph_of(d, config, d.shape.micro_batches));
  t.outline = outline_of(t.graph);
  CpuRuntime runtime(lower(*t.graph, plan_for(*t.graph, "1", {})), {.seed = 42});
  runtime.initialize();
  for (int step = 0; step < kPipelineSteps; ++step) {
    const StepResult r = step_in_parts(runtime, *t.graph, config, step);
    t.one.loss.push_back(r.value("loss"));
    t.one.grad_norm.push_back(r.value("grad_norm"));
    CLEAVE_ASSERT(std::isfinite(t.one.loss.back()), "{} has no loss", key);
  }
  for (const ProgramSource& s : runtime.program().sources) {
    if (s.kind == SourceKind::kParameter) t.weights[s.name] = runtime.read_source(s.name);
  }
  return known.emplace(key, std::move(t)).first->second;
}

inline Rewrite rewrite_of(const Draw& d, const Traced& t) {
  Rewrite rewrite;
  switch (d.recompute) {
    case RecomputeDraw::kNone: break;
    case RecomputeDraw::kSelective:
      rewrite.remade = t.outline.nodes_of(selective_mode(t.outline));
      break;
    case RecomputeDraw::kFull: rewrite.remade = t.outline.nodes_of(full_mode(t.outline)); break;
    case RecomputeDraw::kRandom: {
      const std::vector<bool> possible = can_be_remade(*t.graph);
      const double share = chance(d.seed, "share remade");
      for (size_t n = 0; n < possible.size(); ++n) {
        if (possible[n] && chance(d.seed, fmt::format("remade {}", n)) < share)
          rewrite.remade.push_back(static_cast<NodeId>(n));
      }
    }
  }
  std::vector<NodeId> places;
  for (const Piece& p : t.outline.pieces) places.push_back(p.first);
  places.erase(places.begin());
  const auto cuts = static_cast<size_t>(d.shape.stages * d.shape.chunks - 1);
  if (d.anywhere || places.size() < cuts) {
    places.clear();
    for (NodeId n = 1; t.graph->node(n).phase == Phase::kForward; ++n) places.push_back(n);
  }
  for (size_t c = 0; c < cuts; ++c) {
    const size_t i = Dice(d.seed).below(places.size(), fmt::format("cut {}", c));
    rewrite.cuts.push_back(places[i]);
    places.erase(places.begin() + static_cast<int64_t>(i));
  }
  std::sort(rewrite.cuts.begin(), rewrite.cuts.end());
  std::sort(rewrite.remade.begin(), rewrite.remade.end());
  return rewrite;
}

// --- Preferences ---------------------------------------------------------------------------------

// By source: the parameter that it belongs to ("adam.m.NAME" to NAME); -1: none.
inline std::vector<int> weights_of(const Graph& graph) {
  std::vector<int> result;
  for (const Source& s : graph.sources()) {
    int best = -1;
    size_t longest = 0;
    for (size_t p = 0; p < graph.sources().size(); ++p) {
      const Source& w = graph.sources()[p];
      if (w.kind != SourceKind::kParameter || s.kind == SourceKind::kData) continue;
      if (w.name.size() > longest && s.name.find(w.name) != std::string::npos)
        best = static_cast<int>(p), longest = w.name.size();
    }
    result.push_back(best);
  }
  return result;
}

// Steers parameters, gradients and states of each weight to its ZeRO stage on the data axis.
class ZeroPreferences {
 public:
  ZeroPreferences(const Draw& d, const Graph& graph)
      : draw_(d), graph_(graph), weights_(weights_of(graph)) {
    for (size_t a = 0; a < d.roles.size() && axis_ < 0; ++a) {
      if (d.roles[a] == AxisRole::kData) axis_ = static_cast<int>(a);
    }
    for (size_t a = 0; a < d.roles.size() && axis_ < 0; ++a) {
      if (d.roles[a] == AxisRole::kAny) axis_ = static_cast<int>(a);
    }
  }

  double held(Value v, const Placements& placements) const {
    const int32_t s = graph_.value(v).source;
    const int z = s < 0 ? -1 : stage(s);
    if (z < 0) return 0;
    const SourceKind kind = graph_.sources()[static_cast<size_t>(s)].kind;
    if (kind == SourceKind::kAccumulator) return 0;
    const bool parts = z >= (kind == SourceKind::kParameter ? 3 : 1);
    return placements[static_cast<size_t>(axis_)].is_shard() == parts ? 0 : kWrong;
  }

  double choice(NodeId leader, const std::vector<AxisOption>& options) const {
    const Node& node = graph_.node(leader);
    double cost = 0;
    for (Value v : node.inputs) {
      const int32_t s = graph_.value(v).source;
      const int z = s < 0 ? -1 : stage(s);
      if (z < 0) continue;
      const SourceKind kind = graph_.sources()[static_cast<size_t>(s)].kind;
      const bool gradient = kind == SourceKind::kAccumulator && node.phase == Phase::kBackward;
      const bool state = kind == SourceKind::kState && node.phase == Phase::kUpdate;
      if (!gradient && !state) continue;
      const bool parts = options[static_cast<size_t>(axis_)].kind == AxisOption::Kind::kFactor;
      if (parts != (z >= (gradient ? 2 : 1))) cost += kWrong;
    }
    return cost;
  }

 private:
  static constexpr double kWrong = 1e4;

  int stage(int32_t source) const {
    const int w = weights_[static_cast<size_t>(source)];
    if (axis_ < 0 || w < 0 || draw_.zero == Draw::kAnyZero) return -1;
    if (draw_.zero >= 0) return draw_.zero;
    const std::string& name = graph_.sources()[static_cast<size_t>(w)].name;
    return static_cast<int>(4 * chance(draw_.seed, "zero of " + name));
  }

  const Draw draw_;
  const Graph& graph_;
  const std::vector<int> weights_;
  int axis_ = -1;
};

inline Preferences preferences_of(const Draw& d, const Graph& graph) {
  const Preferences random = d.steered ? random_preferences(graph, d.seed) : Preferences{};
  const auto zero = std::make_shared<ZeroPreferences>(d, graph);
  Preferences p;
  // Rings are a choice of the search's by cost; here they are drawn.
  const bool ring = Dice(d.seed).once_in(2, "ring");
  p.choice = [&graph, random, zero, ring](NodeId leader, const std::vector<AxisOption>& options) {
    double cost = zero->choice(leader, options);
    if (random.choice) cost += random.choice(leader, options);
    if (ring && graph.node(leader).op->merge != nullptr) {
      const auto is_ring = [](const AxisOption& o) { return o.kind == AxisOption::Kind::kRing; };
      if (std::none_of(options.begin(), options.end(), is_ring)) cost += 100;
    }
    return cost;
  };
  p.held = [random, zero](Value v, const Placements& placements) {
    return zero->held(v, placements) + (random.held ? random.held(v, placements) : 0);
  };
  if (d.offload != OffloadDraw::kNone) {
    p.on_host = [d](const Source& s) {
      return d.offload == OffloadDraw::kAll || chance(d.seed, "on host " + s.name) < 0.5;
    };
  }
  return p;
}

// --- Plans ---------------------------------------------------------------------------------------

struct DrawnPlan {
  std::shared_ptr<const Graph> graph;  // rewritten
  Plan plan;
};

inline Cluster cluster_of(const Draw& d) {
  return parse_cluster(fmt::format("cpu:{}", d.devices()));
}

inline PlannerOptions measured_options() {
  PlannerOptions options;
  options.live_bytes = stage_live_bytes;
  options.peak_bytes = stage_peak_bytes;
  options.threads = 1;
  return options;
}

// Directly: every choice outside of the placements is the draw's. Empty: tables would be too large.
inline std::optional<DrawnPlan> plan_directly(const Draw& d, const Traced& t) {
  RewrittenGraph r = rewritten(*t.graph, rewrite_of(d, t));
  DrawnPlan result;
  const Pipeline pipeline = d.shape.stages > 1 ? pipeline_of(d.shape, r) : Pipeline{};
  result.graph = std::make_shared<const Graph>(std::move(r.graph));
  PlannerOptions options = measured_options();
  options.preferences = preferences_of(d, *result.graph);
  Mesh mesh;
  for (size_t a = 0; a < d.sizes.size(); ++a)
    mesh.axes.push_back({fmt::format("a{}", a), d.sizes[a]});
  Costing costing = Costing::plain(result.graph->micro_batches, {d.price, d.price, 0});
  const auto groups = static_cast<size_t>(d.shape.stages * d.shape.chunks);
  costing.runs.resize(groups, costing.runs[0]);
  costing.prices.resize(groups, costing.prices[0]);
  costing.in_flight.resize(groups, costing.in_flight[0]);
  auto plan = plan_with(*result.graph, cluster_of(d), mesh, d.roles, costing, pipeline, options);
  if (!plan) return std::nullopt;
  result.plan = std::move(*plan);
  result.plan.rewrite = rewrite_of(d, t);
  return result;
}

// As a user asks for it. Empty: the planner finds none, and `why` says why.
inline std::optional<DrawnPlan> plan_by_pins(const Draw& d, const Traced& t, std::string& why) {
  std::vector<std::string> pins = {fmt::format("pp={}", d.shape.stages),
                                   fmt::format("micro={}", d.shape.micro_batches)};
  if (d.shape.stages > 1) {
    pins.push_back(fmt::format("chunks={}", d.shape.chunks));
    pins.push_back(fmt::format("schedule={}", name_of(d.shape.kind)));
  }
  PlannerOptions options = measured_options();
  options.mesh.sizes = d.sizes;
  options.mesh.roles = d.roles;
  if (d.devices() == d.shape.stages) options.mesh = {};
  const bool data = d.devices() > d.shape.stages &&
                    std::count(d.roles.begin(), d.roles.end(), AxisRole::kData) > 0;
  if (data && d.zero >= 0) pins.push_back(fmt::format("zero={}", d.zero));
  constexpr Recompute kModes[] = {Recompute::kNone, Recompute::kSelective, Recompute::kFull};
  pins.push_back(fmt::format("recompute={}", name_of(kModes[static_cast<size_t>(d.recompute)])));
  options.pins = parse_pins(pins, "--pin");
  options.space = {.stages = d.shape.stages > 1,
                   .recompute = true,
                   .offload = false,
                   .max_axes = std::max<size_t>(2, d.sizes.size())};
  options.memory_limit = INFINITY;
  options.trace = [&](int64_t micro_batches) {
    return micro_batches == t.graph->micro_batches
               ? t.graph
               : std::make_shared<const Graph>(graph_of(d, t.config, micro_batches));
  };
  if (d.offload == OffloadDraw::kAll)
    options.preferences.on_host = [](const Source&) { return true; };
  PlanResult found = find_plan(*t.graph, cluster_of(d), options);
  if (!found.plan) {
    for (const Candidate& c : found.candidates) why = c.why_not;
    return std::nullopt;
  }
  return DrawnPlan{found.graph, std::move(*found.plan)};
}

// The plan as a file keeps it.
inline DrawnPlan saved_and_read(const DrawnPlan& p, const Graph& traced) {
  const auto json = nlohmann::ordered_json::parse(plan_to_json(*p.graph, p.plan).dump());
  const Rewrite rewrite = rewrite_in_plan(json, traced);
  RewrittenGraph r = rewritten(traced, rewrite);
  DrawnPlan result;
  result.graph = std::make_shared<const Graph>(std::move(r.graph));
  result.plan = plan_from_json(json, *result.graph, measured_options(), r.chunk_of);
  result.plan.rewrite = rewrite;
  return result;
}

}  // namespace cleave::testing
