// Random graphs with everything that a graph can hold, and their comparison; for tests.
#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <random>

#include "tests/graph_test_ops.h"

namespace cleave::test_ops {

inline Graph random_graph(unsigned seed) {
  std::mt19937 random(seed);
  const auto pick = [&](size_t n) { return random() % n; };
  const std::vector<std::string> names = {"x",       "h.0.attn/qkv", "a b", "\"", "\\x41\n",
                                          "été",     "a:b",          "a:",  "->", "",
                                          "follows", "#no comment",  "%3",  "-",  "1.5"};
  const auto any_name = [&] { return names[pick(names.size())]; };
  Graph g;
  g.name = any_name();
  std::vector<Value> pool;
  const auto add_source = [&] {
    Source s = source(fmt::format("{}{}", any_name(), g.sources().size()),
                      static_cast<SourceKind>(pick(3)));
    if (pick(2) == 0) s.name = fmt::format("{}{}", g.sources().size(), any_name());
    if (s.kind != SourceKind::kData) {
      s.init = {static_cast<Init::Kind>(pick(3)), std::ldexp(static_cast<double>(random()), -40)};
    } else if (pick(2) == 0) {
      s.roles = {any_name(), any_name()};
    }
    pool.push_back(g.add_source(s, {pick(4) == 0 ? DType::kF64 : DType::kF32, {4, 6}}));
  };
  add_source();
  const size_t nodes = pick(30);
  while (g.nodes().size() < nodes) {
    if (pick(5) == 0) add_source();
    g.cursor.phase = static_cast<Phase>(std::min<size_t>(2, g.nodes().size() / 8));
    g.cursor.follows = kNoNode;
    if (!g.nodes().empty() && pick(3) == 0) {
      g.cursor.follows = static_cast<NodeId>(pick(g.nodes().size()));
    }
    g.cursor.scope = g.intern_scope(pick(3) == 0 ? "" : any_name());
    g.cursor.loc = {};
    if (pick(3) != 0) {
      const std::string file = any_name();
      if (!file.empty()) g.cursor.loc = {g.intern_file(file), static_cast<int32_t>(pick(1000))};
    }
    const Value a = pool[pick(pool.size())], b = pool[pick(pool.size())];
    if (g.type(a) != g.type(b)) continue;
    const auto newest = [&](Value v) {
      return g.value(v).version == g.newest_version(g.value(v).storage);
    };
    Attrs attrs;
    const std::vector<double> reals = {0.1, 1, -0.0, 1e300, 5e-324, 1.0 / 3, HUGE_VAL, -HUGE_VAL};
    for (size_t i = pick(4); i > 0; --i) {
      const std::string name = fmt::format("{}{}", pick(2) ? "attr" : any_name(), pick(9));
      switch (pick(4)) {
        case 0: attrs.set(name, static_cast<int64_t>(random()) - (int64_t{1} << 33)); break;
        case 1: attrs.set(name, reals[pick(reals.size())]); break;
        case 2: attrs.set(name, any_name()); break;
        case 3: attrs.set(name, std::vector<int64_t>(pick(3), -7)); break;
      }
    }
    std::vector<Value> out;
    switch (pick(5)) {
      case 0: out = g.add(add, {a, b}, {}, attrs); break;
      case 1:
        out = g.add(gelu, {a}, {}, attrs, newest(b) ? std::vector{b} : std::vector<Value>{});
        break;
      case 2:
        out = g.add(both, {a, b}, {}, attrs,
                    newest(b) ? std::vector{kNoValue, b} : std::vector<Value>{});
        break;
      case 3: {
        attrs.set("start", int64_t{0});
        attrs.set("step", int64_t{1});
        attrs.set("Y", int64_t{6});
        out = g.add(slice, {a}, "aX->aY", attrs);
        break;
      }
      default: out = g.add(dropout, {a}, "uv->uv|u:indexed,v:indexed", attrs); break;
    }
    pool.insert(pool.end(), out.begin(), out.end());
  }
  for (const Source& s : g.sources()) {
    const Value v = pool[pick(pool.size())];
    if (s.kind != SourceKind::kData && g.type(v) == g.type(s.value)) g.set_final(s.value, v);
  }
  for (size_t i = pick(3); i > 0; --i) g.add_output(any_name(), pool[pick(pool.size())]);
  g.cursor = {};
  return g;
}

// Everything but the numbering of files and scopes, which is compared by name.
inline void expect_same(const Graph& a, const Graph& b) {
  EXPECT_EQ(a.name, b.name);
  ASSERT_EQ(a.values().size(), b.values().size());
  for (size_t v = 0; v < a.values().size(); ++v) {
    const ValueInfo &x = a.values()[v], &y = b.values()[v];
    EXPECT_TRUE(x.type == y.type && x.storage == y.storage && x.version == y.version &&
                x.geometry == y.geometry && x.producer == y.producer && x.output == y.output &&
                x.source == y.source)
        << "value " << v;
  }
  ASSERT_EQ(a.sources().size(), b.sources().size());
  for (size_t s = 0; s < a.sources().size(); ++s) {
    const Source &x = a.sources()[s], &y = b.sources()[s];
    EXPECT_TRUE(x.kind == y.kind && x.name == y.name && x.value == y.value && x.init == y.init &&
                x.final == y.final && x.roles == y.roles)
        << "source " << s;
  }
  ASSERT_EQ(a.nodes().size(), b.nodes().size());
  for (size_t n = 0; n < a.nodes().size(); ++n) {
    const Node &x = a.nodes()[n], &y = b.nodes()[n];
    EXPECT_TRUE(x.op == y.op && x.signature == y.signature && x.attrs == y.attrs &&
                x.extents == y.extents && x.inputs == y.inputs && x.outputs == y.outputs &&
                x.writes == y.writes && x.phase == y.phase && x.follows == y.follows &&
                a.place(x.loc) == b.place(y.loc) &&
                a.scopes()[static_cast<size_t>(x.scope)] ==
                    b.scopes()[static_cast<size_t>(y.scope)])
        << "node " << n;
  }
  ASSERT_EQ(a.outputs().size(), b.outputs().size());
  for (size_t o = 0; o < a.outputs().size(); ++o) {
    EXPECT_EQ(a.outputs()[o].name, b.outputs()[o].name);
    EXPECT_EQ(a.outputs()[o].value, b.outputs()[o].value);
  }
}

}  // namespace cleave::test_ops
