// The checks of a program's parts: their order, what passes between them, and where it lies while
// the schedule runs other micro-batches in between.
#include <algorithm>
#include <map>
#include <set>
#include <tuple>

#include "executor/memory_layout.h"
#include "executor/typing.h"
#include "graph/error.h"

namespace cleave {
namespace {

template <class... Args>
[[noreturn]] void refuse(const std::string& subject, fmt::format_string<Args...> format,
                         Args&&... args) {
  throw InternalError(subject + ": " + fmt::format(format, std::forward<Args>(args)...));
}

void check_chunks(const Program& p) {
  const int32_t chunks = p.stages() * p.schedule.chunks;
  for (size_t i = 0; i < p.instrs.size(); ++i) {
    const Instr& instr = p.instrs[i];
    if (instr.chunk < 0 || instr.chunk >= chunks)
      refuse(describe_instr(p, i), "there is no chunk {}", instr.chunk);
    for (const auto* list : {&instr.in, &instr.out}) {
      for (TensorId t : *list) {
        const int32_t chunk = p.tensor(t).chunk;
        const bool own = once_a_step(instr.part) ? p.stage_of(chunk) == p.stage_of(instr.chunk)
                                                 : chunk == instr.chunk;
        if (!own) {
          refuse(describe_instr(p, i), "chunk {} touches {} of chunk {}", instr.chunk,
                 p.tensor(t).name, chunk);
        }
      }
    }
  }
  for (const ProgramTensor& t : p.tensors) {
    const Buffer& b = p.buffers[static_cast<size_t>(t.buffer)];
    if (p.stage_of(b.chunk) != p.stage_of(t.chunk))
      refuse("tensor " + t.name, "it lies in a buffer of chunk {}", b.chunk);
  }
}

// What every micro-batch writes and the update reads is persistent.
void check_passing(const Program& p) {
  if (p.micro_batches() == 1) return;
  std::vector<bool> written(p.buffers.size(), false), begun(p.buffers.size(), false);
  const auto passing = [&](TensorId t) {
    const auto b = static_cast<size_t>(p.tensor(t).buffer);
    return written[b] && !p.buffers[b].persistent;
  };
  for (const bool update : {false, true}) {
    for (size_t i = 0; i < p.instrs.size(); ++i) {
      const Instr& instr = p.instrs[i];
      if ((instr.part == Part::kUpdate) != update) continue;
      for (TensorId t : instr.out) {
        const auto b = static_cast<size_t>(p.tensor(t).buffer);
        if (instr.part == Part::kBegin) begun[b] = true;
        if (!once_a_step(instr.part) && !is_view(p, instr)) {
          if (begun[b]) {
            refuse(describe_instr(p, i), "it overwrites {}, which the next micro-batch reads",
                   p.tensor(t).name);
          }
          written[b] = true;
        }
      }
      for (TensorId t : instr.in) {
        if (update && passing(t)) {
          refuse(describe_instr(p, i), "{} is of one micro-batch, the update of all",
                 p.tensor(t).name);
        }
      }
    }
  }
  for (const ProgramOutput& o : p.outputs) {
    if (passing(o.tensor)) refuse("output " + o.name, "it is of one micro-batch, of all");
  }
}

struct Halves {
  int32_t send = -1, receive = -1;  // instructions
};

std::map<NodeId, Halves> check_pairs(const Program& p) {
  std::map<NodeId, Halves> pairs;
  for (size_t i = 0; i < p.instrs.size(); ++i) {
    const Instr& instr = p.instrs[i];
    if (instr.kind != InstrKind::kSend && instr.kind != InstrKind::kReceive) continue;
    int32_t& half =
        instr.kind == InstrKind::kSend ? pairs[instr.node].send : pairs[instr.node].receive;
    if (half >= 0) refuse(describe_instr(p, i), "node {} is there twice", instr.node);
    half = static_cast<int32_t>(i);
  }
  for (const auto& [node, pair] : pairs) {
    if (pair.send < 0 || pair.receive < 0) {
      const auto i = static_cast<size_t>(std::max(pair.send, pair.receive));
      refuse(describe_instr(p, i), "nobody {} node {}", pair.send < 0 ? "sends" : "receives", node);
    }
    const auto at = static_cast<size_t>(pair.receive);
    const Instr &send = p.instrs[static_cast<size_t>(pair.send)], &receive = p.instrs[at];
    const ProgramTensor &from = p.tensor(send.in[0]), &to = p.tensor(receive.out[0]);
    if (from.dtype != to.dtype || from.layout != to.layout) {
      refuse(describe_instr(p, at), "{} is sent as {}, received as {}", to.name,
             to_string(from.layout, p.mesh), to_string(to.layout, p.mesh));
    }
    if (send.peer != receive.chunk || receive.peer != send.chunk) {
      refuse(describe_instr(p, at), "chunk {} sends to {}, chunk {} receives from {}", send.chunk,
             send.peer, receive.chunk, receive.peer);
    }
    // What is not awaited by others may be received later in the backward than it is sent.
    const bool late = send.part == Part::kBackward && receive.part == Part::kWeightGradient;
    if (send.part != receive.part && !late) {
      refuse(describe_instr(p, at), "it is sent in the {}, received in the {}", name_of(send.part),
             name_of(receive.part));
    }
  }
  return pairs;
}

// Runs the sends and receives of all stages as the schedule orders them, without their numbers.
void check_no_deadlock(const Program& p) {
  std::map<std::tuple<Part, int32_t>, std::vector<size_t>> talk;  // sends and receives, by run
  const auto key = [&](Part part, int32_t chunk) {
    return std::tuple(part, once_a_step(part) ? p.stage_of(chunk) : chunk);
  };
  for (size_t i = 0; i < p.instrs.size(); ++i) {
    const Instr& instr = p.instrs[i];
    if (instr.kind == InstrKind::kSend || instr.kind == InstrKind::kReceive)
      talk[key(instr.part, instr.chunk)].push_back(i);
  }
  struct Stage {
    std::vector<PartRun> order;
    size_t run = 0, place = 0;
  };
  std::vector<Stage> stages;
  for (int32_t s = 0; s < p.stages(); ++s) stages.push_back({step_order(p, s)});
  std::set<std::pair<NodeId, int32_t>> sent;
  bool moved = true;
  while (moved) {
    moved = false;
    for (Stage& stage : stages) {
      while (stage.run < stage.order.size()) {
        const PartRun& run = stage.order[stage.run];
        const auto& list = talk[key(run.part, run.chunk)];
        const int32_t m = once_a_step(run.part) ? 0 : run.micro_batch;
        bool waits = false;
        for (; stage.place < list.size() && !waits; stage.place += waits ? 0 : 1) {
          const Instr& instr = p.instrs[list[stage.place]];
          if (instr.kind == InstrKind::kSend) {
            sent.emplace(instr.node, m);
          } else {
            waits = !sent.contains({instr.node, m});
          }
        }
        if (waits) break;
        ++stage.run;
        stage.place = 0;
        moved = true;
      }
    }
  }
  for (int32_t s = 0; s < p.stages(); ++s) {
    const Stage& stage = stages[static_cast<size_t>(s)];
    if (stage.run == stage.order.size()) continue;
    const PartRun& run = stage.order[stage.run];
    const size_t i = talk[key(run.part, run.chunk)][stage.place];
    refuse(describe_instr(p, i), "stage {} waits for it for ever in the {} of micro-batch {}", s,
           name_of(run.part), run.micro_batch);
  }
}

// The buffers of one stage that are live while its parts run.
class ArenaCheck {
 public:
  ArenaCheck(const Program& p, const std::vector<Lifetime>& lifetimes, int32_t stage)
      : p_(p), lives_(lifetimes), stage_(stage) {
    const bool laid_out = static_cast<size_t>(stage) < p.memory.size();
    const int64_t arena = laid_out ? p.memory[static_cast<size_t>(stage)].arena_bytes : 0;
    const int64_t workspace = laid_out ? p.memory[static_cast<size_t>(stage)].workspace_bytes : 0;
    if (workspace < largest_workspace(p, stage)) {
      refuse("arena", "the workspace has {} bytes, kernels need {}", workspace,
             largest_workspace(p, stage));
    }
    end_ = arena - largest_workspace(p, stage);
    sort_events();
  }

