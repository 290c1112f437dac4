// Products of matrices [M, K] x [K, N] by oneDNN, of which each may be given transposed.
//
// Where few rows meet many weights, as in AlexNet's dense layers, reading the weights takes longer
// than multiplying, and a kernel of our own reads them in the order in which they lie.

#include "common.h"
#include "onednn.h"
#include "vectors.h"

namespace flaxcls {
namespace {

using dnnl::memory;
using Buffer = ffi::AnyBuffer;

struct Product {
  dnnl::matmul primitive;
  memory::desc a, b, c, scratchpad;
};

struct Shape {
  ffi::DataType dtype;
  int64_t rows, inner, columns;
  bool a_transposed, b_transposed;
};

Product make(const Shape& shape) {
  const auto type = onednn_type(shape.dtype);
  using tag = memory::format_tag;
  Product made;
  made.a = memory::desc({shape.rows, shape.inner}, type, shape.a_transposed ? tag::ba : tag::ab);
  made.b = memory::desc({shape.inner, shape.columns}, type, shape.b_transposed ? tag::ba : tag::ab);
  made.c = memory::desc({shape.rows, shape.columns}, type, tag::ab);
  dnnl::primitive_attr attr;
  attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  const dnnl::matmul::primitive_desc descriptor(engine(), made.a, made.b, made.c, attr);
  made.scratchpad = descriptor.scratchpad_desc();
  made.primitive = dnnl::matmul(descriptor);
  return made;
}

Product& made(const Shape& shape) {
  static Cache<Product> cache(256);
  std::string key;
  append(key, static_cast<int64_t>(shape.dtype), shape.rows, shape.inner, shape.columns,
         shape.a_transposed, shape.b_transposed);
  return cache.get(key, [&] { return make(shape); });
}

// A product of few rows: c = a b, and which of its columns.
struct Few {
  const float *a, *b;
  float* c;
  int64_t rows, inner, columns, first, last;
};

constexpr int64_t kInner = 16;    // Rows of b that are read side by side.
constexpr int64_t kColumns = 32;  // Which all numbers of columns are a multiple of.

// Adds the products with kInner rows of b to kRows rows of c.
template <int kLanes, int kRows>
INLINE void add_products(const Few& few, int64_t row, int64_t inner, int64_t column) {
  const Matrix a{few.a + row * few.inner + inner, few.inner, 1};
  const int64_t count = std::min(kInner, few.inner - inner);
  block_product<kLanes, kRows, 2>(a, few.b + inner * few.columns + column, few.columns, count,
                                  few.c + row * few.columns + column, few.columns, inner > 0);
}

template <int kLanes>
INLINE void multiply_few(const Few& few) {
  for (int64_t inner = 0; inner < few.inner; inner += kInner) {
    for (int64_t column = few.first; column < few.last; column += 2 * kLanes) {
      int64_t row = 0;
      for (; row + 8 <= few.rows; row += 8) add_products<kLanes, 8>(few, row, inner, column);
      for (; row + 4 <= few.rows; row += 4) add_products<kLanes, 4>(few, row, inner, column);
      for (; row < few.rows; ++row) add_products<kLanes, 1>(few, row, inner, column);
    }
  }
}

AVX512 void multiply_few_avx512(const Few& few) { multiply_few<16>(few); }
AVX2 void multiply_few_avx2(const Few& few) { multiply_few<8>(few); }

bool has_few_rows(const Shape& shape) {
  return shape.dtype == ffi::DataType::F32 && !shape.a_transposed && !shape.b_transposed &&
         shape.rows <= 32 && shape.inner * shape.columns >= 1 << 20 &&
         shape.columns % kColumns == 0 && has_avx2();
}

void run_few_rows(const Shape& shape, const float* a, const float* b, float* c) {
  const auto run = has_avx512() ? multiply_few_avx512 : multiply_few_avx2;
  const int64_t count = shape.columns / kColumns, parts = std::min<int64_t>(threads(), count);
  parallel(parts, [&](int64_t part) {
    run({a, b, c, shape.rows, shape.inner, shape.columns, part * count / parts * kColumns,
         (part + 1) * count / parts * kColumns});
  });
}

ffi::Error multiply(Buffer a, Buffer b, ffi::Result<Buffer> c, bool a_transposed,
                    bool b_transposed) {
  return in_turn([&] {
    static Scratch scratch;
    const auto size = a.dimensions(), result = c->dimensions();
    const Shape shape{a.element_type(), result[0], size[a_transposed ? 0 : 1], result[1],
                      a_transposed, b_transposed};
    if (c->element_count() == 0) return;
    if (shape.inner == 0) {
      std::fill_n(static_cast<char*>(c->untyped_data()), c->size_bytes(), 0);
      return;
    }
    if (has_few_rows(shape)) {
      return run_few_rows(shape, static_cast<float*>(a.untyped_data()),
                          static_cast<float*>(b.untyped_data()),
                          static_cast<float*>(c->untyped_data()));
    }
    Product& op = made(shape);
    op.primitive.execute(
        stream(), {{DNNL_ARG_SRC, memory(op.a, engine(), a.untyped_data())},
                   {DNNL_ARG_WEIGHTS, memory(op.b, engine(), b.untyped_data())},
                   {DNNL_ARG_DST, memory(op.c, engine(), c->untyped_data())},
                   {DNNL_ARG_SCRATCHPAD,
                    memory(op.scratchpad, engine(), scratch.get<char>(op.scratchpad.get_size()))}});
    stream().wait();
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(flaxcls_multiply, multiply,
                              ffi::Ffi::Bind().Arg<Buffer>().Arg<Buffer>().Ret<Buffer>()
                                  .Attr<bool>("a_transposed").Attr<bool>("b_transposed"));

}  // namespace flaxcls

// Returns whether oneDNN has the product of matrices [rows, inner] x [inner, columns]: 0 or 1.
extern "C" int flaxcls_supports_multiply(int bfloat16, int64_t rows, int64_t inner,
                                         int64_t columns, int a_transposed, int b_transposed) {
  using namespace flaxcls;
  const auto dtype = bfloat16 ? ffi::DataType::BF16 : ffi::DataType::F32;
  try {
    std::lock_guard<std::mutex> guard(turn());
    if (rows && inner && columns) {
      made({dtype, rows, inner, columns, a_transposed != 0, b_transposed != 0});
    }
    return 1;
  } catch (const std::exception&) {
    return 0;
  }
}
