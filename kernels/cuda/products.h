// Matrix products by cuBLASLt, or by kernels of our own (product_hopper.h). Each is computed by the
// algorithm that the library proposes, but in programs which try them all in their places
// (executor/cuda/product_trials.h): there by the one that was the fastest. That is kept on disk:
// later runs give the same bits.
#pragma once

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include <compare>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>

#include "graph/types.h"
#include "kernels/cuda/disk_cache.h"

namespace cleave {

class DeviceContext;

// One matrix of a product as cuBLASLt sees it: in columns, each `leading` elements after the last.
struct ProductMatrix {
  int64_t leading = 0;
  int64_t batch_stride = 0;  // elements
  auto operator<=>(const ProductMatrix&) const = default;
};

// What becomes of a sum before it is stored. `aux` lies as d does, but for SwiGLU's.
enum class Epilogue : uint8_t {
  kNone,
  kGelu,          // d = gelu(sum), aux = sum
  kGeluBackward,  // d = sum gelu'(aux)
  // Of two products [m, n] with the same b, of a and of other.a: aux = the first sum,
  // other.aux = the second, d = silu(first) second. cuBLASLt leaves that, and the next, to who
  // asks.
  kSwiglu,
  // The gradients of that: d = sum other.aux silu'(aux), other.d = sum silu(aux).
  kSwigluBackward,
};
constexpr bool is_gated(Epilogue e) {
  return e == Epilogue::kSwiglu || e == Epilogue::kSwigluBackward;
}
constexpr bool is_slope(Epilogue e) {
  return e == Epilogue::kGeluBackward || e == Epilogue::kSwigluBackward;
}

// d[m, n] = op(a)[m, k] op(b)[k, n] + beta c + bias, for each of `batch`. In columns; op transposes
// or not.
struct Product {
  int64_t m = 0, n = 0, k = 0, batch = 1;
  bool transpose_a = false, transpose_b = false;
  ProductMatrix a = {}, b = {}, c = {}, d = {};
  int64_t beside = 0;  // of SwiGLU: `leading` of aux and of other.aux
  DType in = DType::kF32, out = DType::kF32;
  DType in_b = DType::kI32;  // of b, when it is another float of 8 bits than that of a
  bool has_c = false;        // of the type of d
  bool has_bias = false;     // likewise
  bool tf32 = false;         // of f32
  int alignment = 16;        // bytes, of all pointers and of their columns; a power of two <= 16
  bool quick = false;        // of 8 bits: sums are kept in fewer bits inside the tensor cores
  Epilogue epilogue = Epilogue::kNone;
  // The sums of d's rows (m of them) are wanted, too: as our kernels make them, of what d is before
  // it is rounded.
  bool sums = false;
  DType b_type() const { return in_b == DType::kI32 ? in : in_b; }
  auto operator<=>(const Product&) const = default;
};

// Where a product's matrices lie on the device; null: it has none such.
struct ProductData {
  const void *a = nullptr, *b = nullptr, *c = nullptr, *bias = nullptr;
  void *d = nullptr, *aux = nullptr;
  // Of product.sums: of every kSummedColumns columns of d, [parts, m].
  float* sums = nullptr;
  // Of SwiGLU and its backward: the same of the second product and operand. For cuBLASLt the
  // product with SwiGLU is one: there other.a and other.aux are the rest of a and aux, m further.
  struct Other {
    const void* a = nullptr;
    void *d = nullptr, *aux = nullptr;
  } other = {};
};
inline constexpr int64_t kSummedColumns = 128;

// On the device, what the numbers of operands of 8 bits are to be multiplied by.
struct ProductScales {
  const void *a = nullptr, *b = nullptr;
};

class ProductAlgorithms {
 public:
  ProductAlgorithms();
  ~ProductAlgorithms();

  // Launches the product with the best algorithm that is known for it, and tells what that makes.
  enum class Made : uint8_t {
    kNothing,  // there is none with such an epilogue
    kProduct,  // of SwiGLU the sums alone, in aux and other.aux, and of its backward, in d
    kResult,
    kSumsToo,  // by a kernel of ours
  };
  Made run(const Product& product, const ProductData& data, void* workspace, DeviceContext& device,
           cudaStream_t stream, const ProductScales& scales = {});

  // Is called with every product that is launched.
  std::function<void(const Product&)> heard;

  // --- Trials ------------------------------------------------------------------------------------
  // Of products that were launched before.

  // How many algorithms there are, by number from 0, which is the first that is offered, and in use
  // until another is chosen.
  size_t count(const Product& product);
  void choose(const Product& product, size_t algorithm);
  // Whether a trial has ended, here or in another process: then what it chose is in use from now
  // on.
  bool tried(const Product& product, DeviceContext& device);
  // Ends a trial: the algorithm in use is kept, or what another process has kept meanwhile is used.
  void keep(const Product& product, DeviceContext& device);

 private:
  struct Algorithm;
  struct Prepared;
  // `stream`: which must not be captured when the product is a new one.
  Prepared& prepared(const Product& product, DeviceContext& device, cudaStream_t stream);
  Prepared& known(const Product& product);
  DiskCache cache_;
  std::map<Product, std::unique_ptr<Prepared>> prepared_;
};

}  // namespace cleave
