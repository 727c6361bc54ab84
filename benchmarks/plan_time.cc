// How long tracing and planning take, and how much memory, for every built-in model. Each
// measurement is a process of its own.
#include <fmt/format.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <string>
#include <vector>

#include "cli/model_spec.h"
#include "cli/planning.h"
#include "graph/error.h"
#include "models/config.h"
#include "planner/planner.h"

namespace cleave {
namespace {

struct Arguments {
  std::vector<std::string> models = model_names();
  std::vector<std::string> clusters = {"8xh100", "64x8xh100"};
  std::string mesh;  // tried when the free search takes longer than the limit
  int64_t batch = 0;
  int repeats = 3, limit = 120;
};

// What a child writes to its parent.
struct Measured {
  double trace = 0, plan = 0;  // seconds
  double step = 0;             // seconds, predicted; 0: no plan fits
  int64_t nodes = 0, smallest_peak = 0;
  bool done = false;
};

double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

Measured measure(const std::string& model, int64_t batch, const std::string& cluster,
                 const std::string& mesh) {
  Measured m;
  ModelSpec spec;
  spec.name = model;
  spec.batch = batch;
  spec.dtype = DType::kBF16;
  const auto begin = std::chrono::steady_clock::now();
  const TracedModel traced = trace_model(spec, nullptr);
  m.trace = seconds_since(begin);
  m.nodes = static_cast<int64_t>(traced.graph.nodes().size());
  const auto planning = std::chrono::steady_clock::now();
  const PlannerOptions options = planner_options(traced.graph, mesh, "");
  const PlanResult result = find_plan(traced.graph, parse_cluster(cluster), options);
  m.plan = seconds_since(planning);
  if (result.plan) m.step = result.plan->predicted.step_seconds;
  m.smallest_peak = result.smallest_peak;
  m.done = true;
  return m;
}

struct Child {
  Measured measured;  // not done: it was stopped, or failed
  double peak = 0;    // bytes
};

Child in_child(const Arguments& a, const std::string& model, int64_t batch,
               const std::string& cluster, const std::string& mesh) {
  int ends[2];
  CLEAVE_ASSERT(pipe(ends) == 0, "no pipe");
  std::fflush(stdout);
  const pid_t pid = fork();
  CLEAVE_ASSERT(pid >= 0, "no process");
  if (pid == 0) {
    alarm(static_cast<unsigned>(a.limit));
    try {
      const Measured m = measure(model, batch, cluster, mesh);
      _exit(write(ends[1], &m, sizeof m) == sizeof m ? 0 : 1);
    } catch (const std::exception& e) {
      fmt::print(stderr, "{} on {}: {}\n", model, cluster, e.what());
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
  return child;
}

template <class Member>
double median(std::vector<Child> children, Member member) {
  std::vector<double> values;
  for (const Child& c : children) values.push_back(member(c));
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// False: it took longer than the limit.
bool print_row(const Arguments& a, const std::string& model, int64_t batch,
               const std::string& cluster, const std::string& mesh) {
  std::vector<Child> children;
  for (int i = 0; i < a.repeats; ++i) {
    children.push_back(in_child(a, model, batch, cluster, mesh));
    if (!children.back().measured.done) break;
  }
  const std::string head = fmt::format("{:<16}{:<11}{:<13}{:>6}", model, cluster,
                                       mesh.empty() ? "searched" : mesh, batch);
  const Measured& m = children.back().measured;
  const double peak = median(children, [](const Child& c) { return c.peak; }) / (1 << 20);
  if (!m.done) {
    fmt::print("{}{:>8}{:>10}{:>10}{:>9.0f}  stopped after {} s, or failed\n", head, "", "", "",
               peak, a.limit);
    return false;
  }
  fmt::print("{}{:>8}{:>10.1f}{:>10.1f}{:>9.0f}  ", head, m.nodes,
             1e3 * median(children, [](const Child& c) { return c.measured.trace; }),
             1e3 * median(children, [](const Child& c) { return c.measured.plan; }), peak);
  if (m.step > 0) {
    fmt::print("a step in {:.1f} ms\n", 1e3 * m.step);
  } else {
    fmt::print("does not fit: {:.0f} GB a device at least\n",
               static_cast<double>(m.smallest_peak) / 1e9);
  }
  return true;
}

int run(int argc, char** argv) {
  Arguments a;
  CLI::App app("Time and memory of tracing and planning every built-in model");
  app.add_option("--models", a.models, "Left out: all");
  app.add_option("--clusters", a.clusters, "Left out: 8xh100 and 64x8xh100");
  app.add_option("--batch", a.batch, "Sequences; left out: one a device, at least the model's own");
  app.add_option("--mesh", a.mesh, "For models whose free search exceeds the limit");
  app.add_option("--repeats", a.repeats, "Of which the medians are printed");
  app.add_option("--limit", a.limit, "Seconds, of one measurement");
  CLI11_PARSE(app, argc, argv);
  fmt::print("{:<16}{:<11}{:<13}{:>6}{:>8}{:>10}{:>10}{:>9}\n", "model", "cluster", "mesh", "batch",
             "nodes", "trace ms", "plan ms", "peak MiB");
  for (const std::string& cluster : a.clusters) {
    const int64_t devices = parse_cluster(cluster).size();
    for (const std::string& model : a.models) {
      const int64_t batch = a.batch > 0 ? a.batch : std::max(devices, model_named(model).batch);
      if (!print_row(a, model, batch, cluster, "") && !a.mesh.empty()) {
        print_row(a, model, batch, cluster, a.mesh);
      }
    }
  }
  return 0;
}

}  // namespace
}  // namespace cleave

int main(int argc, char** argv) {
  try {
    return cleave::run(argc, argv);
  } catch (const std::exception& e) {
    fmt::print(stderr, "plan_time: {}\n", e.what());
    return 1;
  }
}
