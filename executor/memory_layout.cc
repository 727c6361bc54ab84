#include "executor/memory_layout.h"

#include <algorithm>
#include <map>
#include <numeric>

#include "executor/typing.h"
#include "graph/error.h"
#include "kernels/cuda/workspace.h"

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

// Times as ranks among those that occur: what overlaps, and what comes first, stays as it was; how
// long buffers live does not, by which some strategies sort.
std::vector<Lifetime> ranked(std::vector<Lifetime> lives) {
  std::vector<int32_t> times;
  for (const Lifetime& l : lives) {
    if (l.last >= 0) times.push_back(l.first), times.push_back(l.last);
  }
  std::sort(times.begin(), times.end());
  times.erase(std::unique(times.begin(), times.end()), times.end());
  const auto rank = [&](int32_t time) {
    return static_cast<int32_t>(std::lower_bound(times.begin(), times.end(), time) - times.begin());
  };
  for (Lifetime& l : lives) {
    if (l.last >= 0) l.first = rank(l.first), l.last = rank(l.last);
  }
  return lives;
}

// Placings of a program's stages: most do the same as another at other times.
class Placings {
 public:
  explicit Placings(bool shared) : shared_(shared) {}
  Placing of(const std::vector<Lifetime>& lives) {
    if (!shared_) return place(lives);
    std::vector<Lifetime> key = ranked(lives);
    const auto known = known_.find(key);
    if (known != known_.end()) return known->second;
    Placing placing = place(key);
    return known_.emplace(std::move(key), std::move(placing)).first->second;
  }

 private:
  const bool shared_;
  std::map<std::vector<Lifetime>, Placing> known_;
};

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
      const auto reaches = [&](size_t b) {
        return placing.offsets[b] + aligned(lifetimes[b].bytes) == placing.peak;
      };
      // Where they come first already, the next round would be this one again.
      if (std::is_partitioned(order.begin(), order.end(), reaches)) break;
      std::stable_partition(order.begin(), order.end(), reaches);
    }
  }
  return best;
}

// Whether an instruction is given to a GPU together with those from `first` to it: see
// OpDef::together.
static bool goes_with(const Program& program, int32_t first, int32_t i) {
  const Instr& instr = program.instrs[static_cast<size_t>(i)];
  if (instr.kind != InstrKind::kCompute || !instr.op->together) return false;
  for (int32_t k = first; k < i; ++k) {
    const Instr& other = program.instrs[static_cast<size_t>(k)];
    if (other.kind != InstrKind::kCompute || other.op != instr.op || other.part != instr.part) {
      return false;
    }
    for (TensorId made : other.out) {
      if (std::count(instr.in.begin(), instr.in.end(), made) > 0) return false;
    }
  }
  return true;
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
  // What is fed is there before the first instruction of its chunk, or of its stage's update.
  std::map<std::pair<bool, int32_t>, int32_t> begins;
  for (int32_t i = end; i-- > 0;) {
    const Instr& instr = program.instrs[static_cast<size_t>(i)];
    if (instr.part == Part::kBegin) continue;
    const bool update = instr.part == Part::kUpdate;
    begins[{update, update ? program.stage_of(instr.chunk) : instr.chunk}] = i;
    if (update) begins.try_emplace({false, instr.chunk}, i);
  }
  for (const ProgramSource& s : program.sources) {
    const bool update = s.part == Part::kUpdate;
    const auto first = begins.find({update, update ? program.stage_of(s.chunk) : s.chunk});
    touch(s.tensor, first == begins.end() ? 0 : first->second);
  }
  for (int32_t i = 0; i < end; ++i) {
    const Instr& instr = program.instrs[static_cast<size_t>(i)];
    for (TensorId t : instr.in) touch(t, i);
    for (TensorId t : instr.out) touch(t, i);
  }
  for (const ProgramOutput& o : program.outputs) touch(o.tensor, end);
  for (int32_t i = 0; program.gpu && i < end;) {
    int32_t last = i;
    while (last + 1 < end && goes_with(program, i, last + 1)) ++last;
    for (int32_t k = i; k <= last && last > i; ++k) {
      const Instr& instr = program.instrs[static_cast<size_t>(k)];
      for (TensorId t : instr.in) touch(t, last);
      for (TensorId t : instr.out) touch(t, i);
    }
    i = last + 1;
  }
  for (size_t b = 0; b < lives.size(); ++b) {
    lives[b].bytes = program.buffers[b].bytes;
    if (program.buffers[b].persistent) lives[b].first = 0, lives[b].last = end;
  }
  return lives;
}

