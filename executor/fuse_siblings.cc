// Products that read the same tensor become one: x of [.., k] and weights w1, w2 of [n, k] give one
// product of x and w [2, n, k], of whose [.., 2, n] their results are views; so the products that
// make their gradients. w1 and w2 are parts of w in one buffer, and the gradients of the results
// are made as parts of one tensor (the attribute `joins`): nothing is copied, and the gradients of
// w1 and w2 are dense. Taken are products of one size, without a bias, whose results meet in one
// op, of parameters or copies kept of them that nothing else reads but updates and the backward.
#include <algorithm>
#include <cctype>
#include <iterator>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "executor/fuser.h"
#include "executor/memory_layout.h"
#include "graph/error.h"
#include "kernels/ops.h"

namespace cleave {
namespace {

using Places = std::vector<size_t>;  // of instructions

// What a product is to a linear layer's weight w of [n, k].
enum class Role : uint8_t {
  kForward,  // x of [..., k], w -> [..., n]
  kInput,    // the gradient of x: g of [..., n], w -> [..., k]
  kWeight,   // that of w: x, g -> w
  kNone,
};

bool is_vector(const DimFactors& dim) { return dim.size() == 1; }

Role role_of(const Instr& instr) {
  if (instr.kind != InstrKind::kCompute || instr.op != &ops::matmul) return Role::kNone;
  const Signature& s = *instr.signature;
  const OperandDims &a = s.inputs()[0], &b = s.inputs()[1], &c = s.outputs()[0];
  for (const OperandDims* dims : {&a, &b, &c}) {
    if (dims->size() < 2 || !std::all_of(dims->begin(), dims->end(), is_vector)) return Role::kNone;
  }
  const auto shares = [](const OperandDims& x, const OperandDims& y) {
    return std::any_of(x.begin(), x.end() - 1,
                       [&](const DimFactors& d) { return Signature::carries(y, d[0]); });
  };
  if (b.size() == 2 && b[1] == a.back() && b[0] == c.back() && !shares(a, b)) return Role::kForward;
  if (b.size() == 2 && b[0] == a.back() && b[1] == c.back() && !shares(a, b)) return Role::kInput;
  if (c.size() == 2 && c[0] == b.back() && c[1] == a.back()) return Role::kWeight;
  return Role::kNone;
}

// In front of which dimension an operand or the result of a product of siblings has one more, of
// their number: where n stands. -1: it has none.
struct Widening {
  int in0 = -1, in1 = -1, out = -1;
};
Widening widening_of(const Instr& product) {
  const Signature& s = *product.signature;
  const auto last = [](const OperandDims& dims) { return static_cast<int>(dims.size()) - 1; };
  switch (role_of(product)) {
    case Role::kForward: return {.in1 = 0, .out = last(s.outputs()[0])};
    case Role::kInput: return {.in0 = last(s.inputs()[0]), .in1 = 0};
    case Role::kWeight: return {.in1 = last(s.inputs()[1]), .out = 0};
    case Role::kNone: break;
  }
  return {};
}

void widen(std::string& dims, int at, char letter) {
  if (at >= 0) dims.insert(static_cast<size_t>(at), 1, letter);
}

// A capital letter that the signature does not have, nor its small one.
char unused_letter(const Signature& s) {
  for (char c = 'A'; c <= 'Z'; ++c) {
    const auto small = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    if (s.factor(c) < 0 && s.factor(small) < 0) return c;
  }
  CLEAVE_ASSERT(false, "'{}' has every letter", s.text());
}

// Whether all operands lie as the result does.
bool elementwise(const Signature& s) {
  return std::all_of(s.inputs().begin(), s.inputs().end(),
                     [&](const OperandDims& dims) { return dims == s.outputs()[0]; });
}

class Siblings {
 public:
  Siblings(Fuser& fuser, uint32_t bit) : p_(fuser.program()), f_(fuser), bit_(bit) {
    readers_.resize(p_.tensors.size());
    for (size_t i = 0; i < p_.instrs.size(); ++i) {
      const std::set<TensorId> in(p_.instrs[i].in.begin(), p_.instrs[i].in.end());
      for (const TensorId t : in) readers_[static_cast<size_t>(t)].push_back(i);
    }
    for (const KeptTensor& k : p_.kept) kept_.insert(k.tensor);
    removed_.resize(p_.instrs.size(), false);
  }

