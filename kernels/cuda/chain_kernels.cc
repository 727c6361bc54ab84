// The kernels of a chain: over elements, over rows that threads hold or go over again, and over
// pieces of rows and columns that a last kernel puts together. How threads share the work depends
// on sizes alone where numbers are added up.
#include <fmt/format.h>

#include <algorithm>
#include <bit>

#include "graph/error.h"
#include "kernels/cuda/chain_text.h"
#include "kernels/cuda/loops.h"

namespace cleave {
namespace {

using Nest = ChainWriter::Nest;
using Kind = ChainNode::Kind;

AxisSet set_of(const std::vector<int8_t>& axes) {
  AxisSet set = 0;
  for (const int8_t axis : axes) set |= AxisSet{1} << axis;
  return set;
}

// Whether a result lies along the reduced axes too, or has one element a row.
bool along_rows(const ChainLoops& loops, size_t r) {
  for (const int8_t axis : loops.plan.reduced) {
    if (loops.out[r].steps[static_cast<size_t>(axis)] != 0) return true;
  }
  return loops.plan.reduced.empty();
}

// The least power of two that is not below n.
int64_t power_of_two(int64_t n) {
  return static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(n)));
}

std::string guard(bool needed, const std::string& condition) {
  return needed ? "if (" + condition + ") " : "";
}

void open_lanes(ChainWriter& w) {
  w.line("#pragma unroll");
  w.line(fmt::format("    for (int lane = 0; lane < {}; ++lane) {{", w.vector()));
}

// Several vectors of the loops, of which `number` gives the e-th: loads of all, then `work` on
// each.
template <class Work>
void vectors(ChainWriter& w, int count, const std::string& number, const std::string& condition,
             const Nest& nest, bool large, const std::vector<int>& loads, bool load, Work work) {
  const char* type = large ? "long long" : "int";
  const auto each = [&](auto body) {
    w.line("#pragma unroll");
    w.line(fmt::format("  for (int e = 0; e < {}; ++e) {{", count));
    w.line(fmt::format("    const {} v = {};", type, number));
    w.line("    " + guard(!condition.empty(), condition) + "{");
    w.indices(nest, "i", "v", w.vector(), large);
    body();
    w.line("    }\n  }");
  };
  if (load && !loads.empty()) each([&] { w.load(loads, nest, "i", "[e]"); });
  each(work);
}

// --- Elements ------------------------------------------------------------------------------------

std::vector<ChainKernel> over_elements(const ChainLoops& loops) {
  const Nest nest = ChainWriter::nest_over(loops, loops.plan.kept), none;
  const int vector = ChainWriter::vector_length(loops, nest, ChainWriter::nest_over(loops, {}));
  ChainWriter w(loops, 0, vector, nest);
  const int64_t count = nest.count() / vector;
  constexpr int kBlock = 256;
  // Two vectors are on the way at once, when there are enough for all threads, and registers.
  const bool wide = loops.in.size() + loops.out.size() <= 8;
  const int each = wide && count >= int64_t{132} * 2048 * 4 ? 2 : 1;
  const bool large = nest.count() > INT32_MAX / 2;
  w.begin(kBlock);
  w.line(fmt::format("  const {0} first = static_cast<{0}>(blockIdx.x) * {1} + threadIdx.x;",
                     large ? "long long" : "int", kBlock * each));
  w.bases(ChainWriter::nest_over(loops, {}), "m");
  w.scope_values(0);
  std::vector<int> roots = loops.nodes.results;
  const std::vector<int> loads = w.loads_for(roots);
  w.declare_loads(loads, fmt::format("[{}]", each));
  vectors(w, each, fmt::format("first + e * {}", kBlock),
          count % (kBlock * each) == 0 ? "" : fmt::format("v < {}", count), nest, large, loads,
          true, [&] {
            for (size_t r = 0; r < loops.out.size(); ++r) w.declare_result(r);
            open_lanes(w);
            w.values(roots, "[e]");
            for (size_t r = 0; r < loops.out.size(); ++r) w.put(r, "[e]");
            w.line("    }");
            for (size_t r = 0; r < loops.out.size(); ++r) w.store(r, nest, "i");
          });
  return {{w.end(), ceil_div(count, int64_t{kBlock} * each), 1, kBlock}};
}

