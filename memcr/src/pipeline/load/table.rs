//! From the table of a plugin to a checked copy and a description.

use std::ffi::{CStr, c_char};
use std::path::Path;

use memcr_plugin_api::abi::{
    self, ABI_MAJOR, ABI_MINOR, Param, StageTable, capability, kind, param, threads,
};
use memcr_plugin_api::stage::is_name;

use crate::pipeline::{
    Door, ParamDescription, ParamType, StageDescription, StageKind, ThreadModel,
};

/// More parameters than this are a mistake, bytes read as a number.
const MAX_PARAMS: u32 = 64;
const REBUILD: &str = "rebuild the plugin for this version of the interface";

/// Names of the capability bits.
const CAPABILITIES: [(u64, &str); 8] = [
    (capability::INDEPENDENT_CHUNKS, "independent-chunks"),
    (capability::COMPRESSES, "compresses"),
    (capability::ENCRYPTS, "encrypts"),
    (capability::AUTHENTICATES, "authenticates"),
    (capability::WRITE_ANYWHERE, "write-anywhere"),
    (capability::READ_BEFORE_COMMIT, "read-before-commit"),
    (capability::IN_MEMORY, "in-memory"),
    (capability::KEEPS_UNFINISHED, "keeps-unfinished"),
];

/// Copies the table of a plugin, as far as this host knows its fields.
///
/// # Safety
/// `table` is null or what the entry function of a loaded plugin answered.
pub(super) unsafe fn copy(table: *const StageTable) -> Result<StageTable, (String, &'static str)> {
    if table.is_null() || !table.is_aligned() {
        return Err(("its entry function answers no table".into(), ""));
    }
    // SAFETY: every version of the table begins with these two fields.
    let (size, version) = unsafe { ((*table).struct_size, (*table).abi_version) };
    let (major, minor) = (version >> 16, version & 0xffff);
    if major != ABI_MAJOR {
        let found = format!(
            "it was built for version {major}.{minor} of the interface, this memcr speaks {ABI_MAJOR}.{ABI_MINOR}"
        );
        return Err((found, REBUILD));
    }
    let wanted = size_of::<StageTable>();
    if (size as usize) < wanted {
        return Err((
            format!("its table has {size} bytes, version {ABI_MAJOR}.{ABI_MINOR} has {wanted}"),
            REBUILD,
        ));
    }
    // SAFETY: the plugin says that its table is at least as long as ours, and tables of
    // one major version only grow at the end.
    Ok(unsafe { std::ptr::read(table) })
}

/// Checks a copied table and describes the plugin in words.
///
/// # Safety
/// `table` comes from [`copy`].
pub(super) unsafe fn describe(
    table: &StageTable,
    path: &Path,
    door: Door,
) -> Result<StageDescription, String> {
    // SAFETY: the header demands NUL-terminated texts that live as long as the library,
    // which is never unloaded; so for the three below.
    let name = unsafe { text(table.name, "name") }?;
    if !is_name(&name) {
        return Err(format!(
            "the name `{}` of its stage is not 1 to 32 of a-z, 0-9 and _",
            name.escape_debug()
        ));
    }
    let kind = stage_kind(table.kind)?;
    check_functions(table, kind)?;
    Ok(StageDescription {
        name,
        kind,
        // SAFETY: see `name`.
        version: unsafe { text(table.version, "version") }?,
        // Both halves of a 32-bit version.
        abi_version: ((table.abi_version >> 16) as u16, table.abi_version as u16),
        threads: thread_model(table.threads)?,
        capabilities: capabilities(table.capabilities, kind)?,
        // SAFETY: see `name`.
        summary: unsafe { text(table.summary, "summary") }?,
        // SAFETY: see `name`.
        params: unsafe { params(table) }?,
        path: path.to_owned(),
        door,
        capability_bits: table.capabilities,
    })
}

