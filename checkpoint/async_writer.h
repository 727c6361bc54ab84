// Writes checkpoints in a thread of its own, so that training goes on meanwhile.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "checkpoint/snapshot.h"
#include "checkpoint/store.h"

namespace cleave {

// A checkpoint that was written.
struct WrittenCheckpoint {
  std::string path;
  int64_t step = 0;
  int64_t bytes = 0;   // of its tensors
  double seconds = 0;  // that writing took
};

// Snapshots are written in the order in which they come, none is dropped: one is being written, one
// may wait, and submit() waits while one does. So there are at most three in memory, the caller's
// included.
//
// When writing one fails, its message is kept, the next are tried all the same, and the next call
// of submit() or wait() throws the message as Error: after it has done what it was called for.
class AsyncWriter {
 public:
  // `store` must outlive it, and is written to by nobody else. After each checkpoint all but the
  // newest `keep` are removed; 0: none is.
  AsyncWriter(CheckpointStore& store, int64_t keep);
  AsyncWriter(const AsyncWriter&) = delete;
  // Writes what was submitted. Errors go unseen: call wait() before.
  ~AsyncWriter();

  void submit(Snapshot&& snapshot);
  // Until all that was submitted is written or has failed.
  void wait();

  // A snapshot that was written, to be filled again: its buffers need not be allocated anew. Empty
  // when there is none.
  Snapshot recycled();
  // What was written since the last call, in order.
  std::vector<WrittenCheckpoint> take_written();
  // The kept message, which is then forgotten: for callers who do not want Error.
  std::optional<std::string> take_error();
  double seconds_waited() const;  // by submit(), in all

 private:
  void run();
  std::optional<std::string> taken_error();  // under the lock

  CheckpointStore& store_;
  const int64_t keep_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::optional<Snapshot> waiting_, recycled_;
  bool writing_ = false, ending_ = false;
  std::vector<WrittenCheckpoint> written_;
  std::string error_;
  int64_t failed_ = 0;  // messages that error_, the first of them, stands for
  std::exception_ptr bug_;
  double seconds_waited_ = 0;
  std::thread thread_;  // last: it uses all of the above
};

}  // namespace cleave
