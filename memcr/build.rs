//! Builds the parasite for the target architecture and embeds it as plain bytes.
//!
//! The blob runs at whatever address the target's kernel gives us, alone. So the build
//! fails unless its section has no relocations, its entry is at offset 0, and the
//! object needs no symbol from elsewhere.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use object::{Object, ObjectSection, ObjectSymbol};

const SECTION: &str = ".memcr.parasite";
const ENTRY: &str = "memcr_parasite_entry";
/// The smallest page size: the blob is mapped in one page.
const MAX_BLOB_LEN: usize = 4096;

fn main() -> Result<(), Box<dyn Error>> {
    let sources = Path::new("../parasite/src");
    println!("cargo::rerun-if-changed={}", sources.display());
    let out_dir = PathBuf::from(env::var("OUT_DIR")?);
    let object_path = out_dir.join("parasite.o");
    compile(sources, &object_path)?;
    let blob = extract(&fs::read(&object_path)?)?;
    fs::write(out_dir.join("parasite.bin"), blob)?;
    Ok(())
}

fn compile(sources: &Path, object_path: &Path) -> Result<(), Box<dyn Error>> {
    let status = Command::new(env::var("RUSTC")?)
        .args([
            "--crate-name",
            "memcr_parasite",
            "--crate-type",
            "lib",
            "--edition",
            "2024",
        ])
        .args(["--emit", "obj", "--cfg", "memcr_blob"])
        .args([
            "-C",
            "opt-level=s",
            "-C",
            "panic=abort",
            "-C",
            "relocation-model=pic",
        ])
        .args(["-C", "codegen-units=1", "--target", &env::var("TARGET")?])
        .arg("-o")
        .arg(object_path)
        .arg(sources.join("lib.rs"))
        .status()?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("the parasite does not compile: {status}").into())
    }
}

fn extract(bytes: &[u8]) -> Result<Vec<u8>, Box<dyn Error>> {
    let file = object::File::parse(bytes)?;
    let section = file
        .section_by_name(SECTION)
        .ok_or("the parasite has no code for this architecture; add parasite/src/ARCH.rs")?;
    if let Some((offset, relocation)) = section.relocations().next() {
        return Err(format!("relocation at {SECTION}+{offset:#x}: {relocation:?}").into());
    }
    // Symbol 0 of an ELF file is the null symbol, undefined and without a name.
    if let Some(symbol) = file
        .symbols()
        .find(|s| s.is_undefined() && s.name() != Ok(""))
    {
        return Err(format!("unresolved symbol {:?} in the parasite", symbol.name()).into());
    }
    let entry = file
        .symbols()
        .find(|s| s.name() == Ok(ENTRY))
        .ok_or("the parasite has no entry")?;
    if entry.address() != 0 || entry.section_index() != Some(section.index()) {
        return Err(format!("{ENTRY} is not at offset 0 of {SECTION}").into());
    }
    let blob = section.data()?;
    if blob.is_empty() || blob.len() > MAX_BLOB_LEN {
        return Err(format!(
            "the parasite has {} bytes, not 1..={MAX_BLOB_LEN}",
            blob.len()
        )
        .into());
    }
    Ok(blob.to_vec())
}
