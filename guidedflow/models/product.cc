// The product of two float32 matrices on the matrix units (AMX) of x86-64 processors, for XLA.
//
// The units multiply bfloat16 and add in float32.  A float32 is the sum of three bfloat16 of falling
// size, a = a0 + a1 + a2, so that of the nine products of parts the six largest,
// a0 b0 + a1 b0 + a2 b0 + a0 b1 + a1 b1 + a0 b2, give what a float32 product gives, to its rounding.
//
// Both operands are first packed: panels of 16 rows (of the result's rows, or of its columns), cut
// along the contraction into tiles of 32, the three parts of a tile after one another.

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

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

using Half = uint16_t;
using Buffer = ffi::Buffer<ffi::F32>;
using Task = std::function<void(int64_t)>;

constexpr int64_t kParts = 3;
constexpr int64_t kSide = 16;                           // rows of a tile, and its columns of 4 bytes
constexpr int64_t kDepth = 32;                          // numbers in a row of a tile
constexpr int64_t kTile = kParts * kSide * kDepth;      // halves a tile takes with all its parts
constexpr int64_t kBlock = 2 * kSide;                   // side of the result that one call computes
constexpr int64_t kChunk = 16 * kDepth;                 // what is packed at once of the contraction
constexpr int64_t kCacheHalves = 1 << 19;               // a megabyte: half a core's second cache

int64_t RoundUp(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// Halves of a panel whose rows hold `depth` numbers.
int64_t Panel(int64_t depth) { return RoundUp(depth, kDepth) / kDepth * kTile; }

// A matrix in memory: element (i, k), k along the contraction, is at data[i * row + k * column].
struct Operand {
  const float* data;
  int64_t rows, depth, row, column;
};

// ---- packing ----

__mmask16 First(int64_t count) {
  return count >= kSide ? 0xffff : count <= 0 ? 0 : static_cast<__mmask16>((1u << count) - 1);
}

// What is left of 16 numbers without the bfloat16 nearest to each.
__m512 Remainder(__m512 values, __m256i halves) {
  const __m512i bits = _mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16);
  return _mm512_sub_ps(values, _mm512_castsi512_ps(bits));
}

// The parts of 32 numbers, the 16 of `low` before those of `high`.
void Split(__m512 low, __m512 high, __m512i parts[kParts]) {
  for (int64_t p = 0; p < kParts; ++p) {
    parts[p] = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
    low = Remainder(low, _mm512_castsi512_si256(parts[p]));
    high = Remainder(high, _mm512_extracti64x4_epi64(parts[p], 1));
  }
}

void Transpose(const uint32_t* from, uint32_t* to) {
  for (int64_t i = 0; i < kSide; ++i)
    for (int64_t j = 0; j < kSide; ++j) to[j * kSide + i] = from[i * kSide + j];
}

// Packs the tile that starts at (i, k).  Its rows are the operand's for the left one; for the right
// one they are pairs of neighbours along the contraction, its columns the operand's rows.
template <bool kRight>
void PackTile(const Operand& from, int64_t i, int64_t k, Half* to) {
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
      Transpose(scratch[p], reinterpret_cast<uint32_t*>(to) + p * kSide * kSide);
}

