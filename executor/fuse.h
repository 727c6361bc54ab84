// Fusions: instructions of a program that are joined into one kernel, as a table of rewrites.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "executor/buffers.h"
#include "executor/program.h"

namespace cleave {

// One rewrite: whether the instruction at this place, with those before it, could be joined. The
// program's tensors have no buffers yet.
struct Fusion {
  std::string_view name;  // "bias": what --dump and options call it
  std::string_view what;  // in words
};
std::span<const Fusion> fusions();

// Whether the products of linear layers are of floats of 8 bits (f8_products.h), and what these are
// scaled by.
enum class F8Scaling : uint8_t {
  kNone,     // such products are not made
  kCurrent,  // the largest size of the tensor itself, for which it is read once more
  kDelayed,  // that of the last steps
};
struct F8Options {
  F8Scaling scaling = F8Scaling::kNone;
  bool last = false;          // also the last layer, which makes the scores
  bool quick_forward = true;  // sums in the tensor cores' shorter accumulator: faster, and rounded
  bool quick_backward = false;  // more; where gradients are small, that shows
};

// The fusion `chunks` leaves a head whole whose scores take no more, and makes no chunk whose
// scores take more, in bytes. Smaller chunks would read the weights, and write their gradient, more
// often for little memory.
inline constexpr int64_t kLogitsBytes = int64_t{2} << 30;

// Whether a program is fused when it is lowered, and which fusions are left out.
struct FuseOptions {
  FuseOptions(bool fused = false, std::vector<std::string> without = {},  // NOLINT: a yes or no
              F8Options floats8 = {})
      : on(fused), off(std::move(without)), f8(floats8) {}

  bool on;
  std::vector<std::string> off;
  F8Options f8;
  int64_t logits_bytes = kLogitsBytes;
  // The training program in whose memory this one would work: it reads parameters as that keeps
  // them. Must outlive the lowering.
  const Program* trained = nullptr;
};

// The fusions of a list: "bias,wide", or "all". Throws Error, with all their names, when there is
// no such one.
std::vector<std::string> fusions_in(std::string_view list);

// Rewrites the program of one rank until nothing more can be joined, but for the fusions that are
// off. Only results that nobody else reads are joined away. Returns how often each was made, in the
// order of fusions(), which the program keeps. What the new instructions make in the memory of
// their operands is added to the wishes. A program of several ranks is left as it is. Throws Error
// when there is no fusion of a name that is off.
std::vector<int> fuse(Program& program, const FuseOptions& options,
                      std::vector<SharingWish>& wishes);

// "bias 24, residual 12": what was made; "nothing" when that is so; empty when nothing was tried.
std::string fusions_text(const Program& program);
// "bias residual": what has made the instruction; empty: none of them.
std::string fusions_text(const Instr& instr);

}  // namespace cleave
