// Random programs of views and writes in place, against a model of memory in which a tensor is the
// list of the elements it shows. Also the factor strings of random reshapes.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "tests/support/interpreter.h"
#include "tracer/reshape.h"
#include "tracer/tensor.h"

namespace cleave {
namespace {

// A tensor, and the elements that it shows of one of the model's storages, in row-major order.
struct Alias {
  Tensor tensor;
  size_t storage;
  std::vector<size_t> elements;
};

class RandomProgram {
 public:
  explicit RandomProgram(unsigned seed) : random_(seed) {}

  // Records a program, and does the same to the model.
  Graph record() {
    Tracer tracer("random", {.compute = DType::kF64});
    for (const char* name : {"x", "y"}) {
      const Tensor t = state(name, {2, 3, 4}, DType::kF64, {Init::Kind::kNormal, 1});
      add_storage(t);
    }
    for (size_t s = 0; s < 2; ++s) {
      memory_[s] = Interpreter(tracer.graph()).initial(s == 0 ? "x" : "y");
    }
    for (int step = 0; step < 14; ++step) {
      const Alias a = aliases_[below(aliases_.size())];
      switch (below(9)) {
        case 0:
        case 1:
        case 2:
        case 3: look(a); break;
        case 4:
        case 5:
        case 6: write(a); break;
        case 7: read(tracer, a); break;
        case 8: keep_copy(a); break;
      }
    }
    for (const Alias& a : aliases_) read(tracer, a);
    return tracer.finish();
  }

  std::map<std::string, std::vector<double>> expected() const {
    auto all = outputs_;
    all["x"] = memory_[0];
    all["y"] = memory_[1];
    return all;
  }

 private:
  size_t below(size_t n) { return random_() % n; }
  int64_t between(int64_t low, int64_t high) {
    return low + static_cast<int64_t>(below(static_cast<size_t>(high - low + 1)));
  }

  void add_storage(const Tensor& t) {
    memory_.emplace_back(static_cast<size_t>(t.numel()));
    Alias a{t, memory_.size() - 1, std::vector<size_t>(static_cast<size_t>(t.numel()))};
    std::iota(a.elements.begin(), a.elements.end(), size_t{0});
    aliases_.push_back(std::move(a));
  }

  // The alias that shows element `from(index)` of `a` at each index of `t`.
  template <class From>
  void add_view(const Alias& a, const Tensor& t, From from) {
    Alias result{t, a.storage, {}};
    const Shape strides = contiguous_strides(a.tensor.shape());
    Shape index(t.shape().size(), 0);
    for (int64_t i = 0; i < t.numel(); ++i) {
      const Shape at = from(index);
      int64_t flat = 0;
      for (size_t d = 0; d < at.size(); ++d) flat += at[d] * strides[d];
      result.elements.push_back(a.elements[static_cast<size_t>(flat)]);
      for (size_t d = index.size(); d-- > 0 && ++index[d] == t.shape()[d];) index[d] = 0;
    }
    aliases_.push_back(std::move(result));
  }

  void look(const Alias& a) {
    const int64_t rank = a.tensor.rank();
    if (rank == 0) return;
    const int64_t dim = between(0, rank - 1), size = a.tensor.size(dim);
    const auto d = static_cast<size_t>(dim);
    switch (below(6)) {
      case 0: {
        const int64_t start = between(0, size - 1), stop = between(start + 1, size);
        const int64_t step = between(1, 2);
        add_view(a, a.tensor.slice(dim, start, stop, step), [=](Shape i) {
          i[d] = start + i[d] * step;
          return i;
        });
        break;
      }
      case 1: {
        const int64_t other = between(0, rank - 1);
        add_view(a, a.tensor.transpose(dim, other), [=](Shape i) {
          std::swap(i[d], i[static_cast<size_t>(other)]);
          return i;
        });
        break;
      }
      case 2: {
        const int64_t at = between(0, size - 1);
        add_view(a, a.tensor.select(dim, at), [=](Shape i) {
          i.insert(i.begin() + dim, at);
          return i;
        });
        break;
      }
      case 3: {
        const auto parts = a.tensor.unbind(dim);
        const int64_t at = between(0, size - 1);
        add_view(a, parts[static_cast<size_t>(at)], [=](Shape i) {
          i.insert(i.begin() + dim, at);
          return i;
        });
        break;
      }
      case 4: {
        if (size % 2 != 0) break;
        const int64_t part = between(0, 1);
        add_view(a, a.tensor.chunk(2, dim)[static_cast<size_t>(part)], [=](Shape i) {
          i[d] += part * size / 2;
          return i;
        });
        break;
      }
      case 5: {
        Shape sizes{-1};
        int64_t rest = a.tensor.numel();
        for (int64_t part : {2, 3}) {
          if (rest % part != 0 || below(2) == 0) continue;
          sizes.push_back(part);
          rest /= part;
        }
        const Tensor t = a.tensor.reshape(sizes);
        Alias result{t, a.storage, a.elements};
        const Graph& g = t.tracer().graph();
        if (g.value(t.value()).storage != g.value(a.tensor.value()).storage) {
          memory_.push_back(numbers(a));
          result.storage = memory_.size() - 1;
          std::iota(result.elements.begin(), result.elements.end(), size_t{0});
        }
        aliases_.push_back(std::move(result));
        break;
      }
    }
  }

