// Pointwise ops and reductions that read each other become chains of one kernel: groups of them
// grow over the program where that saves memory traffic.
#include <algorithm>
#include <array>
#include <cctype>
#include <map>
#include <numeric>
#include <set>
#include <string>
#include <utility>

#include "executor/fuser.h"
#include "graph/error.h"
#include "kernels/chain.h"
#include "kernels/ops.h"

namespace cleave {
namespace {

constexpr size_t kMostParts = 48, kMostTensors = 24, kMostAxes = 20;
// Readers of one tensor are joined when they stand so near, and that saves so much: what is between
// them may have to wait, and tensors live longer.
constexpr int kNear = 64;
constexpr double kShare = 1.0 / 16;

// An operand's or result's dimensions as axes: stretches of factors that every operand has as one
// dimension. -1: a dimension of size 1, which is no axis.
using Axes = std::vector<int>;

// How one instruction's operands lie along its axes.
struct Member {
  std::vector<DimFactors> axes;
  std::vector<Axes> in, out;
};

// The size of a dimension of these factors.
int64_t length_of(const Instr& instr, const DimFactors& dim) {
  int64_t size = 1;
  for (const int8_t f : dim) size *= numel(instr.letter_atoms[static_cast<size_t>(f)]);
  return size;
}

// Nothing when a dimension of one operand is a part of another's.
std::optional<Member> member_of(const Instr& instr) {
  Member m;
  const Signature& s = *instr.signature;
  std::vector<int> owner(s.factors().size(), -1);
  const auto take = [&](const OperandDims& dims, std::vector<Axes>& list) {
    list.emplace_back();
    for (const DimFactors& dim : dims) {
      if (length_of(instr, dim) == 1) {
        list.back().push_back(-1);
        continue;
      }
      auto at = std::find(m.axes.begin(), m.axes.end(), dim);
      if (at == m.axes.end()) {
        for (const int8_t f : dim) {
          if (owner[static_cast<size_t>(f)] >= 0) return false;
          owner[static_cast<size_t>(f)] = static_cast<int>(m.axes.size());
        }
        at = m.axes.insert(m.axes.end(), dim);
      }
      list.back().push_back(static_cast<int>(at - m.axes.begin()));
    }
    return true;
  };
  for (size_t i = 0; i < instr.in.size(); ++i) {
    if (!take(s.inputs()[i], m.in)) return {};
  }
  for (const OperandDims& dims : s.outputs()) {
    if (!take(dims, m.out)) return {};
  }
  return m;
}

// Dimensions of tensors that are one axis: a forest of pairs (tensor, dimension).
class Dimensions {
 public:
  using Dim = std::pair<TensorId, int>;
  Dim root(Dim d) {
    const auto at = parent_.find(d);
    if (at == parent_.end()) return d;
    return at->second = root(at->second);
  }
  void join(Dim a, Dim b) {
    a = root(a), b = root(b);
    if (a != b) parent_[a] = b;
  }

 private:
  std::map<Dim, Dim> parent_;
};

// A group as one instruction.
struct Joined {
  Instr instr;
  double bytes = 0;  // moved
};

class ChainFuser {
 public:
  explicit ChainFuser(Program& program)
      : p_(program), group_of_(program.instrs.size(), -1), visited_(program.instrs.size(), 0) {
    look();
  }

  int run(uint32_t bit) {
    std::vector<Instr> result;
    int made = 0;
    for (size_t begin = 0; begin < p_.instrs.size();) {
      size_t end = begin;
      const Instr& first = p_.instrs[begin];
      while (end < p_.instrs.size() && p_.instrs[end].part == first.part &&
             p_.instrs[end].chunk == first.chunk) {
        ++end;
      }
      // What the update does is the optimizer's, and so is what it keeps for the step's beginning.
      if (!once_a_step(first.part)) grow(begin, end);
      made += emit(begin, end, bit, result);
      begin = end;
    }
    p_.instrs = std::move(result);
    return made;
  }

 private:
  const Instr& instr(int i) const { return p_.instrs[static_cast<size_t>(i)]; }
  int maker(TensorId t) const { return makers_[static_cast<size_t>(t)]; }

