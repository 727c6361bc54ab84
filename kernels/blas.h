// Matrix products through BLAS, on one thread: the devices of a CPU run are threads already.
#pragma once

#include <cstdint>

namespace cleave {

// A matrix whose element (i, j) is at data[i * row + j * column].
template <class T>
struct Matrix {
  T* data = nullptr;
  int64_t row = 0;
  int64_t column = 0;
};

// Whether BLAS takes a rows x columns matrix with these strides as it is.
bool blas_takes(int64_t rows, int64_t columns, int64_t row, int64_t column);

// c = alpha * a . b + beta * c, for a [m, k], b [k, n], c [m, n] that blas_takes. With beta 0, c is
// not read.
void gemm(int64_t m, int64_t n, int64_t k, float alpha, Matrix<const float> a,
          Matrix<const float> b, float beta, Matrix<float> c);
void gemm(int64_t m, int64_t n, int64_t k, double alpha, Matrix<const double> a,
          Matrix<const double> b, double beta, Matrix<double> c);

}  // namespace cleave
