#include <gtest/gtest.h>
#include <cstdio>
#include "executor/fuse.h"
#include "kernels/ops.h"
#include "tests/training_plans.h"
namespace cleave {
using testing::plan_for;
TEST(Siblings, Dump) {
  ModelConfig config = model_named("llama:tiny");
  for (const char* s : {"layers=1", "hidden=32", "ffn=64", "sequence=16", "batch=2"}) set_value(config, s);
  int n = 0;
  for (DType d : {DType::kF64, DType::kBF16}) for (int mb : {1, 2}) {
    TraceOptions options;
    options.dtype = d;
    options.optimizer.micro_batches = mb;
    const Graph graph = trace(config, options);
    const Plan plan = plan_for(graph, "1", {});
    for (const char* w : {"", "all"}) {
    FILE* f = fopen(("/tmp/sib/dump" + std::to_string(n++)).c_str(), "w");
    const std::string t = to_text(lower(graph, plan, {true, *w ? std::vector<std::string>{"bias","residual","norm_residual","column_sum","parts","chain"} : std::vector<std::string>{"chain"}}));
    fputs(t.c_str(), f); fclose(f);
    }
  }
}
}
