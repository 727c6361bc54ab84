#include "tests/support/gpu_checks.h"

#ifdef CLEAVE_CUDA

#include <cuda_runtime_api.h>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "kernels/cuda/check.h"
#include "kernels/cuda/context.h"
#include "kernels/ops.h"
#include "tests/support/op_checks.h"
#include "tests/support/op_compare.h"

namespace cleave::testing {
namespace {

bool own_products_first = false;

DeviceContext& device() {
  static DeviceContext context(0);
  if (!own_products_first) return context;
  static DeviceContext own(0);
  own.product_search.own = DeviceContext::OwnProducts::kFirst;
  return own;
}

// What is in the blocks goes to the device, the kernel runs there, and all comes back. A byte
// behind each block that changes is a write out of bounds; compute-sanitizer sees the others.
void run_on_gpu(const OpDef& op, const OpCall& call, const KernelArgs& args,
                std::span<const HostBlock> blocks) {
  std::vector<char*> memory;
  for (const HostBlock& b : blocks) {
    void* data = nullptr;
    cuda_check(cudaMalloc(&data, b.bytes));
    cuda_check(cudaMemcpy(data, b.data, b.bytes, cudaMemcpyHostToDevice));
    memory.push_back(static_cast<char*>(data));
  }
  const auto moved = [&](TensorView view) {
    for (size_t i = 0; i < blocks.size(); ++i) {
      char* const at = static_cast<char*>(view.data);
      if (at < blocks[i].data || at >= blocks[i].data + blocks[i].bytes) continue;
      view.data = memory[i] + (at - blocks[i].data);
      return view;
    }
    ADD_FAILURE() << "an operand of " << op.name << " lies in no block";
    return view;
  };
  std::vector<TensorView> in, out;
  for (const TensorView& v : args.in) in.push_back(moved(v));
  for (const TensorView& v : args.out) out.push_back(moved(v));
  void* workspace = nullptr;
  std::vector<TensorView> placed = in;
  placed.insert(placed.end(), out.begin(), out.end());
  const OpCall with_places{call.signature, call.extents, call.attrs, call.in, placed};
  const int64_t bytes = op.cuda_workspace == nullptr ? 0 : op.cuda_workspace(with_places);
  if (bytes > 0) {
    cuda_check(cudaMalloc(&workspace, static_cast<size_t>(bytes)));
    cuda_check(cudaMemset(workspace, 0xff, static_cast<size_t>(bytes)));  // NaN
  }
  op.cuda({.signature = args.signature,
           .attrs = args.attrs,
           .in = in,
           .out = out,
           .extents = args.extents,
           .workspace = workspace,
           .seed = args.seed,
           .device = &device(),
           .stream = nullptr,
           .element = op.element});
  cuda_check(cudaDeviceSynchronize());
  for (size_t i = 0; i < blocks.size(); ++i) {
    cuda_check(cudaMemcpy(blocks[i].data, memory[i], blocks[i].bytes, cudaMemcpyDeviceToHost));
    cuda_check(cudaFree(memory[i]));
  }
  cuda_check(cudaFree(workspace));
}

// The application with its floats in another type, and their numbers rounded to it.
Application in_type(Application a, DType dtype) {
  for (HostTensor& t : a.in) {
    if (!is_float(t.type.dtype)) continue;
    const DType own = t.type.dtype == DType::kF64 ? dtype : t.type.dtype;
    t.type.dtype = own;
    for (double& x : t.numbers) x = rounded(x, own);
  }
  if (a.attrs.has("dtype") && a.attrs.text("dtype") == "f64") {
    a.attrs.set("dtype", std::string(name_of(dtype)));
  }
  // Statistics of rows of 16 bits are in f32.
  if (is_half(dtype)) {
    std::vector<TensorType> types = a.in_types();
    // The last operands are those that can be statistics.
    for (size_t i = types.size(); i-- > 0;) {
      if (!is_float(types[i].dtype)) continue;
      try {
        a.op->infer({*a.signature, a.sizes(), a.attrs, types});
        break;
      } catch (const std::exception&) {
        types[i].dtype = DType::kF32;
      }
    }
    for (size_t i = 0; i < a.in.size(); ++i) a.in[i].type.dtype = types[i].dtype;
  }
  return a;
}

// What |got - want| <= tolerance (1 + |want|) must hold with: some roundings of one number, and of
// those that are summed.
double tolerance_of(DType dtype, const OpCase& c) {
  switch (dtype) {
    case DType::kF64: return 1e-9;
    case DType::kF32: return std::max(2e-5, c.f32_tolerance);
    // A sum of results, as gradients of biases are, is one of rounded numbers.
    case DType::kBF16: return c.attrs.integer_or("sum", 0) != 0 ? 6e-2 : 3e-2;
    case DType::kF16:
      return c.op == &ops::attention_backward && c.attrs.integer_or("sum", 0) != 0 ? 1e-2 : 4e-3;
    case DType::kI32:
    case DType::kF8E4M3:
    case DType::kF8E5M2:
    case DType::kI16: break;
  }
  return 0;
}

void as_f64(std::vector<HostTensor>& tensors) {
  for (HostTensor& t : tensors) {
    if (is_float(t.type.dtype)) t.type.dtype = DType::kF64;
  }
}

}  // namespace

OwnProductsFirst::OwnProductsFirst() { own_products_first = true; }
OwnProductsFirst::~OwnProductsFirst() { own_products_first = false; }

bool has_gpu() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
}

