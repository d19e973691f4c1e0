// Adaptive layer normalisation and its gradient, for XLA.
//
// Of a token's features x with mean m and variance v, and of its example's shift s and scale a, the
// result is
//   y = z (1 + a) + s,   z = r (x - m),   r = 1 / sqrt(v + epsilon).
// Of a cotangent dy of y, with g = dy (1 + a), it has the gradient
//   dx = r (g - mean of g - z (mean of g z)),
//   ds = the sum of dy,   da = the sum of dy z, both over an example's tokens.
// Ba et al. 2016, eq. 4, and Peebles & Xie 2023, section 3.2, and their derivative.
//
// A token's features are read again and again while they are in a core's first cache, and the gradient
// computes their mean and variance once more: that is faster than reading them from memory.

#include <cmath>

#include "units.h"

namespace guidedflow {
namespace {

// Vectors that are taken together, so that no sum waits for the one before.
constexpr int64_t kTogether = 4;

// Does step(slot, begin, count) for every vector of a row, in the order of memory: `count` numbers from
// `begin` on, fewer than kLanes in the last one alone, and `slot` below kTogether.
template <typename Step>
[[gnu::always_inline]] inline void ForEachVector(int64_t size, Step step) {
  int64_t j = 0;
  for (; j + kTogether * kLanes <= size; j += kTogether * kLanes) {
#pragma GCC unroll 4
    for (int64_t slot = 0; slot < kTogether; ++slot) step(slot, j + slot * kLanes, kLanes);
  }
  for (; j + kLanes <= size; j += kLanes) step(0, j, kLanes);
  if (j < size) step(0, j, size - j);
}

// A mean, in the making.
struct Mean {
  Vector sums[kTogether] = {};

  float Of(int64_t size) const {
    return Sum((sums[0] + sums[1]) + (sums[2] + sums[3])) / static_cast<float>(size);
  }
};

// Zero in the lanes from `count` on.
inline Vector First(Vector x, int64_t count) {
  for (int64_t i = count; i < kLanes; ++i) x[i] = 0;
  return x;
}

// What makes a row's numbers normalised ones.  The mean is that of the sum of two numbers: a mean far
// from 0 is rounded to what may be much beside the deviation, and `rest` is what that left.
struct Normalizer {
  float mean, rest, inverse;

  Vector operator()(Vector x) const { return ((x - mean) - rest) * inverse; }
};

// The corrected two-pass algorithm, Chan, Golub & LeVeque 1983, eq. 1.7.
[[gnu::flatten]] Normalizer NormalizerOf(const float* row, int64_t size, float epsilon) {
  Mean of_row, of_rest, of_squares;
  ForEachVector(size, [&](int64_t slot, int64_t j, int64_t count) {
    of_row.sums[slot] += Load(row + j, count);
  });
  const float mean = of_row.Of(size);
  ForEachVector(size, [&](int64_t slot, int64_t j, int64_t count) {
    const Vector centred = First(Load(row + j, count) - mean, count);
    of_rest.sums[slot] += centred;
    of_squares.sums[slot] += centred * centred;
  });
  const float rest = of_rest.Of(size);
  const float variance = std::max(of_squares.Of(size) - rest * rest, 0.0f);  // NaN stays
  return {mean, rest, 1.0f / std::sqrt(variance + epsilon)};
}

[[gnu::flatten]] void NormalizeRow(const float* x, const float* shift, const float* scale,
                                   int64_t size, float epsilon, float* y) {
  const Normalizer normalized = NormalizerOf(x, size, epsilon);
  ForEachVector(size, [&](int64_t, int64_t j, int64_t count) {
    const Vector z = normalized(Load(x + j, count));
    Store(z * (1.0f + Load(scale + j, count)) + Load(shift + j, count), y + j, count);
  });
}

// Adds the row's part to the gradients of shift and scale.
[[gnu::flatten]] void DifferentiateRow(const float* x, const float* scale, const float* cotangent,
                                       int64_t size, float epsilon, float* of_x, float* of_shift,
                                       float* of_scale) {
  const Normalizer normalized = NormalizerOf(x, size, epsilon);
  Mean of_g, of_gz;
  ForEachVector(size, [&](int64_t slot, int64_t j, int64_t count) {
    const Vector z = normalized(Load(x + j, count)), dy = Load(cotangent + j, count);
    const Vector g = dy * (1.0f + Load(scale + j, count));  // 0 beyond the row, as dy is
    of_g.sums[slot] += g;
    of_gz.sums[slot] += g * First(z, count);
    Store(Load(of_shift + j, count) + dy, of_shift + j, count);
    Store(Load(of_scale + j, count) + dy * z, of_scale + j, count);
  });
  const float mean_g = of_g.Of(size), mean_gz = of_gz.Of(size);
  ForEachVector(size, [&](int64_t, int64_t j, int64_t count) {
    const Vector z = normalized(Load(x + j, count)), dy = Load(cotangent + j, count);
    const Vector g = dy * (1.0f + Load(scale + j, count));
    Store(normalized.inverse * ((g - mean_g) - z * mean_gz), of_x + j, count);
  });
}

// ---- the calls ----

// Tokens of one example that one thread takes one after another.
struct Chunk {
  int64_t index, example, begin, end;
};

// Numbers of shape (examples, tokens, size), none of them 0, and how they are parted into chunks: not by
// the number of threads, so that no sum depends on it.
struct Layout {
  static constexpr int64_t kTaskNumbers = 1 << 13, kLeastTokens = 32;
  // Fewer numbers than this are done sooner than another thread is awake.
  static constexpr int64_t kFew = 1 << 15;

