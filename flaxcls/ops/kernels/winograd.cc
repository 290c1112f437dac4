// Winograd's F(2x2, 3x3): a tile of 2x2 outputs takes 16 products in place of 36.
//
// Of a tile d of 4x4 inputs and a kernel g, the outputs are A'[(G g G') * (B' d B)]A, where * goes
// element by element. Over channels each of the 16 elements is a product of matrices, of tiles x in
// and in x out. All coefficients are 0, 1 or a half, so rounding stays that of a convolution.
// A window of 5x5 is four of 3x3, at rows and columns 0 and 3, whose products are added.

#include "winograd.h"

#include <vector>

#include "common.h"
#include "vectors.h"

namespace flaxcls {
namespace {

constexpr int kPlaces = 16;    // In a tile of 4x4.
constexpr int kChannels = 16;  // Which all numbers of channels are a multiple of.

// The same of any number of rows and columns that are multiples of a block's.
template <int kLanes, int kRows, int kWide>
INLINE void multiply(const Matrix& a, const float* b, int64_t rows, int64_t inner, int64_t columns,
                     float* c, bool add) {
  for (int64_t column = 0; column < columns; column += kWide * kLanes) {
    for (int64_t row = 0; row < rows; row += kRows) {
      block_product<kLanes, kRows, kWide>({a.data + row * a.row, a.row, a.column}, b + column,
                                          columns, inner, c + row * columns + column, columns, add);
    }
  }
}

// The transformations, each of one row or column ------------------------------------------------

template <class V>
INLINE void to_input_places(V& a, V& b, V& c, V& d) {  // B'
  const V first = a - c, second = b + c, third = c - b, last = b - d;
  a = first, b = second, c = third, d = last;
}

template <class V>
INLINE void to_outputs(const V& a, const V& b, const V& c, const V& d, V& first, V& second) {  // A'
  first = a + b + c;
  second = b - c - d;
}

template <class V>
INLINE void to_output_places(const V& a, const V& b, V* to, int step) {  // A
  to[0] = a, to[step] = a + b, to[2 * step] = a - b, to[3 * step] = -b;
}

template <class V>
INLINE void to_kernel_places(const V& a, const V& b, const V& c, V* to, int step) {  // G
  const V ends = a + c;
  to[0] = a, to[step] = (ends + b) * 0.5f, to[2 * step] = (ends - b) * 0.5f, to[3 * step] = c;
}

template <class V>
INLINE void to_kernel(const V* from, int step, V& a, V& b, V& c) {  // G'
  const V sum = (from[step] + from[2 * step]) * 0.5f;
  a = from[0] + sum, b = (from[step] - from[2 * step]) * 0.5f, c = sum + from[3 * step];
}

// Tiles that are transformed together.
struct Block {
  int64_t first, count, stride;
};

// Which tile of which image.
class Tile {
 public:
  int64_t image, row, column;

  Tile(const Winograd& shape, int64_t index)
      : image(index / shape.tiles_per_image()),
        row(index % shape.tiles_per_image() / shape.tile_columns()),
        column(index % shape.tile_columns()),
        rows_(shape.tile_rows()),
        columns_(shape.tile_columns()) {}

  void next() {
    if (++column < columns_) return;
    column = 0;
    if (++row < rows_) return;
    row = 0;
    ++image;
  }

