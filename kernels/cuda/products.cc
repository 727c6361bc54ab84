#include "kernels/cuda/products.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "graph/error.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/libraries.h"
#include "kernels/cuda/product_hopper.h"
#include "kernels/cuda/product_operands.h"

namespace cleave {
namespace {

cudaDataType type_of(DType dtype) {
  switch (dtype) {
    case DType::kF64: return CUDA_R_64F;
    case DType::kF32: return CUDA_R_32F;
    case DType::kBF16: return CUDA_R_16BF;
    case DType::kF16: return CUDA_R_16F;
    case DType::kF8E4M3: return CUDA_R_8F_E4M3;
    case DType::kF8E5M2: return CUDA_R_8F_E5M2;
    case DType::kI32:
    case DType::kI16: break;
  }
  fail("there are no matrix products of {}", name_of(dtype));
}

// What cuBLASLt computes of a product: SwiGLU is left to who asks.
Product of_library(Product p) {
  if (p.epilogue == Epilogue::kSwiglu) p.m *= 2, p.d.leading = p.beside;
  if (is_gated(p.epilogue)) p.epilogue = Epilogue::kNone, p.beside = 0;
  return p;
}

}  // namespace

// An algorithm of cuBLASLt, or a kernel of our own.
struct ProductAlgorithms::Algorithm {
  cublasLtMatmulAlgo_t library = {};
  int own = -1;  // its number; -1: none

  // As it is kept.
  std::string bytes() const {
    if (own >= 0) return fmt::format("own kernel {}", own);
    return {reinterpret_cast<const char*>(&library), sizeof library};
  }
};

struct ProductAlgorithms::Prepared {
  cublasLtMatmulDesc_t operation = nullptr;
  cublasLtMatrixLayout_t a = nullptr, b = nullptr, c = nullptr, d = nullptr;
  Algorithm algorithm;
  std::vector<Algorithm> offered;  // none: there is no such product
  bool tried = false;              // in a training step

  // For what of_library() makes of it.
  explicit Prepared(const Product& p);
  Prepared(const Prepared&) = delete;
  ~Prepared() {
    for (cublasLtMatrixLayout_t layout : {a, b, c, d}) {
      if (layout != nullptr) cublas_lt().MatrixLayoutDestroy(layout);
    }
    if (operation != nullptr) cublas_lt().MatmulDescDestroy(operation);
  }

  // Asks cuBLASLt what it offers, and adds our own kernels.
  void ask(const Product& p, const DeviceContext& device);
  void ask_library(const Product& p, const DeviceContext& device);

  // An algorithm as it was kept; false when it is none that there is now.
  bool take(const std::string& bytes, const DeviceContext& device) {
    for (const Algorithm& offer : offered) {
      if (offer.own < 0 || offer.bytes() != bytes) continue;
      algorithm = offer;
      return true;
    }
    cublasLtMatmulAlgo_t kept;
    if (bytes.size() != sizeof kept) return false;
    std::memcpy(&kept, bytes.data(), sizeof kept);
    cublasLtMatmulHeuristicResult_t result = {};
    const cublasStatus_t status =
        cublas_lt().MatmulAlgoCheck(device.blas(), operation, a, b, c, d, &kept, &result);
    if (status != CUBLAS_STATUS_SUCCESS ||
        result.workspaceSize > static_cast<size_t>(device.product_search.workspace)) {
      return false;
    }
    algorithm = {kept};
    return true;
  }

  void run(const Product& p, const ProductData& data, void* workspace, const DeviceContext& device,
           cudaStream_t stream, const ProductScales& scales) const {
    if (algorithm.own >= 0) {
      run_own_kernel(p, data, static_cast<size_t>(algorithm.own), device.multiprocessors(), stream);
      return;
    }
    const double one = 1, beta = p.has_c ? 1 : 0;
    const auto one_f = static_cast<float>(one), beta_f = static_cast<float>(beta);
    const bool f64 = p.in == DType::kF64;
    const auto set = [&](cublasLtMatmulDescAttributes_t which, const void* pointer) {
      cuda_check(cublas_lt().MatmulDescSetAttribute(operation, which, &pointer, sizeof pointer));
    };
    if (p.has_bias) set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, data.bias);
    if (p.epilogue != Epilogue::kNone && !is_gated(p.epilogue)) {
      set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, data.aux);
    }
    void* const result = p.epilogue == Epilogue::kSwiglu ? data.aux : data.d;
    if (is_f8(p.in)) {
      set(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, scales.a);
      set(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, scales.b);
    }
    cuda_check(cublas_lt().Matmul(
        device.blas(), operation, f64 ? static_cast<const void*>(&one) : &one_f, data.a, a, data.b,
        b, f64 ? static_cast<const void*>(&beta) : &beta_f, p.has_c ? data.c : result,
        p.has_c ? c : d, result, d, &algorithm.library, workspace,
        static_cast<size_t>(device.product_search.workspace), stream));
  }
};

