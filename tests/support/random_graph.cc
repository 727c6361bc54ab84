#include "tests/support/random_graph.h"

#include <fmt/format.h>

#include <optional>

#include "tracer/functional.h"
#include "tracer/optimizer.h"

namespace cleave::testing {
namespace {

class Model {
 public:
  explicit Model(std::mt19937& random) : random_(random) {}

  // Returns the tensors that nothing reads.
  std::vector<Tensor> build(int ops) {
    add_data();
    if (chance(4)) add_data();
    use(0);
    push(linear(pool_[0].tensor, weight({size(), pool_[0].tensor.size(-1)})));
    for (int i = 1; i < ops;) i += step();
    std::vector<Tensor> leaves;
    for (const Entry& e : pool_) {
      if (!e.used) leaves.push_back(e.tensor);
    }
    return leaves;
  }

  bool chance(size_t one_in) { return pick(one_in) == 0; }

 private:
  struct Entry {
    Tensor tensor;
    bool used = false;
  };

  size_t pick(size_t n) { return random_() % n; }
  int64_t size() {
    constexpr int64_t kSizes[] = {2, 3, 4, 4, 6, 6, 8, 12};
    return kSizes[pick(std::size(kSizes))];
  }
  Tensor weight(Shape shape) {
    return parameter(fmt::format("w{}", names_++), std::move(shape), {Init::Kind::kNormal, 0.02});
  }
  void push(const Tensor& t) { pool_.push_back({t.to(Tracer::current().compute_dtype())}); }
  void use(size_t entry) { pool_[entry].used = true; }

  void add_data() {
    const Shape ids = chance(2) ? Shape{size(), size()} : Shape{size()};
    std::vector<std::string> roles = {"batch", "sequence"};
    roles.resize(ids.size());
    if (chance(3)) {
      const Tensor tokens = data(fmt::format("ids{}", names_++), ids, DType::kI32, roles);
      push(embedding(weight({size(), size()}), tokens));
      // The same data read by another op.
      if (chance(3)) push(embedding(weight({size(), size()}), tokens));
      return;
    }
    Shape shape = ids;
    shape.push_back(size());
    roles.emplace_back();
    push(data(fmt::format("x{}", names_++), shape, Tracer::current().compute_dtype(), roles));
  }

  // Another tensor of this shape, perhaps itself.
  size_t alike(size_t entry) {
    std::vector<size_t> found;
    for (size_t i = 0; i < pool_.size(); ++i) {
      if (pool_[i].tensor.shape() == pool_[entry].tensor.shape()) found.push_back(i);
    }
    return found[pick(found.size())];
  }

  // Adds one op where it fits; how many were added.
  int step() {
    const size_t at = chance(3) ? pick(pool_.size()) : pool_.size() - 1;
    const Tensor x = pool_[at].tensor;
    const int64_t rank = x.rank(), last = rank > 0 ? x.size(-1) : 1;
    if (rank == 0 || x.numel() > 4000) return 0;
    const int64_t dim = static_cast<int64_t>(pick(static_cast<size_t>(rank)));
    const auto add = [&](const Tensor& t) {
      use(at);
      push(t);
      return 1;
    };
    switch (pick(22)) {
      case 0:
      case 1:
      case 2: return add(linear(x, weight({size(), last})));
      case 3: return add(x + weight({last}));
      case 4:
      case 5: {
        const size_t other = alike(at);
        const Tensor y = pool_[other].tensor;
        use(other);
        return add(chance(2) ? x + y : x * y);
      }
      case 6: return add(gelu(x));
      case 7: return add(softmax(x));
      case 8: return add(layer_norm(x, weight({last}), weight({last})));
      case 9: return add(rms_norm(x, weight({last})));
      case 10: return add(sum(x, {dim}, chance(3)));
      case 11: return add(chance(2) ? x * 0.5 : dropout(x, 0.25));
      case 12: return rank > 1 ? add(x.transpose(dim, -1)) : 0;
      case 13: {  // takes a dimension apart
        if (rank > 3) return 0;
        Shape shape = x.shape();
        const int64_t whole = shape[static_cast<size_t>(dim)];
        const int64_t part = whole % 2 == 0 ? 2 : 3;
        if (whole % part != 0 || whole == part) return 0;
        shape[static_cast<size_t>(dim)] = chance(2) ? part : whole / part;
        shape.insert(shape.begin() + dim + 1, whole / shape[static_cast<size_t>(dim)]);
        return add(x.reshape(shape));
      }
      case 14: {  // puts two together
        if (rank < 2 || dim + 1 == rank) return 0;
        Shape shape = x.shape();
        shape[static_cast<size_t>(dim)] *= shape[static_cast<size_t>(dim) + 1];
        shape.erase(shape.begin() + dim + 1);
        return add(x.reshape(shape));
      }
      case 15: {
        const int64_t parts = last % 3 == 0 ? 3 : 2;
        if (last % parts != 0 || last == parts || rank > 3) return 0;
        use(at);
        for (const Tensor& t : x.chunk(parts, -1)) push(t);
        return 1;
      }
      case 16: return rank == 3 ? add(contract(x, x, "abk,ack->abc")) : 0;
      case 17: return last > 2 ? add(x.slice(-1, 0, last / 2)) : 0;
      case 18: return add(logsumexp(x, {dim}));
      case 19: {
        const size_t other = alike(at);
        use(other);
        return add(swiglu(x, pool_[other].tensor));
      }
      // Views of parameters.
      case 20: return add(x * weight({last}).expand(x.shape()));
      case 21: return rank > 1 ? add(matmul(x, weight({size(), last}).t())) : 0;
    }
    return 0;
  }