  int run() {
    std::map<std::vector<TensorId>, std::vector<Places>> forward;  // by weights
    std::set<size_t> taken;
    for (size_t i = 0; i < p_.instrs.size(); ++i) {
      if (role_of(p_.instrs[i]) != Role::kForward || taken.contains(i)) continue;
      const Places group = forward_group(i);
      if (group.size() < 2) continue;
      taken.insert(group.begin(), group.end());
      forward[operands(group, 1)].push_back(group);
    }
    for (const auto& [weights, groups] : forward) try_weights(weights, groups);
    if (made_ > 0) rebuild();
    return made_;
  }

 private:
  const std::vector<size_t>& readers(TensorId t) const { return readers_[static_cast<size_t>(t)]; }

  std::vector<TensorId> operands(const Places& group, size_t k) const {
    std::vector<TensorId> in;
    for (const size_t i : group) in.push_back(p_.instrs[i].in[k]);
    return in;
  }
  std::vector<TensorId> results(const Places& group) const {
    std::vector<TensorId> out;
    for (const size_t i : group) out.push_back(p_.instrs[i].out[0]);
    return out;
  }

  // The same product, on other operands, of one rank.
  bool alike(const Instr& a, const Instr& b) const {
    return a.op == b.op && a.signature == b.signature && a.attrs == b.attrs &&
           a.letter_atoms == b.letter_atoms && a.part == b.part && a.chunk == b.chunk &&
           is_unsplit(a) && is_unsplit(b) && f_.dtype(a.out[0]) == f_.dtype(b.out[0]);
  }

  // Instructions alone read it, not the program's end.
  bool read_inside(TensorId t) const {
    int32_t reads = 0;
    for (const size_t r : readers(t)) {
      const std::vector<TensorId>& in = p_.instrs[r].in;
      reads += static_cast<int32_t>(std::count(in.begin(), in.end(), t));
    }
    return reads == f_.readers(t);
  }

  // Where parts of the tensor, one for each of the last dimension's rows, begin as aligned as
  // buffers do: kernels then read and write them like tensors of their own.
  bool aligned(TensorId t, bool rows) const {
    const ProgramTensor& tensor = p_.tensor(t);
    const Shape& shape = tensor.geometry.shape;
    const int64_t elements = rows ? shape.back() : numel(shape);
    return elements * size_of(tensor.dtype) % kArenaAlignment == 0;
  }

  // The product at i and those like it of the same tensor whose results one instruction reads.
  Places forward_group(size_t i) const {
    const Instr& first = p_.instrs[i];
    for (const size_t r : readers(first.out[0])) {
      Places group;
      std::set<TensorId> weights;
      for (const size_t j : readers(first.in[0])) {
        const Instr& product = p_.instrs[j];
        if (role_of(product) != Role::kForward || product.in[0] != first.in[0] ||
            !alike(first, product)) {
          continue;
        }
        const TensorId y = product.out[0], w = product.in[1];
        const std::vector<size_t>& by = readers(y);
        if (std::find(by.begin(), by.end(), r) == by.end() || !read_inside(y)) continue;
        if (w == first.in[0] || !may_lie_beside(w) || !aligned(y, true)) continue;
        if (weights.insert(w).second) group.push_back(j);
      }
      if (group.size() > 1 && group[0] == i) return group;
    }
    return {};
  }

  // What is kept of a parameter, or a parameter itself.
  bool may_lie_beside(TensorId w) const {
    if (!aligned(w, false)) return false;
    if (kept_.contains(w)) return true;
    return std::any_of(p_.sources.begin(), p_.sources.end(), [&](const ProgramSource& s) {
      return s.tensor == w && s.kind == SourceKind::kParameter && !s.on_host;
    });
  }

  bool is_update_of(const Instr& instr, TensorId w) const {
    return (instr.op == &ops::adamw || instr.op == &ops::sgd) && instr.in[0] == w &&
           std::count(instr.in.begin(), instr.in.end(), w) == 1;
  }

  // Joins the products of these weights, unless anything else reads one.
  void try_weights(const std::vector<TensorId>& weights, const std::vector<Places>& groups) {
    for (const TensorId w : weights) {
      if (beside_.contains(w)) return;  // with others
    }
    Places inputs;  // the products that make gradients of x, by weight
    for (size_t k = 0; k < weights.size(); ++k) {
      for (const size_t r : readers(weights[k])) {
        const Instr& reader = p_.instrs[r];
        const bool forward =
            std::any_of(groups.begin(), groups.end(), [&](const Places& g) { return g[k] == r; });
        if (forward || is_update_of(reader, weights[k])) continue;
        if (role_of(reader) != Role::kInput || reader.in[1] != weights[k]) return;
        inputs.push_back(r);
      }
    }
    if (!inputs.empty() && (operands(inputs, 1) != weights || !may_join_inputs(inputs))) return;
    beside_.insert(weights.begin(), weights.end());
    const TensorId w = join(weights, 0, begin_, p_.instrs[groups[0][0]]);
    begin_.back().part = Part::kBegin;
    for (const Places& group : groups) join_forward(group, w);
    if (!inputs.empty()) join_gradients(inputs, w);
  }