// --- Rows ----------------------------------------------------------------------------------------

// What happens in one pass over a row.
struct Pass {
  std::vector<int> reductions;  // nodes
  std::vector<size_t> results;  // along the row
  std::vector<int> roots;       // what is computed
};

std::vector<Pass> passes_of(const ChainLoops& loops, const ChainWriter& w) {
  std::vector<Pass> passes;
  const auto pass = [&](size_t p) -> Pass& {
    if (passes.size() <= p) passes.resize(p + 1);
    return passes[p];
  };
  for (size_t n = 0; n < loops.nodes.nodes.size(); ++n) {
    const ChainNode& node = loops.nodes.nodes[n];
    if (node.kind != Kind::kReduce || !w.live(static_cast<int>(n))) continue;
    Pass& p = pass(static_cast<size_t>(node.stage - 1));
    p.reductions.push_back(static_cast<int>(n));
    p.roots.push_back(node.in[0]);
  }
  // Results are stored at the end: they may lie on operands that are still to be read.
  // Not when elements are read once and none waits for a reduction.
  size_t last = 0;
  bool waits = passes.size() > 1;
  for (size_t r = 0; r < loops.out.size(); ++r) {
    waits |= along_rows(loops, r) && loops.nodes.at(loops.nodes.results[r]).stage > 0;
  }
  for (size_t n = 0; n < loops.nodes.nodes.size() && waits; ++n) {
    if (w.live(static_cast<int>(n))) {
      last = std::max(last, static_cast<size_t>(loops.nodes.nodes[n].stage));
    }
  }
  for (size_t r = 0; r < loops.out.size(); ++r) {
    if (!along_rows(loops, r)) continue;
    pass(last).results.push_back(r);
    pass(last).roots.push_back(loops.nodes.results[r]);
  }
  return passes;
}

// Sums over `threads` threads that follow each other, the same in all of them.
void reduce_over(ChainWriter& w, const Pass& pass, size_t number, int threads) {
  const auto shuffles = [&](int width) {
    for (int lanes = width / 2; lanes > 0; lanes /= 2) {
      for (const int n : pass.reductions) {
        w.line(fmt::format(
            "  {{ const {0} o = __shfl_xor_sync(0xffffffffu, r{1}, {2}); r{1} = {3}; }}",
            w.number(), n, lanes, w.fold(n, fmt::format("r{}", n), "o")));
      }
    }
  };
  shuffles(std::min(threads, 32));
  if (threads <= 32) return;
  const int warps = threads / 32;
  w.line(fmt::format("  __shared__ {} s{}[{}];", w.number(), number,
                     static_cast<size_t>(warps) * pass.reductions.size()));
  w.line("  if (threadIdx.x % 32 == 0) {");
  for (size_t k = 0; k < pass.reductions.size(); ++k) {
    w.line(fmt::format("    s{}[{} + threadIdx.x / 32] = r{};", number,
                       k * static_cast<size_t>(warps), pass.reductions[k]));
  }
  w.line("  }\n  __syncthreads();");
  for (size_t k = 0; k < pass.reductions.size(); ++k) {
    w.line(fmt::format("  r{} = s{}[{} + threadIdx.x % {}];", pass.reductions[k], number,
                       k * static_cast<size_t>(warps), warps));
  }
  shuffles(warps);
}

