// Pairs of bf16 times pairs of activations: what matrix products and attention are made of.
//
// With BF16 instructions activations are bf16, too, and VDPBF16PS multiplies and adds a pair in one
// lane. Elsewhere activations stay float32 and the bf16 are widened in registers: every product is
// rounded once, together with the sum, the first of a pair before the second.

#pragma once

#include "simd.h"

namespace native {

#ifdef __AVX512BF16__

using Activation = bf16;
using Pairs = __m512bh;  // 16 pairs, one in each lane

inline __m512bh as_bh(__m512i bits) { return (__m512bh)bits; }
inline Pairs load_pairs(const bf16* from) { return as_bh(_mm512_loadu_si512(from)); }

// sums += pairs x the same two activations in every lane.
inline Floats add_pairs(Floats sums, Pairs pairs, const bf16* two) {
  return _mm512_dpbf16_ps(sums, pairs, as_bh(_mm512_set1_epi32(bits_of(two))));
}

inline void store(bf16* to, Floats x) {  // rounded to nearest even
  _mm256_storeu_si256((__m256i*)to, (__m256i)_mm512_cvtneps_pbh(x));
}

// Float32 factors of pairs, each as the sum of two bf16: nearly exact.
template <int N>
class Factors {
 public:
  void set(int first, Floats x) {
    store(high_ + first, x);
    store(low_ + first, x - load(high_ + first));
  }

  Floats add_pairs(Floats sums, Pairs pairs, int first) const {
    return native::add_pairs(native::add_pairs(sums, pairs, high_ + first), pairs, low_ + first);
  }

 private:
  alignas(64) bf16 high_[N], low_[N];
};

#else

using Activation = float;

struct Pairs {
  Floats first, second;
};

inline Pairs load_pairs(const bf16* from) { return {load_firsts(from), load_seconds(from)}; }

inline Floats add_pairs(Floats sums, Pairs pairs, const float* two) {
  return add_product(add_product(sums, pairs.first, all(two[0])), pairs.second, all(two[1]));
}

template <int N>
class Factors {
 public:
  void set(int first, Floats x) { store(values_ + first, x); }

  Floats add_pairs(Floats sums, Pairs pairs, int first) const {
    return native::add_pairs(sums, pairs, values_ + first);
  }

 private:
  alignas(64) float values_[N];
};

#endif

}  // namespace native