fn stage_kind(kind: u32) -> Result<StageKind, String> {
    match kind {
        kind::TRANSFORM => Ok(StageKind::Transform),
        kind::CHECKSUM => Ok(StageKind::Checksum),
        kind::SINK => Ok(StageKind::Sink),
        _ => Err(format!(
            "its stage is of kind {kind}, known are 1 (transform), 2 (checksum) and 3 (sink)"
        )),
    }
}

fn thread_model(threads: u32) -> Result<ThreadModel, String> {
    match threads {
        threads::SERIAL => Ok(ThreadModel::Serial),
        threads::PER_HANDLE => Ok(ThreadModel::PerHandle),
        threads::PARALLEL => Ok(ThreadModel::Parallel),
        _ => Err(format!(
            "its thread model is {threads}, known are 1 (serial), 2 (per handle) and 3 (parallel)"
        )),
    }
}

/// Names of the bits. A bit that is unknown, or says what stages of this kind cannot
/// do, is refused: the host would derive wrong rights from it.
fn capabilities(bits: u64, kind: StageKind) -> Result<Vec<&'static str>, String> {
    use capability::{
        AUTHENTICATES, COMPRESSES, ENCRYPTS, IN_MEMORY, INDEPENDENT_CHUNKS, KEEPS_UNFINISHED,
        READ_BEFORE_COMMIT, WRITE_ANYWHERE,
    };
    let allowed = match kind {
        StageKind::Transform => INDEPENDENT_CHUNKS | COMPRESSES | ENCRYPTS | AUTHENTICATES,
        StageKind::Checksum => INDEPENDENT_CHUNKS | AUTHENTICATES,
        StageKind::Sink => WRITE_ANYWHERE | READ_BEFORE_COMMIT | IN_MEMORY | KEEPS_UNFINISHED,
    };
    let unknown = bits & !allowed;
    if unknown != 0 {
        return Err(format!(
            "it declares capabilities {unknown:#x}, which a {kind} does not have in version {ABI_MAJOR}.{ABI_MINOR}"
        ));
    }
    Ok(CAPABILITIES
        .iter()
        .filter(|(bit, _)| bits & bit != 0)
        .map(|(_, name)| *name)
        .collect())
}

fn check_functions(table: &StageTable, kind: StageKind) -> Result<(), String> {
    let mut wanted = vec![
        ("create", table.create.is_some()),
        ("destroy", table.destroy.is_some()),
    ];
    match kind {
        StageKind::Transform | StageKind::Checksum => wanted.extend([
            ("bound", table.bound.is_some()),
            ("encode", table.encode.is_some()),
            ("decode", table.decode.is_some()),
        ]),
        StageKind::Sink => wanted.extend([
            ("sink_open", table.sink_open.is_some()),
            ("sink_write_at", table.sink_write_at.is_some()),
            ("sink_read_at", table.sink_read_at.is_some()),
            ("sink_len", table.sink_len.is_some()),
            ("sink_commit", table.sink_commit.is_some()),
            ("sink_locator", table.sink_locator.is_some()),
            ("sink_remove", table.sink_remove.is_some()),
        ]),
    }
    let missing: Vec<_> = wanted
        .iter()
        .filter(|(_, there)| !there)
        .map(|(name, _)| *name)
        .collect();
    if !missing.is_empty() {
        return Err(format!("its {kind} lacks {}", missing.join(", ")));
    }
    let pairs = [
        (
            "worker_create",
            table.worker_create.is_some(),
            "worker_destroy",
            table.worker_destroy.is_some(),
        ),
        (
            "begin_encode",
            table.begin_encode.is_some(),
            "begin_decode",
            table.begin_decode.is_some(),
        ),
        (
            "finish_encode",
            table.finish_encode.is_some(),
            "finish_decode",
            table.finish_decode.is_some(),
        ),
    ];
    match pairs.iter().find(|(_, one, _, other)| one != other) {
        Some((one, _, other, _)) => {
            Err(format!("it has one of {one} and {other} without the other"))
        }
        None => Ok(()),
    }
}

