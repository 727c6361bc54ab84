// A call of attention of 16 bits as kernels see it that go by batch and head: cuDNN's, and our own
// on tensor cores.
#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kernels/cuda/attention_work.h"

namespace cleave {

// What the positions of a call's queries and keys come to.
enum class AttentionMask {
  kNone,    // every query sees every key
  kCausal,  // query i sees the keys up to i
  kOther,
};

struct AttentionShape {
  // Where an operand's rows lie: elements from one to the next.
  struct Place {
    int64_t batch = 0, head = 0, row = 0;
    auto operator<=>(const Place&) const = default;
  };

  bool backward = false, causal = false, deterministic = true;
  DType dtype = DType::kBF16;
  int64_t b = 1, g = 1, r = 1, s = 1, t = 1, e = 1, v = 1;  // as in AttentionWork; b: the batch
  double scale = 1;
  std::array<Place, AttentionWork::kOperands> places;
  auto operator<=>(const AttentionShape&) const = default;

  static bool by_keys(int which);  // or by queries
  int64_t heads(int which) const { return by_keys(which) ? g : g * r; }
  int64_t rows(int which) const { return by_keys(which) ? t : s; }
  int64_t width(int which) const;     // of a row; 1 of the log-sum-exp
  std::vector<int> operands() const;  // of AttentionWork::Operand
  std::string text() const;           // for messages
};

// Nothing when it is no such call: of other types, with dropout or another mask, or an operand lies
// in another way. Rows are dense, and every step but the log-sum-exp's is a multiple of 16 bytes.
std::optional<AttentionShape> shape_of(const AttentionWork& work, AttentionMask mask,
                                       bool backward);

}  // namespace cleave
