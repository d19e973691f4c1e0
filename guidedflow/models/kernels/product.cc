// The product of two float32 matrices; a layer, which takes GELU of one and adds a bias; and the gradient
// of a layer's kernel and bias, for XLA.  See units.h.

#include "units.h"

namespace guidedflow {
namespace {

// Copies the `rows` by `columns` numbers that the result has of a block that juts out.
void CopyBlock(const float* from, int64_t from_width, float* to, int64_t to_width, int64_t rows,
               int64_t columns) {
  for (int64_t i = 0; i < std::min(rows, kTall); ++i)
    for (int64_t j = 0; j < std::min(columns, kWide); ++j)
      to[i * to_width + j] = from[i * from_width + j];
}

// What is done beside a product while its operands or its result are in cache.
struct Beside {
  bool gelu = false;            // of the left operand
  const float* bias = nullptr;  // added to each row of the result
  float* sums = nullptr;        // the right operand's, along the contraction
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

// Adds a bias, of which there are `columns` numbers, to the rows of a block of the result.
void AddBias(const float* bias, int64_t columns, float* to, int64_t width) {
  for (int64_t j = 0; j < kWide; j += kLanes) {
    const Vector shift = Load(bias + j, columns - j);
    for (int64_t i = 0; i < kTall; ++i) {
      float* at = to + i * width + j;
      Store(Load(at) + shift, at);
    }
  }
}

// Sums `from`, whose rows lie after one another in memory, along the contraction.
void SumAlong(const Operand& from, float* to) {
  constexpr int64_t kAtOnce = 2;  // vectors
  for (int64_t i = 0; i < from.rows; i += kAtOnce * kLanes) {
    Vector sums[kAtOnce] = {};
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

// Packs rows [begin, end) of the left operand, a chunk of the contraction at a time, and multiplies
// them with the packed right one.
void MultiplyRows(const Operand& left, const Number* right, int64_t columns, const Beside& beside,
                  int64_t begin, int64_t end, float* result) {
  thread_local Workspace<Number> workspace;
  thread_local Workspace<float> for_activated;
  [[maybe_unused]] const InUse in_use;
  alignas(64) float edge[kTall * kWide];
  for (int64_t k = 0; k < left.depth; k += kChunk) {
    const Operand chunk = left.Depths(k, std::min(kChunk, left.depth - k));
    const Operand rows = chunk.Rows(begin, end - begin);
    const Packed packed = Pack<false>(beside.gelu ? Activated(rows, for_activated) : rows, workspace);
    const bool ends = beside.bias && k + kChunk >= left.depth;
    for (int64_t j = 0; j < columns; j += kWide)
      for (int64_t b = 0; b < packed.blocks; ++b) {
        const int64_t i = begin + b * kTall;
        const Number* one = packed.data + b * BlockNumbers<false>(chunk.depth);
        const Number* other = right + j / kWide * BlockNumbers<true>(left.depth) + Along(k);
        float* to = result + i * columns + j;
        if (i + kTall <= end && j + kWide <= columns) {
          MultiplyBlock(one, other, left.depth, chunk.depth, k == 0, to, columns);
          if (ends) AddBias(beside.bias + j, columns - j, to, columns);
          continue;
        }
        if (k > 0) CopyBlock(to, columns, edge, kWide, end - i, columns - j);
        MultiplyBlock(one, other, left.depth, chunk.depth, k == 0, edge, kWide);
        if (ends) AddBias(beside.bias + j, columns - j, edge, kWide);
        CopyBlock(edge, kWide, to, columns, end - i, columns - j);
      }
  }
}

// Computes one product, its parts done by run(count, task) on at most `threads` threads.
template <typename Run>
void MultiplyOne(const Operand& left, const Operand& right, const Beside& beside, float* result,
                 int64_t threads, Run run) {
  thread_local Workspace<Number> workspace;
  const int64_t block = BlockNumbers<true>(left.depth);
  const int64_t others = RoundUp(right.rows, kWide) / kWide;
  Number* packed = workspace.Get(others * block + kSlack);
  const int64_t shares = std::min(others, 4 * threads);
  run(shares, [&](int64_t share) {
    const int64_t first = share * others / shares, last = (share + 1) * others / shares;
    PackBlocks<true>(right, first * kWide, last - first, packed + first * block);
    if (!beside.sums) return;
    const int64_t begin = first * kWide, end = std::min(last * kWide, right.rows);
    SumAlong(right.Rows(begin, end - begin), beside.sums + begin);
  });

  // Equal numbers of rows a turn: at most as many as stay in cache, and so many turns for every thread
  // that one which other work holds up leaves little undone; but two blocks at least.
  const int64_t blocks = RoundUp(left.rows, kTall) / kTall;
  const int64_t bytes = BlockNumbers<false>(std::min(kChunk, left.depth)) * sizeof(Number);
  const int64_t fitting = std::max<int64_t>(1, kCacheBytes / bytes);
  const int64_t rounds = RoundUp(blocks, threads * fitting) / (threads * fitting);
  const int64_t most = std::max(RoundUp(blocks, 2) / 2, std::min(blocks, threads));
  const int64_t turns = std::min(most, threads * std::max(rounds, kLeastTurns));
  run(turns, [&](int64_t turn) {
    const int64_t begin = turn * blocks / turns * kTall;
    const int64_t end = std::min((turn + 1) * blocks / turns * kTall, left.rows);
    MultiplyRows(left, packed, right.rows, beside, begin, end, result);
  });
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
