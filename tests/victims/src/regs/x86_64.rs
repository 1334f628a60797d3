//! The register watch of x86_64: general, x87, SSE, AVX, AVX-512 and `gs` base.
#![allow(unsafe_code)]

use crate::fill::Rng;
use crate::talk::Wrong;

/// Which vector registers the CPU has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    Sse,
    Avx,
    Avx512,
}

impl Level {
    /// The most this CPU offers.
    pub(crate) fn best() -> Self {
        if std::is_x86_feature_detected!("avx512f") && std::is_x86_feature_detected!("avx512bw") {
            Self::Avx512
        } else if std::is_x86_feature_detected!("avx2") {
            Self::Avx
        } else {
            Self::Sse
        }
    }

    /// By name, or the best.
    pub(crate) fn parse(name: &str) -> Self {
        match name {
            "sse" => Self::Sse,
            "avx" => Self::Avx,
            "avx512" => Self::Avx512,
            _ => Self::best(),
        }
    }

    /// Vector registers and bytes of each.
    fn shape(self) -> (usize, usize) {
        match self {
            Self::Sse => (16, 16),
            Self::Avx => (16, 32),
            Self::Avx512 => (32, 64),
        }
    }
}

const N_GENERAL: usize = 15;
const GENERAL: [&str; N_GENERAL] = [
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15",
];
/// Round up, flush to zero, all exceptions masked: differs from the default in every field.
const MXCSR: u32 = 0x5f80 | 0x8000;
/// Round up, extended precision, all exceptions masked.
const FCW: u16 = 0x0b7f;
/// What `fld1 fldpi fldl2e fldln2` leave, last first, under [`FCW`] (SDM 1, table 8-11).
const X87: [[u8; 10]; 4] = [
    [0xac, 0x79, 0xcf, 0xd1, 0xf7, 0x17, 0x72, 0xb1, 0xfe, 0x3f],
    [0xbc, 0xf0, 0x17, 0x5c, 0x29, 0x3b, 0xaa, 0xb8, 0xff, 0x3f],
    [0x35, 0xc2, 0x68, 0x21, 0xa2, 0xda, 0x0f, 0xc9, 0x00, 0x40],
    [0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0x3f],
];

/// What the assembly reads and writes; the offsets are written there as numbers.
#[repr(C, align(64))]
struct Frame {
    general_want: [u64; N_GENERAL], // 0
    n_spins: u64,                   // 120
    general_got: [u64; N_GENERAL],  // 128
    mxcsr_want: u32,                // 248
    mxcsr_got: u32,                 // 252
    vector_want: [[u8; 64]; 32],    // 256
    vector_got: [[u8; 64]; 32],     // 2304
    mask_want: [u64; 8],            // 4352
    mask_got: [u64; 8],             // 4416
    x87_got: [[u8; 16]; 4],         // 4480
    fcw_want: u16,                  // 4544
    fcw_got: u16,                   // 4546
}

