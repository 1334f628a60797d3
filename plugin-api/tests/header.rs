//! `include/memcr_stage.h` is the twin of `src/abi.rs`: the same structs, fields,
//! offsets, sizes, constants and function signatures, none forgotten on either side.
//!
//! ```text
//!   this file ──lists──▶ every field (checked by exhaustive patterns)
//!             ──lists──▶ every constant (checked against the text of both files)
//!             ──writes─▶ a C program that prints the header's values and assigns every
//!                        function to a pointer of the type that abi.rs says
//! ```
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::mem::{offset_of, size_of};
use std::path::{Path, PathBuf};
use std::process::Command;

use memcr_plugin_api::abi::{self, capability, code, kind, param, threads};

const RUST: &str = include_str!("../src/abi.rs");
const HEADER: &str = include_str!("../include/memcr_stage.h");

/// A value by its name, and the C expression for it.
type Expected = BTreeMap<String, (String, i128)>;

macro_rules! fields {
    ($to:ident, $c:literal, $ty:ident { $($field:ident),* $(,)? }) => {{
        // Without `..`: a field that is not listed does not compile.
        fn _all(of: abi::$ty) { let abi::$ty { $($field: _),* } = of; }
        let size = size_of::<abi::$ty>();
        $to.insert($c.into(), (format!("sizeof(struct {})", $c), size as i128));
        let mut end = 0;
        $(
            let (offset, len) = (offset_of!(abi::$ty, $field), field_len(|of: &abi::$ty| &raw const of.$field));
            // Without padding nothing can hide between two fields on the C side.
            assert_eq!(offset, end, "padding before {}.{}", $c, stringify!($field));
            end = offset + len;
            let name = format!("{}.{}", $c, stringify!($field));
            $to.insert(name.clone(), (format!("offsetof(struct {}, {})", $c, stringify!($field)), offset as i128));
            let expr = format!("sizeof(((struct {} *)0)->{})", $c, stringify!($field));
            $to.insert(format!("{name} length"), (expr, len as i128));
        )*
        assert_eq!(end, size, "padding at the end of {}", $c);
    }};
}

fn field_len<T, F>(_: impl Fn(&T) -> *const F) -> usize {
    size_of::<F>()
}

macro_rules! constants {
    ($to:ident, $prefix:literal, $path:ident { $($name:ident),* $(,)? }) => {
        $( $to.insert(
            concat!($prefix, stringify!($name)).into(),
            (concat!("MEMCR_", $prefix, stringify!($name)).into(), i128::from(value($path::$name))),
        ); )*
    };
}

/// Constants of the tables are `i32`, `u32`, `u64` and, for lengths, `usize`.
fn value<T: TryInto<i64>>(value: T) -> i64 {
    value
        .try_into()
        .ok()
        .expect("constants of the interface fit i64")
}

fn structs() -> Expected {
    let mut to = Expected::new();
    fields!(
        to,
        "memcr_error",
        Error {
            struct_size,
            sys_errno,
            message,
            hint
        }
    );
    fields!(
        to,
        "memcr_param",
        Param {
            name,
            kind,
            flags,
            default_value,
            choices,
            min,
            max,
            help
        }
    );
    fields!(to, "memcr_key_value", KeyValue { key, value });
    fields!(
        to,
        "memcr_host",
        Host {
            struct_size,
            abi_version,
            log
        }
    );
    fields!(
        to,
        "memcr_image_info",
        ImageInfo {
            struct_size,
            page_size,
            image_id,
            max_chunk_len,
            expected_len
        }
    );
    fields!(
        to,
        "memcr_chunk_info",
        ChunkInfo {
            struct_size,
            flags,
            index,
            address,
            raw_len,
            aad,
            aad_len
        }
    );
    fields!(
        to,
        "memcr_sink_open",
        SinkOpen {
            struct_size,
            mode,
            image_id,
            pid,
            expected_len,
            flags,
            reserved,
            locator
        }
    );
    #[rustfmt::skip]
    fields!(to, "memcr_stage_table", StageTable {
        struct_size, abi_version, kind, threads, capabilities, name, version, summary,
        params, n_params, param_size, create, destroy, worker_create, worker_destroy,
        get_extension, begin_encode, begin_decode, bound, encode, decode, finish_encode,
        finish_decode, sink_open, sink_write_at, sink_read_at, sink_len, sink_commit,
        sink_locator, sink_remove,
    });
    to
}

