#include "executor/program_flow.h"

#include <map>
#include <utility>

#include "executor/typing.h"

namespace cleave {
namespace {

size_t at(int32_t index) { return static_cast<size_t>(index); }

class Flow {
 public:
  explicit Flow(const Program& program) : p_(program), n_(program.instrs.size()) {}

  ProgramFlow run() {
    find_parts();
    find_tensors();
    find_overwriting();
    find_lazy();
    find_ahead();
    find_early();
    return std::move(f_);
  }

 private:
  const Instr& instr(int32_t i) const { return p_.instrs[at(i)]; }
  TensorId root(TensorId t) const { return f_.root[at(t)]; }
  bool update(int32_t i) const { return f_.in_update(i); }

  void find_parts() {
    std::map<std::pair<Part, int32_t>, int32_t> known;
    for (size_t i = 0; i < n_; ++i) {
      const Instr& in = p_.instrs[i];
      if (is_view(p_, in)) {
        f_.part.push_back(-1);
        continue;
      }
      const int32_t chunk = once_a_step(in.part) ? p_.stage_of(in.chunk) : in.chunk;
      const auto [entry, is_new] =
          known.emplace(std::pair(in.part, chunk), static_cast<int32_t>(f_.parts.size()));
      if (is_new) f_.parts.push_back({in.part, chunk, {}});
      f_.part.push_back(entry->second);
      f_.parts[at(entry->second)].instrs.push_back(static_cast<int32_t>(i));
    }
  }

  void find_tensors() {
    f_.producer.assign(p_.tensors.size(), -1);
    f_.readers.resize(p_.tensors.size());
    for (size_t t = 0; t < p_.tensors.size(); ++t) f_.root.push_back(static_cast<TensorId>(t));
    for (size_t i = 0; i < n_; ++i) {
      const Instr& in = p_.instrs[i];
      if (f_.part[i] < 0) {
        for (const TensorId t : in.out) f_.root[at(t)] = root(in.in[0]);
        continue;
      }
      for (const TensorId t : in.in) {
        std::vector<int32_t>& readers = f_.readers[at(root(t))];
        if (readers.empty() || readers.back() != static_cast<int32_t>(i))
          readers.push_back(static_cast<int32_t>(i));
      }
      for (const TensorId t : in.out) f_.producer[at(t)] = static_cast<int32_t>(i);
    }
  }

  void find_overwriting() {
    f_.overwrites.assign(n_, false);
    std::vector<bool> touched(p_.buffers.size(), false), overwritten(p_.buffers.size(), false);
    for (const ProgramSource& s : p_.sources) touched[at(p_.tensor(s.tensor).buffer)] = true;
    for (size_t i = 0; i < n_; ++i) {
      for (const TensorId t : p_.instrs[i].out) {
        const auto b = at(p_.tensor(t).buffer);
        if (f_.part[i] >= 0 && touched[b]) f_.overwrites[i] = overwritten[b] = true;
      }
      for (const TensorId t : p_.instrs[i].out) touched[at(p_.tensor(t).buffer)] = true;
      for (const TensorId t : p_.instrs[i].in) touched[at(p_.tensor(t).buffer)] = true;
    }
    f_.touchers.resize(p_.buffers.size());
    for (size_t i = 0; i < n_; ++i) {
      if (f_.part[i] < 0) continue;
      for (const auto* tensors : {&p_.instrs[i].in, &p_.instrs[i].out}) {
        for (const TensorId t : *tensors) {
          const auto b = at(p_.tensor(t).buffer);
          if (overwritten[b] &&
              (f_.touchers[b].empty() || f_.touchers[b].back() != static_cast<int32_t>(i)))
            f_.touchers[b].push_back(static_cast<int32_t>(i));
        }
      }
    }
  }

  // Nothing that is not put off itself may overwrite what it touches, or have it touched after.
  bool may_wait(int32_t i) const {
    for (const auto* tensors : {&instr(i).in, &instr(i).out}) {
      for (const TensorId t : *tensors) {
        for (const int32_t other : f_.touchers[at(p_.tensor(t).buffer)]) {
          if (other > i && f_.part[at(other)] == f_.part[at(i)] && !f_.lazy[at(other)])
            return false;
        }
      }
    }
    return true;
  }

