// Products that read the same tensor become one: x of [.., k] and weights w1, w2 of [n, k] give one
// product of x and w [2, n, k], of whose [.., 2, n] their results are views; so the products that
// make their gradients. w1 and w2 are parts of w in one buffer, and the gradients of the results
// are made as parts of one tensor (the attribute `joins`): nothing is copied, and the gradients of
// w1 and w2 are dense. Taken are products of one size, without a bias, whose results meet in one
// op, of parameters or copies kept of them that nothing else reads but updates and the backward.
//
// Of other products of x, of any sizes n1, n2 (queries, keys and values), those of the backward
// become one: of the gradients of their results, parts of one [.., n1 + n2], and of w
// [n1 + n2, k], in which w1 and w2 lie one after the other. Taken are those whose gradients are all
// there before the first of the products that are added up; who else reads the weights is of no
// matter.
#include <algorithm>
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

// Where n stands in an operand or the result of a product: in front of that dimension, those of one
// size have one more, of their number, or in it they lie one after the other. -1: it has none.
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

// The factor n.
size_t n_of(const Instr& product) {
  const auto at = static_cast<size_t>(widening_of(product).in1);
  return static_cast<size_t>(product.signature->inputs()[1][at][0]);
}

void widen(std::string& dims, int at, char letter) {
  if (at >= 0) dims.insert(static_cast<size_t>(at), 1, letter);
}

// How parts lie in a whole: in one dimension more, of their number; or, when atoms are given, one
// after the other in a dimension that has these.
using Line = std::vector<int64_t>;

// Those lie one after the other: each has a letter of its own in the signature of their whole.
constexpr size_t kMostParts = 24;

// Whether all operands lie as the result does.
bool elementwise(const Signature& s) {
  return std::all_of(s.inputs().begin(), s.inputs().end(),
                     [&](const OperandDims& dims) { return dims == s.outputs()[0]; });
}

// The last dimension of the result is the last two of the operand.
bool folds_heads(const Instr& instr) {
  if (instr.op != &ops::reshape) return false;
  const OperandDims &in = instr.signature->inputs()[0], &out = instr.signature->outputs()[0];
  if (in.size() < 2 || out.size() + 1 != in.size() || !std::all_of(in.begin(), in.end(), is_vector))
    return false;
  return std::equal(out.begin(), out.end() - 1, in.begin()) &&
         out.back() == DimFactors{in[in.size() - 2][0], in.back()[0]};
}

