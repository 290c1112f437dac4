// Convolutions of x [B, H, W, C] with kernels [h, w, C / groups, O], and their two gradients, by
// oneDNN. Activations stay as they are; kernels are reordered at each call as oneDNN wants them.
// Windows of 3x3 and 5x5 pixels go another way in float32, where that is faster.

#include "common.h"
#include "onednn.h"
#include "winograd.h"

namespace flaxcls {
namespace {

using dnnl::memory;
using Dims = memory::dims;

enum Kind : int64_t { kForward, kInputGradient, kKernelGradient };

struct Shape {
  Kind kind;
  ffi::DataType dtype;
  ffi::Span<const int64_t> x, kernel, y;
  int64_t strides, padding, groups;
  bool scaled = false, biased = false, added = false, relu = false;  // After a forward one.

  // In float32 the kernel takes the scale as it is reordered, and the convolution its own bias,
  // which every instruction set has kernels for; bfloat16 would round the kernel.
  bool folds() const { return dtype == ffi::DataType::F32 || !scaled; }

  std::string key() const {
    std::string key;
    append(key, kind, static_cast<int64_t>(dtype), x, kernel, y, strides, padding, groups);
    append(key, scaled, biased, added, relu);
    return key;
  }
};

struct Convolution {
  dnnl::primitive primitive, reorder;
  memory::desc x, kernel, y, given_kernel, vector, channels, scratchpad;
  bool reordered;
};

dnnl::primitive_attr attributes(const Shape& shape, const memory::desc& vector,
                                const memory::desc& y) {
  dnnl::primitive_attr attr;
  attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  dnnl::post_ops after;
  if (!shape.folds()) {
    after.append_binary(dnnl::algorithm::binary_mul, vector);
    after.append_binary(dnnl::algorithm::binary_add, vector);
  }
  if (shape.added) after.append_binary(dnnl::algorithm::binary_add, y);
  if (shape.relu) after.append_eltwise(dnnl::algorithm::eltwise_relu, 0, 0);
  attr.set_post_ops(after);
  return attr;
}

Convolution make(const Shape& shape) {
  using tag = memory::format_tag;
  const memory::data_type type = onednn_type(shape.dtype);
  const auto &x = shape.x, &k = shape.kernel, &y = shape.y;
  const int64_t groups = shape.groups;
  const Dims kernel = groups == 1 ? Dims{k[3], k[2], k[0], k[1]}
                                  : Dims{groups, k[3] / groups, k[2], k[0], k[1]};
  const Dims strides{shape.strides, shape.strides}, before{shape.padding, shape.padding};
  Dims after(2);
  for (int i = 0; i < 2; ++i) {
    after[i] = (y[1 + i] - 1) * shape.strides + k[i] - x[1 + i] - shape.padding;
  }
  Convolution made;
  made.x = memory::desc({x[0], x[3], x[1], x[2]}, type, tag::nhwc);
  made.y = memory::desc({y[0], y[3], y[1], y[2]}, type, tag::nhwc);
  made.given_kernel = memory::desc(kernel, type, groups == 1 ? tag::hwio : tag::hwigo);
  made.vector = memory::desc({1, y[3], 1, 1}, memory::data_type::f32, tag::nhwc);
  made.channels = memory::desc({y[3]}, memory::data_type::f32, tag::a);
  const memory::desc any(kernel, type, tag::any);
  const auto direct = dnnl::algorithm::convolution_direct;
  const auto attr = attributes(shape, made.vector, made.y);
  const dnnl::convolution_forward::primitive_desc forward(
      engine(), dnnl::prop_kind::forward_training, direct, made.x, any,
      shape.biased && shape.folds() ? made.channels : memory::desc(), made.y, strides, before,
      after, attr);
  const auto take = [&](const auto& descriptor, const memory::desc& kernel) {
    made.kernel = kernel;
    made.scratchpad = descriptor.scratchpad_desc();
  };
  if (shape.kind == kForward) {
    take(forward, forward.weights_desc());
    made.primitive = dnnl::convolution_forward(forward);
  } else if (shape.kind == kInputGradient) {
    const dnnl::convolution_backward_data::primitive_desc backward(
        engine(), direct, made.x, any, made.y, strides, before, after, forward, attr);
    take(backward, backward.weights_desc());
    made.primitive = dnnl::convolution_backward_data(backward);
  } else {
    const dnnl::convolution_backward_weights::primitive_desc backward(
        engine(), direct, made.x, any, made.y, strides, before, after, forward, attr);
    take(backward, backward.diff_weights_desc());
    made.primitive = dnnl::convolution_backward_weights(backward);
  }
  const bool scales = shape.scaled && shape.folds();
  made.reordered = scales || made.kernel != made.given_kernel;
  if (made.reordered) {
    const bool out = shape.kind == kKernelGradient;
    const auto &from = out ? made.kernel : made.given_kernel;
    const auto &to = out ? made.given_kernel : made.kernel;
    dnnl::primitive_attr scaling;
    if (scales) scaling.set_scales_mask(DNNL_ARG_SRC, groups == 1 ? 1 : 3);  // O, or G and O / G.
    made.reorder =
        dnnl::reorder(dnnl::reorder::primitive_desc(engine(), from, engine(), to, scaling));
  }
  return made;
}

Convolution& made(const Shape& shape) {
  static Cache<Convolution> cache(1024);
  return cache.get(shape.key(), [&] { return make(shape); });
}

struct Operands {
  void *x, *kernel, *y;
  void *scale = nullptr, *bias = nullptr, *addend = nullptr;
};

// What is computed from x, or backward from y's gradient.
Winograd winograd_of(const Shape& shape) {
  const auto &x = shape.x, &y = shape.y;
  if (shape.kind == kInputGradient) {
    const int64_t window = shape.kernel[0];
    return {y[0], y[1], y[2], y[3], x[1], x[2], x[3], window, window - 1 - shape.padding};
  }
  return {x[0], x[1], x[2], x[3], y[1], y[2], y[3], shape.kernel[0], shape.padding};
}

bool goes_by_winograd(const Shape& shape) {
  const bool fits = shape.dtype == ffi::DataType::F32 && shape.strides == 1 &&
                    shape.groups == 1 && shape.kernel[0] == shape.kernel[1];
  const Winograd winograd = winograd_of(shape);
  return fits && (shape.kind == kKernelGradient ? winograd_gradient_pays(winograd)
                                                : winograd_pays(winograd));
}

void run_winograd(const Shape& shape, const Operands& operands) {
  const Winograd winograd = winograd_of(shape);
  const auto x = static_cast<float*>(operands.x), kernel = static_cast<float*>(operands.kernel),
             y = static_cast<float*>(operands.y);
  const Affine after{static_cast<float*>(operands.scale), static_cast<float*>(operands.bias),
                     static_cast<float*>(operands.addend), shape.relu};
  switch (shape.kind) {
    case kForward: return winograd_convolve(winograd, x, kernel, false, after, y);
    case kInputGradient: return winograd_convolve(winograd, y, kernel, true, after, x);
    case kKernelGradient: return winograd_kernel_gradient(winograd, x, y, kernel);
  }
}

void run(const Shape& shape, const Operands& operands) {
  static Scratch kernel_scratch, scratch;
  if (shape.x[0] == 0) {
    if (shape.kind == kKernelGradient) {
      const auto& k = shape.kernel;
      const size_t size = shape.dtype == ffi::DataType::BF16 ? 2 : 4;
      std::fill_n(static_cast<char*>(operands.kernel), k[0] * k[1] * k[2] * k[3] * size, 0);
    }
    return;
  }
  if (goes_by_winograd(shape)) return run_winograd(shape, operands);
  Convolution& op = made(shape);
  const memory given(op.given_kernel, engine(), operands.kernel);
  const memory kernel =
      op.reordered ? memory(op.kernel, engine(), kernel_scratch.get<char>(op.kernel.get_size()))
                   : given;
  const bool out = shape.kind == kKernelGradient;
  const bool to_x = shape.kind == kInputGradient;
  std::unordered_map<int, memory> arguments{
      {to_x ? DNNL_ARG_DIFF_SRC : DNNL_ARG_SRC, memory(op.x, engine(), operands.x)},
      {out ? DNNL_ARG_DIFF_WEIGHTS : DNNL_ARG_WEIGHTS, kernel},
      {shape.kind == kForward ? DNNL_ARG_DST : DNNL_ARG_DIFF_DST,
       memory(op.y, engine(), operands.y)},
      {DNNL_ARG_SCRATCHPAD,
       memory(op.scratchpad, engine(), scratch.get<char>(op.scratchpad.get_size()))}};
  int index = 0;
  const auto after = [&](bool given, const memory::desc& desc, void* data) {
    if (!given) return;
    const int argument = DNNL_ARG_ATTR_MULTIPLE_POST_OP(index++) | DNNL_ARG_SRC_1;
    arguments.insert({argument, memory(desc, engine(), data)});
  };
  after(!shape.folds(), op.vector, operands.scale);
  after(!shape.folds(), op.vector, operands.bias);
  after(shape.added, op.y, operands.addend);
  if (shape.biased && shape.folds()) {
    arguments.insert({DNNL_ARG_BIAS, memory(op.channels, engine(), operands.bias)});
  }
  const auto reorder = [&](const memory& from, const memory& to) {
    if (!op.reordered) return;
    std::unordered_map<int, memory> moved{{DNNL_ARG_FROM, from}, {DNNL_ARG_TO, to}};
    if (shape.scaled && shape.folds()) {
      moved.insert({DNNL_ARG_ATTR_SCALES | DNNL_ARG_SRC,
                    memory(op.channels, engine(), operands.scale)});
    }
    op.reorder.execute(stream(), moved);
  };
  if (!out) reorder(given, kernel);
  op.primitive.execute(stream(), arguments);
  if (out) reorder(kernel, given);
  stream().wait();
}

using Buffer = ffi::AnyBuffer;
using Vector = ffi::Buffer<ffi::F32>;

ffi::Error forward(Buffer x, Buffer kernel, ffi::Result<Buffer> y, int64_t strides,
                   int64_t padding, int64_t groups) {
  return in_turn([&] {
    run({kForward, x.element_type(), x.dimensions(), kernel.dimensions(), y->dimensions(), strides,
         padding, groups},
        {x.untyped_data(), kernel.untyped_data(), y->untyped_data()});
  }, y);
}

// relu(convolution * scale + bias + addend); scale, addend and ReLU where they are wanted.
ffi::Error affine(Buffer x, Buffer kernel, Vector bias, ffi::RemainingArgs rest,
                  ffi::Result<Buffer> y, int64_t strides, int64_t padding, int64_t groups,
                  bool scaled, bool relu) {
  return in_turn([&] {
    Operands operands{x.untyped_data(), kernel.untyped_data(), y->untyped_data()};
    operands.bias = bias.untyped_data();
    size_t taken = 0;
    if (scaled) operands.scale = rest.get<Buffer>(taken++)->untyped_data();
    const bool added = rest.size() > taken;
    if (added) operands.addend = rest.get<Buffer>(taken)->untyped_data();
    run({kForward, x.element_type(), x.dimensions(), kernel.dimensions(), y->dimensions(), strides,
         padding, groups, scaled, true, added, relu},
        operands);
  }, y);
}

ffi::Error input_gradient(Buffer kernel, Buffer dy, ffi::Result<Buffer> dx, int64_t strides,
                          int64_t padding, int64_t groups) {
  return in_turn([&] {
    run({kInputGradient, dy.element_type(), dx->dimensions(), kernel.dimensions(), dy.dimensions(),
         strides, padding, groups},
        {dx->untyped_data(), kernel.untyped_data(), dy.untyped_data()});
  }, dx);
}

ffi::Error kernel_gradient(Buffer x, Buffer dy, ffi::Result<Buffer> dk, int64_t strides,
                           int64_t padding, int64_t groups) {
  return in_turn([&] {
    run({kKernelGradient, x.element_type(), x.dimensions(), dk->dimensions(), dy.dimensions(),
         strides, padding, groups},
        {x.untyped_data(), dk->untyped_data(), dy.untyped_data()});
  });
}

}  // namespace

#define GEOMETRY \
  Attr<int64_t>("strides").Attr<int64_t>("padding").Attr<int64_t>("groups")

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    flaxcls_convolution, forward,
    ffi::Ffi::Bind().Arg<Buffer>().Arg<Buffer>().Ret<Buffer>().GEOMETRY);
