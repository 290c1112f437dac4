// Max pooling of x [B, H, W, C] by oneDNN, which keeps the place of each maximum for the gradient.

#include "common.h"
#include "onednn.h"

namespace flaxcls {
namespace {

using dnnl::memory;
using Dims = memory::dims;
using Buffer = ffi::AnyBuffer;

struct Pooling {
  dnnl::primitive primitive;
  memory::desc x, y, places, scratchpad;
};

struct Shape {
  bool forward;
  ffi::DataType dtype;
  ffi::Span<const int64_t> x, y;
  int64_t window, strides, padding;
};

Pooling make(const Shape& shape) {
  const auto type = onednn_type(shape.dtype);
  const auto &x = shape.x, &y = shape.y;
  const Dims window{shape.window, shape.window}, strides{shape.strides, shape.strides};
  const Dims dilation{0, 0}, before{shape.padding, shape.padding};
  Dims after(2);
  for (int i = 0; i < 2; ++i) {
    after[i] = (y[1 + i] - 1) * shape.strides + shape.window - x[1 + i] - shape.padding;
  }
  Pooling made;
  made.x = memory::desc({x[0], x[3], x[1], x[2]}, type, memory::format_tag::nhwc);
  made.y = memory::desc({y[0], y[3], y[1], y[2]}, type, memory::format_tag::nhwc);
  dnnl::primitive_attr attr;
  attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  const auto max = dnnl::algorithm::pooling_max;
  const dnnl::pooling_forward::primitive_desc forward(
      engine(), dnnl::prop_kind::forward_training, max, made.x, made.y, strides, window, dilation,
      before, after, attr);
  made.places = forward.workspace_desc();
  if (made.places.get_size() != static_cast<size_t>(y[0] * y[1] * y[2] * y[3])) {
    throw std::invalid_argument("oneDNN keeps more than a byte for each maximum");
  }
  if (shape.forward) {
    made.primitive = dnnl::pooling_forward(forward);
    made.scratchpad = forward.scratchpad_desc();
  } else {
    const dnnl::pooling_backward::primitive_desc backward(
        engine(), max, made.x, made.y, strides, window, dilation, before, after, forward, attr);
    made.primitive = dnnl::pooling_backward(backward);
    made.scratchpad = backward.scratchpad_desc();
  }
  return made;
}

Pooling& made(const Shape& shape) {
  static Cache<Pooling> cache(256);
  std::string key;
  append(key, shape.forward, static_cast<int64_t>(shape.dtype), shape.x, shape.y, shape.window,
         shape.strides, shape.padding);
  return cache.get(key, [&] { return make(shape); });
}

void run(const Shape& shape, void* x, void* y, void* places) {
  static Scratch scratch;
  if (shape.x[0] == 0) return;
  Pooling& op = made(shape);
  const int x_role = shape.forward ? DNNL_ARG_SRC : DNNL_ARG_DIFF_SRC;
  const int y_role = shape.forward ? DNNL_ARG_DST : DNNL_ARG_DIFF_DST;
  op.primitive.execute(
      stream(), {{x_role, memory(op.x, engine(), x)},
                 {y_role, memory(op.y, engine(), y)},
                 {DNNL_ARG_WORKSPACE, memory(op.places, engine(), places)},
                 {DNNL_ARG_SCRATCHPAD,
                  memory(op.scratchpad, engine(), scratch.get<char>(op.scratchpad.get_size()))}});
  stream().wait();
}

ffi::Error forward(Buffer x, ffi::Result<Buffer> y, ffi::Result<Buffer> places, int64_t window,
                   int64_t strides, int64_t padding) {
  return in_turn([&] {
    run({true, x.element_type(), x.dimensions(), y->dimensions(), window, strides, padding},
        x.untyped_data(), y->untyped_data(), places->untyped_data());
  });
}

ffi::Error gradient(Buffer dy, Buffer places, ffi::Result<Buffer> dx, int64_t window,
                    int64_t strides, int64_t padding) {
  return in_turn([&] {
    run({false, dy.element_type(), dx->dimensions(), dy.dimensions(), window, strides, padding},
        dx->untyped_data(), dy.untyped_data(), places.untyped_data());
  });
}

}  // namespace

#define WINDOW Attr<int64_t>("window").Attr<int64_t>("strides").Attr<int64_t>("padding")

XLA_FFI_DEFINE_HANDLER_SYMBOL(flaxcls_max_pool, forward,
                              ffi::Ffi::Bind().Arg<Buffer>().Ret<Buffer>().Ret<Buffer>().WINDOW);
XLA_FFI_DEFINE_HANDLER_SYMBOL(flaxcls_max_pool_gradient, gradient,
                              ffi::Ffi::Bind().Arg<Buffer>().Arg<Buffer>().Ret<Buffer>().WINDOW);

}  // namespace flaxcls

// Returns whether oneDNN has a max pooling and its gradient: 0 or 1. Shapes are of four numbers.
extern "C" int flaxcls_supports_max_pool(int bfloat16, const int64_t* x, const int64_t* y,
                                         int64_t window, int64_t strides, int64_t padding) {
  using namespace flaxcls;
  const auto span = [](const int64_t* data) { return ffi::Span<const int64_t>(data, 4); };
  const auto dtype = bfloat16 ? ffi::DataType::BF16 : ffi::DataType::F32;
  try {
    std::lock_guard<std::mutex> guard(turn());
    for (bool forward : {true, false}) {
      if (x[0] > 0) made({forward, dtype, span(x), span(y), window, strides, padding});
    }
    return 1;
  } catch (const std::exception&) {
    return 0;
  }
}
