// Batch statistics of x [G, ..., C], normalisation by them with an addend and a ReLU, and its
// gradients: each reads its arrays once or twice, in all that the vector registers hold.
//
// What is summed is cut into the same chunks whatever the number of threads, so sums are the same.

#include <cmath>
#include <cstring>
#include <numeric>
#include <vector>

#include "common.h"

#define INLINE inline __attribute__((always_inline))
// Compiled for three instruction sets; the best that the processor has runs.
#define CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))

namespace flaxcls {
namespace {

struct bfloat16 {
  uint16_t bits;
};

INLINE float load(float x) { return x; }
INLINE float load(bfloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}
INLINE void store(float& to, float x) { to = x; }
INLINE void store(bfloat16& to, float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // To the nearest, even.
  to.bits = static_cast<uint16_t>(x != x ? (bits >> 16) | 0x40 : rounded);
}

// Rows of few channels are taken several at once, so that they fill registers: `lanes` numbers, of
// which lane i is of channel i % channels.
int64_t lanes_of(int64_t channels) {
  int64_t lanes = channels / std::gcd<int64_t>(channels, 16) * 16;
  while (lanes < 64) lanes *= 2;
  return lanes;
}

// How a group's rows are cut: `rows` of `lanes` numbers a chunk, which lies in the second cache.
struct Cut {
  int64_t channels, count, lanes, rows_at_once, chunk, chunks;  // In rows of `channels`.

  Cut(int64_t channels, int64_t count) : channels(channels), count(count) {
    lanes = lanes_of(channels);
    rows_at_once = lanes / channels;
    const int64_t wide_rows = std::max<int64_t>(1, (1 << 15) / lanes);
    chunk = wide_rows * rows_at_once;
    chunks = (count + chunk - 1) / chunk;
  }

