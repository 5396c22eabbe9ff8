#include "gpu/emulation/fiber.h"

#if defined(__x86_64__) && defined(__linux__)
asm(".text\n"
    ".p2align 4\n"
    ".globl fp4dit_switch_stack\n"
    ".type fp4dit_switch_stack, @function\n"
    "fp4dit_switch_stack:\n"
    "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
    "  movq %rsp, (%rdi)\n"
    "  movq %rsi, %rsp\n"
    "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n"
    "  ret\n"
    ".size fp4dit_switch_stack, .-fp4dit_switch_stack\n");
#endif
