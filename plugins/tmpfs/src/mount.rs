//! A tmpfs of our own: mounted for the first image, unmounted after the last.
//!
//! ```text
//!   image 1   lock ─ mount ─ open the directory ─ unlock … remove ─ lock ─ not empty ─ unlock
//!   image 2         lock ─ is ours ─ open ─ unlock ……………………… remove ─ lock ─ empty: unmount
//! ```
//!
//! Ours is a tmpfs whose source is [`SOURCE`]; any other is left mounted. Every image
//! has its directory open from the locked moment on, so an unmount that comes between
//! fails as busy and takes nothing away. The lock is a file beside the mount point that
//! only its owner can open: a lock on a directory could be held by anybody who reads it.

use std::ffi::CString;
use std::fs::File;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use memcr_filestore::Directory;
use memcr_plugin_api::Host;
use memcr_plugin_api::abi::code;
use memcr_plugin_api::stage::{Result, StageError};
use rustix::fs::{FlockOperation, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

/// The source that `/proc/self/mountinfo` shows for a tmpfs of ours.
pub(crate) const SOURCE: &str = "memcr-stage-tmpfs";

/// How to mount.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct MountOptions {
    /// Most it may hold, bytes; the kernel's default is half of the RAM.
    pub(crate) size: Option<u64>,
    /// The kernel's word for when to use huge pages; none: `within_size` where that does for a
    /// file that grows, else `always`.
    pub(crate) huge: Option<String>,
}

/// Whether everybody sees what we mount: in a mount namespace of our own (a service) nobody
/// outside would find an image, whom we leave a target to.
pub(crate) fn is_seen_by_all() -> bool {
    let ours = root_mount("thread-self");
    ours.is_some() && ours == root_mount("1")
}

/// The number of the mount at the root of `process`: those of another mount namespace are others
/// (proc_pid_mountinfo(5)). `/proc/PID/ns/mnt` takes more rights.
fn root_mount(process: &str) -> Option<u32> {
    let mountinfo = read_mountinfo(process).ok()?;
    let at_root = |line: &&str| line.split(' ').nth(4) == Some("/");
    let line = mountinfo.lines().rfind(at_root)?;
    line.split(' ').next()?.parse().ok()
}

/// The mounts that `process` sees, those of anybody among them: what is not UTF-8 in their paths
/// is replaced, and so is none of ours.
fn read_mountinfo(process: &str) -> std::io::Result<String> {
    let bytes = std::fs::read(format!("/proc/{process}/mountinfo"))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Whether a file that grows has huge pages by their length, as far as writes reach: since Linux
/// 6.14. Before, `within_size` has none for it, and `always` some of 2 MiB.
pub(crate) fn huge_by_length() -> bool {
    let has_any = std::fs::read_to_string(SHMEM_ENABLED).is_ok_and(|it| !it.contains("[deny]"));
    let release = rustix::system::uname();
    has_any && is_at_least(&release.release().to_string_lossy(), (6, 14))
}

/// Where the kernel tells whether it has huge pages for a tmpfs.
const SHMEM_ENABLED: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";

fn is_at_least(release: &str, least: (u32, u32)) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut next = || numbers.next()?.parse::<u32>().ok();
    next().zip(next()).is_some_and(|found| found >= least)
}

/// A tmpfs of ours at a path; dropping it unmounts it if nothing is in it any more.
#[derive(Debug)]
pub(crate) struct OwnMount {
    path: String,
    host: Host,
    released: bool,
}

impl OwnMount {
    /// Opens the directory `path` on a tmpfs of ours, which is mounted if it is not yet.
    pub(crate) fn ensure(
        path: &str,
        options: &MountOptions,
        host: Host,
    ) -> Result<(Self, Directory)> {
        make_mount_point(path)?;
        let plain = Directory::open(path)?;
        let path = plain.path().to_owned();
        let _lock = lock(&path)?;
        // Opened again: while we waited for the lock, another memcr may have mounted.
        let now = Directory::open(&path)?;
        if is_ours(&now)? {
            if *options != MountOptions::default() {
                host.info(format_args!(
                    "{path} is mounted already: `size` and `huge` are those of its first mount"
                ));
            }
            return Ok((Self::adopt(&now, host), now));
        }
        ensure_empty(&now)?;
        mount(&path, options)?;
        let mounted = Directory::open(&path).inspect_err(|_| {
            // Nobody else has it yet. What fails too is told by the next image.
            let _ = rustix::mount::unmount(&path, UnmountFlags::NOFOLLOW);
        })?;
        Ok((Self::adopt(&mounted, host), mounted))
    }

