#include "gpu/ops/rows.h"

namespace fp4dit::gpu {

RowParts CutRows(size_t k, size_t part) {
  RowParts parts;
  parts.k = static_cast<int64_t>(k);
  parts.part = static_cast<int64_t>(part);
  parts.parts = static_cast<int64_t>(k / part + (k % part != 0 ? 1 : 0));
  return parts;
}

OrtStatus* SetBlocks(const Node& node, size_t rows, const RowParts& parts, size_t units,
                     Launch* launch) {
  constexpr size_t kMostBlocks = 0x7fffffff;
  const size_t count = rows * static_cast<size_t>(parts.parts);
  const size_t blocks = count / units + (count % units != 0 ? 1 : 0);
  if (blocks > kMostBlocks) return node.Fail("%zu rows are more than a GPU takes at once", rows);
  launch->blocks = static_cast<uint32_t>(blocks);
  return nullptr;
}

}  // namespace fp4dit::gpu