// Whether it can make its results as parts of another tensor: what lies in other memory cannot, nor
// what will be made of parts itself (fuse_parts.cc).
bool makes_anywhere(const Instr& instr) {
  return instr.op->view == nullptr && instr.op != &ops::stack && instr.op != &ops::concat;
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
    for (const auto& [sum, products] : added_products()) try_added(products);
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

  // The same product, on other operands, of one rank; of any n, if so.
  bool alike(const Instr& a, const Instr& b, bool any_size = false) const {
    if (a.op != b.op || a.signature != b.signature || a.attrs != b.attrs || a.part != b.part ||
        a.chunk != b.chunk || !is_unsplit(a) || !is_unsplit(b) ||
        f_.dtype(a.out[0]) != f_.dtype(b.out[0])) {
      return false;
    }
    auto atoms = b.letter_atoms;
    if (any_size) atoms[n_of(a)] = a.letter_atoms[n_of(a)];
    return a.letter_atoms == atoms;
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

  // Beside a training program: whether parameters lie one behind the other there, so that its
  // memory can be read as one. What is made of them has memory of its own.
  bool lie_so_in_training(const std::vector<TensorId>& weights) const {
    const Program* const trained = f_.options().trained;
    if (trained == nullptr) return true;
    const auto source_of = [](const Program& p, const auto& is) -> const ProgramSource* {
      const auto s = std::find_if(p.sources.begin(), p.sources.end(), is);
      return s == p.sources.end() ? nullptr : &*s;
    };
    const ProgramTensor* before = nullptr;
    for (const TensorId w : weights) {
      const auto* source = source_of(p_, [&](const auto& s) { return s.tensor == w; });
      if (source == nullptr) return true;
      const auto* there =
          source_of(*trained, [&](const auto& s) { return s.name == source->name; });
      if (there == nullptr) return false;
      const ProgramTensor& t = trained->tensor(there->tensor);
      if (before != nullptr &&
          (t.buffer != before->buffer ||
           t.geometry.offset != before->geometry.offset + numel(before->geometry.shape))) {
        return false;
      }
      before = &t;
    }
    return true;
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
    if (!lie_so_in_training(weights)) return;
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
    const TensorId w = join_weights(weights, {}, p_.instrs[groups[0][0]]);
    for (const Places& group : groups) join_forward(group, w);
    if (!inputs.empty()) {
      const std::vector<TensorId> g = operands(inputs, 0);
      const size_t made = last_maker(g);
      const Instr& first = p_.instrs[inputs[0]];
      const TensorId beside = join(g, widening_of(first).in0, {}, before_[made + 1], first);
      join_gradients(inputs, weight_products_of(g, made, {}), w, beside, {});
    }
  }

  // Where the last of them is made.
  size_t last_maker(const std::vector<TensorId>& tensors) const {
    size_t made = 0;
    for (const TensorId t : tensors) made = std::max(made, *f_.maker(t));
    return made;
  }

  // --- products of any sizes ---------------------------------------------------------------------

  // What the gradient of a result is made as: in this shape, or as heads.
  struct Origin {
    TensorId tensor = -1;
    bool heads = false;
  };

  // None: it cannot be made elsewhere, or others than products and sums of rows read it.
  std::optional<Origin> origin_of(size_t i) const {
    const Instr& product = p_.instrs[i];
    Origin origin{product.in[0], false};
    if (!read_inside(origin.tensor) || !aligned(origin.tensor, true)) return {};
    for (const size_t r : readers(origin.tensor)) {
      const Instr& reader = p_.instrs[r];
      const bool sums = reader.op == &ops::sum && sums_rows(*reader.signature);
      if (r != i && role_of(reader) != Role::kWeight && !sums) return {};
    }
    std::optional<size_t> m = f_.maker(origin.tensor, product);
    if (m && folds_heads(p_.instrs[*m])) {
      origin = {p_.instrs[*m].in[0], true};
      if (f_.readers(origin.tensor) != 1) return {};
      m = f_.maker(origin.tensor, product);
    }
    // What was joined makes its results as parts already.
    if (!m || removed_[*m] || !makes_anywhere(p_.instrs[*m])) return {};
    return origin;
  }

  // The products that make gradients and have not been joined, by the sums that add them up.
  std::map<size_t, Places> added_products() const {
    std::map<size_t, Places> added;
    for (size_t i = 0; i < p_.instrs.size(); ++i) {
      const Instr& product = p_.instrs[i];
      if (removed_[i] || role_of(product) != Role::kInput || !may_lie_beside(product.in[1]) ||
          !origin_of(i)) {
        continue;
      }
      if (const std::optional<size_t> sum = sum_of({i})) added[*sum].push_back(i);
    }
    return added;
  }

  // Whether the second is of the same kind as the first, and can be made with it.
  bool may_join_added(size_t i, size_t j) const {
    const Instr &first = p_.instrs[i], &product = p_.instrs[j];
    const Origin a = *origin_of(i), b = *origin_of(j);
    if (!alike(first, product, true) || a.heads != b.heads || *f_.maker(b.tensor) >= i)
      return false;
    for (const size_t k : {0, 1}) {
      if (f_.dtype(first.in[k]) != f_.dtype(product.in[k])) return false;
    }
    return !a.heads || dims_of(a.tensor).back() == dims_of(b.tensor).back();
  }

  // Joins those of a sum's products that can be.
  void try_added(Places products) {
    while (products.size() > 1) {
      Places group, left;
      std::set<TensorId> used;
      for (const size_t i : products) {
        const TensorId g = p_.instrs[i].in[0], w = p_.instrs[i].in[1];
        const bool apart = !beside_.contains(w) && !used.contains(g) && !used.contains(w);
        if (apart && group.size() < kMostParts && may_join_added(group.empty() ? i : group[0], i)) {
          group.push_back(i);
          used.insert({g, w});
        } else if (!group.empty()) {
          left.push_back(i);
        }
      }
      if (group.size() > 1) join_added(group);
      products = std::move(left);
    }
  }

  void join_added(const Places& products) {
    const Instr& first = p_.instrs[products[0]];
    const std::vector<TensorId> g = operands(products, 0), weights = operands(products, 1);
    std::vector<TensorId> parts;
    for (const size_t i : products) parts.push_back(origin_of(i)->tensor);
    const bool heads = origin_of(products[0])->heads;
    const auto last = static_cast<int>(dims_of(parts[0]).size()) - 1;
    const int d = heads ? last - 1 : last;
    int64_t size = 0;
    for (const TensorId t : parts) size += numel(dims_of(t)[static_cast<size_t>(d)]);
    Line line = {size};
    const size_t made = last_maker(parts);
    std::vector<Instr>& here = before_[made + 1];
    TensorId beside = join(parts, d, line, here, first);
    if (heads) {
      const Line each = dims_of(beside).back();
      line.insert(line.end(), each.begin(), each.end());
      Instr fold = like(first);
      fold.op = &ops::reshape;
      fold.signature = p_.instrs[*f_.maker(g[0])].signature;
      fold.in = {beside};
      beside = whole_of(g, last - 1, line);
      fold.out = {beside};
      fold.letter_atoms = atoms_of(fold);
      here.push_back(std::move(fold));
    }
    beside_.insert(weights.begin(), weights.end());
    const TensorId w = join_weights(weights, line, first);
    join_gradients(products, weight_products_of(g, made, line), w, beside, line);
    if (!heads) return;
    for (const TensorId t : g) {  // what was only reshaped for these products
      const std::vector<size_t>& by = readers(t);
      const auto gone = [&](size_t r) { return removed_[r]; };
      if (std::all_of(by.begin(), by.end(), gone)) removed_[*f_.maker(t)] = true;
    }
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
  Places weight_products_of(const std::vector<TensorId>& gradients, size_t made,
                            const Line& line) const {
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
      if (!alike(first, product, !line.empty()) || product.in[0] != first.in[0] || r <= made ||
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
      if (!m || !makes_anywhere(p_.instrs[*m])) return false;
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

  TensorId join_weights(const std::vector<TensorId>& weights, const Line& line,
                        const Instr& model) {
    const TensorId w = join(weights, 0, line, begin_, model);
    begin_.back().part = Part::kBegin;
    return w;
  }

  void join_forward(const Places& group, TensorId w) {
    Instr product = joined(group, {p_.instrs[group[0]].in[0], w}, {});
    std::vector<Instr>& here = before_[group[0]];  // what all of them read is there
    here.push_back(product);
    take_apart(product.out[0], results(group), widening_of(p_.instrs[group[0]]).out, {}, here);
    remove(group);
  }

  // The products that make gradients of x, and those of the weights, if any: of the whole of the
  // gradients, and that of the weights.
  void join_gradients(const Places& products, const Places& weight_products, TensorId w,
                      TensorId beside, const Line& line) {
    const size_t sum = *sum_of(products);
    const TensorId first = p_.instrs[products[0]].out[0];
    Instr dx = joined(products, {beside, w}, line);
    Instr& add = p_.instrs[sum];
    for (size_t k = 1; k < products.size(); ++k) std::erase(add.in, p_.instrs[products[k]].out[0]);
    *std::find(add.in.begin(), add.in.end(), first) = dx.out[0];
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
    if (!weight_products.empty()) join_weight_products(weight_products, beside, line);
  }

  void join_weight_products(const Places& products, TensorId beside, const Line& line) {
    const Places sums = accumulations(products);
    // Gradients that are read at once are made by the first of them.
    const auto at = sums.empty() ? std::min_element(products.begin(), products.end())
                                 : std::max_element(products.begin(), products.end());
    std::vector<Instr>& here = before_[*at];
    const Instr dw = joined(products, {p_.instrs[products[0]].in[0], beside}, line);
    here.push_back(dw);
    if (sums.empty()) {
      take_apart(dw.out[0], results(products), 0, line, here);
    } else {
      const Instr& first = p_.instrs[sums[0]];
      Instr sum = like(first);
      sum.op = first.op;
      sum.attrs = first.attrs;
      sum.in = {join(operands(sums, 0), 0, line, here, first), dw.out[0]};
      sum.out = {whole_of(results(sums), 0, line)};
      SignatureParts factors = first.signature->parts();
      if (line.empty()) {
        const char letter = unused_letter(*first.signature);
        for (std::string& operand : factors.inputs) operand.insert(0, 1, letter);
        factors.outputs[0].insert(0, 1, letter);
      }
      sum.signature = &Signature::get(factors);
      sum.letter_atoms = atoms_of(sum);
      here.push_back(sum);
      take_apart(sum.out[0], results(sums), 0, line, here);
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
  Instr joined(const Places& products, std::vector<TensorId> in, const Line& line) {
    const Instr& first = p_.instrs[products[0]];
    const Signature& s = *first.signature;
    const Widening at = widening_of(first);
    Instr product = like(first);
    for (const size_t i : products) product.fused |= p_.instrs[i].fused;
    product.op = first.op;
    product.attrs = first.attrs;
    SignatureParts factors = s.parts();
    if (line.empty()) {
      const char letter = unused_letter(s);
      widen(factors.inputs[0], at.in0, letter);
      widen(factors.inputs[1], at.in1, letter);
      widen(factors.outputs[0], at.out, letter);
    }
    product.signature = &Signature::get(factors);
    product.in = std::move(in);
    product.out = {at.out < 0 ? same(first.out[0]) : whole_of(results(products), at.out, line)};
    product.letter_atoms = atoms_of(product);
    ++made_;
    return product;
  }

  // A whole of parts that are made where they belong in it.
  TensorId join(const std::vector<TensorId>& parts, int d, const Line& line,
                std::vector<Instr>& list, const Instr& model) {
    Instr whole = like(model);
    whole.op = line.empty() ? &ops::stack : &ops::concat;
    whole.attrs.set("joins", int64_t{1});
    const auto [each, all] = texts(parts, d, line);
    whole.signature = &Signature::get({each, {all}, ""});
    whole.in = parts;
    whole.out = {whole_of(parts, d, line)};
    whole.letter_atoms = atoms_of(whole);
    list.push_back(whole);
    return whole.out[0];
  }

  // The parts of a whole, which lie in it.
  void take_apart(TensorId whole, const std::vector<TensorId>& parts, int d, const Line& line,
                  std::vector<Instr>& list) const {
    const Instr& model = p_.instrs[*f_.maker(parts[0])];
    const std::pair<std::vector<std::string>, std::string> letters = texts(parts, d, line);
    const std::vector<std::string>& each = letters.first;
    const auto add = [&](const OpDef& op, std::vector<std::string> texts, Attrs attrs,
                         std::vector<TensorId> out) {
      Instr views = like(model);
      views.op = &op;
      views.attrs = std::move(attrs);
      views.signature = &Signature::get({{letters.second}, std::move(texts), ""});
      views.in = {whole};
      views.out = std::move(out);
      views.letter_atoms = atoms_of(views);
      list.push_back(std::move(views));
    };
    if (line.empty()) return add(ops::unbind, each, {}, parts);
    int64_t start = 0;
    for (size_t k = 0; k < parts.size(); ++k) {
      const int64_t stop = start + numel(dims_of(parts[k])[static_cast<size_t>(d)]);
      add(ops::slice, {each[k]}, {{"start", start}, {"stop", stop}, {"step", int64_t{1}}},
          {parts[k]});
      start = stop;
    }
  }

  // "ab", "ab" and "Zab": parts, and the whole with its dimension in front of their dimension d. In
  // a line "aA", "aB" and "aZ".
  std::pair<std::vector<std::string>, std::string> texts(const std::vector<TensorId>& parts, int d,
                                                         const Line& line) const {
    std::string all;
    for (size_t k = 0; k < dims_of(parts[0]).size(); ++k) all += static_cast<char>('a' + k);
    std::vector<std::string> each(parts.size(), all);
    if (line.empty()) {
      widen(all, d, 'Z');
    } else {
      const auto at = static_cast<size_t>(d);
      all[at] = 'Z';
      CLEAVE_ASSERT(parts.size() <= kMostParts, "{} parts have no letters", parts.size());
      for (size_t k = 0; k < parts.size(); ++k) each[k][at] = static_cast<char>('A' + k);
    }
    return {each, all};
  }

  // Those of its operands and results.
  std::vector<std::vector<int64_t>> atoms_of(const Instr& instr) const {
    const Signature& s = *instr.signature;
    std::vector<std::vector<int64_t>> atoms(s.factors().size());
    const auto look = [&](const std::vector<OperandDims>& texts, const std::vector<TensorId>& of) {
      for (size_t i = 0; i < of.size(); ++i) {
        const auto dims = dims_of(of[i]);
        for (size_t d = 0; d < dims.size(); ++d) {
          if (is_vector(texts[i][d])) atoms[static_cast<size_t>(texts[i][d][0])] = dims[d];
        }
      }
    };
    look(s.inputs(), instr.in);
    look(s.outputs(), instr.out);
    return atoms;
  }

  // The atoms of each dimension.
  std::vector<std::vector<int64_t>> dims_of(TensorId t) const { return p_.tensor(t).layout.dims(); }

  TensorId same(TensorId t) {
    p_.tensors.push_back(ProgramTensor(p_.tensor(t)));
    return static_cast<TensorId>(p_.tensors.size() - 1);
  }

  // A tensor of all of these: with their number in front of dimension d, or with this line in it.
  TensorId whole_of(const std::vector<TensorId>& parts, int d, const Line& line) {
    const TensorId whole = same(parts[0]);
    ProgramTensor& t = p_.tensor(whole);
    auto dims = t.layout.dims();
    if (line.empty()) {
      dims.insert(dims.begin() + d, {static_cast<int64_t>(parts.size())});
    } else {
      dims[static_cast<size_t>(d)] = line;
    }
    t.layout.set_dims(dims);
    const Shape shape = t.layout.local_shape(p_.mesh);
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
