// The head of a language model in chunks of its rows: of all scores, those of one chunk at a time
// are in memory.
//
//   scores = product(x, w); losses, lses = cross_entropy(scores, targets)
//   dscores = cross_entropy_backward(scores, targets, lses, dlosses)
//   dx = product(dscores, w); dw = product(x, dscores)
//
// becomes, for one chunk after the other, all of it: scores of its rows, their losses, dscores in
// the place of the scores, dx where it belongs, and dw added to that of the chunks before. What the
// backward needs besides, dlosses, must not depend on the losses.
#include <algorithm>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <utility>

#include "executor/fuser.h"
#include "graph/error.h"
#include "kernels/ops.h"

namespace cleave {
namespace {

using Dims = std::vector<std::vector<int64_t>>;  // by dimension: its atoms

constexpr std::string_view kRowLetters = "ABCDEFGH";  // of a tensor's dimensions that are rows

// How many chunks of the rows are within the limit: the fewest that divide them, and not more than
// twice as many as there must be; 1: it is left whole.
int64_t chunks_of(int64_t rows, int64_t bytes, int64_t limit) {
  const int64_t least = (bytes + limit - 1) / limit;
  for (int64_t chunks = least; chunks <= std::min(2 * least, rows); ++chunks) {
    if (rows % chunks == 0) return chunks;
  }
  return 1;
}

bool has(const DimFactors& dim, const DimFactors& factor) {
  return std::find(dim.begin(), dim.end(), factor[0]) != dim.end();
}

// Whether the operand's first dimensions are the rows, and the others have nothing of them.
bool has_rows(const OperandDims& dims, std::span<const DimFactors> rows) {
  if (dims.size() < rows.size() || !std::equal(rows.begin(), rows.end(), dims.begin()))
    return false;
  return std::all_of(dims.begin() + std::ssize(rows), dims.end(), [&](const DimFactors& d) {
    return std::none_of(rows.begin(), rows.end(), [&](const auto& r) { return has(d, r); });
  });
}

bool lacks_rows(const OperandDims& dims, std::span<const DimFactors> rows) {
  return std::all_of(dims.begin(), dims.end(), [&](const DimFactors& d) {
    return std::none_of(rows.begin(), rows.end(), [&](const auto& r) { return has(d, r); });
  });
}

// The dimensions of an operand but its last one: one factor each; empty when they are not.
std::span<const DimFactors> row_factors(const OperandDims& dims) {
  const bool single = std::all_of(dims.begin(), dims.end(), [](auto& d) { return d.size() == 1; });
  if (!single || dims.size() < 2 || dims.size() > kRowLetters.size()) return {};
  return {dims.data(), dims.size() - 1};
}

// The same with one dimension of rows, which keeps the first one's letter.
const Signature& with_one_row(const Signature& s, std::span<const DimFactors> rows) {
  const auto text = [&](OperandDims dims) {
    if (has_rows(dims, rows)) dims.erase(dims.begin() + 1, dims.begin() + std::ssize(rows));
    return s.operand_text(dims);
  };
  std::string factors;
  for (size_t k = 0; k < s.inputs().size(); ++k)
    factors += (k == 0 ? "" : ",") + text(s.inputs()[k]);
  factors += "->";
  for (size_t k = 0; k < s.outputs().size(); ++k)
    factors += (k == 0 ? "" : ",") + text(s.outputs()[k]);
  const size_t notes = s.text().find('|');
  if (notes != std::string::npos) factors += s.text().substr(notes);
  return Signature::get(factors);
}

// What there is of a head in a program: instructions.
struct Head {
  size_t product = 0, loss = 0, backward = 0;  // the first of those that make the same
  std::set<size_t> forward;                    // with those that compute it again
  std::vector<size_t> along, across;           // products of dscores: dx, and dw
  std::vector<size_t> before;                  // what makes dlosses, and goes in front
  int64_t chunks = 1;
};

class Chunker {
 public:
  Chunker(Fuser& fuser, uint32_t bit)
      : p_(fuser.program()),
        limit_(fuser.options().logits_bytes),
        wishes_(fuser.wishes()),
        bit_(bit) {}

  int run() {
    int made = 0;
    while (const std::optional<Head> head = find()) {
      rewrite(*head);
      made += static_cast<int>(head->chunks);
    }
    // Of a head that is left whole, too.
    for (const Instr& x : p_.instrs) {
      if (x.op != &ops::cross_entropy_backward) continue;
      wishes_.push_back({.tensor = x.out[0], .target = x.in[0], .in_place = true});
    }
    return made;
  }

