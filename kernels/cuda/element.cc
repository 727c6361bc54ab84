// Loops over elements as generated kernels. Sizes and steps are constants of the text.
#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "graph/error.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/generated.h"

namespace cleave {
namespace {

int64_t elements(const std::vector<int64_t>& sizes) {
  return std::accumulate(sizes.begin(), sizes.end(), int64_t{1}, std::multiplies<>());
}

// Largest number of elements, a power of two, that every operand can load or store at once: 16
// bytes of the widest at most.
int vector_length(const ElementLoops& loops) {
  if (loops.sizes.empty()) return 1;
  int64_t length = 16;
  const auto narrow = [&](const LoopOperand& o) {
    length = std::min(length, 16 / size_of(o.dtype));
    const int64_t inner = o.steps.back();
    if (inner == 0) return;
    if (inner != 1) length = 1;
    const auto bytes = [&](int64_t n) { return n * size_of(o.dtype); };
    while (length > 1) {
      bool aligned = reinterpret_cast<uintptr_t>(o.data) % static_cast<size_t>(bytes(length)) == 0;
      for (size_t d = 0; d + 1 < o.steps.size(); ++d) aligned &= o.steps[d] % length == 0;
      if (aligned) break;
      length /= 2;
    }
  };
  for (const LoopOperand& o : loops.in) narrow(o);
  for (const LoopOperand& o : loops.out) narrow(o);
  while (loops.sizes.back() % length != 0) length /= 2;
  return static_cast<int>(length);
}

std::string offset_text(const LoopOperand& o) {
  std::string text;
  for (size_t d = 0; d < o.steps.size(); ++d) {
    if (o.steps[d] == 0) continue;
    text += fmt::format("{}i{} * {}LL", text.empty() ? "" : " + ", d, o.steps[d]);
  }
  return text.empty() ? "0" : text;
}

bool varies(const LoopOperand& o) { return !o.steps.empty() && o.steps.back() != 0; }

}  // namespace

std::string_view type_name(DType dtype) {
  switch (dtype) {
    case DType::kF64: return "double";
    case DType::kF32: return "float";
    case DType::kBF16: return "bf16";
    case DType::kF16: return "f16";
    case DType::kI32: return "int";
    case DType::kF8E4M3: return "f8e4m3";
    case DType::kF8E5M2: return "f8e5m2";
    case DType::kI16: return "short";
  }
  return "?";
}

std::vector<std::string> expressions(std::string_view element) {
  std::vector<std::string> result(1);
  for (const char c : element) {
    if (c == ';') {
      result.emplace_back();
    } else {
      result.back() += c;
    }
  }
  return result;
}

std::string operand_name(size_t i) {
  return i < 26 ? std::string(1, static_cast<char>('a' + i)) : fmt::format("v{}", i);
}

void ElementLoops::merge() {
  std::vector<LoopOperand*> all;
  for (LoopOperand& o : in) all.push_back(&o);
  for (LoopOperand& o : out) all.push_back(&o);
  std::vector<int64_t> merged;
  std::vector<std::vector<int64_t>> steps(all.size());
  for (size_t d = 0; d < sizes.size(); ++d) {
    if (sizes[d] == 1) continue;
    bool joins = !merged.empty();
    for (size_t i = 0; i < all.size() && joins; ++i) {
      joins = steps[i].back() == all[i]->steps[d] * sizes[d];
    }
    if (joins) {
      merged.back() *= sizes[d];
    } else {
      merged.push_back(sizes[d]);
    }
    for (size_t i = 0; i < all.size(); ++i) {
      if (joins) {
        steps[i].back() = all[i]->steps[d];
      } else {
        steps[i].push_back(all[i]->steps[d]);
      }
    }
  }
  sizes = std::move(merged);
  for (size_t i = 0; i < all.size(); ++i) all[i]->steps = std::move(steps[i]);
}

ElementKernel element_kernel(const ElementLoops& loops) {
  const int length = vector_length(loops);
  const int64_t count = elements(loops.sizes), threads = count / length;
  const bool large = count > INT32_MAX / 2;
  const std::vector<std::string> values = expressions(loops.element);
  CLEAVE_ASSERT(values.size() == loops.out.size(), "'{}' has {} results, not {}", loops.element,
                values.size(), loops.out.size());
  ElementKernel kernel;
  kernel.threads = (threads + kElementBlock - 1) / kElementBlock * kElementBlock;
  std::string& t = kernel.text;
  t = "#include \"prelude.cuh\"\nusing namespace cleave;\n";
  t += fmt::format("extern \"C\" __global__ void __launch_bounds__({}) cleave_kernel(",
                   kElementBlock);
  for (size_t i = 0; i < loops.in.size(); ++i) {
    t += fmt::format("const {}* p{}, ", type_name(loops.in[i].dtype), i);
  }
  for (size_t o = 0; o < loops.out.size(); ++o) {
    t += fmt::format("{}{}* q{}", o == 0 ? "" : ", ", type_name(loops.out[o].dtype), o);
  }
  const char* index = large ? "long long" : "int";
  t += fmt::format(
      ") {{\n  const {0} thread = static_cast<{0}>(blockIdx.x) * {1} + threadIdx.x;\n"
      "  if (thread >= {2}) return;\n",
      index, kElementBlock, threads);
  // From the innermost loop, of which a thread has `length` elements, to the outermost.
  std::string rest = "thread";
  for (size_t d = loops.sizes.size(); d-- > 0;) {
    const int64_t size = d + 1 == loops.sizes.size() ? loops.sizes[d] / length : loops.sizes[d];
    const std::string scale =
        d + 1 == loops.sizes.size() && length > 1 ? fmt::format(" * {}", length) : "";
    if (d == 0) {
      t += fmt::format("  const long long i0 = static_cast<long long>({}){};\n", rest, scale);
    } else {
      t += fmt::format("  const long long i{} = static_cast<long long>({} % {}){};\n", d, rest,
                       size, scale);
      t += fmt::format("  const {} r{} = {} / {};\n", index, d, rest, size);
      rest = fmt::format("r{}", d);
    }
  }
  for (size_t i = 0; i < loops.in.size(); ++i) {
    const std::string at = offset_text(loops.in[i]);
    if (varies(loops.in[i])) {
      t += fmt::format("  const auto x{0} = load<{1}>(p{0} + ({2}));\n", i, length, at);
    } else {
      t += fmt::format("  const auto x{0} = number(p{0}[{1}]);\n", i, at);
    }
  }
  for (size_t o = 0; o < loops.out.size(); ++o) {
    t += fmt::format("  Vec<{}, {}> y{};\n", type_name(loops.out[o].dtype), length, o);
  }
  t += fmt::format("#pragma unroll\n  for (int lane = 0; lane < {}; ++lane) {{\n", length);
  for (size_t i = 0; i < loops.in.size(); ++i) {
    const std::string name = operand_name(i);
    if (varies(loops.in[i])) {
      t += fmt::format("    const auto {} = number(x{}.x[lane]);\n", name, i);
    } else {
      t += fmt::format("    const auto {} = x{};\n", name, i);
    }
  }
  for (size_t o = 0; o < loops.out.size(); ++o) {
    t += fmt::format("    y{0}.x[lane] = To<{1}>::of({2});\n", o, type_name(loops.out[o].dtype),
                     values[o]);
  }
  t += "  }\n";
  for (size_t o = 0; o < loops.out.size(); ++o) {
    t += fmt::format("  store<{1}>(q{0} + ({2}), y{0});\n", o, length, offset_text(loops.out[o]));
  }
  t += "}\n";
  return kernel;
}

void launch(const ElementLoops& loops, DeviceContext& device, cudaStream_t stream) {
  if (elements(loops.sizes) == 0) return;
  const ElementKernel made = element_kernel(loops);
  std::vector<void*> pointers, arguments;
  for (const LoopOperand& o : loops.in) pointers.push_back(o.data);
  for (const LoopOperand& o : loops.out) pointers.push_back(o.data);
  for (void*& p : pointers) arguments.push_back(&p);
  cuda_check(cudaLaunchKernel(device.generated().kernel(made.text, stream),
                              dim3(static_cast<unsigned>(made.threads / kElementBlock)),
                              dim3(kElementBlock), arguments.data(), 0, stream));
}

std::string filled_in(std::string_view element, const Attrs& attrs, bool is_double) {
  std::string text;
  for (size_t i = 0; i < element.size(); ++i) {
    if (element[i] != '$') {
      text += element[i];
      continue;
    }
    size_t end = i + 1;
    while (end < element.size() &&
           (std::isalnum(static_cast<unsigned char>(element[end])) != 0 || element[end] == '_'))
      ++end;
    const std::string_view name = element.substr(i + 1, end - i - 1);
    const AttrValue* value = attrs.find(name);
    CLEAVE_ASSERT(value != nullptr, "'{}' names an attribute that is not there", element);
    if (const auto* n = std::get_if<int64_t>(value)) {
      text += fmt::format("{}", *n);
    } else {
      const double number = std::get<double>(*value);
      text += is_double ? fmt::format("({:.17e})", number) : fmt::format("({:.9e}f)", number);
    }
    i = end - 1;
  }
  return text;
}

void copy_on_device(const TensorView& to, const TensorView& from, const KernelArgs& args) {
  ElementLoops loops;
  loops.sizes = to.shape;
  loops.in = {{from.dtype, from.data, from.strides}};
  loops.out = {{to.dtype, to.data, to.strides}};
  loops.element = "a";
  loops.merge();
  launch(loops, *args.device, static_cast<cudaStream_t>(args.stream));
}

}  // namespace cleave
