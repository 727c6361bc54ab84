// cleave trace
#include <cstdio>

#include "cli/commands.h"
#include "cli/format.h"
#include "cli/model_spec.h"
#include "graph/error.h"
#include "graph/json.h"
#include "graph/text.h"

namespace cleave {

void trace_command(const TraceArguments& a) {
  const TracedModel model = trace_model(spec_of(a.model), a.model.user);
  const std::string text =
      a.out.ends_with(".json") ? to_json_text(model.graph) : to_text(model.graph);
  if (a.out.empty()) {
    std::fwrite(text.data(), 1, text.size(), stdout);
    return;
  }
  write_file(a.out, text);
  fmt::print("{}: {} sources, {} ops, {}\n", describe(model), model.graph.sources().size(),
             model.graph.nodes().size(), a.out);
}

}  // namespace cleave
