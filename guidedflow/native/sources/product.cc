// The product of two float32 matrices; a layer, which takes GELU of one and adds a bias; and the gradient
// of a layer's kernel and bias, for XLA.  See units.h.

#include "units.h"

#ifndef GUIDEDFLOW_AMX
#include "strassen.h"
#endif

namespace guidedflow {
namespace {

// A product as it is defined.  Like Strassen it says how large a block of the result is, what numbers a
// packed block of an operand's rows takes, and how to pack and to multiply.
struct Plain {
  static constexpr int64_t kTall = guidedflow::kTall, kWide = guidedflow::kWide;

  template <bool kRight>
  static int64_t BlockNumbers(int64_t depth) {
    return guidedflow::BlockNumbers<kRight>(depth);
  }
  template <bool kRight>
  static void PackBlocks(const Operand& from, int64_t count, Number* to) {
    guidedflow::PackBlocks<kRight>(from, 0, count, to);
  }
  static void MultiplyBlock(const Number* left, const Number* right, int64_t depth, bool begins,
                            float* to, int64_t width) {
    guidedflow::MultiplyBlock(left, right, depth, begins, to, width);
  }
};

// For the operand that is packed first, for a turn's own rows, and for these with GELU taken.
thread_local Workspace<Number> for_other, for_own;
thread_local Workspace<float> for_activated;

template <typename Scheme, bool kRight>
constexpr int64_t kSideOf = kRight ? Scheme::kWide : Scheme::kTall;

// Copies the `rows` by `columns` numbers that the result has of a block that juts out.
void CopyBlock(const float* from, int64_t from_width, float* to, int64_t to_width, int64_t rows,
               int64_t columns) {
  for (int64_t i = 0; i < rows; ++i) std::copy_n(from + i * from_width, columns, to + i * to_width);
}

// What is done beside a product while its operands or its result are in cache.
struct Beside {
  bool gelu = false;            // of the left operand
  const float* bias = nullptr;  // added to each row of the result
  float* sums = nullptr;        // the right operand's, along the contraction
};

// Where the product goes, row after row.
struct Result {
  float* data;
  int64_t rows, columns;
};

// GELU of an operand, in the order in which it lies in memory.
Operand Activated(const Operand& from, Workspace<float>& workspace) {
  const bool along = from.column == 1;
  const int64_t lines = along ? from.rows : from.depth, stride = along ? from.row : from.column;
  const int64_t count = along ? from.depth : from.rows, width = RoundUp(count, kLanes);
  float* to = workspace.Get(lines * width);
  for (int64_t line = 0; line < lines; ++line)
    for (int64_t j = 0; j < count; j += kLanes)
      Store(Gelu(Load(from.data + line * stride + j, count - j)), to + line * width + j);
  return {to, from.rows, from.depth, along ? width : 1, along ? 1 : width};
}

// Adds a bias to the rows of a part of the result.
void AddBias(const float* bias, int64_t rows, int64_t columns, float* to, int64_t width) {
  for (int64_t j = 0; j < columns; j += kLanes) {
    const Vector shift = Load(bias + j, columns - j);
    for (int64_t i = 0; i < rows; ++i) {
      float* at = to + i * width + j;
      Store(Load(at, columns - j) + shift, at, columns - j);
    }
  }
}

// Adds the sums of `from`, whose rows lie after one another in memory, along the contraction, or begins
// them.
void SumAlong(const Operand& from, bool begins, float* to) {
  constexpr int64_t kAtOnce = 2;  // vectors
  for (int64_t i = 0; i < from.rows; i += kAtOnce * kLanes) {
    Vector sums[kAtOnce] = {};
    for (int64_t v = 0; v < kAtOnce && !begins; ++v)
      sums[v] = Load(to + i + v * kLanes, from.rows - i - v * kLanes);
    for (int64_t k = 0; k < from.depth; ++k)
      for (int64_t v = 0; v < kAtOnce; ++v) {
        const int64_t at = i + v * kLanes;
        sums[v] += Load(from.data + k * from.column + at, from.rows - at);
      }
    for (int64_t v = 0; v < kAtOnce; ++v) {
      const int64_t at = i + v * kLanes;
      Store(sums[v], to + at, from.rows - at);
    }
  }
}

int64_t DepthAt(int64_t k, int64_t depth) { return std::min(kChunk, depth - k); }

// Packs rows [begin, end) of an operand, the chunk of the contraction that starts at k.
template <typename Scheme, bool kRight>
void PackRows(const Operand& from, const Beside& beside, int64_t begin, int64_t end, int64_t k,
              Number* to) {
  constexpr int64_t side = kSideOf<Scheme, kRight>;
  const Operand rows = from.Depths(k, DepthAt(k, from.depth)).Rows(begin, end - begin);
  const bool activates = !kRight && beside.gelu;
  Scheme::template PackBlocks<kRight>(activates ? Activated(rows, for_activated) : rows,
                                      RoundUp(rows.rows, side) / side, to);
  if (kRight && beside.sums) SumAlong(rows, k == 0, beside.sums + begin);
}

// Multiplies two packed blocks, the chunk of the contraction that starts at k, into the block of the
// result that begins at (i, j).
template <typename Scheme>
void MultiplyInto(const Number* left, const Number* right, int64_t k, int64_t depth, int64_t i,
                  int64_t j, const Beside& beside, const Result& result) {
  constexpr int64_t tall = Scheme::kTall, wide = Scheme::kWide;
  const int64_t rows = std::min(tall, result.rows - i), columns = std::min(wide, result.columns - j);
  float* to = result.data + i * result.columns + j;
  const int64_t chunk = DepthAt(k, depth);
  if (rows == tall && columns == wide) {
    Scheme::MultiplyBlock(left, right, chunk, k == 0, to, result.columns);
  } else {
    alignas(64) float edge[tall * wide];
    if (k > 0) CopyBlock(to, result.columns, edge, wide, rows, columns);
    Scheme::MultiplyBlock(left, right, chunk, k == 0, edge, wide);
    CopyBlock(edge, wide, to, result.columns, rows, columns);
  }
  if (beside.bias && k + kChunk >= depth) AddBias(beside.bias + j, rows, columns, to, result.columns);
}

// Computes one product, its parts done by run(count, task) on at most `threads` threads.  The smaller
// operand is packed first, chunk after chunk.  Then a turn packs some rows of the other one, the right
// one if kRight, and multiplies them with all of the first.
template <typename Scheme, bool kRight, typename Run>
void MultiplyInTurns(const Operand& own, const Operand& other, const Beside& beside,
                     const Result& result, int64_t threads, Run run) {
  constexpr int64_t own_side = kSideOf<Scheme, kRight>, other_side = kSideOf<Scheme, !kRight>;
  const int64_t depth = own.depth;
  const auto own_block = [](int64_t deep) { return Scheme::template BlockNumbers<kRight>(deep); };
  const auto other_block = [](int64_t deep) { return Scheme::template BlockNumbers<!kRight>(deep); };

  const int64_t others = RoundUp(other.rows, other_side) / other_side;
  const int64_t chunk_numbers = others * other_block(std::min(kChunk, depth));
  const int64_t chunks = RoundUp(depth, kChunk) / kChunk;
  Number* const packed = for_other.Get(chunks * chunk_numbers);
  const int64_t shares = std::min(others, 4 * threads);
  run(shares, [&](int64_t share) {
    const int64_t first = share * others / shares, last = (share + 1) * others / shares;
    for (int64_t k = 0; k < depth; k += kChunk)
      PackRows<Scheme, !kRight>(
          other, beside, first * other_side, std::min(last * other_side, other.rows), k,
          packed + k / kChunk * chunk_numbers + first * other_block(DepthAt(k, depth)));
  });

  // As many turns for every thread, of blocks that stay in cache together; and so many that one which
  // other work holds up leaves little undone, but of enough rows to be worth the passing of the others.
  constexpr int64_t kLeastRows = 64;
  const int64_t blocks = RoundUp(own.rows, own_side) / own_side;
  const int64_t bytes = own_block(std::min(kChunk, depth)) * sizeof(Number);
  const int64_t fitting = std::max<int64_t>(1, kCacheBytes / bytes);
  const int64_t rounds = RoundUp(blocks, threads * fitting) / (threads * fitting);
  const int64_t least = std::max<int64_t>(1, kLeastRows / own_side);
  const int64_t most = std::max<int64_t>(1, blocks / (least * threads));
  const int64_t turns = std::min(blocks, threads * std::min(most, std::max(rounds, kLeastTurns)));
  run(turns, [&](int64_t turn) {
    [[maybe_unused]] const InUse in_use;
    const int64_t first = turn * blocks / turns, last = (turn + 1) * blocks / turns;
    const int64_t begin = first * own_side, end = std::min(last * own_side, own.rows);
    Number* const rows = for_own.Get((last - first) * own_block(std::min(kChunk, depth)));
    for (int64_t k = 0; k < depth; k += kChunk) {
      const int64_t deep = DepthAt(k, depth);
      PackRows<Scheme, kRight>(own, beside, begin, end, k, rows);
      for (int64_t o = 0; o < others; ++o)
        for (int64_t b = first; b < last; ++b) {
          const Number* one = rows + (b - first) * own_block(deep);
          const Number* two = packed + k / kChunk * chunk_numbers + o * other_block(deep);
          if (kRight) {
            MultiplyInto<Scheme>(two, one, k, depth, o * other_side, b * own_side, beside, result);
          } else {
            MultiplyInto<Scheme>(one, two, k, depth, b * own_side, o * other_side, beside, result);
          }
        }
    }
  });
}

template <typename Scheme, typename Run>
void MultiplyBy(const Operand& left, const Operand& right, const Beside& beside, const Result& result,
                int64_t threads, Run run) {
  if (right.rows > left.rows) {
    MultiplyInTurns<Scheme, true>(right, left, beside, result, threads, run);
  } else {
    MultiplyInTurns<Scheme, false>(left, right, beside, result, threads, run);
  }
}

template <typename Run>
void MultiplyOne(const Operand& left, const Operand& right, const Beside& beside, float* to,
                 int64_t threads, Run run) {
  const Result result = {to, left.rows, right.rows};
#ifndef GUIDEDFLOW_AMX
  if (Strassen::Gains(left.rows, right.rows, left.depth))
    return MultiplyBy<Strassen>(left, right, beside, result, threads, run);
#endif
  MultiplyBy<Plain>(left, right, beside, result, threads, run);
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

void ComputeProduct(ffi::ThreadPool pool, const Buffer& x, const Buffer& y, bool transpose_x,
                    bool transpose_y, const Beside& beside, float* result) {
  const int64_t entries = x.dimensions().size() == 3 ? x.dimensions()[0] : 1;
  const int64_t threads = std::max<int64_t>(1, pool.num_threads());
  const auto spread = [&](int64_t count, const Task& task) { RunAll(pool, count, task); };
  const auto in_turn = [](int64_t count, const auto& task) {
    for (int64_t i = 0; i < count; ++i) task(i);
  };
  const auto multiply = [&](int64_t entry, int64_t threads, const auto& run) {
    // The right operand's rows are the result's columns.
    const Operand left = Entry(x, entry, transpose_x), right = Entry(y, entry, !transpose_y);
    MultiplyOne(left, right, beside, result + entry * left.rows * right.rows, threads, run);
  };
  // Many small products go one to a thread, few large ones over all threads one after another.
  if (entries >= threads && entries > 1) {
    spread(entries, [&](int64_t entry) { multiply(entry, 1, in_turn); });
  } else {
    for (int64_t entry = 0; entry < entries; ++entry) multiply(entry, threads, spread);
  }
}

ffi::Error Product(ffi::ThreadPool pool, Buffer x, Buffer y, ffi::Result<Buffer> result,
                   bool transpose_x, bool transpose_y) {
  float* to = result->typed_data();
  if (x.element_count() == 0) std::fill_n(to, result->element_count(), 0.0f);
  if (x.element_count() == 0 || y.element_count() == 0) return ffi::Error::Success();
  return OnUnits([&] { ComputeProduct(pool, x, y, transpose_x, transpose_y, {}, to); });
}

// The following are of matrices that are not empty.

ffi::Error Affine(ffi::ThreadPool pool, Buffer x, Buffer y, Buffer bias, ffi::Result<Buffer> result,
                  bool gelu) {
  const Beside beside = {gelu, bias.typed_data(), nullptr};
  return OnUnits([&] { ComputeProduct(pool, x, y, false, false, beside, result->typed_data()); });
}

ffi::Error AffineGradient(ffi::ThreadPool pool, Buffer x, Buffer cotangent,
                          ffi::Result<Buffer> of_kernel, ffi::Result<Buffer> of_bias, bool gelu) {
  const Beside beside = {gelu, nullptr, of_bias->typed_data()};
  return OnUnits(
      [&] { ComputeProduct(pool, x, cotangent, true, false, beside, of_kernel->typed_data()); });
}

}  // namespace
}  // namespace guidedflow

XLA_FFI_DEFINE_HANDLER_SYMBOL(GuidedflowProduct, guidedflow::Product,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<guidedflow::Buffer>()
                                  .Arg<guidedflow::Buffer>()
                                  .Ret<guidedflow::Buffer>()
                                  .Attr<bool>("transpose_x")
                                  .Attr<bool>("transpose_y"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(GuidedflowAffine, guidedflow::Affine,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<guidedflow::Buffer>()
                                  .Arg<guidedflow::Buffer>()
                                  .Arg<guidedflow::Buffer>()
                                  .Ret<guidedflow::Buffer>()
                                  .Attr<bool>("gelu"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(GuidedflowAffineGradient, guidedflow::AffineGradient,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<guidedflow::Buffer>()
                                  .Arg<guidedflow::Buffer>()
                                  .Ret<guidedflow::Buffer>()
                                  .Ret<guidedflow::Buffer>()
                                  .Attr<bool>("gelu"));
