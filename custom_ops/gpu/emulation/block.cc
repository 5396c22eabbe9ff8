#include "gpu/emulation/block.h"

#include <utility>

#include "gpu/emulation/block_state.h"

namespace fp4dit::emulation {
namespace {

// c += a * b of the whole warp, from the fragments to plain matrices and back.
template <typename A, typename B>
void MultiplyWarp(Lane (&lanes)[kLanes]) {
  int32_t a[16][32], b[8][32];
  for (int l = 0; l < kLanes; ++l) {
    const int g = l / 4, t = l % 4;
    for (int byte = 0; byte < 4; ++byte) {
      for (int i = 0; i < 4; ++i) {
        a[g + i % 2 * 8][t * 4 + byte + i / 2 * 16] =
            static_cast<A>(lanes[l].a[i] >> (8 * byte) & 255);
      }
      for (int i = 0; i < 2; ++i) {
        b[g][t * 4 + byte + i * 16] = static_cast<B>(lanes[l].b[i] >> (8 * byte) & 255);
      }
    }
  }
  for (int l = 0; l < kLanes; ++l) {
    for (int i = 0; i < 4; ++i) {
      const int32_t* const row = a[l / 4 + i / 2 * 8];
      const int32_t* const column = b[l % 4 * 2 + i % 2];
      int32_t sum = 0;
      for (int k = 0; k < 32; ++k) sum += row[k] * column[k];
      lanes[l].c[i] =
          static_cast<int32_t>(static_cast<uint32_t>(lanes[l].c[i]) + static_cast<uint32_t>(sum));
    }
  }
}

// Four bytes of each of four matrices, from where `offset` says.
template <typename Offset>
void LoadFromRows(const void* row, uint32_t (&r)[4], Offset offset) {
  Lane& mine = current->MyLane();
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) current->Fail("a row of a matrix is not aligned");
  mine.row = static_cast<const uint8_t*>(row);
  current->Together(kLoadMatrices, [offset](auto& lanes) {
    for (int l = 0; l < kLanes; ++l) {
      for (int i = 0; i < 4; ++i) {
        auto* const bytes = reinterpret_cast<uint8_t*>(&lanes[l].a[i]);
        for (int b = 0; b < 4; ++b) {
          const auto [matrix_row, byte] = offset(l, b);
          const uint8_t* const from = &lanes[8 * i + matrix_row].row[byte];
          current->CheckLane(l, Access::kRead, from, 1);
          bytes[b] = *from;
        }
      }
    }
  });
  std::memcpy(r, mine.a, sizeof(r));
}

}  // namespace

void StartCopy(void* to, const void* from, size_t size, bool live) {
  ThreadState& mine = current->Mine();
  const auto ends = reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from);
  if (ends % size != 0) current->Fail("a copy to shared memory is not aligned");
  if (live) current->Check(Access::kRead, from, size);
  current->Check(Access::kCopy, to, size);
  PendingCopy copy = {
      static_cast<uint8_t*>(to), static_cast<const uint8_t*>(from), size, live, false,
      mine.copy_groups};
  if (current->LandsAtOnce()) copy.Land();
  mine.copies.push_back(copy);
}

void WaitCopies(int left) {
  ThreadState& mine = current->Mine();
  size_t kept = 0;
  for (PendingCopy& copy : mine.copies) {
    if (copy.group >= mine.copy_groups - left) {
      mine.copies[kept++] = copy;
    } else {
      copy.Land();
      current->Check(Access::kLand, copy.to, copy.size);
    }
  }
  mine.copies.resize(kept);
}

void Multiply(bool unsigned_a, bool unsigned_b, Fragments* fragments) {
  Lane& mine = current->MyLane();
  static_cast<Fragments&>(mine) = *fragments;
  current->Together(kMma, [&](auto& lanes) {
    if (unsigned_a && unsigned_b) {
      MultiplyWarp<uint8_t, uint8_t>(lanes);
    } else if (unsigned_a) {
      MultiplyWarp<uint8_t, int8_t>(lanes);
    } else if (unsigned_b) {
      MultiplyWarp<int8_t, uint8_t>(lanes);
    } else {
      MultiplyWarp<int8_t, int8_t>(lanes);
    }
  });
  *fragments = mine;
}

}  // namespace fp4dit::emulation

using namespace fp4dit::emulation;

uint8_t* Shared() { return current->Shared(); }
int Thread() { return current->thread(); }
int Threads() { return current->threads(); }
int64_t Block() { return current->block(); }
void Sync() { current->SyncBlock(); }
void SyncWarp() { current->SyncWarp(); }

uint32_t ShuffleXor(uint32_t v, int mask) {
  Lane& lane = current->MyLane();
  lane.a[0] = v;
  current->Together(kShuffleXor, [mask](auto& lanes) {
    for (int i = 0; i < 32; ++i) lanes[i].b[0] = lanes[i ^ mask].a[0];
  });
  return lane.b[0];
}
uint32_t Shuffle(uint32_t v, int from) {
  Lane& lane = current->MyLane();
  lane.a[0] = v;
  lane.a[1] = static_cast<uint32_t>(from);
  current->Together(kShuffle, [](auto& lanes) {
    for (auto& l : lanes) l.b[0] = lanes[l.a[1] % 32].a[0];
  });
  return lane.b[0];
}
uint32_t Ballot(bool v) {
  Lane& lane = current->MyLane();
  lane.a[0] = v ? 1 : 0;
  current->Together(kBallot, [](auto& lanes) {
    uint32_t all = 0;
    for (int i = 0; i < 32; ++i) all |= lanes[i].a[0] << i;
    for (auto& l : lanes) l.b[0] = all;
  });
  return lane.b[0];
}

uint32_t Permute(uint32_t a, uint32_t b, uint32_t select) {
  const uint64_t both = a | static_cast<uint64_t>(b) << 32;
  if ((select & 0x8888) != 0) current->Fail("a permutation of more than 8 bytes");
  uint32_t r = 0;
  for (int i = 0; i < 4; ++i) {
    r |= (static_cast<uint32_t>(both >> (8 * (select >> (4 * i) & 7))) & 255) << (8 * i);
  }
  return r;
}

void CommitCopies() { ++current->Mine().copy_groups; }

void LoadMatrices(const void* row, uint32_t (&r)[4]) {
  LoadFromRows(row, r, [](int lane, int byte) { return std::pair(lane / 4, lane % 4 * 4 + byte); });
}
void LoadMatricesTransposed(const void* row, uint32_t (&r)[4]) {
  LoadFromRows(row, r, [](int lane, int byte) {
    return std::pair(lane % 4 * 2 + byte / 2, lane / 4 * 2 + byte % 2);
  });
}