  void check() {
    for (int32_t b : persistent_) begin(b, 0);
    std::set<std::vector<int32_t>> seen;
    std::map<std::pair<int32_t, int32_t>, int32_t> progress;  // by chunk, slot: parts that ran
    for (const PartRun& run : step_order(p_, stage_)) {
      if (run.part == Part::kUpdate) {
        for (int32_t b : until_update_) finish(b, 0);
      }
      // A run under the same circumstances needs to be looked at once.
      std::vector<int32_t> state = {static_cast<int32_t>(run.part), run.chunk};
      const int32_t slot = run.micro_batch % slots(run.chunk);
      state.push_back(slot);
      for (const auto& [at, parts] : progress) {
        if (parts != 0) state.insert(state.end(), {at.first, at.second, parts});
      }
      walk(run, !seen.insert(state).second);
      if (once_a_step(run.part)) continue;
      int32_t& parts = progress[{run.chunk, slot}];
      parts |= 1 << static_cast<int>(run.part);
      const bool whole = p_.schedule.kind == ScheduleKind::kZeroBubble && p_.stages() > 1
                             ? run.part == Part::kWeightGradient
                             : run.part == Part::kBackward;
      if (!whole) continue;
      parts = 0;
      // What the update reads, it reads of the last micro-batch.
      if (p_.stages() == 1 && run.micro_batch + 1 < p_.micro_batches()) {
        std::erase_if(live_, [&](const auto& l) { return !buffer(l.second).persistent; });
      }
    }
  }

