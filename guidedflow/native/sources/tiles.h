// Float32 products on the matrix units (AMX) of x86-64 processors.  See units.h.
//
// The units multiply bfloat16 and add in float32.  A float32 is the sum of three bfloat16 of falling
// size, a = a0 + a1 + a2, so that of the nine products of parts the six largest,
// a0 b0 + a1 b0 + a2 b0 + a0 b1 + a1 b1 + a0 b2, give what a float32 product gives, to its rounding.
//
// Both operands are first packed: panels of 16 rows (of the result's rows, or of its columns), cut
// along the contraction into tiles of 32, the three parts of a tile after one another.

#ifndef GUIDEDFLOW_TILES_H_
#define GUIDEDFLOW_TILES_H_

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "operands.h"
#include "vectors.h"

namespace guidedflow {

using Half = uint16_t;
using Number = Half;

constexpr int64_t kParts = 3;
constexpr int64_t kRows = 16;                       // of a tile, and its columns of 4 bytes
constexpr int64_t kDepth = 32;                      // numbers in a row of a tile
constexpr int64_t kTile = kParts * kRows * kDepth;  // halves a tile takes with all its parts
constexpr int64_t kTall = 2 * kRows;
constexpr int64_t kWide = 2 * kRows;
constexpr int64_t kChunk = 16 * kDepth;
constexpr int64_t kCacheBytes = 1 << 20;  // half a core's second cache
constexpr int64_t kLeastTurns = 1;        // more would fetch the other operand too often

// Halves of a panel whose rows hold `depth` numbers.
inline int64_t Panel(int64_t depth) { return RoundUp(depth, kDepth) / kDepth * kTile; }

// A block is two panels.
template <bool kRight>
inline int64_t BlockNumbers(int64_t depth) {
  return 2 * Panel(depth);
}

// A process asks the kernel once before it may use the units' registers.
inline bool Permitted() {
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

// ---- packing ----

inline __mmask16 First(int64_t count) {
  return count >= kRows ? 0xffff : count <= 0 ? 0 : static_cast<__mmask16>((1u << count) - 1);
}

// What is left of 16 numbers without the bfloat16 nearest to each.
inline __m512 Remainder(__m512 values, __m256i halves) {
  const __m512i bits = _mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16);
  return _mm512_sub_ps(values, _mm512_castsi512_ps(bits));
}

// The parts of 32 numbers, the 16 of `low` before those of `high`.
inline void Split(__m512 low, __m512 high, __m512i parts[kParts]) {
  for (int64_t p = 0; p < kParts; ++p) {
    parts[p] = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
    low = Remainder(low, _mm512_castsi512_si256(parts[p]));
    high = Remainder(high, _mm512_extracti64x4_epi64(parts[p], 1));
  }
}

// Packs the tile that starts at (i, k).  Its rows are the operand's for the left one; for the right
// one they are pairs of neighbours along the contraction, its columns the operand's rows.
template <bool kRight>
inline void PackTile(const Operand& from, int64_t i, int64_t k, Half* to) {
  const float* at = from.data + i * from.row + k * from.column;
  const int64_t rows = from.rows - i, depth = from.depth - k;
  const bool along_depth = from.column == 1;
  const bool transposes = along_depth == kRight;
  const __m512i pairs = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,
                                         23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  alignas(64) uint32_t scratch[kParts][kRows * kRows];
  for (int64_t line = 0; line < kRows; ++line) {
    __m512i parts[kParts];
    if (along_depth) {
      const float* values = at + line * from.row;
      const int64_t count = line < rows ? depth : 0;
      Split(_mm512_maskz_loadu_ps(First(count), values),
            _mm512_maskz_loadu_ps(First(count - kRows), values + kRows), parts);
    } else {
      const float* values = at + 2 * line * from.column;
      const __mmask16 mask = First(rows);
      Split(_mm512_maskz_loadu_ps(2 * line < depth ? mask : 0, values),
            _mm512_maskz_loadu_ps(2 * line + 1 < depth ? mask : 0, values + from.column), parts);
      for (__m512i& part : parts) part = _mm512_permutexvar_epi16(pairs, part);
    }
    for (int64_t p = 0; p < kParts; ++p) {
      uint32_t* tile = transposes ? scratch[p] : reinterpret_cast<uint32_t*>(to) + p * kRows * kRows;
      _mm512_store_si512(tile + line * kRows, parts[p]);
    }
  }
  if (!transposes) return;
  for (int64_t p = 0; p < kParts; ++p) {
    Vector lines[kRows];
    std::memcpy(lines, scratch[p], sizeof(lines));
    Transpose(lines);
    std::memcpy(to + 2 * p * kRows * kRows, lines, sizeof(lines));
  }
}

// Packs `count` panels from row i, `panel` halves apart, in the order in which memory lies.
template <bool kRight>
inline void PackPanels(const Operand& from, int64_t i, int64_t count, int64_t panel, Half* to) {
  const auto pack = [&](int64_t p, int64_t k) {
    PackTile<kRight>(from, i + p * kRows, k, to + p * panel + k / kDepth * kTile);
  };
  if (from.column == 1) {
    for (int64_t p = 0; p < count; ++p)
      for (int64_t k = 0; k < from.depth; k += kDepth) pack(p, k);
  } else {
    for (int64_t k = 0; k < from.depth; k += kDepth)
      for (int64_t p = 0; p < count; ++p) pack(p, k);
  }
}

template <bool kRight>
inline void PackBlocks(const Operand& from, int64_t begin, int64_t count, Half* to) {
  PackPanels<kRight>(from, begin, 2 * count, Panel(from.depth), to);
}

// ---- multiplying ----

// The units' eight registers, 16 rows of 64 bytes each, for as long as this lives.
class InUse {
 public:
  InUse() {
    // Static: GCC takes the instruction to read no more than a pointer's size.
    static constexpr Config config;
    _tile_loadconfig(&config);
  }
  ~InUse() { _tile_release(); }
  InUse(const InUse&) = delete;
  InUse& operator=(const InUse&) = delete;

