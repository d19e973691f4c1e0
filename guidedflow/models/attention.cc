// Self-attention and its gradient on the matrix units, for XLA.  See tiles.h.
//
// Of one head's queries q, keys k and values v, with s = scale q k^T and p = softmax(s) by rows, the
// result is o = p v.  Of a cotangent do of o it has the gradient
//   dp = do v^T,   ds = p (dp - the sum of p dp over a row),
//   dq = scale ds k,   dk = scale ds^T q,   dv = p^T do.
// Vaswani et al. 2017, eq. 1, and its derivative.
//
// One task is one head.  It makes as many rows of s as a core's cache holds and uses them up, so that
// tokens by tokens numbers never lie in memory, and the gradient computes p again.

#include <cmath>
#include <limits>

#include "tiles.h"

namespace guidedflow {
namespace {

constexpr int64_t kCacheBytes = 1 << 19;  // a quarter of a core's second cache

// Of one head: its lines, one for each token, in memory that may be written.
struct Lines {
  float* data;
  int64_t row;

  float* operator[](int64_t token) const { return data + token * row; }
};

// Where things are in numbers of shape (batch, tokens, parts, heads, size).  A task is a head of an
// example.
struct Layout {
  int64_t tokens, parts, heads, size;

  int64_t Row() const { return parts * heads * size; }
  int64_t Offset(int64_t task, int64_t part) const {
    return task / heads * tokens * Row() + (part * heads + task % heads) * size;
  }
  Operand Read(const float* data, int64_t task, int64_t part) const {
    return {data + Offset(task, part), tokens, size, Row(), 1};
  }
  Lines Write(float* data, int64_t task, int64_t part) const {
    return {data + Offset(task, part), Row()};
  }
};

struct Head {
  Operand queries, keys, values;
  float scale;
};

// e^x to float32's rounding: x = n log 2 + r, |r| <= log(2) / 2, and the series of e^r.
__m512 Exp(__m512 x) {
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
  // log 2 in two parts, the first of few enough bits to be multiplied exactly.
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 sum = _mm512_set1_ps(1.0f / 5040);
  for (const float term : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f})
    sum = _mm512_fmadd_ps(sum, r, _mm512_set1_ps(term));
  return _mm512_scalef_ps(sum, n);
}

// Replaces a row of logits x by e^(scale (x - max)) and returns their sum.
float Exponentials(float* row, int64_t count, float scale) {
  __m512 largest = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
  for (int64_t j = 0; j < count; j += kSide) {
    const __mmask16 mask = First(count - j);
    largest = _mm512_mask_max_ps(largest, mask, largest, _mm512_maskz_loadu_ps(mask, row + j));
  }
  const __m512 factor = _mm512_set1_ps(scale), top = _mm512_set1_ps(_mm512_reduce_max_ps(largest));
  __m512 sum = _mm512_setzero_ps();
  for (int64_t j = 0; j < count; j += kSide) {
    const __mmask16 mask = First(count - j);
    const __m512 below = _mm512_sub_ps(_mm512_maskz_loadu_ps(mask, row + j), top);
    const __m512 power = Exp(_mm512_mul_ps(factor, below));
    sum = _mm512_mask_add_ps(sum, mask, sum, power);
    _mm512_mask_storeu_ps(row + j, mask, power);
  }
  return _mm512_reduce_add_ps(sum);
}

// Replaces a row of exponentials by the weights p, and one of dp by ds.
void DifferentiateSoftmax(float* weights, float* slopes, int64_t count, float sum) {
  const __m512 inverse = _mm512_set1_ps(1.0f / sum);
  __m512 total = _mm512_setzero_ps();
  for (int64_t j = 0; j < count; j += kSide) {
    const __mmask16 mask = First(count - j);
    const __m512 weight = _mm512_mul_ps(inverse, _mm512_maskz_loadu_ps(mask, weights + j));
    total = _mm512_fmadd_ps(weight, _mm512_maskz_loadu_ps(mask, slopes + j), total);
    _mm512_mask_storeu_ps(weights + j, mask, weight);
  }
  const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(total));
  for (int64_t j = 0; j < count; j += kSide) {
    const __mmask16 mask = First(count - j);
    const __m512 slope = _mm512_sub_ps(_mm512_maskz_loadu_ps(mask, slopes + j), mean);
    const __m512 weight = _mm512_maskz_loadu_ps(mask, weights + j);
    _mm512_mask_storeu_ps(slopes + j, mask, _mm512_mul_ps(weight, slope));
  }
}

