// Dimension classes: the design's worked example, compounds and their contradictions, and the
// partition of random graphs' atoms against a search over what joins them.
#include "planner/dimensions.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <gtest/gtest.h>

#include <cctype>
#include <map>
#include <random>
#include <set>

#include "kernels/ops.h"
#include "models/trace.h"
#include "tests/support/random_graph.h"
#include "tracer/functional.h"
#include "tracer/optimizer.h"

namespace cleave {
namespace {

// "3x4 5": the atoms of a value, dimension by dimension.
std::string atoms_of(const Dimensions& d, Value v) {
  std::string text;
  int dim = -1;
  for (const ValueAtom& a : d.values[static_cast<size_t>(v)]) {
    text += dim < 0 ? "" : a.dim == dim ? "x" : " ";
    text += fmt::format("{}", a.size);
    dim = a.dim;
  }
  return text;
}

std::vector<ClassId> classes_of(const Dimensions& d, Value v) {
  std::vector<ClassId> classes;
  for (const ValueAtom& a : d.values[static_cast<size_t>(v)]) classes.push_back(a.dimension_class);
  return classes;
}

Value source(const Graph& g, const std::string& name) {
  const Source* s = g.source_named(name);
  if (s == nullptr) throw std::runtime_error("no " + name);
  return s->value;
}

Value data_of(Graph& g, const std::string& name, Shape shape) {
  Source s;
  s.name = name;
  return g.add_source(s, {DType::kF32, std::move(shape)});
}

// h = gelu(x A), y = x + h B, where x depends on a parameter too.
Graph worked_example() {
  return trace_training_step(
      "example",
      [] {
        const Tensor in = data("in", {2, 3, 5}, DType::kF32, {"batch", "sequence", ""});
        const Tensor x = in * parameter("gain", {5}, {Init::Kind::kNormal, 0.1});
        const Tensor a = parameter("A", {7, 5}, {Init::Kind::kNormal, 0.1});
        const Tensor b = parameter("B", {5, 7}, {Init::Kind::kNormal, 0.1});
        return mean(square(x + linear(gelu(linear(x, a)), b)));
      },
      {});
}

TEST(Dimensions, WorkedExample) {
  const Graph g = worked_example();
  const Dimensions d = find_dimensions(g);
  std::map<std::string, int64_t> found;
  for (const DimensionClass& c : d.classes) {
    if (c.size == 1) continue;
    EXPECT_TRUE(found.emplace(c.name, c.size).second) << c.name;
  }
  const std::map<std::string, int64_t> expected = {
      {"batch", 2}, {"sequence", 3}, {"in[2]", 5}, {"A[0]", 7}};
  EXPECT_EQ(found, expected);
  const auto a = classes_of(d, source(g, "A")), b = classes_of(d, source(g, "B"));
  EXPECT_EQ(a[0], b[1]);
  EXPECT_EQ(a[1], b[0]);
  EXPECT_NE(a[0], a[1]);
  // Moments lie as their parameters do, and so do the next values.
  EXPECT_EQ(classes_of(d, source(g, "adam.m.A")), a);
  EXPECT_EQ(classes_of(d, g.source_named("A")->final), a);
  EXPECT_EQ(d.class_with_role("batch"), classes_of(d, source(g, "in"))[0]);
  EXPECT_EQ(d.class_with_role("head"), -1);
}

// The fused projection's rows are (3, heads, head size); the merge of heads meets the second
// projection's columns.
TEST(Dimensions, FusedProjection) {
  ModelConfig config = model_named("gpt2:tiny");
  config.layers = 1;
  config.batch = 2;
  const Graph g = trace(config);
  const Dimensions d = find_dimensions(g);
  const Value qkv = source(g, "h.0.attn.qkv.weight"), proj = source(g, "h.0.attn.proj.weight");
  EXPECT_EQ(atoms_of(d, qkv), "3x4x32 128");
  EXPECT_EQ(atoms_of(d, proj), "128 4x32");
  EXPECT_EQ(atoms_of(d, source(g, "h.0.attn.qkv.bias")), "3x4x32");
  const auto rows = classes_of(d, qkv), columns = classes_of(d, proj);
  EXPECT_EQ(rows[1], columns[1]) << "heads";
  // Queries and keys share a head's numbers, values and results another: the product over the
  // former ends there, but one unbind made all three.
  EXPECT_EQ(rows[2], columns[2]);
  EXPECT_EQ(rows[3], columns[0]) << "the residual stream's width";
  for (size_t n = 0; n < g.nodes().size(); ++n) {
    for (const bool contradicts : d.contradicts[n]) EXPECT_FALSE(contradicts);
  }
}

TEST(Dimensions, GroupedQueries) {
  ModelConfig config = model_named("llama:tiny");
  config.layers = 1;
  const Graph g = trace(config);
  const Dimensions d = find_dimensions(g);
  for (size_t n = 0; n < g.nodes().size(); ++n) {
    const Node& node = g.nodes()[n];
    if (node.op != &ops::attention) continue;
    // 4 heads in 2 groups of 2; the keys' heads are the groups.
    EXPECT_EQ(atoms_of(d, node.inputs[0]), "8 64 2x2 32");
    EXPECT_EQ(atoms_of(d, node.inputs[1]), "8 64 2 32");
    const auto q = classes_of(d, node.inputs[0]), k = classes_of(d, node.inputs[1]);
    EXPECT_EQ(q[2], k[2]);
    EXPECT_NE(q[2], q[3]);
    EXPECT_EQ(q[1], k[1]) << "queries and keys run along one sequence";
  }
  const auto find = [&](const std::string& name) { return classes_of(d, source(g, name)); };
  EXPECT_EQ(find("layers.0.attn.q.weight")[0], find("layers.0.attn.k.weight")[0]);
}

struct Apart {
  Graph graph;
  Value x = kNoValue;
  Dimensions dims;
  bool contradicts(NodeId n) const {
    const auto& list = dims.contradicts[static_cast<size_t>(n)];
    return std::find(list.begin(), list.end(), true) != list.end();
  }
};

// One dimension taken apart by several reshapes, each with the sizes of its factors.
Apart take_apart(int64_t size, const std::vector<std::vector<int64_t>>& ways) {
  Apart r;
  r.x = data_of(r.graph, "x", {size});
  for (const auto& sizes : ways) {
    const std::string letters = std::string("abcdef").substr(0, sizes.size());
    Attrs attrs;
    for (size_t i = 0; i < sizes.size(); ++i) attrs.set(letters.substr(i, 1), sizes[i]);
    const Value y =
        r.graph.add1(ops::reshape, {r.x}, fmt::format("({})->{}", letters, letters), attrs);
    r.graph.add_output(fmt::format("y{}", r.graph.nodes().size()), y);
  }
  r.dims = find_dimensions(r.graph);
  return r;
}

TEST(Dimensions, CompoundsThatAgree) {
  const Apart r = take_apart(24, {{2, 12}, {6, 4}, {2, 3, 2, 2}, {24 / 4, 4}});
  EXPECT_EQ(atoms_of(r.dims, r.x), "2x3x2x2");
  for (NodeId n = 0; n < 4; ++n) EXPECT_FALSE(r.contradicts(n));
  EXPECT_EQ(atoms_of(r.dims, r.graph.node(0).outputs[0]), "2 3x2x2");
  EXPECT_EQ(atoms_of(r.dims, r.graph.node(1).outputs[0]), "2x3 2x2");
}

// Only what came later is rigid, and leaves no trace in the dimension.
TEST(Dimensions, CompoundsThatContradict) {
  const Apart r = take_apart(12, {{3, 4}, {4, 3}});
  EXPECT_EQ(atoms_of(r.dims, r.x), "3x4");
  EXPECT_FALSE(r.contradicts(0));
  EXPECT_TRUE(r.contradicts(1));
  const auto x = classes_of(r.dims, r.x), late = classes_of(r.dims, r.graph.node(1).outputs[0]);
  EXPECT_EQ(classes_of(r.dims, r.graph.node(0).outputs[0]), x);
  for (ClassId c : late) EXPECT_EQ(std::count(x.begin(), x.end(), c), 0);

  const Apart half = take_apart(12, {{3, 4}, {2, 3, 2}});  // its inner 2 would fit, its 6 does not
  EXPECT_EQ(atoms_of(half.dims, half.x), "3x4");
  EXPECT_FALSE(half.contradicts(0));
  EXPECT_TRUE(half.contradicts(1));
  EXPECT_EQ(atoms_of(half.dims, half.graph.node(1).outputs[0]), "2 3 2");
}

TEST(Dimensions, FactorsOfSizeOne) {
  const Apart r = take_apart(6, {{1, 6}, {6, 1}, {2, 1, 3}, {1, 1, 6}});
  EXPECT_EQ(atoms_of(r.dims, r.x), "2x3");
  for (NodeId n = 0; n < 4; ++n) EXPECT_FALSE(r.contradicts(n));
  EXPECT_EQ(atoms_of(r.dims, r.graph.node(2).outputs[0]), "2 1 3");
  EXPECT_EQ(classes_of(r.dims, r.graph.node(0).outputs[0])[1], classes_of(r.dims, r.x)[0]);
  EXPECT_EQ(atoms_of(take_apart(1, {{1, 1}}).dims, 0), "1");
}

// A dimension that is broadcast belongs to nobody else's class.
TEST(Dimensions, Broadcast) {
  Graph g;
  const Value x = data_of(g, "x", {4, 6}), column = data_of(g, "column", {4, 1}),
              row = data_of(g, "row", {6});
  const Value y = g.add1(ops::add, {g.add1(ops::add, {x, column}), row});
  const Dimensions d = find_dimensions(g);
  const auto xs = classes_of(d, x), columns = classes_of(d, column);
  EXPECT_EQ(classes_of(d, y), xs);
  EXPECT_EQ(columns[0], xs[0]);
  EXPECT_NE(columns[1], xs[1]);
  EXPECT_EQ(d.classes[static_cast<size_t>(columns[1])].size, 1);
  EXPECT_EQ(classes_of(d, row)[0], xs[1]);
}

// A node that follows another shares its classes by letter, whatever the case.
TEST(Dimensions, FollowersShareByLetter) {
  Graph g;
  const Value x = data_of(g, "x", {4, 6}), z = data_of(g, "z", {4, 6}), w = data_of(g, "w", {4, 8});
  g.add1(ops::softmax, {x}, "aS->aS");
  g.cursor.follows = 0;
  g.add1(ops::neg, {z}, "as->as");
  g.add1(ops::neg, {w}, "as->as");  // the same letter of another size is another dimension
  const Dimensions d = find_dimensions(g);
  EXPECT_EQ(classes_of(d, z), classes_of(d, x));
  EXPECT_EQ(classes_of(d, w)[0], classes_of(d, x)[0]);
  EXPECT_NE(classes_of(d, w)[1], classes_of(d, x)[1]);
}

// --- Random graphs -------------------------------------------------------------------------------

// Checks sizes, and the classes against the components of all atoms under what joins them.
void expect_consistent(const Graph& g) {
  const Dimensions d = find_dimensions(g);
  std::vector<const Atom*> atoms;
  std::vector<std::vector<size_t>> value_first(g.values().size()), factor_first(g.nodes().size());
  std::map<const Atom*, size_t> index;
  const auto number = [&](const Atom& a) {
    index[&a] = atoms.size();
    atoms.push_back(&a);
    EXPECT_EQ(d.classes[static_cast<size_t>(a.dimension_class)].size, a.size);
  };
  for (const auto& list : d.values) {
    for (const ValueAtom& a : list) number(a);
  }
  for (const auto& node : d.factors) {
    for (const auto& list : node) {
      for (const Atom& a : list) number(a);
    }
  }
  std::vector<std::vector<size_t>> joined(atoms.size());
  const auto join = [&](const Atom& a, const Atom& b) {
    EXPECT_EQ(a.dimension_class, b.dimension_class);
    joined[index[&a]].push_back(index[&b]);
    joined[index[&b]].push_back(index[&a]);
  };
  for (size_t v = 0; v < g.values().size(); ++v) {
    const Shape& shape = g.values()[v].type.shape;
    Shape product(shape.size(), 1);
    for (const ValueAtom& a : d.values[v]) product[static_cast<size_t>(a.dim)] *= a.size;
    ASSERT_EQ(product, shape);
  }
  for (size_t n = 0; n < g.nodes().size(); ++n) {
    const Node& node = g.nodes()[n];
    for (size_t f = 0; f < node.extents.size(); ++f) {
      int64_t product = 1;
      for (const Atom& a : d.factors[n][f]) product *= a.size;
      ASSERT_EQ(product, node.extents[f]);
    }
    const auto check_operand = [&](Value v, const OperandDims& dims) {
      const auto& own = d.values[static_cast<size_t>(v)];
      for (size_t i = 0; i < dims.size(); ++i) {
        std::vector<const Atom*> left, right;
        for (const ValueAtom& a : own) {
          if (a.dim == static_cast<int>(i)) left.push_back(&a);
        }
        bool contradicts = dims[i].empty();  // a "1" has no factor
        for (int8_t f : dims[i]) {
          contradicts |= d.contradicts[n][static_cast<size_t>(f)];
          for (const Atom& a : d.factors[n][static_cast<size_t>(f)]) {
            if (a.size > 1 || dims[i].size() == 1) right.push_back(&a);
          }
        }
        if (contradicts && dims[i].size() != 1) continue;
        if (right.empty() && left.size() == 1 && left[0]->size == 1) continue;
        ASSERT_EQ(left.size(), right.size()) << node.op->name << " " << node.signature->text();
        for (size_t k = 0; k < left.size(); ++k) join(*left[k], *right[k]);
      }
    };
    for (size_t i = 0; i < node.inputs.size(); ++i) {
      check_operand(node.inputs[i], node.signature->inputs()[i]);
    }
    for (size_t o = 0; o < node.outputs.size(); ++o) {
      check_operand(node.outputs[o], node.signature->outputs()[o]);
    }
    if (node.follows == kNoNode) continue;
    const Node& leader = g.node(node.follows);
    for (size_t f = 0; f < node.extents.size(); ++f) {
      for (size_t l = 0; l < leader.extents.size(); ++l) {
        if (std::tolower(node.signature->factors()[f].letter) !=
                std::tolower(leader.signature->factors()[l].letter) ||
            node.extents[f] != leader.extents[l]) {
          continue;
        }
        const auto& a = d.factors[n][f];
        const auto& b = d.factors[static_cast<size_t>(node.follows)][l];
        ASSERT_EQ(a.size(), b.size());
        for (size_t k = 0; k < a.size(); ++k) join(a[k], b[k]);
      }
    }
  }
  for (const Source& s : g.sources()) {
    const auto& a = d.values[static_cast<size_t>(s.value)];
    const auto& b = d.values[static_cast<size_t>(s.final)];
    ASSERT_EQ(a.size(), b.size());
    for (size_t k = 0; k < a.size(); ++k) join(a[k], b[k]);
  }
  // One class is one component.
  std::set<ClassId> seen;
  std::vector<bool> reached(atoms.size(), false);
  for (size_t start = 0; start < atoms.size(); ++start) {
    if (reached[start]) continue;
    EXPECT_TRUE(seen.insert(atoms[start]->dimension_class).second) << "joined without reason";
    std::vector<size_t> stack = {start};
    reached[start] = true;
    while (!stack.empty()) {
      const size_t at = stack.back();
      stack.pop_back();
      for (size_t next : joined[at]) {
        if (!reached[next]) stack.push_back(next);
        reached[next] = true;
      }
    }
  }
  EXPECT_EQ(seen.size(), d.classes.size());
}

TEST(Dimensions, RandomGraphs) {
  int several = 0;
  for (unsigned seed = 0; seed < 1500; ++seed) {
    SCOPED_TRACE(fmt::format("seed {}", seed));
    std::mt19937 random(seed);
    testing::RandomGraphOptions options;
    options.ops = 3 + static_cast<int>(random() % 10);
    options.training = random() % 2 == 0;
    const Graph g = testing::random_model_graph(random, options);
    expect_consistent(g);
    if (HasFatalFailure()) return;
    for (const auto& atoms : find_dimensions(g).values) {
      for (size_t i = 1; i < atoms.size(); ++i) several += atoms[i].dim == atoms[i - 1].dim;
    }
  }
  EXPECT_GT(several, 5000) << "too few compounds to be a test";
}

TEST(Dimensions, Models) {
  for (const char* model : {"gpt2:tiny", "llama:tiny", "bert:base", "mlp:tiny"}) {
    SCOPED_TRACE(model);
    ModelConfig config = model_named(model);
    config.layers = 2;
    expect_consistent(trace(config));
  }
}

}  // namespace
}  // namespace cleave
