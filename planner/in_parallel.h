// Work shared out to threads.
#pragma once

#include <atomic>
#include <exception>
#include <thread>
#include <vector>

namespace cleave {

// work(i) for each i of [0, count), by `threads` threads, this one among them. The first exception
// is thrown again; what no thread had begun by then is not done.
template <class Work>
void in_parallel(size_t count, int threads, const Work& work) {
  std::atomic<size_t> next = 0;
  std::exception_ptr failure;
  std::atomic_flag failed = ATOMIC_FLAG_INIT;
  const auto loop = [&] {
    for (size_t i; !failed.test() && (i = next++) < count;) {
      try {
        work(i);
      } catch (...) {
        if (!failed.test_and_set()) failure = std::current_exception();
      }
    }
  };
  std::vector<std::jthread> team;
  for (int t = 1; t < threads; ++t) team.emplace_back(loop);
  loop();
  team.clear();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace cleave