XLA_FFI_DEFINE_HANDLER_SYMBOL(flaxcls_affine_convolution, affine,
                              ffi::Ffi::Bind().Arg<Buffer>().Arg<Buffer>().Arg<Vector>()
                                  .RemainingArgs().Ret<Buffer>().GEOMETRY.Attr<bool>("scaled")
                                  .Attr<bool>("relu"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    flaxcls_convolution_input_gradient, input_gradient,
    ffi::Ffi::Bind().Arg<Buffer>().Arg<Buffer>().Ret<Buffer>().GEOMETRY);
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    flaxcls_convolution_kernel_gradient, kernel_gradient,
    ffi::Ffi::Bind().Arg<Buffer>().Arg<Buffer>().Ret<Buffer>().GEOMETRY);

}  // namespace flaxcls

// Returns whether oneDNN has a convolution: 0 or 1. Shapes are of four numbers; `after` has bits
// for scaled, biased, added and relu.
extern "C" int flaxcls_supports_convolution(int kind, int bfloat16, const int64_t* x,
                                            const int64_t* kernel, const int64_t* y,
                                            int64_t strides, int64_t padding, int64_t groups,
                                            int after) {
  using namespace flaxcls;
  const auto span = [](const int64_t* data) { return ffi::Span<const int64_t>(data, 4); };
  const auto dtype = bfloat16 ? ffi::DataType::BF16 : ffi::DataType::F32;
  const Shape shape{static_cast<Kind>(kind), dtype,   span(x), span(kernel), span(y), strides,
                    padding,                 groups,  bool(after & 1), bool(after & 2),
                    bool(after & 4),         bool(after & 8)};
  try {
    std::lock_guard<std::mutex> guard(turn());
    if (x[0] > 0 && !goes_by_winograd(shape)) made(shape);
    return 1;
  } catch (const std::exception&) {
    return 0;
  }
}
