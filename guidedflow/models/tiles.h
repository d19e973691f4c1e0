// Float32 products on the matrix units (AMX) of x86-64 processors: what product.cc and attention.cc
// are made of.
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

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <memory>
#include <mutex>
#include <new>

#include "xla/ffi/api/ffi.h"

namespace guidedflow {

namespace ffi = xla::ffi;

using Half = uint16_t;
using Buffer = ffi::Buffer<ffi::F32>;
using Task = std::function<void(int64_t)>;

constexpr int64_t kParts = 3;
constexpr int64_t kSide = 16;                           // rows of a tile, and its columns of 4 bytes
constexpr int64_t kDepth = 32;                          // numbers in a row of a tile
constexpr int64_t kTile = kParts * kSide * kDepth;      // halves a tile takes with all its parts
constexpr int64_t kBlock = 2 * kSide;                   // side of the result that one call computes
constexpr int64_t kCacheHalves = 1 << 19;               // a megabyte: half a core's second cache

inline int64_t RoundUp(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// Halves of a panel whose rows hold `depth` numbers.
inline int64_t Panel(int64_t depth) { return RoundUp(depth, kDepth) / kDepth * kTile; }

// A matrix in memory: element (i, k), k along the contraction, is at data[i * row + k * column].
struct Operand {
  const float* data;
  int64_t rows, depth, row, column;

  Operand Transposed() const { return {data, depth, rows, column, row}; }
  Operand Rows(int64_t begin, int64_t count) const {
    return {data + begin * row, count, depth, row, column};
  }
};

// ---- packing ----

inline __mmask16 First(int64_t count) {
  return count >= kSide ? 0xffff : count <= 0 ? 0 : static_cast<__mmask16>((1u << count) - 1);
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

// Transposes 16 by 16 numbers of 32 bits: exchanges halves, quarters, pairs and single numbers.
inline void Transpose(const uint32_t* from, int64_t from_row, uint32_t* to, int64_t to_row) {
  const __m512i count = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  __m512i lines[kSide];
  for (int64_t i = 0; i < kSide; ++i) lines[i] = _mm512_loadu_si512(from + i * from_row);
#pragma GCC unroll 4
  for (int distance = kSide / 2; distance > 0; distance /= 2) {
    const __m512i far = _mm512_set1_epi32(distance);
    const __mmask16 second = _mm512_test_epi32_mask(count, far);
    // Numbers of the second line are asked for by 16 more than their place.
    const __m512i across = _mm512_set1_epi32(kSide - distance);
    const __m512i upper = _mm512_mask_add_epi32(count, second, count, across);
    const __m512i lower = _mm512_add_epi32(upper, far);
#pragma GCC unroll 16
    for (int64_t i = 0; i < kSide; ++i) {
      if (i & distance) continue;
      const __m512i a = lines[i], b = lines[i + distance];
      lines[i] = _mm512_permutex2var_epi32(a, upper, b);
      lines[i + distance] = _mm512_permutex2var_epi32(a, lower, b);
    }
  }
  for (int64_t i = 0; i < kSide; ++i) _mm512_storeu_si512(to + i * to_row, lines[i]);
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
  alignas(64) uint32_t scratch[kParts][kSide * kSide];
  for (int64_t line = 0; line < kSide; ++line) {
    __m512i parts[kParts];
    if (along_depth) {
      const float* values = at + line * from.row;
      const int64_t count = line < rows ? depth : 0;
      Split(_mm512_maskz_loadu_ps(First(count), values),
            _mm512_maskz_loadu_ps(First(count - kSide), values + kSide), parts);
    } else {
      const float* values = at + 2 * line * from.column;
      const __mmask16 mask = First(rows);
      Split(_mm512_maskz_loadu_ps(2 * line < depth ? mask : 0, values),
            _mm512_maskz_loadu_ps(2 * line + 1 < depth ? mask : 0, values + from.column), parts);
      for (__m512i& part : parts) part = _mm512_permutexvar_epi16(pairs, part);
    }
    for (int64_t p = 0; p < kParts; ++p) {
      uint32_t* tile = transposes ? scratch[p] : reinterpret_cast<uint32_t*>(to) + p * kSide * kSide;
      _mm512_store_si512(tile + line * kSide, parts[p]);
    }
  }
  if (transposes)
    for (int64_t p = 0; p < kParts; ++p)
      Transpose(scratch[p], kSide, reinterpret_cast<uint32_t*>(to) + p * kSide * kSide, kSide);
}

// Packs `count` panels from row i, `panel` halves apart, in the order in which memory lies.
template <bool kRight>
inline void PackPanels(const Operand& from, int64_t i, int64_t count, int64_t panel, Half* to) {
  const auto pack = [&](int64_t p, int64_t k) {
    PackTile<kRight>(from, i + p * kSide, k, to + p * panel + k / kDepth * kTile);
  };
  if (from.column == 1) {
    for (int64_t p = 0; p < count; ++p)
      for (int64_t k = 0; k < from.depth; k += kDepth) pack(p, k);
  } else {
    for (int64_t k = 0; k < from.depth; k += kDepth)
      for (int64_t p = 0; p < count; ++p) pack(p, k);
  }
}

// Memory that a thread keeps from one call to the next.
template <typename Number>
class Workspace {
 public:
  // At least `count` numbers; throws std::bad_alloc.
  Number* Get(int64_t count) {
    if (count > size_) {
      size_ = 0;
      data_.reset(static_cast<Number*>(std::aligned_alloc(64, RoundUp(count * sizeof(Number), 64))));
      if (!data_) throw std::bad_alloc();
      size_ = count;
    }
    return data_.get();
  }

 private:
  struct Free {
    void operator()(Number* data) const { std::free(data); }
  };
  std::unique_ptr<Number, Free> data_;
  int64_t size_ = 0;
};

// A packed operand: an even number of panels, `stride` halves apart.
struct Packed {
  const Half* data;
  int64_t panels, stride;

  int64_t Rows() const { return panels * kSide; }
};

template <bool kRight>
inline Packed Pack(const Operand& from, Workspace<Half>& workspace) {
  const int64_t panels = RoundUp(from.rows, kBlock) / kSide, stride = Panel(from.depth);
  Half* data = workspace.Get(panels * stride);
  PackPanels<kRight>(from, 0, panels, stride, data);
  return {data, panels, stride};
}

// ---- multiplying ----

// The units' eight registers, 16 rows of 64 bytes each, for as long as this lives.
class Tiles {
 public:
  Tiles() {
    // Static: GCC takes the instruction to read no more than a pointer's size.
    static constexpr Config config;
    _tile_loadconfig(&config);
  }
  ~Tiles() { _tile_release(); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;

 private:
  struct alignas(64) Config {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  };
};

#define LOAD_LEFT(part)                                       \
  _tile_loadd(4, left + (part) * kSide * kDepth, 64);         \
  _tile_loadd(5, left + left_stride + (part) * kSide * kDepth, 64)
#define LOAD_RIGHT(part)                                      \
  _tile_loadd(6, right + (part) * kSide * kDepth, 64);        \
  _tile_loadd(7, right + right_stride + (part) * kSide * kDepth, 64)
#define MULTIPLY()        \
  _tile_dpbf16ps(0, 4, 6); \
  _tile_dpbf16ps(1, 4, 7); \
  _tile_dpbf16ps(2, 5, 6); \
  _tile_dpbf16ps(3, 5, 7)

// Adds the product of two panels of either operand, of `tiles` tiles and `stride` halves apart, to the
// 32 by 32 numbers at `to`, whose rows are `width` numbers apart; or begins them.
inline void MultiplyBlock(const Half* left, int64_t left_stride, const Half* right, int64_t right_stride,
                   int64_t tiles, bool begins, float* to, int64_t width) {
  if (begins) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  } else {
    _tile_loadd(0, to, 4 * width);
    _tile_loadd(1, to + kSide, 4 * width);
    _tile_loadd(2, to + kSide * width, 4 * width);
    _tile_loadd(3, to + kSide * width + kSide, 4 * width);
  }
  for (int64_t tile = 0; tile < tiles; ++tile, left += kTile, right += kTile) {
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
  _tile_stored(1, to + kSide, 4 * width);
  _tile_stored(2, to + kSide * width, 4 * width);
  _tile_stored(3, to + kSide * width + kSide, 4 * width);
}


// The product of two packed operands, added to the numbers at `to` or beginning them: as many rows and
// columns as they have with their padding, the rows `width` numbers apart.
inline void Multiply(const Packed& left, const Packed& right, bool begins, float* to,
                     int64_t width) {
  for (int64_t j = 0; j < right.panels; j += 2)
    for (int64_t i = 0; i < left.panels; i += 2)
      MultiplyBlock(left.data + i * left.stride, left.stride, right.data + j * right.stride,
                    right.stride, left.stride / kTile, begins, to + i * kSide * width + j * kSide,
                    width);
}

#undef LOAD_LEFT
#undef LOAD_RIGHT
#undef MULTIPLY

// ---- threads ----

// Runs task(0) to task(count - 1) on the pool and the caller, and returns when all are done; throws
// std::bad_alloc where one did.  The caller takes tasks itself, so that a pool whose threads all wait
// here cannot stand still.
inline void RunAll(ffi::ThreadPool pool, int64_t count, const Task& task) {
  struct Shared {
    std::atomic<int64_t> next{0}, left;
    std::atomic<bool> lacked_memory{false};
    std::mutex mutex;
    std::condition_variable done;
  };
  auto shared = std::make_shared<Shared>();
  shared->left = count;
  // A helper that starts late finds nothing to take and touches nothing but `shared`.
  auto work = [shared, count, &task] {
    for (int64_t i; (i = shared->next.fetch_add(1)) < count;) {
      try {
        task(i);
      } catch (const std::bad_alloc&) {
        shared->lacked_memory = true;
      }
      if (shared->left.fetch_sub(1) == 1) {
        std::lock_guard<std::mutex> lock(shared->mutex);
        shared->done.notify_all();
      }
    }
  };
  const int64_t helpers = std::min(pool.num_threads(), count) - 1;
  for (int64_t i = 0; i < helpers; ++i) pool.Schedule(std::function<void()>(work));
  work();
  std::unique_lock<std::mutex> lock(shared->mutex);
  shared->done.wait(lock, [&] { return shared->left == 0; });
  if (shared->lacked_memory) throw std::bad_alloc();
}

// ---- the call ----

// Runs `compute` if the units may be used, and says what went wrong.
template <typename Compute>
inline ffi::Error OnUnits(Compute compute) {
  // A process asks the kernel once before it may use the units' registers.
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  static const bool permitted = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  if (!permitted) return ffi::Error::Internal("the kernel gives no permission to use AMX");
  try {
    compute();
    return ffi::Error::Success();
  } catch (const std::bad_alloc&) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "no memory to pack operands");
  }
}

}  // namespace guidedflow

#endif  // GUIDEDFLOW_TILES_H_