 private:
  const Instr& instr(size_t i) const { return p_.instrs[i]; }
  TensorId first(TensorId t) const { return first_[static_cast<size_t>(t)]; }
  const std::vector<size_t>& readers(TensorId t) const { return readers_[static_cast<size_t>(t)]; }
  std::optional<size_t> maker(TensorId t) const {
    const int64_t m = makers_[static_cast<size_t>(t)];
    return m < 0 ? std::nullopt : std::optional(static_cast<size_t>(m));
  }
  bool is_source(TensorId t) const { return !maker(t); }

  // --- The pattern -------------------------------------------------------------------------------

  std::optional<Head> find() {
    bool looked = false;
    for (size_t i = 0; i < p_.instrs.size(); ++i) {
      const Instr& b = instr(i);
      if (b.op != &ops::cross_entropy_backward || bytes(b.in[0]) <= limit_) continue;
      if (!std::exchange(looked, true)) look();
      if (auto head = head_at(i)) return head;
    }
    return std::nullopt;
  }

  int64_t bytes(TensorId t) const {
    const ProgramTensor& tensor = p_.tensor(t);
    return numel(tensor.geometry.shape) * size_of(tensor.dtype);
  }

  // Who makes and reads each tensor, and the first tensor that is the same: made of the same by the
  // same op, as what the backward computes again is.
  void look() {
    makers_.assign(p_.tensors.size(), -1);
    readers_.assign(p_.tensors.size(), {});
    first_.resize(p_.tensors.size());
    for (size_t t = 0; t < first_.size(); ++t) first_[t] = static_cast<TensorId>(t);
    ends_.clear();
    std::map<std::pair<const void*, std::vector<TensorId>>, std::vector<size_t>> known;
    for (size_t i = 0; i < p_.instrs.size(); ++i) {
      const Instr& x = instr(i);
      for (TensorId t : x.in) readers_[static_cast<size_t>(t)].push_back(i);
      for (TensorId t : x.out) makers_[static_cast<size_t>(t)] = static_cast<int64_t>(i);
      if (x.kind != InstrKind::kCompute || x.part == Part::kUpdate) continue;
      std::vector<TensorId> in;
      for (TensorId t : x.in) in.push_back(first(t));
      std::vector<size_t>& like = known[{x.op, std::move(in)}];
      const auto same = std::find_if(like.begin(), like.end(), [&](size_t k) {
        return instr(k).signature == x.signature && instr(k).attrs == x.attrs &&
               instr(k).letter_atoms == x.letter_atoms && instr(k).out.size() == x.out.size();
      });
      if (same == like.end()) {
        like.push_back(i);
        continue;
      }
      for (size_t o = 0; o < x.out.size(); ++o)
        first_[static_cast<size_t>(x.out[o])] = instr(*same).out[o];
    }
    for (const ProgramOutput& o : p_.outputs) ends_.insert(o.tensor);
    for (const ProgramSource& s : p_.sources) ends_.insert(s.final);
    for (const KeptTensor& k : p_.kept) ends_.insert({k.tensor, k.final});
  }

  // In a part that every micro-batch runs, and not split.
  static bool is_plain(const Instr& x) {
    const bool split = std::any_of(x.splits.begin(), x.splits.end(),
                                   [](const Split& s) { return s.letter != 0 || s.partial; });
    return x.kind == InstrKind::kCompute && !once_a_step(x.part) && !split && x.ring.axis < 0;
  }

