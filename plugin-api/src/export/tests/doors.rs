//! Both doors lead to one table; the Rust door really compares layouts; panics stay in.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::ffi::CStr;

use abi_stable::StableAbi;
use abi_stable::library::{LibraryError, ROOT_MODULE_LOADER_NAME, RootModule};
use abi_stable::sabi_types::VersionStrings;

use super::super::{Door, Header, StageModuleRef, header};
use crate::abi::{self, StageTable, code};
use crate::stage::{
    Chunk, Encoded, ParamKind, ParamSpec, Params, Result, StageInfo, Threads, Transform,
};
use crate::{Host, register_stage};

register_stage!(transform: Fragile);

/// Panics when it is told to, else passes bytes on.
struct Fragile {
    panic_in: Option<String>,
}

impl Fragile {
    fn reach(&self, place: &str) {
        assert!(self.panic_in.as_deref() != Some(place), "reached {place}");
    }
}

impl Drop for Fragile {
    fn drop(&mut self) {
        self.reach("drop");
    }
}

impl Transform for Fragile {
    type Worker = ();
    const INFO: StageInfo = StageInfo {
        name: "fragile",
        version: "1.2.3",
        summary: "panics when told to",
        threads: Threads::Parallel,
        capabilities: 0,
        params: &[ParamSpec {
            name: "panic_in",
            kind: ParamKind::Choice(&["create", "worker", "bound", "encode", "drop"]),
            default: None,
            required: false,
            recorded: false,
            help: "where to panic",
        }],
    };

    fn create(params: &Params, _: Host) -> Result<Self> {
        let stage = Self {
            panic_in: params.get("panic_in").map(str::to_owned),
        };
        stage.reach("create");
        Ok(stage)
    }
    fn worker(&self) -> Result<()> {
        self.reach("worker");
        Ok(())
    }
    fn bound(&self, in_len: usize) -> usize {
        self.reach("bound");
        in_len
    }
    fn encode(&self, _: &mut (), _: &Chunk<'_>, input: &[u8], _: &mut [u8]) -> Result<Encoded> {
        self.reach("encode");
        Ok(Encoded::Len(input.len()))
    }
    fn decode(&self, _: &mut (), _: &Chunk<'_>, input: &[u8], _: &mut [u8]) -> Result<usize> {
        Ok(input.len())
    }
}

struct TestDoor;
impl Door for TestDoor {
    const TABLE: unsafe extern "C" fn() -> *const StageTable = memcr_stage_v1;
}

#[test]
fn both_doors_lead_to_one_table() {
    let header: &'static Header = Box::leak(Box::new(header::<TestDoor>()));
    let module = header.init_root_module::<StageModuleRef>().unwrap();
    // SAFETY: the function is `memcr_stage_v1` of this test, which demands nothing.
    let table = unsafe { module.table()() };
    assert_eq!(table, memcr_stage_v1());
    assert_eq!(table, std::ptr::from_ref(stage_table()));
}

#[test]
fn the_macro_exports_the_name_that_abi_stable_looks_up() {
    // register_stage! must spell the name out: attributes take no constants.
    assert_eq!(
        ROOT_MODULE_LOADER_NAME,
        "_1as_0lib_1header_0root_bmodule_bloader"
    );
    assert_eq!(abi::ENTRY_SYMBOL, c"memcr_stage_v1");
}

/// The same tables, compiled a second time: equal layouts of other types must pass.
#[path = "../../abi.rs"]
#[allow(dead_code, unused_imports, unreachable_pub, clippy::duplicate_mod)]
mod twin;

macro_rules! module {
    ($name:ident, $table:ty) => {
        #[allow(dead_code)]
        mod $name {
            use super::*;
            #[repr(C)]
            #[derive(StableAbi)]
            #[sabi(kind(Prefix(prefix_ref = StageModuleRef, prefix_fields = StageModulePrefix)))]
            #[sabi(missing_field(option))]
            pub(super) struct StageModule {
                #[sabi(last_prefix_field)]
                table: unsafe extern "C" fn() -> *const $table,
            }
            impl RootModule for StageModuleRef {
                abi_stable::declare_root_module_statics! {StageModuleRef}
                const BASE_NAME: &'static str = "memcr_stage";
                const NAME: &'static str = "memcr_stage";
                const VERSION_STRINGS: VersionStrings = abi_stable::package_version_strings!();
            }
        }
    };
}

/// Tables that differ from the plugin's in one place: a struct behind a pointer that is
/// an argument of a function.
mod deep {
    use abi_stable::StableAbi;

    #[repr(C)]
    #[derive(StableAbi)]
    pub(super) struct StageTable {
        encode: Option<unsafe extern "C" fn(chunk: *const Chunk)>,
    }
    #[repr(C)]
    #[derive(StableAbi)]
    struct Chunk {
        index: u64,
    }
    pub(super) mod changed {
        use abi_stable::StableAbi;

