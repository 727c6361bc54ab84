#include "executor/memory_layout.h"

#include <algorithm>
#include <map>
#include <numeric>

#include "executor/typing.h"
#include "graph/error.h"

namespace cleave {
namespace {

// Pairs of buffers that one strategy's second tries may compare; bounds the time they take.
constexpr double kPairBudget = 1e8;

int64_t aligned(int64_t bytes) {
  return (bytes + kArenaAlignment - 1) / kArenaAlignment * kArenaAlignment;
}

// Places buffers in the given order, each into the gap between those already placed that are live
// with it: the tightest gap that holds it, or the lowest one.
Placing place_in_order(std::span<const Lifetime> lives, std::span<const size_t> order,
                       bool tightest) {
  struct Placed {
    int64_t begin, end;
    int32_t first, last;
  };
  std::vector<Placed> placed;  // by begin
  placed.reserve(order.size());
  Placing result{std::vector<int64_t>(lives.size(), 0), 0};
  for (size_t b : order) {
    const int64_t bytes = aligned(lives[b].bytes);
    int64_t best = -1, best_gap = 0;
    int64_t free_from = 0;  // end of the live buffers passed so far
    for (const Placed& p : placed) {
      if (p.last < lives[b].first || lives[b].last < p.first) continue;
      const int64_t gap = p.begin - free_from;
      if (gap >= bytes && (best < 0 || gap < best_gap)) {
        best = free_from;
        best_gap = gap;
        if (!tightest) break;
      }
      free_from = std::max(free_from, p.end);
    }
    if (best < 0) best = free_from;
    result.offsets[b] = best;
    result.peak = std::max(result.peak, best + bytes);
    const Placed now{best, best + bytes, lives[b].first, lives[b].last};
    placed.insert(
        std::upper_bound(placed.begin(), placed.end(), now,
                         [](const Placed& x, const Placed& y) { return x.begin < y.begin; }),
        now);
  }
  return result;
}

}  // namespace

int64_t most_live_bytes(std::span<const Lifetime> lifetimes) {
  std::map<int64_t, int64_t> change;  // by time
  for (const Lifetime& l : lifetimes) {
    if (l.last < 0) continue;
    change[l.first] += aligned(l.bytes);
    change[int64_t{l.last} + 1] -= aligned(l.bytes);
  }
  int64_t live = 0, most = 0;
  for (const auto& [time, bytes] : change) most = std::max(most, live += bytes);
  return most;
}

Placing place(std::span<const Lifetime> lifetimes) {
  std::vector<size_t> used;
  for (size_t b = 0; b < lifetimes.size(); ++b) {
    if (lifetimes[b].last >= 0 && lifetimes[b].bytes > 0) used.push_back(b);
  }
  const auto size = [&](size_t b) { return static_cast<double>(lifetimes[b].bytes); };
  const auto length = [&](size_t b) {
    return static_cast<double>(lifetimes[b].last) - lifetimes[b].first + 1;
  };
  const auto first = [&](size_t b) { return static_cast<double>(lifetimes[b].first); };
  // Each strategy sorts by a key, the largest first; ties go by size, then by number.
  const auto strategy = [&](auto key) {
    std::vector<size_t> order = used;
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
      return key(a) != key(b) ? key(a) > key(b) : size(a) > size(b);
    });
    return order;
  };
  const std::vector<std::vector<size_t>> orders = {
      strategy(size),
      strategy([&](size_t b) { return size(b) * length(b); }),
      strategy([&](size_t b) { return -first(b); }),
      strategy(length),
  };
  const int64_t bound = most_live_bytes(lifetimes);
  Placing best;
  for (const auto& order : orders) {
    for (bool tightest : {true, false}) {
      Placing placing = place_in_order(lifetimes, order, tightest);
      if (best.offsets.empty() || placing.peak < best.peak) best = std::move(placing);
      if (best.peak == bound) return best;
    }
  }
  // The buffers that reach the peak go first, and all is placed again, a few times.
  const auto pairs = static_cast<double>(used.size()) * static_cast<double>(used.size());
  const int rounds = static_cast<int>(std::min(50.0, kPairBudget / std::max(pairs, 1.0)));
  for (std::vector<size_t> order : orders) {
    for (int round = 0; round < rounds; ++round) {
      const Placing placing = place_in_order(lifetimes, order, true);
      if (placing.peak < best.peak) best = placing;
      if (best.peak == bound) return best;
      std::stable_partition(order.begin(), order.end(), [&](size_t b) {
        return placing.offsets[b] + aligned(lifetimes[b].bytes) == placing.peak;
      });
    }
  }
  return best;
}

std::vector<Lifetime> buffer_lifetimes(const Program& program) {
  std::vector<Lifetime> lives(program.buffers.size());
  const auto touch = [&](TensorId t, int32_t time) {
    Lifetime& l = lives[static_cast<size_t>(program.tensor(t).buffer)];
    if (l.last < 0) l.first = time;
    l.first = std::min(l.first, time);
    l.last = std::max(l.last, time);
  };
  const auto end = static_cast<int32_t>(program.instrs.size());
  for (const ProgramSource& s : program.sources) touch(s.tensor, 0);
  for (int32_t i = 0; i < end; ++i) {
    const Instr& instr = program.instrs[static_cast<size_t>(i)];
    for (TensorId t : instr.in) touch(t, i);
    for (TensorId t : instr.out) touch(t, i);
  }
  for (const ProgramOutput& o : program.outputs) touch(o.tensor, end);
  for (size_t b = 0; b < lives.size(); ++b) {
    lives[b].bytes = program.buffers[b].bytes;
    if (program.buffers[b].persistent) lives[b].first = 0, lives[b].last = end;
  }
  return lives;
}

int64_t largest_workspace(const Program& program) {
  int64_t most = 0;
  for (const Instr& instr : program.instrs) {
    if (instr.kind != InstrKind::kCompute || instr.op->workspace == nullptr) continue;
    if (is_view(program, instr)) continue;
    const auto types = local_input_types(program, instr);
    const auto sizes = local_sizes(instr, program.mesh);
    most = std::max(most, instr.op->workspace({*instr.signature, sizes, instr.attrs, types}));
  }
  return most;
}

void plan_memory(Program& program) {
  const std::vector<Lifetime> lives = buffer_lifetimes(program);
  // Persistent buffers lie at the bottom, one after the other; the rest is packed above them, and
  // the workspace at the top.
  int64_t bottom = 0;
  std::vector<Lifetime> passing = lives;
  for (size_t b = 0; b < lives.size(); ++b) {
    Buffer& buffer = program.buffers[b];
    buffer.first = lives[b].first;
    buffer.last = lives[b].last;
    if (!buffer.persistent) continue;
    buffer.offset = bottom;
    bottom += aligned(buffer.bytes);
    passing[b] = {};
  }
  const Placing placing = place(passing);
  for (size_t b = 0; b < lives.size(); ++b) {
    if (!program.buffers[b].persistent) {
      program.buffers[b].offset = bottom + (placing.offsets.empty() ? 0 : placing.offsets[b]);
    }
  }
  program.workspace_bytes = largest_workspace(program);
  program.arena_bytes = bottom + placing.peak + aligned(program.workspace_bytes);
}

}  // namespace cleave
