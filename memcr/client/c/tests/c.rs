//! The library as a C program has it: installed, found by its `.pc` file, linked as a
//! shared object and as an archive, and spoken to by a daemon that checks every byte.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use std::thread::JoinHandle;

const HERE: &str = env!("CARGO_MANIFEST_DIR");
const HEADER: &str = "include/libmemcrclient.h";

/// An installation of the library, and a program of ours for each way to link it.
struct World {
    _dir: tempfile::TempDir,
    prefix: PathBuf,
    programs: [PathBuf; 2],
}

static WORLD: LazyLock<World> = LazyLock::new(World::new);

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        // The one that a test run has made, else one of what is built now.
        let prefix = match std::env::var_os("MEMCR_TEST_PREFIX") {
            Some(prefix) => PathBuf::from(prefix),
            None => install(dir.path()),
        };
        let programs = [false, true].map(|is_static| {
            let program = dir.path().join(format!("use-{is_static}"));
            let source = fs::read_to_string(Path::new(HERE).join("tests/use.c")).unwrap();
            let mut flags = vec!["-std=c99", "-o", program.to_str().unwrap()];
            let pc = flags_of(&prefix, is_static);
            flags.extend(pc.iter().map(String::as_str));
            compile(&source, &flags);
            program
        });
        Self {
            _dir: dir,
            prefix,
            programs,
        }
    }

    /// Runs the program in both ways it is linked, which must print the same.
    fn run(&self, words: &[&str]) -> String {
        let [shared, linked] = self.programs.each_ref().map(|program| {
            let mut command = Command::new(program);
            command
                .args(words)
                .env("LD_LIBRARY_PATH", self.prefix.join("lib"));
            let output = command.output().unwrap();
            let stdout = String::from_utf8(output.stdout).unwrap();
            // A signal (SIGPIPE) would leave no code.
            assert!(
                output.status.code().is_some(),
                "{words:?}: {}",
                output.status
            );
            stdout
        });
        assert_eq!(shared, linked);
        shared
    }
}

/// Builds the library, in the profile of this test, and puts it into `prefix`. Cargo
/// builds a library for the tests of its crate only if Rust can link it.
fn install(prefix: &Path) -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    let built = exe.ancestors().nth(2).unwrap();
    let profile = match built.file_name().unwrap().to_str().unwrap() {
        "debug" => "dev",
        profile => profile,
    };
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--lib", "--package", "memcrclient"]);
    cargo.args(["--profile", profile]).arg("--target-dir");
    let target = built.parent().unwrap();
    let status = cargo.arg(target).current_dir(HERE).status().unwrap();
    assert!(status.success());
    fs::create_dir_all(prefix.join("lib/pkgconfig")).unwrap();
    fs::create_dir_all(prefix.join("include")).unwrap();
    for file in ["libmemcrclient.so", "libmemcrclient.a"] {
        fs::copy(built.join(file), prefix.join("lib").join(file)).unwrap();
    }
    fs::copy(Path::new(HERE).join(HEADER), prefix.join(HEADER)).unwrap();
    let template = fs::read_to_string(Path::new(HERE).join("libmemcrclient.pc.in")).unwrap();
    let filled = template
        .replace("@PREFIX@", prefix.to_str().unwrap())
        .replace("@VERSION@", env!("CARGO_PKG_VERSION"));
    fs::write(prefix.join("lib/pkgconfig/libmemcrclient.pc"), filled).unwrap();
    prefix.to_path_buf()
}

/// What pkg-config would say, which need not be installed.
fn flags_of(prefix: &Path, is_static: bool) -> Vec<String> {
    let text = fs::read_to_string(prefix.join("lib/pkgconfig/libmemcrclient.pc")).unwrap();
    assert!(!text.contains('@'), "{text}");
    let value = |key: &str| {
        let mut lines = text.lines();
        let value = lines.find_map(|line| line.strip_prefix(key)).unwrap();
        let value = value.replace("${libdir}", "${prefix}/lib");
        let value = value.replace("${includedir}", "${prefix}/include");
        value.replace("${prefix}", prefix.to_str().unwrap())
    };
    assert_eq!(value("prefix="), prefix.to_str().unwrap());
    let mut words = format!("{} {}", value("Cflags:"), value("Libs:"));
    if is_static {
        words = words.replace("-lmemcrclient", "-l:libmemcrclient.a");
        words.push_str(&value("Libs.private:"));
    }
    words.split_whitespace().map(str::to_owned).collect()
}

/// Compiles `source` with these flags; a warning fails the test.
fn compile(source: &str, flags: &[&str]) {
    compile_as("source.c", source, flags);
}

fn compile_as(name: &str, source: &str, flags: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join(name);
    fs::write(&file, source).unwrap();
    // The compiler that links every Rust program, so it is always there.
    let mut cc = Command::new("cc");
    cc.args(["-Wall", "-Wextra", "-Wno-type-limits", "-Werror"]);
    cc.arg(&file).args(flags);
    let output = cc.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
}

/// What to do with one connection.
type Serve = fn(&mut UnixStream);

/// A daemon that serves one connection for each way in which the program is linked.
fn daemon(dir: &Path, serve: Serve) -> (String, JoinHandle<()>) {
    let path = dir.join("sock");
    let listener = UnixListener::bind(&path).unwrap();
    let thread = std::thread::spawn(move || {
        for _ in 0..2 {
            serve(&mut listener.accept().unwrap().0);
        }
    });
    (path.to_str().unwrap().to_owned(), thread)
}

