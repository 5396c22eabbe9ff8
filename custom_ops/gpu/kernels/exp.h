// Exponentials, and the GELU that is made of one; included by kernels.

#ifndef FP4DIT_GPU_KERNELS_EXP_H_
#define FP4DIT_GPU_KERNELS_EXP_H_

#include "gpu/device.h"
#include "gpu/kernels/floats.h"

namespace {

// attention.exp.
DEVICE float Exp(float x) {
  const float z = Fma(x, 1.44269502f, kMagic);
  const float n = Sub(z, kMagic);
  const float r = Fma(n, 2.12194442e-4f, Fma(n, -0.693359375f, x));
  float p = 1.0f / 120.0f;
  p = Fma(p, r, 1.0f / 24.0f);
  p = Fma(p, r, 1.0f / 6.0f);
  p = Fma(p, r, 0.5f);
  p = Fma(p, r, 1.0f);
  p = Fma(p, r, 1.0f);
  const float power = AsFloat((AsBits(z) << 23) + (127u << 23));
  return x < -87.0f ? 0.0f : Mul(p, power);
}

// activations.gelu.
DEVICE float Gelu(float x) {
  const float slope = Fma(Mul(x, x), -0.0713548139f, -1.59576912f);
  const float e = Exp(Mul(AsFloat(AsBits(x) & 0x7fffffffu), slope));
  const float above = x < 0.0f ? 0.0f : x;
  return Div(Fma(Sub(x, above), e, above), Add(1.0f, e));
}

}  // namespace

#endif  // FP4DIT_GPU_KERNELS_EXP_H_