 private:
  struct Events {
    std::vector<int32_t> born, dead;  // buffers
    bool operator==(const Events&) const = default;
  };

  const Buffer& buffer(int32_t b) const { return p_.buffers[static_cast<size_t>(b)]; }
  int32_t slots(int32_t chunk) {
    const auto [at, is_new] = slots_.try_emplace(chunk, 1);
    if (is_new) at->second = slots_of(p_, chunk);
    return at->second;
  }

  void sort_events() {
    const auto end = static_cast<int32_t>(p_.instrs.size());
    for (size_t i = 0; i < lives_.size(); ++i) {
      const auto b = static_cast<int32_t>(i);
      const Lifetime& life = lives_[i];
      if (p_.stage_of(buffer(b).chunk) != stage_ || life.last < 0 || buffer(b).bytes == 0) continue;
      if (buffer(b).host) continue;
      if (buffer(b).persistent) {
        persistent_.push_back(b);
        continue;
      }
      const Part from = p_.instrs.empty() || life.first >= end
                            ? Part::kUpdate
                            : p_.instrs[static_cast<size_t>(life.first)].part;
      const Part to =
          life.last >= end ? Part::kUpdate : p_.instrs[static_cast<size_t>(life.last)].part;
      events_[life.first].born.push_back(b);
      const bool crosses = from != to;
      if (crosses) crossing_.insert(b);
      if (from == Part::kBegin && !once_a_step(to)) {
        until_update_.push_back(b);
      } else if (life.last < end) {
        events_[life.last].dead.push_back(b);
      }
    }
  }

  void walk(const PartRun& run, bool crossing_only) {
    if (listed_.empty()) list_instrs();
    const auto key = std::pair(run.part, once_a_step(run.part) ? stage_ : run.chunk);
    for (int32_t i : listed_[key]) {
      const auto events = events_.find(i);
      if (events == events_.end()) continue;
      for (int32_t b : events->second.born) {
        if (!crossing_only || crossing_.contains(b)) begin(b, run.micro_batch);
      }
      for (int32_t b : events->second.dead) {
        if (!crossing_only || crossing_.contains(b)) finish(b, run.micro_batch);
      }
    }
  }