  std::optional<Head> head_at(size_t i) const {
    const Instr& b = instr(i);
    Head head;
    head.backward = i;
    const TensorId scores = first(b.in[0]);
    const auto product = maker(scores), loss = maker(first(b.in[2]));
    if (!is_plain(b) || !product || !loss || ends_.contains(b.out[0])) return {};
    head.product = *product;
    head.loss = *loss;
    const Instr &p = instr(*product), &l = instr(*loss);
    const OperandDims& dims = p.signature->outputs()[0];
    const auto rows = row_factors(dims);
    if (!is_plain(p) || p.op != &ops::matmul || !p.attrs.empty() || rows.empty()) return {};
    if (!has_rows(p.signature->inputs()[0], rows) ||
        p.signature->inputs()[0].size() != dims.size() ||
        !lacks_rows(p.signature->inputs()[1], rows)) {
      return {};
    }
    if (!is_plain(l) || l.op != &ops::cross_entropy || l.out[1] != first(b.in[2]) ||
        first(l.in[0]) != scores || first(l.in[1]) != first(b.in[1])) {
      return {};
    }
    for (const Instr* x : {&l, &b}) {
      const auto own = row_factors(x->signature->inputs()[0]);
      if (own.size() != rows.size() || !has_rows(x->signature->inputs()[1], own)) return {};
    }
    if (!add_forward(head, scores) || !add_products(head)) return {};
    if (!before(head, b.in[3], head.before)) return {};
    for (const TensorId t : {p.in[1], b.in[1]}) {
      if (!is_there(head, t)) return {};
    }
    std::sort(head.before.begin(), head.before.end());
    int64_t count = 1;
    for (size_t d = 0; d < rows.size(); ++d) count *= p_.tensor(scores).geometry.shape[d];
    head.chunks = chunks_of(count, bytes(scores), limit_);
    return head.chunks > 1 ? std::optional(head) : std::nullopt;
  }

  // All that make the scores, and their losses: nobody else reads scores, but for the backward.
  bool add_forward(Head& head, TensorId scores) const {
    for (size_t t = 0; t < first_.size(); ++t) {
      if (first_[t] != scores) continue;
      const auto id = static_cast<TensorId>(t);
      if (ends_.contains(id)) return false;
      head.forward.insert(*maker(id));
      for (size_t r : readers(id)) {
        if (r == head.backward) continue;
        if (instr(r).op != &ops::cross_entropy || instr(r).in[0] != id ||
            first(instr(r).out[0]) != instr(head.loss).out[0]) {
          return false;
        }
        head.forward.insert(r);
      }
    }
    return true;
  }

  // The readers of dscores: products along the classes, or across all rows.
  bool add_products(Head& head) const {
    const TensorId dscores = instr(head.backward).out[0];
    for (size_t r : readers(dscores)) {
      const Instr& x = instr(r);
      if (!is_plain(x) || x.op != &ops::matmul || x.in[0] == x.in[1]) return false;
      const bool wide = x.attrs.items().size() == (x.attrs.has("dtype") ? 1 : 0);
      const size_t own = x.in[0] == dscores ? 0 : 1;
      const OperandDims &mine = x.signature->inputs()[own], &other = x.signature->inputs()[1 - own],
                        &out = x.signature->outputs()[0];
      const auto rows = row_factors(mine);
      if (!wide || rows.empty() || !is_there(head, x.in[1 - own])) return false;
      if (has_rows(out, rows) && lacks_rows(other, rows) && out.size() == mine.size() &&
          out.back() != mine.back()) {
        head.along.push_back(r);
      } else if (lacks_rows(out, rows) && has_rows(other, rows) && other.size() == mine.size()) {
        head.across.push_back(r);
      } else {
        return false;
      }
    }
    return true;
  }

  // Whether the tensor, or one that is the same, is there when the head begins.
  bool is_there(const Head& head, TensorId t) const {
    const auto m = maker(first(t));
    return !m || *m < head.product;
  }

  // Adds the instructions that must go in front of the head so that the tensor is there: they
  // depend on nothing of it.
  bool before(const Head& head, TensorId t, std::vector<size_t>& added) const {
    if (is_there(head, t)) return true;
    const size_t m = *maker(first(t));
    if (std::find(added.begin(), added.end(), m) != added.end()) return true;
    const Instr& x = instr(m);
    if (head.forward.contains(m) || !is_plain(x)) return false;
    if (std::any_of(x.out.begin(), x.out.end(), [&](TensorId o) { return ends_.contains(o); }))
      return false;
    added.push_back(m);
    return std::all_of(x.in.begin(), x.in.end(),
                       [&](TensorId in) { return before(head, in, added); });
  }

  // --- The rewrite -------------------------------------------------------------------------------

  Dims dims_of(TensorId t) const {
    const Layout& layout = p_.tensor(t).layout;
    Dims dims;
    for (size_t a = 0; a < layout.atoms.size(); ++a) {
      dims.resize(static_cast<size_t>(layout.atom_dim[a]) + 1);
      dims.back().push_back(layout.atoms[a]);
    }
    return dims;
  }

