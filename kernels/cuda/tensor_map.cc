#include "kernels/cuda/tensor_map.h"

#include <cudaTypedefs.h>
#include <cuda_runtime_api.h>

#include "graph/error.h"
#include "kernels/cuda/check.h"

namespace cleave {

CUtensorMap tensor_map(DType dtype, void* data, const std::array<int64_t, 4>& sizes,
                       const std::array<int64_t, 3>& steps, int rows, int chunk) {
  static const auto encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
    cuda_check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                                cudaEnableDefault, &found));
    CLEAVE_ASSERT(found == cudaDriverEntryPointSuccess, "the driver has no tensor maps");
    return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
  }();
  std::array<cuuint64_t, 4> lengths = {};
  std::array<cuuint64_t, 3> bytes = {};
  for (size_t i = 0; i < sizes.size(); ++i) lengths[i] = static_cast<cuuint64_t>(sizes[i]);
  for (size_t i = 0; i < steps.size(); ++i) bytes[i] = 2 * static_cast<cuuint64_t>(steps[i]);
  const std::array<cuuint32_t, 4> box = {static_cast<cuuint32_t>(chunk),
                                         static_cast<cuuint32_t>(rows), 1, 1};
  const std::array<cuuint32_t, 4> every = {1, 1, 1, 1};
  CUtensorMap map;
  const CUresult result = encode(
      &map,
      dtype == DType::kBF16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 4,
      data, lengths.data(), bytes.data(), box.data(), every.data(), CU_TENSOR_MAP_INTERLEAVE_NONE,
      chunk == 64 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B,
      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  CLEAVE_ASSERT(result == CUDA_SUCCESS, "a tensor map of [{}, {}, {}, {}] was refused: {}",
                sizes[3], sizes[2], sizes[1], sizes[0], static_cast<int>(result));
  return map;
}

}  // namespace cleave
