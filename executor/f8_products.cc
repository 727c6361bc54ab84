#include "executor/f8_products.h"

#include <algorithm>
#include <array>
#include <iterator>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>

#include "executor/fuser.h"
#include "graph/error.h"
#include "kernels/contraction.h"
#include "kernels/ops.h"

namespace cleave {
namespace {

constexpr int64_t kUnit = 16;  // what sizes of products must be multiples of

// An operand of a product as codes.
struct Operand {
  TensorId tensor = -1;  // what becomes codes: of a weight, the source
  bool gradient = false;
  // So many of its dimensions, which are summed over, come first, and must come last; 0: they do.
  size_t turn = 0;
};

struct F8Product {
  size_t instr = 0;
  std::array<Operand, 2> operands;
};

// A tensor that becomes codes, and what they are for.
struct Codes {
  bool gradient = false, plain = false;
  size_t turn = 0;  // of the transposed ones; 0: none
  TensorId values = -1, transposed = -1, inverse = -1;
};

int64_t size_of(const std::vector<int8_t>& factors, const Instr& instr) {
  int64_t size = 1;
  for (const int8_t f : factors) size *= numel(instr.letter_atoms[static_cast<size_t>(f)]);
  return size;
}

// Which products become such of 8 bits.
class Choice {
 public:
  Choice(const Program& program, const F8Options& options)
      : p_(program), maker_(program.tensors.size(), -1), gradient_(program.tensors.size(), false) {
    for (size_t i = 0; i < p_.instrs.size(); ++i) note(i);
    for (const ProgramSource& s : p_.sources) {
      if (s.kind != SourceKind::kData) kept_.insert(s.tensor);
    }
    std::vector<F8Product> candidates;
    for (size_t i = 0; i < p_.instrs.size(); ++i) {
      if (const auto product = candidate(i)) candidates.push_back(*product);
    }
    if (!options.last) leave_last(candidates);
    for (const F8Product& product : candidates) choose(product);
  }

  const std::vector<F8Product>& products() const { return products_; }
  std::map<TensorId, Codes>& codes() { return codes_; }
  int32_t maker(TensorId t) const { return maker_[static_cast<size_t>(t)]; }

 private:
  static bool backward(const Instr& instr) {
    return instr.part == Part::kBackward || instr.part == Part::kWeightGradient;
  }

  // What makes its results, and whether they are gradients: what is computed again in the backward
  // is not.
  void note(size_t i) {
    const Instr& instr = p_.instrs[i];
    bool gradient = false;
    if (backward(instr)) {
      const bool begins =
          instr.kind == InstrKind::kCompute &&
          (instr.in.empty() || std::string_view(instr.op->name).ends_with("_backward"));
      gradient = begins || std::any_of(instr.in.begin(), instr.in.end(), [&](TensorId t) {
                   return gradient_[static_cast<size_t>(t)];
                 });
    }
    for (TensorId t : instr.out) {
      maker_[static_cast<size_t>(t)] = static_cast<int32_t>(i);
      gradient_[static_cast<size_t>(t)] = gradient;
    }
  }

  // The source that the tensor is, or is a cast of; -1: none.
  TensorId weight_of(TensorId t) const {
    const int32_t m = maker(t);
    if (m >= 0) {
      const Instr& instr = p_.instrs[static_cast<size_t>(m)];
      if (instr.kind != InstrKind::kCompute || instr.op != &ops::cast) return -1;
      t = instr.in[0];
    }
    return maker(t) < 0 && kept_.contains(t) ? t : -1;
  }
  bool is_weight(const Operand& o) const { return kept_.contains(o.tensor); }

