// oneDNN's engine and stream: one of each, since kernels take turns.

#pragma once

#include <stdexcept>

#include "dnnl.hpp"
#include "xla/ffi/api/ffi.h"

namespace flaxcls {

inline dnnl::engine& engine() {
  static dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

inline dnnl::stream& stream() {
  static dnnl::stream stream(engine());
  return stream;
}

inline dnnl::memory::data_type onednn_type(xla::ffi::DataType dtype) {
  switch (dtype) {
    case xla::ffi::DataType::F32: return dnnl::memory::data_type::f32;
    case xla::ffi::DataType::BF16: return dnnl::memory::data_type::bf16;
    default: throw std::invalid_argument("only float32 and bfloat16 have kernels");
  }
}

}  // namespace flaxcls
