#include "executor/narrow_source.h"

#include <algorithm>
#include <cstring>
#include <thread>

#include "graph/bf16_rest.h"

namespace cleave {
namespace {

// Calls work(begin, end) for all n numbers, those of each thread one behind the other.
template <class Work>
void on_all_cores(size_t n, const Work& work) {
  constexpr size_t kLeast = 1 << 18;  // of a thread
  const size_t threads =
      std::clamp<size_t>(n / kLeast, 1, std::max(1U, std::thread::hardware_concurrency()));
  std::vector<std::jthread> team;
  for (size_t t = 1; t < threads; ++t) {
    team.emplace_back(work, n * t / threads, n * (t + 1) / threads);
  }
  work(0, n / threads);
}

}  // namespace

NarrowBytes split_f32s(std::span<const std::byte> whole) {
  NarrowBytes parts{std::vector<std::byte>(whole.size() / 2),
                    std::vector<std::byte>(whole.size() / 2)};
  on_all_cores(whole.size() / 4, [&](size_t begin, size_t end) {
    for (size_t i = begin; i < end; ++i) {
      uint32_t bits;
      std::memcpy(&bits, &whole[i * 4], sizeof bits);
      const Bf16AndRest both = bf16_and_rest(bits);
      std::memcpy(&parts.narrow[i * 2], &both.bf16, sizeof both.bf16);
      std::memcpy(&parts.rest[i * 2], &both.rest, sizeof both.rest);
    }
  });
  return parts;
}

void join_f32s(const NarrowBytes& parts, std::vector<std::byte>& whole) {
  whole.resize(parts.narrow.size() * 2);
  on_all_cores(whole.size() / 4, [&](size_t begin, size_t end) {
    for (size_t i = begin; i < end; ++i) {
      Bf16AndRest both;
      std::memcpy(&both.bf16, &parts.narrow[i * 2], sizeof both.bf16);
      std::memcpy(&both.rest, &parts.rest[i * 2], sizeof both.rest);
      const uint32_t bits = f32_bits(both);
      std::memcpy(&whole[i * 4], &bits, sizeof bits);
    }
  });
}

}  // namespace cleave