int64_t workspace_bytes_of(const Program& program, const Instr& instr) {
  if (instr.kind != InstrKind::kCompute || is_view(program, instr)) return 0;
  const WorkspaceFn workspace = program.gpu ? instr.op->cuda_workspace : instr.op->workspace;
  if (workspace == nullptr) return 0;
  const auto types = local_input_types(program, instr);
  const auto sizes = local_sizes(instr, program.mesh);
  std::vector<TensorView> placed;
  for (const auto* list : {&instr.in, &instr.out}) {
    for (const TensorId t : *list) {
      const ProgramTensor& tensor = program.tensor(t);
      placed.push_back({nullptr, tensor.dtype, tensor.geometry.shape, tensor.geometry.strides});
    }
  }
  return workspace({*instr.signature, sizes, instr.attrs, types, placed});
}

int64_t largest_workspace(const Program& program, int32_t stage) {
  int64_t most = 0;
  for (const Instr& instr : program.instrs) {
    if (program.stage_of(instr.chunk) != stage) continue;
    most = std::max(most, workspace_bytes_of(program, instr));
  }
  return most;
}

StageItems stage_items(const Program& program, const std::vector<Lifetime>& lifetimes,
                       int32_t stage) {
  StageItems items;
  // The instructions that every micro-batch runs.
  const auto end = static_cast<int32_t>(program.instrs.size());
  int32_t first = end, last = -1;
  for (int32_t i = 0; i < end; ++i) {
    const Instr& instr = program.instrs[static_cast<size_t>(i)];
    if (once_a_step(instr.part) || program.stage_of(instr.chunk) != stage) continue;
    first = std::min(first, i);
    last = i;
  }
  std::map<int32_t, size_t> frame_of;  // by chunk
  for (int32_t c = stage; c < program.stages() * program.schedule.chunks; c += program.stages()) {
    const int32_t slots = slots_of(program, c);
    // One micro-batch of one chunk at a time: nothing comes between its parts.
    if (slots == 1 && program.schedule.chunks == 1) continue;
    frame_of[c] = items.frames.size();
    items.frames.push_back({.chunk = c, .slots = slots, .life = {0, first, last}});
  }
  const auto part_at = [&](int32_t time) {
    if (time < 0) return Part::kBegin;  // nothing touches it
    return time < end ? program.instrs[static_cast<size_t>(time)].part : Part::kUpdate;
  };
  for (size_t b = 0; b < lifetimes.size(); ++b) {
    const Buffer& buffer = program.buffers[b];
    if (program.stage_of(buffer.chunk) != stage) continue;
    const auto id = static_cast<int32_t>(b);
    Lifetime life = lifetimes[b];
    if (buffer.host) continue;
    if (buffer.persistent) {
      items.persistent.push_back(id);
      continue;
    }
    const Part from = part_at(life.first), to = part_at(life.last);
    const auto frame = frame_of.find(buffer.chunk);
    if (from != to && !once_a_step(from) && !once_a_step(to) && frame != frame_of.end()) {
      items.frames[frame->second].buffers.push_back(id);
      items.frames[frame->second].lives.push_back(life);
      continue;
    }
    if (from == Part::kBegin && !once_a_step(to)) life.last = std::max(life.last, last);
    if (!once_a_step(from) && to == Part::kUpdate && frame != frame_of.end())
      life.first = std::min(life.first, first);
    items.buffers.push_back(id);
    items.lives.push_back(life);
  }
  return items;
}

