// Both shapes are walked together: groups of dimensions with equal products, cut into factors.
#include "tracer/reshape.h"

#include <algorithm>
#include <set>
#include <vector>

#include "graph/error.h"

namespace cleave {

namespace {

// Dimensions of both shapes with the same product, and no smaller such group inside.
struct Group {
  std::vector<size_t> from, to;
};

std::vector<Group> align(const Shape& from, const Shape& to) {
  std::vector<Group> groups;
  size_t i = 0, j = 0;
  while (true) {
    while (i < from.size() && from[i] == 1) ++i;
    while (j < to.size() && to[j] == 1) ++j;
    if (i == from.size() || j == to.size()) return groups;
    Group g{{i}, {j}};
    int64_t left = from[i++], right = to[j++];
    while (left != right) {
      if (left < right) {
        if (from[i] != 1) g.from.push_back(i);
        left *= from[i++];
      } else {
        if (to[j] != 1) g.to.push_back(j);
        right *= to[j++];
      }
    }
    groups.push_back(std::move(g));
  }
}

// The products of the first dimensions, the first two, ...: where the group's elements are cut.
std::vector<int64_t> cuts(const Shape& shape, const std::vector<size_t>& dims) {
  std::vector<int64_t> result;
  int64_t product = 1;
  for (size_t d : dims) result.push_back(product *= shape[d]);
  return result;
}

}  // namespace

ReshapeFactors reshape_factors(const Shape& from, const Shape& to) {
  ReshapeFactors result;
  std::vector<std::string> left(from.size(), "1"), right(to.size(), "1");
  char next = 'a';
  const auto letter = [&] {
    CLEAVE_ASSERT(next <= 'z', "reshape of too many dimensions");
    return next++;
  };
  for (const Group& g : align(from, to)) {
    const std::vector<int64_t> a = cuts(from, g.from), b = cuts(to, g.to);
    std::set<int64_t> merged(a.begin(), a.end());
    merged.insert(b.begin(), b.end());
    const std::vector<int64_t> all(merged.begin(), merged.end());
    bool chain = true;
    for (size_t c = 1; c < all.size(); ++c) chain &= all[c] % all[c - 1] == 0;
    if (!chain) {
      for (size_t d : g.from) left[d] = static_cast<char>(letter() - 'a' + 'A');
      for (size_t d : g.to) {
        right[d] = static_cast<char>(letter() - 'a' + 'A');
        result.attrs.set(right[d], to[d]);
      }
      continue;
    }
    for (size_t d : g.from) left[d].clear();
    for (size_t d : g.to) right[d].clear();
    int64_t before = 1;
    for (int64_t cut : all) {
      const char c = letter();
      const auto dim_at = [&](const std::vector<int64_t>& ends) {
        return static_cast<size_t>(std::lower_bound(ends.begin(), ends.end(), cut) - ends.begin());
      };
      std::string& l = left[g.from[dim_at(a)]];
      // The outermost factor of an input dimension follows from the dimension's size.
      if (!l.empty()) result.attrs.set(std::string_view(&c, 1), cut / before);
      l += c;
      right[g.to[dim_at(b)]] += c;
      before = cut;
    }
  }
  const auto join = [](const std::vector<std::string>& dims) {
    std::string text;
    for (const std::string& d : dims) text += d.size() > 1 ? "(" + d + ")" : d;
    return text;
  };
  result.text = join(left) + "->" + join(right);
  return result;
}

}  // namespace cleave
