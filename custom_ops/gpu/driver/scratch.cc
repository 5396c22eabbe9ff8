#include "gpu/driver/scratch.h"

#include <atomic>
#include <new>

namespace fp4dit::gpu {

struct Scratch::Block {
  const Device* device;
  void* stream;
  size_t size;
  size_t users;  // nodes
  DeviceMemory memory;
  Block* next;
};

// All nodes that reserved something, and all blocks; one thread at a time has them.
struct Scratch::All {
  std::atomic_flag taken = ATOMIC_FLAG_INIT;
  Scratch* nodes = nullptr;
  Block* blocks = nullptr;

  static All& The() {
    static All all;
    return all;
  }
};

namespace {

class Taken {
 public:
  explicit Taken(std::atomic_flag* flag) : flag_(flag) {
    while (flag_->test_and_set(std::memory_order_acquire)) {
    }
  }
  ~Taken() { flag_->clear(std::memory_order_release); }
  Taken(const Taken&) = delete;
  Taken& operator=(const Taken&) = delete;

 private:
  std::atomic_flag* flag_;
};

}  // namespace

void Scratch::Reserve(const Device& device, size_t size) {
  All& all = All::The();
  const Taken taken(&all.taken);
  if (device_ == nullptr) {
    next_ = all.nodes;
    all.nodes = this;
  }
  device_ = &device;
  size_ = size;
}

Scratch::~Scratch() {
  if (device_ == nullptr) return;
  All& all = All::The();
  const Taken taken(&all.taken);
  Scratch** node = &all.nodes;
  while (*node != this) node = &(*node)->next_;
  *node = next_;
  for (Block** at = &all.blocks; *at != nullptr;) {
    Block* const block = *at;
    bool mine = false;
    for (Block* const used : used_) mine = mine || used == block;
    if (mine && --block->users == 0) {
      *at = block->next;
      delete block;
    } else {
      at = &block->next;
    }
  }
}

size_t Scratch::LargestReserved(size_t size) const {
  for (const Scratch* node = All::The().nodes; node != nullptr; node = node->next_) {
    if (node->device_ == device_ && node->size_ > size) size = node->size_;
  }
  return size;
}

// A block that this node uses already or may begin to use; null: there is none yet.
Scratch::Block* Scratch::Use(void* stream, size_t size) const {
  const auto fits = [&](const Block& block) {
    return block.device == device_ && block.stream == stream && block.size >= size;
  };
  for (Block* const used : used_) {
    if (used != nullptr && fits(*used)) return used;
  }
  for (Block*& used : used_) {
    if (used != nullptr) continue;
    Block* block = All::The().blocks;
    while (block != nullptr && !fits(*block)) block = block->next;
    if (block == nullptr) return nullptr;
    ++block->users;
    return used = block;
  }
  return nullptr;
}

OrtStatus* Scratch::Find(const Node& node, OrtKernelContext* context, size_t size,
                         void** data) const {
  *data = nullptr;
  void* stream = nullptr;
  FP4DIT_RETURN_IF_ERROR(StreamOf(node, context, &stream));
  All& all = All::The();
  const Taken taken(&all.taken);
  Block* block = Use(stream, size);
  if (block == nullptr && used_[kMostBlocks - 1] == nullptr && !IsCaptured(stream)) {
    block = new (std::nothrow) Block{device_, stream, LargestReserved(size), 0, {}, all.blocks};
    if (block == nullptr) return nullptr;
    if (!block->memory.TryAllocate(*device_, block->size)) {
      delete block;
      return nullptr;
    }
    all.blocks = block;
    block = Use(stream, size);
  }
  if (block != nullptr) *data = block->memory.As<void>();
  return nullptr;
}

}  // namespace fp4dit::gpu