  void look() {
    makers_.assign(p_.tensors.size(), -1);
    readers_.resize(p_.tensors.size());
    ends_.assign(p_.tensors.size(), false);
    for (size_t i = 0; i < p_.instrs.size(); ++i) {
      for (TensorId t : p_.instrs[i].out) makers_[static_cast<size_t>(t)] = static_cast<int>(i);
      for (TensorId t : p_.instrs[i].in) {
        readers_[static_cast<size_t>(t)].push_back(static_cast<int>(i));
      }
    }
    for (const ProgramOutput& o : p_.outputs) ends_[static_cast<size_t>(o.tensor)] = true;
    for (const ProgramSource& s : p_.sources) {
      if (s.final >= 0) ends_[static_cast<size_t>(s.final)] = true;
    }
  }

  // --- Which instructions ------------------------------------------------------------------------

  // Whether what it reduces is more than one number.
  static bool reduces(const Instr& i) {
    const Signature& s = *i.signature;
    for (size_t f = 0; f < s.factors().size(); ++f) {
      const bool gone = part_kind(*i.op) == PartKind::kRows ? s.factors()[f].whole
                                                            : s.reduced_in(static_cast<int>(f), 0);
      if (gone && numel(i.letter_atoms[f]) > 1) return true;
    }
    return false;
  }

  // How many results the op has by itself.
  static size_t results_of(const OpDef& op) {
    return 1 + static_cast<size_t>(std::count(op.element.begin(), op.element.end(), ';'));
  }

  bool can_join(const Instr& i) const {
    if (!is_unsplit(i) || part_kind(*i.op) == PartKind::kNone) return false;
    if (i.in.empty() && i.op != &ops::fill) return false;
    if (part_kind(*i.op) != PartKind::kElement && !reduces(i)) return false;
    // Another fusion has given it more to do.
    if (i.out.size() != results_of(*i.op)) return false;
    for (const auto* list : {&i.in, &i.out}) {
      for (TensorId t : *list) {
        const DType type = p_.tensor(t).dtype;
        const bool whole = list == &i.in && type == DType::kI32;
        if (!whole && (!is_float(type) || size_of(type) < 2)) return false;
      }
    }
    return member_of(i).has_value();
  }

  // A view that only repeats, exchanges, or adds and drops dimensions of size 1, which a chain does
  // by itself.
  static bool is_seen_through(const Instr& i) {
    if (!is_unsplit(i)) return false;
    if (i.op != &ops::expand && i.op != &ops::transpose && i.op != &ops::reshape) return false;
    const std::optional<Member> m = member_of(i);
    if (!m || i.op != &ops::reshape) return m.has_value();
    const auto long_axes = [](Axes axes) {
      std::erase(axes, -1);
      return axes;
    };
    return long_axes(m->in[0]) == long_axes(m->out[0]);
  }

  // The tensor behind such views, and the views, the last first.
  TensorId behind(TensorId t, std::vector<int>* views = nullptr) const {
    for (int m = maker(t); m >= 0 && is_seen_through(instr(m)); m = maker(t)) {
      if (views != nullptr) views->push_back(m);
      t = instr(m).in[0];
    }
    return t;
  }

  // --- Groups ------------------------------------------------------------------------------------

  int group(int i) const { return group_of_[static_cast<size_t>(i)]; }
  const std::vector<int>& members(int g) const { return groups_[static_cast<size_t>(g)]; }

  void grow(size_t begin, size_t end) {
    begin_ = static_cast<int>(begin);
    std::vector<int> found;
    for (size_t i = begin; i < end; ++i) {
      const Instr& instr = p_.instrs[i];
      if (!can_join(instr)) continue;
      const std::vector<int> alone = {static_cast<int>(i)};
      const std::optional<Joined> one = joined(alone);
      // Constants are no operands.
      if (!one && instr.op != &ops::fill) continue;
      group_of_[i] = static_cast<int>(groups_.size());
      groups_.push_back(alone);
      bytes_.push_back(one ? one->bytes : bytes(instr.out[0]));
      found.push_back(static_cast<int>(i));
    }
    // With what makes its operands, the largest first; then with what reads the same.
    for (const int i : found) {
      std::vector<TensorId> operands;
      for (TensorId t : instr(i).in) operands.push_back(behind(t));
      std::stable_sort(operands.begin(), operands.end(),
                       [&](TensorId a, TensorId b) { return bytes(a) > bytes(b); });
      for (TensorId t : operands) {
        const int m = maker(t);
        if (m >= begin_ && group(m) >= 0) merge(group(m), group(i), 0);
      }
    }
    for (const int i : found) {
      for (TensorId t : instr(i).in) {
        for (const int other : readers_[static_cast<size_t>(t)]) {
          const bool near = other > i && other < static_cast<int>(end) && other < i + kNear;
          if (near && group(other) >= 0) merge(group(i), group(other), kShare);
        }
      }
    }
  }