  // The sum that alone reads what these products make; none when there is no such one.
  std::optional<size_t> sum_of(const Places& products) const {
    const TensorId first = p_.instrs[products[0]].out[0];
    if (readers(first).size() != 1) return {};
    const size_t r = readers(first)[0];
    const Instr& sum = p_.instrs[r];
    if (sum.op != &ops::add && sum.op != &ops::add_n) return {};
    const Instr& product = p_.instrs[products[0]];
    if (sum.part != product.part || sum.chunk != product.chunk) return {};
    if (!elementwise(*sum.signature)) return {};
    if (f_.dtype(sum.out[0]) != f_.dtype(first)) return {};
    for (const TensorId dx : results(products)) {
      if (f_.readers(dx) != 1 || std::count(sum.in.begin(), sum.in.end(), dx) != 1) return {};
    }
    return r;
  }

  // The products that make weights' gradients of these, in their order; none: they are not such, or
  // not before others need one of them.
  Places weight_products_of(const std::vector<TensorId>& gradients, size_t made) const {
    Places products;
    for (const TensorId g : gradients) {
      for (const size_t r : readers(g)) {
        const Instr& product = p_.instrs[r];
        if (role_of(product) == Role::kWeight && product.in[1] == g && product.in[0] != g) {
          products.push_back(r);
        }
      }
    }
    if (operands(products, 1) != gradients) return {};
    const Instr& first = p_.instrs[products[0]];
    for (const size_t r : products) {
      const Instr& product = p_.instrs[r];
      if (!alike(first, product) || product.in[0] != first.in[0] || r <= made ||
          !aligned(product.out[0], false)) {
        return {};
      }
    }
    return products;
  }

  // Whether these products, of the gradients of siblings' results, can be one: what makes those
  // can make them side by side, and nobody reads them but for products.
  bool may_join_inputs(const Places& products) const {
    const Instr& first = p_.instrs[products[0]];
    for (const size_t i : products) {
      if (!alike(first, p_.instrs[i])) return false;
      const TensorId g = p_.instrs[i].in[0];
      const std::optional<size_t> m = f_.maker(g, first);
      if (!m || p_.instrs[*m].op->view != nullptr || p_.instrs[*m].attrs.has("joins")) return false;
      if (!read_inside(g) || !aligned(g, true)) return false;
      for (const size_t r : readers(g)) {
        if (r != i && role_of(p_.instrs[r]) != Role::kWeight) return false;
      }
    }
    const std::vector<TensorId> g = operands(products, 0);
    return std::set<TensorId>(g.begin(), g.end()).size() == g.size() && sum_of(products);
  }

  // The sums of accumulators and what these products make, which nobody else reads; none: they are
  // not so, or one is read before the last product.
  Places accumulations(const Places& products) const {
    const Instr& product = p_.instrs[products[0]];
    const size_t last = *std::max_element(products.begin(), products.end());
    Places sums;
    for (const TensorId dw : results(products)) {
      if (readers(dw).size() != 1 || f_.readers(dw) != 1) return {};
      const size_t r = readers(dw)[0];
      const Instr& sum = p_.instrs[r];
      if (sum.op != &ops::add || sum.in[1] != dw || sum.part != product.part ||
          sum.chunk != product.chunk || !is_unsplit(sum) || f_.dtype(sum.in[0]) != f_.dtype(dw) ||
          sum.signature != p_.instrs[sums.empty() ? r : sums[0]].signature) {
        return {};
      }
      if (!elementwise(*sum.signature)) return {};
      const TensorId before = sum.in[0];
      const bool accumulates =
          std::any_of(p_.sources.begin(), p_.sources.end(), [&](const ProgramSource& s) {
            return s.tensor == before && s.kind == SourceKind::kAccumulator && !s.on_host &&
                   s.final == sum.out[0];
          });
      if (!accumulates || readers(before).size() != 1) return {};
      for (const size_t later : readers(sum.out[0])) {
        if (later < last) return {};
      }
      sums.push_back(r);
    }
    return sums;
  }

  // --- the rewrite -------------------------------------------------------------------------------

  void join_forward(const Places& group, TensorId w) {
    Instr product = joined(group, {p_.instrs[group[0]].in[0], w});
    std::vector<Instr>& here = before_[group[0]];  // what all of them read is there
    here.push_back(product);
    here.push_back(apart(product.out[0], results(group), widening_of(p_.instrs[group[0]]).out));
    remove(group);
  }

