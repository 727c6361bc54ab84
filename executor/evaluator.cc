#include "executor/evaluator.h"

#include <algorithm>
#include <span>

#include "executor/lower.h"
#include "graph/error.h"

namespace cleave {

void feed(Runtime& runtime, const Batch& batch) {
  runtime.set_data("tokens", std::as_bytes(std::span<const int32_t>(batch.tokens)));
  runtime.set_data("targets", std::as_bytes(std::span<const int32_t>(batch.targets)));
}

namespace {

// With parameters as the runtime beside keeps them.
FuseOptions beside(FuseOptions fusing, const RunOptions& options) {
  if (options.beside != nullptr) fusing.trained = &options.beside->program();
  return fusing;
}

}  // namespace

Evaluator::Evaluator(const Graph& graph, const Plan& plan, const TokenData& data,
                     BatchOptions batch, int64_t most_batches, Processor processor,
                     const FuseOptions& fusing, const RunOptions& options)
    : data_(data),
      batch_(batch),
      runtime_(make_runtime(lower(graph, plan, beside(fusing, options)), processor, options)) {
  const Source* tokens = graph.source_named("tokens");
  CLEAVE_ASSERT(tokens != nullptr, "graph '{}' has no data 'tokens'", graph.name);
  batch_.batch = graph.type(tokens->value).shape[0];
  batches_ = std::min(data.validation_batches(batch_.batch), most_batches);
}

// A mean over targets: batches may have different numbers of them.
double Evaluator::loss(const Runtime& trained) {
  for (const ProgramSource& s : runtime_->program().sources) {
    if (s.kind == SourceKind::kData || runtime_->shares(s.name)) continue;
    runtime_->write_source(s.name, trained.read_source(s.name));
  }
  double sum = 0, count = 0;
  for (int64_t b = 0; b < batches_; ++b) {
    const Batch batch = data_.validation_batch(b, batch_);
    feed(*runtime_, batch);
    const auto left_out = std::count(batch.targets.begin(), batch.targets.end(), kNoTarget);
    const auto targets = static_cast<double>(std::ssize(batch.targets) - left_out);
    sum += runtime_->step().value("loss") * targets;
    count += targets;
  }
  return sum / count;
}

}  // namespace cleave
