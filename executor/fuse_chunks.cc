// The head of a language model in chunks of its rows: of all scores, those of one chunk at a time
// are in memory. For one chunk after the other there is all that score_head.h writes for all rows:
// its scores, their losses, dscores in the place of the scores, dx where it belongs, and dw added
// to that of the chunks before.
#include <algorithm>
#include <iterator>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <utility>

#include "executor/fuser.h"
#include "executor/score_head.h"
#include "graph/error.h"
#include "kernels/ops.h"

namespace cleave {
namespace {

using Atoms = std::vector<int64_t>;
using Dims = std::vector<Atoms>;  // by dimension

// The same with one dimension of rows, which keeps the first one's letter.
const Signature& with_one_row(const Signature& s, std::span<const DimFactors> rows) {
  const auto text = [&](OperandDims dims) {
    if (has_rows(dims, rows)) dims.erase(dims.begin() + 1, dims.begin() + std::ssize(rows));
    return s.operand_text(dims);
  };
  SignatureParts parts = s.parts();
  for (size_t k = 0; k < s.inputs().size(); ++k) parts.inputs[k] = text(s.inputs()[k]);
  for (size_t k = 0; k < s.outputs().size(); ++k) parts.outputs[k] = text(s.outputs()[k]);
  return Signature::get(parts);
}

class Chunker {
 public:
  Chunker(Fuser& fuser, uint32_t bit, const HeadFinder& found, const ScoreHead& head)
      : p_(fuser.program()),
        wishes_(fuser.wishes()),
        bit_(bit),
        found_(found),
        head_(head),
        gone_(head.instrs) {
    gone_.insert(head.along.begin(), head.along.end());
    gone_.insert(head.across.begin(), head.across.end());
  }

  void run() {
    for (const size_t i : head_.before) {
      Instr x = instr(i);
      for (TensorId& t : x.in) t = found_.first(t);
      x.part = product().part;
      made_.push_back(std::move(x));
    }
    const Instr &loss = instr(head_.loss), &back = instr(head_.backward);
    std::vector<Sum> sums;
    for (const size_t i : head_.across) sums.push_back(sum_of(i));
    std::vector<std::vector<TensorId>> losses(loss.out.size()), along(head_.along.size());
    for (int64_t c = 0; c < head_.chunks; ++c) {
      const TensorId x = slice(product().in[0], c, true), targets = slice(loss.in[1], c, false),
                     dlosses = slice(back.in[3], c, false);
      const TensorId scores = add_chunk(product().out[0], true),
                     dscores = add_chunk(back.out[0], true);
      std::vector<TensorId> found;
      for (size_t o = 0; o < loss.out.size(); ++o) {
        found.push_back(add_chunk(loss.out[o], false));
        losses[o].push_back(found[o]);
      }
      add_part(product(), rows_of_product(product()), {x, found_.first(product().in[1])}, {scores});
      made_.back().fused |= bit_;
      add_part(loss, row_factors(loss.signature->inputs()[0]), {scores, targets}, found);
      add_part(back, row_factors(back.signature->inputs()[0]), {scores, targets, found[1], dlosses},
               {dscores});
      for (size_t k = 0; k < head_.along.size(); ++k) {
        const Instr& of = instr(head_.along[k]);
        along[k].push_back(add_chunk(of.out[0], true));
        std::vector<TensorId> in;
        for (TensorId t : of.in)
          in.push_back(head_.dscores.contains(t) ? dscores : found_.first(t));
        add_part(of, rows_of_product(of), std::move(in), {along[k].back()});
      }
      for (Sum& sum : sums) add_to(sum, dscores, c);
    }
    for (size_t o = 0; o < losses.size(); ++o) join(loss.out[o], losses[o], false);
    for (size_t k = 0; k < along.size(); ++k) join(instr(head_.along[k]).out[0], along[k], true);
    put_in();
  }

 private:
  const Instr& instr(size_t i) const { return p_.instrs[i]; }
  const Instr& product() const { return instr(head_.product); }
  int64_t chunk_rows() const { return head_.rows / head_.chunks; }
  static std::span<const DimFactors> rows_of_product(const Instr& x) {
    return row_factors(x.signature->outputs()[0]);
  }

  // --- Tensors, and their rows -------------------------------------------------------------------

  // A tensor as `like` is, with other dimensions.
  TensorId add_tensor(TensorId like, const Dims& dims) {
    ProgramTensor t = p_.tensor(like);
    t.layout.set_dims(dims);
    const Shape shape = t.layout.local_shape(p_.mesh);
    t.geometry = {0, shape, contiguous_strides(shape)};
    p_.tensors.push_back(std::move(t));
    return static_cast<TensorId>(p_.tensors.size() - 1);
  }

  // Names and atoms of a tensor's dimensions. All but the last are rows, or all: "AB" and "k", or
  // "AB". 'R' is all rows as one dimension, 'S' those of a chunk.
  struct Named {
    std::string rows, rest;
    std::map<char, Atoms> atoms;

