//! Loading plugins, and the safe face of their tables. The only unsafe code of this
//! room, with its two children.
//!
//! ```text
//!   name ─search─▶ file ─trust─▶ dlopen(RTLD_NOW|RTLD_LOCAL) ─┬─ root module of abi_stable: layout compared
//!                                  never closed               └─ else memcr_stage_v1
//!                                                                  │
//!                          Plugin ◀─checked copy of the table── StageTable     (table.rs)
//!                            │ create
//!                          Handle ◀─encode/decode/write_at─ Worker             (handle.rs)
//! ```
//!
//! What the code here trusts: that functions and pointers in a table are what the
//! header says they are. A plugin is code of ours by then; the checks are against
//! mistakes (other version, half-filled table, lengths beyond a buffer), and `trust`
//! is against plugins that somebody else could have written.
#![allow(unsafe_code)]

mod call;
mod handle;
mod table;

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use abi_stable::library::{ROOT_MODULE_LOADER_NAME_WITH_NUL, lib_header_from_path};
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use memcr_plugin_api::abi::{EntryFn, StageTable};
use memcr_plugin_api::export::StageModuleRef;

pub(super) use handle::{Handle, Worker};

use crate::pipeline::error::causes;
use crate::pipeline::search::stage_name;
use crate::pipeline::{Door, LoadError, SearchPath, StageDescription, trust, whole};

/// A loaded plugin. Stays loaded until the process ends: a thread that a plugin left
/// running, or a table that a library kept, must never lead into unmapped memory.
#[derive(Clone)]
pub struct Plugin(Arc<Loaded>);

struct Loaded {
    /// Where the table lies: two loads of one file answer the same.
    source: usize,
    table: StageTable,
    description: StageDescription,
    /// Held during every call into a plugin of thread model SERIAL.
    serial: Mutex<()>,
}

// SAFETY: `table` is never written after `load_file` made it; its pointers lead to
// constants and functions of a library that is never unloaded. Which functions may be
// called at once is kept by the locks in `Handle`.
unsafe impl Send for Loaded {}
// SAFETY: as above.
unsafe impl Sync for Loaded {}

/// Every plugin of this process. Also serialises loading.
static LOADED: Mutex<Vec<Plugin>> = Mutex::new(Vec::new());

impl Plugin {
    /// Loads a plugin by its name, or by its path when that holds a `/`. Runs code of
    /// the plugin on the calling thread.
    ///
    /// # Errors
    /// When there is none, or it may not or cannot be used.
    pub fn load(name_or_path: &str, search: &SearchPath) -> Result<Self, LoadError> {
        let path = search.locate(name_or_path)?;
        Self::load_file(&path)
    }

    /// What it says of itself.
    #[must_use]
    pub fn description(&self) -> &StageDescription {
        &self.0.description
    }

    pub(super) fn load_file(path: &Path) -> Result<Self, LoadError> {
        let fail = |detail: String, hint: &str| LoadError {
            what: format!("cannot load {}", path.display()),
            detail,
            hint: hint.into(),
        };
        let file = path.canonicalize().map_err(|e| fail(e.to_string(), ""))?;
        let id = trust::check(&file)?;
        whole::check(&file).map_err(|detail| fail(detail, "install it again"))?;
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        let (door, table) = open(&file).map_err(|(detail, hint)| fail(detail, hint))?;
        if trust::identify(&file) != Some(id) {
            return Err(fail(
                "the file was replaced while it was loaded".into(),
                "try again",
            ));
        }
        if let Some(plugin) = loaded.iter().find(|plugin| plugin.0.source == table.addr()) {
            check_name(path, plugin.description()).map_err(|detail| fail(detail, ""))?;
            return Ok(plugin.clone());
        }
        let source = table.addr();
        // SAFETY: `table` is what the entry function of a loaded plugin answered.
        let table = unsafe { table::copy(table) }.map_err(|(detail, hint)| fail(detail, hint))?;
        // SAFETY: as above; `copy` checked the version and that all fields are there.
        let description =
            unsafe { table::describe(&table, &file, door) }.map_err(|detail| fail(detail, ""))?;
        check_name(path, &description).map_err(|detail| fail(detail, ""))?;
        let plugin = Self(Arc::new(Loaded {
            source,
            table,
            description,
            serial: Mutex::new(()),
        }));
        loaded.push(plugin.clone());
        Ok(plugin)
    }
}

impl std::fmt::Debug for Plugin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Plugin")
            .field(&self.0.description.name)
            .finish()
    }
}

type OpenError = (String, &'static str);

/// Opens the library and goes through the best door it has.
fn open(file: &Path) -> Result<(Door, *const StageTable), OpenError> {
    // SAFETY: loading runs the library's constructors, which may do anything; `trust`
    // saw to it that nobody but root and the caller could write the file.
    let library = unsafe { Library::open(Some(file), RTLD_NOW | RTLD_LOCAL) };
    let library = library.map_err(|e| {
        (
            causes(&e),
            "it is no shared object for this machine, or needs a library that is not there",
        )
    })?;
    // SAFETY: only whether the symbol exists is asked; its type is abi_stable's to check.
    let has_root_module =
        unsafe { library.get::<*const ()>(ROOT_MODULE_LOADER_NAME_WITH_NUL.as_bytes()) }.is_ok();
    let answer = if has_root_module {
        rust_door(file)
    } else {
        c_door(&library)
    };
    // Never closed, also when it cannot be used: its constructors have run.
    std::mem::forget(library);
    answer
}

fn rust_door(file: &Path) -> Result<(Door, *const StageTable), OpenError> {
    const HINT: &str = "rebuild the plugin with the memcr-plugin-api of this memcr";
    // Not `load_from_file`: it remembers one library for the type and would answer the
    // first plugin for every path.
    let header = lib_header_from_path(file).map_err(|e| (format!("root module: {e}"), HINT))?;
    let module = header
        .init_root_module::<StageModuleRef>()
        .map_err(|e| (format!("root module: {e}"), HINT))?;
    // SAFETY: the layout check above compared this function's type with ours.
    Ok((Door::AbiStable, unsafe { module.table()() }))
}

fn c_door(library: &Library) -> Result<(Door, *const StageTable), OpenError> {
    const HINT: &str = "it is no stage plugin, or one for another major version of the interface";
    let symbol = memcr_plugin_api::abi::ENTRY_SYMBOL;
    // SAFETY: a symbol of this name is, by the header, a function of this type.
    let entry = unsafe { library.get::<EntryFn>(symbol.to_bytes_with_nul()) };
    let entry = entry.map_err(|_| {
        (
            format!("it does not export `{}`", symbol.to_string_lossy()),
            HINT,
        )
    })?;
    // SAFETY: the header demands nothing of the caller.
    Ok((Door::C, unsafe { entry() }))
}

/// The name a file promises is the name of its stage: else `lz4` in a pipeline could
/// mean something else than `lz4` in an image.
fn check_name(path: &Path, description: &StageDescription) -> Result<(), String> {
    match stage_name(path) {
        Some(name) if name == description.name => Ok(()),
        _ => {
            let wanted = crate::pipeline::search::file_name(&description.name);
            Err(format!(
                "its stage is called `{}`, so the file must be called {wanted}",
                description.name
            ))
        }
    }
}