  int64_t first(int64_t index) const { return index * chunk; }
  int64_t last(int64_t index) const { return std::min(count, (index + 1) * chunk); }
};

// Calls f(first number, width, rows) for the wide rows of a chunk, and for what they leave over.
template <class F>
INLINE void in_rows(const Cut& cut, int64_t index, F f) {
  const int64_t first = cut.first(index), count = cut.last(index) - first;
  const int64_t wide = count / cut.rows_at_once, left = count - wide * cut.rows_at_once;
  if (wide) f(first * cut.channels, cut.lanes, wide);
  if (left) f((first + wide * cut.rows_at_once) * cut.channels, left * cut.channels, int64_t{1});
}

// Adds the lanes of each channel.
void fold(const float* lanes, const Cut& cut, float* channels) {
  std::copy_n(lanes, cut.channels, channels);
  for (int64_t row = 1; row < cut.rows_at_once; ++row) {
    for (int64_t c = 0; c < cut.channels; ++c) channels[c] += lanes[row * cut.channels + c];
  }
}

// Repeats channels over the lanes.
void spread(const float* channels, const Cut& cut, float* lanes) {
  for (int64_t row = 0; row < cut.rows_at_once; ++row) {
    std::copy_n(channels, cut.channels, lanes + row * cut.channels);
  }
}

std::vector<float> spread(const float* channels, const Cut& cut) {
  std::vector<float> lanes(cut.lanes);
  spread(channels, cut, lanes.data());
  return lanes;
}

// Statistics ------------------------------------------------------------------------------------

template <class T>
INLINE void add_rows(const T* __restrict__ x, int64_t width, int64_t rows,
                     float* __restrict__ sum) {
  int64_t row = 0;
  for (; row + 4 <= rows; row += 4) {
    const T* __restrict__ p = x + row * width;
    for (int64_t i = 0; i < width; ++i) {
      sum[i] += (load(p[i]) + load(p[i + width])) +
                (load(p[i + 2 * width]) + load(p[i + 3 * width]));
    }
  }
  for (; row < rows; ++row) {
    for (int64_t i = 0; i < width; ++i) sum[i] += load(x[row * width + i]);
  }
}

INLINE float square(float x) { return x * x; }

template <class T>
INLINE void add_squares(const T* __restrict__ x, int64_t width, int64_t rows,
                        const float* __restrict__ mean, float* __restrict__ sum) {
  int64_t row = 0;
  for (; row + 4 <= rows; row += 4) {
    const T* __restrict__ p = x + row * width;
    for (int64_t i = 0; i < width; ++i) {
      const float m = mean[i];
      sum[i] += (square(load(p[i]) - m) + square(load(p[i + width]) - m)) +
                (square(load(p[i + 2 * width]) - m) + square(load(p[i + 3 * width]) - m));
    }
  }
  for (; row < rows; ++row) {
    for (int64_t i = 0; i < width; ++i) sum[i] += square(load(x[row * width + i]) - mean[i]);
  }
}

// Writes a chunk's means, and its sums of squared deviations from them.
template <class T>
INLINE void chunk_moments(const T* x, const Cut& cut, int64_t index, float* mean, float* squares) {
  std::vector<float> sum(cut.lanes, 0.f), centre(cut.lanes);
  in_rows(cut, index, [&](int64_t at, int64_t width, int64_t rows) {
    add_rows(x + at, width, rows, sum.data());
  });
  fold(sum.data(), cut, mean);
  const float count = cut.last(index) - cut.first(index);
  for (int64_t c = 0; c < cut.channels; ++c) mean[c] /= count;
  spread(mean, cut, centre.data());
  std::fill(sum.begin(), sum.end(), 0.f);
  in_rows(cut, index, [&](int64_t at, int64_t width, int64_t rows) {
    add_squares(x + at, width, rows, centre.data(), sum.data());
  });
  fold(sum.data(), cut, squares);
}

CLONES void moments_of(const float* x, const Cut& cut, int64_t index, float* m, float* s) {
  chunk_moments(x, cut, index, m, s);
}
CLONES void moments_of(const bfloat16* x, const Cut& cut, int64_t index, float* m, float* s) {
  chunk_moments(x, cut, index, m, s);
}

// Chan, Golub, LeVeque (1983): nothing cancels, as it does in a mean of squares minus a square.
void merge(const float* parts, const Cut& cut, float* mean, float* var) {
  parallel((cut.channels + 63) / 64, [&](int64_t block) {
    for (int64_t c = block * 64; c < std::min(cut.channels, block * 64 + 64); ++c) {
      double count = 0, centre = 0, squares = 0;
      for (int64_t index = 0; index < cut.chunks; ++index) {
        const float* part = parts + index * 2 * cut.channels;
        const double more = cut.last(index) - cut.first(index), delta = part[c] - centre;
        squares += part[cut.channels + c] + delta * delta * count * more / (count + more);
        centre += delta * more / (count + more);
        count += more;
      }
      mean[c] = static_cast<float>(centre);
      var[c] = static_cast<float>(squares / count);
    }
  });
}

template <class T>
void run_moments(const T* x, const Cut& cut, float* mean, float* var) {
  static Scratch scratch;
  float* parts = scratch.get<float>(cut.chunks * 2 * cut.channels);
  parallel(cut.chunks, [&](int64_t index) {
    float* part = parts + index * 2 * cut.channels;
    moments_of(x, cut, index, part, part + cut.channels);
  });
  merge(parts, cut, mean, var);
}

// Normalisation ---------------------------------------------------------------------------------

// Lanes of what a group's channels are computed with.
struct Vectors {
  std::vector<float> mean, factor, bias;
};

template <class T, bool kAdded, bool kRelu>
INLINE void normalize_rows(const T* __restrict__ x, const T* __restrict__ addend,
                           T* __restrict__ y, int64_t width, int64_t rows,
                           const float* __restrict__ mean, const float* __restrict__ factor,
                           const float* __restrict__ bias) {
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t at = row * width;
    for (int64_t i = 0; i < width; ++i) {
      float value = (load(x[at + i]) - mean[i]) * factor[i] + bias[i];
      if (kAdded) value += load(addend[at + i]);
      if (kRelu) value = value < 0 ? 0 : value;
      store(y[at + i], value);
    }
  }
}

template <class T>
INLINE void normalize_chunk(const T* x, const T* addend, T* y, bool relu, const Cut& cut,
                            int64_t index, const Vectors& v) {
  in_rows(cut, index, [&](int64_t at, int64_t width, int64_t rows) {
    const float *mean = v.mean.data(), *factor = v.factor.data(), *bias = v.bias.data();
    if (addend && relu) {
      normalize_rows<T, true, true>(x + at, addend + at, y + at, width, rows, mean, factor, bias);
    } else if (addend) {
      normalize_rows<T, true, false>(x + at, addend + at, y + at, width, rows, mean, factor, bias);
    } else if (relu) {
      normalize_rows<T, false, true>(x + at, nullptr, y + at, width, rows, mean, factor, bias);
    } else {
      normalize_rows<T, false, false>(x + at, nullptr, y + at, width, rows, mean, factor, bias);
    }
  });
}

CLONES void normalized(const float* x, const float* addend, float* y, bool relu, const Cut& cut,
                       int64_t index, const Vectors& v) {
  normalize_chunk(x, addend, y, relu, cut, index, v);
}
CLONES void normalized(const bfloat16* x, const bfloat16* addend, bfloat16* y, bool relu,
                       const Cut& cut, int64_t index, const Vectors& v) {
  normalize_chunk(x, addend, y, relu, cut, index, v);
}

// Gradients -------------------------------------------------------------------------------------

// Of one group: y = relu((x - mean) * factor + bias + addend), where relu and addend are there.
template <class T>
struct Backward {
  const T *x, *y, *dy;  // y: where there is an addend, to see where ReLU let through.
  T *dx, *daddend;
  Vectors vectors;
  std::vector<float> constant, slope;  // dx = dy * factor + constant + slope * (x - mean).
};

template <class T, bool kRelu, bool kAdded>
INLINE void sum_rows(const T* __restrict__ x, const T* __restrict__ y, const T* __restrict__ dy,
                     T* __restrict__ daddend, int64_t width, int64_t rows,
                     const float* __restrict__ mean, const float* __restrict__ factor,
                     const float* __restrict__ bias, float* __restrict__ total,
                     float* __restrict__ along) {
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t at = row * width;
    for (int64_t i = 0; i < width; ++i) {
      const float centred = load(x[at + i]) - mean[i];
      float d = load(dy[at + i]);
      if (kRelu) {
        const float value = kAdded ? load(y[at + i]) : centred * factor[i] + bias[i];
        d = value > 0 ? d : 0;
      }
      total[i] += d;
      along[i] += d * centred;
      if (kAdded) store(daddend[at + i], d);
    }
  }
}

