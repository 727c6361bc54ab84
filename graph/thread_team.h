// Threads that share the work of one rank's kernels.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace cleave {

class ThreadTeam {
 public:
  // A task's number, and which member of the team does it: 0 is the thread that called run.
  using Task = std::function<void(int64_t task, int member)>;

  // Starts size - 1 threads; Error when the system gives none. They sleep when there is nothing to
  // do for some microseconds.
  explicit ThreadTeam(int size);
  ~ThreadTeam();
  ThreadTeam(const ThreadTeam&) = delete;
  ThreadTeam& operator=(const ThreadTeam&) = delete;

  int size() const { return 1 + static_cast<int>(threads_.size()); }

  // Does every task in [0, tasks) once, in any order, and returns when all are done; then throws
  // what the first failed task threw. Members take the next task when they have done one, and who
  // comes late finds none left: nobody waits for a thread that the system does not run. One caller
  // at a time. At most 2^31 tasks.
  void run(int64_t tasks, const Task& task);

  // Memory of one member, to be used by its tasks: at least so many bytes, 64-byte aligned, with
  // what the member left there.
  void* scratch(int member, int64_t bytes);

 private:
  void loop(int member);
  // Takes and does tasks of this generation until none is left.
  void work(uint32_t generation, int member);

  void stop();

  // The current generation in the upper half, how many of its tasks nobody has taken in the lower.
  alignas(64) std::atomic<uint64_t> left_{0};
  alignas(64) std::atomic<uint32_t> generation_{0};
  // Of the current generation; read by who has taken one of its tasks.
  std::atomic<const Task*> task_{nullptr};
  std::atomic<uint32_t> tasks_{0};
  std::atomic<bool> stop_{false};
  alignas(64) std::atomic<uint32_t> done_{0};
  std::mutex error_mutex_;
  std::exception_ptr error_;
  std::vector<std::vector<std::byte>> scratch_;  // by member
  std::vector<std::thread> threads_;
};

}  // namespace cleave