ProductAlgorithms::ProductAlgorithms() : cache_("products") {}
ProductAlgorithms::~ProductAlgorithms() = default;

namespace {

cublasLtEpilogue_t epilogue_of(const Product& p) {
  if (p.epilogue == Epilogue::kGeluBackward) return CUBLASLT_EPILOGUE_DGELU;
  if (p.epilogue == Epilogue::kGelu) {
    return p.has_bias ? CUBLASLT_EPILOGUE_GELU_AUX_BIAS : CUBLASLT_EPILOGUE_GELU_AUX;
  }
  return p.has_bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT;
}

std::string behind(const Product& p) {
  switch (p.epilogue) {
    case Epilogue::kNone: return "";
    case Epilogue::kGelu: return ", then GELU";
    case Epilogue::kGeluBackward: return ", then GELU's gradient";
    case Epilogue::kSwiglu: return fmt::format(", then SwiGLU, beside {}", p.beside);
    case Epilogue::kSwigluBackward:
      return fmt::format(", then SwiGLU's gradient, beside {}", p.beside);
  }
  return "";
}

// All that the fastest algorithm depends on, beside the program around it. Chosen once on this
// machine: another choice may add in another order. "own 1": our kernels, whose order has this
// number.
std::string key_of(const Product& p, const DeviceContext& device) {
  const auto matrix = [](const ProductMatrix& m) {
    return fmt::format("{}+{}", m.leading, m.batch_stride);
  };
  const DeviceContext::ProductSearch& search = device.product_search;
  return fmt::format(
      "in a step, {}, cuBLASLt {}: {} x {} x {}, {} times, {} {} to {}, transposed {} {}, "
      "{} {} {} {}, adds {} {}, tf32 {}, aligned {}, quick {}{}; "
      "{} candidates, {} bytes, any order {}{}{}",
      device.properties().name, cublas_lt().GetVersion(), p.m, p.n, p.k, p.batch, name_of(p.in),
      name_of(p.b_type()), name_of(p.out), p.transpose_a, p.transpose_b, matrix(p.a), matrix(p.b),
      matrix(p.c), matrix(p.d), p.has_c, p.has_bias, p.tf32, p.alignment, p.quick, behind(p),
      search.candidates, search.workspace, search.any_order,
      search.own == DeviceContext::OwnProducts::kNone    ? ""
      : search.own == DeviceContext::OwnProducts::kFirst ? ", own 1 first"
                                                         : ", own 1",
      p.sums ? ", with sums" : "");
}

}  // namespace

ProductAlgorithms::Prepared::Prepared(const Product& p) {
  const cublasComputeType_t compute = p.in == DType::kF64 ? CUBLAS_COMPUTE_64F
                                      : p.tf32            ? CUBLAS_COMPUTE_32F_FAST_TF32
                                                          : CUBLAS_COMPUTE_32F;
  cuda_check(cublas_lt().MatmulDescCreate(&operation, compute,
                                          p.in == DType::kF64 ? CUDA_R_64F : CUDA_R_32F));
  const auto set_op = [&](cublasLtMatmulDescAttributes_t which, bool transpose) {
    const cublasOperation_t op = transpose ? CUBLAS_OP_T : CUBLAS_OP_N;
    cuda_check(cublas_lt().MatmulDescSetAttribute(operation, which, &op, sizeof op));
  };
  set_op(CUBLASLT_MATMUL_DESC_TRANSA, p.transpose_a);
  set_op(CUBLASLT_MATMUL_DESC_TRANSB, p.transpose_b);
  if (p.quick) {
    const int8_t on = 1;
    cuda_check(cublas_lt().MatmulDescSetAttribute(operation, CUBLASLT_MATMUL_DESC_FAST_ACCUM, &on,
                                                  sizeof on));
  }
  const auto layout = [&](cublasLtMatrixLayout_t& to, DType dtype, int64_t rows, int64_t columns,
                          const ProductMatrix& m) {
    cuda_check(cublas_lt().MatrixLayoutCreate(&to, type_of(dtype), static_cast<uint64_t>(rows),
                                              static_cast<uint64_t>(columns), m.leading));
    if (p.batch == 1) return;
    const auto batch = static_cast<int32_t>(p.batch);
    cuda_check(cublas_lt().MatrixLayoutSetAttribute(to, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &batch,
                                                    sizeof batch));
    cuda_check(cublas_lt().MatrixLayoutSetAttribute(to, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
                                                    &m.batch_stride, sizeof m.batch_stride));
  };
  const int64_t a_rows = p.transpose_a ? p.k : p.m, a_columns = p.transpose_a ? p.m : p.k;
  const int64_t b_rows = p.transpose_b ? p.n : p.k, b_columns = p.transpose_b ? p.k : p.n;
  layout(a, p.in, a_rows, a_columns, p.a);
  layout(b, p.b_type(), b_rows, b_columns, p.b);
  layout(c, p.out, p.m, p.n, p.has_c ? p.c : p.d);
  layout(d, p.out, p.m, p.n, p.d);
  const cublasLtEpilogue_t epilogue = epilogue_of(p);
  cuda_check(cublas_lt().MatmulDescSetAttribute(operation, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue,
                                                sizeof epilogue));
  if (p.epilogue != Epilogue::kNone) {
    cuda_check(cublas_lt().MatmulDescSetAttribute(operation, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD,
                                                  &p.d.leading, sizeof p.d.leading));
  }
}

