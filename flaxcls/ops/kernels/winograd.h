// Convolutions of 3x3 and 5x5 pixels in fewer multiplications: Lavin and Gray (2015),
// arXiv:1509.09308.

#pragma once

#include <cstdint>

namespace flaxcls {

// x [batch, height, width, in] becomes y [batch, rows, columns, out].
struct Winograd {
  int64_t batch, height, width, in, rows, columns, out, window, padding;

  int64_t tile_rows() const { return (rows + 1) / 2; }
  int64_t tile_columns() const { return (columns + 1) / 2; }
  int64_t tiles_per_image() const { return tile_rows() * tile_columns(); }
  int64_t tiles() const { return batch * tiles_per_image(); }

  // A window of 5x5 is four of 3x3, of which those at the end are cut: their number in one
  // dimension, and the numbers of a tile that one output takes.
  int64_t parts() const { return (window + 2) / 3; }
  int64_t depth() const { return parts() * parts() * in; }
};

// What follows a convolution: y = relu(y * scale + bias + addend), of which each may be missing.
struct Affine {
  const float *scale, *bias, *addend;
  bool relu;
};

// Whether it pays, and the processor has the instructions.
bool winograd_pays(const Winograd& shape);
bool winograd_gradient_pays(const Winograd& shape);

// The kernel is [window, window, in, out]; where it is `flipped`, [window, window, out, in], to be
// turned by 180 degrees: so the input's gradient is a convolution of y's.
void winograd_convolve(const Winograd& shape, const float* x, const float* kernel, bool flipped,
                       const Affine& after, float* y);

// The gradient [3, 3, in, out] of a kernel of 3x3.
void winograd_kernel_gradient(const Winograd& shape, const float* x, const float* dy, float* dk);

}  // namespace flaxcls