// Adds the elements of a vector to the reductions of the pass, and stores its results.
void work_on(ChainWriter& w, const Pass& pass, const Nest& nest, const std::string& store_if) {
  for (const size_t r : pass.results) w.declare_result(r);
  open_lanes(w);
  w.values(pass.roots, "[e]");
  for (const int n : pass.reductions) {
    const std::string total = fmt::format("r{}", n);
    w.line(fmt::format("      {} = {};", total,
                       w.fold(n, total, w.name(w.nodes().at(n).in[0], "[e]"))));
  }
  for (const size_t r : pass.results) w.put(r, "[e]");
  w.line("    }");
  if (pass.results.empty()) return;
  w.line("    " + guard(!store_if.empty(), store_if) + "{");
  for (const size_t r : pass.results) w.store(r, nest, "i");
  w.line("    }");
}

void begin_reductions(ChainWriter& w, const Pass& pass) {
  for (const int n : pass.reductions) {
    w.line(fmt::format("  {} r{} = {};", w.number(), n, w.identity(n)));
  }
}

// How the threads of a row have its vectors.
struct RowShape {
  int threads = 32;  // of a row
  int each = 1;      // vectors a thread has at once
  bool held = true;  // it has all of its vectors at once
  int resident = 1;  // blocks that a multiprocessor has room for, at least
};

// Registers that one element of these operands and masks takes, where they come in vectors.
double registers_of(const ChainLoops& loops, const ChainWriter& w, const std::vector<int>& loads) {
  double registers = 0;
  for (const int n : loads) {
    const ChainNode& node = loops.nodes.at(n);
    if (node.kind == Kind::kMask) {
      registers += w.is_double() ? 2 : 1;
    } else {
      const int64_t bytes = size_of(loops.in[static_cast<size_t>(node.index)].dtype);
      registers += std::max(static_cast<double>(bytes) / 4, 1.0 / w.vector());
    }
  }
  return registers;
}

// `words`: registers that one element takes while it is held.
RowShape row_shape(int64_t vectors, int vector, double words) {
  RowShape shape;
  if (vectors <= 32) {
    shape.threads = static_cast<int>(power_of_two(vectors));
    return shape;
  }
  // A thread that has much of a row has many loads on the way, and a block of few threads leaves
  // room for others, which load while it waits for its sums. On an H200 rows of 4,096 halves take
  // least by 128 threads (4 % more by 256, 6 to 12 by 64), rows of 32,768 by two resident blocks of
  // 512 (32 % more by one of 1,024, 44 by one of 512): gpu_checks-h200-2026-11-29.txt.
  for (shape.threads = 32; shape.threads <= 1024; shape.threads *= 2) {
    shape.each = static_cast<int>(ceil_div(vectors, shape.threads));
    const int elements = shape.each * vector;
    const double registers = elements * words;
    if (shape.threads == 512 && elements > 32 && elements <= 64 && registers <= 32) {
      shape.resident = 2;
      return shape;
    }
    const bool much = elements > 16 && shape.threads > 32;
    const double room = shape.threads == 1024 ? 36 : much ? 48 : 96;
    if (elements <= (shape.threads == 64 ? 16 : 32) && registers <= room) return shape;
  }
  return {512, std::max(1, std::min(4, 32 / vector)), false};
}

