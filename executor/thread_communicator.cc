#include "executor/thread_communicator.h"

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <map>
#include <mutex>
#include <thread>
#include <tuple>

#include "executor/reduce.h"
#include "executor/run_info.h"
#include "executor/shards.h"
#include "graph/error.h"
#include "graph/spin.h"

namespace cleave {
namespace {

// All-reduces of at most this many bytes are computed whole by every rank, which saves a barrier.
constexpr int64_t kSmallBytes = 16 << 10;

std::string describe(const Request& request, const Mesh& mesh) {
  if (request.kind == InstrKind::kReceive) {
    return fmt::format("waiting for node {} of micro-batch {} from rank {}",
                       request.message.transfer, request.message.micro_batch, request.message.from);
  }
  if (request.axis < 0) return "waiting for all ranks";
  std::string text = fmt::format("{} over {}", name_of(request.kind),
                                 mesh.axes[static_cast<size_t>(request.axis)].name);
  const bool reduces =
      request.kind == InstrKind::kAllReduce || request.kind == InstrKind::kReduceScatter;
  if (reduces) text += fmt::format(" by {}", name_of(request.reduction));
  for (const CollectiveTensor& t : request.tensors) {
    text += fmt::format(" {}[{}]", name_of(t.dtype), fmt::join(t.sizes, ", "));
    if (t.in_cut >= 0) text += fmt::format(" cut {}", t.in_cut);
    if (t.out_cut >= 0) text += fmt::format(" into {}", t.out_cut);
  }
  return text;
}

bool same(const Request& a, const Request& b) {
  const auto alike = [](const CollectiveTensor& x, const CollectiveTensor& y) {
    return x.dtype == y.dtype && x.sizes == y.sizes && x.in_cut == y.in_cut &&
           x.out_cut == y.out_cut;
  };
  return a.kind == b.kind && a.axis == b.axis && a.reduction == b.reduction &&
         std::equal(a.tensors.begin(), a.tensors.end(), b.tensors.begin(), b.tensors.end(), alike);
}

}  // namespace

// A barrier that a group of ranks can pass again and again.
class Rendezvous {
 public:
  Rendezvous(ThreadWorld& world, std::vector<int64_t> ranks)
      : ranks(std::move(ranks)), world_(world) {}

  // Returns when all ranks of the group have come; throws when they never will.
  void wait() {
    const int seen = generation_.load(std::memory_order_acquire);
    throw_if_aborted();
    const auto size = static_cast<int64_t>(ranks.size());
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size) {
      arrived_.store(0, std::memory_order_relaxed);
      // Before the release: whoever is released may wait again at once. A rank that has come but
      // not yet counted itself as waiting makes the count too small, never too large.
      world_.waiting_.fetch_sub(size - 1, std::memory_order_acq_rel);
      release();
    } else if (world_.waiting_.fetch_add(1, std::memory_order_acq_rel) + 1 == world_.size_) {
      world_.report_deadlock();
    } else {
      sleep_until_not(seen);
    }
    throw_if_aborted();
  }

  void release() {
    generation_.fetch_add(1, std::memory_order_release);
    generation_.notify_all();
  }

  const std::vector<int64_t> ranks;  // in the order of their coordinate

 private:
  void throw_if_aborted() const {
    if (world_.aborted_.load(std::memory_order_acquire)) throw Aborted("another rank has failed");
  }

  void sleep_until_not(int seen) { wait_while(generation_, seen, world_.looks_); }

  ThreadWorld& world_;
  alignas(64) std::atomic<int64_t> arrived_{0};
  alignas(64) std::atomic<int> generation_{0};
};

// What was sent to one rank and not yet taken.
class Mailbox {
 public:
  explicit Mailbox(ThreadWorld& world) : world_(world) {}

  void put(const Message& message, std::span<const std::byte> bytes) {
    std::vector<std::byte> copy(bytes.begin(), bytes.end());
    const std::lock_guard lock(mutex_);
    const Key key = key_of(message);
    const bool is_new = messages_.emplace(key, std::move(copy)).second;
    CLEAVE_ASSERT(is_new, "node {} of micro-batch {} was sent twice", message.transfer,
                  message.micro_batch);
    if (!waiting_ || wanted_ != key) return;
    // Before the receiver wakes up, as in a rendezvous.
    waiting_ = false;
    world_.waiting_.fetch_sub(1, std::memory_order_acq_rel);
    arrived_.notify_one();
  }