// One routine per level. Stack after the prologue: [rsp] frame, [rsp+8] spins left,
// [rsp+16] caller's mxcsr, [rsp+20] caller's x87 control word.
std::arch::global_asm!(
    r#"
.macro victim_prologue
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    sub rsp, 24
    mov [rsp], rdi
    mov rax, [rdi + 120]
    mov [rsp + 8], rax
    stmxcsr [rsp + 16]
    fnstcw [rsp + 20]
    ldmxcsr [rdi + 248]
    fldcw [rdi + 4544]
    fld1
    fldpi
    fldl2e
    fldln2
.endm

.macro victim_spin
    mov rax, [rdi]
    mov rbx, [rdi + 8]
    mov rcx, [rdi + 16]
    mov rdx, [rdi + 24]
    mov rsi, [rdi + 32]
    mov rbp, [rdi + 48]
    mov r8, [rdi + 56]
    mov r9, [rdi + 64]
    mov r10, [rdi + 72]
    mov r11, [rdi + 80]
    mov r12, [rdi + 88]
    mov r13, [rdi + 96]
    mov r14, [rdi + 104]
    mov r15, [rdi + 112]
    mov rdi, [rdi + 40]
77:
    dec qword ptr [rsp + 8]
    jnz 77b
    xchg rdi, [rsp]
    mov [rdi + 128], rax
    mov [rdi + 136], rbx
    mov [rdi + 144], rcx
    mov [rdi + 152], rdx
    mov [rdi + 160], rsi
    mov rax, [rsp]
    mov [rdi + 168], rax
    mov [rdi + 176], rbp
    mov [rdi + 184], r8
    mov [rdi + 192], r9
    mov [rdi + 200], r10
    mov [rdi + 208], r11
    mov [rdi + 216], r12
    mov [rdi + 224], r13
    mov [rdi + 232], r14
    mov [rdi + 240], r15
.endm

.macro victim_epilogue
    fstp tbyte ptr [rdi + 4480]
    fstp tbyte ptr [rdi + 4496]
    fstp tbyte ptr [rdi + 4512]
    fstp tbyte ptr [rdi + 4528]
    stmxcsr [rdi + 252]
    fnstcw [rdi + 4546]
    ldmxcsr [rsp + 16]
    fldcw [rsp + 20]
    add rsp, 24
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret
.endm

victim_spin_sse:
    victim_prologue
    .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
    movdqu xmm\n, [rdi + 256 + 64*\n]
    .endr
    victim_spin
    .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
    movdqu [rdi + 2304 + 64*\n], xmm\n
    .endr
    victim_epilogue

victim_spin_avx:
    victim_prologue
    .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
    vmovdqu ymm\n, [rdi + 256 + 64*\n]
    .endr
    victim_spin
    .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
    vmovdqu [rdi + 2304 + 64*\n], ymm\n
    .endr
    vzeroupper
    victim_epilogue

victim_spin_avx512:
    victim_prologue
    .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    vmovdqu64 zmm\n, [rdi + 256 + 64*\n]
    .endr
    .irp n, 0,1,2,3,4,5,6,7
    kmovq k\n, [rdi + 4352 + 8*\n]
    .endr
    victim_spin
    .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    vmovdqu64 [rdi + 2304 + 64*\n], zmm\n
    .endr
    .irp n, 0,1,2,3,4,5,6,7
    kmovq [rdi + 4416 + 8*\n], k\n
    .endr
    vzeroupper
    victim_epilogue
"#
);

unsafe extern "C" {
    fn victim_spin_sse(frame: *mut Frame);
    fn victim_spin_avx(frame: *mut Frame);
    fn victim_spin_avx512(frame: *mut Frame);
}

/// The registers of one thread.
pub(crate) struct Watch {
    frame: Box<Frame>,
    level: Level,
    gs_base: u64,
}

impl Watch {
    /// Patterns that follow from `seed`; sets the thread's `gs` base, which glibc on
    /// x86_64 leaves unused. Belongs to the calling thread.
    pub(crate) fn new(seed: u64, level: Level, n_spins: u64) -> Self {
        let mut rng = Rng::new(seed, 0x7265_6773);
        let mut frame = Box::new(Frame {
            general_want: std::array::from_fn(|_| rng.next()),
            n_spins,
            general_got: [0; N_GENERAL],
            mxcsr_want: MXCSR,
            mxcsr_got: 0,
            vector_want: [[0; 64]; 32],
            vector_got: [[0; 64]; 32],
            mask_want: std::array::from_fn(|_| rng.next()),
            mask_got: [0; 8],
            x87_got: [[0; 16]; 4],
            fcw_want: FCW,
            fcw_got: 0,
        });
        let (n_vectors, len_bytes) = level.shape();
        for byte in frame.vector_want[..n_vectors]
            .iter_mut()
            .flat_map(|v| &mut v[..len_bytes])
        {
            *byte = rng.next() as u8;
        }
        // Any canonical user address will do as a base.
        let gs_base = rng.next() & 0x7fff_ffff_f000;
        // SAFETY: ARCH_SET_GS (0x1001) takes a number; nothing in this process uses gs.
        unsafe { libc::syscall(libc::SYS_arch_prctl, 0x1001, gs_base) };
        Self {
            frame,
            level,
            gs_base,
        }
    }

    /// Loads, spins, stores, compares.
    ///
    /// # Errors
    /// The first register that changed.
    pub(crate) fn round(&mut self) -> Result<(), Wrong> {
        let frame = &raw mut *self.frame;
        // SAFETY: the frame has the layout the routines expect (asserted below), they
        // keep the callee-saved registers, and `level` is one the CPU offers.
        unsafe {
            match self.level {
                Level::Sse => victim_spin_sse(frame),
                Level::Avx => victim_spin_avx(frame),
                Level::Avx512 => victim_spin_avx512(frame),
            }
        }
        self.general()?;
        self.vectors()?;
        self.control()
    }