/// What the program prints that is served so.
fn served(words: [&str; 2], serve: Serve) -> String {
    let dir = tempfile::tempdir().unwrap();
    let (location, thread) = daemon(dir.path(), serve);
    let [verb, pid] = words;
    let printed = WORLD.run(&[verb, &location, pid]);
    thread.join().unwrap();
    printed
}

/// Reads a request, which is `numbers` and nothing else.
fn hear(stream: &mut impl Read, numbers: [i32; 2]) {
    let mut request = [0; 8];
    stream.read_exact(&mut request).unwrap();
    assert_eq!(request[..], numbers.map(i32::to_ne_bytes).concat());
}

fn say(stream: &mut impl Write, code: i32) {
    stream.write_all(&code.to_ne_bytes()).unwrap();
}

#[test]
fn a_checkpoint_is_8_bytes_and_0_is_done() {
    let printed = served(["checkpoint", "4711"], |stream| {
        hear(stream, [100, 4711]);
        say(stream, 0);
        // Nothing more comes, until the end.
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    });
    assert_eq!(printed, "checkpoint 0 -\n");
}

#[test]
fn codes_are_handed_on_and_told_from_failures() {
    let printed = served(["restore", "4711"], |stream| {
        hear(stream, [101, 4711]);
        // In any segments.
        stream.write_all(&[255]).unwrap();
        stream.write_all(&[255, 255, 255]).unwrap();
    });
    assert_eq!(printed, "restore -1 -\n");
    let printed = served(["restore", "4294967295"], |stream| {
        hear(stream, [101, -1]);
        say(stream, -2);
    });
    assert_eq!(printed, "restore -2 -\n");
}

#[test]
fn a_daemon_that_closes_is_an_error() {
    for serve in [
        (|_| {}) as Serve,
        |stream| hear(stream, [101, 7]),
        |stream| {
            hear(stream, [101, 7]);
            stream.write_all(&[0, 0, 0]).unwrap();
        },
    ] {
        let printed = served(["restore", "7"], serve);
        assert_eq!(printed, "restore -1 Connection reset by peer\n");
    }
}

#[test]
fn a_connection_carries_one_request() {
    let printed = served(["twice", "7"], |stream| {
        hear(stream, [101, 7]);
        say(stream, 0);
    });
    // Not by a signal.
    assert_eq!(printed, "twice 0 -\ntwice -1 Connection reset by peer\n");
}

#[test]
fn a_deadline_of_the_caller_counts() {
    let printed = served(["deadline", "7"], |stream| {
        hear(stream, [101, 7]);
        // Until the program has given up.
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    });
    assert_eq!(printed, "deadline -1 Resource temporarily unavailable\n");
}

#[test]
fn an_interrupted_wait_goes_on() {
    let printed = served(["interrupted", "7"], |stream| {
        hear(stream, [101, 7]);
        // Long enough for some of the signals that come every millisecond.
        std::thread::sleep(std::time::Duration::from_millis(100));
        say(stream, 0);
    });
    assert_eq!(printed, "interrupted 0 -\ninterrupted\n");
}

#[test]
fn a_port_is_one_of_this_machine() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let daemon = std::thread::spawn(move || {
        for _ in 0..2 {
            let (mut stream, _) = listener.accept().unwrap();
            hear(&mut stream, [100, 7]);
            say(&mut stream, 0);
        }
    });
    assert_eq!(WORLD.run(&["checkpoint", &port, "7"]), "checkpoint 0 -\n");
    daemon.join().unwrap();
}

#[test]
fn a_descriptor_is_closed_on_exec() {
    let dir = tempfile::tempdir().unwrap();
    let (location, thread) = daemon(dir.path(), |stream| {
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    });
    assert_eq!(WORLD.run(&["connect", &location]), "connect cloexec\n");
    thread.join().unwrap();
}

#[test]
fn mistakes_are_errors() {
    assert_eq!(
        WORLD.run(&["mistakes"]),
        "null -1 Invalid argument\n\
         empty -1 Invalid argument\n\
         port -1 Invalid argument\n\
         long -1 File name too long\n\
         nobody -1 No such file or directory\n\
         negative -1 Bad file descriptor\n\
         closed -1 Bad file descriptor\n"
    );
}

#[test]
fn the_shared_object_is_asked_for_by_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let lib = dir.path().join("libother.so");
    fs::copy(WORLD.prefix.join("lib/libmemcrclient.so"), &lib).unwrap();
    let program = dir.path().join("program");
    let source = "#include <libmemcrclient.h>\n\
                  int main(void) { return memcr_client_connect(\"\") + 1; }\n";
    let include = format!("-I{}", WORLD.prefix.join("include").display());
    let search = format!("-L{}", dir.path().display());
    let program_text = program.to_str().unwrap();
    compile(source, &[&include, &search, "-lother", "-o", program_text]);
    // Linked by another name, it is loaded by that which it gives itself.
    fs::remove_file(&lib).unwrap();
    let mut run = Command::new(&program);
    run.env("LD_LIBRARY_PATH", WORLD.prefix.join("lib"));
    assert!(run.status().unwrap().success());
}

#[test]
fn the_header_is_clean_in_c_and_cpp() {
    let include = "#include \"libmemcrclient.h\"\n#include \"libmemcrclient.h\"\n";
    let dir = tempfile::tempdir().unwrap();
    let object = dir.path().join("object.o");
    let search = format!("-I{HERE}/include");
    let object = object.to_str().unwrap();
    for (name, standard) in [
        ("source.c", "-std=c99"),
        ("source.c", "-std=c11"),
        ("source.cc", "-std=c++11"),
        ("source.cc", "-std=c++17"),
    ] {
        let flags = [standard, "-pedantic", &search, "-c", "-o", object];
        compile_as(name, include, &flags);
    }
}
