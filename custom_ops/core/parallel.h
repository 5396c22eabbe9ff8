// Splits work over the runtime's threads.

#ifndef FP4DIT_CORE_PARALLEL_H_
#define FP4DIT_CORE_PARALLEL_H_

#include <cstddef>

#include "abi/ort_abi.h"

namespace fp4dit {

// Runs body(begin, end) over pieces of [0, count), each of about `piece` items; a single piece runs
// right here. `body` must be safe to call from several threads at once.
template <typename Body>
OrtStatus* ParallelFor(const ort::Api* api, const OrtKernelContext* context, size_t count,
                       size_t piece, const Body& body) {
  struct Work {
    const Body* body;
    size_t count;
    size_t piece;
  };
  const Work work = {&body, count, piece};
  const size_t pieces = count / piece + (count % piece != 0 ? 1 : 0);
  if (pieces == 0) return nullptr;
  if (pieces == 1) {
    body(size_t{0}, count);
    return nullptr;
  }
  const auto run = [](void* data, size_t index) {
    const Work& w = *static_cast<const Work*>(data);
    const size_t begin = index * w.piece;
    const size_t end = w.count - begin < w.piece ? w.count : begin + w.piece;
    (*w.body)(begin, end);
  };
  return api->KernelContext_ParallelFor()(context, run, pieces, 0, const_cast<Work*>(&work));
}

}  // namespace fp4dit

#endif  // FP4DIT_CORE_PARALLEL_H_
