// A plugin of QEMU's user-mode emulation that counts the instructions that were executed, all of
// them and those of some kinds. tools/aarch64_instructions.py builds and loads it.
//
//   -plugin libcount.so,output=FILE,kind=MASK:VALUE,kind=MASK:VALUE,...
//
// FILE receives a line for all and a line for each kind: an instruction is of the first whose VALUE
// equals the encoding under MASK, both hexadecimal. Counts of threads that run at once are inexact.
// QEMU's plugin interface, version 1, is declared here: packages of QEMU come without its header.

#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t Id;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum { kAddU64 = 0 };

void qemu_plugin_register_vcpu_tb_trans_cb(Id id, void (*callback)(Id, struct qemu_plugin_tb*));
void qemu_plugin_register_atexit_cb(Id id, void (*callback)(Id, void*), void* data);
void qemu_plugin_register_vcpu_insn_exec_inline(struct qemu_plugin_insn* instruction, int operation,
                                                void* target, uint64_t value);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb* block);
struct qemu_plugin_insn* qemu_plugin_tb_get_insn(const struct qemu_plugin_tb* block, size_t index);
const void* qemu_plugin_insn_data(const struct qemu_plugin_insn* instruction);

__attribute__((visibility("default"))) int qemu_plugin_version = 1;

enum { kMostKinds = 64 };
static struct {
  uint32_t mask, value;
  uint64_t count;
} kinds[kMostKinds];
static size_t kind_count;
static uint64_t all;
static const char* output;

static void OnTranslation(Id id, struct qemu_plugin_tb* block) {
  (void)id;
  const size_t size = qemu_plugin_tb_n_insns(block);
  for (size_t i = 0; i < size; ++i) {
    struct qemu_plugin_insn* const instruction = qemu_plugin_tb_get_insn(block, i);
    qemu_plugin_register_vcpu_insn_exec_inline(instruction, kAddU64, &all, 1);
    uint32_t word;
    memcpy(&word, qemu_plugin_insn_data(instruction), sizeof word);
    for (size_t k = 0; k < kind_count; ++k) {
      if ((word & kinds[k].mask) != kinds[k].value) continue;
      qemu_plugin_register_vcpu_insn_exec_inline(instruction, kAddU64, &kinds[k].count, 1);
      break;
    }
  }
}

static void OnExit(Id id, void* data) {
  (void)id;
  (void)data;
  FILE* const file = fopen(output, "w");
  if (file == NULL) {
    perror(output);
    return;
  }
  fprintf(file, "%" PRIu64 "\n", all);
  for (size_t k = 0; k < kind_count; ++k) fprintf(file, "%" PRIu64 "\n", kinds[k].count);
  fclose(file);
}

__attribute__((visibility("default"))) int qemu_plugin_install(Id id, const void* info, int count,
                                                               char** arguments) {
  (void)info;
  for (int i = 0; i < count; ++i) {
    uint32_t mask, value;
    if (strncmp(arguments[i], "output=", 7) == 0) {
      output = arguments[i] + 7;
    } else if (kind_count < kMostKinds &&
               sscanf(arguments[i], "kind=%" SCNx32 ":%" SCNx32, &mask, &value) == 2) {
      kinds[kind_count].mask = mask;
      kinds[kind_count++].value = value;
    } else {
      fprintf(stderr, "count_instructions: unexpected argument %s\n", arguments[i]);
      return 1;
    }
  }
  if (output == NULL) {
    fprintf(stderr, "count_instructions: expected output=FILE\n");
    return 1;
  }
  qemu_plugin_register_vcpu_tb_trans_cb(id, OnTranslation);
  qemu_plugin_register_atexit_cb(id, OnExit, NULL);
  return 0;
}
