// Self-attention and its gradient, for XLA.  See units.h.
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

#include "units.h"

namespace guidedflow {
namespace {

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

// Replaces a row of logits x by e^(scale (x - max)), padded with zeros to whole vectors, and returns
// their sum.
float Exponentials(float* row, int64_t count, float scale) {
  const int64_t padded = RoundUp(count, kLanes);
  std::fill(row + count, row + padded, -std::numeric_limits<float>::infinity());
  Vector largest = Load(row);
  for (int64_t j = kLanes; j < padded; j += kLanes) largest = Larger(largest, Load(row + j));
  const float top = Largest(largest);
  Vector sum = {};
  for (int64_t j = 0; j < padded; j += kLanes) {
    const Vector power = Exp(scale * (Load(row + j) - top));
    sum += power;
    Store(power, row + j);
  }
  return Sum(sum);
}

// Replaces a row of exponentials by the weights p, and one of dp by ds.
void DifferentiateSoftmax(float* weights, float* slopes, int64_t count, float sum) {
  const float inverse = 1.0f / sum;
  Vector total = {};
  for (int64_t j = 0; j < count; j += kLanes) {
    const Vector weight = inverse * Load(weights + j);
    total += weight * Load(slopes + j);
    Store(weight, weights + j);
  }
  const float mean = Sum(total);
  for (int64_t j = 0; j < count; j += kLanes)
    Store(Load(weights + j) * (Load(slopes + j) - mean), slopes + j);
}

// Rows of which a task makes the logits at once, where a row of `numbers` numbers is to stay in cache.
int64_t RowsAtOnce(int64_t tokens, int64_t numbers) {
  const int64_t bytes = numbers * static_cast<int64_t>(sizeof(float));
  const int64_t fitting = std::max(kTall, kCacheBytes / 2 / bytes);
  const int64_t turns = RoundUp(tokens, fitting) / fitting;
  return RoundUp(RoundUp(tokens, turns) / turns, kTall);
}

// Writes `count` numbers times `factor`.
void WriteScaled(const float* from, int64_t count, float factor, float* to) {
  for (int64_t j = 0; j < count; j += kLanes) Store(factor * Load(from + j), to + j, count - j);
}

// Writes the transpose of `size` rows of `tokens` numbers times `factor`; what lies beyond either,
// to whole vectors, may be read.
void WriteTransposed(const float* from, int64_t width, int64_t tokens, int64_t size, float factor,
                     const Lines& to) {
  for (int64_t i = 0; i < tokens; i += kLanes)
    for (int64_t j = 0; j < size; j += kLanes) {
      Vector lines[kLanes];
      for (int64_t line = 0; line < kLanes; ++line) lines[line] = Load(from + (j + line) * width + i);
      Transpose(lines);
      for (int64_t line = 0; line < std::min(kLanes, tokens - i); ++line)
        Store(factor * lines[line], to[i + line] + j, size - j);
    }
}

void Attend(const Head& head, const Lines& result) {
  thread_local Workspace<Number> for_keys, for_values, for_rows;
  thread_local Workspace<float> for_logits, for_mixed, for_sums;
  const int64_t tokens = head.keys.rows, size = head.keys.depth;
  const Packed keys = Pack<true>(head.keys, for_keys);
  const Packed values = Pack<true>(head.values.Transposed(), for_values);
  const int64_t width = keys.blocks * kWide, depth = values.blocks * kWide;
  // A row of logits, and as it is packed.
  const int64_t turn = RowsAtOnce(tokens, 3 * width);
  float* logits = for_logits.Get(turn * width);
  float* mixed = for_mixed.Get(turn * depth);
  float* sums = for_sums.Get(turn);
  [[maybe_unused]] const InUse in_use;
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
  thread_local Workspace<Number> for_keys, for_values, for_across, for_rows, for_columns;
  thread_local Workspace<float> for_weights, for_slopes, for_dq, for_dk, for_dv;
  const int64_t tokens = head.keys.rows, size = head.keys.depth;
  const Packed keys = Pack<true>(head.keys, for_keys);
  const Packed values = Pack<true>(head.values, for_values);
  const Packed across = Pack<true>(head.keys.Transposed(), for_across);
  const int64_t width = keys.blocks * kWide, depth = across.blocks * kWide;
  // Rows of weights and of slopes, the slopes packed both ways.
  const int64_t turn = RowsAtOnce(tokens, 5 * width);
  float* weights = for_weights.Get(turn * width);
  float* slopes = for_slopes.Get(turn * width);
  float* dq = for_dq.Get(turn * depth);
  // With their features as rows, in whole blocks and whole vectors.
  const int64_t features = std::max(RoundUp(size, kTall), RoundUp(size, kLanes));
  float* dk = for_dk.Get(features * width);
  float* dv = for_dv.Get(features * width);
  [[maybe_unused]] const InUse in_use;
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
