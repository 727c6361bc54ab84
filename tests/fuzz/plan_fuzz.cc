// Plan files: read, the model traced again, the plan made again. A damaged file whose graph's hash
// is wrong is also tried with the right one, so that what lies behind that check is reached. What
// is accepted writes a file that gives the same file again.
#include <nlohmann/json.hpp>

#include "cli/plan_file.h"
#include "executor/lower.h"
#include "graph/json.h"
#include "planner/plan_json.h"
#include "tests/fuzz/fuzz.h"

using namespace cleave;  // NOLINT(build/namespaces)

namespace {

// Whether to trace it takes milliseconds.
bool small(const ModelSpec& spec) {
  ModelConfig c = model_named(spec.name);
  for (const std::string& assignment : spec.set) set_value(c, assignment);
  return c.layers <= 2 && c.hidden <= 4096 && c.vocab <= 1 << 20 && c.sequence <= 1 << 20;
}

// Without what two searches may differ in: how long they took and what else they tried.
std::string stable(const std::string& text) {
  nlohmann::ordered_json json = parse_json(text);
  json.erase("search");
  return json.dump(1);
}

void check(const LoadedPlan& loaded) {
  const std::string text = plan_file_text(loaded.model, loaded.plan);
  const LoadedPlan again = load_plan("again", text, spec_in_plan_file("again", text), nullptr);
  fuzz::expect_same(stable(plan_file_text(again.model, again.plan)), stable(text));
  if (loaded.plan.mesh.size() <= 64) lower(loaded.model.graph, loaded.plan);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  is_plan_file(text);
  std::optional<ModelSpec> spec;
  const auto load = [&](const std::string& file) {
    const LoadedPlan loaded = load_plan("file", file, *spec, nullptr);
    check(loaded);
  };
  fuzz::accepted([&] {
    const ModelSpec read = spec_in_plan_file("file", text);
    if (small(read)) spec = read;
  });
  if (!spec || fuzz::accepted([&] { load(text); })) return 0;
  fuzz::accepted([&] {
    nlohmann::ordered_json json = parse_json(text);
    if (!json.contains("graph") || !json["graph"].is_object()) return;
    const uint64_t hash = graph_hash(trace_model(*spec, nullptr).graph);
    json["graph"]["hash"] = fmt::format("{:016x}", hash);
    load(json.dump());
  });
  return 0;
}
