//! Both doors of a plugin: from a safe trait to the tables of [`crate::abi`].
//!
//! ```text
//!   host ──▶ StageTable.encode ──▶ guard ─────────────▶ Transform::encode
//!            (extern "C" shim)      │ catch_unwind       (safe, the author's)
//!            raw pointers in,       │ poisons the handle
//!            a code out             └─ fills abi::Error
//! ```
//!
//! [`register_stage!`](crate::register_stage) puts into the plugin
//!
//! * the symbol `memcr_stage_v1`, the C door, and
//! * the root module of `abi_stable`, the Rust door, which hands out the same
//!   function. The tables derive `StableAbi`, so that loading through this door
//!   compares every field, type and function signature with those of the host.
//!
//! A host that loads several plugins goes through
//! `lib_header_from_path(path)?.init_root_module::<StageModuleRef>()?`: the
//! `RootModule::load_from*` functions of `abi_stable` remember one library per type
//! and would answer the first plugin for every path.
//!
//! This module, with its children, is the one place of the crate that may hold
//! `unsafe`.
#![allow(unsafe_code)]

mod call;
mod coder;
mod guard;
mod host;
mod info;
mod sink;
#[cfg(test)]
mod tests;

use std::sync::OnceLock;

use abi_stable::StableAbi;
use abi_stable::library::{
    __call_root_module_loader as call_root_module_loader, CheckTypeLayout, LibHeader, RootModule,
    RootModuleResult,
};
use abi_stable::package_version_strings;
use abi_stable::prefix_type::PrefixTypeTrait;
use abi_stable::sabi_types::VersionStrings;

pub use call::Loaded;
pub(crate) use call::{Answer, ChunkArg, Failed, Handle, Worker};
pub use host::Host;
pub use info::validate;

use crate::abi::StageTable;
use crate::stage::{Checksum, Transform};

/// The Rust door: what `abi_stable` finds in a plugin, with its layout.
///
/// It grows by one field per minor version of the ABI whose tables grew; the function
/// behind each answers the same table, typed as that version knew it.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = StageModuleRef, prefix_fields = StageModulePrefix)))]
#[sabi(missing_field(option))]
pub struct StageModule {
    /// `memcr_stage_v1` of the plugin.
    #[sabi(last_prefix_field)]
    pub table: unsafe extern "C" fn() -> *const StageTable,
}

impl RootModule for StageModuleRef {
    abi_stable::declare_root_module_statics! {StageModuleRef}
    const BASE_NAME: &'static str = "memcr_stage";
    const NAME: &'static str = "memcr_stage";
    const VERSION_STRINGS: VersionStrings = package_version_strings!();
}

/// A table that lives as long as the process.
#[derive(Clone, Copy)]
struct TableRef(&'static StageTable);

// SAFETY: a StageTable made by this module is never written after it was built; its
// pointers lead to leaked, immutable text and parameter arrays and to functions.
unsafe impl Send for TableRef {}
// SAFETY: as for Send.
unsafe impl Sync for TableRef {}

/// Keeps the one table of a plugin; used by [`register_stage!`](crate::register_stage).
pub struct TableCell(OnceLock<TableRef>);

impl TableCell {
    /// An empty cell.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "it is only ever a static")]
    pub const fn new() -> Self {
        Self(OnceLock::new())
    }

    /// The table of a [`Transform`], built at the first call.
    pub fn transform<T: Transform>(&self) -> &'static StageTable {
        self.0.get_or_init(|| leak(coder::transform_table::<T>())).0
    }

    /// The table of a [`Checksum`], built at the first call.
    pub fn checksum<C: Checksum>(&self) -> &'static StageTable {
        self.0.get_or_init(|| leak(coder::checksum_table::<C>())).0
    }

    /// The table of a [`crate::sink::Sink`], built at the first call.
    pub fn sink<S: crate::sink::Sink>(&self) -> &'static StageTable {
        self.0.get_or_init(|| leak(sink::sink_table::<S>())).0
    }
}

