// Tells the operating system which memory will not be read again soon.

#ifndef FP4DIT_CORE_PAGE_OUT_H_
#define FP4DIT_CORE_PAGE_OUT_H_

#include <cstddef>

namespace fp4dit {

// The pages that lie wholly in [data, data + size) may leave RAM; their contents stay. Where the
// runtime maps a model's weights from a file that halves what packed weights take. Does nothing
// where the system has no such call.
void PageOut(const void* data, size_t size);

}  // namespace fp4dit

#endif  // FP4DIT_CORE_PAGE_OUT_H_
