// Chains of pointwise ops and reductions as one op: what the fusion `chain` makes (executor/
// fuse_chains.cc). Here the reference, which runs the parts one after the other.
#include "kernels/chain.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cstring>
#include <memory>
#include <sstream>

#include "graph/error.h"
#include "kernels/cuda_kernel.h"
#include "kernels/loops.h"
#include "kernels/ops.h"

namespace cleave {

void chain_cuda(const KernelArgs&);  // kernels/cuda/chain.cc

// --- Text ----------------------------------------------------------------------------------------

namespace {

std::string ref_text(const ChainRef& ref) {
  if (ref.part < 0) return fmt::format("{}", ref.number);
  return ref.number == 0 ? fmt::format("p{}", ref.part)
                         : fmt::format("p{}.{}", ref.part, ref.number);
}

std::string value_text(const AttrValue& value) {
  if (const auto* n = std::get_if<int64_t>(&value)) return fmt::format("i{}", *n);
  if (const auto* x = std::get_if<double>(&value)) return fmt::format("d{:.17g}", *x);
  const auto* text = std::get_if<std::string>(&value);
  CLEAVE_ASSERT(text != nullptr && text->find_first_of(" ;=") == std::string::npos,
                "a part of a chain has an attribute that cannot be written");
  return "s" + *text;
}

int32_t whole(std::string_view text) {
  int32_t n = -1;
  const auto end = std::from_chars(text.data(), text.data() + text.size(), n);
  if (end.ec != std::errc() || end.ptr != text.data() + text.size() || n < 0) {
    fail("chain: '{}' is not a number", text);
  }
  return n;
}

ChainRef ref_of(std::string_view text, size_t parts) {
  if (text[0] != 'p') return {-1, whole(text)};
  const size_t dot = text.find('.');
  ChainRef ref{whole(text.substr(1, dot - 1)), 0};
  if (dot != std::string_view::npos) ref.number = whole(text.substr(dot + 1));
  if (static_cast<size_t>(ref.part) >= parts) fail("chain: part {} is not there yet", ref.part);
  return ref;
}

AttrValue value_of(const std::string& text) {
  if (text.empty()) fail("chain: an attribute without a value");
  const std::string rest = text.substr(1);
  switch (text[0]) {
    case 'i': return static_cast<int64_t>(std::stoll(rest));
    case 'd': return std::stod(rest);
    case 's': return rest;
    default: fail("chain: '{}' is no value of an attribute", text);
  }
}

std::vector<std::string> split(const std::string& text, char at) {
  std::vector<std::string> result;
  std::stringstream stream(text);
  for (std::string item; std::getline(stream, item, at);) {
    if (!item.empty()) result.push_back(item);
  }
  return result;
}

}  // namespace

Attrs attrs_of(const Chain& chain) {
  std::string parts, results;
  for (const ChainPart& p : chain.parts) {
    if (!parts.empty()) parts += "; ";
    parts += fmt::format("{} {}", p.op->name, p.signature->text());
    for (const ChainRef& ref : p.in) parts += " " + ref_text(ref);
    for (const auto& [name, value] : p.attrs.items()) {
      parts += fmt::format(" {}={}", name, value_text(value));
    }
  }
  for (const ChainRef& ref : chain.results) {
    results += (results.empty() ? "" : " ") + ref_text(ref);
  }
  return {{"parts", parts}, {"results", results}};
}

Chain chain_of(const Attrs& attrs) {
  Chain chain;
  for (const std::string& line : split(attrs.text("parts"), ';')) {
    const std::vector<std::string> words = split(line, ' ');
    if (words.size() < 2) fail("chain: '{}' is no part", line);
    ChainPart part;
    part.op = ops::find(words[0]);
    if (part.op == nullptr || part_kind(*part.op) == PartKind::kNone) {
      fail("chain: '{}' cannot be a part", words[0]);
    }
    part.signature = &Signature::get(words[1]);
    for (size_t w = 2; w < words.size(); ++w) {
      const size_t equals = words[w].find('=');
      if (equals == std::string::npos) {
        part.in.push_back(ref_of(words[w], chain.parts.size()));
      } else {
        part.attrs.set(words[w].substr(0, equals), value_of(words[w].substr(equals + 1)));
      }
    }
    chain.parts.push_back(std::move(part));
  }
  for (const std::string& word : split(attrs.text("results"), ' ')) {
    chain.results.push_back(ref_of(word, chain.parts.size()));
    if (chain.results.back().part < 0) fail("chain: an operand is no result");
  }
  return chain;
}

// --- Shapes --------------------------------------------------------------------------------------

PartKind part_kind(const OpDef& op) {
  if (!op.element.empty() || &op == &ops::add_n || &op == &ops::dropout) return PartKind::kElement;
  if (&op == &ops::sum || &op == &ops::max || &op == &ops::logsumexp) return PartKind::kReduce;
  if (&op == &ops::softmax || &op == &ops::softmax_backward) return PartKind::kRows;
  return PartKind::kNone;
}

std::vector<int8_t> axes_of(const Signature& part, const Signature& chain) {
  std::vector<int8_t> axes;
  for (const Factor& f : part.factors()) {
    const bool small = std::islower(static_cast<unsigned char>(f.letter)) != 0;
    const auto other = static_cast<char>(small ? f.letter - 'a' + 'A' : f.letter - 'A' + 'a');
    const int axis = std::max(chain.factor(f.letter), chain.factor(other));
    if (axis < 0) fail("chain: '{}' has no factor {}", chain.text(), f.letter);
    axes.push_back(static_cast<int8_t>(axis));
  }
  return axes;
}

namespace {

std::vector<int64_t> part_extents(const ChainPart& part, const Signature& chain,
                                  std::span<const int64_t> extents) {
  std::vector<int64_t> result;
  for (const int8_t axis : axes_of(*part.signature, chain)) {
    result.push_back(extents[static_cast<size_t>(axis)]);
  }
  return result;
}

}  // namespace

std::vector<std::vector<TensorType>> types_of(const Chain& chain, const OpCall& call) {
  std::vector<std::vector<TensorType>> types;
  for (const ChainPart& part : chain.parts) {
    std::vector<TensorType> in;
    for (const ChainRef& ref : part.in) {
      const auto n = static_cast<size_t>(ref.number);
      const auto& from = ref.part < 0 ? call.in : types[static_cast<size_t>(ref.part)];
      if (n >= from.size()) fail("chain: '{}' reads what is not there", part.op->name);
      in.push_back(from[n]);
    }
    const std::vector<int64_t> extents = part_extents(part, call.signature, call.extents);
    types.push_back(part.op->infer({*part.signature, extents, part.attrs, in}));
    for (const TensorType& t : types.back()) {
      if (!is_float(t.dtype)) fail("chain: {} makes {}", part.op->name, to_string(t));
    }
  }
  return types;
}

namespace {

using AxisSet = uint64_t;

// Goes over the parts and finds what they reduce, and what waits for what.
class Planner {
 public:
  Planner(const Chain& chain, const Signature& signature, std::span<const int64_t> extents)
      : chain_(chain), signature_(signature), extents_(extents) {}

