// Parameters that a program keeps in bf16 (ProgramSource::narrow), as the f32s that they are from
// outside: on the host, on all of its cores.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

namespace cleave {

// A bf16 of each number, and the rest of its bits (graph/bf16_rest.h).
struct NarrowBytes {
  std::vector<std::byte> narrow, rest;
};
NarrowBytes split_f32s(std::span<const std::byte> whole);
void join_f32s(const NarrowBytes& parts, std::vector<std::byte>& whole);

}  // namespace cleave
