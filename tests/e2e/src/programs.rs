//! Row 42: real programs go on as if nothing had happened.

use crate::common::{Rig, hold};
use crate::table;
use libtest_mimic::Trial;
use memcr_harness::wait::{DEADLINE, until_some};
use memcr_harness::{
    Allow, Context, Memcr, Result, Snapshot, Trouble, Victim, ensure, proc, require,
};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub(crate) fn tests() -> Vec<Trial> {
    table(
        "programs",
        &[
            ("heavy_redis", redis),
            ("python", python),
            ("node", node),
            ("java", java),
        ],
    )
}

/// A server that ends with the test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // Errors: it is gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A connection that speaks RESP.
struct Redis {
    stream: BufReader<TcpStream>,
}

impl Redis {
    fn connect(port: u16) -> std::io::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(DEADLINE))?;
        Ok(Self {
            stream: BufReader::new(stream),
        })
    }

    /// One command, one simple or bulk answer.
    fn ask(&mut self, words: &[&str]) -> std::io::Result<String> {
        let mut request = format!("*{}\r\n", words.len());
        words
            .iter()
            .for_each(|word| request += &format!("${}\r\n{word}\r\n", word.len()));
        self.stream.get_mut().write_all(request.as_bytes())?;
        let head = self.line()?;
        if head.starts_with('$') && head != "$-1" {
            self.line()
        } else {
            Ok(head)
        }
    }

    fn line(&mut self) -> std::io::Result<String> {
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }
}

/// The value that belongs to a key in a generation: long, and different from all others.
fn value(key: u32, generation: u32) -> String {
    format!("{key}-{generation}-").repeat(40 + (key % 50) as usize)
}

/// redis-server under a client that writes and reads all the time.
fn redis() -> Result {
    require("redis-server")?;
    let rig = Rig::new()?;
    let (server, port) = start_redis(&rig)?;
    let pid = server.0.id();
    let mut client = Redis::connect(port)?;
    for key in 0..40_000 {
        client.ask(&["SET", &format!("key:{key}"), &value(key, 0)])?;
    }
    let before = proc::rss_kib(pid)?;
    let stop = Arc::new(AtomicBool::new(false));
    let writer = {
        let stop = Arc::clone(&stop);
        std::thread::spawn(move || write_all_the_time(port, &stop))
    };
    let outcome = ten_cycles(&rig, pid, before);
    stop.store(true, Ordering::SeqCst);
    let n_written = writer
        .join()
        .map_err(|_| "the writing client panicked")?
        .context("the writing client")?;
    outcome?;
    ensure(n_written > 0, || "the client never got to write".into())?;
    for key in 0..40_000 {
        let got = client.ask(&["GET", &format!("key:{key}")])?;
        ensure(got == value(key, 0), || {
            format!("key {key} has {} bytes of wrong value", got.len())
        })?;
    }
    ensure(client.ask(&["PING"])? == "+PONG", || "no pong".into())
}

fn start_redis(rig: &Rig) -> Result<(Server, u16)> {
    // Another program could take the port in between: then redis says so, and the
    // connection below fails.
    let port = std::net::TcpListener::bind("127.0.0.1:0")?
        .local_addr()?
        .port();
    let args = [
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--appendonly",
        "no",
        "--dir",
        &rig.dir_text(),
        "--port",
        &port.to_string(),
    ]
    .map(str::to_owned);
    let child = Command::new("redis-server")
        .args(args)
        .stdout(Stdio::null())
        .stdin(Stdio::null())
        .spawn()?;
    let server = Server(child);
    until_some("redis to answer", || {
        Redis::connect(port).ok()?.ask(&["PING"]).ok()
    })?;
    Ok((server, port))
}

/// Sets and gets keys of its own until told to stop; answers how many.
fn write_all_the_time(port: u16, stop: &AtomicBool) -> std::io::Result<u64> {
    let mut client = Redis::connect(port)?;
    let mut n_written = 0;
    for generation in 1.. {
        for key in 100_000..100_200 {
            if stop.load(Ordering::SeqCst) {
                return Ok(n_written);
            }
            let (name, want) = (format!("busy:{key}"), value(key, generation));
            client.ask(&["SET", &name, &want])?;
            if client.ask(&["GET", &name])? != want {
                return Err(std::io::Error::other(format!("{name} came back wrong")));
            }
            n_written += 1;
        }
    }
    Ok(n_written)
}

fn ten_cycles(rig: &Rig, pid: u32, before_kib: u64) -> Result {
    for i in 0..10 {
        let held = rig
            .memcr(pid)
            .hold()
            .map_err(|trouble| Trouble::Failed(format!("cycle {i}: {trouble}")))?;
        let is = proc::rss_kib(pid)?;
        ensure(is * 2 < before_kib, || {
            format!("RSS was {before_kib} KiB, while held it is {is} KiB")
        })?;
        held.release()?;
    }
    rig.expect_clean()
}

