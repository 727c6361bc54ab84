#include "executor/cuda/ranges.h"

#include <nvtx3/nvToolsExt.h>

#include <cstdlib>
#include <string>

namespace cleave {

bool ranges_wanted() {
  const char* value = std::getenv("CLEAVE_NVTX");
  return value != nullptr && *value != '\0' && std::string_view(value) != "0";
}

Range::Range(std::string_view name, std::string_view where) {
  std::string text(name);
  if (!where.empty()) text.append(" ").append(where);
  nvtxRangePushA(text.c_str());
}

Range::~Range() { nvtxRangePop(); }

}  // namespace cleave