  std::optional<ChainPlan> run() {
    for (const ChainPart& part : chain_.parts) {
      if (!add(part)) return {};
    }
    for (size_t r = 0; r < chain_.results.size(); ++r) {
      const AxisSet axes = axes_in(signature_.outputs()[r], identity());
      if (axes != full_ && axes != (full_ & ~reduced_)) return {};
      // A result along the kept axes is there once a row: it must not vary along the others.
      if (reduced_ == 0 && axes != full_) return {};
    }
    if (reduced_ != 0) {
      for (const AxisSet axes : reduced_from_) {
        if (axes != full_) return {};
      }
    }
    ChainPlan plan;
    for (const int8_t axis : order()) {
      const bool reduced = (reduced_ >> axis & 1) != 0;
      (reduced ? plan.reduced : plan.kept).push_back(axis);
      (reduced ? plan.length : plan.rows) *= extents_[static_cast<size_t>(axis)];
    }
    if (reductions_ == 0) return plan;
    const bool fastest = !plan.reduced.empty() && order().back() == plan.reduced.back();
    plan.reductions = reductions_;
    // Rows that are few and long are shared by several blocks.
    constexpr int64_t kFew = 264, kLong = 8192;
    const bool few = plan.rows < kFew && plan.length > kLong;
    if (again_) {
      if (!fastest && plan.length > 1) return {};
      if (few && plan.length > 8 * kLong) return {};
      plan.kind = ChainPlan::Kind::kRows;
    } else if (plan.length == 1 || (fastest && !few)) {
      plan.kind = ChainPlan::Kind::kRows;
    } else {
      plan.kind = ChainPlan::Kind::kSplit;
      plan.columns = !fastest;
      // Kernels that go down columns count in 32 bits.
      if (plan.columns && std::max(plan.rows, plan.length) > INT32_MAX / 2) return {};
      plan.pieces = pieces(plan);
    }
    return plan;
  }

