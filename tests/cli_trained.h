// A model trained for a few steps on a text's bytes, and its checkpoint, without cleave train.
#pragma once

#include <limits>
#include <string>
#include <vector>

#include "checkpoint/store.h"
#include "cli/model_spec.h"
#include "data/token_data.h"
#include "executor/cpu_runtime.h"
#include "executor/lower.h"
#include "graph/error.h"
#include "planner/planner.h"

namespace cleave::testing {

struct TrainedModel {
  TracedModel model;
  std::vector<SavedTensor> tensors;
};

// Whole tensors after `steps` steps of training on one device.
inline TrainedModel trained(const std::string& name, const std::vector<std::string>& settings,
                            int64_t batch, const std::string& text_file, int64_t steps,
                            const UserModel* user = nullptr,
                            const std::string& tokenizer = "bytes") {
  ModelSpec spec;
  spec.name = name, spec.set = settings, spec.batch = batch;
  spec.optimizer.lr = 3e-3;
  spec.optimizer.min_lr = 3e-4;
  spec.optimizer.warmup = steps / 10;
  spec.optimizer.total_steps = steps;
  TrainedModel t{trace_model(std::move(spec), user), {}};
  const Graph& graph = t.model.graph;
  const auto found = find_plan(graph, parse_cluster("cpu:1"), {});
  CpuRuntime runtime(lower(graph, found.plan.value()), {.seed = 1});
  runtime.initialize();
  const TokenData data(DataSpec{.path = text_file, .tokenizer = tokenizer},
                       t.model.config.sequence);
  for (int64_t step = 0; step < steps; ++step) {
    const Batch b =
        data.training_batch(step * batch, {.batch = batch, .vocab = t.model.config.vocab});
    runtime.set_data("tokens", std::as_bytes(std::span<const int32_t>(b.tokens)));
    runtime.set_data("targets", std::as_bytes(std::span<const int32_t>(b.targets)));
    for (const char* limit : {"loss_limit", "norm_limit"}) {  // nothing is skipped
      const float none = std::numeric_limits<float>::infinity();
      runtime.set_data(limit, std::as_bytes(std::span(&none, 1)));
    }
    runtime.step();
  }
  for (const Source& s : graph.sources()) {
    if (s.kind == SourceKind::kData) continue;
    t.tensors.push_back({s.name, graph.type(s.value), runtime.read_source(s.name),
                         s.kind == SourceKind::kParameter});
  }
  return t;
}

// Returns the checkpoint's folder.
inline std::string save(const std::string& store, int64_t step, std::vector<SavedTensor> tensors,
                        const std::string& json) {
  Snapshot snapshot;
  snapshot.step = step;
  snapshot.tensors = std::move(tensors);
  snapshot.run_json = json;
  return CheckpointStore(store).write(snapshot);
}

}  // namespace cleave::testing
