// Float32 products of fewer multiplications, on vectors (lanes.h): seven for eight, by Winograd's form
// of Strassen's algorithm.
//
// Of quarters a of the left operand (rows by contraction), b of the right one and c of the result,
//   s1 = a21 + a22,  s2 = s1 - a11,  s3 = a11 - a21,  s4 = a12 - s2,
//   t1 = b12 - b11,  t2 = b22 - t1,  t3 = b22 - b12,  t4 = b21 - t2,
//   p = a11 b11,  u = p + s2 t2,  v = u + s3 t3,
//   c11 = p + a12 b21,  c12 = u + s1 t1 + s4 b22,  c21 = v + a22 t4,  c22 = v + s1 t1.
// Strassen 1969; Winograd 1971, as in Higham 2002, section 23.1.  Of each pair of neighbouring rows
// the first is in the upper quarters, the second in the lower ones, so that no row is mixed with
// one far away.  A quarter of the result is one block of lanes.h: it takes up one product after
// another in registers, and what has two uses goes to the first cache between them.
//
// Its error is bounded by the largest numbers of both operands, not by those of a row and a column.

#ifndef GUIDEDFLOW_STRASSEN_H_
#define GUIDEDFLOW_STRASSEN_H_

#include "units.h"

namespace guidedflow {

constexpr int64_t kProducts = 7;

// Numbers that one of the seven sums of a block takes, for `depth` of the contraction.
template <bool kRight>
inline int64_t SumNumbers(int64_t depth) {
  return BlockNumbers<kRight>((depth + 1) / 2);
}

// Writes vector `at` of the seven sums, `apart` numbers from one to the next, in the order in which they
// are multiplied.  x is of the quarters, by half of the rows and half of the contraction.
template <bool kRight>
[[gnu::always_inline]] inline void StoreSums(const Vector (&x)[2][2], int64_t apart, float* at) {
  Vector sums[kProducts];
  if (kRight) {
    const Vector t1 = x[1][0] - x[0][0], t2 = x[1][1] - t1;
    const Vector all[] = {x[0][0], t2, x[1][1] - x[1][0], x[0][1] - t2, t1, x[1][1], x[0][1]};
    std::memcpy(sums, all, sizeof(all));
  } else {
    const Vector s1 = x[1][0] + x[1][1], s2 = s1 - x[0][0];
    const Vector all[] = {x[0][0], s2, x[0][0] - x[1][0], x[1][1], s1, x[0][1] - s2, x[0][1]};
    std::memcpy(sums, all, sizeof(all));
  }
#pragma GCC unroll 7
  for (int64_t p = 0; p < kProducts; ++p) Store(sums[p], at + p * apart);
}

// Packs one chunk of a block whose rows lie after one another in memory at each step.
template <bool kRight>
inline void PackSumsAlong(const Operand& from, int64_t apart, float* to) {
  constexpr int64_t side = kSide<kRight>;
  constexpr int64_t together = !kRight && 2 * side <= kLanes ? 2 : 1;  // steps in a vector
  const int64_t half = (from.depth + 1) / 2;
  for (int64_t k = 0; k < half; k += together, to += together * side)
    for (int64_t j = 0; j < side; j += kLanes) {
      Vector x[2][2];
#pragma GCC unroll 2
      for (int64_t second = 0; second < 2; ++second) {
        const auto load = [&](int64_t step, int64_t row) {
          step += second * half;
          if (step >= from.depth) return Vector{};
          return Load(from.data + step * from.column + row, from.rows - row);
        };
#pragma GCC unroll 2
        for (int64_t lower = 0; lower < 2; ++lower) {
          if (kRight) {
            x[lower][second] = load(k, lower * side + j);
          } else {
            const Vector rest = together == 2 ? load(k + 1, 0) : load(k, kLanes);
            x[lower][second] = EverySecond(load(k, 0), rest, lower);
          }
        }
      }
      StoreSums<kRight>(x, apart, to + j);
    }
}

// Packs one chunk of a block whose steps lie after one another in memory, kLanes of either half at once.
template <bool kRight>
inline void PackSumsAcross(const Operand& from, int64_t apart, float* to) {
  constexpr int64_t side = 2 * kSide<kRight>, whole = RoundUp(side, kLanes);
  alignas(64) float lines[2 * kLanes * side + kLanes];
  const int64_t half = (from.depth + 1) / 2;
  for (int64_t k = 0; k < half; k += kLanes) {
    const int64_t count = std::min(kLanes, half - k);
    const int64_t others = std::min(count, from.depth - half - k);
    PackAcross<side>(from.data + k, from.row, from.rows, count, lines);
    PackAcross<side>(from.data + half + k, from.row, from.rows, others, lines + count * side);
    PackSumsAlong<kRight>({lines, whole, count + others, 1, side}, apart, to + k * side / 2);
  }
}

// See Plain of product.cc.
struct Strassen {
  static constexpr int64_t kTall = 2 * guidedflow::kTall;
  static constexpr int64_t kWide = 2 * guidedflow::kWide;

