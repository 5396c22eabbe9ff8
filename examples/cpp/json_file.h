// A JSON file of a bundle: what is absent or of another type is named with file and place.

#ifndef FP4DIT_EXAMPLES_JSON_FILE_H_
#define FP4DIT_EXAMPLES_JSON_FILE_H_

#include <cmath>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "ort.h"

namespace example {

using Json = nlohmann::json;

class JsonFile {
 public:
  explicit JsonFile(const std::filesystem::path& path) : path_(path.u8string()) {
    std::ifstream file(path, std::ios::binary);
    if (!file) throw Error(path_ + " cannot be read: expected a file of the bundle");
    json_ = Json::parse(file, nullptr, /*allow_exceptions=*/false);
    if (!json_.is_object()) throw Error(path_ + " holds no JSON object: export the bundle again");
  }

  // The value at a place such as /sampling/steps, null if there is none.
  const Json& operator[](const std::string& place) const {
    static const Json kNull;
    const Json::json_pointer pointer(place);
    return json_.contains(pointer) ? json_[pointer] : kNull;
  }

  double Number(const std::string& place, double low, double high) const {
    const Json& value = (*this)[place];
    const double found = value.is_number() ? value.get<double>() : std::nan("");
    if (!(found >= low && found <= high)) {
      Fail(place, "a number from " + Json(low).dump() + " to " + Json(high).dump());
    }
    return found;
  }
  size_t Whole(const std::string& place, size_t low, size_t high) const {
    const Json& value = (*this)[place];
    const bool fits = value.is_number_unsigned() && value.get<size_t>() >= low;
    if (!fits || value.get<size_t>() > high) {
      Fail(place, "a whole number from " + std::to_string(low) + " to " + std::to_string(high));
    }
    return value.get<size_t>();
  }
  // A token's number.
  int64_t Id(const std::string& place) const { return Id((*this)[place], place); }
  int64_t Id(const Json& value, const std::string& place) const {
    if (!value.is_number_unsigned() || value.get<uint64_t>() > 1u << 30) Fail(place, "token ids");
    return value.get<int64_t>();
  }
  std::string Text(const std::string& place) const {
    const Json& value = (*this)[place];
    if (!value.is_string()) Fail(place, "a string");
    return value.get<std::string>();
  }
  // An array of `count` numbers.
  std::vector<double> Numbers(const std::string& place, size_t count) const {
    const Json& value = (*this)[place];
    if (!value.is_array() || value.size() != count) {
      Fail(place, "a list of " + std::to_string(count));
    }
    std::vector<double> numbers;
    for (size_t i = 0; i < count; ++i) {
      numbers.push_back(Number(place + "/" + std::to_string(i), -1e6, 1e6));
    }
    return numbers;
  }

  [[noreturn]] void Fail(const std::string& place, const std::string& expected) const {
    const Json& value = (*this)[place];
    const std::string found = value.dump(-1, ' ', true, Json::error_handler_t::replace);
    throw Error(path_ + ": " + place + " is " + (value.is_null() ? "absent" : found.substr(0, 40)) +
                ": expected " + expected + "; export the bundle again");
  }

 private:
  std::string path_;
  Json json_;
};

}  // namespace example

#endif  // FP4DIT_EXAMPLES_JSON_FILE_H_
