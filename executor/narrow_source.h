// Parameters that a program keeps in bf16 (ProgramSource::narrow), as the f32 that they are from
// outside: on the host.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

namespace cleave {

// A bf16 of each number, and the rest of its bits (graph/bf16_rest.h).
struct NarrowBytes {
  std::vector<std::byte> narrow, rest;
};
NarrowBytes parted(std::span<const std::byte> whole);
void join(const NarrowBytes& parts, std::vector<std::byte>& whole);

}  // namespace cleave