  // Makes one group of two when that saves at least this share of what they move.
  void merge(int a, int b, double share) {
    if (a == b || members(a).size() + members(b).size() > kMostParts) return;
    const std::array<size_t, 4> pair = {static_cast<size_t>(a), static_cast<size_t>(b),
                                        members(a).size(), members(b).size()};
    if (refused_.contains(pair)) return;
    std::vector<int> both;
    std::merge(members(a).begin(), members(a).end(), members(b).begin(), members(b).end(),
               std::back_inserter(both));
    const std::optional<Joined> one = joined(both);
    const double before = bytes_[static_cast<size_t>(a)] + bytes_[static_cast<size_t>(b)];
    if (!one || one->bytes >= (1 - share) * before || waits_for_itself(both)) {
      refused_.insert(pair);
      return;
    }
    for (const int i : both) group_of_[static_cast<size_t>(i)] = a;
    groups_[static_cast<size_t>(a)] = std::move(both);
    groups_[static_cast<size_t>(b)].clear();
    bytes_[static_cast<size_t>(a)] = one->bytes;
  }

  // Whether something outside lies between what these make and what they read. Only instructions of
  // their own part can.
  bool waits_for_itself(const std::vector<int>& both) {
    ++visit_;
    std::vector<int> open;
    const auto stamp = [&](int i) -> int& { return visited_[static_cast<size_t>(i)]; };
    const int own = -visit_;
    for (const int i : both) stamp(i) = own;
    // Opens what makes the operands of i; true when that is one of `both`.
    const auto look_at = [&](int i) {
      bool found = false;
      for (TensorId t : instr(i).in) {
        const int m = maker(behind(t));
        if (m < begin_) continue;
        found |= stamp(m) == own;
        if (stamp(m) == own || stamp(m) == visit_) continue;
        // All that a group reads is read before any of it runs.
        const std::vector<int> one = {m};
        for (const int other : group(m) >= 0 ? members(group(m)) : one) {
          stamp(other) = visit_;
          open.push_back(other);
        }
      }
      return found;
    };
    for (const int i : both) look_at(i);
    while (!open.empty()) {
      const int i = open.back();
      open.pop_back();
      if (look_at(i)) return true;
    }
    return false;
  }

  double bytes(TensorId t) const {
    const ProgramTensor& tensor = p_.tensor(t);
    return static_cast<double>(numel(tensor.geometry.shape) * size_of(tensor.dtype));
  }

  // Whether a tensor that a member makes is read by others too. A view that only members read is
  // theirs; `views`: those that a member sees through.
  bool leaves(TensorId t, const std::set<int>& own) const {
    if (ends_[static_cast<size_t>(t)]) return true;
    for (const int r : readers_[static_cast<size_t>(t)]) {
      if (own.contains(r)) continue;
      if (!is_seen_through(instr(r)) || leaves(instr(r).out[0], own)) return true;
    }
    return false;
  }