template <class T, bool kRelu>
INLINE void gradient_rows(const T* __restrict__ x, const T* __restrict__ dy, T* __restrict__ dx,
                          int64_t width, int64_t rows, const float* __restrict__ mean,
                          const float* __restrict__ factor, const float* __restrict__ bias,
                          const float* __restrict__ constant, const float* __restrict__ slope) {
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t at = row * width;
    for (int64_t i = 0; i < width; ++i) {
      const float centred = load(x[at + i]) - mean[i];
      float d = load(dy[at + i]);
      if (kRelu) d = centred * factor[i] + bias[i] > 0 ? d : 0;
      store(dx[at + i], d * factor[i] + (constant[i] + slope[i] * centred));
    }
  }
}

template <class T>
INLINE void sum_chunk(const Backward<T>& b, bool relu, const Cut& cut, int64_t index, float* total,
                      float* along) {
  std::vector<float> sums(2 * cut.lanes, 0.f);
  float *s = sums.data(), *q = s + cut.lanes;
  in_rows(cut, index, [&](int64_t at, int64_t width, int64_t rows) {
    const T *x = b.x + at, *dy = b.dy + at, *y = b.y ? b.y + at : nullptr;
    T* da = b.daddend ? b.daddend + at : nullptr;
    const float *m = b.vectors.mean.data(), *f = b.vectors.factor.data(),
                *c = b.vectors.bias.data();
    if (relu && da) {
      sum_rows<T, true, true>(x, y, dy, da, width, rows, m, f, c, s, q);
    } else if (relu) {
      sum_rows<T, true, false>(x, y, dy, da, width, rows, m, f, c, s, q);
    } else if (da) {
      sum_rows<T, false, true>(x, y, dy, da, width, rows, m, f, c, s, q);
    } else {
      sum_rows<T, false, false>(x, y, dy, da, width, rows, m, f, c, s, q);
    }
  });
  fold(s, cut, total);
  fold(q, cut, along);
}