/// # Safety
/// `table` comes from [`copy`], and its texts live as the header demands.
unsafe fn params(table: &StageTable) -> Result<Vec<ParamDescription>, String> {
    let (n, stride) = (table.n_params, table.param_size as usize);
    if n == 0 {
        return Ok(Vec::new());
    }
    let own = size_of::<Param>();
    if n > MAX_PARAMS || stride < own || stride % align_of::<Param>() != 0 || table.params.is_null()
    {
        return Err(format!(
            "its table of {n} parameters of {stride} bytes cannot be (a parameter has {own} bytes, at most {MAX_PARAMS} are allowed)"
        ));
    }
    let one = |i: u32| {
        // SAFETY: `params` leads to `n_params` structs of `param_size` bytes each.
        let at = unsafe { table.params.byte_add(i as usize * stride) };
        // SAFETY: as above; a newer Param begins with the fields of ours.
        let param = unsafe { at.read_unaligned() };
        // SAFETY: its texts live as long as the library.
        unsafe { describe_param(&param) }
    };
    let params: Vec<ParamDescription> = (0..n).map(one).collect::<Result<_, _>>()?;
    for (i, param) in params.iter().enumerate() {
        if params[..i].iter().any(|before| before.name == param.name) {
            return Err(format!("it declares the parameter `{}` twice", param.name));
        }
    }
    Ok(params)
}

/// # Safety
/// The texts of `raw` are null or NUL-terminated and live during the call.
unsafe fn describe_param(raw: &Param) -> Result<ParamDescription, String> {
    // SAFETY: as the caller promises; so for the three below.
    let name = unsafe { text(raw.name, "name of a parameter") }?;
    if !is_name(&name) {
        return Err(format!(
            "the parameter name `{}` is not 1 to 32 of a-z, 0-9 and _",
            name.escape_debug()
        ));
    }
    let (min, max) = (raw.min, raw.max);
    let ty = match raw.kind {
        param::STRING => ParamType::String,
        param::INTEGER => ParamType::Integer { min, max },
        param::BOOL => ParamType::Bool,
        param::SIZE => ParamType::Size { min, max },
        param::CHOICE => {
            // SAFETY: see above.
            let choices = unsafe { text(raw.choices, "choices of a parameter") }?;
            ParamType::Choice {
                choices: choices.split('|').map(str::to_owned).collect(),
            }
        }
        param::PATH => ParamType::Path,
        param::FD => ParamType::Fd,
        kind => return Err(format!("its parameter `{name}` is of unknown kind {kind}")),
    };
    let default = match raw.default_value.is_null() {
        true => None,
        // SAFETY: see above.
        false => Some(unsafe { text(raw.default_value, "default of a parameter") }?),
    };
    // SAFETY: see above.
    let help = unsafe { text(raw.help, "help of a parameter") }?;
    let says = |flag| raw.flags & flag != 0;
    Ok(ParamDescription {
        name,
        ty,
        default,
        required: says(param::REQUIRED),
        recorded: says(param::RECORDED),
        place: says(param::PLACE) || matches!(raw.kind, param::PATH | param::FD),
        help,
    })
}

/// # Safety
/// `text` is null or NUL-terminated and lives during the call.
unsafe fn text(text: *const c_char, what: &str) -> Result<String, String> {
    if text.is_null() {
        return Err(format!("the {what} is missing"));
    }
    // SAFETY: as the caller promises.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_str()
        .map(str::to_owned)
        .map_err(|_| format!("the {what} is not UTF-8"))
}

impl std::fmt::Display for StageKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Transform => "transform",
            Self::Checksum => "checksum",
            Self::Sink => "sink",
        })
    }
}

impl StageDescription {
    /// Whether the stage declares all of these bits of [`abi::capability`].
    #[must_use]
    pub fn can(&self, bits: u64) -> bool {
        self.capability_bits & bits == bits
    }
}

const _: () = assert!(
    abi::capability::ALL == (1 << CAPABILITIES.len()) - 1,
    "every capability has a name"
);