std::vector<ChainKernel> over_rows(const ChainLoops& loops) {
  const Nest major = ChainWriter::nest_over(loops, loops.plan.kept);
  const Nest minor = ChainWriter::nest_over(loops, loops.plan.reduced);
  const int vector = ChainWriter::vector_length(loops, minor, major);
  ChainWriter w(loops, set_of(loops.plan.kept), vector, minor);
  const std::vector<Pass> passes = passes_of(loops, w);
  const int64_t count = minor.count() / vector, rows = loops.plan.rows;
  // What is computed in one pass and needed in a later one is kept when it costs; operands are
  // held as they lie in memory.
  double words = 0;
  std::vector<std::vector<int>> kept(passes.size());
  {
    std::vector<int> first(loops.nodes.nodes.size(), -1);
    for (size_t p = 0; p < passes.size(); ++p) {
      for (size_t i = 0; i < loops.nodes.nodes.size(); ++i) {
        const int n = static_cast<int>(i);
        const ChainNode& node = loops.nodes.nodes[i];
        if (w.in_scope(n) || node.kind != Kind::kElement || !node.costly) continue;
        if (!w.needs(passes[p].roots, n)) continue;
        if (first[i] < 0) {
          first[i] = static_cast<int>(p);
        } else if (!w.is_kept(n)) {
          w.keep(n);
          kept[static_cast<size_t>(first[i])].push_back(n);
          words += w.is_double() ? 2 : 1;
        }
      }
    }
  }
  std::vector<int> roots;
  for (const Pass& p : passes) roots.insert(roots.end(), p.roots.begin(), p.roots.end());
  const std::vector<int> loads = w.loads_for(roots);
  words += registers_of(loops, w, loads);
  const RowShape shape = row_shape(count, vector, words);
  const bool held = shape.held;
  if (!held) w.keep_nothing();
  const int block = shape.threads > 32 ? shape.threads : 128, together = block / shape.threads;
  w.begin(block, shape.resident);
  w.line(fmt::format("  const int lane_of_row = threadIdx.x % {};", shape.threads));
  const bool partial = rows % together != 0;
  w.line(fmt::format(
      "  const long long wanted = static_cast<long long>(blockIdx.x) * {} + threadIdx.x / {};",
      together, shape.threads));
  w.line(partial
             ? fmt::format("  const bool there = wanted < {0};\n  const long long row = there ? "
                           "wanted : {0} - 1;",
                           rows)
             : "  const long long row = wanted;");
  const bool small_rows = rows <= INT32_MAX / 2;
  w.indices(major, "m", small_rows ? "static_cast<int>(row)" : "row", 1, !small_rows);
  w.bases(major, "m");
  w.scope_values(0);
  const std::string number =
      fmt::format("{}lane_of_row + e * {}", held ? "" : "c + ", shape.threads);
  const int64_t at_once = int64_t{shape.threads} * shape.each;
  const std::string condition = count % at_once == 0 ? "" : fmt::format("v < {}", count);
  const std::string count_text = fmt::format("[{}]", shape.each);
  if (held) {
    w.declare_loads(loads, count_text);
    for (const auto& list : kept) {
      for (const int n : list) {
        w.line(fmt::format("  {} k{}{}[{}];", w.number(), n, count_text, vector));
      }
    }
  }
  for (size_t p = 0; p < passes.size(); ++p) {
    const Pass& pass = passes[p];
    begin_reductions(w, pass);
    const auto body = [&](bool load) {
      const std::vector<int> own = held ? loads : w.loads_for(pass.roots);
      if (!held) w.declare_loads(own, count_text);
      vectors(w, shape.each, number, condition, minor, false, own, load,
              [&] { work_on(w, pass, minor, partial ? "there" : ""); });
    };
    if (!pass.roots.empty()) {
      if (held) {
        body(p == 0);
      } else {
        w.line(fmt::format("  for (int c = 0; c < {}; c += {}) {{", count, at_once));
        body(true);
        w.line("  }");
      }
    }
    for (const int n : kept[p]) w.fill_kept(n);
    if (!pass.reductions.empty()) reduce_over(w, pass, p, shape.threads);
    for (const int n : pass.reductions) w.have(n);
    w.scope_values(static_cast<int>(p) + 1);
  }
  w.line("  if (lane_of_row == 0" + std::string(partial ? " && there" : "") + ") {");
  for (size_t r = 0; r < loops.out.size(); ++r) {
    if (!along_rows(loops, r)) w.store_in_scope(r);
  }
  w.line("  }");
  return {{w.end(), ceil_div(rows, int64_t{together}), 1, block}};
}

// --- Pieces --------------------------------------------------------------------------------------