    /// The tmpfs of ours that `dir` is on.
    pub(crate) fn adopt(dir: &Directory, host: Host) -> Self {
        Self {
            path: dir.path().to_owned(),
            host,
            released: false,
        }
    }

    /// Unmounts it if it is empty, and no image is about to be written to it.
    pub(crate) fn release(mut self) -> Result<()> {
        self.released = true;
        self.unmount_if_empty()
    }

    fn unmount_if_empty(&self) -> Result<()> {
        // Never between another's mount and its look at what it mounted.
        let _lock = lock(&self.path)?;
        let dir = match Directory::open(&self.path) {
            Ok(dir) => dir,
            Err(e) if e.code == code::NOT_FOUND => return Ok(()),
            Err(e) => return Err(e),
        };
        if find(&dir)? != Some(Origin::Here) || !is_empty(&dir)? {
            return Ok(());
        }
        drop(dir);
        match rustix::mount::unmount(&self.path, UnmountFlags::NOFOLLOW) {
            // Busy: another image without a name yet lives there, and will come here too.
            Ok(()) | Err(Errno::BUSY) => Ok(()),
            Err(e) => Err(StageError::io(format!("unmount {}", self.path), &e.into())),
        }
    }
}

impl Drop for OwnMount {
    fn drop(&mut self) {
        if self.released {
            return;
        }
        if let Err(e) = self.unmount_if_empty() {
            self.host.warn(format_args!("{e}"));
        }
    }
}

/// Where a tmpfs of ours was mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    Here,
    /// In another mount namespace, from which it came here: unmounted here it would still be
    /// there, and whoever finds it there would not mount another one, which came here too.
    Elsewhere,
}

/// Whether `dir` is the root of a tmpfs that a stage tmpfs mounted.
pub(crate) fn is_ours(dir: &Directory) -> Result<bool> {
    Ok(find(dir)?.is_some())
}

/// Where the tmpfs of ours was mounted whose root `dir` is. `None`: it is none of ours.
fn find(dir: &Directory) -> Result<Option<Origin>> {
    let failed = |e: std::io::Error| StageError::io("read /proc/self/mountinfo", &e);
    let mountinfo = read_mountinfo("self").map_err(failed)?;
    let stat = rustix::fs::fstat(dir)
        .map_err(|e| StageError::io(format!("stat {}", dir.path()), &e.into()))?;
    let device = format!(
        "{}:{}",
        rustix::fs::major(stat.st_dev),
        rustix::fs::minor(stat.st_dev)
    );
    Ok(find_in(&mountinfo, dir.path(), &device))
}

/// Looks for a line `id parent DEVICE root PATH options… - tmpfs SOURCE …`.
fn find_in(mountinfo: &str, path: &str, device: &str) -> Option<Origin> {
    let path = escape(path);
    let lines = mountinfo.lines().filter_map(|line| line.split_once(" - "));
    let mut ours = lines.filter_map(|(place, system)| {
        let place: Vec<&str> = place.split(' ').collect();
        let mut system = system.split(' ');
        let at = place.get(2) == Some(&device) && place.get(4) == Some(&path.as_str());
        let is_ours = at && system.next() == Some("tmpfs") && system.next() == Some(SOURCE);
        is_ours.then(|| match place.iter().any(|it| it.starts_with("master:")) {
            true => Origin::Elsewhere,
            false => Origin::Here,
        })
    });
    ours.next()
}

/// A path as mountinfo shows it: white space and backslashes in octal.
fn escape(path: &str) -> String {
    path.replace('\\', "\\134")
        .replace(' ', "\\040")
        .replace('\t', "\\011")
        .replace('\n', "\\012")
}

