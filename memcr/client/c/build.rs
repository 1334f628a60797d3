//! Gives the shared library the name under which programs ask for it, on every system the
//! same: that of the C memcr's.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libmemcrclient.so");
}
