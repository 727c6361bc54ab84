// Pictures: DOT that Graphviz reads whatever the names are, and that shows what a plan does.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>  // getpid

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <random>
#include <set>
#include <sstream>

#include "executor/lower.h"
#include "graph/error.h"
#include "models/trace.h"
#include "planner/planner.h"
#include "tests/graph_random.h"
#include "viz/annotations.h"
#include "viz/class_words.h"
#include "viz/draw.h"
#include "viz/layout.h"
#include "viz/names.h"
#include "viz/svg.h"
#include "viz/text.h"
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

TEST(Svg, PlansOfEveryFamilyFitAScreen) {
  for (const char* name : {"gpt2:tiny", "llama:tiny", "bert:base", "mlp:tiny"}) {
    const Graph graph = small(name);
    for (const char* mesh : {"4", "dp=2,tp=2"}) {
      const Plan plan = planned(graph, "cpu:4", mesh);
      for (ViewLevel level : {ViewLevel::kModel, ViewLevel::kBlock}) {
        const Picture picture = draw(graph, plan, level);
        const Layout2d page = lay_out(picture);
        EXPECT_EQ(page.boxes.size(), picture.boxes.size());
        if (level == ViewLevel::kModel) {
          EXPECT_GT(page.width / page.height, 0.5) << name << " " << mesh;
          EXPECT_LT(page.width / page.height, 3) << name << " " << mesh;
        }
      }
    }
  }
}

TEST(Svg, RefusesWhatNobodyCanRead) {
  Picture p;
  p.boxes.resize(kMostBoxes);
  EXPECT_NE(to_svg(p).find("</svg>"), std::string::npos);
  p.boxes.emplace_back();
  EXPECT_THROW(to_svg(p), Error);
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
    p.subtitle.push_back(name);
    p.legend.push_back({LegendEntry::Sign::kFill, name, "#ff0000"});
    p.frames.push_back({Frame::Kind::kRegion, name, 0, -1});
    for (Box::Kind kind :
         {Box::Kind::kOp, Box::Kind::kHexagon, Box::Kind::kTensor, Box::Kind::kGhost}) {
      Box box;
      box.kind = kind;
      box.title = name;
      box.notes = {name};
      box.values = {{name, {"#a6cee3", "#fdbf6f"}}, {name, {"#a6cee3"}, true}};
      box.colour = "#a6cee3";
      box.frame = static_cast<int32_t>(p.frames.size()) - 1;
      p.boxes.push_back(box);
      p.arrows.push_back({0, static_cast<int32_t>(p.boxes.size()) - 1});
    }
  }
  const std::string svg = to_svg(p);
  // What is drawn is the text itself, as XML writes it.
  EXPECT_NE(svg.find("&lt;B&gt;bold&lt;/B&gt; &amp; &amp;amp; &amp;#65;"), std::string::npos);
  EXPECT_NE(svg.find("\xF0\x9F\xA6\x80"), std::string::npos);
  EXPECT_NE(svg.find("and \\ and \\N \\l"), std::string::npos);
  EXPECT_EQ(svg.find('\x01'), std::string::npos);
  EXPECT_NE(svg.find("control \\x01\\x1b\\x0a"), std::string::npos);
  if (!have_dot()) GTEST_SKIP() << "no Graphviz";
  EXPECT_TRUE(dot_parses(to_dot(p)));
}

// The text of the labels of a file of graphs as Graphviz has read it: tags taken off, entities
// read.
std::string read_by_dot(const std::string& text) {
  const std::string path = written("many.dot", text);
  EXPECT_EQ(std::system(("dot -Tcanon " + path + " >" + path + ".out 2>" + path + ".err").c_str()),
            0);
  EXPECT_EQ(fs::file_size(path + ".err"), 0u);
  std::ifstream file(path + ".out");
  std::stringstream all;
  all << file.rdbuf();
  const std::string canon = all.str();
  std::string plain;
  for (size_t i = 0; i < canon.size(); ++i) {
    if (canon[i] == '<') {
      const size_t end = canon.find('>', i);
      // A label opens with one more '<' than its first tag.
      i = canon[i + 1] == '<' ? i : end;
      plain += '\n';
      continue;
    }
    const size_t end = canon[i] == '&' ? canon.find(';', i) : std::string::npos;
    if (end == std::string::npos) {
      plain += canon[i];
      continue;
    }
    const std::string entity = canon.substr(i + 1, end - i - 1);
    const std::map<std::string, char> known = {{"amp", '&'},  {"lt", '<'},  {"gt", '>'},
                                               {"quot", '"'}, {"#91", '['}, {"#93", ']'}};
    plain += known.at(entity);
    i = end;
  }
  return plain;
}