  // A tensor as `like` is, with other dimensions.
  TensorId add_tensor(TensorId like, const Dims& dims) {
    ProgramTensor t = p_.tensor(like);
    t.layout.atoms.clear();
    t.layout.atom_dim.clear();
    for (size_t d = 0; d < dims.size(); ++d) {
      t.layout.atoms.insert(t.layout.atoms.end(), dims[d].begin(), dims[d].end());
      t.layout.atom_dim.insert(t.layout.atom_dim.end(), dims[d].size(), static_cast<int8_t>(d));
    }
    const Shape shape = t.layout.local_shape(p_.mesh);
    t.geometry = {0, shape, contiguous_strides(shape)};
    p_.tensors.push_back(std::move(t));
    return static_cast<TensorId>(p_.tensors.size() - 1);
  }

  // An instruction of the head's part that only names or places elements.
  void add_move(const OpDef& op, const std::string& factors,
                const std::map<char, Dims::value_type>& atoms, std::vector<TensorId> in,
                TensorId out, Attrs attrs = {}) {
    Instr move;
    move.op = &op;
    move.signature = &Signature::get(factors);
    move.attrs = std::move(attrs);
    for (const Factor& f : move.signature->factors())
      move.letter_atoms.push_back(atoms.at(f.letter));
    move.in = std::move(in);
    move.out = {out};
    add(std::move(move), *like_);
  }

  void add(Instr x, const Instr& like) {
    x.splits.resize(p_.mesh.axes.size());
    x.part = like_->part;
    x.chunk = like_->chunk;
    x.node = like.node;
    x.where = like.where;
    made_.push_back(std::move(x));
  }

  // Letters and atoms of a tensor of which so many dimensions are rows: "AB" and "k", or nothing.
  struct Named {
    std::string rows, rest;
    std::map<char, Dims::value_type> atoms;
  };
  Named named(TensorId t) const {
    const Dims dims = dims_of(t);
    Named n;
    for (size_t d = 0; d < dims.size(); ++d) {
      const char letter = d < row_dims_ ? kRowLetters[d] : 'k';
      (d < row_dims_ ? n.rows : n.rest) += letter;
      n.atoms[letter] = dims[d];
    }
    n.atoms['R'] = row_dims_ == 1 ? dims[0] : Dims::value_type{rows_};
    n.atoms['S'] = {rows_ / chunks_};
    return n;
  }
  static Dims with_rows(const Named& n, char rows) {
    Dims dims = {n.atoms.at(rows)};
    if (!n.rest.empty()) dims.push_back(n.atoms.at('k'));
    return dims;
  }

  // The chunk of the tensor's rows.
  TensorId slice(TensorId t, int64_t chunk) {
    t = first(t);
    const auto [known_part, is_new_part] = parts_.try_emplace({t, chunk}, -1);
    if (!is_new_part) return known_part->second;
    const Named n = named(t);
    TensorId flat = t;
    if (row_dims_ > 1) {
      const auto [known, is_new] = flat_.try_emplace(t, -1);
      if (is_new) {
        known->second = add_tensor(t, with_rows(n, 'R'));
        add_move(ops::reshape, n.rows + n.rest + "->R" + n.rest, n.atoms, {t}, known->second);
      }
      flat = known->second;
    }
    const TensorId part = add_tensor(t, with_rows(n, 'S'));
    const int64_t size = rows_ / chunks_;
    add_move(ops::slice, "R" + n.rest + "->S" + n.rest, n.atoms, {flat}, part,
             {{"start", chunk * size}, {"stop", (chunk + 1) * size}, {"step", int64_t{1}}});
    return parts_[{t, chunk}] = part;
  }

  // The tensor is made of its chunks, which lie in it.
  void join(TensorId t, const std::vector<TensorId>& parts) {
    const Named n = named(t);
    const TensorId flat = row_dims_ == 1 ? t : add_tensor(t, with_rows(n, 'R'));
    std::string factors;
    for (size_t c = 0; c < parts.size(); ++c) factors += (c == 0 ? "S" : ",S") + n.rest;
    add_move(ops::concat, factors + "->R" + n.rest, n.atoms, parts, flat, {{"joins", int64_t{1}}});
    if (flat != t)
      add_move(ops::reshape, "R" + n.rest + "->" + n.rows + n.rest, n.atoms, {flat}, t);
  }

