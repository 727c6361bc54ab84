// The prediction of a step: against a simulation that moves from event to event with no list worked
// off in order, against the plan's own sum, and against the program's dependencies.
#include "executor/timeline.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <ctime>
#include <map>
#include <numeric>
#include <random>
#include <set>

#include "executor/instr_costs.h"
#include "executor/memory_layout.h"
#include "executor/program_flow.h"
#include "executor/typing.h"
#include "tests/support/sanitized.h"
#include "tests/training_pipeline.h"

namespace cleave {
namespace {

using namespace testing;

// --- Tasks ---------------------------------------------------------------------------------------

// All runs of a step, each with its own list of what must have ended before. At each event, every
// stream begins its next run if it may.
std::vector<TaskRun> by_events(const StepTasks& step) {
  struct Pending {
    std::vector<size_t> after;
    double seconds;
    bool done = false;
  };
  std::vector<Pending> all;
  std::vector<std::vector<size_t>> queues;  // by stage and stream
  std::map<std::tuple<SlotId, int32_t>, size_t> setter;
  std::vector<std::tuple<size_t, SlotId, int32_t>> waits;
  for (const StepTasks::Stage& stage : step.stages) {
    const size_t streams = queues.size();
    queues.resize(streams + static_cast<size_t>(stage.streams));
    for (const StepTasks::Segment& segment : stage.order) {
      const TaskList& list = stage.lists[static_cast<size_t>(segment.list)];
      const size_t first = all.size();
      for (size_t t = 0; t < list.tasks.size(); ++t) {
        const size_t own = all.size();
        all.push_back({{}, list.tasks[t].seconds});
        queues[streams + static_cast<size_t>(list.tasks[t].stream)].push_back(own);
        for (const int32_t n : list.needs_of(t))
          all[own].after.push_back(first + static_cast<size_t>(n));
        const auto entry = [&](SlotId slot, bool previous) {
          const bool each = step.slot_of_each[static_cast<size_t>(slot)];
          return each ? segment.micro_batch - (previous ? 1 : 0) : 0;
        };
        for (const SlotId s : list.sets_of(t)) setter[{s, entry(s, list.tasks[t].previous)}] = own;
        for (const SlotWait& w : list.waits_of(t)) {
          if (entry(w.slot, w.previous) >= 0)
            waits.emplace_back(own, w.slot, entry(w.slot, w.previous));
        }
      }
    }
  }
  for (const auto& [run, slot, entry] : waits) all[run].after.push_back(setter.at({slot, entry}));

  std::vector<TaskRun> runs(all.size());
  std::vector<size_t> next(queues.size(), 0);
  std::vector<double> free(queues.size(), 0);
  std::set<double> times = {0};
  while (!times.empty()) {
    const double now = *times.begin();
    times.erase(times.begin());
    for (bool moved = true; moved;) {
      moved = false;
      for (size_t q = 0; q < queues.size(); ++q) {
        if (next[q] == queues[q].size() || free[q] > now) continue;
        const size_t run = queues[q][next[q]];
        const bool ready = std::all_of(all[run].after.begin(), all[run].after.end(),
                                       [&](size_t a) { return all[a].done && runs[a].end <= now; });
        if (!ready) continue;
        runs[run] = {now, now + all[run].seconds, -1};
        all[run].done = moved = true;
        free[q] = runs[run].end;
        times.insert(runs[run].end);
        ++next[q];
      }
    }
    times.erase(now);
  }
  for (size_t q = 0; q < queues.size(); ++q) EXPECT_EQ(next[q], queues[q].size()) << "stream " << q;
  return runs;
}

// Stages that send to one another in the order of a schedule, with random work between.
StepTasks random_step(std::mt19937& random) {
  const auto below = [&](uint32_t n) { return static_cast<int32_t>(random() % n); };
  StepTasks step;
  const int32_t p = 1 + below(4), m = 1 + below(16);
  const bool zero = below(2) == 0;
  step.micro_batches = m;
  const Schedule schedule = make_schedule(
      zero ? ScheduleKind::kZeroBubble : ScheduleKind::kOneForwardOneBackward, p, 1, m);
  std::vector<SlotId> forward, backward;
  for (int32_t s = 0; s < p; ++s) {
    forward.push_back(step.add_slot(true));
    backward.push_back(step.add_slot(true));
  }
  for (int32_t s = 0; s < p; ++s) {
    StepTasks::Stage& stage = step.stages.emplace_back();
    stage.streams = 2 + below(3);
    const SlotId own = step.add_slot(true), once = step.add_slot(false);
    for (int32_t kind = 0; kind < 4; ++kind) {  // the units, and the update
      TaskList& list = stage.lists.emplace_back();
      const int32_t tasks = 1 + below(6);
      for (int32_t t = 0; t < tasks; ++t) {
        list.add({.stream = t == 0 ? 0 : below(static_cast<uint32_t>(stage.streams)),
                  .seconds = static_cast<double>(below(9))});
        for (int32_t n = 0; n < t; ++n)
          if (below(3) == 0) list.need(n);
        if (t == 0 && kind == 0 && s > 0) list.wait({forward[static_cast<size_t>(s)], false});
        if (t == 0 && kind == 1 && s + 1 < p) list.wait({backward[static_cast<size_t>(s)], false});
        if (t == 0 && kind == 1) list.wait({own, true});
        if (t == 0 && kind == 3) list.wait({once, false});
        if (t + 1 < tasks) continue;
        if (kind == 0 && s + 1 < p) list.set(forward[static_cast<size_t>(s) + 1]);
        if (kind == 1 && s > 0) list.set(backward[static_cast<size_t>(s) - 1]);
        if (kind == 1) list.set(own), list.set(once);
      }
    }
    for (const Unit& u : schedule.order[static_cast<size_t>(s)])
      stage.order.push_back({static_cast<int32_t>(u.kind), u.micro_batch});
    stage.order.push_back({3, m - 1});
  }
  return step;
}

TEST(Tasks, RandomOnesAgreeWithEvents) {
  std::mt19937 random(1);
  size_t runs = 0;
  for (int i = 0; i < 500; ++i) {
    SCOPED_TRACE(fmt::format("case {}", i));
    const StepTasks step = random_step(random);
    const StepRun run = run_tasks(step);
    const std::vector<TaskRun> expected = by_events(step);
    ASSERT_EQ(run.runs.size(), expected.size());
    double end = 0;
    for (size_t r = 0; r < expected.size(); ++r) {
      ASSERT_EQ(run.runs[r].start, expected[r].start) << "run " << r;
      ASSERT_EQ(run.runs[r].end, expected[r].end) << "run " << r;
      const int32_t cause = run.runs[r].cause;
      ASSERT_EQ(cause < 0 ? 0 : run.runs[static_cast<size_t>(cause)].end, run.runs[r].start);
      end = std::max(end, expected[r].end);
    }
    ASSERT_EQ(run.seconds, end);
    ASSERT_EQ(run_seconds(step), end);
    runs += expected.size();
  }
  EXPECT_GT(runs, 10000u);
}

TEST(Tasks, StagesThatWaitForEachOtherAreRefused) {
  StepTasks step;
  const SlotId a = step.add_slot(false), b = step.add_slot(false);
  for (const auto& [waits, sets] : {std::pair(a, b), std::pair(b, a)}) {
    StepTasks::Stage& stage = step.stages.emplace_back();
    TaskList& list = stage.lists.emplace_back();
    list.add({.seconds = 1});
    list.wait({waits, false});
    list.set(sets);
    stage.order = {{0, 0}};
  }
  EXPECT_THROW(run_tasks(step), InternalError);
}

// --- Programs ------------------------------------------------------------------------------------

struct Subject {
  Graph graph;
  Plan plan;
  Program program;
};

// A random plan of a small model, by its number.
Subject subject(size_t number) {
  const int64_t devices = std::vector<int64_t>{2, 4, 8, 6}[number % 4];
  const Model& model = models()[number % models().size()];
  ModelConfig config = config_for(model, devices);
  TraceOptions options;
  options.optimizer.kind = model.optimizer;
  options.dtype = number % 3 == 0 ? DType::kBF16 : DType::kF32;
  if (number % 2 == 1) options.optimizer.micro_batches = 1 + static_cast<int64_t>(number % 5);
  Subject s{trace(config, options), {}, {}};
  const std::vector<std::string> meshes = meshes_of(devices);
  std::optional<uint64_t> seed;
  if (number % 5 != 0) seed = number;
  s.plan = plan_for(s.graph, meshes[number % meshes.size()], seed);
  s.program = lower(s.graph, s.plan);
  return s;
}

// A random pipeline, by its number.
Subject pipeline_subject(size_t number) {
  static const std::vector<std::tuple<ScheduleKind, int, int, int, const char*>> kShapes = {
      {ScheduleKind::kOneForwardOneBackward, 2, 1, 1, "1"},
      {ScheduleKind::kOneForwardOneBackward, 3, 1, 4, "2"},
      {ScheduleKind::kOneForwardOneBackward, 4, 1, 8, "dp=2"},
      {ScheduleKind::kInterleaved, 2, 2, 4, "dp=2"},
      {ScheduleKind::kInterleaved, 4, 2, 4, "tp=2"},
      {ScheduleKind::kZeroBubble, 2, 1, 4, "2"},
      {ScheduleKind::kZeroBubble, 4, 1, 8, "dp=2"}};
  const auto& [kind, stages, chunks, micro_batches, mesh] = kShapes[number % kShapes.size()];
  const Model& model = models()[number % models().size()];
  ModelConfig config = config_for(model, 2);
  config.layers = 4;
  const Graph graph = step_graph(config, micro_batches, DType::kF32, model.optimizer);
  RewrittenGraph r =
      rewritten(graph, {{}, even_cuts(graph, stages * chunks, number, number % 3 == 2 ? 0.5 : 0)});
  Pipeline pipeline;
  pipeline.schedule = kind;
  pipeline.stages = stages;
  pipeline.chunks = chunks;
  pipeline.chunk_of = r.chunk_of;
  Subject s{std::move(r.graph), {}, {}};
  std::optional<uint64_t> seed;
  if (number % 2 == 1) seed = number;
  s.plan = pipeline_plan(s.graph, mesh, pipeline, seed);
  s.program = lower(s.graph, s.plan);
  return s;
}

// Times of the size of one another, however small the tensors are.
Cluster random_cluster(std::mt19937& random, int64_t devices) {
  Cluster c = parse_cluster(devices % 4 == 0 ? fmt::format("{}x2xh100", devices / 2)
                                             : fmt::format("{}xh100", devices));
  const auto scaled = [&](double& x, double by) {
    x *= std::exp2(std::uniform_real_distribution<double>(-by, by)(random));
  };
  for (Tier& tier : c.tiers) {
    scaled(tier.link.latency, 3), scaled(tier.link.start, 6);
    tier.link.bandwidth *= std::exp2(std::uniform_real_distribution<double>(-14, 0)(random));
  }
  scaled(c.device.op_latency, 4);
  c.device.bandwidth *= std::exp2(std::uniform_real_distribution<double>(-14, 0)(random));
  return c;
}

constexpr size_t kSubjects = drawn(60), kPipelines = drawn(42);

TEST(Timeline, WithoutOverlapItIsThePlansSum) {
  for (size_t number = 0; number < kSubjects; ++number) {
    SCOPED_TRACE(fmt::format("subject {}", number));
    const Subject s = subject(number);
    const StepTimeline t = simulate_step(s.program, s.plan.cluster, {.overlap = false}, &s.plan);
    // Only the program knows which results lie in their operand's memory, and what is copied at the
    // end of a step to be where it began; and local cuts of bundled values have starts, too.
    double more = 0;
    const InstrCosts costs(s.program, s.plan.cluster);
    for (size_t i = 0; i < s.program.instrs.size(); ++i) {
      const Instr& instr = s.program.instrs[i];
      const auto times = once_a_step(instr.part) ? 1.0 : double(s.program.micro_batches());
      const bool local = instr.kind == InstrKind::kSlice || instr.kind == InstrKind::kMask;
      if (local || instr.kind == InstrKind::kCopy) more += times * costs.seconds(i);
      if (is_view(s.program, instr))
        more -= times * s.plan.nodes[static_cast<size_t>(instr.node)].seconds;
    }
    const StageSeconds& sum = t.stages[0].seconds;
    for (const auto& forms : s.plan.values) {
      for (const Form& f : forms) {
        const auto times =
            f.phase == Phase::kUpdate ? 1.0 : static_cast<double>(s.program.micro_batches());
        for (const Step& step : f.steps)
          if (!is_collective(step.kind)) more -= times * step.seconds;
      }
    }
    ASSERT_NEAR(t.seconds - more, s.plan.predicted.step_seconds, 1e-9 * t.seconds)
        << "communicating " << sum.communication << ", the plan "
        << s.plan.predicted.communication_seconds;
    ASSERT_NEAR(sum.sum(), t.seconds, 1e-9 * t.seconds);
    ASSERT_EQ(sum.bubble, 0);
    ASSERT_EQ(sum.communication, sum.communicating);
    if (s.program.micro_batches() == 1) {
      ASSERT_EQ(t.stages[0].peak_bytes, live_bytes(s.graph, s.plan));
    } else {
      ASSERT_LE(t.stages[0].peak_bytes, s.program.arena_bytes);
    }
  }
}

// What each reader waits for has ended: by the program's tensors, whatever the lists say.
void expect_dependencies(const Program& program, const StepTasks& tasks,
                         const StepTimeline& timeline) {
  const ProgramFlow flow = program_flow(program);
  using Pair = std::pair<const TimelineEvent*, std::vector<size_t>>;
  std::vector<Pair> events;  // with the pairs of tensors that they move
  std::map<std::tuple<int32_t, int32_t>, double> made, sent;  // micro-batch, tensor or node: when
  std::map<std::pair<int32_t, TensorId>, int64_t> times;      // how often
  std::vector<int64_t> runs(program.instrs.size(), 0);
  // What is made once is there for every micro-batch.
  const auto of = [&](const TimelineEvent& e, int32_t maker) {
    return program.instrs[static_cast<size_t>(maker)].part == Part::kBegin ? 0 : e.micro_batch;
  };
  for (size_t s = 0; s < timeline.stages.size(); ++s) {
    for (const TimelineEvent& e : timeline.stages[s].events) {
      const Instr& instr = program.instrs[static_cast<size_t>(e.instr)];
      std::vector<size_t> pairs(std::max(instr.in.size(), instr.out.size()));
      std::iota(pairs.begin(), pairs.end(), 0u);
      if (e.bucket >= 0) pairs = tasks.stages[s].buckets.at({e.instr, e.bucket});
      for (const size_t k : pairs) {
        if (k >= instr.out.size()) continue;
        made[{of(e, e.instr), instr.out[k]}] = e.start + e.seconds;
        ++times[{e.instr, instr.out[k]}];
      }
      ++runs[static_cast<size_t>(e.instr)];
      if (instr.kind == InstrKind::kSend) sent[{of(e, e.instr), instr.node}] = e.start + e.seconds;
      events.emplace_back(&e, std::move(pairs));
    }
  }
  for (const auto& [e, pairs] : events) {
    const auto i = static_cast<size_t>(e->instr);
    const Instr& instr = program.instrs[i];
    if (instr.kind == InstrKind::kReceive) {
      ASSERT_GE(e->start, (sent.at({of(*e, e->instr), instr.node}))) << describe_instr(program, i);
    }
    for (const size_t k : pairs) {
      if (k >= instr.in.size()) continue;
      const TensorId t = flow.root[static_cast<size_t>(instr.in[k])];
      const int32_t maker = flow.producer[static_cast<size_t>(t)];
      if (maker < 0) continue;
      ASSERT_GE(e->start, (made.at({of(*e, maker), t})))
          << describe_instr(program, i) << " of micro-batch " << e->micro_batch << " needs "
          << describe_instr(program, static_cast<size_t>(maker));
    }
  }
  for (size_t i = 0; i < program.instrs.size(); ++i) {
    if (flow.part[i] < 0) continue;
    const int64_t expected = once_a_step(program.instrs[i].part) ? 1 : program.micro_batches();
    if (program.instrs[i].out.empty()) {
      ASSERT_EQ(runs[i], expected) << describe_instr(program, i);
    }
    for (const TensorId t : program.instrs[i].out) {
      ASSERT_EQ((times[{static_cast<int32_t>(i), t}]), expected) << describe_instr(program, i);
    }
  }
  // Writes to one memory that is kept are in the order of micro-batches, one after the other.
  std::map<int32_t, std::vector<const TimelineEvent*>> writes;
  for (const auto& [e, pairs] : events) {
    const Instr& instr = program.instrs[static_cast<size_t>(e->instr)];
    if (once_a_step(instr.part)) continue;
    for (const TensorId t : instr.out) {
      const int32_t buffer = program.tensor(t).buffer;
      if (program.buffers[static_cast<size_t>(buffer)].persistent) writes[buffer].push_back(e);
    }
  }
  for (auto& [buffer, all] : writes) {
    std::sort(all.begin(), all.end(), [](const TimelineEvent* a, const TimelineEvent* b) {
      return std::tuple(a->start, a->start + a->seconds) <
             std::tuple(b->start, b->start + b->seconds);
    });
    for (size_t w = 1; w < all.size(); ++w) {
      ASSERT_LE(all[w - 1]->micro_batch, all[w]->micro_batch);
      ASSERT_LE(all[w - 1]->start + all[w - 1]->seconds, all[w]->start);
    }
  }
}

TEST(Timeline, RandomPlansOverlapAsTheirDependenciesAllow) {
  std::mt19937 random(3);
  int hidden = 0, buckets = 0, previous = 0, bubbles = 0;
  for (size_t number = 0; number < kSubjects + kPipelines; ++number) {
    const bool pipeline = number >= kSubjects;
    SCOPED_TRACE(fmt::format("{} {}", pipeline ? "pipeline" : "subject",
                             pipeline ? number - kSubjects : number));
    const Subject s = pipeline ? pipeline_subject(number - kSubjects) : subject(number);
    const Cluster cluster = random_cluster(random, s.program.ranks());
    const TimelineOptions options{.overlap = number % 7 != 6,
                                  .bucket_bytes = std::exp2(6 + random() % 14),
                                  .ahead_bytes = std::exp2(4 + random() % 16)};
    const StepTasks tasks = step_tasks(s.program, cluster, options);
    const StepRun run = run_tasks(tasks);
    const std::vector<TaskRun> expected = by_events(tasks);
    ASSERT_EQ(expected.size(), run.runs.size());
    for (size_t r = 0; r < expected.size(); ++r)
      ASSERT_NEAR(run.runs[r].start, expected[r].start, 1e-12 * run.seconds) << "run " << r;

    const StepTimeline t = simulate_step(s.program, cluster, options);
    ASSERT_EQ(t.seconds, run.seconds);
    ASSERT_NEAR(predicted_step_seconds(s.program, cluster, options), run.seconds,
                1e-12 * run.seconds);
    expect_dependencies(s.program, tasks, t);
    ASSERT_EQ(static_cast<int32_t>(t.stages.size()), s.program.stages());
    double all_work = 0;
    for (size_t st = 0; st < t.stages.size(); ++st) {
      const StageTimeline& stage = t.stages[st];
      ASSERT_NEAR(stage.seconds.sum(), t.seconds, 1e-9 * t.seconds);
      ASSERT_GE(stage.seconds.bubble, -1e-9 * t.seconds);
      if (!pipeline) {
        ASSERT_NEAR(stage.seconds.bubble, 0, 1e-9 * t.seconds);
      }
      std::vector<double> ends(static_cast<size_t>(stream_count(cluster)), 0);
      for (const TimelineEvent& e : stage.events) {
        ASSERT_GE(e.start, ends[static_cast<size_t>(e.stream)]) << "two at once on a stream";
        ends[static_cast<size_t>(e.stream)] = e.start + e.seconds;
        all_work += e.seconds;
        buckets += e.bucket > 0;
      }
      hidden += stage.seconds.communication < 0.9 * stage.seconds.communicating;
      bubbles += stage.seconds.bubble > 0.01 * t.seconds;
      for (const MemoryPoint& p : stage.memory) {
        ASSERT_LE(p.time, t.seconds * (1 + 1e-12));
        ASSERT_GE(p.bytes, 0);
      }
      // A message that is under way keeps what it sends longer than the program's order does.
      if (!options.overlap && !pipeline) {
        ASSERT_LE(stage.peak_bytes, s.program.memory[st].arena_bytes);
      }
      for (const TaskList& list : tasks.stages[st].lists)
        for (const Task& task : list.tasks) previous += task.previous;
    }
    ASSERT_LE(t.seconds, all_work * (1 + 1e-9));
  }
  EXPECT_GT(hidden, drawn(20)) << "nothing overlaps";
  EXPECT_GT(buckets, drawn(100));
  EXPECT_GT(bubbles, drawn(20));
  fmt::print(
      "{} stages hide a tenth of their communication, {} idle; {} buckets after the first, {} "
      "tasks put off to the next micro-batch\n",
      hidden, bubbles, buckets, previous);
}

// gpt3:175b in 8 stages of tp 8, 64 micro-batches: the least of five.
TEST(Timeline, PredictingCostsAFewRuns) {
  ModelConfig config = model_named("gpt3:175b");
  config.batch = 64;
  const Graph graph = step_graph(config, 64, DType::kBF16);
  const RewrittenGraph r = rewritten(graph, {{}, even_cuts(graph, 8)});
  Pipeline pipeline;
  pipeline.stages = 8;
  pipeline.chunk_of = r.chunk_of;
  const Program program = lower_unplaced(r.graph, pipeline_plan(r.graph, "tp=8", pipeline));
  const Cluster cluster = parse_cluster("8x8xh100");
  const auto least = [](const auto& f) {
    double seconds = 1e9;
    for (int i = 0; i < 5; ++i) {
      const std::clock_t begin = std::clock();  // of the processor: others may have it too
      f();
      seconds = std::min(seconds, static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC);
    }
    return seconds;
  };
  double predicted = 0;
  const double lists = least([&] { step_tasks(program, cluster, {}); });
  const double all = least([&] { predicted = predicted_step_seconds(program, cluster, {}); });
  const StepTasks tasks = step_tasks(program, cluster, {});
  StepRun run;
  const double every = least([&] { run = run_tasks(tasks); });
  fmt::print(
      "{} instructions, {} runs: {:.1f} ms, of which {:.1f} for the lists; all runs one by one "
      "{:.1f} ms\n",
      program.instrs.size(), run.runs.size(), 1e3 * all, 1e3 * lists, 1e3 * every);
  EXPECT_NEAR(run.seconds, predicted, 1e-9 * predicted);
  // Of this machine, with or without sanitizers: the lists cost most, 4 to 8 times the runs.
  EXPECT_LT(all, 15 * every);
}

}  // namespace
}  // namespace cleave
