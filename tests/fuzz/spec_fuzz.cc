// The small languages of the command line, one a line of the input: model, settings, batch,
// precision, optimizer, mesh, cluster, memory. What is accepted reads back the same, and a model
// that is small enough is traced.
#include <array>
#include <sstream>

#include "cli/format.h"
#include "cli/model_spec.h"
#include "graph/text.h"
#include "graph/verify.h"
#include "planner/cluster.h"
#include "planner/planner.h"
#include "tests/fuzz/fuzz.h"

using namespace cleave;  // NOLINT(build/namespaces)

namespace {

enum Line { kModel, kSet, kBatch, kPrecision, kOptimizer, kMesh, kCluster, kMemory, kLines };

bool small(const ModelConfig& c) { return c.layers <= 3 && c.hidden <= 1 << 20 && c.heads <= 64; }

void model(const std::array<std::string, kLines>& lines) {
  ModelArguments arguments;
  arguments.model = lines[kModel];
  std::istringstream words(lines[kSet]);
  for (std::string word; words >> word;) arguments.set.push_back(word);
  arguments.precision = lines[kPrecision];
  arguments.optimizer = lines[kOptimizer];
  arguments.batch = std::atoll(lines[kBatch].c_str());

  ModelConfig config = model_named(arguments.model);
  for (const std::string& word : arguments.set) set_value(config, word);
  check(config);
  ModelConfig again = model_named(arguments.model);
  for (const std::string& value : values_of(config)) set_value(again, value);
  if (values_of(again) != values_of(config)) std::abort();

  const ModelSpec spec = spec_of(arguments);
  if (!small(config)) return;
  const TracedModel traced = trace_model(spec, nullptr);
  verify(traced.graph);
  if (describe(traced).empty() || to_text(traced.graph).empty()) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::istringstream input(std::string(reinterpret_cast<const char*>(data), size));
  std::array<std::string, kLines> lines;
  for (std::string& line : lines) std::getline(input, line);
  fuzz::accepted([&] { model(lines); });
  fuzz::accepted([&] {
    const MeshRequest mesh = parse_mesh(lines[kMesh]);
    const MeshRequest again = parse_mesh(mesh.to_string());
    if (again.sizes != mesh.sizes || again.roles != mesh.roles) std::abort();
  });
  fuzz::accepted([&] {
    const Cluster cluster = parse_cluster(lines[kCluster]);
    if (cluster.size() < 1 || parse_cluster(cluster.spec).size() != cluster.size()) std::abort();
  });
  fuzz::accepted([&] {
    const double bytes = parse_bytes(lines[kMemory], "--memory");
    if (!(bytes > 0) || parse_bytes(fmt::format("{}", bytes), "") != bytes) std::abort();
    if (bytes_text(bytes).empty()) std::abort();
  });
  return 0;
}