template <class T>
INLINE void gradient_chunk(const Backward<T>& b, bool relu, const Cut& cut, int64_t index) {
  in_rows(cut, index, [&](int64_t at, int64_t width, int64_t rows) {
    // What has passed the ReLU is the addend's gradient, where there is one.
    const T *x = b.x + at, *dy = (b.daddend ? b.daddend : b.dy) + at;
    const float *m = b.vectors.mean.data(), *f = b.vectors.factor.data(),
                *c = b.vectors.bias.data(), *k = b.constant.data(), *s = b.slope.data();
    if (relu && !b.daddend) {
      gradient_rows<T, true>(x, dy, b.dx + at, width, rows, m, f, c, k, s);
    } else {
      gradient_rows<T, false>(x, dy, b.dx + at, width, rows, m, f, c, k, s);
    }
  });
}

CLONES void summed(const Backward<float>& b, bool relu, const Cut& cut, int64_t index, float* total,
                   float* along) {
  sum_chunk(b, relu, cut, index, total, along);
}
CLONES void summed(const Backward<bfloat16>& b, bool relu, const Cut& cut, int64_t index,
                   float* total, float* along) {
  sum_chunk(b, relu, cut, index, total, along);
}
CLONES void backpropagated(const Backward<float>& b, bool relu, const Cut& cut, int64_t index) {
  gradient_chunk(b, relu, cut, index);
}
CLONES void backpropagated(const Backward<bfloat16>& b, bool relu, const Cut& cut, int64_t index) {
  gradient_chunk(b, relu, cut, index);
}

// Adds the chunks' sums [chunks, 2, C].
void add_up(const float* parts, const Cut& cut, float* total, float* along) {
  parallel((cut.channels + 63) / 64, [&](int64_t block) {
    for (int64_t c = block * 64; c < std::min(cut.channels, block * 64 + 64); ++c) {
      double s = 0, q = 0;
      for (int64_t index = 0; index < cut.chunks; ++index) {
        s += parts[index * 2 * cut.channels + c];
        q += parts[index * 2 * cut.channels + cut.channels + c];
      }
      total[c] = static_cast<float>(s);
      along[c] = static_cast<float>(q);
    }
  });
}

// Parts -----------------------------------------------------------------------------------------
//
// The same for an input whose channels lie in several arrays, as the maps of a dense block: what is
// written is one array, so that nothing has to be concatenated before.

struct Part {
  const void* x;
  void* dx;
  int64_t first, channels;  // Of all.
};

// Rows at once, so that what is written stays in the first caches while all parts are read.
constexpr int64_t kRows = 32;

template <class T, bool kRelu>
INLINE void normalize_part(const T* __restrict__ x, T* __restrict__ y, int64_t width,
                           int64_t stride, int64_t rows, const float* __restrict__ mean,
                           const float* __restrict__ factor, const float* __restrict__ bias) {
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t i = 0; i < width; ++i) {
      float value = (load(x[row * width + i]) - mean[i]) * factor[i] + bias[i];
      if (kRelu) value = value < 0 ? 0 : value;
      store(y[row * stride + i], value);
    }
  }
}

template <class T>
INLINE void normalize_parts(const std::vector<Part>& parts, T* y, bool relu, int64_t stride,
                            int64_t first, int64_t last, const float* mean, const float* factor,
                            const float* bias) {
  for (int64_t row = first; row < last; row += kRows) {
    const int64_t rows = std::min(kRows, last - row);
    for (const Part& part : parts) {
      const T* x = static_cast<const T*>(part.x) + row * part.channels;
      T* to = y + row * stride + part.first;
      const int64_t c = part.first;
      if (relu) {
        normalize_part<T, true>(x, to, part.channels, stride, rows, mean + c, factor + c, bias + c);
      } else {
        normalize_part<T, false>(x, to, part.channels, stride, rows, mean + c, factor + c,
                                 bias + c);
      }
    }
  }
}

