// Vectors of float32 as wide as the processor's registers.

#ifndef GUIDEDFLOW_VECTORS_H_
#define GUIDEDFLOW_VECTORS_H_

#include <immintrin.h>

#include <cstdint>
#include <cstring>
#include <initializer_list>

namespace guidedflow {

#ifdef __AVX512F__
constexpr int64_t kLanes = 16;
#else
constexpr int64_t kLanes = 8;
#endif

using Vector = float __attribute__((vector_size(4 * kLanes)));
using Integers = int32_t __attribute__((vector_size(4 * kLanes)));

// `x` in every lane.
inline Vector Every(float x) { return x - Vector{}; }

inline Vector Load(const float* from) {
  Vector values;
  std::memcpy(&values, from, sizeof(values));
  return values;
}
inline void Store(Vector values, float* to) { std::memcpy(to, &values, sizeof(values)); }

// The first `count` numbers, and 0 in what lanes are left; touches no others.
inline Vector Load(const float* from, int64_t count) {
  if (count >= kLanes) return Load(from);
  Vector values = {};
  for (int64_t i = 0; i < count; ++i) values[i] = from[i];
  return values;
}
inline void Store(Vector values, float* to, int64_t count) {
  if (count >= kLanes) return Store(values, to);
  for (int64_t i = 0; i < count; ++i) to[i] = values[i];
}

inline Vector Larger(Vector x, Vector y) { return x < y ? y : x; }

// Half by half: one lane after another, each addition would wait for the one before.
inline float Sum(Vector x) {
#ifdef __AVX512F__
  return _mm512_reduce_add_ps(x);
#else
  const __m256 all = x;
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
#endif
}
inline float Largest(Vector x) {
  float largest = x[0];
  for (int64_t i = 1; i < kLanes; ++i) largest = x[i] > largest ? x[i] : largest;
  return largest;
}

// e^x to float32's rounding for x <= 88: x = n log 2 + r, |r| <= log(2) / 2, and the series of e^r.
// Below 1e-38 it is 0.
inline Vector Exp(Vector x) {
  x = Larger(x, Every(-88.0f));  // NaN stays
  // Adding 3 * 2^22 leaves no bits behind the point.
  const Vector n = (x * 1.44269504f + 12582912.0f) - 12582912.0f;
  // log 2 in two parts, the first of few enough bits to be multiplied exactly.
  const Vector r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Vector sum = Every(1.0f / 5040);
  for (const float term : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f})
    sum = sum * r + term;
  const Integers exponent = (__builtin_convertvector(n, Integers) + 127) << 23;
  Vector power;
  std::memcpy(&power, &exponent, sizeof(power));
  return sum * power;
}

// x / (1 + e^(-2 u)), u = sqrt(2 / pi) (x + 0.044715 x^3): the hyperbolic-tangent form of GELU,
// Hendrycks & Gimpel 2016, section 2, with 1 + tanh u = 2 / (1 + e^(-2 u)).  Below -10 it is that of
// -10, -1e-37.
inline Vector Gelu(Vector x) {
  x = Larger(x, Every(-10.0f));  // NaN stays
  return x / (1.0f + Exp(-1.59576912f * x * (1.0f + 0.044715f * x * x)));
}

// Of the numbers of `x` and then of `y`, every second one: from the first on, or from the second.
inline Vector EverySecond(Vector x, Vector y, bool from_second) {
#ifdef __AVX512F__
  const __m512i places =
      _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
  return _mm512_permutex2var_ps(x, _mm512_add_epi32(places, _mm512_set1_epi32(from_second)), y);
#else
  const __m256 mixed = from_second ? _mm256_shuffle_ps(x, y, 0xdd) : _mm256_shuffle_ps(x, y, 0x88);
  return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(mixed), 0xd8));
#endif
}

// Transposes kLanes by kLanes numbers in registers: exchanges halves, quarters and so on.
#ifdef __AVX512F__
inline void Transpose(Vector lines[kLanes]) {
  const __m512i count = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
#pragma GCC unroll 4
  for (int distance = kLanes / 2; distance > 0; distance /= 2) {
    const __m512i far = _mm512_set1_epi32(distance);
    const __mmask16 second = _mm512_test_epi32_mask(count, far);
    // Numbers of the second line are asked for by 16 more than their place.
    const __m512i across = _mm512_set1_epi32(kLanes - distance);
    const __m512i upper = _mm512_mask_add_epi32(count, second, count, across);
    const __m512i lower = _mm512_add_epi32(upper, far);
#pragma GCC unroll 16
    for (int64_t i = 0; i < kLanes; ++i) {
      if (i & distance) continue;
      const __m512 a = lines[i], b = lines[i + distance];
      lines[i] = _mm512_permutex2var_ps(a, upper, b);
      lines[i + distance] = _mm512_permutex2var_ps(a, lower, b);
    }
  }
}
#else
inline void Transpose(Vector lines[kLanes]) {
#pragma GCC unroll 8
  for (int64_t i = 0; i < 4; ++i) {
    const __m256 a = lines[i], b = lines[i + 4];
    lines[i] = _mm256_permute2f128_ps(a, b, 0x20);
    lines[i + 4] = _mm256_permute2f128_ps(a, b, 0x31);
  }
#pragma GCC unroll 8
  for (int64_t i = 0; i < kLanes; i += 4) {
    const __m256 low = _mm256_unpacklo_ps(lines[i], lines[i + 1]);
    const __m256 high = _mm256_unpackhi_ps(lines[i], lines[i + 1]);
    const __m256 other_low = _mm256_unpacklo_ps(lines[i + 2], lines[i + 3]);
    const __m256 other_high = _mm256_unpackhi_ps(lines[i + 2], lines[i + 3]);
    lines[i] = _mm256_shuffle_ps(low, other_low, 0x44);
    lines[i + 1] = _mm256_shuffle_ps(low, other_low, 0xee);
    lines[i + 2] = _mm256_shuffle_ps(high, other_high, 0x44);
    lines[i + 3] = _mm256_shuffle_ps(high, other_high, 0xee);
  }
}
#endif

}  // namespace guidedflow

#endif  // GUIDEDFLOW_VECTORS_H_