fn leak(table: StageTable) -> TableRef {
    TableRef(Box::leak(Box::new(table)))
}

/// What [`register_stage!`](crate::register_stage) defines to name a plugin's C door.
#[doc(hidden)]
pub trait Door: 'static {
    /// `memcr_stage_v1` of the plugin.
    const TABLE: unsafe extern "C" fn() -> *const StageTable;
}

/// The Rust door to the table behind a plugin's C door.
#[doc(hidden)]
#[must_use]
pub const fn header<D: Door>() -> Header {
    // SAFETY: the callee demands that the constructor answers a transmuted
    // PrefixRef<StageModuleRef>; `call_root_module_loader` makes that from the
    // StageModuleRef of `root_module`.
    unsafe { LibHeader::from_constructor::<StageModuleRef>(construct::<D>, CheckTypeLayout::Yes) }
}

/// A panic in here becomes an error of the loader, by `call_root_module_loader`.
extern "C" fn construct<D: Door>() -> RootModuleResult {
    call_root_module_loader(root_module::<D>)
}

fn root_module<D: Door>() -> StageModuleRef {
    StageModule { table: D::TABLE }.leak_into_prefix()
}

#[doc(hidden)]
pub use abi_stable::library::LibHeader as Header;

/// Makes the shared object around it a plugin: exports both doors for one type.
///
/// Written once, at the root of the plugin's crate:
///
/// ```text
/// memcr_plugin_api::register_stage!(transform: Lz4);   // impl Transform for Lz4
/// memcr_plugin_api::register_stage!(checksum: Md5);    // impl Checksum for Md5
/// memcr_plugin_api::register_stage!(sink: File);       // impl Sink for File
/// ```
///
/// A name, capability or parameter that the host would refuse fails to compile. Besides
/// the two exported symbols it defines `fn stage_table() -> &'static StageTable` for the
/// plugin's tests. The crate must allow `unsafe_code` to be allowed again (`deny` is
/// fine, `forbid` is not), since exporting a symbol counts as unsafe.
#[macro_export]
macro_rules! register_stage {
    (transform: $stage:ty $(,)?) => {
        $crate::register_stage!(@ transform $stage, $crate::stage::Transform);
    };
    (checksum: $stage:ty $(,)?) => {
        $crate::register_stage!(@ checksum $stage, $crate::stage::Checksum);
    };
    (sink: $stage:ty $(,)?) => {
        $crate::register_stage!(@ sink $stage, $crate::sink::Sink);
    };
    (@ $kind:ident $stage:ty, $trait:path) => {
        const _: () = $crate::export::validate(&<$stage as $trait>::INFO);

        /// The table of this plugin, the same at every call.
        fn stage_table() -> &'static $crate::abi::StageTable {
            static TABLE: $crate::export::TableCell = $crate::export::TableCell::new();
            TABLE.$kind::<$stage>()
        }

        /// The C door.
        // SAFETY: exporting the symbol demands that no other item has this name with
        // another meaning; the name is that of the memcr plugin interface, version 1.
        #[allow(unsafe_code, unreachable_pub)]
        #[unsafe(no_mangle)]
        pub extern "C" fn memcr_stage_v1() -> *const $crate::abi::StageTable {
            stage_table()
        }

        /// The Rust door.
        // SAFETY: as above; the name is the one at which abi_stable 0.11 looks for the
        // header of a root module, and the static is such a header.
        #[allow(unsafe_code, unreachable_pub, non_upper_case_globals)]
        #[unsafe(no_mangle)]
        pub static _1as_0lib_1header_0root_bmodule_bloader: $crate::export::Header = {
            struct Door;
            impl $crate::export::Door for Door {
                const TABLE: unsafe extern "C" fn() -> *const $crate::abi::StageTable = memcr_stage_v1;
            }
            $crate::export::header::<Door>()
        };
    };
}