template <class T, bool kRelu>
INLINE void part_gradient(const T* __restrict__ x, const T* __restrict__ dy, T* __restrict__ dx,
                          int64_t width, int64_t stride, int64_t rows,
                          const float* __restrict__ mean, const float* __restrict__ factor,
                          const float* __restrict__ bias, float* __restrict__ total,
                          float* __restrict__ along) {
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t i = 0; i < width; ++i) {
      const float centred = load(x[row * width + i]) - mean[i];
      float d = load(dy[row * stride + i]);
      if (kRelu) d = centred * factor[i] + bias[i] > 0 ? d : 0;
      total[i] += d;
      along[i] += d * centred;
      store(dx[row * width + i], d * factor[i]);
    }
  }
}

template <class T>
INLINE void parts_gradient(const std::vector<Part>& parts, const T* dy, bool relu, int64_t stride,
                           int64_t first, int64_t last, const float* mean, const float* factor,
                           const float* bias, float* total, float* along) {
  std::fill_n(total, stride, 0.f);
  std::fill_n(along, stride, 0.f);
  for (int64_t row = first; row < last; row += kRows) {
    const int64_t rows = std::min(kRows, last - row);
    for (const Part& part : parts) {
      const int64_t c = part.first, at = row * part.channels;
      const T *x = static_cast<const T*>(part.x) + at, *from = dy + row * stride + c;
      T* dx = static_cast<T*>(part.dx) + at;
      if (relu) {
        part_gradient<T, true>(x, from, dx, part.channels, stride, rows, mean + c, factor + c,
                               bias + c, total + c, along + c);
      } else {
        part_gradient<T, false>(x, from, dx, part.channels, stride, rows, mean + c, factor + c,
                                bias + c, total + c, along + c);
      }
    }
  }
}

#define PARTS_OF(T)                                                                              \
  CLONES void parts_normalized(const std::vector<Part>& parts, T* y, bool relu, int64_t stride,  \
                               int64_t first, int64_t last, const float* m, const float* f,      \
                               const float* b) {                                                 \
    normalize_parts(parts, y, relu, stride, first, last, m, f, b);                               \
  }                                                                                              \
  CLONES void parts_backpropagated(const std::vector<Part>& parts, const T* dy, bool relu,       \
                                   int64_t stride, int64_t first, int64_t last, const float* m,  \
                                   const float* f, const float* b, float* total, float* along) { \
    parts_gradient(parts, dy, relu, stride, first, last, m, f, b, total, along);                 \
  }
PARTS_OF(float)
PARTS_OF(bfloat16)

// Handlers --------------------------------------------------------------------------------------

using Buffer = ffi::AnyBuffer;
using Vector = ffi::Buffer<ffi::F32>;

template <class F>
void by_type(ffi::DataType dtype, F f) {
  if (dtype == ffi::DataType::F32) {
    f(float());
  } else if (dtype == ffi::DataType::BF16) {
    f(bfloat16());
  } else {
    throw std::invalid_argument("only float32 and bfloat16 have kernels");
  }
}

// [G, ..., C] as groups of rows of channels.
Cut cut_of(ffi::Span<const int64_t> dimensions) {
  const int64_t channels = dimensions.back();
  int64_t count = 1;
  for (size_t i = 1; i + 1 < dimensions.size(); ++i) count *= dimensions[i];
  return Cut(channels, count);
}

// Of a group: where its activations begin, and its vectors.
struct Group {
  int64_t index, at, channel;
};

// Calls f(an element of the dtype, cut, group) for each group of an array [G, ..., C].
template <class F>
void by_group(ffi::DataType dtype, ffi::Span<const int64_t> dimensions, F f) {
  const Cut cut = cut_of(dimensions);
  by_type(dtype, [&](auto type) {
    for (int64_t group = 0; group < dimensions.front(); ++group) {
      f(type, cut, Group{group, group * cut.count * cut.channels, group * cut.channels});
    }
  });
}

template <class T>
const T* data_of(const Buffer& buffer) {
  return static_cast<const T*>(buffer.untyped_data());
}

// Of the buffer that follows those which every call has, if there is one.
template <class T>
const T* data_of(ffi::RemainingArgs rest) {
  return rest.size() ? data_of<T>(*rest.get<Buffer>(0)) : nullptr;
}

template <class T>
T* data_of(ffi::Result<Buffer>& buffer) {
  return static_cast<T*>(buffer->untyped_data());
}

template <class T>
T* data_of(ffi::RemainingRets rest) {
  return rest.size() ? static_cast<T*>((*rest.get<Buffer>(0))->untyped_data()) : nullptr;
}