 private:
  int64_t rows_, columns_;
};

// Where the pixels of a square of `side` begin, whose first is (row, column); zeros outside.
template <int kSide>
INLINE void find_pixels(const float* image, int64_t rows, int64_t columns, int64_t channels,
                        int64_t row, int64_t column, const float* zeros, const float** pixels) {
  const float* first = image + (row * columns + column) * channels;
  const bool inside = 0 <= row && row + kSide <= rows && 0 <= column && column + kSide <= columns;
  UNROLL for (int i = 0; i < kSide; ++i) {
    UNROLL for (int j = 0; j < kSide; ++j) {
      const bool there = inside || (0 <= row + i && row + i < rows && 0 <= column + j &&
                                    column + j < columns);
      pixels[kSide * i + j] = there ? first + (i * columns + j) * channels : zeros;
    }
  }
}

// Transforms a block's tiles of x for one part of the window, into places [16][stride][depth].
template <int kLanes>
INLINE void transform_input(const Winograd& shape, const float* x, const float* zeros,
                            const Block& block, int64_t part, float* places) {
  using V = typename Lanes<kLanes>::type;
  const int64_t down = 3 * (part / shape.parts()) - shape.padding;
  const int64_t right = 3 * (part % shape.parts()) - shape.padding;
  Tile tile(shape, block.first);
  for (int64_t t = 0; t < block.count; ++t, tile.next()) {
    const float* pixels[kPlaces];
    find_pixels<4>(x + tile.image * shape.height * shape.width * shape.in, shape.height,
                   shape.width, shape.in, 2 * tile.row + down, 2 * tile.column + right, zeros,
                   pixels);
    for (int64_t c = 0; c < shape.in; c += kLanes) {
      V d[kPlaces];
      UNROLL for (int p = 0; p < kPlaces; ++p) d[p] = *reinterpret_cast<const V*>(pixels[p] + c);
      UNROLL for (int j = 0; j < 4; ++j) to_input_places(d[j], d[4 + j], d[8 + j], d[12 + j]);
      UNROLL for (int i = 0; i < 16; i += 4) to_input_places(d[i], d[i + 1], d[i + 2], d[i + 3]);
      float* to = places + t * shape.depth() + part * shape.in + c;
      UNROLL for (int p = 0; p < kPlaces; ++p) {
        *reinterpret_cast<V*>(to + p * block.stride * shape.depth()) = d[p];
      }
    }
  }
}

// Transforms a block's tiles of y's gradient into places [16][stride][out].
template <int kLanes>
INLINE void transform_gradient(const Winograd& shape, const float* dy, const float* zeros,
                               const Block& block, float* places) {
  using V = typename Lanes<kLanes>::type;
  Tile tile(shape, block.first);
  for (int64_t t = 0; t < block.count; ++t, tile.next()) {
    const float* pixels[4];
    find_pixels<2>(dy + tile.image * shape.rows * shape.columns * shape.out, shape.rows,
                   shape.columns, shape.out, 2 * tile.row, 2 * tile.column, zeros, pixels);
    for (int64_t c = 0; c < shape.out; c += kLanes) {
      V d[4], half[8], m[kPlaces];
      UNROLL for (int p = 0; p < 4; ++p) d[p] = *reinterpret_cast<const V*>(pixels[p] + c);
      UNROLL for (int j = 0; j < 2; ++j) to_output_places(d[j], d[2 + j], half + j, 2);
      UNROLL for (int i = 0; i < 4; ++i) {
        to_output_places(half[2 * i], half[2 * i + 1], m + 4 * i, 1);
      }
      UNROLL for (int p = 0; p < kPlaces; ++p) {
        *reinterpret_cast<V*>(places + (p * block.stride + t) * shape.out + c) = m[p];
      }
    }
  }
}

// Writes a block's tiles of y from places [16][stride][wide], channels from `channel` on.
template <int kLanes, int kWide>
INLINE void transform_output(const Winograd& shape, const float* places, const Block& block,
                             int64_t channel, const Affine& after, float* y) {
  using V = typename Lanes<kLanes>::type;
  constexpr int64_t kWidth = kWide * kLanes;
  Tile tile(shape, block.first);
  for (int64_t t = 0; t < block.count; ++t, tile.next()) {
    const int64_t row = 2 * tile.row, column = 2 * tile.column;
    const int64_t pixel = (tile.image * shape.rows + row) * shape.columns + column;
    UNROLL for (int w = 0; w < kWide; ++w) {
      V m[kPlaces], half[8], out[4];
      UNROLL for (int p = 0; p < kPlaces; ++p) {
        const float* from = places + (p * block.stride + t) * kWidth + w * kLanes;
        m[p] = *reinterpret_cast<const V*>(from);
      }
      UNROLL for (int j = 0; j < 4; ++j) {
        to_outputs(m[j], m[4 + j], m[8 + j], m[12 + j], half[j], half[4 + j]);
      }
      UNROLL for (int i = 0; i < 2; ++i) {
        const V* part = half + 4 * i;
        to_outputs(part[0], part[1], part[2], part[3], out[2 * i], out[2 * i + 1]);
      }
      const int64_t c = channel + w * kLanes;
      UNROLL for (int place = 0; place < 4; ++place) {
        const int i = place / 2, j = place % 2;
        if (row + i >= shape.rows || column + j >= shape.columns) continue;
        const int64_t at = (pixel + i * shape.columns + j) * shape.out + c;
        V value = out[place];
        if (after.scale) value *= *reinterpret_cast<const V*>(after.scale + c);
        if (after.bias) value += *reinterpret_cast<const V*>(after.bias + c);
        if (after.addend) value += *reinterpret_cast<const V*>(after.addend + at);
        if (after.relu) value = value < 0 ? V{} : value;
        *reinterpret_cast<V*>(y + at) = value;
      }
    }
  }
}

// Kernels ---------------------------------------------------------------------------------------

// Transforms the kernels of 16 input channels to all outputs, from one part of the window, into
// [out / wide][16][depth][wide].
INLINE void transform_kernel(const Winograd& shape, const float* kernel, bool flipped, int64_t wide,
                             int64_t part, int64_t channel, float* places) {
  const int64_t size = shape.in * shape.out, window = shape.window;
  const float* weights[9];  // Where they begin; null: outside the window.
  for (int p = 0; p < 9; ++p) {
    const int64_t row = 3 * (part / shape.parts()) + p / 3;
    const int64_t column = 3 * (part % shape.parts()) + p % 3;
    const int64_t at = row * window + column;
    weights[p] = row < window && column < window
                     ? kernel + (flipped ? window * window - 1 - at : at) * size
                     : nullptr;
  }
  for (int64_t first = 0; first < shape.out; first += kChannels) {
    // The last axis is the one that is contiguous: outputs, or inputs where they are flipped.
    float m[kPlaces][kChannels][kChannels];
    for (int r = 0; r < kChannels; ++r) {
      const int64_t from =
          flipped ? (first + r) * shape.in + channel : (channel + r) * shape.out + first;
      float g[9][kChannels];
      for (int p = 0; p < 9; ++p) {
        for (int i = 0; i < kChannels; ++i) g[p][i] = weights[p] ? weights[p][from + i] : 0;
      }
      for (int i = 0; i < kChannels; ++i) {
        float half[12], to[kPlaces];
        UNROLL for (int j = 0; j < 3; ++j) {
          to_kernel_places(g[j][i], g[3 + j][i], g[6 + j][i], half + j, 3);
        }
        UNROLL for (int j = 0; j < 4; ++j) {
          to_kernel_places(half[3 * j], half[3 * j + 1], half[3 * j + 2], to + 4 * j, 1);
        }
        UNROLL for (int p = 0; p < kPlaces; ++p) m[p][r][i] = to[p];
      }
    }
    for (int p = 0; p < kPlaces; ++p) {
      float* to = places + (first / wide * kPlaces + p) * shape.depth() * wide + first % wide;
      for (int c = 0; c < kChannels; ++c) {
        float* row = to + (part * shape.in + channel + c) * wide;
        for (int o = 0; o < kChannels; ++o) row[o] = flipped ? m[p][o][c] : m[p][c][o];
      }
    }
  }
}

// Adds the parts of the gradient [parts][16][in][out] of one input channel, and transforms it.
INLINE void transform_kernel_gradient(const Winograd& shape, const float* parts, int64_t count,
                                      int64_t channel, float* dk) {
  const int64_t size = shape.in * shape.out, at = channel * shape.out;
  for (int64_t o = 0; o < shape.out; ++o) {
    float m[kPlaces], columns[12], k[9];
    UNROLL for (int p = 0; p < kPlaces; ++p) {
      m[p] = 0;
      for (int64_t part = 0; part < count; ++part) {
        m[p] += parts[(part * kPlaces + p) * size + at + o];
      }
    }
    UNROLL for (int j = 0; j < 4; ++j) {
      to_kernel(m + j, 4, columns[j], columns[4 + j], columns[8 + j]);
    }
    UNROLL for (int i = 0; i < 3; ++i) {
      to_kernel(columns + 4 * i, 1, k[3 * i], k[3 * i + 1], k[3 * i + 2]);
    }
    UNROLL for (int p = 0; p < 9; ++p) dk[p * size + at + o] = k[p];
  }
}

// The parts, for each instruction set -----------------------------------------------------------

// With as many sums as there are registers: for 32 outputs at once, or 16.
#define FOR_INSTRUCTIONS(NAME, TARGET, LANES, ROWS, WIDE)                                        \
  TARGET void input_##NAME(                                             \
      const Winograd& shape, const float* x, const float* zeros, const Block& block,             \
      float* to) {                                                                               \
    for (int64_t part = 0; part < shape.parts() * shape.parts(); ++part) {                       \
      transform_input<LANES>(shape, x, zeros, block, part, to);                                  \
    }                                                                                            \
  }                                                                                              \
  TARGET void gradient_##NAME(                                          \
      const Winograd& shape, const float* dy, const float* zeros, const Block& block,            \
      float* to) {                                                                               \
    transform_gradient<LANES>(shape, dy, zeros, block, to);                                      \
  }                                                                                              \
  TARGET void output_##NAME(const Winograd& shape, const float* from,   \
                                                     const Block& block, int64_t channel,        \
                                                     const Affine& after, float* y) {            \
    transform_output<LANES, WIDE>(shape, from, block, channel, after, y);                        \
  }                                                                                              \
  TARGET void multiply_##NAME(const Matrix& a, const float* b,          \
                                                       int64_t rows, int64_t inner,              \
                                                       int64_t columns, float* c, bool add) {    \
    multiply<LANES, ROWS, WIDE>(a, b, rows, inner, columns, c, add);                             \
  }
