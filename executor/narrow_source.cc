#include "executor/narrow_source.h"

#include <cstring>

#include "graph/bf16_rest.h"

namespace cleave {

NarrowBytes parted(std::span<const std::byte> whole) {
  NarrowBytes parts{std::vector<std::byte>(whole.size() / 2),
                    std::vector<std::byte>(whole.size() / 2)};
  for (size_t i = 0; i < whole.size() / 4; ++i) {
    uint32_t bits;
    std::memcpy(&bits, &whole[i * 4], sizeof bits);
    const Bf16AndRest both = bf16_and_rest(bits);
    std::memcpy(&parts.narrow[i * 2], &both.bf16, sizeof both.bf16);
    std::memcpy(&parts.rest[i * 2], &both.rest, sizeof both.rest);
  }
  return parts;
}

void join(const NarrowBytes& parts, std::vector<std::byte>& whole) {
  whole.resize(parts.narrow.size() * 2);
  for (size_t i = 0; i < whole.size() / 4; ++i) {
    Bf16AndRest both;
    std::memcpy(&both.bf16, &parts.narrow[i * 2], sizeof both.bf16);
    std::memcpy(&both.rest, &parts.rest[i * 2], sizeof both.rest);
    const uint32_t bits = f32_bits(both);
    std::memcpy(&whole[i * 4], &bits, sizeof bits);
  }
}

}  // namespace cleave
