#include "kernels/cuda/chain_nodes.h"

#include <algorithm>

#include "graph/error.h"
#include "kernels/cuda/generated.h"
#include "kernels/loops.h"
#include "kernels/ops.h"

namespace cleave {
namespace {

class Builder {
 public:
  Builder(const Chain& chain, const Signature& signature, std::span<const int64_t> extents,
          std::span<const DType> in, std::span<const DType> out)
      : chain_(chain), signature_(signature), extents_(extents) {
    for (const auto list : {in, out}) {
      for (const DType t : list) made_.is_double |= t == DType::kF64;
    }
    operands_.assign(in.size(), -1);
  }

  ChainNodes run() {
    for (const ChainPart& part : chain_.parts) add_part(part);
    for (const ChainRef& ref : chain_.results) made_.results.push_back(node_of(ref));
    return std::move(made_);
  }

 private:
  int add(ChainNode node) {
    for (const int i : node.in) {
      node.axes |= made_.at(i).axes;
      node.stage = std::max(node.stage, made_.at(i).stage);
    }
    if (node.kind == ChainNode::Kind::kReduce) {
      node.axes &= ~reduced_;
      ++node.stage;
    }
    // The same of the same is there already.
    for (size_t n = 0; n < made_.nodes.size(); ++n) {
      const ChainNode& other = made_.nodes[n];
      if (other.kind == node.kind && other.index == node.index && other.text == node.text &&
          other.in == node.in && other.max == node.max && other.axes == node.axes) {
        return static_cast<int>(n);
      }
    }
    made_.nodes.push_back(std::move(node));
    return static_cast<int>(made_.nodes.size() - 1);
  }

  int element(std::string text, std::vector<int> in) {
    ChainNode node;
    for (const char* word : {"exp", "log", "sqrt", "tanh", "sig", "silu", "gelu", "/"}) {
      node.costly |= text.find(word) != std::string::npos;
    }
    node.text = std::move(text);
    node.in = std::move(in);
    return add(std::move(node));
  }

  int reduce(int of, bool max) {
    ChainNode node;
    node.kind = ChainNode::Kind::kReduce;
    node.in = {of};
    node.max = max;
    return add(std::move(node));
  }

  int node_of(const ChainRef& ref) {
    if (ref.part >= 0) {
      return results_[static_cast<size_t>(ref.part)][static_cast<size_t>(ref.number)];
    }
    int& known = operands_[static_cast<size_t>(ref.number)];
    if (known >= 0) return known;
    ChainNode node;
    node.kind = ChainNode::Kind::kOperand;
    node.index = ref.number;
    for (const int8_t f : factors_of(signature_.inputs()[static_cast<size_t>(ref.number)])) {
      if (extents_[static_cast<size_t>(f)] > 1) node.axes |= AxisSet{1} << f;
    }
    return known = add(std::move(node));
  }

  // Sets the axes that the part reduces.
  void note_reduced(const ChainPart& part) {
    const std::vector<int8_t> axes = axes_of(*part.signature, signature_);
    const bool rows = part_kind(*part.op) == PartKind::kRows;
    reduced_ = 0;
    for (size_t f = 0; f < axes.size(); ++f) {
      const bool gone = rows ? part.signature->factors()[f].whole
                             : part.signature->reduced_in(static_cast<int>(f), 0);
      if (gone) reduced_ |= AxisSet{1} << axes[f];
    }
  }

  void add_part(const ChainPart& part) {
    std::vector<int> in;
    for (const ChainRef& ref : part.in) in.push_back(node_of(ref));
    const OpDef* op = part.op;
    std::vector<int> out;
    if (part_kind(*op) != PartKind::kElement) note_reduced(part);
    // What the maximum is subtracted as: 0 where all elements are -infinity.
    const auto shifted = [&](int of) {
      const int top =
          element("a == below_all<decltype(a)>() ? decltype(a){} : a", {reduce(of, true)});
      return std::pair(top, element("exp_near(a - b)", {of, top}));
    };
    if (op == &ops::sum || op == &ops::max) {
      out = {reduce(in[0], op == &ops::max)};
    } else if (op == &ops::logsumexp) {
      const auto [top, shares] = shifted(in[0]);
      out = {element("a + log_of(b)", {top, reduce(shares, false)})};
    } else if (op == &ops::softmax) {
      const auto [top, shares] = shifted(in[0]);
      out = {element("a * b", {shares, element("1 / a", {reduce(shares, false)})})};
    } else if (op == &ops::softmax_backward) {
      const int dot = reduce(element("a * b", {in[0], in[1]}), false);
      out = {element("a * (b - c)", {in[0], in[1], dot})};
    } else if (op == &ops::dropout) {
      ChainNode mask;
      mask.kind = ChainNode::Kind::kMask;
      mask.index = static_cast<int32_t>(made_.masks.size());
      ChainMask m{part.attrs.text("name"), part.attrs.real("p"), part.in[1].number, {}};
      const std::vector<int8_t> axes = axes_of(*part.signature, signature_);
      for (const int8_t f : factors_of(part.signature->inputs()[0])) {
        m.axes.push_back(axes[static_cast<size_t>(f)]);
        if (extents_[static_cast<size_t>(m.axes.back())] > 1) {
          mask.axes |= AxisSet{1} << m.axes.back();
        }
      }
      mask.costly = true;
      made_.masks.push_back(std::move(m));
      out = {element("a * b", {in[0], add(std::move(mask))})};
    } else if (op == &ops::add_n) {
      std::string text = "a";
      for (size_t i = 1; i < in.size(); ++i) text += " + " + operand_name(i);
      out = {element(text, in)};
    } else {
      for (const std::string& text :
           expressions(filled_in(op->element, part.attrs, made_.is_double))) {
        out.push_back(element(text, in));
      }
    }
    results_.push_back(std::move(out));
  }

  const Chain& chain_;
  const Signature& signature_;
  std::span<const int64_t> extents_;
  ChainNodes made_;
  std::vector<int> operands_;              // by operand: its node
  std::vector<std::vector<int>> results_;  // by part
  AxisSet reduced_ = 0;                    // of the part at hand
};

}  // namespace

ChainNodes nodes_of(const Chain& chain, const Signature& signature,
                    std::span<const int64_t> extents, std::span<const DType> in,
                    std::span<const DType> out) {
  return Builder(chain, signature, extents, in, out).run();
}

}  // namespace cleave
