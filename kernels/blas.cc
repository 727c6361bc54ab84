// The one place that calls BLAS.
#include "kernels/blas.h"

#include <cblas.h>

#include <algorithm>
#include <mutex>

#include "graph/error.h"

// OpenBLAS only; absent from other libraries.
extern "C" void openblas_set_num_threads(int) __attribute__((weak));

namespace cleave {
namespace {

void one_thread() {
  static std::once_flag once;
  std::call_once(once, [] {
    if (openblas_set_num_threads != nullptr) openblas_set_num_threads(1);
  });
}

// How BLAS is told of a matrix: transposed or not, and its leading dimension.
struct BlasLayout {
  CBLAS_TRANSPOSE transpose;
  int leading;
};

// A row-major matrix with contiguous rows, or the transpose of one. The stride along a dimension of
// size 1 does not matter.
template <class T>
BlasLayout layout_of(int64_t rows, int64_t columns, const Matrix<T>& m) {
  const auto leading = [](int64_t stride, int64_t outer, int64_t inner) {
    return static_cast<int>(outer == 1 ? std::max<int64_t>(inner, 1) : stride);
  };
  if ((columns == 1 || m.column == 1) && (rows == 1 || m.row >= columns)) {
    return {CblasNoTrans, leading(m.row, rows, columns)};
  }
  CLEAVE_ASSERT(blas_takes(rows, columns, m.row, m.column), "strides {}, {}", m.row, m.column);
  return {CblasTrans, leading(m.column, columns, rows)};
}

template <class T, class Call>
void gemm_with(Call call, int64_t m, int64_t n, int64_t k, T alpha, Matrix<const T> a,
               Matrix<const T> b, T beta, Matrix<T> c) {
  one_thread();
  const BlasLayout to = layout_of(m, n, c);
  if (to.transpose == CblasTrans) {  // the transposed product is row-major
    return gemm_with(call, n, m, k, alpha, {b.data, b.column, b.row}, {a.data, a.column, a.row},
                     beta, {c.data, c.column, c.row});
  }
  const BlasLayout left = layout_of(m, k, a), right = layout_of(k, n, b);
  call(CblasRowMajor, left.transpose, right.transpose, static_cast<int>(m), static_cast<int>(n),
       static_cast<int>(k), alpha, a.data, left.leading, b.data, right.leading, beta, c.data,
       to.leading);
}

}  // namespace

bool blas_takes(int64_t rows, int64_t columns, int64_t row, int64_t column) {
  return ((columns == 1 || column == 1) && (rows == 1 || row >= columns)) ||
         ((rows == 1 || row == 1) && (columns == 1 || column >= rows));
}

void gemm(int64_t m, int64_t n, int64_t k, float alpha, Matrix<const float> a,
          Matrix<const float> b, float beta, Matrix<float> c) {
  gemm_with(cblas_sgemm, m, n, k, alpha, a, b, beta, c);
}

void gemm(int64_t m, int64_t n, int64_t k, double alpha, Matrix<const double> a,
          Matrix<const double> b, double beta, Matrix<double> c) {
  gemm_with(cblas_dgemm, m, n, k, alpha, a, b, beta, c);
}

}  // namespace cleave
