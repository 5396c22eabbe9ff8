// Prompts to token ids, for tokenizers that look words up in a list (WordPiece over lower-cased
// text, as the demo's). The kinds that real T5 and CLIP checkpoints have take a library of their
// own; for them the ids are given by the user.

#ifndef FP4DIT_EXAMPLES_TOKENIZER_H_
#define FP4DIT_EXAMPLES_TOKENIZER_H_

#include <algorithm>
#include <cctype>
#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "json_file.h"

namespace example {

class Tokenizer {
 public:
  explicit Tokenizer(const std::filesystem::path& folder) : file_(folder / "tokenizer.json") {
    for (size_t i = 0; i < List("/added_tokens").size(); ++i) {
      const std::string place = "/added_tokens/" + std::to_string(i);
      special_[file_.Text(place + "/content")] = file_.Id(place + "/id");
    }
    ReadTemplate();
    padding_ = Padding(folder / "tokenizer_config.json");
  }

  // Ids of a prompt with its special tokens, at most `length`: a long prompt is cut before them.
  std::vector<int64_t> Encode(const std::string& prompt, size_t length) const {
    std::vector<int64_t> ids = prompt.empty() ? std::vector<int64_t>() : Words(prompt);
    const size_t reserved = prefix_.size() + suffix_.size();
    if (length < reserved) file_.Fail("/post_processor", "no more special tokens than the text");
    ids.resize(std::min(ids.size(), length - reserved));
    ids.insert(ids.begin(), prefix_.begin(), prefix_.end());
    ids.insert(ids.end(), suffix_.begin(), suffix_.end());
    return ids;
  }

  int64_t padding() const { return padding_; }

 private:
  const Json& List(const std::string& place) const {
    if (!file_[place].is_array()) file_.Fail(place, "a list");
    return file_[place];
  }

  int64_t IdOf(const std::string& token) const {
    const auto found = special_.find(token);
    return found == special_.end() ? -1 : found->second;
  }

  // The special tokens before and after a text.
  void ReadTemplate() {
    if (file_["/post_processor/type"] != "TemplateProcessing") {
      file_.Fail("/post_processor/type", "TemplateProcessing, all that this example knows");
    }
    std::vector<int64_t>* part = &prefix_;
    for (size_t i = 0; i < List("/post_processor/single").size(); ++i) {
      const std::string place = "/post_processor/single/" + std::to_string(i);
      if (!file_[place + "/Sequence"].is_null()) {
        part = &suffix_;
        continue;
      }
      const int64_t id = IdOf(file_.Text(place + "/SpecialToken/id"));
      if (id < 0) file_.Fail(place, "one of /added_tokens");
      part->push_back(id);
    }
  }

  int64_t Padding(const std::filesystem::path& settings) const {
    std::vector<std::string> names = {"<pad>", "[PAD]"};
    const char* const stored = "/padding/pad_token";
    if (!file_[stored].is_null()) names.insert(names.begin(), file_.Text(stored));
    if (std::filesystem::exists(settings)) {
      const JsonFile file(settings);
      for (const char* side : {"/padding_side", "/truncation_side"}) {
        if (!file[side].is_null() && file[side] != "right") file.Fail(side, "\"right\"");
      }
      const char* const place =
          file["/pad_token"].is_object() ? "/pad_token/content" : "/pad_token";
      if (!file[place].is_null()) names.insert(names.begin(), file.Text(place));
    }
    for (const std::string& name : names) {
      if (IdOf(name) >= 0) return IdOf(name);
    }
    file_.Fail("/padding/pad_token", "one of /added_tokens");
  }

  // A prompt's words. Special tokens may stand in it; other text is lower-cased and split at
  // spaces and around punctuation.
  std::vector<int64_t> Words(const std::string& prompt) const {
    CheckKind();
    std::vector<int64_t> ids;
    std::string word;
    const auto finish = [&] {
      if (!word.empty()) Pieces(word, &ids);
      word.clear();
    };
    for (size_t i = 0; i < prompt.size();) {
      if (const std::string special = SpecialAt(prompt, i); !special.empty()) {
        finish();
        ids.push_back(IdOf(special));
        i += special.size();
        continue;
      }
      const auto c = static_cast<unsigned char>(prompt[i++]);
      if (c >= 0x80) throw Error("the prompt is not ASCII: give its token ids with --ids");
      if (std::isspace(c) && c != '\v' && c != '\f') {
        finish();
      } else if (std::ispunct(c)) {
        finish();
        word = static_cast<char>(c);
        finish();
      } else if (!std::iscntrl(c)) {
        word += static_cast<char>(std::tolower(c));
      }
    }
    finish();
    return ids;
  }

  void CheckKind() const {
    const bool known = file_["/model/type"] == "WordPiece" && file_["/model/vocab"].is_object() &&
                       file_["/normalizer/type"] == "BertNormalizer" &&
                       file_["/normalizer/lowercase"] == true &&
                       file_["/pre_tokenizer/type"] == "BertPreTokenizer";
    if (!known) {
      throw Error(
          "the bundle's tokenizer is of another kind than lower-cased WordPiece, all that this "
          "example knows: give the prompt's token ids with --ids");
    }
  }

  std::string SpecialAt(const std::string& prompt, size_t place) const {
    std::string longest;
    for (const auto& [token, id] : special_) {
      const bool here = prompt.compare(place, token.size(), token) == 0;
      if (here && token.size() > longest.size()) longest = token;
    }
    return longest;
  }

  // The longest entries of the vocabulary that a word is made of; the unknown token if it is not.
  void Pieces(const std::string& word, std::vector<int64_t>* ids) const {
    const Json& vocabulary = file_["/model/vocab"];
    const size_t longest = file_.Whole("/model/max_input_chars_per_word", 1, 10000);
    const std::string next = file_.Text("/model/continuing_subword_prefix");
    const size_t known = ids->size();
    for (size_t start = 0; start < word.size();) {
      size_t end = word.size();
      const auto piece = [&] { return (start > 0 ? next : "") + word.substr(start, end - start); };
      while (end > start && !vocabulary.contains(piece())) --end;
      if (end == start || word.size() > longest) {
        ids->resize(known);
        const std::string unknown = file_.Text("/model/unk_token");
        if (!vocabulary.contains(unknown)) file_.Fail("/model/unk_token", "one of the vocabulary");
        ids->push_back(file_.Id(vocabulary[unknown], "/model/vocab"));
        return;
      }
      ids->push_back(file_.Id(vocabulary[piece()], "/model/vocab"));
      start = end;
    }
  }

  JsonFile file_;
  std::map<std::string, int64_t> special_;
  std::vector<int64_t> prefix_, suffix_;
  int64_t padding_ = 0;
};

}  // namespace example

#endif  // FP4DIT_EXAMPLES_TOKENIZER_H_
