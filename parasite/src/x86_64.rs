//! x86_64: `rbx` points to the first entry, `r12` counts the entries (at least 1).
//!
//! `syscall` clobbers `rcx` and `r11` only (syscall(2)); `rbx` and `r12` survive. On the
//! way back the flags are popped last but for the stack pointer and the jump, neither of
//! which changes a flag.

core::arch::global_asm!(
    r#"
    .section .memcr.parasite, "ax", @progbits
    .globl memcr_parasite_entry
memcr_parasite_entry:
.Lbase:
1:
    mov rax, [rbx]
    mov rdi, [rbx + 8]
    mov rsi, [rbx + 16]
    mov rdx, [rbx + 24]
    mov r10, [rbx + 32]
    mov r8, [rbx + 40]
    mov r9, [rbx + 48]
    syscall
    mov [rbx + 56], rax
    add rbx, 64
    dec r12
    jnz 1b
    lea rsp, [rip + .Lbase + {flags}]
    mov r15, [rip + .Lbase + {regs}]
    mov r14, [rip + .Lbase + {regs} + 8]
    mov r13, [rip + .Lbase + {regs} + 16]
    mov r12, [rip + .Lbase + {regs} + 24]
    mov rbp, [rip + .Lbase + {regs} + 32]
    mov rbx, [rip + .Lbase + {regs} + 40]
    mov r11, [rip + .Lbase + {regs} + 48]
    mov r10, [rip + .Lbase + {regs} + 56]
    mov r9, [rip + .Lbase + {regs} + 64]
    mov r8, [rip + .Lbase + {regs} + 72]
    mov rax, [rip + .Lbase + {regs} + 80]
    mov rcx, [rip + .Lbase + {regs} + 88]
    mov rdx, [rip + .Lbase + {regs} + 96]
    mov rsi, [rip + .Lbase + {regs} + 104]
    mov rdi, [rip + .Lbase + {regs} + 112]
    popfq
    mov rsp, [rip + .Lbase + {regs} + 120]
    jmp qword ptr [rip + .Lbase + {regs} + 128]
    "#,
    flags = const crate::DATA + crate::FLAGS,
    regs = const crate::DATA + crate::REGS,
);
