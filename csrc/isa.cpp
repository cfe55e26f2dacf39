#include "isa.h"

#include <cstdlib>
#include <cstring>

namespace condconv {

static const Kernels* choose() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const char* wish = std::getenv("CONDCONV_ISA");
  if (wish != nullptr && std::strcmp(wish, "none") == 0) return nullptr;
  if (avx512 && (wish == nullptr || std::strcmp(wish, "avx2") != 0)) return &avx512_kernels;
  if (avx2) return &avx2_kernels;
#endif
  return nullptr;
}

const Kernels* kernels() {
  static const Kernels* const chosen = choose();
  return chosen;
}

}  // namespace condconv