 private:
  struct alignas(64) Config {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  };
};

#define LOAD_LEFT(part)                                       \
  _tile_loadd(4, left + (part) * kRows * kDepth, 64);         \
  _tile_loadd(5, left + panel + (part) * kRows * kDepth, 64)
#define LOAD_RIGHT(part)                                      \
  _tile_loadd(6, right + (part) * kRows * kDepth, 64);        \
  _tile_loadd(7, right + panel + (part) * kRows * kDepth, 64)
#define MULTIPLY()        \
  _tile_dpbf16ps(0, 4, 6); \
  _tile_dpbf16ps(1, 4, 7); \
  _tile_dpbf16ps(2, 5, 6); \
  _tile_dpbf16ps(3, 5, 7)

// Adds the product of `depth` numbers of two packed blocks to the numbers at `to`, whose rows are `width`
// numbers apart; or begins them.
inline void MultiplyBlock(const Half* left, const Half* right, int64_t depth, bool begins, float* to,
                          int64_t width) {
  const int64_t panel = Panel(depth);
  asm volatile("" ::: "memory");  // GCC does not know that loading a tile reads memory
  if (begins) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  } else {
    _tile_loadd(0, to, 4 * width);
    _tile_loadd(1, to + kRows, 4 * width);
    _tile_loadd(2, to + kRows * width, 4 * width);
    _tile_loadd(3, to + kRows * width + kRows, 4 * width);
  }
  for (int64_t k = 0; k < depth; k += kDepth, left += kTile, right += kTile) {
    LOAD_LEFT(0);
    LOAD_RIGHT(0);
    MULTIPLY();
    LOAD_LEFT(1);
    MULTIPLY();
    LOAD_LEFT(2);
    MULTIPLY();
    LOAD_RIGHT(1);
    LOAD_LEFT(1);
    MULTIPLY();
    LOAD_LEFT(0);
    MULTIPLY();
    LOAD_RIGHT(2);
    MULTIPLY();
  }
  _tile_stored(0, to, 4 * width);
  _tile_stored(1, to + kRows, 4 * width);
  _tile_stored(2, to + kRows * width, 4 * width);
  _tile_stored(3, to + kRows * width + kRows, 4 * width);
}

#undef LOAD_LEFT
#undef LOAD_RIGHT
#undef MULTIPLY

}  // namespace guidedflow

#endif  // GUIDEDFLOW_TILES_H_
