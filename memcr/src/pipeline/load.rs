//! Loading plugins.

use crate::pipeline::{LoadError, SearchPath, StageDescription};

/// A loaded plugin. Stays loaded until the process ends.
#[derive(Debug, Clone)]
pub struct Plugin {}

impl Plugin {
    /// Loads a plugin by its name, or by its path when that holds a `/`.
    ///
    /// # Errors
    /// When there is none, or it may not or cannot be used.
    pub fn load(_name_or_path: &str, _search: &SearchPath) -> Result<Self, LoadError> {
        unimplemented!()
    }

    /// What it says of itself.
    #[must_use]
    pub fn description(&self) -> &StageDescription {
        unimplemented!()
    }
}