FOR_INSTRUCTIONS(avx512_32, AVX512, 16, 8, 2)
FOR_INSTRUCTIONS(avx512_16, AVX512, 16, 16, 1)
FOR_INSTRUCTIONS(avx2_16, AVX2, 8, 4, 2)

struct Routines {
  decltype(&input_avx2_16) input;
  decltype(&gradient_avx2_16) gradient;
  decltype(&output_avx2_16) output;
  decltype(&multiply_avx2_16) multiply;
  int64_t rows, width;  // Of a block of the product.
};

Routines routines_for(int64_t out) {
  if (!has_avx512()) {
    return {input_avx2_16, gradient_avx2_16, output_avx2_16, multiply_avx2_16, 4, 16};
  }
  if (out % 32) {
    return {input_avx512_16, gradient_avx512_16, output_avx512_16, multiply_avx512_16, 16, 16};
  }
  return {input_avx512_32, gradient_avx512_32, output_avx512_32, multiply_avx512_32, 8, 32};
}

// How many tiles a thread takes at once: what they become lies in its second cache, and the threads
// end together.
int64_t block_of(int64_t tiles, int64_t channels) {
  const int64_t most = channels < 256 ? 48 : 96;
  const int64_t rounds = std::max<int64_t>(1, (tiles + most * threads() - 1) / (most * threads()));
  return (tiles + rounds * threads() - 1) / (rounds * threads());
}

__attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default"))) void kernel_places(
    const Winograd& shape, const float* kernel, bool flipped, int64_t wide, int64_t part,
    int64_t channel, float* places) {
  transform_kernel(shape, kernel, flipped, wide, part, channel, places);
}

__attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default"))) void kernel_gradient(
    const Winograd& shape, const float* parts, int64_t count, int64_t channel, float* dk) {
  transform_kernel_gradient(shape, parts, count, channel, dk);
}

// A convolution on its way: kernels are places already, [out / width][16][depth][width].
struct Task {
  Winograd shape;
  Routines routines;
  const float *x, *kernels, *zeros;
  Affine after;
  float* y;

  int64_t columns() const { return shape.out / routines.width; }

  int64_t rounded(int64_t tiles) const {
    return (tiles + routines.rows - 1) / routines.rows * routines.rows;
  }

  // Of `count` tiles, one place of `width` outputs.
  void multiply(const float* from, int64_t count, int64_t column, int64_t place, float* to) const {
    const int64_t depth = shape.depth(), parts = shape.parts(), width = routines.width;
    const float* kernel = kernels + (column * kPlaces + place) * depth * width;
    for (int64_t part = 0; part < parts * parts; ++part) {
      // The last row of places, or column, is of weights that the second of two parts has not.
      if ((part >= parts && place / 4 == 3) || (part % parts && place % 4 == 3)) continue;
      routines.multiply({from + part * shape.in, depth, 1}, kernel + part * shape.in * width,
                        rounded(count), shape.in, width, to, part > 0);
    }
  }
};