ffi::Error moments(Buffer x, ffi::Result<Vector> mean, ffi::Result<Vector> var) {
  return in_turn([&] {
    by_group(x.element_type(), x.dimensions(), [&](auto type, const Cut& cut, const Group& group) {
      using T = decltype(type);
      run_moments(data_of<T>(x) + group.at, cut, mean->typed_data() + group.channel,
                  var->typed_data() + group.channel);
    });
  });
}

Vectors vectors_of(const Group& group, const Cut& cut, Vector& mean, Vector& factor, Vector& bias) {
  return {spread(mean.typed_data() + group.channel, cut),
          spread(factor.typed_data() + group.channel, cut), spread(bias.typed_data(), cut)};
}

ffi::Error normalize(Buffer x, Vector mean, Vector factor, Vector bias, ffi::RemainingArgs rest,
                     ffi::Result<Buffer> y, bool relu) {
  return in_turn([&] {
    if (x.element_count() == 0) return;
    by_group(x.element_type(), x.dimensions(), [&](auto type, const Cut& cut, const Group& group) {
      using T = decltype(type);
      const T* addend = data_of<T>(rest);
      const Vectors vectors = vectors_of(group, cut, mean, factor, bias);
      parallel(cut.chunks, [&](int64_t index) {
        normalized(data_of<T>(x) + group.at, addend ? addend + group.at : nullptr,
                   data_of<T>(y) + group.at, relu, cut, index, vectors);
      });
    });
  }, y);
}

template <class T>
void run_gradient(Backward<T> b, bool relu, const Cut& cut, float* total, float* along,
                  const float* inverse, const float* of_mean, const float* of_var) {
  static Scratch scratch;
  float* parts = scratch.get<float>(cut.chunks * 2 * cut.channels);
  parallel(cut.chunks, [&](int64_t index) {
    float* part = parts + index * 2 * cut.channels;
    summed(b, relu, cut, index, part, part + cut.channels);
  });
  add_up(parts, cut, total, along);
  std::vector<float> constant(cut.channels), slope(cut.channels);
  const double count = cut.count;
  for (int64_t c = 0; c < cut.channels; ++c) {
    const double factor = b.vectors.factor[c];
    constant[c] = static_cast<float>((of_mean[c] - factor * total[c]) / count);
    slope[c] = static_cast<float>((2 * of_var[c] - factor * inverse[c] * along[c]) / count);
  }
  b.constant = spread(constant.data(), cut);
  b.slope = spread(slope.data(), cut);
  parallel(cut.chunks, [&](int64_t index) { backpropagated(b, relu, cut, index); });
}

// Gradients of `normalize` by the statistics of the group itself: dx, and the sums of the gradient
// before the ReLU, and of that times (x - mean), of each group. `inverse` is 1 / (var + eps)
// [G, C]; of_mean and of_var are the gradients of the statistics. Of an addend, the gradient is one
// result more, and y is given.
ffi::Error batch_norm_gradient(Buffer x, Vector mean, Vector factor, Vector bias, Vector inverse,
                               Vector of_mean, Vector of_var, Buffer dy, ffi::RemainingArgs rest,
                               ffi::Result<Buffer> dx, ffi::Result<Vector> total,
                               ffi::Result<Vector> along, ffi::RemainingRets more, bool relu) {
  return in_turn([&] {
    if (x.element_count() == 0) return;
    by_group(x.element_type(), x.dimensions(), [&](auto type, const Cut& cut, const Group& group) {
      using T = decltype(type);
      const int64_t at = group.at, c = group.channel;
      const T* y = data_of<T>(rest);
      T* daddend = data_of<T>(more);
      run_gradient<T>({data_of<T>(x) + at, y ? y + at : nullptr, data_of<T>(dy) + at,
                       data_of<T>(dx) + at, daddend ? daddend + at : nullptr,
                       vectors_of(group, cut, mean, factor, bias), {}, {}},
                      relu, cut, total->typed_data() + c, along->typed_data() + c,
                      inverse.typed_data() + c, of_mean.typed_data() + c,
                      of_var.typed_data() + c);
    });
  }, dx);
}

