#include "executor/fuse.h"

#include <algorithm>
#include <array>

#include "executor/fuser.h"
#include "graph/error.h"

namespace cleave {
namespace {

struct Entry : Fusion {
  Fuser::Rewrite rewrite = nullptr;
  Fuser::Pass pass = nullptr;  // instead
};

// In the order in which they are tried.
constexpr std::array kFusions = {
    Entry{{"copies", "an update also writes the copy in which the next step reads the parameter"},
          fuse_kept_copy},
    Entry{{"gradients", "an update and the norm read a gradient as bf16, as it was made"},
          fuse_narrow_gradient},
    Entry{{"rest", "a parameter that is read as bf16 is kept so, beside the rest of its bits"},
          fuse_rest},
    Entry{{"wide", "a product or sum of halves that is only cast to f32 is stored in f32"},
          fuse_wide},
    Entry{
        {"chunks", "the head goes through its rows in chunks: its scores are never all in memory"},
        nullptr,
        fuse_chunks},
    Entry{
        {"siblings", "products of the same, or their backward, are one, with weights side by side"},
        nullptr,
        fuse_siblings},
    Entry{{"bias", "a product adds its bias"}, fuse_bias},
    Entry{{"residual", "a product adds what stands beside it"}, fuse_residual},
    Entry{{"loss", "a loss also makes the gradient of its scores"}, nullptr, fuse_loss},
    Entry{{"gelu", "a product also makes GELU of itself, or the gradient of what GELU was made of"},
          fuse_gelu},
    Entry{{"swiglu",
           "a product also makes SwiGLU of itself, or the gradients of what SwiGLU was made of"},
          fuse_swiglu},
    Entry{{"norm_residual", "the backward of a norm adds the gradient that goes around it"},
          fuse_norm_residual},
    Entry{{"column_sum",
           "the backward of a norm, GELU or attention sums its results for a bias before it"},
          fuse_column_sum},
    Entry{{"parts", "what is only put together is made where it belongs"}, fuse_parts},
    Entry{{"chain", "pointwise ops and reductions that read each other are one generated kernel"},
          nullptr,
          fuse_chains},
};
static_assert(kFusions.size() <= 32, "bits of Instr::fused");

void expect_known(const std::string& name) {
  std::vector<std::string_view> names;
  for (const Entry& e : kFusions) names.push_back(e.name);
  if (std::find(names.begin(), names.end(), name) != names.end()) return;
  fail("there is no fusion '{}'; there are {}, and all", name, fmt::join(names, ", "));
}

// Whether products of 8 bits are made of what this fusion would take away: codes are of one weight
// each, in f32, scaled by whole tensors, and of plain products; and gradients are known by the part
// of the step that makes them.
bool excludes(const F8Options& f8, const Entry& e) {
  if (f8.scaling == F8Scaling::kNone) return false;
  return e.rewrite == fuse_rest || e.rewrite == fuse_gelu || e.rewrite == fuse_swiglu ||
         e.pass == fuse_siblings || e.pass == fuse_chunks || e.pass == fuse_loss;
}

}  // namespace

std::span<const Fusion> fusions() {
  static const std::vector<Fusion> all(kFusions.begin(), kFusions.end());
  return all;
}

std::vector<std::string> fusions_in(std::string_view list) {
  std::vector<std::string> names;
  for (size_t at = 0; at <= list.size();) {
    const size_t end = std::min(list.find(',', at), list.size());
    const std::string name(list.substr(at, end - at));
    at = end + 1;
    if (name == "all") {
      for (const Entry& e : kFusions) names.emplace_back(e.name);
      continue;
    }
    expect_known(name);
    names.push_back(name);
  }
  return names;
}

std::string fusions_text(const Program& program) {
  if (program.fusions.empty()) return "";
  std::string text;
  for (size_t f = 0; f < program.fusions.size(); ++f) {
    if (program.fusions[f] == 0) continue;
    text += fmt::format("{}{} {}", text.empty() ? "" : ", ", kFusions[f].name, program.fusions[f]);
  }
  return text.empty() ? "nothing" : text;
}

std::string fusions_text(const Instr& instr) {
  std::string text;
  for (size_t f = 0; f < kFusions.size(); ++f) {
    if ((instr.fused >> f & 1) == 0) continue;
    text += fmt::format("{}{}", text.empty() ? "" : " ", kFusions[f].name);
  }
  return text;
}

std::vector<int> fuse(Program& program, const FuseOptions& options,
                      std::vector<SharingWish>& wishes) {
  const std::vector<std::string>& off = options.off;
  for (const std::string& name : off) expect_known(name);
  std::vector<int> made(kFusions.size(), 0);
  if (program.ranks() != 1) return made;
  Fuser fuser(program, options, wishes);
  for (size_t f = 0; f < kFusions.size(); ++f) {
    if (std::find(off.begin(), off.end(), kFusions[f].name) != off.end()) continue;
    const Entry& e = kFusions[f];
    if (excludes(options.f8, e)) continue;
    const uint32_t bit = uint32_t{1} << f;
    made[f] = e.pass != nullptr ? fuser.apply_to_all(e.pass, bit) : fuser.apply(e.rewrite, bit);
  }
  program.fusions = made;
  return made;
}

}  // namespace cleave