  // The product as one of codes, when its operands can lie as they must.
  std::optional<F8Product> candidate(size_t i) const {
    const Instr& instr = p_.instrs[i];
    if (!is_product(instr) || once_a_step(instr.part)) return {};
    for (const auto& [name, value] : instr.attrs.items()) {
      if (name != "dtype" && name != "bias" && name != "residual") return {};
    }
    const Classes classes = classify(*instr.signature);
    if (!classes.batch.empty()) return {};
    for (const auto* factors : {&classes.m, &classes.n, &classes.k}) {
      if (factors->empty() || size_of(*factors, instr) % kUnit != 0) return {};
    }
    F8Product product{i, {}};
    for (size_t o = 0; o < 2; ++o) {
      const OperandDims& dims = instr.signature->inputs()[o];
      const std::vector<int8_t> order = factors_of(dims);
      const auto& inner = classes.k;
      if (std::any_of(dims.begin(), dims.end(), [](const auto& d) { return d.size() != 1; })) {
        return {};
      }
      Operand& operand = product.operands[o];
      if (std::equal(inner.begin(), inner.end(), order.begin(),
                     order.begin() + std::ssize(inner))) {
        operand.turn = inner.size();
      } else if (!std::equal(inner.rbegin(), inner.rend(), order.rbegin(),
                             order.rbegin() + std::ssize(inner))) {
        return {};
      }
      const TensorId weight = weight_of(instr.in[o]);
      operand.tensor = weight >= 0 ? weight : instr.in[o];
      if (weight < 0 && maker(operand.tensor) < 0) return {};  // data
      operand.gradient = gradient_[static_cast<size_t>(instr.in[o])];
    }
    const auto& [a, b] = product.operands;
    if (a.gradient && b.gradient) return {};
    const bool weight = is_weight(a) || is_weight(b);
    if (!weight && !a.gradient && !b.gradient) return {};
    return product;
  }

  static bool is_product(const Instr& instr) {
    return instr.kind == InstrKind::kCompute &&
           (instr.op == &ops::matmul || instr.op == &ops::linear);
  }

  // Takes out the last product of a weight in the forward, and the two of its backward: which may
  // have a cast of the weight for itself, so the source tells.
  void leave_last(std::vector<F8Product>& candidates) const {
    TensorId weight = -1;
    for (const Instr& instr : p_.instrs) {
      for (size_t o = 0; o < 2 && is_product(instr) && instr.part == Part::kForward; ++o) {
        if (const TensorId source = weight_of(instr.in[o]); source >= 0) weight = source;
      }
    }
    if (weight < 0) return;
    std::set<TensorId> gradients;  // of the product
    for (const Instr& instr : p_.instrs) {
      if (!is_product(instr) || !backward(instr)) continue;
      for (size_t o = 0; o < 2; ++o) {
        if (weight_of(instr.in[o]) == weight) gradients.insert(instr.in[1 - o]);
      }
    }
    std::erase_if(candidates, [&](const F8Product& c) {
      const Instr& instr = p_.instrs[c.instr];
      return std::any_of(instr.in.begin(), instr.in.begin() + 2, [&](TensorId t) {
        return weight_of(t) == weight || gradients.contains(t);
      });
    });
  }

  // A tensor is turned in one way only.
  void choose(const F8Product& product) {
    for (const Operand& o : product.operands) {
      const auto known = codes_.find(o.tensor);
      if (o.turn > 0 && known != codes_.end() && known->second.turn > 0 &&
          known->second.turn != o.turn) {
        return;
      }
    }
    for (const Operand& o : product.operands) {
      Codes& codes = codes_[o.tensor];
      codes.gradient = o.gradient;
      if (o.turn > 0) {
        codes.turn = o.turn;
      } else {
        codes.plain = true;
      }
    }
    products_.push_back(product);
  }

  const Program& p_;
  std::vector<int32_t> maker_;  // by tensor: an instruction; -1: a source
  std::vector<bool> gradient_;  // by tensor
  std::set<TensorId> kept_;     // tensors of parameters and states
  std::vector<F8Product> products_;
  std::map<TensorId, Codes> codes_;
};

class Rewriter {
 public:
  Rewriter(Program& program, const F8Options& options, std::vector<SharingWish>& wishes)
      : p_(program), options_(options), wishes_(wishes), choice_(program, options) {
    delayed_ = options.scaling == F8Scaling::kDelayed &&
               std::any_of(p_.instrs.begin(), p_.instrs.end(),
                           [](const Instr& i) { return i.part == Part::kUpdate; });
  }

  void run() {
    if (choice_.products().empty()) return;
    std::vector<Instr> of_weights;
    std::map<size_t, std::vector<Instr>> after;  // by instruction
    std::vector<std::pair<int32_t, TensorId>> order;
    for (const auto& [t, codes] : choice_.codes()) order.emplace_back(choice_.maker(t), t);
    std::sort(order.begin(), order.end());
    std::array<int64_t, 2> counts = {0, 0};
    for (const auto& [maker, t] : order) ++counts[maker < 0];
    if (delayed_) {
      for (const bool weights : {false, true}) {
        if (counts[weights] > 0) add_memory(memory_[weights], weights, counts[weights]);
      }
    }
    for (const auto& [maker, t] : order) {
      Instr instr = quantize(t, maker);
      if (maker < 0) {
        of_weights.push_back(std::move(instr));
      } else {
        after[static_cast<size_t>(maker)].push_back(std::move(instr));
      }
    }
    for (const F8Product& product : choice_.products()) rewrite(product);
    std::vector<Instr> all = std::move(of_weights);
    for (size_t i = 0; i < p_.instrs.size(); ++i) {
      all.push_back(std::move(p_.instrs[i]));
      std::move(after[i].begin(), after[i].end(), std::back_inserter(all));
    }
    p_.instrs = std::move(all);
    for (Memory& memory : memory_) {
      if (memory.history >= 0) remember(memory);
    }
    drop_casts();
  }