// Which of the workspace's parts the reduction has: [reductions, pieces, rows].
std::string partial_at(const ChainLoops& loops, size_t k, const std::string& piece,
                       const std::string& row) {
  return fmt::format("w[({} + {}) * {}LL + {}]", k * static_cast<size_t>(loops.plan.pieces), piece,
                     loops.plan.rows, row);
}

// Each block has a piece of a row.
ChainKernel pieces_of_rows(const ChainLoops& loops) {
  const Nest major = ChainWriter::nest_over(loops, loops.plan.kept);
  const Nest minor = ChainWriter::nest_over(loops, loops.plan.reduced);
  const int vector = ChainWriter::vector_length(loops, minor, major);
  ChainWriter w(loops, set_of(loops.plan.kept), vector, minor);
  const Pass pass = passes_of(loops, w)[0];
  const int64_t count = minor.count() / vector, pieces = loops.plan.pieces;
  const int64_t size = ceil_div(count, pieces);
  const bool large = minor.count() > INT32_MAX / 2;
  constexpr int kBlock = 256;
  // Many elements on the way, as far as registers go, and the piece.
  const std::vector<int> loads = w.loads_for(pass.roots);
  const double room = 64 / std::max(registers_of(loops, w, loads), 1.0);
  const auto each = static_cast<int>(std::clamp<int64_t>(
      std::min(32, static_cast<int>(room)) / vector, 1, ceil_div(size, kBlock)));
  w.begin(kBlock);
  w.line("  const int row = blockIdx.x;");
  w.indices(major, "m", "row", 1, false);
  w.bases(major, "m");
  w.scope_values(0);
  begin_reductions(w, pass);
  const char* type = large ? "long long" : "int";
  w.line(fmt::format("  const {0} begin = static_cast<{0}>(blockIdx.y) * {1};", type, size));
  w.line(
      fmt::format("  const {0} end = begin + {1} < {2} ? begin + {1} : {2};", type, size, count));
  w.line(fmt::format("  for ({} c = begin; c < end; c += {}) {{", type, kBlock * each));
  w.declare_loads(loads, fmt::format("[{}]", each));
  vectors(w, each, fmt::format("c + static_cast<int>(threadIdx.x) + e * {}", kBlock), "v < end",
          minor, large, loads, true, [&] { work_on(w, pass, minor, ""); });
  w.line("  }");
  reduce_over(w, pass, 0, kBlock);
  w.line("  if (threadIdx.x == 0) {");
  for (size_t k = 0; k < pass.reductions.size(); ++k) {
    w.line(fmt::format("    {} = r{};", partial_at(loops, k, "blockIdx.y", "row"),
                       pass.reductions[k]));
  }
  w.line("  }");
  return {w.end(), loops.plan.rows, pieces, kBlock};
}