  // Results of the instruction for the rows of one chunk.
  std::vector<TensorId> chunk_results(const Instr& x) {
    const auto rows = rows_of(x);
    std::vector<TensorId> out;
    for (size_t o = 0; o < x.out.size(); ++o) {
      const bool own = has_rows(x.signature->outputs()[o], rows);
      out.push_back(
          add_tensor(x.out[o], own ? with_rows(named(x.out[o]), 'S') : dims_of(x.out[o])));
    }
    return out;
  }

  // The rows' factors in an instruction of the head: those of an operand with the classes, too.
  static std::span<const DimFactors> rows_of(const Instr& x) {
    return row_factors(x.op == &ops::matmul ? x.signature->outputs()[0] : x.signature->inputs()[0]);
  }

  Instr chunk_of(const Instr& x, std::span<const DimFactors> rows, std::vector<TensorId> in,
                 std::vector<TensorId> out) const {
    Instr part = x;
    part.signature = &with_one_row(*x.signature, rows);
    part.letter_atoms.clear();
    for (const Factor& f : part.signature->factors())
      part.letter_atoms.push_back(
          x.letter_atoms[static_cast<size_t>(x.signature->factor(f.letter))]);
    const char row = x.signature->factors()[static_cast<size_t>(rows[0][0])].letter;
    part.letter_atoms[static_cast<size_t>(part.signature->factor(row))] = {rows_ / chunks_};
    part.in = std::move(in);
    part.out = std::move(out);
    return part;
  }

  // A product of dscores across the rows: the sum of what the chunks make.
  struct Sum {
    size_t instr = 0;
    TensorId result = -1;  // of the last chunk
    TensorId so_far = -1;  // -1: nothing yet
  };

  // What the product is only added to is what the sum begins with, when it is there: the gradient
  // of earlier micro-batches.
  Sum sum_of(const Head& head, size_t i) {
    const TensorId t = instr(i).out[0];
    Sum sum{i, t, -1};
    if (ends_.contains(t) || readers(t).size() != 1) return sum;
    const size_t r = readers(t)[0];
    const Instr& add = instr(r);
    if (!is_plain(add) || (add.op != &ops::add && add.op != &ops::add_n) || add.in.size() != 2)
      return sum;
    const Signature& s = *add.signature;
    const TensorId other = add.in[add.in[0] == t ? 1 : 0];
    if (s.inputs()[0] != s.outputs()[0] || s.inputs()[1] != s.outputs()[0] || other == t ||
        p_.tensor(other).dtype != p_.tensor(t).dtype || readers(other).size() != 1 ||
        ends_.contains(other) || !is_there(head, other)) {
      return sum;
    }
    gone_.insert(r);
    return {i, add.out[0], other};
  }

  void rewrite(const Head& head) {
    const Instr product = instr(head.product), loss = instr(head.loss), back = instr(head.backward);
    like_ = &product;
    chunks_ = head.chunks;
    const Shape& shape = p_.tensor(product.out[0]).geometry.shape;
    row_dims_ = shape.size() - 1;
    rows_ = numel(shape) / shape.back();
    made_.clear();
    flat_.clear();
    parts_.clear();
    gone_ = head.forward;
    gone_.insert(head.backward);
    gone_.insert(head.along.begin(), head.along.end());
    gone_.insert(head.across.begin(), head.across.end());
    for (size_t i : head.before) {
      Instr x = instr(i);
      for (TensorId& t : x.in) t = first(t);
      x.part = product.part;
      made_.push_back(std::move(x));
    }
    std::vector<Sum> sums;
    for (size_t i : head.across) sums.push_back(sum_of(head, i));
    std::vector<std::vector<TensorId>> losses(loss.out.size()), along(head.along.size());
    for (int64_t c = 0; c < chunks_; ++c) {
      const TensorId x = slice(product.in[0], c), targets = slice(loss.in[1], c),
                     dlosses = slice(back.in[3], c);
      const TensorId scores = chunk_results(product)[0], dscores = chunk_results(back)[0];
      const std::vector<TensorId> found = chunk_results(loss);
      for (size_t o = 0; o < found.size(); ++o) losses[o].push_back(found[o]);
      add(chunk_of(product, rows_of(product), {x, first(product.in[1])}, {scores}), product);
      made_.back().fused |= bit_;
      add(chunk_of(loss, rows_of(loss), {scores, targets}, found), loss);
      add(chunk_of(back, rows_of(back), {scores, targets, found[1], dlosses}, {dscores}), back);
      for (size_t k = 0; k < head.along.size(); ++k) {
        const Instr from = instr(head.along[k]);
        along[k].push_back(chunk_results(from)[0]);
        std::vector<TensorId> in;
        for (TensorId t : from.in) in.push_back(t == back.out[0] ? dscores : first(t));
        add(chunk_of(from, rows_of(from), in, {along[k].back()}), from);
      }
      for (Sum& sum : sums) add_to(sum, back.out[0], dscores, c);
    }
    for (size_t o = 0; o < losses.size(); ++o) join(loss.out[o], losses[o]);
    for (size_t k = 0; k < along.size(); ++k) join(instr(head.along[k]).out[0], along[k]);
    put_in(head);
  }