void ProductAlgorithms::Prepared::ask(const Product& p, const DeviceContext& device) {
  ask_library(p, device);
  if (device.product_search.own == DeviceContext::OwnProducts::kNone) return;
  std::vector<Algorithm> own;
  for (size_t i = 0; i < own_kernels(p, device.properties().major); ++i) {
    own.push_back({{}, static_cast<int>(i)});
  }
  const bool first = device.product_search.own == DeviceContext::OwnProducts::kFirst;
  offered.insert(first ? offered.begin() : offered.end(), own.begin(), own.end());
}

void ProductAlgorithms::Prepared::ask_library(const Product& p, const DeviceContext& device) {
  cublasLtMatmulPreference_t preference = nullptr;
  cuda_check(cublas_lt().MatmulPreferenceCreate(&preference));
  const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t which, auto value) {
    cuda_check(cublas_lt().MatmulPreferenceSetAttribute(preference, which, &value, sizeof value));
  };
  const DeviceContext::ProductSearch& search = device.product_search;
  prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<uint64_t>(search.workspace));
  for (const auto which :
       {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES}) {
    prefer(which, static_cast<uint32_t>(p.alignment));
  }
  // Sums over k that several blocks share are added in a fixed order, in the output's type or
  // wider: never by atomics, whose order changes from run to run.
  prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
         static_cast<uint32_t>(search.any_order ? CUBLASLT_REDUCTION_SCHEME_MASK
                                                : CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
  std::vector<cublasLtMatmulHeuristicResult_t> candidates(static_cast<size_t>(search.candidates));
  int count = 0;
  const cublasStatus_t status =
      cublas_lt().MatmulAlgoGetHeuristic(device.blas(), operation, a, b, c, d, preference,
                                         search.candidates, candidates.data(), &count);
  cublas_lt().MatmulPreferenceDestroy(preference);
  if (status != CUBLAS_STATUS_NOT_SUPPORTED) cuda_check(status);
  for (int i = 0; i < count; ++i) {
    const auto& candidate = candidates[static_cast<size_t>(i)];
    if (candidate.state == CUBLAS_STATUS_SUCCESS) offered.push_back({candidate.algo});
  }
}

ProductAlgorithms::Prepared& ProductAlgorithms::prepared(const Product& p, DeviceContext& device,
                                                         cudaStream_t stream) {
  std::unique_ptr<Prepared>& found = prepared_[p];
  if (found != nullptr) return *found;
  expect_not_captured(stream, "the algorithm of the product " + key_of(p, device));
  auto made = std::make_unique<Prepared>(of_library(p));
  made->ask(p, device);
  const bool none = made->offered.empty();
  CLEAVE_ASSERT(!none || p.epilogue != Epilogue::kNone,
                "cuBLASLt has no product [{}, {}] x [{}, {}] of {}", p.m, p.k, p.k, p.n,
                name_of(p.in));

  if (!none) made->algorithm = made->offered.front();
  found = std::move(made);
  return *found;
}

ProductAlgorithms::Made ProductAlgorithms::run(const Product& p, const ProductData& data,
                                               void* workspace, DeviceContext& device,
                                               cudaStream_t stream, const ProductScales& scales) {
  const Prepared& known = prepared(p, device, stream);
  if (known.offered.empty()) return Made::kNothing;
  if (heard) heard(p);
  known.run(p, data, workspace, device, stream, scales);
  if (known.algorithm.own < 0) return is_gated(p.epilogue) ? Made::kProduct : Made::kResult;
  return p.sums ? Made::kSumsToo : Made::kResult;
}

// --- Trials --------------------------------------------------------------------------------------

ProductAlgorithms::Prepared& ProductAlgorithms::known(const Product& p) {
  const auto found = prepared_.find(p);
  CLEAVE_ASSERT(found != prepared_.end() && !found->second->offered.empty(),
                "a product that never ran");
  return *found->second;
}

size_t ProductAlgorithms::count(const Product& p) { return known(p).offered.size(); }

void ProductAlgorithms::choose(const Product& p, size_t algorithm) {
  Prepared& of = known(p);
  of.algorithm = of.offered.at(algorithm);
}

bool ProductAlgorithms::tried(const Product& p, DeviceContext& device) {
  Prepared& of = known(p);
  if (!of.tried) of.tried = of.take(cache_.find(key_of(p, device)), device);
  return of.tried;
}

void ProductAlgorithms::keep(const Product& p, DeviceContext& device) {
  Prepared& of = known(p);
  of.take(cache_.keep(key_of(p, device), of.algorithm.bytes()), device);
  of.tried = true;
}

}  // namespace cleave