  // The group as one instruction; nothing when one kernel does not do it.
  std::optional<Joined> joined(const std::vector<int>& group) const {
    const std::set<int> own(group.begin(), group.end());
    Dimensions dims;
    std::vector<Member> all;
    const auto tie = [&](const Instr& i, const Member& m) {
      std::vector<Dimensions::Dim> first(m.axes.size(), {-1, -1});
      const auto list = [&](const std::vector<TensorId>& tensors, const std::vector<Axes>& axes) {
        for (size_t k = 0; k < tensors.size(); ++k) {
          for (size_t d = 0; d < axes[k].size(); ++d) {
            if (axes[k][d] < 0) continue;
            auto& known = first[static_cast<size_t>(axes[k][d])];
            const Dimensions::Dim here = {tensors[k], static_cast<int>(d)};
            if (known.first < 0) known = here;
            dims.join(here, known);
          }
        }
      };
      list(i.in, m.in);
      list(i.out, m.out);
    };
    // Views that are seen through because a member makes what is behind them.
    const auto inside = [&](TensorId t) {
      const int m = maker(behind(t));
      return m >= 0 && own.contains(m);
    };
    for (const int i : group) {
      all.push_back(*member_of(instr(i)));
      tie(instr(i), all.back());
      for (TensorId t : instr(i).in) {
        std::vector<int> views;
        behind(t, &views);
        if (!inside(t)) continue;
        for (const int v : views) tie(instr(v), *member_of(instr(v)));
      }
    }
    Writer w{*this, dims, {}, {}, {}};
    for (size_t k = 0; k < group.size(); ++k) {
      if (!w.name_axes(instr(group[k]), all[k])) return {};
    }
    // Parts, and what they read.
    std::map<TensorId, ChainRef> made;
    std::vector<TensorId> operands, results;
    Chain chain;
    for (size_t k = 0; k < group.size(); ++k) {
      const Instr& i = instr(group[k]);
      ChainPart part;
      part.op = i.op;
      part.attrs = i.attrs;
      for (TensorId t : i.in) {
        std::vector<int> views;
        const TensorId base = behind(t, &views);
        if (inside(t)) {
          if (!views.empty() && !made.contains(t)) {
            ChainPart copy;
            copy.op = &ops::copy;
            copy.signature = &Signature::get(w.text(base) + "->" + w.text(t));
            copy.in = {made.at(base)};
            chain.parts.push_back(std::move(copy));
            made[t] = {static_cast<int32_t>(chain.parts.size() - 1), 0};
          }
          part.in.push_back(made.at(t));
          continue;
        }
        auto at = std::find(operands.begin(), operands.end(), t);
        if (at == operands.end()) at = operands.insert(operands.end(), t);
        part.in.push_back({-1, static_cast<int32_t>(at - operands.begin())});
      }
      part.signature = &w.signature(i, all[k]);
      chain.parts.push_back(std::move(part));
      for (size_t o = 0; o < i.out.size(); ++o) {
        made[i.out[o]] = {static_cast<int32_t>(chain.parts.size() - 1), static_cast<int32_t>(o)};
      }
    }
    for (const int i : group) {
      for (TensorId t : instr(i).out) {
        if (!leaves(t, own)) continue;
        results.push_back(t);
        chain.results.push_back(made.at(t));
      }
    }
    if (results.empty() || operands.empty() || operands.size() + results.size() > kMostTensors) {
      return {};
    }
    return w.write(chain, group, operands, results);
  }

  // Letters for axes, and the signatures that they make.
  struct Writer {
    const ChainFuser& fuser;
    Dimensions& dims;
    std::map<Dimensions::Dim, char> letters;
    std::set<char> reduced;
    std::string indexed;

    // False when the axes of one instruction are not different axes of the group, or too many.
    bool name_axes(const Instr& i, const Member& m) {
      std::map<int, Dimensions::Dim> axes;
      const auto list = [&](const std::vector<TensorId>& tensors, const std::vector<Axes>& all) {
        for (size_t k = 0; k < tensors.size(); ++k) {
          for (size_t d = 0; d < all[k].size(); ++d) {
            if (all[k][d] >= 0) axes[all[k][d]] = dims.root({tensors[k], static_cast<int>(d)});
          }
        }
      };
      list(i.in, m.in);
      list(i.out, m.out);
      std::set<Dimensions::Dim> different;
      for (const auto& [axis, dim] : axes) {
        different.insert(dim);
        letters.emplace(dim, static_cast<char>('a' + letters.size()));
        const char letter = letters.at(dim);
        for (const int8_t f : m.axes[static_cast<size_t>(axis)]) {
          const Factor& factor = i.signature->factors()[static_cast<size_t>(f)];
          const bool gone = factor.whole || i.signature->reduced_in(f, 0);
          if (gone && part_kind(*i.op) != PartKind::kElement) reduced.insert(letter);
          if (factor.indexed && indexed.find(letter) == std::string::npos) indexed += letter;
        }
      }
      return different.size() == axes.size() && letters.size() <= kMostAxes;
    }

