// cleave view
#include "cli/commands.h"
#include "graph/error.h"

namespace cleave {

void view_command(const ViewArguments& a) { fail("view {}", a.out); }

}  // namespace cleave