  void take(const Message& message, std::span<std::byte> bytes) {
    std::unique_lock lock(mutex_);
    const Key key = key_of(message);
    auto found = messages_.find(key);
    if (found == messages_.end()) {
      wanted_ = key;
      waiting_ = true;
      if (world_.waiting_.fetch_add(1, std::memory_order_acq_rel) + 1 == world_.size_)
        world_.report_deadlock();
      arrived_.wait(lock, [&] { return !waiting_ || aborted(); });
      if (aborted()) throw Aborted("another rank has failed");
      found = messages_.find(key);
    }
    CLEAVE_ASSERT(found->second.size() == bytes.size(), "{} bytes were sent, {} are awaited",
                  found->second.size(), bytes.size());
    const std::vector<std::byte> got = std::move(found->second);
    messages_.erase(found);
    lock.unlock();
    std::copy(got.begin(), got.end(), bytes.begin());
  }

  void wake() {
    const std::lock_guard lock(mutex_);
    arrived_.notify_all();
  }

 private:
  using Key = std::tuple<NodeId, int64_t, int64_t>;  // transfer, micro-batch, sender
  static Key key_of(const Message& m) { return {m.transfer, m.micro_batch, m.from}; }
  bool aborted() const { return world_.aborted_.load(std::memory_order_acquire); }

  ThreadWorld& world_;
  std::mutex mutex_;
  std::condition_variable arrived_;
  std::map<Key, std::vector<std::byte>> messages_;
  Key wanted_;            // while waiting_
  bool waiting_ = false;  // and counted as such
};

ThreadWorld::ThreadWorld(const Mesh& mesh, int64_t stages)
    : mesh_(mesh),
      size_(stages * mesh.size()),
      looks_(size_ <= usable_cores() ? kSpinLooks : 16),
      requests_(static_cast<size_t>(size_)) {
  const auto ranks = static_cast<size_t>(size_);
  for (size_t a = 0; a < mesh.axes.size(); ++a) {
    auto& groups = groups_.emplace_back();
    auto& group_of = group_of_.emplace_back(ranks);
    for (int64_t r = 0; r < size_; ++r) {
      const int64_t first = r / mesh.size() * mesh.size();  // of the stage
      std::vector<int64_t> members = mesh.group(r - first, a);
      for (int64_t& m : members) m += first;
      if (members[0] == r) {
        for (int64_t m : members) group_of[static_cast<size_t>(m)] = groups.size();
        groups.push_back(std::make_unique<Rendezvous>(*this, std::move(members)));
      }
    }
  }
  std::vector<int64_t> all(ranks);
  for (size_t r = 0; r < ranks; ++r) {
    all[r] = static_cast<int64_t>(r);
    boxes_.push_back(std::make_unique<Mailbox>(*this));
  }
  everyone_ = std::make_unique<Rendezvous>(*this, std::move(all));
}

void ThreadWorld::report_deadlock() const {
  std::string text;
  for (size_t r = 0; r < requests_.size(); ++r) {
    text += fmt::format("{}rank {} {}", text.empty() ? "" : "; ", r, describe(requests_[r], mesh_));
  }
  throw InternalError("the ranks wait for each other for ever: " + text);
}

ThreadWorld::~ThreadWorld() = default;

void ThreadWorld::abort() {
  aborted_.store(true, std::memory_order_release);
  for (auto& groups : groups_) {
    for (auto& g : groups) g->release();
  }
  everyone_->release();
  for (auto& box : boxes_) box->wake();
}

ThreadCommunicator::ThreadCommunicator(ThreadWorld& world, int64_t rank)
    : Communicator(world.mesh()),
      world_(world),
      rank_(rank),
      coordinates_(world.mesh().coordinates(rank % world.mesh().size())),
      scratch_(kSmallBytes) {}

