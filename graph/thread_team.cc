#include "graph/thread_team.h"

#include <memory>
#include <system_error>
#include <utility>

#include "graph/error.h"
#include "graph/spin.h"

namespace cleave {

ThreadTeam::ThreadTeam(int size) : scratch_(static_cast<size_t>(size)) {
  try {
    for (int member = 1; member < size; ++member) {
      threads_.emplace_back([this, member] { loop(member); });
    }
  } catch (const std::system_error& e) {
    stop();
    fail("cannot start {} threads: {}; use fewer devices, or raise the limit of threads", size,
         e.what());
  }
}

ThreadTeam::~ThreadTeam() { stop(); }

void ThreadTeam::stop() {
  stop_.store(true, std::memory_order_relaxed);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  for (std::thread& t : threads_) t.join();
}

void ThreadTeam::run(int64_t tasks, const Task& task) {
  if (threads_.empty() || tasks <= 1) {
    for (int64_t i = 0; i < tasks; ++i) task(i, 0);
    return;
  }
  const uint32_t generation = generation_.load(std::memory_order_relaxed) + 1;
  const auto count = static_cast<uint32_t>(tasks);
  task_.store(&task, std::memory_order_relaxed);
  tasks_.store(count, std::memory_order_relaxed);
  done_.store(0, std::memory_order_relaxed);
  left_.store(uint64_t{generation} << 32 | count, std::memory_order_release);
  generation_.store(generation, std::memory_order_release);
  generation_.notify_all();
  work(generation, 0);
  for (uint32_t done; (done = done_.load(std::memory_order_acquire)) != count;) {
    wait_while(done_, done);
  }
  // Late members find no task left: from here on they touch neither `task` nor error_.
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

void* ThreadTeam::scratch(int member, int64_t bytes) {
  constexpr size_t kAlignment = 64;
  std::vector<std::byte>& memory = scratch_[static_cast<size_t>(member)];
  const size_t size = static_cast<size_t>(bytes) + kAlignment;
  if (memory.size() < size) memory.resize(size);
  void* begin = memory.data();
  size_t space = memory.size();
  return std::align(kAlignment, static_cast<size_t>(bytes), begin, space);
}

// A task is taken by counting down the tasks left, in one word with the generation: that this
// succeeds proves that run has not returned, and that what it published is this generation's.
void ThreadTeam::work(uint32_t generation, int member) {
  uint64_t left = left_.load(std::memory_order_acquire);
  while (left >> 32 == generation && static_cast<uint32_t>(left) > 0) {
    if (!left_.compare_exchange_weak(left, left - 1, std::memory_order_acq_rel,
                                     std::memory_order_acquire)) {
      continue;
    }
    const Task& task = *task_.load(std::memory_order_relaxed);
    const uint32_t tasks = tasks_.load(std::memory_order_relaxed);
    try {
      task(static_cast<uint32_t>(left) - 1, member);
    } catch (...) {
      const std::lock_guard lock(error_mutex_);
      if (!error_) error_ = std::current_exception();
    }
    if (done_.fetch_add(1, std::memory_order_acq_rel) + 1 == tasks) done_.notify_one();
    left = left_.load(std::memory_order_acquire);
  }
}

void ThreadTeam::loop(int member) {
  for (uint32_t seen = 0;;) {
    wait_while(generation_, seen);
    seen = generation_.load(std::memory_order_acquire);
    if (stop_.load(std::memory_order_relaxed)) return;
    work(seen, member);
  }
}

}  // namespace cleave
