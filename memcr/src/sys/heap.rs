//! The allocator: how it keeps what we gave back.

/// Tells glibc to give long blocks back to the kernel when they are freed, and to keep
/// few heaps. Once, before there is a second thread.
///
/// By default it learns from the first freed buffer that buffers are short-lived, and
/// keeps the next ones, in one heap per thread: with eight workers and zstd 5 MiB stayed
/// with a process that only held a session; so do some 300 KiB. Other C libraries have
/// no such habit and no such switch.
pub fn keep_small() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt takes numbers, and stores them under the lock of its first heap. A
    // value it does not like it refuses, which costs memory and nothing else.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 64 << 10);
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}

/// Gives free memory back to the kernel: for a process that will only wait for a long time.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim takes a number and works under the locks of the heaps.
    unsafe {
        libc::malloc_trim(0);
    }
}