Rendezvous& ThreadCommunicator::meet(const Request& request) {
  auto& requests = world_.requests_;
  requests[static_cast<size_t>(rank_)] = request;
  const auto axis = static_cast<size_t>(request.axis);
  Rendezvous& g = *world_.groups_[axis][world_.group_of_[axis][static_cast<size_t>(rank_)]];
  g.wait();
  const Request& first = requests[static_cast<size_t>(g.ranks[0])];
  for (int64_t rank : g.ranks) {
    const Request& other = requests[static_cast<size_t>(rank)];
    if (same(first, other)) continue;
    const std::string message = fmt::format("rank {} asks for {}, rank {} for {}", g.ranks[0],
                                            describe(first, mesh()), rank, describe(other, mesh()));
    g.wait();  // all ranks have come to the same conclusion, and may go
    throw InternalError(message);
  }
  return g;
}

void ThreadCommunicator::find_inputs(const Rendezvous& group, size_t i) {
  peers_.clear();
  for (int64_t rank : group.ranks) {
    const Request& request = world_.requests_[static_cast<size_t>(rank)];
    peers_.push_back(static_cast<const std::byte*>(request.tensors[i].in));
  }
}

// Only this request meets everyone, so there is nothing to compare; and nothing may be read here
// after the meeting, since a rank that has left asks for something else at once.
void ThreadCommunicator::synchronize() {
  world_.requests_[static_cast<size_t>(rank_)] = {};
  world_.everyone_->wait();
}

void ThreadCommunicator::put(const Message& message, std::span<const std::byte> bytes) {
  world_.boxes_[static_cast<size_t>(message.to)]->put(message, bytes);
}

void ThreadCommunicator::take(const Message& message, std::span<std::byte> bytes) {
  Request& request = world_.requests_[static_cast<size_t>(rank_)];
  request = {};
  request.kind = InstrKind::kReceive;
  request.message = message;
  world_.boxes_[static_cast<size_t>(rank_)]->take(message, bytes);
}

void ThreadCommunicator::all_reduce(int32_t axis, Reduction reduction,
                                    std::span<const CollectiveTensor> tensors) {
  Rendezvous& g = meet({InstrKind::kAllReduce, axis, reduction, tensors, {}});
  int64_t total = 0;
  for (const CollectiveTensor& t : tensors) total += t.bytes();
  if (total <= kSmallBytes) {
    std::byte* at = scratch_.data();
    for (size_t i = 0; i < tensors.size(); at += tensors[i++].bytes()) {
      find_inputs(g, i);
      reduce(reduction, tensors[i].dtype, peers_, at,
             tensors[i].bytes() / size_of(tensors[i].dtype));
    }
    g.wait();  // nobody reads the inputs any more
    at = scratch_.data();
    for (const CollectiveTensor& t : tensors) {
      std::memcpy(t.out, at, static_cast<size_t>(t.bytes()));
      at += t.bytes();
    }
    return;
  }
  // Every rank combines its chunk into its own result, then fetches the chunks of the others. In
  // place this is safe: nobody but its owner ever reads a chunk of an operand.
  const auto ranks = static_cast<int64_t>(g.ranks.size());
  const int64_t me = coordinates_[static_cast<size_t>(axis)];
  const auto chunk = [&](const CollectiveTensor& t, int64_t rank) {  // first byte
    return t.bytes() / 64 * rank / ranks * 64 + (rank == ranks ? t.bytes() % 64 : 0);
  };
  for (size_t i = 0; i < tensors.size(); ++i) {
    const CollectiveTensor& t = tensors[i];
    const int64_t begin = chunk(t, me), end = chunk(t, me + 1);
    find_inputs(g, i);
    for (const std::byte*& p : peers_) p += begin;
    reduce(reduction, t.dtype, peers_, static_cast<std::byte*>(t.out) + begin,
           (end - begin) / size_of(t.dtype));
  }
  g.wait();
  for (size_t i = 0; i < tensors.size(); ++i) {
    const CollectiveTensor& t = tensors[i];
    for (int64_t k = 1; k < ranks; ++k) {
      const int64_t from = (me + k) % ranks;  // not all from the same rank at once
      const auto rank = static_cast<size_t>(g.ranks[static_cast<size_t>(from)]);
      const int64_t begin = chunk(t, from), end = chunk(t, from + 1);
      const void* result = world_.requests_[rank].tensors[i].out;
      std::memcpy(static_cast<std::byte*>(t.out) + begin,
                  static_cast<const std::byte*>(result) + begin, static_cast<size_t>(end - begin));
    }
  }
  g.wait();
}