// Each block has some columns, of a piece of all rows: threads side by side go down together.
ChainKernel pieces_of_columns(const ChainLoops& loops) {
  const Nest across = ChainWriter::nest_over(loops, loops.plan.kept);
  const Nest down = ChainWriter::nest_over(loops, loops.plan.reduced);
  const int vector = ChainWriter::vector_length(loops, across, down);
  ChainWriter w(loops, 0, vector, across);
  const Pass pass = passes_of(loops, w)[0];
  const int64_t count = across.count() / vector, pieces = loops.plan.pieces;
  const int64_t length = down.count(), size = ceil_div(length, pieces);
  constexpr int kBlock = 256;
  // Threads side by side.
  const auto side = static_cast<int>(std::min(power_of_two(count), int64_t{32}));
  const int deep = kBlock / side, each = loops.in.size() + loops.out.size() <= 4 ? 4 : 2;
  w.begin(kBlock);
  w.line(fmt::format("  const int column = threadIdx.x % {0}, deep = threadIdx.x / {0};", side));
  w.line(fmt::format("  const int u = blockIdx.x * {} + column;", side));
  w.line(
      fmt::format("  const bool there = u < {0};\n  const int own = there ? u : {0} - 1;", count));
  w.indices(across, "m", "own", vector, false);
  w.bases(across, "m");
  w.scope_values(0);
  for (const int n : pass.reductions) {
    w.line(fmt::format("  {} a{}[{}];", w.number(), n, vector));
    w.line(fmt::format("#pragma unroll\n  for (int lane = 0; lane < {}; ++lane) a{}[lane] = {};",
                       vector, n, w.identity(n)));
  }
  w.line(
      fmt::format("  const int begin = blockIdx.y * {0};\n  const int end = begin + {0} < {1} ? "
                  "begin + {0} : {1};",
                  size, length));
  // What does not change on the way down is loaded once.
  std::vector<int> fixed, moving;
  for (const int n : w.loads_for(pass.roots)) {
    const bool moves = (loops.nodes.at(n).axes & set_of(loops.plan.reduced)) != 0;
    (moves ? moving : fixed).push_back(n);
  }
  w.declare_loads(fixed, "");
  w.load(fixed, ChainWriter::nest_over(loops, {}), "i", "");
  w.hoist(fixed);
  w.line(fmt::format("  for (int c = begin + deep; c < end; c += {}) {{", deep * each));
  w.declare_loads(moving, fmt::format("[{}]", each));
  const auto rows_of = [&](auto body) {
    w.line("#pragma unroll");
    w.line(fmt::format("  for (int e = 0; e < {}; ++e) {{", each));
    w.line(fmt::format("    const int v = c + e * {};", deep));
    w.line("    if (v < end) {");
    w.indices(down, "i", "v", 1, false);
    body();
    w.line("    }\n  }");
  };
  rows_of([&] { w.load(moving, down, "i", "[e]"); });
  rows_of([&] {
    for (const size_t r : pass.results) w.declare_result(r);
    open_lanes(w);
    w.values(pass.roots, "[e]");
    for (const int n : pass.reductions) {
      const std::string total = fmt::format("a{}[lane]", n);
      w.line(fmt::format("      {} = {};", total,
                         w.fold(n, total, w.name(w.nodes().at(n).in[0], "[e]"))));
    }
    for (const size_t r : pass.results) w.put(r, "[e]");
    w.line("    }");
    if (pass.results.empty()) return;
    w.line("    if (there) {");
    for (const size_t r : pass.results) w.store(r, down, "i");
    w.line("    }");
  });
  w.line("  }");
  // The threads one behind the other, in their order.
  w.line(fmt::format("  __shared__ {} s[{}];", w.number(), kBlock * vector));
  for (size_t k = 0; k < pass.reductions.size(); ++k) {
    const int n = pass.reductions[k];
    if (k > 0) w.line("  __syncthreads();");
    w.line(fmt::format(
        "#pragma unroll\n  for (int lane = 0; lane < {0}; ++lane) s[(deep * {0} + lane) "
        "* {1} + column] = a{2}[lane];",
        vector, side, n));
    w.line("  __syncthreads();");
    w.line(fmt::format("  for (int i = threadIdx.x; i < {}; i += {}) {{", side * vector, kBlock));
    w.line(fmt::format("    const int lane = i / {0}, at = i % {0};", side));
    w.line(fmt::format("    {} total = s[lane * {} + at];", w.number(), side));
    w.line(fmt::format("    for (int d = 1; d < {}; ++d) {{", deep));
    w.line(
        fmt::format("      const {} o = s[(d * {} + lane) * {} + at];", w.number(), vector, side));
    w.line(fmt::format("      total = {};\n    }}", w.fold(n, "total", "o")));
    w.line(fmt::format("    const int to = blockIdx.x * {} + at;", side));
    w.line(
        fmt::format("    if (to < {}) {} = total;", count,
                    partial_at(loops, k, "blockIdx.y", fmt::format("(to * {} + lane)", vector))));
    w.line("  }");
  }
  return {w.end(), ceil_div(count, int64_t{side}), pieces, kBlock};
}

