// Memory that the kernels of a stream share, and the ways of a linear that need it, on an emulated
// GPU.

#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <utility>

#include "check.h"
#include "fake_ort.h"
#include "gpu/driver/scratch.h"
#include "sample_node.h"

namespace fp4dit::test {
namespace {

using gpu::Scratch;

void PretendToCapture(const char* status) {
#if defined(_WIN32)
  _putenv_s("FAKE_CUDA_CAPTURING", status);
#else
  setenv("FAKE_CUDA_CAPTURING", status, 1);
#endif
}

struct Streams {
  Node node;
  const gpu::Device* device = nullptr;

  // What `scratch` has on stream `stream`, 0 to 15.
  void* Find(const Scratch& scratch, int stream, size_t size) const {
    static char streams[16];
    fake::SetStream(&streams[stream]);
    void* data = nullptr;
    CHECK(scratch.Find(node, nullptr, size, &data) == nullptr, "it found no stream");
    fake::SetStream(nullptr);
    return data;
  }
};

void CheckSharing(const Streams& s) {
  auto first = std::make_unique<Scratch>();
  Scratch second;
  first->Reserve(*s.device, 1000);
  second.Reserve(*s.device, 5000);
  void* const one = s.Find(*first, 0, 100);
  CHECK(one != nullptr && s.Find(second, 0, 5000) == one, "a stream's nodes share memory");
  CHECK(s.Find(*first, 0, 1000) == one, "memory stays where it is");
  void* const other = s.Find(second, 1, 10);
  CHECK(other != nullptr && other != one, "streams share no memory");
  void* const larger = s.Find(second, 0, 6000);
  CHECK(larger != one && s.Find(second, 0, 5000) == one, "what is too small stays too");
  first.reset();
  CHECK(s.Find(second, 0, 5000) == one, "another node still uses it");
}

void CheckRefusals(const Streams& s) {
  Scratch scratch;
  scratch.Reserve(*s.device, 100);
  void* const one = s.Find(scratch, 0, 100);
  PretendToCapture("1");
  CHECK(s.Find(scratch, 0, 100) == one, "what there is serves a capture");
  CHECK(s.Find(scratch, 1, 100) == nullptr, "nothing is allocated in a capture");
  PretendToCapture("0");
  CHECK(s.Find(scratch, 1, size_t{1} << 40) == nullptr, "more than the device has");
  for (int i = 1; i < 8; ++i) CHECK(s.Find(scratch, i, 100) != nullptr, "stream %d", i);
  CHECK(s.Find(scratch, 8, 100) == nullptr, "too many streams");
  CHECK(s.Find(scratch, 7, 100) != nullptr, "those before keep theirs");
}

}  // namespace

void TestGpuScratch() {
  std::string error;
  const auto cpu = fake::RegisterAll(&error);
  const auto gpu = fake::RegisterAll(&error, "CUDAExecutionProvider");
  // Rows that are so many that weights are decoded first, or so few that blocks share the inputs,
  // or too long for shared memory.
  constexpr struct {
    const char* op;
    int64_t rows, k;
  } kCalls[] = {{"FpLinear", 1030, 40}, {"FpLinear", 2, 2048}, {"FpHadamardQuantize", 2, 26000}};
  for (const auto& [op, rows, k] : kCalls) {
    Sample sample = MakeSample(op, "e2m3", "e2m1", rows, k, 3, 128);
    const fake::Outcome wanted = fake::Run(cpu.at(op), &sample.node);
    sample.node.output_types.clear();
    const fake::Outcome found = fake::Run(gpu.at(op), &sample.node, 2);
    CHECK(found.error.empty() && wanted.error.empty(), "%s", found.error.c_str());
    if (!found.error.empty()) continue;
    const auto& [a, b] = std::pair(&wanted.outputs[0], &found.outputs[0]);
    CHECK(std::memcmp(a->data.get(), b->data.get(), a->Bytes()) == 0, "%s", op);
  }
  if (gpu::IsCaptured(nullptr)) return;
  Streams streams;
  streams.node.api = fake::Base()->GetApi(ort::kApiVersion);
  CHECK(gpu::FindDevice(streams.node, &streams.device) == nullptr, "there is a device");
  CheckSharing(streams);
  CheckRefusals(streams);
}

}  // namespace fp4dit::test