    fn general(&self) -> Result<(), Wrong> {
        for (i, name) in GENERAL.iter().enumerate() {
            same(name, self.frame.general_want[i], self.frame.general_got[i])?;
        }
        let mut gs_base = 0u64;
        // SAFETY: ARCH_GET_GS (0x1004) writes one word to `gs_base`.
        unsafe { libc::syscall(libc::SYS_arch_prctl, 0x1004, &raw mut gs_base) };
        same("gs base", self.gs_base, gs_base)
    }

    fn vectors(&self) -> Result<(), Wrong> {
        for i in 0..32 {
            let (want, got) = (self.frame.vector_want[i], self.frame.vector_got[i]);
            if want != got {
                return Err(Wrong::state(format!(
                    "vector register {i}: want {want:02x?} got {got:02x?}"
                )));
            }
        }
        if self.level == Level::Avx512 {
            for i in 0..8 {
                same(
                    &format!("k{i}"),
                    self.frame.mask_want[i],
                    self.frame.mask_got[i],
                )?;
            }
        }
        Ok(())
    }

    fn control(&self) -> Result<(), Wrong> {
        // The low six bits are sticky exception flags, which the kernel may legally lack.
        same(
            "mxcsr",
            u64::from(MXCSR & !0x3f),
            u64::from(self.frame.mxcsr_got & !0x3f),
        )?;
        same(
            "x87 control word",
            u64::from(FCW),
            u64::from(self.frame.fcw_got),
        )?;
        for (i, want) in X87.iter().enumerate() {
            let got = &self.frame.x87_got[i][..10];
            if got != want {
                return Err(Wrong::state(format!(
                    "st{i}: want {want:02x?} got {got:02x?}"
                )));
            }
        }
        Ok(())
    }
}

/// Makes a system call here, not in the C library; answers what the kernel answered and what is
/// in the registers of the arguments afterwards.
///
/// # Safety
/// As for the call.
#[inline(always)]
pub(crate) unsafe fn inline_call(nr: i64, args: [u64; 6]) -> (i64, [u64; 6]) {
    let (mut ret, [mut a, mut b, mut c, mut d, mut e, mut f]) = (nr, args);
    // SAFETY: the kernel changes rax, rcx and r11 only (syscall(2)); the rest is up to who asks.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") ret,
            inout("rdi") a, inout("rsi") b, inout("rdx") c,
            inout("r10") d, inout("r8") e, inout("r9") f,
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
    (ret, [a, b, c, d, e, f])
}

fn same(name: &str, want: u64, got: u64) -> Result<(), Wrong> {
    if want == got {
        return Ok(());
    }
    Err(Wrong::state(format!(
        "register {name}: want {want:#x} got {got:#x}"
    )))
}

const _: () = {
    assert!(std::mem::offset_of!(Frame, n_spins) == 120);
    assert!(std::mem::offset_of!(Frame, general_got) == 128);
    assert!(std::mem::offset_of!(Frame, mxcsr_want) == 248);
    assert!(std::mem::offset_of!(Frame, vector_want) == 256);
    assert!(std::mem::offset_of!(Frame, vector_got) == 2304);
    assert!(std::mem::offset_of!(Frame, mask_want) == 4352);
    assert!(std::mem::offset_of!(Frame, mask_got) == 4416);
    assert!(std::mem::offset_of!(Frame, x87_got) == 4480);
    assert!(std::mem::offset_of!(Frame, fcw_want) == 4544);
    assert!(std::mem::offset_of!(Frame, fcw_got) == 4546);
};

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn undisturbed_registers_stay() {
        let mut watch = Watch::new(3, Level::best(), 1000);
        for _ in 0..100 {
            watch.round().unwrap();
        }
    }

    #[test]
    fn a_changed_register_is_named() {
        let mut watch = Watch::new(3, Level::best(), 10);
        watch.round().unwrap();
        watch.frame.general_got[14] ^= 1;
        assert!(watch.general().unwrap_err().to_string().contains("r15"));
        watch.round().unwrap();
        watch.frame.vector_got[9][15] ^= 1;
        assert!(
            watch
                .vectors()
                .unwrap_err()
                .to_string()
                .contains("register 9")
        );
    }
}