 private:
  // What is kept of the sizes of weights, or of all others.
  struct Memory {
    TensorId history = -1;   // the state
    TensorId sizes = -1;     // of this step, as far as they were collected
    int64_t next = 0;        // index of the next tensor
    size_t accumulator = 0;  // the source of `sizes`
  };

  TensorId add_tensor(DType dtype, std::vector<std::vector<int64_t>> dims, std::string name,
                      int32_t chunk) {
    ProgramTensor t;
    t.dtype = dtype;
    t.name = std::move(name);
    t.layout.set_dims(dims);
    t.layout.placements.resize(p_.mesh.axes.size());
    const Shape shape = t.layout.local_shape(p_.mesh);
    t.geometry = {0, shape, contiguous_strides(shape)};
    t.chunk = chunk;
    p_.tensors.push_back(std::move(t));
    return static_cast<TensorId>(p_.tensors.size() - 1);
  }

  Instr compute(const OpDef& op, const std::string& factors, Part part, int32_t chunk,
                std::string where) const {
    Instr instr;
    instr.op = &op;
    instr.signature = &Signature::get(factors);
    instr.splits.resize(p_.mesh.axes.size());
    instr.part = part;
    instr.chunk = chunk;
    instr.where = std::move(where);
    return instr;
  }

  void add_memory(Memory& memory, bool weights, int64_t tensors) {
    const std::string name = weights ? "f8.weights." : "f8.";
    const auto add = [&](SourceKind kind, const char* what,
                         std::vector<std::vector<int64_t>> dims) {
      const TensorId t = add_tensor(DType::kF32, std::move(dims), name + what, 0);
      p_.sources.push_back(
          {.kind = kind, .name = name + what, .init = {}, .roles = {}, .tensor = t, .final = t});
      p_.sources.back().optional = kind == SourceKind::kState;
      return t;
    };
    memory.history = add(SourceKind::kState, "history", {{tensors}, {kF8History}});
    memory.accumulator = p_.sources.size();
    memory.sizes = add(SourceKind::kAccumulator, "sizes", {{tensors}});
  }

  // Where the tensor is made; of a weight, when the step begins.
  Instr quantize(TensorId t, int32_t maker) {
    constexpr std::string_view kLetters = "ABCDEFGIJKLMNOPQ";
    Codes& codes = choice_.codes().at(t);
    const auto dims = p_.tensor(t).layout.dims();
    CLEAVE_ASSERT(dims.size() <= kLetters.size(), "a tensor of {} dimensions", dims.size());
    const std::string own(kLetters.substr(0, dims.size()));
    const std::string turned = own.substr(codes.turn) + own.substr(0, codes.turn);
    const std::string name = p_.tensor(t).name;
    const int32_t chunk = p_.tensor(t).chunk;
    std::string results;
    std::vector<TensorId> out;
    const DType dtype = codes.gradient ? DType::kF8E5M2 : DType::kF8E4M3;
    if (codes.plain) {
      results += own + ",";
      out.push_back(codes.values = add_tensor(dtype, dims, name + ".f8", chunk));
    }
    if (codes.turn > 0) {
      auto turned_dims = dims;
      std::rotate(turned_dims.begin(), turned_dims.begin() + static_cast<int64_t>(codes.turn),
                  turned_dims.end());
      results += turned + ",";
      out.push_back(codes.transposed =
                        add_tensor(dtype, std::move(turned_dims), name + ".f8t", chunk));
    }
    out.push_back(codes.inverse = add_tensor(DType::kF32, {}, name + ".f8.inverse", chunk));
    Memory& memory = memory_[maker < 0];
    const bool delayed = memory.history >= 0;
    const Part part = maker < 0 ? Part::kBegin : p_.instrs[static_cast<size_t>(maker)].part;
    Instr instr = compute(
        ops::quantize, own + (delayed ? ",TH,T" : "") + "->" + results + (delayed ? ",T" : ""),
        part, chunk, maker < 0 ? name : p_.instrs[static_cast<size_t>(maker)].where);
    instr.attrs.set("dtype", std::string(name_of(dtype)));
    instr.in = {t};
    instr.out = std::move(out);
    instr.letter_atoms = dims;
    if (!delayed) return instr;
    instr.attrs.set("index", memory.next++);
    instr.in.insert(instr.in.end(), {memory.history, memory.sizes});
    const auto sizes = p_.tensor(memory.sizes).layout.dims();
    const TensorId after = add_tensor(DType::kF32, sizes, p_.tensor(memory.sizes).name, chunk);
    instr.out.push_back(after);
    instr.letter_atoms.push_back(sizes[0]);
    instr.letter_atoms.push_back({kF8History});
    wishes_.push_back({.tensor = after, .target = memory.sizes, .must = true, .in_place = true});
    p_.sources[memory.accumulator].final = after;
    memory.sizes = after;
    return instr;
  }