  void join_gradients(const Places& products, TensorId w) {
    const size_t sum = *sum_of(products);
    const std::vector<TensorId> g = operands(products, 0);
    size_t made = 0;  // where the last of them is
    for (const TensorId t : g) made = std::max(made, *f_.maker(t));
    const Places weight_products = weight_products_of(g, made);
    const Instr& first = p_.instrs[products[0]];
    const TensorId beside = join(g, widening_of(first).in0, before_[made + 1], first);
    Instr dx = joined(products, {beside, w});
    Instr& add = p_.instrs[sum];
    for (size_t k = 1; k < products.size(); ++k) std::erase(add.in, p_.instrs[products[k]].out[0]);
    *std::find(add.in.begin(), add.in.end(), first.out[0]) = dx.out[0];
    if (add.in.size() == 1) {
      dx.out = add.out;
      dx.fused |= add.fused;
      removed_[sum] = true;
    } else {
      SignatureParts factors = add.signature->parts();  // the operands are alike
      factors.inputs.resize(add.in.size());
      add.signature = &Signature::get(factors);
    }
    before_[*std::max_element(products.begin(), products.end())].push_back(std::move(dx));
    remove(products);
    if (!weight_products.empty()) join_weight_products(weight_products, beside);
  }

  void join_weight_products(const Places& products, TensorId beside) {
    const Places sums = accumulations(products);
    // Gradients that are read at once are made by the first of them.
    const auto at = sums.empty() ? std::min_element(products.begin(), products.end())
                                 : std::max_element(products.begin(), products.end());
    std::vector<Instr>& here = before_[*at];
    const Instr dw = joined(products, {p_.instrs[products[0]].in[0], beside});
    here.push_back(dw);
    if (sums.empty()) {
      here.push_back(apart(dw.out[0], results(products), 0));
    } else {
      const Instr& first = p_.instrs[sums[0]];
      const TensorId before = join(operands(sums, 0), 0, here, first);
      const char letter = unused_letter(*first.signature);
      SignatureParts factors = first.signature->parts();
      for (std::string& operand : factors.inputs) operand.insert(0, 1, letter);
      factors.outputs[0].insert(0, 1, letter);
      Instr sum = like(first);
      sum.op = first.op;
      sum.attrs = first.attrs;
      sum.signature = &Signature::get(factors);
      sum.letter_atoms = atoms_for(*sum.signature, first, letter, sums.size());
      sum.in = {before, dw.out[0]};
      sum.out = {widened(results(sums), 0)};
      here.push_back(sum);
      here.push_back(apart(sum.out[0], results(sums), 0));
      remove(sums);
    }
    remove(products);
  }

  // An instruction in the place of this one.
  Instr like(const Instr& model) const {
    Instr instr;
    instr.node = model.node;
    instr.where = model.where;
    instr.part = model.part;
    instr.chunk = model.chunk;
    instr.splits = model.splits;
    instr.fused = model.fused | bit_;
    return instr;
  }

  // The one product of all these, of these operands.
  Instr joined(const Places& products, std::vector<TensorId> in) {
    const Instr& first = p_.instrs[products[0]];
    const Signature& s = *first.signature;
    const Widening at = widening_of(first);
    const char letter = unused_letter(s);
    Instr product = like(first);
    for (const size_t i : products) product.fused |= p_.instrs[i].fused;
    product.op = first.op;
    product.attrs = first.attrs;
    SignatureParts factors = s.parts();
    widen(factors.inputs[0], at.in0, letter);
    widen(factors.inputs[1], at.in1, letter);
    widen(factors.outputs[0], at.out, letter);
    product.signature = &Signature::get(factors);
    product.letter_atoms = atoms_for(*product.signature, first, letter, products.size());
    product.in = std::move(in);
    product.out = {at.out < 0 ? same(first.out[0]) : widened(results(products), at.out)};
    ++made_;
    return product;
  }

  // A whole, with one dimension more, of parts that are made where they belong in it.
  TensorId join(const std::vector<TensorId>& parts, int d, std::vector<Instr>& list,
                const Instr& model) {
    Instr stack = like(model);
    const TensorId whole = widened(parts, d);
    stack.op = &ops::stack;
    stack.attrs.set("joins", int64_t{1});
    const auto [each, all] = texts(parts, d);
    stack.signature = &Signature::get({each, {all}, ""});
    stack.in = parts;
    stack.out = {whole};
    stack.letter_atoms = atoms_of(*stack.signature, whole, all);
    list.push_back(std::move(stack));
    return whole;
  }