 private:
  // Enough blocks for every GPU of today, and pieces that are worth a block.
  static int64_t pieces(const ChainPlan& plan) {
    constexpr int64_t kBlocks = 1024, kMost = 512;
    const int64_t across = plan.columns ? std::max<int64_t>(1, plan.rows / 256) : plan.rows;
    const int64_t least = plan.columns ? 32 : 4096;
    return std::clamp<int64_t>(std::min(kBlocks / across, plan.length / least), 1, kMost);
  }

  std::vector<int8_t> identity() const {
    std::vector<int8_t> axes;
    for (size_t f = 0; f < extents_.size(); ++f) axes.push_back(static_cast<int8_t>(f));
    return axes;
  }
  AxisSet axes_in(const OperandDims& dims, const std::vector<int8_t>& axes) const {
    AxisSet set = 0;
    for (const int8_t f : factors_of(dims)) {
      const int8_t axis = axes[static_cast<size_t>(f)];
      if (extents_[static_cast<size_t>(axis)] > 1) set |= AxisSet{1} << axis;
    }
    return set;
  }

  bool add(const ChainPart& part) {
    const PartKind kind = part_kind(*part.op);
    if (kind == PartKind::kNone) return false;
    const std::vector<int8_t> axes = axes_of(*part.signature, signature_);
    const AxisSet from =
        part.signature->inputs().empty() ? 0 : axes_in(part.signature->inputs()[0], axes);
    const AxisSet to = axes_in(part.signature->outputs()[0], axes);
    bool waits = false;
    for (const ChainRef& ref : part.in) {
      waits |= ref.part >= 0 && waits_[static_cast<size_t>(ref.part)];
    }
    full_ |= from | to;
    AxisSet gone = 0;
    if (kind == PartKind::kReduce) gone = from & ~to;
    if (kind == PartKind::kRows) {
      for (size_t f = 0; f < axes.size(); ++f) {
        const bool counts = extents_[static_cast<size_t>(axes[f])] > 1;
        if (part.signature->factors()[f].whole && counts) gone |= AxisSet{1} << axes[f];
      }
    }
    if (kind == PartKind::kElement) {
      // Of an element at a place along the reduced axes; which they are shows at the end.
      if (waits) maps_.push_back(to);
    } else {
      if (reductions_ > 0 && gone != reduced_) return false;
      reduced_ = gone;
      reductions_ += kind == PartKind::kRows || part.op == &ops::logsumexp ? 2 : 1;
      reduced_from_.push_back(from);
      // A log-sum-exp takes the maximum first.
      again_ |= waits || kind == PartKind::kRows || part.op == &ops::logsumexp;
      waits = true;
    }
    for (const AxisSet m : maps_) again_ |= (m & reduced_) != 0;
    waits_.push_back(waits);
    return true;
  }

  // All axes in the order of the widest operand or result.
  std::vector<int8_t> order() const {
    std::vector<int8_t> found;
    const std::vector<int8_t> axes = identity();
    const auto take = [&](const OperandDims& dims) {
      for (const int8_t f : factors_of(dims)) {
        const bool counts = (full_ >> f & 1) != 0;
        if (counts && std::find(found.begin(), found.end(), f) == found.end()) found.push_back(f);
      }
    };
    for (const bool whole : {true, false}) {
      for (const auto* list : {&signature_.inputs(), &signature_.outputs()}) {
        for (const OperandDims& dims : *list) {
          if (!whole || axes_in(dims, axes) == full_) take(dims);
        }
      }
    }
    return found;
  }