// Each thread takes a block of tiles from beginning to end, in its own cache; every block reads all
// kernels. `scratch` has room for `stride` tiles of inputs and of `width` outputs for each thread.
void convolve_by_block(const Task& task, int64_t stride, float* scratch) {
  const int64_t tiles = task.shape.tiles(), width = task.routines.width;
  const int64_t of_inputs = stride * task.shape.depth(), of_outputs = stride * width;
  parallel((tiles + stride - 1) / stride, [&](int64_t index) {
    const Block block{index * stride, std::min(stride, tiles - index * stride), stride};
    float* inputs = scratch + omp_get_thread_num() * kPlaces * (of_inputs + of_outputs);
    float* outputs = inputs + kPlaces * of_inputs;
    task.routines.input(task.shape, task.x, task.zeros, block, inputs);
    for (int64_t column = 0; column < task.columns(); ++column) {
      for (int64_t place = 0; place < kPlaces; ++place) {
        task.multiply(inputs + place * of_inputs, block.count, column, place,
                      outputs + place * of_outputs);
      }
      task.routines.output(task.shape, outputs, block, column * width, task.after, task.y);
    }
  });
}

// All threads take `most` tiles together, a place at a time: so kernels are read once for these.
// `scratch` has room for `most` tiles of inputs and of outputs.
void convolve_by_place(const Task& task, int64_t stride, int64_t most, float* scratch) {
  const int64_t tiles = task.shape.tiles(), width = task.routines.width, columns = task.columns();
  float *inputs = scratch, *outputs = inputs + kPlaces * most * task.shape.depth();
  for (int64_t begin = 0; begin < tiles; begin += most) {
    const int64_t count = std::min(most, tiles - begin), blocks = (count + stride - 1) / stride;
    const auto block = [&](int64_t index) {
      return Block{begin + index * stride, std::min(stride, count - index * stride), most};
    };
    parallel(blocks, [&](int64_t index) {
      task.routines.input(task.shape, task.x, task.zeros, block(index),
                          inputs + index * stride * task.shape.depth());
    });
    parallel(kPlaces * columns, [&](int64_t index) {
      const int64_t place = index / columns, column = index % columns;
      task.multiply(inputs + place * most * task.shape.depth(), count, column, place,
                    outputs + (column * kPlaces + place) * most * width);
    });
    parallel(blocks, [&](int64_t index) {
      for (int64_t column = 0; column < columns; ++column) {
        const float* from = outputs + (column * kPlaces * most + index * stride) * width;
        task.routines.output(task.shape, from, block(index), column * width, task.after, task.y);
      }
    });
  }
}

// The gradient is summed over this many parts of the batch, whatever the number of threads.
constexpr int64_t kParts = 16;

}  // namespace

bool winograd_pays(const Winograd& shape) {
  const bool fits = (shape.window == 3 || shape.window == 5) && shape.in % kChannels == 0 &&
                    shape.out % kChannels == 0 && shape.padding >= 0 &&
                    shape.padding < shape.window && has_avx2();
  // With few channels the time goes into reading and writing, whatever is multiplied.
  if (!fits || std::min(shape.in, shape.out) < 32) return false;
  // For each weight: what is multiplied, with transformations a fifth more; and the weight's own
  // transformation, which takes the time of about 2000 multiplications.
  const int64_t each = shape.window == 3 ? kPlaces : 49;
  const int64_t direct = shape.window * shape.window * shape.batch * shape.rows * shape.columns;
  return direct > each * 6 / 5 * shape.tiles() + 2000 * shape.parts() * shape.parts();
}