void ThreadCommunicator::reduce_scatter(int32_t axis, Reduction reduction,
                                        std::span<const CollectiveTensor> tensors) {
  Rendezvous& g = meet({InstrKind::kReduceScatter, axis, reduction, tensors, {}});
  const auto ranks = static_cast<int64_t>(g.ranks.size());
  const int64_t me = coordinates_[static_cast<size_t>(axis)];
  constexpr std::array<int64_t, 5> kZeros{};
  for (size_t i = 0; i < tensors.size(); ++i) {
    const CollectiveTensor& t = tensors[i];
    find_inputs(g, i);
    const std::array<int64_t, 5> box = t.local(t.out_cut, ranks);
    std::array<int64_t, 5> start{};
    start[static_cast<size_t>(t.out_cut)] = me * box[static_cast<size_t>(t.out_cut)];
    const int64_t element = size_of(t.dtype);
    int64_t offset = 0;  // of peers_ now, in elements
    for_each_run(box, {t.sizes, start}, {box, kZeros}, [&](int64_t from, int64_t to, int64_t n) {
      for (const std::byte*& p : peers_) p += (from - offset) * element;
      offset = from;
      reduce(reduction, t.dtype, peers_, static_cast<std::byte*>(t.out) + to * element, n);
    });
  }
  g.wait();
}

void ThreadCommunicator::all_gather(int32_t axis, std::span<const CollectiveTensor> tensors) {
  exchange(InstrKind::kAllGather, axis, tensors);
}

void ThreadCommunicator::all_to_all(int32_t axis, std::span<const CollectiveTensor> tensors) {
  exchange(InstrKind::kAllToAll, axis, tensors);
}

void ThreadCommunicator::shift(int32_t axis, std::span<const CollectiveTensor> tensors) {
  Rendezvous& g = meet({InstrKind::kShift, axis, Reduction::kSum, tensors, {}});
  const size_t ranks = g.ranks.size();
  const auto me = static_cast<size_t>(mesh().coordinates(rank_)[static_cast<size_t>(axis)]);
  for (size_t i = 0; i < tensors.size(); ++i) {
    find_inputs(g, i);
    std::memcpy(tensors[i].out, peers_[(me + ranks - 1) % ranks],
                static_cast<size_t>(tensors[i].bytes()));
  }
  g.wait();
}

void ThreadCommunicator::exchange(InstrKind kind, int32_t axis,
                                  std::span<const CollectiveTensor> tensors) {
  Rendezvous& g = meet({kind, axis, Reduction::kSum, tensors, {}});
  const auto ranks = static_cast<int64_t>(g.ranks.size());
  const int64_t me = coordinates_[static_cast<size_t>(axis)];
  for (size_t i = 0; i < tensors.size(); ++i) {
    const CollectiveTensor& t = tensors[i];
    find_inputs(g, i);
    const std::array<int64_t, 5> in = t.local(t.in_cut, ranks), out = t.local(t.out_cut, ranks);
    // The box that goes from one rank to another is cut both ways.
    std::array<int64_t, 5> box = in, from_start{}, to_start{};
    if (t.out_cut >= 0) {
      const auto c = static_cast<size_t>(t.out_cut);
      box[c] /= ranks;
      from_start[c] = me * box[c];
    }
    const auto element = static_cast<size_t>(size_of(t.dtype));
    for (int64_t k = 0; k < ranks; ++k) {
      const int64_t rank = (me + k) % ranks;
      to_start[static_cast<size_t>(t.in_cut)] = rank * box[static_cast<size_t>(t.in_cut)];
      const std::byte* source = peers_[static_cast<size_t>(rank)];
      std::byte* target = static_cast<std::byte*>(t.out);
      for_each_run(box, {in, from_start}, {out, to_start},
                   [&](int64_t from, int64_t to, int64_t n) {
                     std::memcpy(target + static_cast<size_t>(to) * element,
                                 source + static_cast<size_t>(from) * element,
                                 static_cast<size_t>(n) * element);
                   });
    }
  }
  g.wait();
}

}  // namespace cleave