  std::vector<double> numbers(const Alias& a) const {
    std::vector<double> result;
    for (size_t e : a.elements) result.push_back(memory_[a.storage][e]);
    return result;
  }

  void write(const Alias& a) {
    std::vector<double> now = numbers(a);
    const auto number = static_cast<double>(between(2, 5));
    switch (below(4)) {
      case 0:
        a.tensor.add_(number);
        for (double& x : now) x += number;
        break;
      case 1:
        a.tensor.mul_(number);
        for (double& x : now) x *= number;
        break;
      case 2:
        a.tensor.fill_(number);
        for (double& x : now) x = number;
        break;
      case 3: {
        std::vector<const Alias*> fitting;
        for (const Alias& b : aliases_) {
          if (b.tensor.shape() == a.tensor.shape()) fitting.push_back(&b);
        }
        const Alias& b = *fitting[below(fitting.size())];
        const std::vector<double> others = numbers(b);
        if (below(2) == 0) {
          a.tensor.copy_(b.tensor);
          now = others;
        } else {
          a.tensor.add_(b.tensor);
          for (size_t i = 0; i < now.size(); ++i) now[i] += others[i];
        }
        break;
      }
    }
    for (size_t i = 0; i < now.size(); ++i) memory_[a.storage][a.elements[i]] = now[i];
  }

  void read(Tracer& tracer, const Alias& a) {
    const std::string name = fmt::format("o{}", outputs_.size());
    tracer.output(name, 3 * a.tensor);
    std::vector<double> now = numbers(a);
    for (double& x : now) x *= 3;
    outputs_[name] = std::move(now);
  }

  void keep_copy(const Alias& a) {
    const std::vector<double> now = numbers(a);
    add_storage(a.tensor.clone());
    memory_.back() = now;
  }

  std::mt19937 random_;
  std::vector<std::vector<double>> memory_;
  std::vector<Alias> aliases_;
  std::map<std::string, std::vector<double>> outputs_;
};

TEST(Aliasing, RandomProgramsAgreeWithMemory) {
  int dependencies_seen = 0;
  for (unsigned seed = 0; seed < 300; ++seed) {
    RandomProgram program(seed);
    const Graph graph = program.record();
    for (const Graph& g : {graph, without_dead_nodes(graph)}) {
      Interpreter interpreter(g);
      interpreter.run();
      ASSERT_EQ(interpreter.results(), program.expected()) << "seed " << seed;
      const std::vector<Dependency> all = dependencies(g);
      dependencies_seen += static_cast<int>(all.size());
      std::mt19937 random(seed);
      for (int round = 0; round < 5; ++round) {
        interpreter.run(random_order(working_nodes(g), all, random));
        ASSERT_EQ(interpreter.results(), program.expected()) << "seed " << seed;
      }
    }
  }
  EXPECT_GT(dependencies_seen, 3000);
}

TEST(Reshape, FactorStringsGiveTheShapes) {
  const auto factors = [](const Shape& from, const Shape& to) {
    return reshape_factors(from, to).text;
  };
  EXPECT_EQ(factors({2, 5, 36}, {2, 5, 3, 4, 3}), "ab(cde)->abcde");
  EXPECT_EQ(factors({2, 5, 3, 4}, {2, 5, 12}), "abcd->ab(cd)");
  EXPECT_EQ(factors({6, 4}, {2, 12}), "(ab)c->a(bc)");
  EXPECT_EQ(factors({6, 4}, {4, 6}), "AB->CD");
  EXPECT_EQ(factors({7, 6, 4}, {7, 4, 6}), "aBC->aDE");
  EXPECT_EQ(factors({2, 3}, {2, 1, 3}), "ab->a1b");
  EXPECT_EQ(factors({1, 6}, {2, 3, 1}), "1(ab)->ab1");
  EXPECT_EQ(factors({}, {1, 1}), "->11");

  std::mt19937 random(5);
  const auto shape = [&](int64_t size) {
    Shape result;
    while (size > 1 || random() % 4 == 0) {
      const int64_t d = 1 + static_cast<int64_t>(random()) % std::min<int64_t>(size, 12);
      if (size % d != 0) continue;
      result.push_back(d);
      size /= d;
    }
    return result;
  };
  for (int round = 0; round < 2000; ++round) {
    const int64_t size = 12 * static_cast<int64_t>(1 + random() % 11);
    const Shape from = shape(size), to = shape(size);
    if (from.size() + to.size() > 14 || numel(from) != size || numel(to) != size) continue;
    const ReshapeFactors f = reshape_factors(from, to);
    const Signature& s = Signature::get(f.text);
    const TensorType in[] = {{DType::kF32, from}};
    const std::vector<int64_t> extents = solve_extents(s, f.attrs, in);
    EXPECT_EQ(shape_of(s.inputs()[0], extents), from) << f.text;
    EXPECT_EQ(shape_of(s.outputs()[0], extents), to) << f.text;
  }
}

}  // namespace
}  // namespace cleave
