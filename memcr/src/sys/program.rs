//! Code in our memory: our own, that of libraries, that of stages.

use std::ffi::c_void;

use super::page_size;

/// `DT_FLAGS`, `DT_TEXTREL` and `DF_TEXTREL` of elf(5).
const FLAGS: i64 = 30;
const TEXT_RELOCATIONS: i64 = 22;
const HAS_TEXT_RELOCATIONS: u64 = 4;

/// Lets go of the pages of code and constants: they count as our memory, and most of what has run
/// by the time that a target is to be frozen (flags, configuration, loading, ciphers that are
/// looked for) does not run again. What does comes back from the page cache as it is touched.
pub fn let_go() {
    // SAFETY: `each` is a function of that type, and takes no data.
    unsafe { libc::dl_iterate_phdr(Some(each), std::ptr::null_mut()) };
}

/// Called for the program and for each library.
unsafe extern "C" fn each(info: *mut libc::dl_phdr_info, _: usize, _: *mut c_void) -> libc::c_int {
    // SAFETY: the loader passes what it knows of an object that is loaded; its headers are in its
    // memory, as many as is said.
    let (base, headers) = unsafe {
        let info = &*info;
        let headers = std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum));
        (info.dlpi_addr, headers)
    };
    let dynamic = headers.iter().find(|it| it.p_type == libc::PT_DYNAMIC);
    // That of the kernel (vdso(7)) is no file.
    let is_file = headers.iter().any(|it| it.p_type == libc::PT_GNU_RELRO);
    // SAFETY: where the object says that its dynamic section is.
    if !is_file || dynamic.is_none_or(|it| unsafe { is_changed((base + it.p_vaddr) as *const _) }) {
        return 0;
    }
    let page_len = page_size();
    for it in headers {
        if it.p_type != libc::PT_LOAD || it.p_flags & libc::PF_W != 0 {
            continue;
        }
        let start = (base + it.p_vaddr).next_multiple_of(page_len);
        let end = (base + it.p_vaddr + it.p_memsz) / page_len * page_len;
        if start < end {
            // SAFETY: a part of the object that nobody can write to, nor has changed as it was
            // loaded: it is mapped from its file, and read from there again.
            unsafe {
                libc::madvise(
                    start as *mut c_void,
                    (end - start) as usize,
                    libc::MADV_DONTNEED,
                )
            };
        }
    }
    0
}

/// Whether the loader has changed code or constants, by the dynamic section of an object.
///
/// # Safety
/// `entry` is its first entry; it ends with one of tag 0.
unsafe fn is_changed(mut entry: *const (i64, u64)) -> bool {
    loop {
        // SAFETY: not behind the last one.
        let (tag, value) = unsafe { *entry };
        match tag {
            0 => return false,
            TEXT_RELOCATIONS => return true,
            FLAGS if value & HAS_TEXT_RELOCATIONS != 0 => return true,
            // SAFETY: this was not the last one.
            _ => entry = unsafe { entry.add(1) },
        }
    }
}