bool winograd_gradient_pays(const Winograd& shape) {
  // So that a part's sums stay in the cache.
  return shape.window == 3 && winograd_pays(shape) && shape.in * shape.out <= 1 << 12;
}

void winograd_convolve(const Winograd& shape, const float* x, const float* kernel, bool flipped,
                       const Affine& after, float* y) {
  static Scratch scratch;
  Task task{shape, routines_for(shape.out), x, nullptr, nullptr, after, y};
  const int64_t tiles = shape.tiles(), depth = shape.depth(), channels = depth + shape.out;
  const int64_t stride = task.rounded(block_of(tiles, depth));
  // What is read and written in memory in the one way and in the other.
  const bool by_place = (tiles / stride) * depth * shape.out > 2 * tiles * channels;
  const int64_t most =
      by_place ? task.rounded(std::min(tiles, (1 << 19) / channels)) : stride * threads();
  const int64_t of_kernels = kPlaces * depth * shape.out;
  const int64_t of_tile = kPlaces * (depth + (by_place ? shape.out : task.routines.width));
  float* kernels = scratch.get<float>(of_kernels + shape.in + most * of_tile);
  float* zeros = kernels + of_kernels;
  std::fill_n(zeros, shape.in, 0.f);
  const int64_t groups = shape.in / kChannels;
  parallel(shape.parts() * shape.parts() * groups, [&](int64_t index) {
    kernel_places(shape, kernel, flipped, task.routines.width, index / groups,
                  index % groups * kChannels, kernels);
  });
  task.kernels = kernels;
  task.zeros = zeros;
  if (by_place) {
    convolve_by_place(task, stride, most, zeros + shape.in);
  } else {
    convolve_by_block(task, stride, zeros + shape.in);
  }
}

void winograd_kernel_gradient(const Winograd& shape, const float* x, const float* dy, float* dk) {
  static Scratch scratch;
  const Routines routines = routines_for(shape.out);
  const int64_t parts = std::min(shape.batch, kParts), size = kPlaces * shape.in * shape.out;
  const int64_t stride =
      std::clamp<int64_t>((1 << 18) / (kPlaces * (shape.in + shape.out)), 32, 96);
  const int64_t of_inputs = kPlaces * stride * shape.in, of_outputs = kPlaces * stride * shape.out;
  const int64_t most = std::max(shape.in, shape.out);
  float* sums = scratch.get<float>(parts * size + most + threads() * (of_inputs + of_outputs));
  float *zeros = sums + parts * size, *own = zeros + most;
  std::fill_n(zeros, most, 0.f);
  parallel(parts, [&](int64_t part) {
    float* sum = sums + part * size;
    float* inputs = own + omp_get_thread_num() * (of_inputs + of_outputs);
    std::fill_n(sum, size, 0.f);
    const int64_t begin = part * shape.batch / parts * shape.tiles_per_image();
    const int64_t end = (part + 1) * shape.batch / parts * shape.tiles_per_image();
    for (int64_t first = begin; first < end; first += stride) {
      const Block block{first, std::min(stride, end - first), stride};
      routines.input(shape, x, zeros, block, inputs);
      routines.gradient(shape, dy, zeros, block, inputs + of_inputs);
      for (int64_t place = 0; place < kPlaces; ++place) {
        routines.multiply({inputs + place * stride * shape.in, 1, shape.in},
                          inputs + of_inputs + place * stride * shape.out, shape.in, block.count,
                          shape.out, sum + place * shape.in * shape.out, true);
      }
    }
  });
  parallel(shape.in, [&](int64_t channel) { kernel_gradient(shape, sums, parts, channel, dk); });
}

}  // namespace flaxcls
