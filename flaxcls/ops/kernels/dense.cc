// Products of matrices [M, K] x [K, N] by oneDNN, of which each may be given transposed.

#include "common.h"
#include "onednn.h"

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