std::vector<HostTensor> run_op_on_gpu(const Application& a, RunOptions options) {
  options.kernel = run_on_gpu;
  return run_op(a, options);
}

void check_on_gpu(const OpCase& c) { check_on_gpu(application_of(c, 5), c); }

void check_on_gpu(const Application& drawn, const OpCase& c, bool mixed) {
  const OpDef& op = *drawn.op;
  for (const DType dtype : {DType::kF64, DType::kF32, DType::kBF16, DType::kF16}) {
    if (mixed && !is_half(dtype)) continue;
    const Application a = in_type(drawn, dtype);
    Application reference = a;
    as_f64(reference.in);
    if (a.attrs.has("dtype") && a.attrs.text("dtype") != "i32") {
      reference.attrs.set("dtype", std::string("f64"));
    }
    const std::vector<HostTensor> want = run_op(reference, {.view = false});
    std::vector<std::vector<std::pair<size_t, size_t>>> places = {{}};
    if (!c.in_place.empty()) places.push_back(c.in_place);
    for (const MemoryLayout layout : {MemoryLayout::kRowMajor, MemoryLayout::kPadded,
                                      MemoryLayout::kSpaced, MemoryLayout::kTransposed}) {
      for (const auto& in_place : places) {
        const std::string what = fmt::format(
            "{} \"{}\" in {}, layout {}{}", op.name, a.signature->text(), name_of(dtype),
            static_cast<int>(layout), in_place.empty() ? "" : ", in place");
        try {
          const RunOptions options = {.layout = layout, .in_place = in_place, .kernel = run_on_gpu};
          std::vector<HostTensor> got = run_op(a, options), again = run_op(a, options);
          as_f64(got);
          as_f64(again);
          for (size_t o = 0; o < got.size(); ++o) {
            EXPECT_EQ(difference(got[o], want[o], tolerance_of(dtype, c)), "")
                << what << ", output " << o;
            EXPECT_EQ(difference(again[o], got[o], 0), "") << what << ", output " << o << ", again";
          }
        } catch (const std::exception& e) {
          ADD_FAILURE() << what << ": " << e.what();
        }
      }
    }
  }
}

Application shard_of(const OpCase& c) {
  Application a = application_of(c, 4);
  for (size_t f = 0; f < a.extents.size(); ++f) {
    Extent& extent = a.extents[f];
    if (!a.signature->factors()[f].indexed || a.signature->factors()[f].whole) continue;
    if (extent.local % 2 != 0) continue;
    extent.global = 4 * extent.local;
    extent.cuts = {{1, 2, 1}, {2, 2, 0}};
  }
  return a;
}

}  // namespace cleave::testing

#endif
