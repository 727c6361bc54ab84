// What the executor's ranks really allocate: their arenas are the only memory of this program that
// is aligned like huge pages, so the operators that allocate it are replaced by ones that keep
// count. For one source file of a program.
#pragma once

#include <algorithm>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <new>
#include <vector>

namespace cleave::testing {

inline constexpr size_t kArenaAlign = 2 << 20;

struct ArenaBook {
  std::mutex mutex;
  std::map<void*, size_t> live;  // bytes, by address
};
inline ArenaBook& arena_book() {
  static ArenaBook* book = new ArenaBook;  // outlives every arena
  return *book;
}

struct ArenaUse {
  int64_t bytes = 0;    // allocated
  int64_t written = 0;  // up to where something was written: arenas begin as bytes of 0xff
  auto operator<=>(const ArenaUse&) const = default;
};

// Of every arena that is allocated now, ascending. While nobody runs.
inline std::vector<ArenaUse> arenas_in_use() {
  ArenaBook& book = arena_book();
  const std::lock_guard lock(book.mutex);
  std::vector<ArenaUse> uses;
  for (const auto& [at, size] : book.live) {
    const auto* data = static_cast<const unsigned char*>(at);
    size_t end = size;
    while (end > 0 && data[end - 1] == 0xff) --end;
    uses.push_back({static_cast<int64_t>(size), static_cast<int64_t>(end)});
  }
  std::sort(uses.begin(), uses.end());
  return uses;
}

inline void* allocate_aligned(size_t bytes, size_t align) {
  void* at = std::aligned_alloc(align, (std::max<size_t>(bytes, 1) + align - 1) / align * align);
  if (at == nullptr) throw std::bad_alloc();
  if (align == kArenaAlign) {
    ArenaBook& book = arena_book();
    const std::lock_guard lock(book.mutex);
    book.live[at] = bytes;
  }
  return at;
}

inline void free_aligned(void* at, size_t align) {
  if (align == kArenaAlign) {
    ArenaBook& book = arena_book();
    const std::lock_guard lock(book.mutex);
    book.live.erase(at);
  }
  std::free(at);
}

}  // namespace cleave::testing

void* operator new(std::size_t bytes, std::align_val_t align) {
  return cleave::testing::allocate_aligned(bytes, static_cast<size_t>(align));
}
void operator delete(void* at, std::align_val_t align) noexcept {
  cleave::testing::free_aligned(at, static_cast<size_t>(align));
}
void operator delete(void* at, std::size_t, std::align_val_t align) noexcept {
  cleave::testing::free_aligned(at, static_cast<size_t>(align));
}