// Rows of which a task makes the logits at once, where a row of `numbers` numbers is to stay in cache.
int64_t RowsAtOnce(int64_t tokens, int64_t numbers) {
  const int64_t bytes = numbers * static_cast<int64_t>(sizeof(float));
  const int64_t fitting = std::max(kBlock, kCacheBytes / bytes);
  const int64_t turns = RoundUp(tokens, fitting) / fitting;
  return RoundUp(RoundUp(tokens, turns) / turns, kBlock);
}

// Writes `count` numbers times `factor`.
void WriteScaled(const float* from, int64_t count, float factor, float* to) {
  for (int64_t j = 0; j < count; j += kSide) {
    const __mmask16 mask = First(count - j);
    const __m512 values = _mm512_maskz_loadu_ps(mask, from + j);
    _mm512_mask_storeu_ps(to + j, mask, _mm512_mul_ps(values, _mm512_set1_ps(factor)));
  }
}

// Writes the transpose of `size` rows of `tokens` numbers times `factor`.
void WriteTransposed(const float* from, int64_t width, int64_t tokens, int64_t size, float factor,
                     const Lines& to) {
  alignas(64) float block[kSide][kSide];
  for (int64_t i = 0; i < tokens; i += kSide)
    for (int64_t j = 0; j < size; j += kSide) {
      Transpose(reinterpret_cast<const uint32_t*>(from + j * width + i), width,
                reinterpret_cast<uint32_t*>(block), kSide);
      for (int64_t line = 0; line < std::min(kSide, tokens - i); ++line)
        WriteScaled(block[line], std::min(kSide, size - j), factor, to[i + line] + j);
    }
}

void Attend(const Head& head, const Lines& result) {
  thread_local Workspace<Half> for_keys, for_values, for_rows;
  thread_local Workspace<float> for_logits, for_mixed, for_sums;
  const int64_t tokens = head.keys.rows, size = head.keys.depth;
  const Packed keys = Pack<true>(head.keys, for_keys);
  const Packed values = Pack<true>(head.values.Transposed(), for_values);
  const int64_t width = keys.Rows(), depth = values.Rows();
  // A row of logits, and its three parts of 16 bits.
  const int64_t turn = RowsAtOnce(tokens, 3 * width);
  float* logits = for_logits.Get(turn * width);
  float* mixed = for_mixed.Get(turn * depth);
  float* sums = for_sums.Get(turn);
  const Tiles tiles;
  for (int64_t begin = 0; begin < tokens; begin += turn) {
    const int64_t count = std::min(turn, tokens - begin);
    Multiply(Pack<false>(head.queries.Rows(begin, count), for_rows), keys, true, logits, width);
    for (int64_t i = 0; i < count; ++i)
      sums[i] = Exponentials(logits + i * width, tokens, head.scale);
    const Operand weights = {logits, count, tokens, width, 1};
    Multiply(Pack<false>(weights, for_rows), values, true, mixed, depth);
    for (int64_t i = 0; i < count; ++i)
      WriteScaled(mixed + i * depth, size, 1.0f / sums[i], result[begin + i]);
  }
}