/// CPython with 200 MB of objects, all of which it compares.
fn python() -> Result {
    require("python3")?;
    const SCRIPT: &str = r#"
import sys, threading, time
def value(i):
    return [i, str(i) * (i % 7 + 1), {"k": i, i: (i, float(i))}]
data = {i: value(i) for i in range(int(sys.argv[1]))}
ticks = 0
def tick():
    global ticks
    while True:
        time.sleep(0.001)
        ticks += 1
threading.Thread(target=tick, daemon=True).start()
print("ready", flush=True)
for line in sys.stdin:
    if line.strip() == "verify":
        wrong = [i for i, v in data.items() if v != value(i)]
        at = ticks
        while ticks < at + 3:
            time.sleep(0.001)
        print("WRONG at 0x0: %d values" % len(wrong) if wrong else "ok %d bytes" % len(data), flush=True)
"#;
    let mut command = Command::new("python3");
    // 400,000 of these objects take some 200 MB.
    command.args(["-c", SCRIPT, "400000"]);
    interpreter(command, "python3", 150 << 10)
}

/// Node with timers, buffers and a heap of objects; its compiler's threads are at work.
fn node() -> Result {
    require("node")?;
    const SCRIPT: &str = r#"
const value = i => ({ i, s: String(i).repeat(i % 7 + 1), a: [i, i * 1.5] });
const data = []; for (let i = 0; i < 300000; i++) data.push(value(i));
const buffers = []; for (let i = 0; i < 64; i++) buffers.push(Buffer.alloc(1 << 20, i));
let ticks = 0; setInterval(() => { ticks++; }, 1);
let hot = 0; setInterval(() => { for (let i = 0; i < 10000; i++) hot = (hot * 31 + i) | 0; }, 2);
const same = (a, b) => a.i === b.i && a.s === b.s && a.a[0] === b.a[0] && a.a[1] === b.a[1];
require('readline').createInterface({ input: process.stdin }).on('line', line => {
  if (line !== 'verify') return;
  const wrong = data.filter((v, i) => !same(v, value(i))).length
    + buffers.filter((b, i) => !b.every(x => x === i)).length;
  const at = ticks;
  const wait = () => ticks > at + 3
    ? console.log(wrong ? `WRONG at 0x0: ${wrong} values` : `ok ${data.length} bytes`) : setTimeout(wait, 1);
  wait();
}).on('close', () => process.exit(0));
console.log('ready');
"#;
    let mut command = Command::new("node");
    command.args(["-e", SCRIPT]);
    interpreter(command, "node", 64 << 10)
}

/// A JVM: garbage collector threads, compiled code, safepoints.
fn java() -> Result {
    require("java")?;
    const SOURCE: &str = r#"
import java.util.*;
public class Target {
  static volatile long ticks;
  static String value(int i) { return ("v" + i).repeat(i % 9 + 1); }
  public static void main(String[] a) throws Exception {
    Map<Integer, String> data = new HashMap<>();
    for (int i = 0; i < 300000; i++) data.put(i, value(i));
    Thread t = new Thread(() -> { while (true) { ticks++; try { Thread.sleep(1); } catch (InterruptedException e) { System.out.println("WRONG at 0x0: interrupted"); } } });
    t.setDaemon(true); t.start();
    System.out.println("ready");
    Scanner in = new Scanner(System.in);
    while (in.hasNextLine()) {
      if (!in.nextLine().equals("verify")) continue;
      long wrong = data.entrySet().stream().filter(e -> !e.getValue().equals(value(e.getKey()))).count();
      long at = ticks; while (ticks < at + 3) Thread.sleep(1);
      System.out.println(wrong > 0 ? "WRONG at 0x0: " + wrong + " values" : "ok " + data.size() + " bytes");
    }
  }
}
"#;
    let dir = tempfile::tempdir()?;
    let source = dir.path().join("Target.java");
    std::fs::write(&source, SOURCE)?;
    let mut command = Command::new("java");
    command.args(["-Xms128m", "-Xmx256m"]).arg(&source);
    interpreter(command, "java", 48 << 10)
}

/// Five cycles on a program that speaks the victims' protocol.
fn interpreter(command: Command, name: &str, freed_kib: u64) -> Result {
    let rig = Rig::new()?;
    let mut victim = Victim::talk(command, name)?;
    victim.verify()?;
    for _ in 0..5 {
        let before = Snapshot::take(victim.pid())?;
        let held = hold(&rig, &victim, rig.memcr(victim.pid()))?;
        let freed = before
            .rss_kib()
            .saturating_sub(proc::rss_kib(victim.pid())?);
        ensure(freed > freed_kib, || {
            format!("{freed} KiB were freed, want {freed_kib}")
        })?;
        held.release()?;
        victim.verify()?;
    }
    // A garbage collector's mappings change by themselves; descriptors do not.
    let before = Snapshot::take(victim.pid())?;
    Memcr::clone(&rig.memcr(victim.pid())).cycle()?;
    let allow = Allow {
        less_rss: true,
        facts: &["maps ", "smaps ", "file timers"],
        threads: true,
        ..Allow::default()
    };
    before.still(victim.pid(), allow)?;
    rig.expect_clean()?;
    victim.quit()
}