std::string random_name(std::mt19937& random) {
  static const std::vector<std::string> pieces = {"a",
                                                  "Z",
                                                  "0",
                                                  ".",
                                                  " ",
                                                  "\"",
                                                  "'",
                                                  "\\",
                                                  "\\N",
                                                  "\\n",
                                                  "<",
                                                  ">",
                                                  "</B>",
                                                  "<TABLE>",
                                                  "&",
                                                  "&lt;",
                                                  "&#65;",
                                                  "]]>",
                                                  "[",
                                                  "]",
                                                  "{",
                                                  "}",
                                                  "|",
                                                  ";",
                                                  "#",
                                                  "//",
                                                  "/*",
                                                  "->",
                                                  "\n",
                                                  "\t",
                                                  "\x01",
                                                  "\x1b",
                                                  "\x7f",
                                                  "\xC3\xA9",
                                                  "\xE6\xA8\xA1",
                                                  "\xF0\x9F\xA6\x80",
                                                  "\xC2\x85",
                                                  "\xEF\xBF\xBF",
                                                  "\xFF",
                                                  "\xC3",
                                                  "\xE2\x86",
                                                  "\xED\xA0\x80",
                                                  "\xF5\x80",
                                                  "%s",
                                                  "{}"};
  std::string name;
  for (size_t i = random() % 8; i > 0; --i) name += pieces[random() % pieces.size()];
  return name;
}

