// Memory of a thread that lives as long as the thread: allocated once, so that no call pays for fresh pages.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <new>

namespace condconv {

class Scratch {
 public:
  ~Scratch() { std::free(data_); }

  // At least `count` floats at a multiple of 64 bytes, contents undefined; valid until the next call of this object.
  float* floats(size_t count) {
    if (count > capacity_) {
      std::free(data_);
      capacity_ = 0;
      data_ = static_cast<float*>(std::aligned_alloc(64, (count * sizeof(float) + 63) / 64 * 64));
      if (data_ == nullptr) throw std::bad_alloc();
      capacity_ = count;
    }
    return data_;
  }

 private:
  float* data_ = nullptr;
  size_t capacity_ = 0;
};

}  // namespace condconv