    // The tensor's dimensions in small letters.
    std::string text(TensorId t) const {
      std::string result;
      for (size_t d = 0; d < fuser.p_.tensor(t).geometry.shape.size(); ++d) {
        const auto at = letters.find(dims.root({t, static_cast<int>(d)}));
        result += at == letters.end() ? '1' : at->second;
      }
      return result;
    }

    // A member's factors in these letters: capital where its own are.
    const Signature& signature(const Instr& i, const Member& m) const {
      const Signature& s = *i.signature;
      SignatureParts factors;
      std::map<int, std::string> written;
      const auto operand = [&](TensorId t, const Axes& axes) {
        std::string result;
        for (size_t d = 0; d < axes.size(); ++d) {
          if (axes[d] < 0) {
            result += '1';
            continue;
          }
          const char letter = letters.at(dims.root({t, static_cast<int>(d)}));
          bool whole = false, is_indexed = false;
          Reduction reduction = Reduction::kSum;
          for (const int8_t f : m.axes[static_cast<size_t>(axes[d])]) {
            const Factor& factor = s.factors()[static_cast<size_t>(f)];
            whole |= factor.whole;
            is_indexed |= factor.indexed;
            if (factor.reduction != Reduction::kSum) reduction = factor.reduction;
          }
          const char own =
              whole ? static_cast<char>(std::toupper(static_cast<unsigned char>(letter))) : letter;
          result += own;
          if (!written.emplace(axes[d], "").second) continue;
          const auto note = [&](std::string_view kind) {
            factors.notes += fmt::format("{}{}:{}", factors.notes.empty() ? "" : ",", own, kind);
          };
          if (is_indexed) note("indexed");
          if (reduction != Reduction::kSum) note(name_of(reduction));
        }
        return result;
      };
      for (size_t k = 0; k < i.in.size(); ++k) factors.inputs.push_back(operand(i.in[k], m.in[k]));
      for (size_t o = 0; o < i.out.size(); ++o)
        factors.outputs.push_back(operand(i.out[o], m.out[o]));
      return Signature::get(factors);
    }

    std::optional<Joined> write(const Chain& chain, const std::vector<int>& group,
                                const std::vector<TensorId>& operands,
                                const std::vector<TensorId>& results) const {
      const auto shown = [&](TensorId t) {
        std::string result = text(t);
        for (char& c : result) {
          if (reduced.contains(c))
            c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
        }
        return result;
      };
      SignatureParts factors;
      for (TensorId t : operands) factors.inputs.push_back(shown(t));
      for (TensorId t : results) factors.outputs.push_back(shown(t));
      for (const char c : indexed) {
        const bool whole = reduced.contains(c);
        factors.notes +=
            fmt::format("{}{}:indexed", factors.notes.empty() ? "" : ",",
                        whole ? static_cast<char>(std::toupper(static_cast<unsigned char>(c))) : c);
      }
      Joined one;
      Instr& i = one.instr;
      i = fuser.instr(group.back());
      i.op = &ops::chain;
      i.attrs = attrs_of(chain);
      i.in = operands;
      i.out = results;
      i.signature = &Signature::get(factors);
      i.letter_atoms.clear();
      std::vector<int64_t> extents;
      for (const Factor& f : i.signature->factors()) {
        i.letter_atoms.push_back(atoms_of(f.letter, operands, results));
        if (i.letter_atoms.back().empty()) return {};
        extents.push_back(numel(i.letter_atoms.back()));
      }
      if (i.signature->factors().size() != letters.size()) return {};
      if (!plan_of(chain, *i.signature, extents)) return {};
      for (const auto* list : {&operands, &results}) {
        for (TensorId t : *list) one.bytes += fuser.bytes(t);
      }
      return one;
    }

