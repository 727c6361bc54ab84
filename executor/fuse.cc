#include "executor/fuse.h"

#include <algorithm>
#include <array>

#include "executor/fuser.h"
#include "graph/error.h"

namespace cleave {
namespace {

struct Entry : Fusion {
  Fuser::Rewrite rewrite = nullptr;
};

// In the order in which they are tried.
constexpr std::array kFusions = {
    Entry{{"wide", "a product of halves whose result is cast to f32 is stored in f32"}, fuse_wide},
    Entry{{"bias", "a product adds its bias"}, fuse_bias},
    Entry{{"residual", "a product adds what stands beside it"}, fuse_residual},
};

}  // namespace

std::span<const Fusion> fusions() {
  static const std::vector<Fusion> all(kFusions.begin(), kFusions.end());
  return all;
}

std::vector<int> fuse(Program& program, std::span<const std::string> off) {
  for (const std::string& name : off) {
    const bool known = std::any_of(kFusions.begin(), kFusions.end(),
                                   [&](const Entry& e) { return e.name == name; });
    if (!known) fail("there is no fusion '{}'", name);
  }
  std::vector<int> made(kFusions.size(), 0);
  if (program.ranks() != 1) return made;
  Fuser fuser(program);
  for (size_t f = 0; f < kFusions.size(); ++f) {
    if (std::find(off.begin(), off.end(), kFusions[f].name) != off.end()) continue;
    made[f] = fuser.apply(kFusions[f].rewrite);
  }
  return made;
}

}  // namespace cleave