// Puts the pieces together, and makes the results that have one element a row. Rows lie side by
// side in a block; the threads of each share its pieces, for what takes time is to wait for them.
ChainKernel put_together(const ChainLoops& loops) {
  const Nest major = ChainWriter::nest_over(loops, loops.plan.kept);
  ChainWriter w(loops, set_of(loops.plan.kept), 1, major);
  const Pass pass = passes_of(loops, w)[0];
  const int64_t rows = loops.plan.rows, pieces = loops.plan.pieces;
  constexpr int64_t kSide = 32;
  constexpr size_t kShared = 48 * 1024;  // bytes that a block has
  int64_t block = 256;
  const size_t numbers = pass.reductions.size() * (w.is_double() ? 8 : 4);
  while (numbers * static_cast<size_t>(block) > kShared) block /= 2;
  const int64_t deep = std::min(power_of_two(pieces), block / std::min(power_of_two(rows), kSide));
  const int64_t side = std::min(power_of_two(rows), block / deep);
  w.begin(static_cast<int>(side * deep));
  w.line(
      fmt::format("  const int deep = threadIdx.x / {0};\n  const long long wanted = "
                  "static_cast<long long>(blockIdx.x) * {0} + threadIdx.x % {0};",
                  side));
  w.line(
      fmt::format("  const bool there = wanted < {0};\n  const long long row = there ? wanted : "
                  "{0} - 1;",
                  rows));
  w.indices(major, "m", "row", 1, true);
  w.bases(major, "m");
  w.scope_values(0);
  begin_reductions(w, pass);
  w.line(fmt::format("#pragma unroll 8\n  for (int d = deep; d < {}; d += {}) {{", pieces, deep));
  for (size_t k = 0; k < pass.reductions.size(); ++k) {
    const std::string total = fmt::format("r{}", pass.reductions[k]);
    w.line(fmt::format("    {{ const {} o = {}; {} = {}; }}", w.number(),
                       partial_at(loops, k, "d", "row"), total,
                       w.fold(pass.reductions[k], total, "o")));
  }
  w.line("  }");
  if (deep > 1) {
    for (const int n : pass.reductions) {
      w.line(fmt::format("  __shared__ {0} s{1}[{2}];\n  s{1}[threadIdx.x] = r{1};", w.number(), n,
                         side * deep));
    }
  }
  for (int64_t half = deep / 2; half > 0; half /= 2) {
    w.line(fmt::format("  __syncthreads();\n  if (deep < {}) {{", half));
    for (const int n : pass.reductions) {
      w.line(fmt::format("    {{ const {0} o = s{1}[threadIdx.x + {2}]; r{1} = {3}; }}", w.number(),
                         n, half * side, w.fold(n, fmt::format("r{}", n), "o")));
      if (half > 1) w.line(fmt::format("    s{0}[threadIdx.x] = r{0};", n));
    }
    w.line("  }");
  }
  for (const int n : pass.reductions) w.have(n);
  w.scope_values(1);
  w.line("  if (deep == 0 && there) {");
  for (size_t r = 0; r < loops.out.size(); ++r) {
    if (!along_rows(loops, r)) w.store_in_scope(r);
  }
  w.line("  }");
  return {w.end(), ceil_div(rows, side), 1, static_cast<int>(side * deep)};
}

}  // namespace

std::vector<ChainKernel> chain_kernels(const ChainLoops& loops) {
  switch (loops.plan.kind) {
    case ChainPlan::Kind::kElements: return over_elements(loops);
    case ChainPlan::Kind::kRows: return over_rows(loops);
    case ChainPlan::Kind::kSplit: break;
  }
  return {loops.plan.columns ? pieces_of_columns(loops) : pieces_of_rows(loops),
          put_together(loops)};
}

}  // namespace cleave
