//! Which files become stages, and what is said of those that do not.

use std::fs::{Permissions, copy, set_permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use memcr::pipeline::{Door, Pipeline, Plugin, SearchPath, StageKind, ThreadModel, find_all};

use crate::faults::told;
use crate::support::{compile, spec, stages};

/// Name of a fault, and what is said of it behind the path.
const FAULTS: [(&str, &str); 16] = [
    (
        "OTHER_MAJOR",
        "it was built for version 9.3 of the interface, this memcr speaks 1.0",
    ),
    ("SHORT_TABLE", "its table has 64 bytes, version 1.0 has"),
    ("NO_TABLE", "its entry function answers no table"),
    ("NO_SYMBOL", "it does not export `memcr_stage_v1`"),
    (
        "UNKNOWN_KIND",
        "its stage is of kind 9, known are 1 (transform), 2 (checksum) and 3 (sink)",
    ),
    (
        "UNKNOWN_THREADS",
        "its thread model is 0, known are 1 (serial)",
    ),
    (
        "UNKNOWN_CAPABILITY",
        "it declares capabilities 0x10000000000, which a transform does not have in version 1.0",
    ),
    (
        "SINK_THAT_COMPRESSES",
        "its sink lacks sink_open, sink_write_at",
    ),
    ("LACKS_FUNCTIONS", "its transform lacks encode, decode"),
    (
        "HALF_A_PAIR",
        "it has one of finish_encode and finish_decode without the other",
    ),
    (
        "OTHER_NAME",
        "its stage is called `other`, so the file must be called libmemcr_stage_other.so",
    ),
    (
        "BAD_NAME",
        "the name `../evil` of its stage is not 1 to 32 of a-z, 0-9 and _",
    ),
    ("TWO_PARAMS", "it declares the parameter `same` twice"),
    (
        "BAD_PARAM_KIND",
        "its parameter `same` is of unknown kind 77",
    ),
    (
        "SHORT_PARAM",
        "its table of 1 parameters of 8 bytes cannot be",
    ),
    ("NO_VERSION", "the version is missing"),
];

#[test]
fn a_broken_file_is_refused_with_its_fault() {
    let dir = tempfile::tempdir().unwrap();
    for (number, (fault, text)) in FAULTS.iter().enumerate() {
        let name = fault.to_lowercase();
        let number = number.to_string();
        compile(
            dir.path(),
            "memcr/tests/stages/broken.c",
            &name,
            &[("FAULT", fault), ("FAULT_NUMBER", &number)],
        );
        let search = SearchPath::new(vec![dir.path().into()]);
        let error = Plugin::load(&name, &search).unwrap_err();
        let file = dir.path().join(format!("libmemcr_stage_{name}.so"));
        assert_eq!(error.what, format!("cannot load {}", file.display()));
        assert!(error.detail.starts_with(text), "{fault}: {error}");
    }
    // A listing has them all as rows.
    let found = find_all(&SearchPath::new(vec![dir.path().into()]));
    assert_eq!(found.len(), FAULTS.len());
    assert!(found.iter().all(|stage| stage.stage.is_err()));
}

/// The loader would map pages behind the end of such a file, and end us with SIGBUS.
#[test]
fn a_plugin_whose_copying_was_cut_short_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let fault = [("FAULT", "NO_VERSION"), ("FAULT_NUMBER", "0")];
    compile(dir.path(), "memcr/tests/stages/broken.c", "cut", &fault);
    let path = dir.path().join("libmemcr_stage_cut.so");
    let len = path.metadata().unwrap().len();
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    for left in [len / 2, 4096, 100] {
        file.set_len(left).unwrap();
        let error = Plugin::load(path.to_str().unwrap(), stages()).unwrap_err();
        let text = format!("it is cut short: {left} bytes of at least ");
        assert!(error.detail.starts_with(&text), "{error}");
    }
}

