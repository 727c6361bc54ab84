// How long tracing and planning take, how much memory, and how far from the optimum the plan may
// be, with all dimensions free, as `cleave plan` searches them. Each measurement is a process of
// its own.
#include <fmt/format.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <string>
#include <vector>

#include "benchmarks/benchmark.h"
#include "cli/comparison.h"
#include "cli/planned.h"
#include "cli/planning.h"
#include "graph/error.h"
#include "models/config.h"
#include "planner/planner.h"

namespace cleave {
namespace {

struct Case {
  std::string model, cluster;
  int64_t batch = 0;  // sequences of a step; 0: one a device, at least the model's own
};

// Published batches: 3.2 M tokens of GPT-3, 16.8 M of Llama 3, 62.9 M of DeepSeek-V3.
std::vector<Case> standard_cases() {
  std::vector<Case> cases;
  for (const std::string cluster :
       {"8x8xh100", "64x8xh100", "128x8xh100", "512x8xh100", "2048x8xh100"}) {
    cases.push_back({"gpt3:175b", cluster, 1536});
    cases.push_back({"llama:405b", cluster, 2048});
  }
  cases.push_back({"llama:8b", "8x8xh100", 512});
  cases.push_back({"deepseek:671b", "128x8xh100", 15360});
  cases.push_back({"deepseek:671b", "256x8xh100", 15360});
  cases.push_back({"megatron:8.3b", "64x8xv100", 512});
  return cases;
}

struct Arguments {
  std::vector<std::string> models, clusters;
  int64_t batch = 0;
  int repeats = 3, limit = 120;
};

// What a child writes to its parent.
struct Measured {
  double trace = 0, plan = 0;  // seconds, wall
  double step = 0, gap = 0;  // seconds, predicted, and how far above the lower bound; 0: none fits
  int64_t smallest_peak = 0;
  char arrangement[64] = {};
  bool done = false;
};

double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

Measured measure(const Case& c) {
  Measured m;
  PlanRequest request;
  request.spec.name = c.model;
  request.spec.batch = c.batch;
  request.cluster = parse_cluster(c.cluster);
  request.spec.dtype = planned_precision(request.cluster);
  const auto tracing = std::chrono::steady_clock::now();
  trace_model(request.spec, nullptr);
  m.trace = seconds_since(tracing);
  const auto planning = std::chrono::steady_clock::now();
  const Planned p = planned(std::move(request));
  m.plan = seconds_since(planning);
  if (const auto& plan = p.result.plan) {
    m.step = plan->predicted.step_seconds;
    m.gap = plan->certificate.gap();
    const std::string text = plan_words(p.model->graph, *plan);
    text.copy(m.arrangement, sizeof m.arrangement - 1);
  }
  m.smallest_peak = p.result.smallest_peak;
  m.done = true;
  return m;
}

struct Child {
  Measured measured;     // not done: it was stopped, or failed
  double peak = 0;       // bytes
  double processor = 0;  // seconds, of all threads
};

Child in_child(const Case& c, int limit) {
  int ends[2];
  CLEAVE_ASSERT(pipe(ends) == 0, "no pipe");
  std::fflush(stdout);
  const pid_t pid = fork();
  CLEAVE_ASSERT(pid >= 0, "no process");
  if (pid == 0) {
    alarm(static_cast<unsigned>(limit));
    try {
      const Measured m = measure(c);
      _exit(write(ends[1], &m, sizeof m) == sizeof m ? 0 : 1);
    } catch (const std::exception& e) {
      fmt::print(stderr, "{} on {}: {}\n", c.model, c.cluster, e.what());
      _exit(1);
    }
  }
  close(ends[1]);
  Child child;
  if (read(ends[0], &child.measured, sizeof child.measured) != sizeof child.measured) {
    child.measured = {};
  }
  close(ends[0]);
  int status = 0;
  rusage usage{};
  wait4(pid, &status, 0, &usage);
  child.peak = static_cast<double>(usage.ru_maxrss) * 1024;
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec);
  };
  child.processor = seconds(usage.ru_utime) + seconds(usage.ru_stime);
  return child;
}

template <class Member>
double median(std::vector<Child> children, Member member) {
  std::vector<double> values;
  for (const Child& c : children) values.push_back(member(c));
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

void print_row(const Case& c, const Arguments& a) {
  std::vector<Child> children;
  for (int i = 0; i < a.repeats; ++i) {
    children.push_back(in_child(c, a.limit));
    if (!children.back().measured.done) break;
  }
  const std::string head = fmt::format("{:<15}{:<13}{:>6}", c.model, c.cluster, c.batch);
  const Measured& m = children.back().measured;
  const double peak = median(children, [](const Child& x) { return x.peak; }) / (1 << 20);
  if (!m.done) {
    fmt::print("{}{:>34.0f}  stopped after {} s, or failed\n", head, peak, a.limit);
    return;
  }
  fmt::print("{}{:>8.2f}{:>8.2f}{:>10.2f}{:>8.0f}  ", head,
             median(children, [](const Child& x) { return x.measured.trace; }),
             median(children, [](const Child& x) { return x.measured.plan; }),
             median(children, [](const Child& x) { return x.processor; }), peak);
  if (m.step > 0) {
    const std::string gap = std::isfinite(m.gap) ? fmt::format("{:.2f}", 100 * m.gap) : "none";
    fmt::print("{:>7}{:>9.3f}  {}\n", gap, m.step, m.arrangement);
  } else {
    fmt::print("does not fit: {:.0f} GB a device at least\n",
               static_cast<double>(m.smallest_peak) / 1e9);
  }
}

int run(int argc, char** argv) {
  Arguments a;
  CLI::App app("Time, memory and certified gap of tracing and planning, with all dimensions free");
  app.add_option("--models", a.models, "With every cluster; left out: the standard list");
  app.add_option("--clusters", a.clusters, "Left out: 8xh100 and 64x8xh100");
  app.add_option("--batch", a.batch, "Sequences; left out: one a device, at least the model's own");
  app.add_option("--repeats", a.repeats, "Of which the medians are printed");
  app.add_option("--limit", a.limit, "Seconds, of one measurement");
  read_arguments(app, argc, argv);
  std::vector<Case> cases;
  if (a.models.empty() && a.clusters.empty()) {
    cases = standard_cases();
  } else {
    if (a.models.empty()) a.models = model_names();
    if (a.clusters.empty()) a.clusters = {"8xh100", "64x8xh100"};
    for (const std::string& cluster : a.clusters) {
      for (const std::string& model : a.models) cases.push_back({model, cluster, a.batch});
    }
  }
  fmt::print("{:<15}{:<13}{:>6}{:>8}{:>8}{:>10}{:>8}  {:>7}{:>9}  {}\n", "model", "cluster",
             "batch", "trace s", "plan s", "cpu s", "MiB", "gap %", "step s", "plan");
  for (Case& c : cases) {
    if (c.batch == 0) {
      c.batch = std::max(parse_cluster(c.cluster).size(), model_named(c.model).batch);
    }
    print_row(c, a);
  }
  return 0;
}

}  // namespace
}  // namespace cleave

int main(int argc, char** argv) { return cleave::benchmark_main(argc, argv, cleave::run); }
