// The last part of a linear whose inputs were shared between blocks: what each has summed exactly,
// in whatever order, becomes y in the order of numerics.linear.

#include "gpu/arguments.h"
#include "gpu/device.h"
#include "gpu/kernels/fold.h"

KERNEL(256) fp4dit_linear_fold(fp4dit::gpu::LinearArguments a) {
  constexpr int kThreads = 256;
  const int block = static_cast<int>(Block());
  const int blocks = static_cast<int>((a.n + kThreads - 1) / kThreads);  // of a row
  const int64_t row = block / blocks;
  const int64_t channel = int64_t{block % blocks} * kThreads + Thread();
  if (channel >= a.n) return;
  const uint32_t* sums = static_cast<const uint32_t*>(a.scratch) + row * a.n_padded + channel;
  const int runs = (a.k - 1) / a.run + 1;
  const float bias = a.bias[channel];
  const float* const scale = a.scale + row * a.scale_stride;
  linear::Fold fold;
  if (a.several != 0) fold.y = bias;
  for (int run = 0; run < runs; ++run) {
    uint32_t sum = 0;
    for (int i = 0; i < a.run_slots; ++i, sums += a.m * a.n_padded) sum += *sums;
    const bool ends = (run + 1) % a.scale_runs == 0 || run + 1 == runs;
    fold.Add(a.several != 0, scale[run / a.act_runs],
             linear::WeightScale(a, run / a.scale_runs, channel), ends,
             ToFloat(static_cast<int32_t>(sum)));
  }
  a.y[row * a.n + channel] = fold.Result(a, *scale, bias);
}