  // Whether what it saves is more than what packing seven sums takes.
  static bool Gains(int64_t rows, int64_t columns, int64_t depth) {
    return std::min(rows, columns) >= 128 && depth >= 64;
  }

  template <bool kRight>
  static int64_t BlockNumbers(int64_t depth) {
    return kProducts * SumNumbers<kRight>(depth);
  }

  template <bool kRight>
  static void PackBlocks(const Operand& from, int64_t count, float* to) {
    const int64_t apart = SumNumbers<kRight>(from.depth);
    for (int64_t b = 0; b < count; ++b, to += kProducts * apart) {
      const int64_t begin = 2 * b * kSide<kRight>;
      const Operand block = from.Rows(begin, from.rows - begin);
      if (from.column == 1) {
        PackSumsAcross<kRight>(block, apart, to);
      } else {
        PackSumsAlong<kRight>(block, apart, to);
      }
    }
  }

  // Not inline: see MultiplyBlock of lanes.h.
  [[gnu::noinline]] static void MultiplyBlock(const float* left, const float* right, int64_t depth,
                                              bool begins, float* to, int64_t width) {
    constexpr int64_t wide = guidedflow::kWide, numbers = guidedflow::kTall * wide;
    alignas(64) float p[numbers], u[numbers], v[numbers];
    float *const c11 = to, *const c12 = to + wide, *const c21 = to + width, *const c22 = c21 + wide;
    const int64_t left_apart = SumNumbers<false>(depth), right_apart = SumNumbers<true>(depth);
    const int64_t apart = 2 * width;  // rows of a quarter
    Sums sums = {};
    const auto accumulate = [&]() __attribute__((always_inline)) {
      Accumulate(left, right, (depth + 1) / 2, sums);
      left += left_apart;
      right += right_apart;
    };
    accumulate();
    Add(sums, true, p, wide);
    accumulate();
    Add(sums, true, u, wide);
    accumulate();
    Add(sums, true, v, wide);
    Prefetch(c21, apart);
    accumulate();
    Add(sums, begins, c21, apart);
    ForEachSum(sums, [](Vector& sum, int64_t, int64_t) { sum = Vector{}; });
    Prefetch(c22, apart);
    accumulate();
    ForEachSum(sums, [&](Vector& sum, int64_t i, int64_t j) {
      float* at = c22 + i * apart + j;
      const Vector whole = sum + Load(v + i * wide + j);
      Store(begins ? whole : whole + Load(at), at);
      sum += Load(u + i * wide + j);
    });
    Prefetch(c12, apart);
    accumulate();
    Add(sums, begins, c12, apart);
    ForEachSum(sums, [&](Vector& sum, int64_t i, int64_t j) { sum = Load(p + i * wide + j); });
    Prefetch(c11, apart);
    accumulate();
    Add(sums, begins, c11, apart);
  }
};

}  // namespace guidedflow

#endif  // GUIDEDFLOW_STRASSEN_H_
