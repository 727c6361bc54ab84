#include "executor/run_state.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "graph/error.h"

namespace cleave {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kVersion = 1;

// A checkpoint holds what is kept from step to step.
bool is_kept(const ProgramSource& s) {
  return !s.is_rest && (s.kind == SourceKind::kParameter || s.kind == SourceKind::kState);
}

}  // namespace

std::string to_json_text(const RunState& s) {
  Json json = {{"cleave_run", kVersion}, {"step", s.step},
               {"samples", s.samples},   {"seed", s.seed},
               {"data", s.data},         {"skipped_in_a_row", s.skipped_in_a_row}};
  const Json job = Json::parse(s.job);
  for (const auto& [key, value] : job.items()) json[key] = value;
  json["recent"] = {{"loss", s.losses}, {"grad_norm", s.norms}};
  return json.dump(1) + "\n";
}

RunState run_state_from(std::string_view run_json) {
  RunState s;
  try {
    const Json json = Json::parse(run_json);
    const int version = json.at("cleave_run").get<int>();
    if (version != kVersion) {
      fail("run.json is of version {}, and this program reads {}", version, kVersion);
    }
    s.step = json.at("step").get<int64_t>();
    s.samples = json.at("samples").get<int64_t>();
    s.seed = json.at("seed").get<uint64_t>();
    s.data = json.at("data").get<std::string>();
    s.skipped_in_a_row = json.value("skipped_in_a_row", 0);
    s.losses = json.at("recent").at("loss").get<std::vector<double>>();
    s.norms = json.at("recent").at("grad_norm").get<std::vector<double>>();
  } catch (const Json::exception& e) {
    fail("run.json does not say where the run stands: {}", e.what());
  }
  if (s.step < 0 || s.samples < 0) fail("run.json stands at step {}, sample {}", s.step, s.samples);
  return s;
}

Snapshot snapshot_of(const Runtime& runtime, const RunState& state, Snapshot reuse) {
  Snapshot snapshot;
  snapshot.step = state.step;
  snapshot.run_json = to_json_text(state);
  for (const ProgramSource& s : runtime.program().sources) {
    if (!is_kept(s)) continue;
    const size_t i = snapshot.tensors.size();
    SavedTensor tensor;
    if (i < reuse.tensors.size()) tensor.bytes = std::move(reuse.tensors[i].bytes);
    tensor.name = s.name;
    tensor.type = runtime.source_type(s.name);
    tensor.parameter = s.kind == SourceKind::kParameter;
    runtime.read_source(s.name, tensor.bytes);
    snapshot.tensors.push_back(std::move(tensor));
  }
  return snapshot;
}

void restore(Runtime& runtime, const Checkpoint& checkpoint) {
  std::vector<std::pair<std::string_view, std::span<const std::byte>>> found;
  for (const ProgramSource& s : runtime.program().sources) {
    if (is_kept(s) && !(s.optional && checkpoint.find(s.name) == nullptr)) {
      found.emplace_back(s.name, checkpoint.bytes(s.name, runtime.source_type(s.name)));
    }
  }
  for (const auto& [name, bytes] : found) runtime.write_source(name, bytes);
}

}  // namespace cleave
