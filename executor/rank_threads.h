// One thread a rank, kept for as long as the object lives.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace cleave {

class RankThreads {
 public:
  // `on_error` is called by every rank whose work throws, before anybody sees the exception: it
  // must wake the ranks that wait for that one.
  RankThreads(int64_t ranks, std::function<void()> on_error);
  ~RankThreads();
  RankThreads(const RankThreads&) = delete;
  RankThreads& operator=(const RankThreads&) = delete;

  // Runs work(rank) on every thread and waits for all. Throws the exception that came first.
  void run(const std::function<void(int64_t)>& work);

 private:
  void loop(int64_t rank);
  void stop();

  const std::function<void()> on_error_;
  std::mutex mutex_;
  std::condition_variable start_, done_;
  const std::function<void(int64_t)>* work_ = nullptr;  // of the current generation
  int64_t generation_ = 0;                              // counts calls of run
  int64_t running_ = 0;  // ranks that have not finished the current generation
  bool stop_ = false;
  std::exception_ptr first_error_;
  std::vector<std::thread> threads_;
};

}  // namespace cleave