// Packs `count` panels from row i, `panel` halves apart, in the order in which memory lies.
template <bool kRight>
void PackPanels(const Operand& from, int64_t i, int64_t count, int64_t panel, Half* to) {
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

// Memory that a thread keeps from one product to the next, at least `halves` of it.
struct Workspace {
  Half* Get(int64_t halves) {
    if (halves > size_) {
      data_.reset(static_cast<Half*>(std::aligned_alloc(64, RoundUp(halves * sizeof(Half), 64))));
      size_ = data_ ? halves : 0;
    }
    return data_.get();
  }

 private:
  struct Free {
    void operator()(Half* data) const { std::free(data); }
  };
  std::unique_ptr<Half, Free> data_;
  int64_t size_ = 0;
};

// ---- multiplying ----

struct alignas(64) TileConfig {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
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
void MultiplyBlock(const Half* left, int64_t left_stride, const Half* right, int64_t right_stride,
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

// Copies the `rows` by `columns` numbers that the result has of a block that juts out.
void CopyBlock(const float* from, int64_t from_width, float* to, int64_t to_width, int64_t rows,
               int64_t columns) {
  for (int64_t i = 0; i < std::min(rows, kBlock); ++i)
    for (int64_t j = 0; j < std::min(columns, kBlock); ++j)
      to[i * to_width + j] = from[i * from_width + j];
}

// Packs rows [begin, end) of the left operand, a chunk of the contraction at a time, and multiplies
// them with the packed right one.
bool MultiplyRows(const Operand& left, const Half* right, int64_t columns, int64_t begin,
                  int64_t end, float* result) {
  thread_local Workspace workspace;
  const int64_t right_stride = Panel(left.depth);
  const int64_t panels = RoundUp(end - begin, kBlock) / kSide;
  // The first chunk is the largest: memory that it got lasts for the others.
  if (!workspace.Get(panels * Panel(std::min(kChunk, left.depth)))) return false;
  const TileConfig config;
  _tile_loadconfig(&config);
  alignas(64) float edge[kBlock * kBlock];
  for (int64_t k = 0; k < left.depth; k += kChunk) {
    Operand chunk = left;
    chunk.data += k * left.column;
    chunk.depth = std::min(kChunk, left.depth - k);
    const int64_t stride = Panel(chunk.depth), tiles = stride / kTile;
    Half* packed = workspace.Get(panels * stride);
    PackPanels<false>(chunk, begin, panels, stride, packed);
    for (int64_t j = 0; j < columns; j += kBlock)
      for (int64_t i = begin; i < end; i += kBlock) {
        const Half* rows = packed + (i - begin) / kSide * stride;
        const Half* others = right + j / kSide * right_stride + k / kDepth * kTile;
        float* to = result + i * columns + j;
        if (i + kBlock <= end && j + kBlock <= columns) {
          MultiplyBlock(rows, stride, others, right_stride, tiles, k == 0, to, columns);
          continue;
        }
        if (k > 0) CopyBlock(to, columns, edge, kBlock, end - i, columns - j);
        MultiplyBlock(rows, stride, others, right_stride, tiles, k == 0, edge, kBlock);
        CopyBlock(edge, kBlock, to, columns, end - i, columns - j);
      }
  }
  _tile_release();
  return true;
}

// ---- threads ----

// Runs task(0) to task(count - 1) on the pool and the caller, and returns when all are done.  The
// caller takes tasks itself, so that a pool whose threads all wait here cannot stand still.
void RunAll(ffi::ThreadPool pool, int64_t count, const Task& task) {
  struct Shared {
    std::atomic<int64_t> next{0}, left;
    std::mutex mutex;
    std::condition_variable done;
  };
  auto shared = std::make_shared<Shared>();
  shared->left = count;
  // A helper that starts late finds nothing to take and touches nothing but `shared`.
  auto work = [shared, count, &task] {
    for (int64_t i; (i = shared->next.fetch_add(1)) < count;) {
      task(i);
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
}

// ---- one product ----

// Computes one product, its parts done by run(count, task) on at most `threads` threads.
template <typename Run>
bool Multiply(const Operand& left, const Operand& right, float* result, int64_t threads, Run run) {
  thread_local Workspace workspace;
  const int64_t stride = Panel(left.depth);
  const int64_t panels = RoundUp(right.rows, kBlock) / kSide;
  Half* packed = workspace.Get(panels * stride);
  if (!packed) return false;
  const int64_t shares = std::min(panels, 4 * threads);
  run(shares, [&](int64_t share) {
    const int64_t first = share * panels / shares, last = (share + 1) * panels / shares;
    PackPanels<true>(right, first * kSide, last - first, stride, packed + first * stride);
  });

  // Equal numbers of rows a turn, as many as stay in cache, and as many turns for every thread.
  const int64_t blocks = RoundUp(left.rows, kBlock) / kBlock;
  const int64_t fitting = kCacheHalves / (2 * Panel(std::min(kChunk, left.depth)));
  const int64_t rounds = RoundUp(blocks, threads * fitting) / (threads * fitting);
  const int64_t turns = std::min(blocks, threads * rounds);
  std::atomic<bool> complete{true};
  run(turns, [&](int64_t turn) {
    const int64_t begin = turn * blocks / turns * kBlock;
    const int64_t end = std::min((turn + 1) * blocks / turns * kBlock, left.rows);
    if (!MultiplyRows(left, packed, right.rows, begin, end, result)) complete = false;
  });
  return complete;
}

// ---- the call ----

// The operand in the last two axes of entry `index` of a stack, or in the only two of a matrix.
Operand Entry(const Buffer& stack, int64_t index, bool transposed) {
  const auto shape = stack.dimensions();
  const int64_t height = shape[shape.size() - 2], width = shape[shape.size() - 1];
  const float* data = stack.typed_data() + index * height * width;
  if (transposed) return {data, width, height, 1, width};
  return {data, height, width, width, 1};
}

// A process asks the kernel once before it may use the units' registers.
bool Permitted() {
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  static const bool permitted = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return permitted;
}

ffi::Error Product(ffi::ThreadPool pool, Buffer x, Buffer y, ffi::Result<Buffer> result,
                   bool transpose_x, bool transpose_y) {
  if (!Permitted()) return ffi::Error::Internal("the kernel gives no permission to use AMX");
  std::fill_n(result->typed_data(), x.element_count() == 0 ? result->element_count() : 0, 0.0f);
  if (result->element_count() == 0 || x.element_count() == 0) return ffi::Error::Success();
  const int64_t entries = x.dimensions().size() == 3 ? x.dimensions()[0] : 1;
  const int64_t threads = std::max<int64_t>(1, pool.num_threads());
  const auto spread = [&](int64_t count, const Task& task) { RunAll(pool, count, task); };
  const auto in_turn = [](int64_t count, const auto& task) {
    for (int64_t i = 0; i < count; ++i) task(i);
  };
  std::atomic<bool> complete{true};
  const auto multiply = [&](int64_t entry, int64_t threads, const auto& run) {
    // The right operand's rows are the result's columns.
    const Operand left = Entry(x, entry, transpose_x), right = Entry(y, entry, !transpose_y);
    float* to = result->typed_data() + entry * left.rows * right.rows;
    if (!Multiply(left, right, to, threads, run)) complete = false;
  };
  // Many small products go one to a thread, few large ones over all threads one after another.
  if (entries >= threads && entries > 1) {
    spread(entries, [&](int64_t entry) { multiply(entry, 1, in_turn); });
  } else {
    for (int64_t entry = 0; entry < entries; ++entry) multiply(entry, threads, spread);
  }
  if (complete) return ffi::Error::Success();
  return ffi::Error(ffi::ErrorCode::kResourceExhausted, "no memory to pack a product's operands");
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(GuidedflowProduct, Product,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Ret<Buffer>()
                                  .Attr<bool>("transpose_x")
                                  .Attr<bool>("transpose_y"));