    Dims with_rows(char letter) const {
      Dims dims = {atoms.at(letter)};
      if (!rest.empty()) dims.push_back(atoms.at('k'));
      return dims;
    }
  };
  Named named(TensorId t, bool has_rest) const {
    constexpr std::string_view kRows = "ABCDEFGHIJLMNOPQ";
    const Dims dims = p_.tensor(t).layout.dims();
    const size_t rows = dims.size() - (has_rest ? 1 : 0);
    CLEAVE_ASSERT(rows > 0 && rows <= kRows.size(), "rows of {} dimensions", rows);
    Named n{.rows = std::string(kRows.substr(0, rows)), .rest = has_rest ? "k" : "", .atoms = {}};
    for (size_t d = 0; d < dims.size(); ++d) n.atoms[d < rows ? kRows[d] : 'k'] = dims[d];
    n.atoms['R'] = rows == 1 ? dims[0] : Atoms{head_.rows};
    n.atoms['S'] = {chunk_rows()};
    return n;
  }

  // Adds an instruction that only names or places elements.
  void add_move(const OpDef& op, const std::string& factors, const Named& names,
                std::vector<TensorId> in, TensorId out, Attrs attrs) {
    Instr move;
    move.op = &op;
    move.signature = &Signature::get(factors);
    move.attrs = std::move(attrs);
    for (const Factor& f : move.signature->factors())
      move.letter_atoms.push_back(names.atoms.at(f.letter));
    move.splits.resize(p_.mesh.axes.size());
    move.in = std::move(in);
    move.out = {out};
    add(std::move(move), product());
  }

  void add(Instr x, const Instr& like) {
    x.node = like.node;
    x.where = like.where;
    x.part = product().part;
    x.chunk = product().chunk;
    made_.push_back(std::move(x));
  }

  // The rows of one chunk of the tensor: what it will be, and as a part of what there is.
  TensorId add_chunk(TensorId t, bool has_rest) {
    return add_tensor(t, named(t, has_rest).with_rows('S'));
  }
  TensorId slice(TensorId t, int64_t chunk, bool has_rest) {
    t = found_.first(t);
    const auto known = parts_.find({t, chunk});
    if (known != parts_.end()) return known->second;
    const Named n = named(t, has_rest);
    TensorId flat = t;
    if (n.rows.size() > 1) {
      const auto [at, is_new] = flat_.try_emplace(t, -1);
      if (is_new) {
        at->second = add_tensor(t, n.with_rows('R'));
        add_move(ops::reshape, n.rows + n.rest + "->R" + n.rest, n, {t}, at->second, {});
      }
      flat = at->second;
    }
    const TensorId part = add_tensor(t, n.with_rows('S'));
    const Attrs attrs = {{"start", chunk * chunk_rows()},
                         {"stop", (chunk + 1) * chunk_rows()},
                         {"step", int64_t{1}}};
    add_move(ops::slice, "R" + n.rest + "->S" + n.rest, n, {flat}, part, attrs);
    return parts_[{t, chunk}] = part;
  }

  // The tensor is made of its chunks, which lie in it.
  void join(TensorId t, const std::vector<TensorId>& parts, bool has_rest) {
    const Named n = named(t, has_rest);
    const TensorId flat = n.rows.size() == 1 ? t : add_tensor(t, n.with_rows('R'));
    std::string factors;
    for (size_t c = 0; c < parts.size(); ++c) factors += (c == 0 ? "S" : ",S") + n.rest;
    add_move(ops::concat, factors + "->R" + n.rest, n, parts, flat, {{"joins", int64_t{1}}});
    if (flat == t) return;
    add_move(ops::reshape, "R" + n.rest + "->" + n.rows + n.rest, n, {flat}, t, {});
  }

  // --- Instructions of a chunk -------------------------------------------------------------------

  // The instruction, of these factors of rows, for the rows of one chunk.
  Instr chunk_of(const Instr& x, std::span<const DimFactors> rows, std::vector<TensorId> in,
                 std::vector<TensorId> out) const {
    Instr part = x;
    part.signature = &with_one_row(*x.signature, rows);
    part.letter_atoms.clear();
    for (const Factor& f : part.signature->factors())
      part.letter_atoms.push_back(
          x.letter_atoms[static_cast<size_t>(x.signature->factor(f.letter))]);
    const char row = x.signature->factors()[static_cast<size_t>(rows[0][0])].letter;
    part.letter_atoms[static_cast<size_t>(part.signature->factor(row))] = {chunk_rows()};
    part.in = std::move(in);
    part.out = std::move(out);
    return part;
  }

  void add_part(const Instr& x, std::span<const DimFactors> rows, std::vector<TensorId> in,
                std::vector<TensorId> out) {
    add(chunk_of(x, rows, std::move(in), std::move(out)), x);
  }

