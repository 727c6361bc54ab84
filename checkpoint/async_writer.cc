#include "checkpoint/async_writer.h"

#include <chrono>
#include <new>

#include "graph/error.h"

namespace cleave {
namespace {

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

AsyncWriter::AsyncWriter(CheckpointStore& store, int64_t keep)
    : store_(store), keep_(keep), thread_([this] { run(); }) {}

AsyncWriter::~AsyncWriter() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void AsyncWriter::run() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [&] { return waiting_ || ending_; });
    if (!waiting_) return;
    Snapshot snapshot = std::move(*waiting_);
    waiting_.reset();
    writing_ = true;
    lock.unlock();
    changed_.notify_all();

    WrittenCheckpoint written;
    written.step = snapshot.step;
    for (const SavedTensor& t : snapshot.tensors) {
      written.bytes += static_cast<int64_t>(t.bytes.size());
    }
    std::string error;
    std::exception_ptr bug;
    const auto start = std::chrono::steady_clock::now();
    try {
      written.path = store_.write(snapshot);
      written.seconds = seconds_since(start);
      store_.keep(keep_);
    } catch (const Error& e) {
      error = written.path.empty() ? e.what()
                                   : fmt::format("older ones were not removed: {}", e.what());
    } catch (const std::bad_alloc&) {
      error = fmt::format("no memory left to write the checkpoint of step {}", snapshot.step);
    } catch (...) {
      bug = std::current_exception();
    }

    lock.lock();
    writing_ = false;
    if (!written.path.empty()) written_.push_back(std::move(written));
    if (!error.empty() && failed_++ == 0) error_ = std::move(error);
    if (bug && !bug_) bug_ = bug;
    recycled_ = std::move(snapshot);
    changed_.notify_all();
  }
}

std::optional<std::string> AsyncWriter::taken_error() {
  if (bug_) std::rethrow_exception(std::exchange(bug_, nullptr));
  if (failed_ == 0) return std::nullopt;
  std::string message = std::move(error_);
  if (failed_ > 1) message += fmt::format(" (and {} more failed)", failed_ - 1);
  failed_ = 0;
  return message;
}

void AsyncWriter::submit(Snapshot&& snapshot) {
  std::unique_lock lock(mutex_);
  const auto start = std::chrono::steady_clock::now();
  changed_.wait(lock, [&] { return !waiting_; });
  seconds_waited_ += seconds_since(start);
  waiting_ = std::move(snapshot);
  changed_.notify_all();
  if (const auto error = taken_error()) throw Error(*error);
}

void AsyncWriter::wait() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return !waiting_ && !writing_; });
  if (const auto error = taken_error()) throw Error(*error);
}

Snapshot AsyncWriter::recycled() {
  const std::lock_guard lock(mutex_);
  Snapshot snapshot;
  if (recycled_) snapshot = std::move(*recycled_);
  recycled_.reset();
  return snapshot;
}

std::vector<WrittenCheckpoint> AsyncWriter::take_written() {
  const std::lock_guard lock(mutex_);
  return std::exchange(written_, {});
}

std::optional<std::string> AsyncWriter::take_error() {
  const std::lock_guard lock(mutex_);
  return taken_error();
}

double AsyncWriter::seconds_waited() const {
  const std::lock_guard lock(mutex_);
  return seconds_waited_;
}

}  // namespace cleave
