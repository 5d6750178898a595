// Registers of 16 float32 and of integers, in the words of the processor this is compiled for; bf16;
// memory on huge pages.
//
// Every word gives the same bits on every processor, so that what is written with them does, too.

#pragma once

#include <immintrin.h>
#include <sys/mman.h>

#include <cstdint>
#include <cstring>
#include <vector>

namespace native {

using bf16 = uint16_t;

constexpr int kLanes = 16;        // float32 lanes of a register

inline int bits_of(const void* from) {
  int bits;
  std::memcpy(&bits, from, 4);
  return bits;
}

inline float bf16_to_float(bf16 value) {
  const uint32_t bits = (uint32_t)value << 16;
  float result;
  std::memcpy(&result, &bits, 4);
  return result;
}

inline bf16 float_to_bf16(float value) {  // round to nearest even, as the instruction does
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if ((bits & 0x7fffffff) > 0x7f800000) return (bf16)((bits >> 16) | 0x40);
  bits += 0x7fff + ((bits >> 16) & 1);
  return (bf16)(bits >> 16);
}

inline void prefetch(const void* address) { _mm_prefetch((const char*)address, _MM_HINT_T0); }

}  // namespace native

#ifdef __AVX512F__
#include "simd_avx512.h"
#else
#include "simd_avx2.h"
#endif

namespace native {

// e^x to about 1e-7 relative (range reduction to 2^n * e^r, Taylor to degree 6).
inline Floats exp(Floats x) {
  x = larger(x, all(-87.3f));
  const Floats n = rounded(x * all(1.44269504f));
  Floats r = subtract_product(x, n, all(0.693359375f));
  r = subtract_product(r, n, all(-2.12194440e-4f));
  Floats p = all(1.0f / 720);
  p = add_product(all(1.0f / 120), p, r);
  p = add_product(all(1.0f / 24), p, r);
  p = add_product(all(1.0f / 6), p, r);
  p = add_product(all(0.5f), p, r);
  p = add_product(all(1.0f), p, r);
  p = add_product(all(1.0f), p, r);
  return times_power_of_two(p, n);
}

inline Floats silu(Floats x) { return x / (all(1.0f) + exp(zeros() - x)); }

template <typename T>
void grow(std::vector<T>& buffer, int64_t size) {
  if ((int64_t)buffer.size() < size) buffer.resize(size);
}

// Memory on huge pages: weights and KV cache are read from end to end.
inline void* allocate(size_t num_bytes) {
  void* memory = mmap(nullptr, num_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return nullptr;
  madvise(memory, num_bytes, MADV_HUGEPAGE);
  return memory;
}

}  // namespace native
