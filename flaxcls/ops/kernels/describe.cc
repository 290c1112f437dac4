// What kernels there are and what they run on, for a person and for the record of a run.

#include "common.h"
#include "onednn.h"

namespace {

const char* instruction_set() {
  switch (dnnl::get_effective_cpu_isa()) {
    case dnnl::cpu_isa::sse41: return "SSE4.1";
    case dnnl::cpu_isa::avx: return "AVX";
    case dnnl::cpu_isa::avx2: return "AVX2";
    case dnnl::cpu_isa::avx2_vnni: return "AVX2 VNNI";
    case dnnl::cpu_isa::avx512_core: return "AVX-512";
    case dnnl::cpu_isa::avx512_core_vnni: return "AVX-512 VNNI";
    case dnnl::cpu_isa::avx512_core_bf16: return "AVX-512 bfloat16";
    case dnnl::cpu_isa::avx512_core_fp16: return "AVX-512 float16";
    case dnnl::cpu_isa::avx512_core_amx: return "AVX-512 AMX";
    case dnnl::cpu_isa::avx512_core_amx_fp16: return "AVX-512 AMX float16";
    default: return "no vector instructions";
  }
}

}  // namespace

// Returns a line such as "oneDNN 3.2.0, AVX-512, 2 threads".
extern "C" const char* flaxcls_describe() {
  static const std::string line = [] {
    const dnnl_version_t* version = dnnl_version();
    return "oneDNN " + std::to_string(version->major) + "." + std::to_string(version->minor) +
           "." + std::to_string(version->patch) + ", " + instruction_set() + ", " +
           std::to_string(flaxcls::threads()) + " threads";
  }();
  return line.c_str();
}

// Returns the version of jaxlib whose headers these were compiled with.
extern "C" const char* flaxcls_jaxlib() { return FLAXCLS_JAXLIB; }