fn mount(path: &str, options: &MountOptions) -> Result<()> {
    let mounted = match &options.huge {
        Some(huge) => mount_with(path, options.size, Some(huge)),
        // With `always` the last page of each image, and of one of some KiB the only one, takes
        // 2 MiB. A kernel without huge pages knows neither word.
        None => match mount_with(path, options.size, Some(usual_huge())) {
            Err(Errno::INVAL) => mount_with(path, options.size, None),
            done => done,
        },
    };
    mounted.map_err(|e| {
        let error = StageError::io(format!("mount a tmpfs at {path}"), &e.into());
        match e {
            Errno::PERM | Errno::ACCESS => {
                error.hint("needs root; or set `dir` to a tmpfs that exists, without mount")
            }
            Errno::INVAL => error.hint("this kernel does not take `size` or `huge` as set"),
            _ => error,
        }
    })
}

/// When to use huge pages unless somebody says so.
pub(crate) fn usual_huge() -> &'static str {
    if huge_by_length() {
        "within_size"
    } else {
        "always"
    }
}

fn mount_with(path: &str, size: Option<u64>, huge: Option<&str>) -> rustix::io::Result<()> {
    let mut data = String::from("mode=0700");
    if let Some(size) = size {
        data += &format!(",size={size}");
    }
    if let Some(huge) = huge {
        data += &format!(",huge={huge}");
    }
    let data = CString::new(data).map_err(|_| Errno::INVAL)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount(SOURCE, path, "tmpfs", flags, data.as_c_str())
}

fn make_mount_point(path: &str) -> Result<()> {
    let failed = |e: std::io::Error| StageError::io(format!("make the mount point {path}"), &e);
    // Others may pass through what is above it, such as /run/memcr, but not enter it.
    if let Some(parent) = Path::new(path).parent() {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(parent)
            .map_err(failed)?;
    }
    match std::fs::DirBuilder::new().mode(0o700).create(path) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => Err(failed(e)),
        _ => Ok(()),
    }
}

/// Held until the file is closed, also by a crash.
fn lock(path: &str) -> Result<File> {
    let path = format!("{}.lock", path.trim_end_matches('/'));
    let failed = |e: std::io::Error| StageError::io(format!("lock {path}"), &e);
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32)
        .open(&path)
        .map_err(failed)?;
    while let Err(e) = rustix::fs::flock(&file, FlockOperation::LockExclusive) {
        if e != Errno::INTR {
            return Err(failed(e.into()));
        }
    }
    Ok(file)
}

fn ensure_empty(dir: &Directory) -> Result<()> {
    if is_empty(dir)? {
        return Ok(());
    }
    let message = format!(
        "{} is not empty: a tmpfs mounted there would hide what it holds",
        dir.path()
    );
    Err(StageError::new(code::INVALID_CONFIG, message)
        .hint("set `dir` to an empty directory, or mount = false"))
}

fn is_empty(dir: &Directory) -> Result<bool> {
    let mut entries = std::fs::read_dir(dir.path())
        .map_err(|e| StageError::io(format!("list {}", dir.path()), &e))?;
    Ok(entries.next().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTINFO: &str = "\
22 1 254:0 / / rw - ext4 /dev/vda rw
30 22 0:27 / /run/memcr/tmpfs rw,nosuid shared:1 - tmpfs memcr-stage-tmpfs rw,size=1024k
31 22 0:28 / /a\\040b rw master:1 propagate_from:2 - tmpfs memcr-stage-tmpfs rw
32 22 0:29 / /other rw - tmpfs tmpfs rw
33 22 0:30 / /fake rw - ramfs memcr-stage-tmpfs rw
";

    #[test]
    fn ours_is_told_by_device_place_type_and_source() {
        let find = |path, device| find_in(MOUNTINFO, path, device);
        assert_eq!(find("/run/memcr/tmpfs", "0:27"), Some(Origin::Here));
        assert_eq!(find("/a b", "0:28"), Some(Origin::Elsewhere));
        assert_eq!(find("/run/memcr/tmpfs", "0:28"), None, "hidden by another");
        assert_eq!(find("/run/memcr", "0:27"), None, "below it");
        assert_eq!(find("/other", "0:29"), None);
        assert_eq!(find("/fake", "0:30"), None);
        assert_eq!(find_in("", "/", "0:1"), None);
    }

    #[test]
    fn a_release_is_compared_by_its_numbers() {
        let is_new = |release| is_at_least(release, (6, 14));
        assert!(is_new("6.14.0") && is_new("6.18.44-fc-v782") && is_new("7.0-rc1"));
        assert!(!is_new("6.9.12") && !is_new("5.15.0-91-generic") && !is_new("?"));
    }
}