#[rustfmt::skip]
fn all_constants() -> Expected {
    let mut to = Expected::new();
    constants!(to, "", abi {
        ABI_MAJOR, ABI_MINOR, ABI_VERSION, MAX_NAME_LEN, MAX_STATE_LEN, MAX_TAG_LEN, MAX_GROWTH, CHUNK_LAST, SINK_WRITE,
        SINK_READ, SINK_COMPRESSED, SINK_KEEP,
    });
    constants!(to, "CODE_", code {
        OK, PASS, INVALID_CONFIG, NO_SPACE, IO, CORRUPT, WRONG_KEY, UNSUPPORTED,
        BUFFER_TOO_SMALL, PERMISSION, PANIC, INTERNAL, NOT_FOUND, TIMED_OUT,
    });
    constants!(to, "KIND_", kind { TRANSFORM, CHECKSUM, SINK });
    constants!(to, "THREADS_", threads { SERIAL, PER_HANDLE, PARALLEL });
    constants!(to, "CAPABILITY_", capability {
        INDEPENDENT_CHUNKS, COMPRESSES, ENCRYPTS, AUTHENTICATES, WRITE_ANYWHERE,
        READ_BEFORE_COMMIT, IN_MEMORY, KEEPS_UNFINISHED, ALL,
    });
    constants!(to, "PARAM_", param {
        STRING, INTEGER, BOOL, SIZE, CHOICE, PATH, FD, REQUIRED, RECORDED, PLACE,
    });
    to
}

#[test]
fn every_struct_of_abi_rs_is_compared() {
    let listed = structs()
        .into_iter()
        .filter(|(_, (expr, _))| expr.starts_with("sizeof(struct"))
        .count();
    let tables = RUST
        .lines()
        .filter(|line| line.starts_with("pub struct "))
        .count();
    assert_eq!(listed, tables, "a struct of abi.rs is missing in this test");
}

#[test]
fn every_constant_of_abi_rs_is_compared() {
    let mut in_rust = Vec::new();
    let mut module = String::new();
    for line in RUST.lines() {
        if let Some(rest) = line.strip_prefix("pub mod ") {
            module = format!("{}_", rest.trim_end_matches(" {").to_uppercase());
        } else if line == "}" {
            module.clear();
        }
        let constant = line.trim_start().strip_prefix("pub const ");
        if let Some((name, _)) = constant.and_then(|rest| rest.split_once(':')) {
            in_rust.push(format!("{module}{name}"));
        }
    }
    in_rust.retain(|name| name != "ENTRY_SYMBOL");
    in_rust.sort();
    let listed: Vec<_> = all_constants().into_keys().collect();
    assert_eq!(in_rust, listed);
}

#[test]
fn every_constant_of_the_header_is_compared() {
    let defines = HEADER.lines().filter_map(|line| {
        line.strip_prefix("#define MEMCR_")?
            .split([' ', '('])
            .next()
    });
    let mut in_header: Vec<_> = defines
        // The include guard, a text, and what C needs to export a symbol.
        .filter(|name| !matches!(*name, "STAGE_H" | "ENTRY_SYMBOL" | "STAGE_EXPORT"))
        .map(str::to_owned)
        .collect();
    in_header.sort();
    let listed: Vec<_> = all_constants().into_keys().collect();
    assert_eq!(in_header, listed);
}

#[test]
fn the_header_has_the_layout_and_values_of_abi_rs() {
    let mut expected = structs();
    expected.append(&mut all_constants());
    let printed = print_values(&expected);
    for (name, (_, value)) in &expected {
        assert_eq!(printed.get(name), Some(value), "{name}");
    }
    let symbol = abi::ENTRY_SYMBOL.to_str().unwrap();
    assert!(HEADER.contains(&format!("#define MEMCR_ENTRY_SYMBOL \"{symbol}\"")));
    assert!(HEADER.contains(&format!("{symbol}(void);")));
}

/// Compiles and runs a program that prints every expected value as the header has it.
fn print_values(expected: &Expected) -> BTreeMap<String, i128> {
    let mut program =
        String::from("#include <stdio.h>\n#include \"memcr_stage.h\"\nint main(void) {\n");
    for (name, (expr, _)) in expected {
        writeln!(
            program,
            "    printf(\"%s=%lld\\n\", \"{name}\", (long long)({expr}));"
        )
        .unwrap();
    }
    program.push_str("    return 0;\n}\n");
    let built = Scratch::new("values");
    built.compile(&program, &["-std=c99"]);
    let output = Command::new(built.output()).output().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines()
        .map(|line| line.split_once('=').unwrap())
        .map(|(name, value)| (name.to_owned(), value.parse().unwrap()))
        .collect()
}