std::vector<int64_t> least_peak_bytes(const Program& program) {
  const std::vector<Lifetime> lifetimes = buffer_lifetimes(program);
  std::vector<int64_t> least;
  for (int32_t s = 0; s < program.stages(); ++s) {
    StageItems items = stage_items(program, lifetimes, s);
    for (const StageItems::Frame& f : items.frames) {
      items.lives.push_back(f.life);
      items.lives.back().bytes = f.slots * most_live_bytes(f.lives);
    }
    int64_t bytes = most_live_bytes(items.lives) + aligned(largest_workspace(program, s));
    for (int32_t b : items.persistent)
      bytes += aligned(program.buffers[static_cast<size_t>(b)].bytes);
    least.push_back(bytes);
  }
  return least;
}

void plan_memory(Program& program) {
  const std::vector<Lifetime> lifetimes = buffer_lifetimes(program);
  const auto buffer = [&](int32_t b) -> Buffer& { return program.buffers[static_cast<size_t>(b)]; };
  program.memory.assign(static_cast<size_t>(program.stages()), {});
  program.arena_bytes = program.workspace_bytes = program.host_bytes = 0;
  Placings placings(program.stages() > 1);
  for (size_t b = 0; b < lifetimes.size(); ++b) {
    program.buffers[b].first = lifetimes[b].first;
    program.buffers[b].last = lifetimes[b].last;
    program.buffers[b].slots = 1;
    program.buffers[b].stride = 0;
  }
  for (int32_t s = 0; s < program.stages(); ++s) {
    // Persistent buffers lie at the bottom, one after the other; the rest is packed above them, and
    // the workspace at the top.
    StageItems items = stage_items(program, lifetimes, s);
    int64_t bottom = 0;
    for (int32_t b : items.persistent) {
      buffer(b).offset = bottom;
      bottom += aligned(buffer(b).bytes);
    }
    std::vector<Placing> inside;
    for (const StageItems::Frame& f : items.frames) {
      inside.push_back(placings.of(f.lives));
      items.lives.push_back(f.life);
      items.lives.back().bytes = f.slots * inside.back().peak;
    }
    const Placing placing = placings.of(items.lives);
    const auto offset = [&](const Placing& p, size_t i) {
      return p.offsets.empty() ? 0 : p.offsets[i];
    };
    for (size_t i = 0; i < items.buffers.size(); ++i)
      buffer(items.buffers[i]).offset = bottom + offset(placing, i);
    for (size_t f = 0; f < items.frames.size(); ++f) {
      const StageItems::Frame& frame = items.frames[f];
      for (size_t i = 0; i < frame.buffers.size(); ++i) {
        Buffer& b = buffer(frame.buffers[i]);
        b.offset = bottom + offset(placing, items.buffers.size() + f) + offset(inside[f], i);
        b.slots = frame.slots;
        b.stride = inside[f].peak;
      }
    }
    StageMemory& memory = program.memory[static_cast<size_t>(s)];
    for (Buffer& b : program.buffers) {
      if (!b.host || program.stage_of(b.chunk) != s) continue;
      b.offset = memory.host_bytes;
      memory.host_bytes += aligned(b.bytes);
    }
    memory.workspace_bytes = largest_workspace(program, s);
    const int64_t below = bottom + placing.peak;
    memory.arena_bytes =
        (program.gpu ? aligned_workspace(below) : below) + aligned(memory.workspace_bytes);
    program.arena_bytes = std::max(program.arena_bytes, memory.arena_bytes);
    program.workspace_bytes = std::max(program.workspace_bytes, memory.workspace_bytes);
    program.host_bytes = std::max(program.host_bytes, memory.host_bytes);
  }
}

}  // namespace cleave