// 500 random graphs with names of any kind: Graphviz reads all of them, at all levels, and what it
// has read has the names as they were.
TEST(Dot, RandomGraphsWithAnyNamesComeBack) {
  if (!have_dot()) GTEST_SKIP() << "no Graphviz";
  std::mt19937 random(7);
  std::string text;
  std::vector<std::string> names;
  for (unsigned seed = 0; seed < 500; ++seed) {
    Graph g = test_ops::random_graph(seed);
    g.name = "graph " + random_name(random);
    const Value extra = g.add_source(
        test_ops::source(fmt::format("{} {}", random_name(random), seed), SourceKind::kData),
        {DType::kF32, {4, 6}});
    g.cursor = {};
    g.cursor.scope = g.intern_scope("x" + random_name(random) + "y");
    g.add1(test_ops::gelu, {extra});
    for (ViewLevel level : kLevels) text += to_dot(draw(g, level));
    names.push_back(clean_text(g.name));
    names.push_back(clean_text(g.sources().back().name));
  }
  const std::string read = read_by_dot(text);
  for (const std::string& name : names) EXPECT_NE(read.find(name), std::string::npos) << name;
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

// Hexagons, and lines of boxes that are.
int64_t synchronizations(const Picture& p) {
  int64_t count = 0;
  for (const Box& b : p.boxes) {
    count += b.kind == Box::Kind::kHexagon;
    for (const ValueLine& v : b.values) count += v.hexagon;
  }
  return count;
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
  EXPECT_EQ(layers(draw(nine, ViewLevel::kModel), "× 9 equal layers"), 2);  // and its backward
  EXPECT_EQ(draw(three, ViewLevel::kRaw).boxes.size() > three.nodes().size(), true);
}

TEST(Draw, EveryNodeIsInTheModelsPicture) {
  for (const char* model : {"gpt2:tiny", "llama:tiny", "bert:base", "mlp:tiny"}) {
    const Graph graph = small(model);
    const Units units = find_units(graph, ViewLevel::kModel);
    for (size_t n = 0; n < graph.nodes().size(); ++n) {
      ASSERT_GE(units.of_node[n], 0) << model << " node " << n;
      const GraphUnit& u = units.units[static_cast<size_t>(units.of_node[n])];
      EXPECT_EQ(u.phase, graph.nodes()[n].phase);
    }
  }
}

// The tensor-parallel MLP: sharded inside, a partial sum at its end, then one collective.
TEST(Draw, ShowsTheSplitMlp) {
  const Graph graph = wide("gpt2:355m");
  const Plan plan = planned(graph, "8xh100", "tp=8");
  const Picture p = draw(graph, plan, ViewLevel::kBlock);
  const auto box = [&](const std::string& title, const std::string& weight) -> const Box* {
    for (const Box& b : p.boxes) {
      if (b.title == title && !b.values.empty() && b.values[0].text == weight) return &b;
    }
    return nullptr;
  };
  const Box* fc = box("fc · matmul", "weight [4096, 1024] → [512, 1024]");
  const Box* proj = box("proj · matmul", "weight [1024, 4096] → [1024, 512]");
  ASSERT_NE(fc, nullptr);
  ASSERT_NE(proj, nullptr);
  EXPECT_EQ(fc->values[1].text, "out [8, 1024, 4096] → [8, 1024, 512]");
  EXPECT_EQ(fc->values[1].fills, std::vector<std::string>{colours::kSharded});
  EXPECT_EQ(proj->values[1].fills, std::vector<std::string>{colours::kPartial});
  const Frame& region = p.frames[static_cast<size_t>(fc->frame)];
  EXPECT_EQ(region.label, "mlp inner 4,096 → 512 (tp)");
  EXPECT_EQ(region.kind, Frame::Kind::kRegion);
  EXPECT_EQ(fc->frame, proj->frame);
  const auto from = static_cast<int32_t>(proj - p.boxes.data());
  int hexagons = 0;
  for (const Arrow& a : p.arrows) {
    if (a.from != from || a.aside) continue;
    const Box& to = p.boxes[static_cast<size_t>(a.to)];
    EXPECT_EQ(to.kind, Box::Kind::kHexagon);
    EXPECT_EQ(to.title, "reduce-scatter tp");
    EXPECT_EQ(to.notes, std::vector<std::string>{"28.0 MiB"});
    ++hexagons;
  }
  EXPECT_EQ(hexagons, 1);
  // The gradient of an op stands level with it.
  const Layout2d page = lay_out(p);
  int level = 0;
  for (size_t b = 0; b < p.boxes.size(); ++b) {
    if (p.boxes[b].beside < 0) continue;
    const Place &x = page.boxes[b], &y = page.boxes[static_cast<size_t>(p.boxes[b].beside)];
    level += std::abs(x.y + x.height / 2 - y.y - y.height / 2) < 1;
  }
  EXPECT_GE(level, 8);
}

TEST(Draw, OneDeviceMeetsNobody) {
  const Graph graph = small("gpt2:tiny");
  const Plan plan = planned(graph, "cpu:1", "1");
  for (ViewLevel level : kLevels) EXPECT_EQ(synchronizations(draw(graph, plan, level)), 0);
  EXPECT_GT(synchronizations(draw(graph, ViewLevel::kModel)), 0);  // where it could be cut
}

// Every byte that the plan moves is on the picture of the whole model.
TEST(Draw, TheModelsPictureHasEverySynchronization) {
  for (const char* model : {"gpt2:355m", "llama:1b", "bert:large"}) {
    const Graph graph = wide(model);
    for (const char* mesh : {"tp=8", "8", "dp=2,tp=4"}) {
      const Plan plan = planned(graph, "8xh100", mesh);
      const Picture p = draw(graph, plan, ViewLevel::kModel);
      std::map<std::string, int> kinds;  // "all-reduce tp"
      const auto add = [&](const std::string& text) {
        const size_t second = text.find(' ', text.find(' ') + 1);
        kinds[text.substr(0, std::min(second, text.find(',')))] = 1;
      };
      for (const Box& b : p.boxes) {
        if (b.kind == Box::Kind::kHexagon) add(b.title);
        for (const ValueLine& v : b.values) {
          if (v.hexagon) add(v.text);
        }
      }
      for (const PlannedCollectives& c : plan.collectives) {
        const std::string kind =
            fmt::format("{} {}", name_of(c.kind), plan.mesh.axes[static_cast<size_t>(c.axis)].name);
        EXPECT_TRUE(kinds.contains(kind)) << model << " " << mesh << ": " << kind;
      }
    }
  }
}

TEST(ClassWords, AreWhatPeopleSay) {
  const auto words_of = [](const char* model) {
    const Graph graph = small(model);
    const Dimensions dims = find_dimensions(graph);
    const std::vector<std::string> all = class_words(graph, dims);
    std::map<std::string, std::set<int64_t>> sizes;
    for (size_t c = 0; c < all.size(); ++c) sizes[all[c]].insert(dims.classes[c].size);
    return sizes;
  };
  const auto gpt = words_of("gpt2:tiny");
  EXPECT_EQ(gpt.at("batch"), std::set<int64_t>{8});
  EXPECT_EQ(gpt.at("sequence"), std::set<int64_t>{64});
  EXPECT_EQ(gpt.at("width"), std::set<int64_t>{128});
  EXPECT_EQ(gpt.at("heads"), std::set<int64_t>{4});
  EXPECT_EQ(gpt.at("mlp inner"), std::set<int64_t>{512});
  EXPECT_EQ(gpt.at("vocabulary"), std::set<int64_t>{256});
  const auto llama = words_of("llama:tiny");
  EXPECT_EQ(llama.at("kv heads"), std::set<int64_t>{2});
  EXPECT_EQ(llama.at("heads a kv head"), std::set<int64_t>{2});
  EXPECT_EQ(llama.at("mlp inner"), std::set<int64_t>{384});
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
