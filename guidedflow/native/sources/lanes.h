// Float32 products by fused multiply-add on vectors (AVX2, AVX-512).  See units.h.
//
// A block of the result stays in registers while both operands pass by: packed, so that at each step
// of the contraction the numbers of a block's rows, and of its columns, lie after one another.

#ifndef GUIDEDFLOW_LANES_H_
#define GUIDEDFLOW_LANES_H_

#include "operands.h"
#include "vectors.h"

namespace guidedflow {

using Number = float;

constexpr int64_t kVectors = 2;  // of a block's row
// Of 16 registers, what a row's vectors and the number that multiplies them leave; of 32, fewer than 14,
// which leave more of the last block empty and are no faster.
constexpr int64_t kTall = kLanes == 16 ? 8 : 6;
constexpr int64_t kWide = kVectors * kLanes;
constexpr int64_t kChunk = 384;     // of a right block: three quarters of the first cache, at most
constexpr int64_t kCacheBytes = 3 << 16;  // three eighths of a small second cache
constexpr int64_t kLeastTurns = 8;

struct InUse {};

inline bool Permitted() { return true; }

// Packing writes whole vectors: the last one of a left block may reach beyond its rows.
template <bool kRight>
inline int64_t BlockNumbers(int64_t depth) {
  return kRight ? kWide * depth : RoundUp(kTall * depth + kLanes, kLanes);
}

// Packs one block whose `side` numbers of each step lie after one another in memory.
template <int64_t side>
inline void PackLines(const float* from, int64_t column, int64_t rows, int64_t depth, float* to) {
  for (int64_t k = 0; k < depth; ++k, from += column, to += side)
    for (int64_t j = 0; j < side; j += kLanes) Store(Load(from + j, rows - j), to + j);
}

// Packs one block whose steps lie after one another in memory, kLanes of them at once.  What a vector
// writes beyond its step's rows is written over.
template <int64_t side>
inline void PackAcross(const float* from, int64_t row, int64_t rows, int64_t depth, float* to) {
  for (int64_t k = 0; k < depth; k += kLanes)
    for (int64_t j = (side - 1) / kLanes * kLanes; j >= 0; j -= kLanes) {
      Vector lines[kLanes];
#pragma GCC unroll 16
      for (int64_t i = 0; i < kLanes; ++i) {
        const float* at = from + (j + i) * row + k;
        __builtin_prefetch(at + kLanes);
        lines[i] = j + i < rows && j + i < side ? Load(at, depth - k) : Vector{};
      }
      Transpose(lines);
#pragma GCC unroll 16
      for (int64_t i = 0; i < kLanes; ++i)
        if (k + i < depth) Store(lines[i], to + (k + i) * side + j);
    }
}

// Packs `count` blocks from row `begin`.
template <bool kRight>
inline void PackBlocks(const Operand& from, int64_t begin, int64_t count, float* to) {
  constexpr int64_t side = kRight ? kWide : kTall;
  for (int64_t b = 0; b < count; ++b, begin += side, to += BlockNumbers<kRight>(from.depth)) {
    const float* data = from.data + begin * from.row;
    const int64_t rows = from.rows - begin;
    if (from.column == 1) {
      PackAcross<side>(data, from.row, rows, from.depth, to);
    } else {
      PackLines<side>(data, from.column, rows, from.depth, to);
    }
  }
}

// A block of the result.
using Sums = Vector[kTall][kVectors];

// Does step(sum, row, column) for every vector of a block.
template <typename Step>
[[gnu::always_inline]] inline void ForEachSum(Sums& sums, Step step) {
#pragma GCC unroll 16
  for (int64_t i = 0; i < kTall; ++i)
#pragma GCC unroll 4
    for (int64_t j = 0; j < kVectors; ++j) step(sums[i][j], i, j * kLanes);
}

// Adds the product of `depth` steps of two packed blocks.
[[gnu::always_inline]] inline void Accumulate(const float* left, const float* right, int64_t depth,
                                              Sums& sums) {
  for (int64_t k = 0; k < depth; ++k, left += kTall, right += kWide) {
    Vector columns[kVectors];
#pragma GCC unroll 4
    for (int64_t j = 0; j < kVectors; ++j) {
      columns[j] = Load(right + j * kLanes);
      asm("" : "+v"(columns[j]));  // read once, not again by each of its products
    }
#pragma GCC unroll 16
    for (int64_t i = 0; i < kTall; ++i) {
      const Vector number = Every(left[i]);
#pragma GCC unroll 4
      for (int64_t j = 0; j < kVectors; ++j) sums[i][j] += number * columns[j];
    }
  }
}

// Adds a block to the numbers at `to`, whose rows are `width` numbers apart; or begins them.
[[gnu::always_inline]] inline void Add(Sums& sums, bool begins, float* to, int64_t width) {
  ForEachSum(sums, [&](Vector& sum, int64_t i, int64_t j) {
    float* at = to + i * width + j;
    Store(begins ? sum : sum + Load(at), at);
  });
}

// Asks for where a block will be added, while it is computed.
[[gnu::always_inline]] inline void Prefetch(const float* to, int64_t width) {
#pragma GCC unroll 16
  for (int64_t i = 0; i < kTall; ++i) __builtin_prefetch(to + i * width, 1);
}

// Adds the product of `depth` steps of two packed blocks to the numbers at `to`, whose rows are `width`
// numbers apart; or begins them.  Not inline: alone, the compiler keeps its sums in registers.
[[gnu::noinline]] static void MultiplyBlock(const float* left, const float* right, int64_t depth,
                                            bool begins, float* to, int64_t width) {
  Prefetch(to, width);
  Sums sums = {};
  Accumulate(left, right, depth, sums);
  Add(sums, begins, to, width);
}

}  // namespace guidedflow

#endif  // GUIDEDFLOW_LANES_H_