#[test]
fn both_doors_lead_to_a_description() {
    let found = find_all(stages());
    let of = |name: &str| {
        let file = format!("libmemcr_stage_{name}.so");
        let found = found
            .iter()
            .find(|stage| stage.path.ends_with(&file))
            .unwrap();
        found.stage.clone().unwrap()
    };
    let lz4 = of("lz4");
    assert_eq!(
        (lz4.door, lz4.kind, lz4.threads),
        (Door::AbiStable, StageKind::Transform, ThreadModel::Parallel)
    );
    assert!(lz4.capabilities.contains(&"compresses"), "{lz4:?}");
    assert_eq!(lz4.abi_version, (1, 0));
    let xor = of("xor");
    assert_eq!(
        (xor.door, xor.capabilities),
        (Door::C, vec!["independent-chunks"])
    );
    assert_eq!(
        (
            xor.params[0].name.as_str(),
            xor.params[0].default.as_deref()
        ),
        ("with", Some("90"))
    );
    assert!(xor.params[0].recorded && !xor.params[0].required);
    let json = serde_json::to_value(of("disk")).unwrap();
    assert_eq!(
        (&json["kind"], &json["door"], &json["threads"]),
        (&"sink".into(), &"c".into(), &"parallel".into())
    );
    assert_eq!(json["params"][3]["choices"][1], "open");
}

#[test]
fn a_path_names_a_file_and_its_mode_counts() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("libmemcr_stage_xor.so");
    let original = Plugin::load("xor", stages())
        .unwrap()
        .description()
        .path
        .clone();
    copy(&original, &file).unwrap();
    let load = |file: &Path| Plugin::load(file.to_str().unwrap(), &SearchPath::default());
    set_permissions(&file, Permissions::from_mode(0o666)).unwrap();
    let error = load(&file).unwrap_err();
    assert_eq!(error.detail, "its mode 0666 lets group or others write it");
    set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
    assert_eq!(load(&file).unwrap().description().name, "xor");
    set_permissions(dir.path(), Permissions::from_mode(0o777)).unwrap();
    assert!(
        load(&file)
            .unwrap_err()
            .detail
            .ends_with("its mode 0777 lets group or others write it")
    );
    let error = load(&dir.path().join("libmemcr_stage_none.so")).unwrap_err();
    assert!(error.detail.contains("No such file"), "{error}");
}

#[test]
fn a_pipeline_that_makes_no_sense_is_refused_before_anything_happens() {
    let cases = [
        (
            "encrypt,lz4,disk:path=/nowhere",
            "`lz4` compresses behind `encrypt`",
            "put `lz4` before `encrypt`",
        ),
        (
            "lz4",
            "the pipeline ends with `lz4`, which is no sink",
            "add a sink, such as `file`",
        ),
        (
            "disk:path=/nowhere,lz4",
            "`lz4` follows the sink `disk`",
            "put `disk` at the end",
        ),
        (
            "disk",
            "stage `disk` needs the parameter `path`",
            "`memcr --stage-help disk` explains its parameters",
        ),
        (
            "xor:with=300,disk:path=/x",
            "parameter `with` of stage `xor` is `300`, allowed is an integer in 0..=255",
            "",
        ),
        (
            "xor:witch=3,disk:path=/x",
            "stage `xor` has no parameter `witch`: it has with",
            "",
        ),
        (
            "nothere,disk:path=/x",
            "cannot load stage `nothere`: there is no libmemcr_stage_nothere.so in ",
            "stages found",
        ),
    ];
    for (pipeline, what, hint) in cases {
        let error = Pipeline::load(&spec(pipeline, 1), stages()).err().unwrap();
        assert!(error.to_string().starts_with(what), "{error}");
        assert!(
            error.hint().unwrap_or_default().contains(hint),
            "{:?}",
            error.hint()
        );
    }
    let mut odd = spec("disk:path=/x", 1);
    odd.chunk_len_bytes = 5000;
    assert!(
        Pipeline::load(&odd, stages())
            .err()
            .unwrap()
            .to_string()
            .contains("chunk length of 5000")
    );
}

/// PASS is for frames. A handle of nothing would be asked for the rest.
#[test]
fn a_stage_that_is_not_made_is_no_stage() {
    let dir = tempfile::tempdir().unwrap();
    let disk = format!("disk:path={}", dir.path().join("image").display());
    let made = Pipeline::load(&spec(&format!("made_of_nothing,{disk}"), 1), stages());
    let text = told(&made.err().unwrap());
    let wanted = "stage `made_of_nothing`: cannot be set up: create answers 1, which is not a code";
    assert!(text.starts_with(wanted), "{text}");
}