// Returns the parts of one group.
template <class T>
std::vector<Part> parts_of(ffi::RemainingArgs arguments, const Group& group, int64_t rows) {
  std::vector<Part> parts;
  int64_t first = 0;
  for (size_t index = 0; index < arguments.size(); ++index) {
    const Buffer x = *arguments.get<Buffer>(index);
    const int64_t channels = x.dimensions().back();
    parts.push_back({data_of<T>(x) + group.index * rows * channels, nullptr, first, channels});
    first += channels;
  }
  return parts;
}

ffi::Error normalize_parts_forward(Vector mean, Vector factor, Vector bias,
                                   ffi::RemainingArgs parts, ffi::Result<Buffer> y, bool relu) {
  return in_turn([&] {
    if (y->element_count() == 0) return;
    by_group(y->element_type(), y->dimensions(), [&](auto type, const Cut& cut,
                                                     const Group& group) {
      using T = decltype(type);
      const auto given = parts_of<T>(parts, group, cut.count);
      const int64_t c = group.channel;
      parallel(cut.chunks, [&](int64_t index) {
        parts_normalized(given, data_of<T>(y) + group.at, relu, cut.channels, cut.first(index),
                         cut.last(index), mean.typed_data() + c, factor.typed_data() + c,
                         bias.typed_data());
      });
    });
  }, y);
}

ffi::Error normalize_parts_gradient(Vector mean, Vector factor, Vector bias, Buffer dy,
                                    ffi::RemainingArgs parts, ffi::Result<Vector> total,
                                    ffi::Result<Vector> along, ffi::RemainingRets dparts,
                                    bool relu) {
  return in_turn([&] {
    if (dy.element_count() == 0) return;
    static Scratch scratch;
    by_group(dy.element_type(), dy.dimensions(), [&](auto type, const Cut& cut,
                                                     const Group& group) {
      using T = decltype(type);
      auto given = parts_of<T>(parts, group, cut.count);
      for (size_t index = 0; index < given.size(); ++index) {
        T* dx = static_cast<T*>((*dparts.get<Buffer>(index))->untyped_data());
        given[index].dx = dx + group.index * cut.count * given[index].channels;
      }
      const int64_t c = group.channel;
      float* sums = scratch.get<float>(cut.chunks * 2 * cut.channels);
      parallel(cut.chunks, [&](int64_t index) {
        float* sum = sums + index * 2 * cut.channels;
        parts_backpropagated(given, data_of<T>(dy) + group.at, relu, cut.channels,
                             cut.first(index), cut.last(index), mean.typed_data() + c,
                             factor.typed_data() + c, bias.typed_data(), sum, sum + cut.channels);
      });
      add_up(sums, cut, total->typed_data() + c, along->typed_data() + c);
    });
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(flaxcls_moments, moments,
                              ffi::Ffi::Bind().Arg<Buffer>().Ret<Vector>().Ret<Vector>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(flaxcls_normalize, normalize,
                              ffi::Ffi::Bind().Arg<Buffer>().Arg<Vector>().Arg<Vector>()
                                  .Arg<Vector>().RemainingArgs().Ret<Buffer>()
                                  .Attr<bool>("relu"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(flaxcls_batch_norm_gradient, batch_norm_gradient,
                              ffi::Ffi::Bind().Arg<Buffer>().Arg<Vector>().Arg<Vector>()
                                  .Arg<Vector>().Arg<Vector>().Arg<Vector>().Arg<Vector>()
                                  .Arg<Buffer>().RemainingArgs().Ret<Buffer>().Ret<Vector>()
                                  .Ret<Vector>().RemainingRets().Attr<bool>("relu"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(flaxcls_normalize_parts, normalize_parts_forward,
                              ffi::Ffi::Bind().Arg<Vector>().Arg<Vector>().Arg<Vector>()
                                  .RemainingArgs().Ret<Buffer>().Attr<bool>("relu"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(flaxcls_normalize_parts_gradient, normalize_parts_gradient,
                              ffi::Ffi::Bind().Arg<Vector>().Arg<Vector>().Arg<Vector>()
                                  .Arg<Buffer>().RemainingArgs().Ret<Vector>().Ret<Vector>()
                                  .RemainingRets().Attr<bool>("relu"));

}  // namespace flaxcls