  std::mt19937& random_;
  std::vector<Entry> pool_;
  int names_ = 0;
};

}  // namespace

Graph random_model_graph(std::mt19937& random, const RandomGraphOptions& options) {
  TracerOptions tracer_options;
  if (options.bf16) tracer_options.compute = DType::kBF16;
  Tracer tracer("random", tracer_options);
  Model model(random);
  const std::vector<Tensor> leaves = model.build(options.ops);
  if (!options.training) {
    for (size_t i = 0; i < leaves.size(); ++i) tracer.output(fmt::format("y{}", i), leaves[i]);
    return without_dead_nodes(tracer.finish());
  }
  std::optional<Tensor> loss;
  for (const Tensor& leaf : leaves) {
    Tensor term;
    if (leaf.rank() > 1 && model.chance(3)) {
      const Shape shape(leaf.shape().begin(), leaf.shape().end() - 1);
      const std::string name = fmt::format("targets{}", tracer.graph().sources().size());
      term = cross_entropy(leaf, data(name, shape, DType::kI32));
    } else {
      term = leaf.rank() == 0 ? leaf : mean(leaf);
    }
    term = term.to(DType::kF32);
    loss = loss ? *loss + term : term;
  }
  OptimizerOptions optimizer;
  optimizer.kind = model.chance(3) ? OptimizerOptions::Kind::kAdamW : OptimizerOptions::Kind::kSgd;
  optimize(*loss, optimizer);
  return without_dead_nodes(tracer.finish());
}

Graph with_backward_untied(const Graph& graph) {
  Graph copy;
  copy.name = graph.name;
  for (const std::string& file : graph.files()) copy.intern_file(file);
  std::vector<Value> value_of(graph.values().size(), kNoValue);
  const auto mapped = [&](Value v) {
    return v == kNoValue ? kNoValue : value_of[static_cast<size_t>(v)];
  };
  for (const Source& s : graph.sources()) {
    Source source = s;
    source.value = source.final = kNoValue;
    value_of[static_cast<size_t>(s.value)] = copy.add_source(source, graph.type(s.value));
  }
  for (const Node& n : graph.nodes()) {
    copy.cursor = {.phase = n.phase,
                   .follows = n.phase == Phase::kBackward ? kNoNode : n.follows,
                   .loc = n.loc,
                   .scope = copy.intern_scope(graph.scopes()[static_cast<size_t>(n.scope)])};
    std::vector<Value> inputs, writes;
    for (Value v : n.inputs) inputs.push_back(mapped(v));
    for (Value v : n.writes) writes.push_back(mapped(v));
    const auto outputs = copy.add(*n.op, inputs, n.signature->text(), n.attrs, writes);
    for (size_t o = 0; o < outputs.size(); ++o) {
      value_of[static_cast<size_t>(n.outputs[o])] = outputs[o];
    }
  }
  for (const Output& o : graph.outputs()) copy.add_output(o.name, mapped(o.value));
  for (const Source& s : graph.sources()) {
    if (s.kind != SourceKind::kData) copy.set_final(mapped(s.value), mapped(s.final));
  }
  return copy;
}

}  // namespace cleave::testing
