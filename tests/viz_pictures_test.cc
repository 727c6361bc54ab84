// Pictures: DOT that Graphviz reads whatever the names are, and that shows what a plan does.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>  // getpid

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <sstream>

#include "executor/lower.h"
#include "graph/error.h"
#include "models/trace.h"
#include "planner/planner.h"
#include "viz/annotations.h"
#include "viz/draw.h"
#include "viz/names.h"
#include "viz/render.h"
#include "viz/units.h"

namespace cleave {
namespace {

namespace fs = std::filesystem;

bool have_dot() { return std::system("dot -V >/dev/null 2>&1") == 0; }

std::string temporary(const std::string& name) {
  // Tests run side by side, each in a process of its own.
  return (fs::path(::testing::TempDir()) / fmt::format("cleave_viz_{}_{}", getpid(), name))
      .string();
}

std::string written(const std::string& name, const std::string& text) {
  const std::string path = temporary(name);
  std::ofstream(path) << text;
  return path;
}

// What dot makes of it without laying it out; "" when it does not parse.
bool dot_parses(const std::string& text) {
  const std::string path = written("parse.dot", text);
  return std::system(("dot -Tcanon " + path + " >/dev/null 2>" + path + ".err").c_str()) == 0 &&
         fs::file_size(path + ".err") == 0;  // no warnings either
}

Graph traced(const std::string& name, int64_t layers, int64_t sequence) {
  ModelConfig config = model_named(name);
  config.layers = layers;
  config.sequence = sequence;
  return trace(config);
}

Graph small(const std::string& name, int64_t layers = 3) { return traced(name, layers, 64); }

// Large enough to be worth splitting on GPUs.
Graph wide(const std::string& name) { return traced(name, 3, 1024); }

Plan planned(const Graph& graph, const std::string& cluster, const std::string& mesh) {
  PlannerOptions options;
  options.mesh = parse_mesh(mesh);
  options.memory_limit = 1e15;
  PlanResult result = find_plan(graph, parse_cluster(cluster), options);
  EXPECT_TRUE(result.plan.has_value());
  return std::move(*result.plan);
}

constexpr ViewLevel kLevels[] = {ViewLevel::kModel, ViewLevel::kBlock, ViewLevel::kRaw};

TEST(Dot, EveryBuiltInModelParsesAtEveryLevel) {
  if (!have_dot()) GTEST_SKIP() << "no Graphviz";
  std::set<std::string> families;
  for (const std::string& name : model_names()) {
    // Sizes of a family differ in numbers only: one of each, and one at its full depth.
    if (!families.insert(name.substr(0, name.find(':'))).second) continue;
    const Graph graph = small(name);
    for (ViewLevel level : kLevels) {
      EXPECT_TRUE(dot_parses(to_dot(draw(graph, level)))) << name << static_cast<int>(level);
    }
  }
}

TEST(Dot, PlansOfEveryFamilyAreLaidOutInTime) {
  if (!have_dot()) GTEST_SKIP() << "no Graphviz";
  for (const char* name : {"gpt2:tiny", "llama:tiny", "bert:base", "mlp:tiny"}) {
    const Graph graph = small(name);
    for (const char* mesh : {"4", "dp=2,tp=2"}) {
      const Plan plan = planned(graph, "cpu:4", mesh);
      for (ViewLevel level : {ViewLevel::kModel, ViewLevel::kBlock}) {
        const std::string dot = written("plan.dot", to_dot(draw(graph, plan, level)));
        const Rendering r = render_svg(dot, temporary("plan.svg"), 20);
        EXPECT_TRUE(r.done) << name << " " << mesh << ": " << r.why_not;
      }
    }
  }
}

// Names with everything that DOT, HTML labels or UTF-8 could trip over.
TEST(Dot, AnyNameIsSafe) {
  const std::vector<std::string> names = {
      "",
      " ",
      "quote \" and \\ and \\N \\l",
      "<B>bold</B> & &amp; &#65;",
      "]]> --> <!--",
      "h\xC3\xA9 \xE2\x86\x92 \xF0\x9F\xA6\x80 \xE6\xA8\xA1",
      "bad utf-8 \xFF\xC3( \xED\xA0\x80 \xF5\x80\x80\x80 \xC0\x80 \xE2\x86",
      std::string("control \x01\x1B\n\t\r\x7F end"),
      "{a|b} ; # // /* */",
  };
  Picture p;
  for (const std::string& name : names) {
    p.title += name;
    p.legend.push_back({name, "#ff0000"});
    p.frames.push_back({name, "#00ff00", true, -1});
    for (Box::Kind kind :
         {Box::Kind::kOp, Box::Kind::kHexagon, Box::Kind::kTensor, Box::Kind::kGhost}) {
      p.boxes.push_back(
          {kind, {name, name}, {"#a6cee3", "#fdbf6f"}, static_cast<int32_t>(p.frames.size()) - 1});
      p.arrows.push_back({0, static_cast<int32_t>(p.boxes.size()) - 1});
    }
  }
  const std::string text = to_dot(p);
  if (!have_dot()) GTEST_SKIP() << "no Graphviz";
  EXPECT_TRUE(dot_parses(text));
  const std::string dot = written("names.dot", text);
  ASSERT_TRUE(render_svg(dot, temporary("names.svg"), 20).done);
  std::ifstream file(temporary("names.svg"));
  std::stringstream svg;
  svg << file.rdbuf();
  // What is drawn is the text itself, as the SVG writes it.
  EXPECT_NE(svg.str().find("&lt;B&gt;bold&lt;/B&gt; &amp; &amp;amp; &amp;#65;"), std::string::npos);
  EXPECT_NE(svg.str().find("\xF0\x9F\xA6\x80"), std::string::npos);
  EXPECT_NE(svg.str().find("and \\ and \\N \\l"), std::string::npos);
}

// Whatever a plan moves is drawn, once, with its bytes.
TEST(Annotations, MarksAreThePlansCollectives) {
  for (const char* model : {"gpt2:355m", "llama:1b"}) {
    const Graph graph = wide(model);
    for (const char* mesh : {"tp=8", "4x2", "dp=2,tp=4"}) {
      const Plan plan = planned(graph, "8xh100", mesh);
      const Annotations a = annotate(graph, plan);
      std::map<std::string, double> bytes;  // by identity
      const auto add = [&](const std::vector<Mark>& marks) {
        for (const Mark& m : marks) bytes[m.identity] = m.bytes;
      };
      for (const auto& node : a.on_input) std::for_each(node.begin(), node.end(), add);
      for (const auto* list : {&a.inside, &a.on_output, &a.on_final}) {
        std::for_each(list->begin(), list->end(), add);
      }
      double drawn = 0, promised = 0;
      for (const auto& [identity, b] : bytes) drawn += b;
      for (const PlannedCollectives& c : plan.collectives) promised += c.bytes;
      EXPECT_GT(promised, 0);
      EXPECT_NEAR(drawn, promised, 1e-9 * promised) << model << " " << mesh;
    }
  }
}

int64_t count(const Picture& p, Box::Kind kind) {
  return std::count_if(p.boxes.begin(), p.boxes.end(),
                       [kind](const Box& b) { return b.kind == kind; });
}

TEST(Draw, EqualLayersAreOneHoweverMany) {
  const Graph three = small("gpt2:tiny", 3), nine = small("gpt2:tiny", 9);
  for (ViewLevel level : {ViewLevel::kModel, ViewLevel::kBlock}) {
    const Picture a = draw(three, level), b = draw(nine, level);
    EXPECT_EQ(a.boxes.size(), b.boxes.size());
    EXPECT_EQ(a.arrows.size(), b.arrows.size());
    EXPECT_LT(a.boxes.size(), 60u);
  }
  const auto layers = [](const Picture& p, const std::string& label) {
    return std::count_if(p.frames.begin(), p.frames.end(),
                         [&](const Frame& f) { return f.label == label; });
  };
  EXPECT_EQ(layers(draw(nine, ViewLevel::kModel), "one of 9 equal layers"), 2);  // and its backward
  EXPECT_EQ(draw(three, ViewLevel::kRaw).boxes.size() > three.nodes().size(), true);
}

TEST(Draw, EveryNodeIsInTheModelsPicture) {
  for (const char* model : {"gpt2:tiny", "llama:tiny", "bert:base", "mlp:tiny"}) {
    const Graph graph = small(model);
    const Units units = find_units(graph, ViewLevel::kModel);
    for (size_t n = 0; n < graph.nodes().size(); ++n) {
      ASSERT_GE(units.of_node[n], 0) << model << " node " << n;
      const Unit& u = units.units[static_cast<size_t>(units.of_node[n])];
      EXPECT_EQ(u.phase, graph.nodes()[n].phase);
    }
  }
}

// The tensor-parallel MLP: sharded inside, a partial sum at its end, then one collective.
TEST(Draw, ShowsTheSplitMlp) {
  const Graph graph = wide("gpt2:355m");
  const Plan plan = planned(graph, "8xh100", "tp=8");
  const Picture p = draw(graph, plan, ViewLevel::kBlock);
  const auto box = [&](const std::string& name, const std::string& frame) -> const Box* {
    for (const Box& b : p.boxes) {
      if (b.lines[0] != name) continue;
      int32_t top = b.frame;
      while (p.frames[static_cast<size_t>(top)].parent >= 0) {
        top = p.frames[static_cast<size_t>(top)].parent;
      }
      if (p.frames[static_cast<size_t>(top)].label == frame) return &b;
    }
    return nullptr;
  };
  const Box* fc = box("matmul  fc", "forward");
  const Box* proj = nullptr;
  for (const Box& b : p.boxes) {
    if (b.lines[0] == "matmul  proj" && b.lines.size() > 2 && b.lines[2] == "weight [1024, 4096]" &&
        p.frames[static_cast<size_t>(b.frame)].label.starts_with("h.*.mlp.fc.weight[0]")) {
      proj = &b;
      break;
    }
  }
  ASSERT_NE(fc, nullptr);
  ASSERT_NE(proj, nullptr);
  EXPECT_EQ(fc->fills, std::vector<std::string>{colours::kSharded});
  EXPECT_EQ(proj->fills, std::vector<std::string>{colours::kPartial});
  EXPECT_EQ(p.frames[static_cast<size_t>(fc->frame)].label, "h.*.mlp.fc.weight[0] 4096 → 512 (tp)");
  EXPECT_TRUE(p.frames[static_cast<size_t>(fc->frame)].dashed);
  EXPECT_EQ(fc->frame, proj->frame);
  const auto from = static_cast<int32_t>(proj - p.boxes.data());
  int hexagons = 0;
  for (const Arrow& a : p.arrows) {
    if (a.from != from || a.aside) continue;
    EXPECT_EQ(p.boxes[static_cast<size_t>(a.to)].kind, Box::Kind::kHexagon);
    ++hexagons;
  }
  EXPECT_EQ(hexagons, 1);
}

TEST(Draw, OneDeviceMeetsNobody) {
  const Graph graph = small("gpt2:tiny");
  const Plan plan = planned(graph, "cpu:1", "1");
  for (ViewLevel level : kLevels)
    EXPECT_EQ(count(draw(graph, plan, level), Box::Kind::kHexagon), 0);
  EXPECT_GT(count(draw(graph, ViewLevel::kModel), Box::Kind::kHexagon),
            0);  // where it could be cut
}

TEST(Render, StopsAHangingDot) {
  if (!have_dot()) GTEST_SKIP() << "no Graphviz";
  std::string text = "digraph g {\n";
  for (int i = 0; i < 40000; ++i)
    text += fmt::format("n{} -> n{};\n", i % 3000, (i * 7919 + i / 7) % 3000);
  const std::string dot = written("large.dot", text + "}\n");
  const std::string svg = temporary("large.svg");
  fs::remove(svg);
  const auto start = std::chrono::steady_clock::now();
  const Rendering r = render_svg(dot, svg, 0.3);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(5));
  EXPECT_FALSE(r.done);
  EXPECT_NE(r.why_not.find("more than 0.3 s"), std::string::npos) << r.why_not;
  EXPECT_FALSE(fs::exists(svg));
  EXPECT_FALSE(fs::exists(svg + ".part"));
}

TEST(Render, SaysWhatIsWrong) {
  const std::string path = std::getenv("PATH");
  const std::string dot = written("good.dot", "digraph g { a -> b; }\n");
  setenv("PATH", "/nowhere", 1);
  const Rendering missing = render_svg(dot, temporary("x.svg"), 5);
  setenv("PATH", path.c_str(), 1);
  EXPECT_FALSE(missing.done);
  EXPECT_NE(missing.why_not.find("not installed"), std::string::npos) << missing.why_not;
  if (!have_dot()) GTEST_SKIP() << "no Graphviz";
  EXPECT_TRUE(render_svg(dot, temporary("x.svg"), 5).done);
  EXPECT_FALSE(render_svg(dot, "/nowhere/x.svg", 5).done);
  const Rendering broken =
      render_svg(written("bad.dot", "digraph {{{ oops"), temporary("y.svg"), 5);
  EXPECT_FALSE(broken.done);
  EXPECT_NE(broken.why_not.find("dot failed"), std::string::npos) << broken.why_not;
}

TEST(Names, Fold) {
  EXPECT_EQ(folded_name("h.3.mlp.fc.weight[0]"), "h.*.mlp.fc.weight[0]");
  EXPECT_EQ(folded_name("h.12.attn.qkv.weight[0, part of 64]"),
            "h.*.attn.qkv.weight[0, part of 64]");
  EXPECT_EQ(folded_name("batch"), "batch");
  EXPECT_EQ(folded_name("layer2.weight[1]"), "layer2.weight[1]");
  EXPECT_EQ(folded_name("0.weight"), "*.weight");
  EXPECT_EQ(folded_name(""), "");
  EXPECT_EQ(folded_name("k of matmul (gpt2.cc:12)"), "k of matmul (gpt2.cc:12)");
  EXPECT_EQ(common_scope("h.*.mlp.fc", "h.*.mlp"), "h.*.mlp");
  EXPECT_EQ(common_scope("h.*.mlp", "h.*.mlp2"), "h.*");
  EXPECT_EQ(common_scope("wte", "h"), "");
  EXPECT_EQ(last_part("h.3.attn"), "attn");
  EXPECT_EQ(last_part("wte"), "wte");
}

}  // namespace
}  // namespace cleave
