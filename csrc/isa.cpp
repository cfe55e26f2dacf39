#include "isa.h"

#include <cstdlib>
#include <string_view>

#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace condconv {

#if defined(__x86_64__)
// Whether the CPU has AMX and the kernel lets this process use it: the state of its registers is large, so it must be asked.
static bool amx_permitted() {
#if defined(__linux__)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILE_DATA
  return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

static const Kernels* choose() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const char* variable = std::getenv("CONDCONV_ISA");
  const std::string_view wish = variable ? variable : "";
  if (wish == "none") return nullptr;
  if (avx512 && wish != "avx2" && wish != "avx512" && amx_permitted()) {
    static Kernels amx = avx512_kernels;
    amx.name = "amx", amx.gemm_bf16 = amx_gemm;
    return &amx;
  }
  if (avx512 && wish != "avx2") return &avx512_kernels;
  if (avx2) return &avx2_kernels;
#endif
  return nullptr;
}

const Kernels* kernels() {
  static const Kernels* const chosen = choose();
  return chosen;
}

}  // namespace condconv