  void list_instrs() {
    for (size_t i = 0; i < p_.instrs.size(); ++i) {
      const Instr& instr = p_.instrs[i];
      if (p_.stage_of(instr.chunk) != stage_) continue;
      const auto key = std::pair(instr.part, once_a_step(instr.part) ? stage_ : instr.chunk);
      listed_[key].push_back(static_cast<int32_t>(i));
    }
  }

  void begin(int32_t b, int64_t micro_batch) {
    const Buffer& x = buffer(b);
    const int64_t offset = x.offset_of(micro_batch);
    if (x.offset < 0 || offset % kArenaAlignment != 0 || offset + x.bytes > end_) {
      refuse("arena", "buffer {} at {} of {} bytes is not aligned inside the {} bytes for buffers",
             b, offset, x.bytes, end_);
    }
    const auto after = live_.lower_bound(offset);
    if (after != live_.end() && after->first < offset + x.bytes) {
      overlap(b, after->second);
    }
    if (after != live_.begin()) {
      const auto before = std::prev(after);
      if (before->first + buffer(before->second).bytes > offset) overlap(b, before->second);
    }
    live_[offset] = b;
  }

  [[noreturn]] static void overlap(int32_t a, int32_t b) {
    refuse("arena", "buffers {} and {} are live together and overlap", std::min(a, b),
           std::max(a, b));
  }

  void finish(int32_t b, int64_t micro_batch) { live_.erase(buffer(b).offset_of(micro_batch)); }

  const Program& p_;
  const std::vector<Lifetime>& lives_;
  const int32_t stage_;
  int64_t end_ = 0;                   // of the memory for buffers
  std::map<int32_t, Events> events_;  // by instruction
  std::map<std::pair<Part, int32_t>, std::vector<int32_t>> listed_;
  std::vector<int32_t> persistent_, until_update_;
  std::set<int32_t> crossing_;       // born in one part, dead in another
  std::map<int64_t, int32_t> live_;  // by offset: a buffer
  std::map<int32_t, int32_t> slots_;
};

}  // namespace

void check_order(const Program& p) {
  if (p.micro_batches() < 1) refuse("program", "{} micro-batches", p.micro_batches());
  if (p.micro_batches() == 1 && p.stages() == 1) return;
  std::vector<Part> reached(static_cast<size_t>(p.stages() * p.schedule.chunks), Part::kBegin);
  for (size_t i = 0; i < p.instrs.size(); ++i) {
    const Instr& instr = p.instrs[i];
    if (instr.chunk < 0 || static_cast<size_t>(instr.chunk) >= reached.size())
      refuse(describe_instr(p, i), "there is no chunk {}", instr.chunk);
    Part& part = reached[static_cast<size_t>(instr.chunk)];
    if (instr.part < part) {
      refuse(describe_instr(p, i), "it stands behind the {}", name_of(part));
    }
    part = instr.part;
  }
}

void check_pipeline(const Program& p) {
  check_chunks(p);
  check_passing(p);
  check_pairs(p);
  check_no_deadlock(p);
}

// Buffers on the host lie one after the other.
static void check_host(const Program& p) {
  std::vector<int64_t> end(static_cast<size_t>(p.stages()), 0);
  for (size_t b = 0; b < p.buffers.size(); ++b) {
    const Buffer& buffer = p.buffers[b];
    if (!buffer.host) continue;
    const auto stage = static_cast<size_t>(p.stage_of(buffer.chunk));
    if (!buffer.persistent || buffer.offset < end[stage] || buffer.offset % kArenaAlignment != 0 ||
        buffer.offset + buffer.bytes > p.memory[stage].host_bytes) {
      refuse("host", "buffer {} at {} of {} bytes does not lie in the {} bytes there", b,
             buffer.offset, buffer.bytes, p.memory[stage].host_bytes);
    }
    end[stage] = buffer.offset + buffer.bytes;
  }
}

void check_arena(const Program& p) {
  check_host(p);
  const auto lives = buffer_lifetimes(p);
  for (int32_t s = 0; s < p.stages(); ++s) ArenaCheck(p, lives, s).check();
}

}  // namespace cleave
