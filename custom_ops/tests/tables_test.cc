// Formats, conversions, and the list of instruction sets.

#include <cmath>
#include <string>

#include "check.h"
#include "core/counters.h"
#include "core/formats.h"
#include "cpu/kernels/registry.h"
#include "cpu/packing/packed_weights.h"

namespace fp4dit::test {
namespace {

void TestHalf() {
  for (int bits = 0; bits < 65536; ++bits) {
    const int exponent = (bits >> 10) & 31;
    const double mantissa = bits & 1023;
    double value =
        exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(mantissa + 1024, exponent - 25);
    if (exponent == 31) value = mantissa == 0 ? INFINITY : NAN;
    const float wanted = static_cast<float>((bits & 0x8000) != 0 ? -value : value);
    const float found = HalfToFloat(static_cast<uint16_t>(bits));
    CHECK(Same(found, wanted), "half %04x gives %g", bits, static_cast<double>(found));
  }
}

}  // namespace

void TestComparator() {
  CHECK(Same(1.0f, 1.0f) && Same(NAN, -NAN) && Same(-0.0f, -0.0f), "equal values");
  CHECK(!Same(1.0f, -1.0f), "a wrong sign");
  CHECK(!Same(1.0f, std::nextafter(1.0f, 2.0f)), "a wrong last bit");
  CHECK(!Same(0.0f, -0.0f), "a wrong sign of zero");
  CHECK(!Same(1.0f, NAN) && !Same(NAN, 1.0f), "NaN on one side");
  CHECK(!Same(-2.0f, -400.0f), "two negative values");
}

void TestFormats() {
  size_t count = 0;
  const Format* formats = AllFormats(&count);
  std::string names;
  for (size_t f = 0; f < count; ++f) {
    const Format& format = formats[f];
    names += (f == 0 ? "" : ", ") + std::string(format.name);
    CHECK(FindFormat(format.name) == &format, "%s", format.name);
    CHECK(format.storage_bits == (format.bits <= 4 ? 4 : 8), "%s", format.name);
    const size_t half = format.code_count() / 2;
    for (size_t code = 0; code < half; ++code) {
      const float value = format.GridInteger(code);
      CHECK(format.GridInteger(code + half) == -value, "%s code %zu", format.name, code);
      CHECK(StorageOf(format) != kBytes || value <= 127.0f, "%s code %zu", format.name, code);
      uint32_t bits;
      std::memcpy(&bits, &value, sizeof(bits));
      CHECK((bits & 0xffffu) == 0, "%s code %zu is no bfloat16", format.name, code);
    }
  }
  CHECK(names == FormatNames(), "%s", FormatNames());
  CHECK(FindFormat("") == nullptr && FindFormat("e2m") == nullptr, "no such formats");
  TestHalf();
}

void TestRegistry() {
  size_t count = 0;
  const Isa* isas = AllIsas(&count);
  CHECK(isas[count - 1].is_supported(), "the last instruction set runs everywhere");
  CHECK(Select(nullptr).error[0] == '\0' && Select("").error[0] == '\0', "the default");
  for (size_t i = 0; i < count; ++i) {
    const Selection selection = Select(isas[i].name);
    CHECK((selection.error[0] == '\0') == isas[i].is_supported(), "%s", selection.error);
    CHECK(!isas[i].is_supported() || selection.isa == i, "%s", isas[i].name);
    for (int kind = 0; kind < kDotKinds; ++kind) {
      static constexpr WeightStorage kWidest[kDotKinds] = {kBytes, kShorts, kBfloats};
      for (int storage = kNibbles; storage <= kWidest[kind]; ++storage) {
        const ChosenLinear chosen =
            ChooseLinear(i, static_cast<DotKind>(kind), static_cast<WeightStorage>(storage));
        CHECK(chosen.isa >= i && chosen.kernel->run != nullptr, "%s", isas[i].name);
        CHECK(storage <= chosen.kernel->widest, "%s", isas[i].name);
      }
      CHECK(Peak(isas[i].name, kind, 2) >= 0.0, "%s", isas[i].name);
      CHECK(IsWithin(isas[i].kernels->linear[kind].reach, kMostReach[kind]), "%s", isas[i].name);
    }
    for (int type = 0; type < kIntegerTypes; ++type) {
      const IntegerType t = static_cast<IntegerType>(type);
      CHECK(ChooseQuantize(i, t).run != nullptr, "%s", isas[i].name);
      CHECK(ChooseDequantize(i, t).run != nullptr, "%s", isas[i].name);
    }
  }
  const Selection wrong = Select("sparc");
  CHECK(std::strstr(wrong.error, "sparc") != nullptr, "%s", wrong.error);
  CHECK(std::strstr(wrong.error, SupportedIsas()) != nullptr, "%s", wrong.error);
  ResetCounters();
  Count(kCountFpLinear, kDotInt16, count - 1);
  char text[64];
  CHECK(WriteCounters(text, sizeof(text)) == std::strlen(text), "%s", text);
  CHECK(std::string(text) == "{\"FpLinear/int16/scalar\": 1}", "%s", text);
  CHECK(WriteCounters(text, 5) > 5 && std::strlen(text) == 4, "cut off: %s", text);
  ResetCounters();
  CHECK(WriteCounters(text, sizeof(text)) == 2, "%s", text);
}

}  // namespace fp4dit::test