#[test]
fn the_header_has_the_function_signatures_of_abi_rs() {
    let mut program = String::from("#include \"memcr_stage.h\"\n");
    let mut n_functions = 0;
    for (owner, field, arguments, answer) in functions() {
        n_functions += 1;
        writeln!(
            program,
            "void check_{owner}_{field}({owner} *t);\n\
             void check_{owner}_{field}({owner} *t) {{\n    \
                 {answer} (*f)({arguments}) = t->{field};\n    t->{field} = f;\n}}"
        )
        .unwrap();
    }
    // The functions of the stage table, and the log of the host.
    assert_eq!(n_functions, 19 + 1, "{program}");
    Scratch::new("signatures").compile(&program, &["-std=c99", "-c"]);
}

/// Every function pointer of abi.rs: struct, field, arguments and answer in C.
fn functions() -> Vec<(String, String, String, String)> {
    let text: String = RUST
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect::<Vec<_>>()
        .join(" ");
    let mut found = Vec::new();
    for part in text.split("pub struct ").skip(1) {
        let (owner, body) = part.split_once('{').unwrap();
        for field in body.split("pub ").filter(|field| field.contains("Option<")) {
            let (name, signature) = field.split_once(':').unwrap();
            let (_, signature) = signature.split_once("fn(").unwrap();
            let (arguments, answer) = signature.split_once(')').unwrap();
            let answer = answer.split_once("->").map_or("()", |(_, answer)| answer);
            let answer = answer.split(['>', ',']).next().unwrap();
            let arguments: Vec<_> = arguments
                .split(',')
                .filter(|argument| !argument.trim().is_empty())
                .map(|argument| c_type(argument.split_once(':').unwrap().1))
                .collect();
            let owner = c_type(owner);
            found.push((owner, name.into(), arguments.join(", "), c_type(answer)));
        }
    }
    found
}

/// A type of abi.rs as C writes it.
fn c_type(rust: &str) -> String {
    let rust = rust.trim();
    if let Some(pointee) = rust.strip_prefix("*const ") {
        return format!("const {} *", c_type(pointee));
    }
    if let Some(pointee) = rust.strip_prefix("*mut ") {
        return format!("{} *", c_type(pointee));
    }
    match rust {
        "()" | "c_void" => "void".into(),
        "c_char" => "char".into(),
        "usize" => "size_t".into(),
        "u8" => "uint8_t".into(),
        "i32" => "int32_t".into(),
        "u32" => "uint32_t".into(),
        "u64" => "uint64_t".into(),
        name => {
            let mut snake = String::from("memcr");
            for c in name.chars() {
                if c.is_ascii_uppercase() {
                    snake.push('_');
                }
                snake.push(c.to_ascii_lowercase());
            }
            snake
        }
    }
}

#[test]
fn the_header_is_clean_in_c_and_cpp() {
    let include = "#include \"memcr_stage.h\"\n#include \"memcr_stage.h\"\n";
    for standard in ["-std=c99", "-std=c11"] {
        Scratch::new("clean").compile(include, &[standard, "-pedantic", "-c"]);
    }
    for standard in ["-std=c++11", "-std=c++17"] {
        Scratch::new("clean").compile(include, &[standard, "-x", "c++", "-pedantic", "-c"]);
    }
}

#[test]
fn the_example_compiles_without_a_warning() {
    let example = include_str!("../examples/xor.c");
    assert!(
        example.lines().count() < 120,
        "the example is to be read in one go"
    );
    Scratch::new("example").compile(example, &["-std=c99", "-pedantic", "-shared", "-fPIC"]);
}

/// A directory of a test that goes away with it.
struct Scratch(tempfile::TempDir);

impl Scratch {
    fn new(name: &str) -> Self {
        Self(tempfile::Builder::new().prefix(name).tempdir().unwrap())
    }

    fn output(&self) -> PathBuf {
        self.0.path().join("output")
    }

    /// Compiles `program`; a warning fails the test.
    fn compile(&self, program: &str, flags: &[&str]) {
        let source = self.0.path().join("source.c");
        std::fs::write(&source, program).unwrap();
        let include = Path::new(env!("CARGO_MANIFEST_DIR")).join("include");
        // The compiler that links every Rust program, so it is always there.
        let output = Command::new("cc")
            .args(["-Wall", "-Wextra", "-Werror"])
            .arg("-I")
            .arg(include)
            .args(flags)
            .arg("-o")
            .arg(self.output())
            .arg(source)
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{stderr}");
    }
}