  // A product of dscores across the rows: the sum of what the chunks make.
  struct Sum {
    size_t instr = 0;
    TensorId result = -1;  // of the last chunk
    TensorId so_far = -1;  // -1: nothing yet
  };

  // What the product is only added to is what the sum begins with, when it is there: the gradient
  // of earlier micro-batches.
  Sum sum_of(size_t i) {
    const TensorId t = instr(i).out[0];
    Sum sum{i, t, -1};
    if (found_.ends(t) || found_.readers(t).size() != 1) return sum;
    const size_t r = found_.readers(t)[0];
    const Instr& add = instr(r);
    if (!is_plain(add) || (add.op != &ops::add && add.op != &ops::add_n) || add.in.size() != 2)
      return sum;
    const Signature& s = *add.signature;
    const TensorId other = add.in[add.in[0] == t ? 1 : 0];
    if (s.inputs()[0] != s.outputs()[0] || s.inputs()[1] != s.outputs()[0] || other == t ||
        p_.tensor(other).dtype != p_.tensor(t).dtype || found_.readers(other).size() != 1 ||
        found_.ends(other) || !found_.is_there(head_, other)) {
      return sum;
    }
    gone_.insert(r);
    return {i, add.out[0], other};
  }

  void add_to(Sum& sum, TensorId dscores, int64_t c) {
    const Instr& of = instr(sum.instr);
    const size_t own = head_.dscores.contains(of.in[0]) ? 0 : 1;
    std::vector<TensorId> in = {dscores, dscores};
    in[1 - own] = slice(of.in[1 - own], c, true);
    const TensorId out = c + 1 == head_.chunks
                             ? sum.result
                             : add_tensor(of.out[0], p_.tensor(of.out[0]).layout.dims());
    Instr part = chunk_of(of, row_factors(of.signature->inputs()[own]), std::move(in), {out});
    if (sum.so_far >= 0) {
      add_operand(part, sum.so_far, part.signature->output_text(0), "residual");
      wishes_.push_back({.tensor = out, .target = sum.so_far, .in_place = true});
    }
    add(std::move(part), of);
    sum.so_far = out;
  }

  // The chunks take the head's place. What was made again is read where it was made first.
  void put_in() {
    std::set<TensorId> again, fed;
    for (const size_t i : head_.instrs) again.insert(instr(i).out.begin(), instr(i).out.end());
    // What may have been for that alone which goes, and what the chunks may make for nobody.
    for (const size_t i : gone_) fed.insert(instr(i).in.begin(), instr(i).in.end());
    for (const Instr& x : made_) fed.insert(x.out.begin(), x.out.end());
    std::vector<Instr> all;
    for (size_t i = 0; i < p_.instrs.size(); ++i) {
      if (i == head_.product) all.insert(all.end(), made_.begin(), made_.end());
      if (head_.before.contains(i) || gone_.contains(i)) continue;
      all.push_back(p_.instrs[i]);
      for (TensorId& t : all.back().in) {
        if (again.contains(t)) t = found_.first(t);
      }
    }
    p_.instrs = read_ones(std::move(all), std::move(fed));
  }

  // Without those that make nothing but of `fed`, and only what nobody reads.
  std::vector<Instr> read_ones(std::vector<Instr> all, std::set<TensorId> fed) const {
    std::set<TensorId> read = found_.ends();
    const auto any_in = [](const std::vector<TensorId>& list, const std::set<TensorId>& set) {
      return std::any_of(list.begin(), list.end(), [&](TensorId t) { return set.contains(t); });
    };
    std::vector<Instr> left;
    for (size_t i = all.size(); i-- > 0;) {
      Instr& x = all[i];
      const bool idle = is_plain(x) && any_in(x.out, fed) && !any_in(x.out, read);
      (idle ? fed : read).insert(x.in.begin(), x.in.end());
      if (!idle) left.push_back(std::move(x));
    }
    std::reverse(left.begin(), left.end());
    return left;
  }

  Program& p_;
  std::vector<SharingWish>& wishes_;
  const uint32_t bit_;
  const HeadFinder& found_;
  const ScoreHead& head_;

  std::vector<Instr> made_;
  std::map<TensorId, TensorId> flat_;                       // by tensor: rows as one dimension
  std::map<std::pair<TensorId, int64_t>, TensorId> parts_;  // by tensor and chunk
  std::set<size_t> gone_;                                   // instructions
};

}  // namespace

int fuse_chunks(Fuser& fuser, uint32_t bit) {
  Program& program = fuser.program();
  HeadFinder finder(program);
  int made = 0;
  while (const auto head = finder.find(fuser.options().logits_bytes)) {
    Chunker(fuser, bit, finder, *head).run();
    made += static_cast<int>(head->chunks);
  }
  // Of a head that is left whole, too.
  for (const Instr& x : program.instrs) {
    if (x.op != &ops::cross_entropy_backward) continue;
    fuser.wishes().push_back({.tensor = x.out[0], .target = x.in[0], .in_place = true});
  }
  return made;
}

}  // namespace cleave
