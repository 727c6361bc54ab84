// What the fuzzers share. A fuzzer feeds one reader: Error is an answer, anything else that is
// thrown, a sanitizer's report, a hang or too much memory is a crash. What was read must also come
// back the same when it is written and read again.
#pragma once

#include <fmt/format.h>

#include <cstdlib>
#include <string_view>

#include "graph/error.h"

namespace cleave::fuzz {

// Stops the fuzzer, which keeps the input, when two texts that must be equal are not.
inline void expect_same(std::string_view a, std::string_view b) {
  if (a == b) return;
  fmt::print(stderr, "--- one\n{}\n--- the other\n{}\n", a, b);
  std::abort();
}

// Runs `read`; false when it throws Error, whose message must be one line.
template <class Read>
bool accepted(const Read& read) {
  try {
    read();
    return true;
  } catch (const Error& e) {
    const std::string_view message = e.what();
    if (message.empty()) std::abort();
    return false;
  }
}

}  // namespace cleave::fuzz