  // The parts of a whole, which lie in it.
  Instr apart(TensorId whole, const std::vector<TensorId>& parts, int d) const {
    const std::optional<size_t> m = f_.maker(parts[0]);
    Instr views = like(p_.instrs[*m]);
    views.op = &ops::unbind;
    const auto [each, all] = texts(parts, d);
    views.signature = &Signature::get({{all}, each, ""});
    views.in = {whole};
    views.out = parts;
    views.letter_atoms = atoms_of(*views.signature, whole, all);
    return views;
  }

  // "ab", "ab" and "Zab": parts, and the whole with its dimension in front of their dimension d.
  std::pair<std::vector<std::string>, std::string> texts(const std::vector<TensorId>& parts,
                                                         int d) const {
    std::string one;
    for (size_t k = 0; k < p_.tensor(parts[0]).geometry.shape.size(); ++k)
      one += static_cast<char>('a' + k);
    std::string all = one;
    widen(all, d, 'Z');
    return {std::vector(parts.size(), one), all};
  }

  // Of a signature in which each dimension of the tensor has the letter that stands in `dims`.
  std::vector<std::vector<int64_t>> atoms_of(const Signature& s, TensorId t,
                                             const std::string& dims) const {
    std::vector<std::vector<int64_t>> atoms(s.factors().size());
    const Layout& layout = p_.tensor(t).layout;
    for (size_t a = 0; a < layout.atoms.size(); ++a) {
      const char letter = dims[static_cast<size_t>(layout.atom_dim[a])];
      atoms[static_cast<size_t>(s.factor(letter))].push_back(layout.atoms[a]);
    }
    return atoms;
  }

  // Of a signature that has this letter, of so many, and else those of the instruction.
  static std::vector<std::vector<int64_t>> atoms_for(const Signature& s, const Instr& model,
                                                     char letter, size_t count) {
    std::vector<std::vector<int64_t>> atoms;
    for (const Factor& f : s.factors()) {
      if (f.letter == letter) {
        atoms.push_back({static_cast<int64_t>(count)});
      } else {
        atoms.push_back(model.letter_atoms[static_cast<size_t>(model.signature->factor(f.letter))]);
      }
    }
    return atoms;
  }

  TensorId same(TensorId t) {
    p_.tensors.push_back(ProgramTensor(p_.tensor(t)));
    return static_cast<TensorId>(p_.tensors.size() - 1);
  }

  // A tensor of all of these, with their number in front of dimension d.
  TensorId widened(const std::vector<TensorId>& parts, int d) {
    const TensorId whole = same(parts[0]);
    ProgramTensor& t = p_.tensor(whole);
    Layout& layout = t.layout;
    const auto at = std::lower_bound(layout.atom_dim.begin(), layout.atom_dim.end(), d) -
                    layout.atom_dim.begin();
    for (auto dim = layout.atom_dim.begin() + at; dim != layout.atom_dim.end(); ++dim) ++*dim;
    layout.atom_dim.insert(layout.atom_dim.begin() + at, static_cast<int8_t>(d));
    layout.atoms.insert(layout.atoms.begin() + at, static_cast<int64_t>(parts.size()));
    const Shape shape = layout.local_shape(p_.mesh);
    t.geometry = {0, shape, contiguous_strides(shape)};
    return whole;
  }

  void remove(const Places& places) {
    for (const size_t i : places) removed_[i] = true;
  }

  void rebuild() {
    std::vector<Instr> left;
    bool begins = true;
    for (size_t i = 0; i < p_.instrs.size(); ++i) {
      if (begins && p_.instrs[i].part != Part::kBegin) {
        begins = false;
        std::move(begin_.begin(), begin_.end(), std::back_inserter(left));
      }
      if (const auto here = before_.find(i); here != before_.end())
        std::move(here->second.begin(), here->second.end(), std::back_inserter(left));
      if (!removed_[i]) left.push_back(std::move(p_.instrs[i]));
    }
    p_.instrs = std::move(left);
  }

  Program& p_;
  const Fuser& f_;
  const uint32_t bit_;
  int made_ = 0;
  std::vector<std::vector<size_t>> readers_;  // by tensor: instructions
  std::set<TensorId> kept_, beside_;          // weights that lie beside others
  std::vector<bool> removed_;                 // by instruction
  // New instructions: at the end of the step's beginning, and in front of those of the program.
  std::vector<Instr> begin_;
  std::map<size_t, std::vector<Instr>> before_;
};

}  // namespace

int fuse_siblings(Fuser& fuser, uint32_t bit) { return Siblings(fuser, bit).run(); }

}  // namespace cleave