void Differentiate(const Head& head, const Operand& cotangent, const Lines& of_queries,
                   const Lines& of_keys, const Lines& of_values) {
  thread_local Workspace<Half> for_keys, for_values, for_across, for_rows, for_columns;
  thread_local Workspace<float> for_weights, for_slopes, for_dq, for_dk, for_dv;
  const int64_t tokens = head.keys.rows, size = head.keys.depth;
  const Packed keys = Pack<true>(head.keys, for_keys);
  const Packed values = Pack<true>(head.values, for_values);
  const Packed across = Pack<true>(head.keys.Transposed(), for_across);
  const int64_t width = keys.Rows(), depth = across.Rows();
  // Rows of weights and of slopes, the slopes' parts packed both ways.
  const int64_t turn = RowsAtOnce(tokens, 5 * width);
  float* weights = for_weights.Get(turn * width);
  float* slopes = for_slopes.Get(turn * width);
  float* dq = for_dq.Get(turn * depth);
  float* dk = for_dk.Get(depth * width);
  float* dv = for_dv.Get(depth * width);
  const Tiles tiles;
  for (int64_t begin = 0; begin < tokens; begin += turn) {
    const int64_t count = std::min(turn, tokens - begin);
    const Operand queries = head.queries.Rows(begin, count);
    const Operand cotangents = cotangent.Rows(begin, count);
    Multiply(Pack<false>(queries, for_rows), keys, true, weights, width);
    Multiply(Pack<false>(cotangents, for_rows), values, true, slopes, width);
    for (int64_t i = 0; i < count; ++i) {
      const float sum = Exponentials(weights + i * width, tokens, head.scale);
      DifferentiateSoftmax(weights + i * width, slopes + i * width, tokens, sum);
    }
    const Operand p = {weights, count, tokens, width, 1}, ds = {slopes, count, tokens, width, 1};
    Multiply(Pack<false>(ds, for_rows), across, true, dq, depth);
    for (int64_t i = 0; i < count; ++i)
      WriteScaled(dq + i * depth, size, head.scale, of_queries[begin + i]);
    Multiply(Pack<false>(queries.Transposed(), for_rows), Pack<true>(ds.Transposed(), for_columns),
             begin == 0, dk, width);
    Multiply(Pack<false>(cotangents.Transposed(), for_rows),
             Pack<true>(p.Transposed(), for_columns), begin == 0, dv, width);
  }
  WriteTransposed(dk, width, tokens, size, head.scale, of_keys);
  WriteTransposed(dv, width, tokens, size, 1.0f, of_values);
}

// ---- the calls ----

Layout PackedLayout(const Buffer& packed, int64_t heads) {
  const auto shape = packed.dimensions();
  return {shape[1], 3, heads, shape[2] / (3 * heads)};
}

Head HeadOf(const Layout& layout, const float* data, int64_t task) {
  return {layout.Read(data, task, 0), layout.Read(data, task, 1), layout.Read(data, task, 2),
          1.0f / std::sqrt(static_cast<float>(layout.size))};
}

ffi::Error Attention(ffi::ThreadPool pool, Buffer packed, ffi::Result<Buffer> mixed,
                     int64_t heads) {
  if (packed.element_count() == 0) return ffi::Error::Success();
  const Layout from = PackedLayout(packed, heads), to = {from.tokens, 1, heads, from.size};
  return OnUnits([&] {
    RunAll(pool, packed.dimensions()[0] * heads, [&](int64_t task) {
      Attend(HeadOf(from, packed.typed_data(), task), to.Write(mixed->typed_data(), task, 0));
    });
  });
}

ffi::Error AttentionGradient(ffi::ThreadPool pool, Buffer packed, Buffer cotangent,
                             ffi::Result<Buffer> gradient, int64_t heads) {
  if (packed.element_count() == 0) return ffi::Error::Success();
  const Layout from = PackedLayout(packed, heads), of = {from.tokens, 1, heads, from.size};
  float* to = gradient->typed_data();
  return OnUnits([&] {
    RunAll(pool, packed.dimensions()[0] * heads, [&](int64_t task) {
      Differentiate(HeadOf(from, packed.typed_data(), task),
                    of.Read(cotangent.typed_data(), task, 0), from.Write(to, task, 0),
                    from.Write(to, task, 1), from.Write(to, task, 2));
    });
  });
}

}  // namespace
}  // namespace guidedflow

XLA_FFI_DEFINE_HANDLER_SYMBOL(GuidedflowAttention, guidedflow::Attention,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<guidedflow::Buffer>()
                                  .Ret<guidedflow::Buffer>()
                                  .Attr<int64_t>("heads"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(GuidedflowAttentionGradient, guidedflow::AttentionGradient,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<guidedflow::Buffer>()
                                  .Arg<guidedflow::Buffer>()
                                  .Ret<guidedflow::Buffer>()
                                  .Attr<int64_t>("heads"));
