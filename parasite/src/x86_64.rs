//! x86_64: `rbx` points to the first entry, `r12` counts the entries (at least 1).
//!
//! `syscall` clobbers `rcx` and `r11` only (syscall(2)); `rbx` and `r12` survive.

core::arch::global_asm!(
    r#"
    .section .memcr.parasite, "ax", @progbits
    .globl memcr_parasite_entry
memcr_parasite_entry:
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
2:
    int3
    jmp 2b
    "#
);
