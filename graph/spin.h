// Waiting for another thread without the system, for a moment.
#pragma once

#include <atomic>
#include <thread>

namespace cleave {

// Looks that take about 20 microseconds: as long as it takes to wake a thread up.
inline constexpr int kSpinLooks = 1000;

// Looks at most so often whether `value` is still `old`; true when it is not any more.
template <class T>
bool changes_soon(const std::atomic<T>& value, T old, int looks = kSpinLooks) {
  for (int i = 0; i < looks; ++i) {
    if (value.load(std::memory_order_acquire) != old) return true;
#if defined(__x86_64__)
    __builtin_ia32_pause();
#else
    std::this_thread::yield();
#endif
  }
  return false;
}

// Returns when `value` is not `old` any more; sleeps after the looks.
template <class T>
void wait_while(const std::atomic<T>& value, T old, int looks = kSpinLooks) {
  if (!changes_soon(value, old, looks)) value.wait(old, std::memory_order_acquire);
}

}  // namespace cleave
