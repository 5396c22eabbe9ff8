// Launches of kernels whose blocks take a part of a row each.

#ifndef FP4DIT_GPU_OPS_ROWS_H_
#define FP4DIT_GPU_OPS_ROWS_H_

#include <cstddef>

#include "core/node.h"
#include "gpu/arguments.h"
#include "gpu/launch.h"

namespace fp4dit::gpu {

// Cuts rows of `k` into parts of `part`.
RowParts CutRows(size_t k, size_t part);

// As many blocks as there are parts of `rows` rows, `units` of them a block.
OrtStatus* SetBlocks(const Node& node, size_t rows, const RowParts& parts, size_t units,
                     Launch* launch);

}  // namespace fp4dit::gpu

#endif  // FP4DIT_GPU_OPS_ROWS_H_
