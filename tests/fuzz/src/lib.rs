//! What the fuzz targets share.

use std::path::PathBuf;

use memcr::pipeline::SearchPath;

mod reseal;

pub use reseal::reseal;

/// The stages that images of the corpus name: those that `run` built and named in
/// `MEMCR_STAGE_PATH`, and no others of this machine.
#[must_use]
pub fn stages() -> SearchPath {
    let dirs = std::env::var_os("MEMCR_STAGE_PATH").unwrap_or_default();
    SearchPath::new(std::env::split_paths(&dirs).map(PathBuf::from).collect())
}
