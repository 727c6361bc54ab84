// The checks of one op that need no second graph: splits, layouts, linearity, costs, precision.
#include "tests/support/op_checks.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "graph/philox.h"
#include "tests/support/op_compare.h"

namespace cleave::testing {

// --- Comparing and drawing -----------------------------------------------------------------------

std::string difference(const HostTensor& got, const HostTensor& want, double tolerance) {
  if (got.type != want.type) return to_string(got.type) + " instead of " + to_string(want.type);
  for (size_t i = 0; i < want.numbers.size(); ++i) {
    const double a = got.numbers[i], b = want.numbers[i];
    if (a == b) continue;  // infinities
    if (!(std::abs(a - b) <= tolerance * (1 + std::abs(b)))) {
      return fmt::format("element {} is {} instead of {}", i, a, b);
    }
  }
  return {};
}

void compare(const std::vector<HostTensor>& got, const std::vector<HostTensor>& want,
             const std::string& what, Mistakes& mistakes, double tolerance) {
  for (size_t o = 0; o < want.size(); ++o) {
    const std::string d = difference(got[o], want[o], tolerance);
    if (!d.empty()) mistakes.push_back(fmt::format("{}: output {}: {}", what, o, d));
  }
}

namespace {

TensorType as_f32(TensorType type) {
  if (type.dtype == DType::kF64) type.dtype = DType::kF32;
  return type;
}

}  // namespace

Application application_of(const OpCase& c, int seed, bool f32) {
  std::vector<TensorType> types = c.in;
  Attrs attrs = c.attrs;
  if (f32) {
    for (TensorType& t : types) t = as_f32(t);
    if (attrs.has("dtype") && attrs.text("dtype") == "f64") attrs.set("dtype", std::string("f32"));
  }
  const std::string factors(c.factors.empty() ? c.op->factors.text() : c.factors);
  const Signature& signature = Signature::get(expand_factors(factors, types));
  Application a{c.op, &signature, attrs, whole_extents(solve_extents(signature, attrs, types)), {}};
  std::mt19937_64 random(stream_of(c.op->name) + static_cast<uint64_t>(seed));
  for (size_t i = 0; i < types.size(); ++i) {
    const Range range = i < c.ranges.size() ? c.ranges[i] : Range{};
    std::uniform_real_distribution<double> uniform(range.low, range.high);
    HostTensor t{types[i], {}};
    for (int64_t j = 0; j < numel(types[i].shape); ++j) {
      const double x = uniform(random);
      // Numbers that f32 holds exactly, so that both precisions see the same ones.
      t.numbers.push_back(types[i].dtype == DType::kI32
                              ? std::floor(x)
                              : static_cast<double>(static_cast<float>(x)));
    }
    a.in.push_back(std::move(t));
  }
  if (c.prepare != nullptr) c.prepare(a.in);
  return a;
}

// --- Splits --------------------------------------------------------------------------------------

namespace {

// A tensor seen with one dimension a factor, for gathering and scattering along one of them.
struct FactorView {
  int64_t outer = 1, size = 1, inner = 1;  // around the factor, all other factors merged