  void rewrite(const F8Product& product) {
    Instr& instr = p_.instrs[product.instr];
    const Signature& s = *instr.signature;
    std::vector<TensorId> in, inverses;
    SignatureParts parts = s.parts();
    for (size_t o = 0; o < 2; ++o) {
      const Operand& operand = product.operands[o];
      const Codes& codes = choice_.codes().at(operand.tensor);
      in.push_back(operand.turn > 0 ? codes.transposed : codes.values);
      inverses.push_back(codes.inverse);
      std::string& own = parts.inputs[o];
      own = own.substr(operand.turn) + own.substr(0, operand.turn);
    }
    parts.inputs.insert(parts.inputs.begin() + 2, 2, "");  // the inverses of the scales
    const Signature& signature = Signature::get(parts);
    std::vector<std::vector<int64_t>> letter_atoms;
    for (const Factor& f : signature.factors()) {
      letter_atoms.push_back(instr.letter_atoms[static_cast<size_t>(s.factor(f.letter))]);
    }
    in.insert(in.end(), inverses.begin(), inverses.end());
    in.insert(in.end(), instr.in.begin() + 2, instr.in.end());
    const bool quick =
        instr.part == Part::kForward ? options_.quick_forward : options_.quick_backward;
    instr.op = &ops::scaled_matmul;
    instr.signature = &signature;
    instr.letter_atoms = std::move(letter_atoms);
    instr.in = std::move(in);
    instr.attrs.set("dtype", std::string(name_of(p_.tensor(instr.out[0]).dtype)));
    if (quick) instr.attrs.set("quick", int64_t{1});
  }

  // The update's end: the step's sizes become part of the history.
  void remember(const Memory& memory) {
    const std::string name = p_.tensor(memory.history).name;
    Instr instr = compute(ops::size_history, "TH,T->TH", Part::kUpdate, 0, name);
    const auto dims = p_.tensor(memory.history).layout.dims();
    instr.in = {memory.history, memory.sizes};
    instr.out = {add_tensor(DType::kF32, dims, name, 0)};
    instr.letter_atoms = dims;
    wishes_.push_back(
        {.tensor = instr.out[0], .target = memory.history, .must = true, .in_place = true});
    for (ProgramSource& s : p_.sources) {
      if (s.tensor == memory.history) s.final = instr.out[0];
    }
    p_.instrs.push_back(std::move(instr));
  }

  // Casts of weights that only such products read.
  void drop_casts() {
    forget_unread_copies(p_);
    std::vector<bool> read(p_.tensors.size(), false);
    for (const Instr& instr : p_.instrs) {
      for (TensorId t : instr.in) read[static_cast<size_t>(t)] = true;
    }
    for (const ProgramOutput& o : p_.outputs) read[static_cast<size_t>(o.tensor)] = true;
    for (const ProgramSource& s : p_.sources) {
      if (s.final >= 0) read[static_cast<size_t>(s.final)] = true;
    }
    std::erase_if(p_.instrs, [&](const Instr& instr) {
      return instr.kind == InstrKind::kCompute && instr.op == &ops::cast &&
             !read[static_cast<size_t>(instr.out[0])];
    });
  }

  Program& p_;
  const F8Options& options_;
  std::vector<SharingWish>& wishes_;
  Choice choice_;
  bool delayed_ = false;
  std::array<Memory, 2> memory_;  // of all others, of weights
};

}  // namespace

void use_f8(Program& program, const F8Options& options, std::vector<SharingWish>& wishes) {
  if (options.scaling == F8Scaling::kNone) return;
  if (program.ranks() != 1) fail("products of 8 bits are made on one GPU only");
  Rewriter(program, options, wishes).run();
}

}  // namespace cleave
