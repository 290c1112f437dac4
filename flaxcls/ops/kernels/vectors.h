// Vectors of as many floats as an instruction set has lanes, and products that stay in registers.
//
// What is inlined here is compiled for the instructions of the function that calls it, which has
// AVX512 or AVX2 before its type.

#pragma once

#include "common.h"
#include "onednn.h"

#define INLINE inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 32")
#define AVX512 __attribute__((target("arch=x86-64-v4,prefer-vector-width=512")))
#define AVX2 __attribute__((target("arch=x86-64-v3")))

namespace flaxcls {

// Whether oneDNN takes these instructions, from which ONEDNN_MAX_CPU_ISA may hold it back.
inline bool has(dnnl::cpu_isa isa) {
  const int wanted = static_cast<int>(isa);
  return (static_cast<int>(dnnl::get_effective_cpu_isa()) & wanted) == wanted;
}

inline bool has_avx512() {
  static const bool found = has(dnnl::cpu_isa::avx512_core);
  return found;
}

inline bool has_avx2() {
  static const bool found = has(dnnl::cpu_isa::avx2);
  return found;
}

template <int kLanes>
struct Lanes;
template <>
struct Lanes<16> {
  typedef float type __attribute__((vector_size(64), aligned(4), may_alias));
};
template <>
struct Lanes<8> {
  typedef float type __attribute__((vector_size(32), aligned(4), may_alias));
};

// A matrix whose element (i, j) lies at data[i * row + j * column].
struct Matrix {
  const float* data;
  int64_t row, column;
};

// Computes c [kRows, kWide * kLanes] = a b, or c + a b, in sums that stay in registers.
template <int kLanes, int kRows, int kWide>
INLINE void block_product(const Matrix& a, const float* b, int64_t b_row, int64_t inner, float* c,
                          int64_t c_row, bool add) {
  using V = typename Lanes<kLanes>::type;
  V sum[kRows][kWide];
  UNROLL for (int r = 0; r < kRows; ++r) {
    UNROLL for (int w = 0; w < kWide; ++w) {
      sum[r][w] = add ? *reinterpret_cast<const V*>(c + r * c_row + w * kLanes) : V{};
    }
  }
  for (int64_t k = 0; k < inner; ++k) {
    V right[kWide];
    UNROLL for (int w = 0; w < kWide; ++w) {
      right[w] = *reinterpret_cast<const V*>(b + k * b_row + w * kLanes);
    }
    UNROLL for (int r = 0; r < kRows; ++r) {
      const float left = a.data[r * a.row + k * a.column];
      UNROLL for (int w = 0; w < kWide; ++w) sum[r][w] += left * right[w];
    }
  }
  UNROLL for (int r = 0; r < kRows; ++r) {
    UNROLL for (int w = 0; w < kWide; ++w) {
      *reinterpret_cast<V*>(c + r * c_row + w * kLanes) = sum[r][w];
    }
  }
}

}  // namespace flaxcls