  const Chain& chain_;
  const Signature& signature_;
  std::span<const int64_t> extents_;
  AxisSet full_ = 0, reduced_ = 0;
  std::vector<AxisSet> reduced_from_, maps_;
  std::vector<bool> waits_;  // by part: for a reduction
  int reductions_ = 0;
  bool again_ = false;  // rows are gone over again after a reduction
};

}  // namespace

std::optional<ChainPlan> plan_of(const Chain& chain, const Signature& signature,
                                 std::span<const int64_t> extents) {
  return Planner(chain, signature, extents).run();
}

// --- The op --------------------------------------------------------------------------------------

namespace {

std::vector<TensorType> chain_infer(const OpCall& call) {
  const Chain chain = chain_of(call.attrs);
  if (chain.results.size() != call.signature.outputs().size()) {
    fail("chain: {} results for '{}'", chain.results.size(), call.signature.text());
  }
  const auto types = types_of(chain, call);
  std::vector<TensorType> out;
  for (size_t r = 0; r < chain.results.size(); ++r) {
    const ChainRef& ref = chain.results[r];
    const auto& made = types[static_cast<size_t>(ref.part)];
    if (static_cast<size_t>(ref.number) >= made.size()) fail("chain: result {} is not there", r);
    out.push_back(made[static_cast<size_t>(ref.number)]);
    if (out.back().shape != shape_of(call.signature.outputs()[r], call.extents)) {
      fail("chain: result {} is {}, not as '{}'", r, to_string(out.back()), call.signature.text());
    }
  }
  if (!plan_of(chain, call.signature, call.extents)) {
    fail("chain: no one kernel does '{}'", call.attrs.text("parts"));
  }
  return out;
}

double chain_flops(const OpCall& call) {
  const Chain chain = chain_of(call.attrs);
  const auto types = types_of(chain, call);
  double flops = 0;
  for (const ChainPart& part : chain.parts) {
    std::vector<TensorType> in;
    for (const ChainRef& ref : part.in) {
      const auto n = static_cast<size_t>(ref.number);
      in.push_back(ref.part < 0 ? call.in[n] : types[static_cast<size_t>(ref.part)][n]);
    }
    const std::vector<int64_t> extents = part_extents(part, call.signature, call.extents);
    flops += part.op->flops({*part.signature, extents, part.attrs, in});
  }
  return flops;
}

// A part's result in memory of its own.
struct Temporary {
  std::unique_ptr<double[]> memory;
  TensorView view;

  explicit Temporary(const TensorType& type) {
    const auto bytes = static_cast<size_t>(numel(type.shape) * size_of(type.dtype));
    memory = std::make_unique<double[]>(bytes / sizeof(double) + 8);
    view = {memory.get(), type.dtype, type.shape, contiguous_strides(type.shape)};
  }
};

// Results may lie on operands, which later parts may read: they are copied there at the end.
void chain_cpu(const KernelArgs& args) {
  const Chain chain = chain_of(args.attrs);
  std::vector<int64_t> sizes;
  for (const Extent& e : args.extents) sizes.push_back(e.local);
  std::vector<TensorType> in_types;
  for (const TensorView& t : args.in) in_types.push_back({t.dtype, t.shape});
  const auto types = types_of(chain, {args.signature, sizes, args.attrs, in_types});
  std::vector<std::vector<Temporary>> made;
  for (size_t p = 0; p < chain.parts.size(); ++p) {
    const ChainPart& part = chain.parts[p];
    std::vector<TensorView> in, out;
    std::vector<TensorType> part_in;
    for (const ChainRef& ref : part.in) {
      const auto n = static_cast<size_t>(ref.number);
      in.push_back(ref.part < 0 ? args.in[n] : made[static_cast<size_t>(ref.part)][n].view);
      part_in.push_back({in.back().dtype, in.back().shape});
    }
    made.emplace_back();
    for (const TensorType& type : types[p]) {
      made.back().emplace_back(type);
      out.push_back(made.back().back().view);
    }
    std::vector<Extent> extents;
    std::vector<int64_t> part_sizes;
    for (const int8_t axis : axes_of(*part.signature, args.signature)) {
      extents.push_back(args.extents[static_cast<size_t>(axis)]);
      part_sizes.push_back(extents.back().local);
    }
    KernelArgs of_part{.signature = *part.signature,
                       .attrs = part.attrs,
                       .in = in,
                       .out = out,
                       .extents = extents,
                       .seed = args.seed,
                       .team = args.team};
    std::vector<double> workspace;
    if (part.op->workspace != nullptr) {
      const int64_t bytes = part.op->workspace({*part.signature, part_sizes, part.attrs, part_in});
      workspace.resize(static_cast<size_t>(bytes) / sizeof(double) + 8);
      of_part.workspace = workspace.data();
    }
    part.op->cpu(of_part);
  }
  for (size_t r = 0; r < chain.results.size(); ++r) {
    const ChainRef& ref = chain.results[r];
    copy_elements(made[static_cast<size_t>(ref.part)][static_cast<size_t>(ref.number)].view,
                  args.out[r]);
  }
}

int64_t chain_cuda_workspace(const OpCall& call) {
  const auto plan = plan_of(chain_of(call.attrs), call.signature, call.extents);
  if (!plan || plan->kind != ChainPlan::Kind::kSplit) return 0;
  return plan->reductions * plan->pieces * plan->rows * static_cast<int64_t>(sizeof(double));
}

}  // namespace

constinit const OpDef ops::chain = {
    .name = "chain",
    .factors = "...->...",  // the fusion spells it out
    .infer = chain_infer,
    .flops = chain_flops,
    .cpu = chain_cpu,
    .cuda = cuda_kernel<chain_cuda>(),
    .cuda_workspace = chain_cuda_workspace,
};

}  // namespace cleave
