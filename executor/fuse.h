// Fusions: instructions of a program that are joined into one kernel, as a table of rewrites.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "executor/program.h"

namespace cleave {

// One rewrite: whether the instruction at this place, with those before it, could be joined. The
// program's tensors have no buffers yet.
struct Fusion {
  std::string_view name;  // "bias": what --dump and options call it
  std::string_view what;  // in words
};
std::span<const Fusion> fusions();

// Rewrites the program of one rank until nothing more can be joined, but for the fusions named in
// `off`. Only results that nobody else reads are joined away. Returns how often each was made, in
// the order of fusions(). A program of several ranks is left as it is. Throws Error when `off`
// names none.
std::vector<int> fuse(Program& program, std::span<const std::string> off = {});

}  // namespace cleave