    // The atoms of the axis, off a tensor that has it.
    std::vector<int64_t> atoms_of(char letter, const std::vector<TensorId>& operands,
                                  const std::vector<TensorId>& results) const {
      const auto small = static_cast<char>(std::tolower(static_cast<unsigned char>(letter)));
      for (const auto* list : {&operands, &results}) {
        for (TensorId t : *list) {
          const size_t d = text(t).find(small);
          if (d == std::string::npos) continue;
          const Layout& layout = fuser.p_.tensor(t).layout;
          std::vector<int64_t> atoms;
          for (size_t a = 0; a < layout.atoms.size(); ++a) {
            if (layout.atom_dim[a] == static_cast<int>(d)) atoms.push_back(layout.atoms[a]);
          }
          return atoms;
        }
      }
      return {};
    }
  };

  // --- The program -------------------------------------------------------------------------------

  // The instructions of one part, in the order that they had where that is possible.
  int emit(size_t begin, size_t end, uint32_t bit, std::vector<Instr>& result) {
    std::vector<Instr> list;
    int made = 0;
    for (size_t i = begin; i < end; ++i) {
      const int g = group(static_cast<int>(i));
      if (g < 0 || members(g).size() < 2) {
        list.push_back(p_.instrs[i]);
      } else if (members(g).back() == static_cast<int>(i)) {
        list.push_back(joined(members(g))->instr);
        for (const int m : members(g)) list.back().fused |= instr(m).fused;
        list.back().fused |= bit;
        ++made;
      }
    }
    // Views that nobody looks at any more.
    std::set<TensorId> read;
    for (const Instr& i : list) read.insert(i.in.begin(), i.in.end());
    for (size_t k = list.size(); made > 0 && k-- > 0;) {
      if (!is_seen_through(list[k]) || read_later(list[k].out[0], end, read)) continue;
      list.erase(list.begin() + static_cast<std::ptrdiff_t>(k));
      read.clear();
      for (const Instr& i : list) read.insert(i.in.begin(), i.in.end());
    }
    std::set<TensorId> missing;
    for (const Instr& i : list) missing.insert(i.out.begin(), i.out.end());
    std::vector<Instr> waiting;
    const auto ready = [&](const Instr& i) {
      return std::none_of(i.in.begin(), i.in.end(),
                          [&](TensorId t) { return missing.contains(t); });
    };
    const auto add = [&](Instr i) {
      for (TensorId t : i.out) missing.erase(t);
      result.push_back(std::move(i));
    };
    for (Instr& i : list) {
      if (!ready(i)) {
        waiting.push_back(std::move(i));
        continue;
      }
      add(std::move(i));
      for (size_t k = 0; k < waiting.size();) {
        if (!ready(waiting[k])) {
          ++k;
          continue;
        }
        add(std::move(waiting[k]));
        waiting.erase(waiting.begin() + static_cast<std::ptrdiff_t>(k));
        k = 0;
      }
    }
    CLEAVE_ASSERT(waiting.empty(), "instructions wait for each other: {} at {}",
                  waiting[0].op == nullptr ? "?" : waiting[0].op->name, waiting[0].where);
    return made;
  }

  bool read_later(TensorId t, size_t end, const std::set<TensorId>& read) const {
    if (ends_[static_cast<size_t>(t)] || read.contains(t)) return true;
    const std::vector<int>& readers = readers_[static_cast<size_t>(t)];
    return std::any_of(readers.begin(), readers.end(),
                       [&](int r) { return r >= static_cast<int>(end); });
  }

  Program& p_;
  std::vector<int> makers_;                  // by tensor; -1: a source
  std::vector<std::vector<int>> readers_;    // by tensor
  std::vector<bool> ends_;                   // by tensor: it is there after the step
  std::vector<int> group_of_;                // by instruction; -1: in none
  std::vector<std::vector<int>> groups_;     // their members, in order
  std::vector<double> bytes_;                // by group: what it moves
  std::set<std::array<size_t, 4>> refused_;  // pairs of groups, and their sizes then
  int begin_ = 0;                            // of the part at hand
  std::vector<int> visited_;                 // by instruction
  int visit_ = 0;
};

}  // namespace

int fuse_chains(Fuser& fuser, uint32_t bit) { return ChainFuser(fuser.program()).run(bit); }

}  // namespace cleave
