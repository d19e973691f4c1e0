// Products of packed operands on what the kernels are compiled for: the matrix units of tiles.h
// (GUIDEDFLOW_AMX) or the fused multiply-add of lanes.h.  Either file says
//   Number                   what a packed operand is made of,
//   kTall, kWide             rows and columns of the block of the result that one call computes,
//   kChunk, kCacheBytes      how much of the contraction, and of a turn's operand, to use up at once,
//   kLeastTurns              in how many turns a thread is to take its share of a product, or more,
//   InUse                    lives while a thread computes,
//   Permitted()              whether this process may compute,
//   BlockNumbers<right>      numbers of a packed block of rows,
//   PackBlocks<right>        packs,
//   MultiplyBlock            multiplies.

#ifndef GUIDEDFLOW_UNITS_H_
#define GUIDEDFLOW_UNITS_H_

#ifdef GUIDEDFLOW_AMX
#include "tiles.h"
#else
#include "lanes.h"
#endif

namespace guidedflow {

template <bool kRight>
constexpr int64_t kSide = kRight ? kWide : kTall;

// A packed operand: blocks of rows, whole, so that the last one may hold rows of zeros.
struct Packed {
  const Number* data;
  int64_t blocks, depth;
};

template <bool kRight>
inline Packed Pack(const Operand& from, Workspace<Number>& workspace) {
  const int64_t blocks = RoundUp(from.rows, kSide<kRight>) / kSide<kRight>;
  Number* data = workspace.Get(blocks * BlockNumbers<kRight>(from.depth));
  PackBlocks<kRight>(from, 0, blocks, data);
  return {data, blocks, from.depth};
}

// The product of two packed operands, added to the numbers at `to` or beginning them: as many rows and
// columns as they have with their padding, the rows `width` numbers apart.
inline void Multiply(const Packed& left, const Packed& right, bool begins, float* to, int64_t width) {
  const int64_t left_block = BlockNumbers<false>(left.depth);
  const int64_t right_block = BlockNumbers<true>(right.depth);
  for (int64_t j = 0; j < right.blocks; ++j)
    for (int64_t i = 0; i < left.blocks; ++i)
      MultiplyBlock(left.data + i * left_block, right.data + j * right_block, left.depth, begins,
                    to + i * kTall * width + j * kWide, width);
}

// Runs `compute` if the units may be used, and says what went wrong.
template <typename Compute>
inline ffi::Error OnUnits(Compute compute) {
  static const bool permitted = Permitted();
  if (!permitted) return ffi::Error::Internal("the kernel gives no permission to use AMX");
  try {
    compute();
    return ffi::Error::Success();
  } catch (const std::bad_alloc&) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "no memory to pack operands");
  }
}

}  // namespace guidedflow

#endif  // GUIDEDFLOW_UNITS_H_