  int64_t examples, tokens, size, chunks;  // of an example

  explicit Layout(const Buffer& x)
      : examples(x.dimensions()[0]), tokens(x.dimensions()[1]), size(x.dimensions()[2]) {
    const int64_t fitting = std::max(kLeastTokens, kTaskNumbers / size);
    chunks = RoundUp(tokens, fitting) / fitting;
  }

  // Does task(chunk) for each, small ones together.
  template <typename OfChunk>
  void Spread(ffi::ThreadPool pool, OfChunk task) const {
    const int64_t numbers = examples * tokens * size, all = examples * chunks;
    const int64_t together = std::max<int64_t>(1, kTaskNumbers / (numbers / all));
    const auto some = [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < std::min(end, all); ++i) {
        const int64_t chunk = i % chunks;
        task(Chunk{i, i / chunks, chunk * tokens / chunks, (chunk + 1) * tokens / chunks});
      }
    };
    if (numbers < kFew) return some(0, all);
    RunAll(pool, RoundUp(all, together) / together,
           [&](int64_t i) { some(i * together, (i + 1) * together); });
  }
};

ffi::Error Normalize(ffi::ThreadPool pool, Buffer x, Buffer shift, Buffer scale,
                     ffi::Result<Buffer> y, float epsilon) {
  if (x.element_count() == 0) return ffi::Error::Success();
  const Layout layout(x);
  const int64_t size = layout.size;
  return OnUnits([&] {
    layout.Spread(pool, [&](const Chunk& chunk) {
      for (int64_t token = chunk.begin; token < chunk.end; ++token) {
        const int64_t row = (chunk.example * layout.tokens + token) * size;
        const int64_t of_example = chunk.example * size;
        NormalizeRow(x.typed_data() + row, shift.typed_data() + of_example,
                     scale.typed_data() + of_example, size, epsilon, y->typed_data() + row);
      }
    });
  });
}

ffi::Error NormalizeGradient(ffi::ThreadPool pool, Buffer x, Buffer scale, Buffer cotangent,
                             ffi::Result<Buffer> of_x, ffi::Result<Buffer> of_shift,
                             ffi::Result<Buffer> of_scale, float epsilon) {
  float* const sums[] = {of_shift->typed_data(), of_scale->typed_data()};
  if (x.element_count() == 0) {
    for (float* to : sums) std::fill_n(to, of_shift->element_count(), 0.0f);
    return ffi::Error::Success();
  }
  const Layout layout(x);
  const int64_t size = layout.size, chunks = layout.chunks;
  return OnUnits([&] {
    thread_local Workspace<float> workspace;
    // Of each chunk its sum over the tokens, in the results themselves where an example has but one.
    const int64_t of_all = layout.examples * chunks * size;
    float* parts[] = {sums[0], sums[1]};
    if (chunks > 1) {
      parts[0] = workspace.Get(2 * of_all);
      parts[1] = parts[0] + of_all;
    }
    layout.Spread(pool, [&](const Chunk& chunk) {
      const int64_t part = chunk.index * size;
      for (float* to : parts) std::fill_n(to + part, size, 0.0f);
      for (int64_t token = chunk.begin; token < chunk.end; ++token) {
        const int64_t row = (chunk.example * layout.tokens + token) * size;
        DifferentiateRow(x.typed_data() + row, scale.typed_data() + chunk.example * size,
                         cotangent.typed_data() + row, size, epsilon, of_x->typed_data() + row,
                         parts[0] + part, parts[1] + part);
      }
    });
    if (chunks == 1) return;
    for (int64_t i = 0; i < 2; ++i)
      for (int64_t example = 0; example < layout.examples; ++example) {
        float* to = sums[i] + example * size;
        const float* from = parts[i] + example * chunks * size;
        std::copy_n(from, size, to);
        for (int64_t chunk = 1; chunk < chunks; ++chunk)
          for (int64_t j = 0; j < size; ++j) to[j] += from[chunk * size + j];
      }
  });
}

}  // namespace
}  // namespace guidedflow

XLA_FFI_DEFINE_HANDLER_SYMBOL(GuidedflowNormalize, guidedflow::Normalize,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<guidedflow::Buffer>()
                                  .Arg<guidedflow::Buffer>()
                                  .Arg<guidedflow::Buffer>()
                                  .Ret<guidedflow::Buffer>()
                                  .Attr<float>("epsilon"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(GuidedflowNormalizeGradient, guidedflow::NormalizeGradient,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<guidedflow::Buffer>()
                                  .Arg<guidedflow::Buffer>()
                                  .Arg<guidedflow::Buffer>()
                                  .Ret<guidedflow::Buffer>()
                                  .Ret<guidedflow::Buffer>()
                                  .Ret<guidedflow::Buffer>()
                                  .Attr<float>("epsilon"));