  void add_to(Sum& sum, TensorId all, TensorId dscores, int64_t c) {
    const Instr from = instr(sum.instr);
    std::vector<TensorId> in;
    for (TensorId t : from.in) in.push_back(t == all ? dscores : slice(t, c));
    const TensorId out =
        c + 1 == chunks_ ? sum.result : add_tensor(from.out[0], dims_of(from.out[0]));
    const size_t own = from.in[0] == all ? 0 : 1;
    Instr part = chunk_of(from, row_factors(from.signature->inputs()[own]), in, {out});
    if (sum.so_far >= 0) {
      add_operand(part, sum.so_far, part.signature->output_text(0), "residual");
      wishes_.push_back({.tensor = out, .target = sum.so_far, .in_place = true});
    }
    add(std::move(part), from);
    sum.so_far = out;
  }

  // The chunks take the head's place. What was made again only for it goes, and the losses that
  // were made again are the first ones.
  void put_in(const Head& head) {
    std::vector<Instr> all;
    std::set<size_t> moved(head.before.begin(), head.before.end());
    std::vector<bool> read(p_.tensors.size(), false);
    for (TensorId t : ends_) {
      if (t >= 0) read[static_cast<size_t>(t)] = true;
    }
    for (size_t i = 0; i < p_.instrs.size(); ++i) {
      if (i == head.product) all.insert(all.end(), made_.begin(), made_.end());
      if (moved.contains(i) || gone_.contains(i)) continue;
      all.push_back(std::move(p_.instrs[i]));
      for (TensorId& t : all.back().in) {
        const auto m = static_cast<size_t>(t) < makers_.size() ? maker(t) : std::nullopt;
        if (m && head.forward.contains(*m)) t = first(t);
      }
    }
    // What may have been for that alone which is gone, and what the chunks may make for nobody.
    std::set<TensorId> fed;
    for (size_t i : gone_) fed.insert(p_.instrs[i].in.begin(), p_.instrs[i].in.end());
    for (const Instr& x : made_) fed.insert(x.out.begin(), x.out.end());
    std::vector<Instr> left;
    for (size_t i = all.size(); i-- > 0;) {
      const bool idle = std::none_of(all[i].out.begin(), all[i].out.end(),
                                     [&](TensorId t) { return read[static_cast<size_t>(t)]; });
      const bool only = std::any_of(all[i].out.begin(), all[i].out.end(),
                                    [&](TensorId t) { return fed.contains(t); });
      if (idle && only && is_plain(all[i])) {
        fed.insert(all[i].in.begin(), all[i].in.end());
        continue;
      }
      for (TensorId t : all[i].in) read[static_cast<size_t>(t)] = true;
      left.push_back(std::move(all[i]));
    }
    std::reverse(left.begin(), left.end());
    p_.instrs = std::move(left);
  }

  Program& p_;
  const int64_t limit_;  // bytes
  std::vector<SharingWish>& wishes_;
  const uint32_t bit_;

  std::vector<int64_t> makers_;               // by tensor; -1: a source
  std::vector<std::vector<size_t>> readers_;  // by tensor
  std::vector<TensorId> first_;               // by tensor
  std::set<TensorId> ends_;                   // they are there after the step

  // Of the head that is rewritten.
  const Instr* like_ = nullptr;  // its product
  int64_t chunks_ = 1, rows_ = 0;
  size_t row_dims_ = 0;
  std::vector<Instr> made_;
  std::map<TensorId, TensorId> flat_;                       // by tensor: with one dimension of rows
  std::map<std::pair<TensorId, int64_t>, TensorId> parts_;  // by tensor and chunk
  std::set<size_t> gone_;
};

}  // namespace

int fuse_chunks(Fuser& fuser, uint32_t bit) { return Chunker(fuser, bit).run(); }

}  // namespace cleave