  FactorView(const OperandDims& dims, std::span<const Extent> extents, size_t factor) {
    bool after = false;
    for (const DimFactors& dim : dims) {
      for (const int8_t f : dim) {
        const int64_t n = extents[static_cast<size_t>(f)].local;
        if (static_cast<size_t>(f) == factor) {
          size = n, after = true;
        } else {
          (after ? inner : outer) *= n;
        }
      }
    }
  }
};

HostTensor gather(const HostTensor& t, const OperandDims& dims, std::span<const Extent> extents,
                  size_t factor, const std::vector<int64_t>& positions) {
  const FactorView v(dims, extents, factor);
  HostTensor result{t.type, {}};
  for (size_t d = 0; d < dims.size(); ++d) {
    const bool carries = std::find(dims[d].begin(), dims[d].end(), factor) != dims[d].end();
    if (carries) result.type.shape[d] = t.type.shape[d] / v.size * std::ssize(positions);
  }
  for (int64_t o = 0; o < v.outer; ++o) {
    for (const int64_t p : positions) {
      const auto from = t.numbers.begin() + (o * v.size + p) * v.inner;
      result.numbers.insert(result.numbers.end(), from, from + v.inner);
    }
  }
  return result;
}

void scatter(const HostTensor& part, HostTensor& whole, const OperandDims& dims,
             std::span<const Extent> extents, size_t factor,
             const std::vector<int64_t>& positions) {
  const FactorView v(dims, extents, factor);
  auto from = part.numbers.begin();
  for (int64_t o = 0; o < v.outer; ++o) {
    for (const int64_t p : positions) {
      std::copy(from, from + v.inner, whole.numbers.begin() + (o * v.size + p) * v.inner);
      from += v.inner;
    }
  }
}

// Element-by-element reduction of two partial results.
void combine(HostTensor& total, const HostTensor& part, Reduction reduction) {
  for (size_t i = 0; i < total.numbers.size(); ++i) {
    double& a = total.numbers[i];
    const double b = part.numbers[i], highest = std::max(a, b);
    switch (reduction) {
      case Reduction::kSum: a += b; break;
      case Reduction::kMax: a = highest; break;
      case Reduction::kLogSumExp:
        if (!std::isinf(highest)) {
          a = highest + std::log(std::exp(a - highest) + std::exp(b - highest));
        }
        break;
    }
  }
}

struct FactorSplit {
  size_t factor;
  int64_t blocks, parts;
};

// Runs the shards of the first split, each by the rest of the splits, and puts them together.
std::vector<HostTensor> run_split(const Application& a, std::span<const FactorSplit> splits) {
  if (splits.empty()) {
    Application told = a;
    for (size_t f = 0; f < told.extents.size(); ++f) {
      Extent& e = told.extents[f];
      if (!a.signature->factors()[f].indexed) e = {e.local, e.local, {}};
    }
    return run_op(told);
  }
  const auto [f, blocks, parts] = splits[0];
  const Signature& s = *a.signature;
  const auto& in_dims = s.inputs();
  std::vector<HostTensor> whole;
  for (int64_t index = 0; index < parts; ++index) {
    const Cut cut{blocks, parts, index};
    const int64_t local = a.extents[f].local / parts;
    const std::vector<int64_t> positions = Extent{local, a.extents[f].local, {cut}}.positions();
    Application shard = a;
    shard.extents[f].local = local;
    shard.extents[f].cuts.push_back(cut);
    for (size_t i = 0; i < a.in.size(); ++i) {
      if (!Signature::carries(in_dims[i], static_cast<int>(f))) continue;
      shard.in[i] = gather(a.in[i], in_dims[i], a.extents, f, positions);
    }
    const std::vector<HostTensor> part = run_split(shard, splits.subspan(1));
    for (size_t o = 0; o < part.size(); ++o) {
      const OperandDims& dims = s.outputs()[o];
      if (index == 0) {
        whole.push_back({{part[o].type.dtype, shape_of(dims, a.sizes())}, part[o].numbers});
        whole[o].numbers.resize(static_cast<size_t>(numel(whole[o].type.shape)));
      }
      if (Signature::carries(dims, static_cast<int>(f))) {
        scatter(part[o], whole[o], dims, a.extents, f, positions);
      } else if (!s.in_inputs(static_cast<int>(f))) {
        const std::string d = difference(part[o], whole[o], 0);
        if (!d.empty()) throw std::runtime_error("shards differ in an output they all hold: " + d);
      } else if (index > 0) {
        combine(whole[o], part[o], s.factors()[f].reduction);
      }
    }
  }
  return whole;
}

std::string describe(const Signature& s, std::span<const FactorSplit> splits) {
  std::string text = s.text();
  for (const auto& [f, blocks, parts] : splits) {
    text += fmt::format(", {} split {} ways", s.factors()[f].letter, parts);
    if (blocks > 1) text += fmt::format(" in {} blocks", blocks);
  }
  return text;
}

}  // namespace

Mistakes check_splits(const Application& a) {
  Mistakes mistakes;
  const std::vector<HostTensor> whole = run_op(a);
  const auto& factors = a.signature->factors();
  const auto check = [&](const std::vector<FactorSplit>& splits) {
    compare(run_split(a, splits), whole, describe(*a.signature, splits), mistakes);
  };
  for (size_t f = 0; f < factors.size(); ++f) {
    if (factors[f].whole) continue;
    const int64_t size = a.extents[f].local;
    if (size % 2 == 0) check({{f, 1, 2}});
    if (size % 4 == 0) {
      check({{f, 1, 4}});
      check({{f, 2, 2}});
      check({{f, 1, 2}, {f, 1, 2}});  // two mesh axes split one factor
    }
    for (size_t g = 0; g < f; ++g) {
      if (factors[g].whole || size % 2 != 0 || a.extents[g].local % 2 != 0) continue;
      check({{f, 1, 2}, {g, 1, 2}});
    }
  }
  return mistakes;
}

// --- Memory, linearity, costs, precision ---------------------------------------------------------

Mistakes check_memory(const Application& a, std::vector<std::pair<size_t, size_t>> in_place) {
  Mistakes mistakes;
  const std::vector<HostTensor> plain = run_op(a, {.view = false});
  for (const MemoryLayout layout : {MemoryLayout::kRowMajor, MemoryLayout::kPadded,
                                    MemoryLayout::kSpaced, MemoryLayout::kTransposed}) {
    const std::string where = fmt::format("memory layout {}", static_cast<int>(layout));
    compare(run_op(a, {.layout = layout, .view = false}), plain, where, mistakes);
    compare(run_op(a, {.layout = layout}), plain, where + ", as a view", mistakes);
    if (in_place.empty()) continue;
    compare(run_op(a, {.layout = layout, .in_place = in_place}), plain, where + ", in place",
            mistakes);
  }
  if (a.op->written == nullptr) return mistakes;
  // In place, only `written` may be read or written: the rest of the target is NaN, and stays so.
  const std::vector<int64_t> sizes = a.sizes();
  const std::vector<TensorType> types = a.in_types();
  const Shape shape = types[0].shape;
  const auto part =
      a.op->written({*a.signature, sizes, a.attrs, types}, {0, shape, contiguous_strides(shape)});
  Application poisoned = a;
  for (double& x : poisoned.in[0].numbers) x = std::nan("");
  const auto got = run_op(poisoned, {.in_place = {{0, 0}}})[0].numbers;
  std::vector<bool> inside(got.size(), false);
  const Geometry& g = (*part)[0];
  for (int64_t i = 0; i < numel(g.shape); ++i) {
    int64_t rest = i, at = g.offset;
    for (size_t d = g.shape.size(); d-- > 0;) {
      at += rest % g.shape[d] * g.strides[d];
      rest /= g.shape[d];
    }
    inside[static_cast<size_t>(at)] = true;
  }
  for (size_t i = 0; i < got.size(); ++i) {
    const bool right = inside[i] ? got[i] == plain[0].numbers[i] : std::isnan(got[i]);
    if (!right) mistakes.push_back(fmt::format("element {} against `written`: {}", i, got[i]));
  }
  return mistakes;
}

Mistakes check_linear(const Application& a, const Application& b) {
  Mistakes mistakes;
  Application both = a;
  for (size_t i = 0; i < a.in.size(); ++i) {
    if (!is_float(a.in[i].type.dtype)) continue;
    for (size_t j = 0; j < a.in[i].numbers.size(); ++j) {
      both.in[i].numbers[j] += b.in[i].numbers[j];
    }
  }
  Application second = b;  // with the integers of the first
  for (size_t i = 0; i < a.in.size(); ++i) {
    if (!is_float(a.in[i].type.dtype)) second.in[i] = a.in[i];
  }
  std::vector<HostTensor> sum = run_op(a);
  const std::vector<HostTensor> other = run_op(second);
  for (size_t o = 0; o < sum.size(); ++o) combine(sum[o], other[o], Reduction::kSum);
  compare(run_op(both), sum, "not linear", mistakes, a.op->name == "cast" ? 1e-6 : 1e-9);
  return mistakes;
}

Mistakes check_costs(const Application& a) {
  Mistakes mistakes;
  const auto costs = [&](const std::vector<int64_t>& sizes) {
    std::vector<TensorType> in = a.in_types();
    for (size_t i = 0; i < in.size(); ++i) in[i].shape = shape_of(a.signature->inputs()[i], sizes);
    const OpCall call{*a.signature, sizes, a.attrs, in};
    const auto out = a.op->infer(call);
    const double scratch =
        a.op->workspace == nullptr ? 0 : static_cast<double>(a.op->workspace(call));
    return std::array<double, 3>{a.op->flops(call), a.op->bytes(call, out), scratch};
  };
  const auto [flops, bytes, workspace] = costs(a.sizes());
  const bool free_flops = a.op->flops == no_flops, free_bytes = a.op->bytes == no_bytes;
  if (!std::isfinite(flops) || (flops > 0) == free_flops) {
    mistakes.push_back(fmt::format("{} flops", flops));
  }
  if (!std::isfinite(bytes) || (bytes > 0) == free_bytes) {
    mistakes.push_back(fmt::format("{} bytes", bytes));
  }
  if (free_bytes && a.op->cpu != nullptr) mistakes.push_back("a kernel moves no bytes");
  if (workspace < 0) mistakes.push_back(fmt::format("a workspace of {} bytes", workspace));
  for (size_t f = 0; f < a.extents.size(); ++f) {
    if (a.signature->factors()[f].whole || a.extents[f].local % 2 != 0) continue;
    std::vector<int64_t> sizes = a.sizes();
    sizes[f] /= 2;
    const auto [shard_flops, shard_bytes, shard_workspace] = costs(sizes);
    if (shard_flops > flops || shard_bytes > bytes || shard_workspace > workspace) {
      mistakes.push_back(
          fmt::format("half of '{}' costs more than all", a.signature->factors()[f].letter));
    }
  }
  return mistakes;
}

Mistakes check_f32(const OpCase& c) {
  Mistakes mistakes;
  const std::vector<HostTensor> wide = run_op(application_of(c));
  std::vector<HostTensor> narrow = run_op(application_of(c, 1, true));
  for (size_t o = 0; o < wide.size(); ++o) {
    if (narrow[o].type != as_f32(wide[o].type)) {
      mistakes.push_back("in f32, an output is " + to_string(narrow[o].type));
    }
    narrow[o].type = wide[o].type;
  }
  compare(narrow, wide, "f32 against f64", mistakes, c.f32_tolerance);
  return mistakes;
}

// --- All of them ---------------------------------------------------------------------------------

Mistakes check_case(const OpCase& c) {
  Mistakes mistakes;
  const auto add = [&](const Mistakes& more) {
    mistakes.insert(mistakes.end(), more.begin(), more.end());
  };
  const auto guarded = [&](const char* what, auto&& check) {
    try {
      add(check());
    } catch (const std::exception& e) {
      mistakes.push_back(fmt::format("{}: {}", what, e.what()));
    }
  };
  Application a;
  guarded("drawing numbers", [&] {
    a = application_of(c);
    Mistakes wrong;
    for (size_t f = 0; f < a.extents.size(); ++f) {
      const Factor& factor = a.signature->factors()[f];
      const int64_t size = a.extents[f].local;
      if ((!factor.whole || c.op->split != nullptr) && size != 1 && size % 4 != 0) {
        wrong.push_back(
            fmt::format("factor {} of size {} cannot be split 4 ways", factor.letter, size));
      }
    }
    return wrong;
  });
  if (a.signature == nullptr) return mistakes;
  guarded("splits", [&] { return check_splits(a); });
  guarded("decompositions", [&] { return check_decompositions(a); });
  guarded("memory", [&] { return check_memory(a, c.in_place); });
  guarded("costs", [&] { return check_costs(a); });
  guarded("f32", [&] { return check_f32(c); });
  const bool floating = std::any_of(a.in.begin(), a.in.end(),
                                    [](const HostTensor& t) { return is_float(t.type.dtype); });
  if (c.op->linear && floating) {
    guarded("linear", [&] { return check_linear(a, application_of(c, 2)); });
  }
  if (c.op->grad != nullptr && c.gradient) {
    guarded("gradients", [&] { return check_gradients(a, c.grad_outputs); });
  }
  for (std::string& m : mistakes) {
    m = fmt::format("{} '{}': {}", c.op->name, a.signature->text(), m);
  }
  return mistakes;
}

}  // namespace cleave::testing
