#include "executor/rank_threads.h"

#include <system_error>
#include <utility>

#include "graph/error.h"

namespace cleave {

RankThreads::RankThreads(int64_t ranks, std::function<void()> on_error)
    : on_error_(std::move(on_error)) {
  try {
    for (int64_t r = 0; r < ranks; ++r) threads_.emplace_back([this, r] { loop(r); });
  } catch (const std::system_error& e) {
    stop();
    fail("cannot start a thread for each of {} devices: {}", ranks, e.what());
  }
}

RankThreads::~RankThreads() { stop(); }

void RankThreads::stop() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  start_.notify_all();
  for (std::thread& t : threads_) t.join();
}

void RankThreads::run(const std::function<void(int64_t)>& work) {
  std::unique_lock lock(mutex_);
  work_ = &work;
  running_ = static_cast<int64_t>(threads_.size());
  first_error_ = nullptr;
  ++generation_;
  start_.notify_all();
  done_.wait(lock, [this] { return running_ == 0; });
  if (first_error_) std::rethrow_exception(std::exchange(first_error_, nullptr));
}

void RankThreads::loop(int64_t rank) {
  std::unique_lock lock(mutex_);
  for (int64_t seen = 0;; seen = generation_) {
    start_.wait(lock, [&] { return stop_ || generation_ != seen; });
    if (stop_) return;
    const auto& work = *work_;
    lock.unlock();
    std::exception_ptr error;
    try {
      work(rank);
    } catch (...) {
      error = std::current_exception();
    }
    lock.lock();
    if (error) {
      if (!first_error_) first_error_ = error;
      on_error_();
    }
    if (--running_ == 0) done_.notify_one();
  }
}

}  // namespace cleave
