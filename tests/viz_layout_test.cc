// Laid-out pictures: nothing overlaps, arrows run the right way, frames hold their own and nothing
// else, whatever the picture is.
#include "viz/layout.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <set>

#include "viz/columns.h"
#include "viz/rows.h"
#include "viz/svg.h"
#include "viz/text.h"

namespace cleave {
namespace {

// Up to 40 boxes in two phases and an update, with frames, arrows of every kind and wishes.
Picture random_picture(unsigned seed) {
  std::mt19937 random(seed);
  const auto pick = [&](size_t n) { return static_cast<int32_t>(random() % n); };
  Picture p;
  for (int32_t phase = 0; phase < 3; ++phase) {
    p.frames.push_back({Frame::Kind::kPhase, "phase", phase, -1});
  }
  for (int32_t phase = 0; phase < 2; ++phase) {
    p.frames.push_back({Frame::Kind::kLayer, "layer", 0, phase});
  }
  for (int i = 0; i < 6; ++i) {
    p.frames.push_back(
        {Frame::Kind::kRegion, std::string(static_cast<size_t>(pick(40)), 'r'), 0, pick(5)});
  }
  const int32_t size = 1 + pick(40);
  for (int32_t b = 0; b < size; ++b) {
    Box box;
    box.kind = static_cast<Box::Kind>(pick(4));
    box.title = std::string(static_cast<size_t>(pick(30)), 'm');
    for (int32_t i = pick(3); i > 0; --i) box.notes.push_back("a note");
    for (int32_t i = pick(4); i > 0; --i) box.values.push_back({"a value [8, 8]", {"#ffffff"}});
    box.colour = "#000000";
    box.frame = pick(p.frames.size());
    box.beside = pick(3) == 0 ? pick(static_cast<size_t>(size)) : -1;
    p.boxes.push_back(box);
  }
  for (int32_t i = pick(60); i > 0; --i) {
    const int32_t a = pick(static_cast<size_t>(size)), b = pick(static_cast<size_t>(size));
    // Mostly the order of a graph; sometimes a circle.
    const bool turn = a > b && pick(8) != 0;
    p.arrows.push_back({turn ? b : a, turn ? a : b, false, pick(6) == 0});
  }
  return p;
}

int32_t phase_of(const Picture& p, const Box& b) {
  int32_t f = b.frame;
  while (p.frames[static_cast<size_t>(f)].parent >= 0) f = p.frames[static_cast<size_t>(f)].parent;
  return p.frames[static_cast<size_t>(f)].id;
}

bool overlap(const Place& a, const Place& b) {
  return a.x + a.width > b.x + 0.01 && b.x + b.width > a.x + 0.01 && a.y + a.height > b.y + 0.01 &&
         b.y + b.height > a.y + 0.01;
}

bool inside(const Place& a, const Place& b) {
  return a.x > b.x - 0.01 && a.y > b.y - 0.01 && a.x + a.width < b.x + b.width + 0.01 &&
         a.y + a.height < b.y + b.height + 0.01;
}

TEST(Layout2d, NothingOverlapsAndAllIsOnThePage) {
  for (unsigned seed = 0; seed < 400; ++seed) {
    const Picture p = random_picture(seed);
    const Layout2d page = lay_out(p);
    ASSERT_EQ(page.boxes.size(), p.boxes.size());
    ASSERT_EQ(page.arrows.size(), p.arrows.size());
    const Place all = {0, 0, page.width, page.height};
    for (size_t a = 0; a < page.boxes.size(); ++a) {
      ASSERT_TRUE(inside(page.boxes[a], all)) << seed << " box " << a;
      for (size_t b = a + 1; b < page.boxes.size(); ++b) {
        ASSERT_FALSE(overlap(page.boxes[a], page.boxes[b])) << seed << ": " << a << ", " << b;
      }
    }
    // A box is in the frame of its phase; a region's frame, of one box or more, has no others in
    // it.
    for (const PlacedFrame& f : page.frames) {
      if (f.kind != Frame::Kind::kRegion) continue;
      std::set<int32_t> regions;
      for (size_t b = 0; b < page.boxes.size(); ++b) {
        if (overlap(page.boxes[b], f.place)) regions.insert(p.boxes[b].frame);
      }
      ASSERT_EQ(regions.size(), 1u) << seed;
    }
  }
}

// In a picture without circles the forward goes down and the backward up, always.
TEST(Layout2d, ArrowsRunAsTheirPhaseDoes) {
  for (unsigned seed = 0; seed < 400; ++seed) {
    Picture p = random_picture(seed);
    for (Arrow& a : p.arrows) {
      if (a.from > a.to) std::swap(a.from, a.to);
    }
    const Layout2d page = lay_out(p);
    for (const PlacedArrow& placed : page.arrows) {
      const Arrow& a = p.arrows[placed.arrow];
      const Box &from = p.boxes[static_cast<size_t>(a.from)],
                &to = p.boxes[static_cast<size_t>(a.to)];
      const int32_t phase = phase_of(p, from);
      if (a.aside || a.from == a.to || phase != phase_of(p, to) || phase == 2) continue;
      const double rise = placed.points.front().y - placed.points.back().y;
      ASSERT_GT(phase == 0 ? -rise : rise, 0) << seed;
    }
  }
}

TEST(Rows, KeepWhatCanBeKept) {
  for (unsigned seed = 0; seed < 400; ++seed) {
    std::mt19937 random(seed);
    RowProblem problem;
    problem.size = 2 + static_cast<int32_t>(random() % 25);
    const auto pick = [&] {
      return static_cast<int32_t>(random() % static_cast<unsigned>(problem.size));
    };
    for (int i = 0; i < 30; ++i) {
      int32_t a = pick(), b = pick();
      if (a > b) std::swap(a, b);
      if (a != b) problem.below.emplace_back(a, b);
      problem.beside.emplace_back(pick(), pick());
    }
    problem.bands.push_back({pick(), pick(), pick()});
    const Rows rows = find_rows(problem);
    std::vector<bool> used(static_cast<size_t>(rows.count));
    for (int32_t r : rows.of_box) used.at(static_cast<size_t>(r)) = true;
    EXPECT_EQ(std::count(used.begin(), used.end(), false), 0) << seed;
    for (const auto& [a, b] : problem.below) {
      EXPECT_LT(rows.of_box[static_cast<size_t>(a)], rows.of_box[static_cast<size_t>(b)]) << seed;
    }
  }
  // A chain beside a chain, level with it.
  const Rows rows = find_rows({6, {{0, 1}, {1, 2}, {3, 4}, {4, 5}}, {{0, 3}, {1, 4}, {2, 5}}, {}});
  EXPECT_EQ(rows.of_box, (std::vector<int32_t>{0, 1, 2, 0, 1, 2}));
  // What is read late stands near its reader.
  EXPECT_EQ(find_rows({4, {{0, 1}, {1, 2}, {3, 2}}, {}, {}}).of_box[3], 1);
}

TEST(Columns, StandStraightBelowEachOther) {
  ColumnProblem problem;
  for (int32_t row = 0; row < 6; ++row) problem.items.push_back({40.0 + 10 * row, row, -1});
  for (int32_t row = 0; row < 5; ++row) problem.links.emplace_back(row, row + 1);
  problem.links.emplace_back(0, 5);  // past all of them
  const Columns c = find_columns(problem);
  for (size_t i = 1; i < 6; ++i) {
    EXPECT_NEAR(c.left[i] + problem.items[i].width / 2, c.left[0] + problem.items[0].width / 2, 1);
  }
  ASSERT_EQ(c.passes.back().size(), 4u);
  for (double x : c.passes.back()) EXPECT_NEAR(x, c.passes.back()[0], 1e-6);
}

TEST(Text, IsMadeSafe) {
  EXPECT_EQ(clean_text("plain"), "plain");
  EXPECT_EQ(clean_text("a\nb\x01\x7f"), "a\\x0ab\\x01\\x7f");
  EXPECT_EQ(clean_text("\xC3\xA9 \xE2\x86\x92 \xF0\x9F\xA6\x80"),
            "\xC3\xA9 \xE2\x86\x92 \xF0\x9F\xA6\x80");
  EXPECT_EQ(clean_text("\xFF\xC3("), "\\xff\\xc3(");
  EXPECT_EQ(clean_text("\xC2\x85\xEF\xBF\xBE"), "\\xc2\\x85\\xef\\xbf\\xbe");
  EXPECT_EQ(xml_text("<a & \"b\">"), "&lt;a &amp; &quot;b&quot;&gt;");
  EXPECT_EQ(shortened("abcdefgh", 8), "abcdefgh");
  EXPECT_EQ(shortened("abcdefgh", 5), "ab…gh");
  EXPECT_EQ(shortened("ééééé", 3), "é…é");
  EXPECT_GT(text_width("mmm", 10), text_width("iii", 10));
  EXPECT_NEAR(text_width("ab", 20), 2 * text_width("ab", 10), 1e-9);
}

}  // namespace
}  // namespace cleave
