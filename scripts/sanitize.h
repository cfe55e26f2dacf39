// Included before every source of a sanitized build: AddressSanitizer does not see what masked instructions and AMX read
// and write, for to the compiler they are no loads and stores. Here they are asked about first.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#include <sanitizer/asan_interface.h>

namespace sanitize {

// Reads the first byte of these that is out of bounds, which AddressSanitizer reports.
inline void bytes(const void* from, size_t count) {
  void* start = const_cast<void*>(from);
  if (count > 0 && __asan_region_is_poisoned(start, count)) {
    (void)*static_cast<volatile char*>(__asan_region_is_poisoned(start, count));
  }
}

// The rows of a tile register, as it is configured now.
__attribute__((target("amx-tile"))) inline void tile(int index, const void* from, int64_t stride) {
  alignas(64) unsigned char config[64];
  __asm__ volatile("sttilecfg %0" : "=m"(config));
  const size_t row_bytes = config[16 + 2 * index] + 256 * config[17 + 2 * index];
  for (int r = 0; r < config[48 + index]; r++) bytes(static_cast<const char*>(from) + r * stride, row_bytes);
}

template <class Mask>
const void* masked(const void* from, Mask mask) {  // of 16-bit numbers
  for (int i = 0; i < static_cast<int>(8 * sizeof mask); i++)
    if (mask >> i & 1) bytes(static_cast<const short*>(from) + i, sizeof(short));
  return from;
}

}  // namespace sanitize

#undef _tile_loadd
#undef _tile_stored
#define _tile_loadd(index, from, stride) \
  do {                                   \
    sanitize::tile(index, from, stride); \
    _tile_loadd_internal(index, from, stride); \
  } while (0)
#define _tile_stored(index, to, stride) \
  do {                                  \
    sanitize::tile(index, to, stride);  \
    _tile_stored_internal(index, to, stride); \
  } while (0)
#define _mm512_maskz_loadu_epi16(mask, from) \
  _mm512_maskz_loadu_epi16(mask, sanitize::masked(from, mask))
#define _mm256_mask_storeu_epi16(to, mask, v) \
  _mm256_mask_storeu_epi16(const_cast<void*>(sanitize::masked(to, mask)), mask, v)
#endif
