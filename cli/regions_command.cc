// cleave regions
#include <cstdio>

#include "cli/commands.h"
#include "cli/format.h"
#include "cli/model_spec.h"
#include "cli/plan_file.h"
#include "cli/regions_report.h"
#include "graph/error.h"

namespace cleave {

void regions_command(const RegionsArguments& a) {
  const TracedModel model = trace_model(spec_of(a.model), a.model.user);
  fmt::print(
      "{}", a.json ? regions_text(model)
                   : describe(model) + "\n" + "\n" + regions_report(model.graph, colours_wanted()));
}

}  // namespace cleave