  void find_lazy() {
    std::vector<bool> held(n_, false);  // memory written in place keeps them from waiting
    for (bool found = true; found;) {
      find_lazy_but(held);
      found = false;
      for (int32_t i = 0; i < static_cast<int32_t>(n_); ++i) {
        if (!f_.lazy[at(i)] || may_wait(i)) continue;
        found = held[at(i)] = true;
      }
    }
  }

  void find_lazy_but(const std::vector<bool>& held) {
    std::vector<bool> needed(n_, true);
    for (auto i = static_cast<int32_t>(n_); i-- > 0;) {
      if (f_.part[at(i)] < 0 || update(i) || held[at(i)]) continue;
      // Others wait for what is sent; and what only computes on the way from one collective to
      // another is not put off, as the second one would be with it.
      const bool computes = !is_collective(instr(i).kind);
      bool of_others = instr(i).kind == InstrKind::kSend || instr(i).kind == InstrKind::kReceive;
      for (const TensorId t : instr(i).out) {
        for (const int32_t r : f_.readers[at(t)]) {
          of_others |= f_.part[at(r)] == f_.part[at(i)]
                           ? needed[at(r)] || (computes && is_collective(instr(r).kind))
                           : !update(r);
        }
      }
      needed[at(i)] = of_others;
    }
    f_.lazy.assign(n_, false);
    for (int32_t i = 0; i < static_cast<int32_t>(n_); ++i) {
      if (f_.part[at(i)] < 0 || update(i) || needed[at(i)]) continue;
      bool waits = is_collective(instr(i).kind);
      for (const TensorId t : instr(i).in) {
        const int32_t maker = f_.producer[at(root(t))];
        waits |= maker >= 0 && f_.part[at(maker)] == f_.part[at(i)] && f_.lazy[at(maker)];
      }
      f_.lazy[at(i)] = waits;
    }
  }

  void find_ahead() {
    f_.ahead.assign(n_, false);
    std::vector<bool> of_data(p_.tensors.size(), false);
    for (const ProgramSource& s : p_.sources) of_data[at(s.tensor)] = s.kind == SourceKind::kData;
    for (int32_t i = 0; i < static_cast<int32_t>(n_); ++i) {
      if (f_.part[at(i)] < 0) continue;
      bool outside = true, data = false;
      for (const TensorId t : instr(i).in) {
        const int32_t maker = f_.producer[at(root(t))];
        outside &= maker < 0 || f_.part[at(maker)] != f_.part[at(i)] || f_.ahead[at(maker)];
        data |= of_data[at(root(t))];
      }
      for (const TensorId t : instr(i).out) of_data[at(t)] = data;
      const InstrKind kind = instr(i).kind;
      const bool moves =
          is_collective(kind) || kind == InstrKind::kSlice || kind == InstrKind::kMask;
      f_.ahead[at(i)] = outside && (moves || (kind == InstrKind::kCompute && !data)) &&
                        !update(i) && !f_.overwrites[at(i)] && !f_.lazy[at(i)];
    }
    // Of what computes, only what a collective ahead needs.
    for (auto i = static_cast<int32_t>(n_); i-- > 0;) {
      if (!f_.ahead[at(i)] || is_collective(instr(i).kind)) continue;
      bool needed = false;
      for (const TensorId t : instr(i).out) {
        for (const int32_t r : f_.readers[at(t)])
          needed |= f_.ahead[at(r)] && f_.part[at(r)] == f_.part[at(i)];
      }
      f_.ahead[at(i)] = needed;
    }
  }

  void find_early() {
    f_.early.assign(n_, false);
    for (const ProgramPart& part : f_.parts) {
      if (part.part != Part::kUpdate) continue;
      for (const int32_t i : part.instrs) {
        const InstrKind kind = instr(i).kind;
        if (kind == InstrKind::kCompute || kind == InstrKind::kCopy) break;
        f_.early[at(i)] = kind != InstrKind::kSend && kind != InstrKind::kReceive;
      }
    }
  }

  const Program& p_;
  size_t n_;
  ProgramFlow f_;
};

}  // namespace

int32_t ProgramFlow::part_of(Part of, int32_t chunk) const {
  for (size_t i = 0; i < parts.size(); ++i) {
    if (parts[i].part == of && parts[i].chunk == chunk) return static_cast<int32_t>(i);
  }
  return -1;
}

ProgramFlow program_flow(const Program& program) { return Flow(program).run(); }

}  // namespace cleave