        #[repr(C)]
        #[derive(StableAbi)]
        pub(in super::super) struct StageTable {
            encode: Option<unsafe extern "C" fn(chunk: *const Chunk)>,
        }
        #[repr(C)]
        #[derive(StableAbi)]
        struct Chunk {
            index: i64,
        }
    }
}

module!(of_twin, twin::StageTable);
module!(of_deep, deep::StageTable);
module!(of_changed, deep::changed::StageTable);

#[test]
fn the_rust_door_compares_layouts_not_names() {
    let header = header::<TestDoor>();
    header.ensure_layout::<of_twin::StageModuleRef>().unwrap();
    let error = header
        .ensure_layout::<of_deep::StageModuleRef>()
        .unwrap_err();
    assert!(
        matches!(error, LibraryError::AbiInstability(_)),
        "{error:?}"
    );
}

#[test]
fn the_layout_check_reaches_structs_behind_function_arguments() {
    extern "C" fn never() -> abi_stable::library::RootModuleResult {
        unreachable!("only layouts are compared")
    }
    // SAFETY: the constructor is never called: `ensure_layout` compares constants.
    let header = unsafe {
        Header::from_constructor::<of_deep::StageModuleRef>(
            never,
            abi_stable::library::CheckTypeLayout::Yes,
        )
    };
    header.ensure_layout::<of_deep::StageModuleRef>().unwrap();
    let error = header
        .ensure_layout::<of_changed::StageModuleRef>()
        .unwrap_err();
    assert!(error.to_string().contains("index"), "{error}");
}

/// An empty error as the host lends it, and its message afterwards.
fn blank() -> abi::Error {
    abi::Error {
        struct_size: size_of::<abi::Error>() as u32,
        sys_errno: 0,
        message: [0; 376],
        hint: [0; 128],
    }
}

fn message(error: &abi::Error) -> &str {
    // SAFETY: the shims leave a NUL in the array, `blank` filled it with them.
    unsafe { CStr::from_ptr(error.message.as_ptr()) }
        .to_str()
        .unwrap()
}

/// Makes a handle of the fragile stage; null with the code when it fails.
fn create(panic_in: &CStr, error: &mut abi::Error) -> (i32, abi::Handle) {
    let pair = abi::KeyValue {
        key: c"panic_in".as_ptr(),
        value: panic_in.as_ptr(),
    };
    let mut handle = std::ptr::null_mut();
    // SAFETY: one pair of texts, a place for the handle, an error of our own.
    let code = unsafe {
        stage_table().create.unwrap()(std::ptr::null(), &raw const pair, 1, &raw mut handle, error)
    };
    (code, handle)
}

#[test]
fn a_panic_becomes_a_code_with_its_message() {
    let mut error = blank();
    let (code, handle) = create(c"create", &mut error);
    assert_eq!((code, handle), (code::PANIC, std::ptr::null_mut()));
    assert_eq!(message(&error), "the plugin panicked: reached create");
}

#[test]
fn after_a_panic_the_handle_answers_nothing_else() {
    let table = stage_table();
    let mut error = blank();
    let (code, handle) = create(c"bound", &mut error);
    assert_eq!(code, code::OK);
    // SAFETY: a live handle.
    assert_eq!(unsafe { table.bound.unwrap()(handle, 4096) }, 0);
    let mut worker = std::ptr::null_mut();
    // SAFETY: a live handle, a place for the worker, an error of our own.
    let code = unsafe { table.worker_create.unwrap()(handle, &raw mut worker, &raw mut error) };
    assert_eq!(code, code::PANIC);
    assert!(message(&error).contains("panicked before"));
    // SAFETY: a live handle, not used afterwards.
    unsafe { table.destroy.unwrap()(handle) };
}

#[test]
fn a_panic_in_drop_stays_inside() {
    let (_, handle) = create(c"drop", &mut blank());
    // SAFETY: a live handle, not used afterwards.
    unsafe { stage_table().destroy.unwrap()(handle) };
}

#[test]
fn the_shim_checks_parameters_too() {
    let mut error = blank();
    let (code, _) = create(c"roof", &mut error);
    assert_eq!(code, code::INVALID_CONFIG);
    assert!(
        message(&error).contains("`panic_in` has the value `roof`"),
        "{}",
        message(&error)
    );
}

#[test]
fn an_error_is_cut_between_characters_and_keeps_to_the_size_it_was_given() {
    let mut error = blank();
    error.hint = [7; 128];
    error.struct_size = std::mem::offset_of!(abi::Error, hint) as u32;
    let long = crate::stage::StageError::new(code::IO, "ä".repeat(300)).hint("beyond the size");
    // SAFETY: an error of our own that says it is shorter than it is.
    let answer = unsafe { super::super::guard::write_error(&raw mut error, &long) };
    assert_eq!(answer, code::IO);
    assert_eq!(message(&error), "ä".repeat(187));
    assert_eq!(
        error.hint, [7; 128],
        "written beyond the size the host gave"
    );
}
