//! Who a rank is: host, process and device.
#![forbid(unsafe_code)]

use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::str::FromStr;

use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};

/// The system does not tell who a process is.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {path}: {source}")]
pub struct Unreadable {
    /// What was to be read.
    pub path: String,
    /// The system's answer.
    pub source: std::io::Error,
}

/// A host. The boot id tells apart hosts of one name, and a host before and after a restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// The host's name.
    pub name: String,
    /// The kernel's boot id.
    pub boot_id: String,
}

impl Host {
    /// This process's.
    ///
    /// # Errors
    ///
    /// [`Unreadable`] if `/proc` does not tell the boot id.
    pub fn current() -> Result<Self, Unreadable> {
        let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let path = "/proc/sys/kernel/random/boot_id";
        let boot_id =
            std::fs::read_to_string(path).map_err(|source| Unreadable { path: path.to_owned(), source })?;
        Ok(Self { name, boot_id: boot_id.trim().to_owned() })
    }
}

/// A process. Its number alone would be ambiguous: it is reused, and means different things in different namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Process {
    /// The process id, in its namespace.
    pub pid: u32,
    /// The inode of its pid namespace.
    pub namespace: u64,
    /// When it started, in clock ticks since the host's start, as processes of its time namespace see it.
    pub start_time: u64,
    /// The inode of its time namespace; 0 where the system (before Linux 5.6) has none.
    pub clock: u64,
}

impl Process {
    /// This one.
    ///
    /// # Errors
    ///
    /// [`Unreadable`] if `/proc` does not tell.
    pub fn current() -> Result<Self, Unreadable> {
        let pid = std::process::id();
        let (_, start_time) = stat(&format!("/proc/{pid}")).ok_or_else(|| Unreadable {
            path: format!("/proc/{pid}/stat"),
            source: std::io::ErrorKind::NotFound.into(),
        })?;
        Ok(Self { pid, namespace: namespace("pid")?, start_time, clock: clock() })
    }

    /// Whether the process has certainly ended: `false` where that cannot be told from here. One whose main thread has
    /// ended while others go on has not; a zombie has.
    pub fn has_ended(&self) -> bool {
        let own = std::process::id();
        if namespace("pid").ok() != Some(self.namespace) || stat(&format!("/proc/{own}")).is_none() {
            return false;
        }
        match stat(&format!("/proc/{}", self.pid)) {
            Some((_, start_time)) if start_time != self.start_time && clock() == self.clock => true,
            // A process whose main thread has ended looks like a zombie for as long as its other threads live.
            Some(('Z' | 'X', _)) => !self.has_live_thread(),
            Some(_) => false,
            // It has ended, or is hidden from this user (the mount option hidepid of proc(5)).
            None => !self.is_there(),
        }
    }

    /// Whether the system knows a process of this number, whoever's it is (kill(2) with no signal).
    fn is_there(&self) -> bool {
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else { return false };
        test_kill_process(pid) != Err(Errno::SRCH)
    }

    /// Whether some thread of the process has not ended.
    fn has_live_thread(&self) -> bool {
        let Ok(threads) = std::fs::read_dir(format!("/proc/{}/task", self.pid)) else { return false };
        threads.flatten().any(|thread| {
            let state = thread.path().to_str().and_then(stat);
            state.is_some_and(|(state, _)| !matches!(state, 'Z' | 'X'))
        })
    }
}

/// State and start time from the file `stat` of a process or thread. The command in it may contain blanks and parentheses,
/// so what counts begins behind the last parenthesis (proc(5): state is field 3, start time field 22).
fn stat(folder: &str) -> Option<(char, u64)> {
    let text = std::fs::read_to_string(format!("{folder}/stat")).ok()?;
    let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

/// The inode of this process's time namespace, which shifts the times in `/proc`.
fn clock() -> u64 {
    namespace("time").unwrap_or(0)
}

/// The inode of this process's namespace of a kind, `pid` or `net` for example: equal for processes that share it.
///
/// # Errors
///
/// [`Unreadable`] if `/proc` does not tell.
pub fn namespace(kind: &str) -> Result<u64, Unreadable> {
    // Of this thread: a process whose main thread has ended has no namespaces under its own number.
    let path = format!("/proc/thread-self/ns/{kind}");
    match std::fs::metadata(&path) {
        Ok(metadata) => Ok(metadata.ino()),
        Err(source) => Err(Unreadable { path, source }),
    }
}

/// Where a device sits. Compared as numbers: its spelling differs between the driver and NVML.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PciAddress {
    /// The domain.
    pub domain: u32,
    /// The bus.
    pub bus: u8,
    /// The device on the bus.
    pub device: u8,
    /// The device's function.
    pub function: u8,
}

/// A text that is no PCI address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no PCI address (domain:bus:device.function)")]
pub struct NotAPciAddress(String);

impl FromStr for PciAddress {
    type Err = NotAPciAddress;

    /// Reads `domain:bus:device[.function]` in hexadecimal, the domain with any number of digits.
    fn from_str(text: &str) -> Result<Self, NotAPciAddress> {
        let parse = || {
            let mut parts = text.trim().split(':');
            let domain = u32::from_str_radix(parts.next()?, 16).ok()?;
            let bus = u8::from_str_radix(parts.next()?, 16).ok()?;
            let last = parts.next()?;
            let (device, function) = last.split_once('.').unwrap_or((last, "0"));
            let device = u8::from_str_radix(device, 16).ok()?;
            let function = u8::from_str_radix(function, 16).ok()?;
            parts.next().is_none().then_some(Self { domain, bus, device, function })
        };
        parse().ok_or_else(|| NotAPciAddress(text.to_owned()))
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}:{:02x}:{:02x}.{:x}", self.domain, self.bus, self.device, self.function)
    }
}

/// A device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    /// Where it sits.
    pub pci: PciAddress,
    /// The driver's UUID of it.
    pub uuid: [u8; 16],
}

impl Device {
    /// The UUID as NVML and CUDA_VISIBLE_DEVICES spell it.
    pub fn uuid_text(&self) -> String {
        let hex: String = self.uuid.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("GPU-{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.pci, self.uuid_text())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn pci_addresses_are_numbers_not_spellings() {
        let long: PciAddress = "00000000:1B:00.0".parse().unwrap();
        assert_eq!(long, "0000:1b:00.0".parse().unwrap());
        assert_eq!(long.to_string(), "00000000:1b:00.0");
        assert_ne!(long, "0001:1b:00.0".parse().unwrap());
        for bad in ["", "1b:00.0", "0000:1b", "0000:1b:00.0:1", "0000:xx:00.0", "FFFFFFFFF:00:00.0"] {
            assert!(bad.parse::<PciAddress>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_own_process_is_alive_and_itself() {
        let own = Process::current().unwrap();
        assert_eq!(own, Process::current().unwrap());
        assert!(!own.has_ended());
        let reused = Process { start_time: own.start_time + 1, ..own };
        assert!(reused.has_ended(), "another process had this number");
        let shifted = Process { clock: own.clock + 1, ..reused };
        assert!(!shifted.has_ended(), "by another clock, times say nothing");
        let elsewhere = Process { namespace: own.namespace + 1, ..reused };
        assert!(!elsewhere.has_ended(), "from here that cannot be told");
    }

    #[test]
    fn a_killed_process_has_ended_before_it_is_reaped() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let (_, start_time) = stat(&format!("/proc/{}", child.id())).unwrap();
        let process =
            Process { pid: child.id(), namespace: namespace("pid").unwrap(), start_time, clock: clock() };
        assert!(!process.has_ended());
        child.kill().unwrap();
        let limit = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while !process.has_ended() {
            assert!(std::time::Instant::now() < limit);
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert!(process.has_ended());
        assert!(!process.is_there());
    }

    #[test]
    fn a_process_of_another_user_is_there() {
        // Process 1, which this one may not be allowed to signal.
        let first = Process { pid: 1, ..Process::current().unwrap() };
        assert!(first.is_there());
    }

    #[test]
    fn a_process_whose_main_thread_has_ended_lives_for_as_long_as_another_one() {
        // Python's main thread ends by the system call for one thread (60 on x86-64), another one sleeps on.
        if cfg!(not(target_arch = "x86_64")) {
            eprintln!("skipping: the number of the system call is that of x86-64");
            return;
        }
        let program = "import ctypes, threading, time\n\
             threading.Thread(target=time.sleep, args=(60,)).start()\n\
             ctypes.CDLL(None).syscall(60, 0)";
        let mut child = match std::process::Command::new("python3").args(["-c", program]).spawn() {
            Ok(child) => child,
            Err(error) => return eprintln!("skipping: there is no python3 ({error})"),
        };
        let folder = format!("/proc/{}", child.id());
        let (_, start_time) = stat(&folder).unwrap();
        let process =
            Process { pid: child.id(), namespace: namespace("pid").unwrap(), start_time, clock: clock() };
        let limit = std::time::Instant::now() + std::time::Duration::from_secs(30);
        while stat(&folder).unwrap().0 != 'Z' {
            assert!(std::time::Instant::now() < limit, "the main thread did not end");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        assert!(!process.has_ended());
        child.kill().unwrap();
        while !process.has_ended() {
            assert!(std::time::Instant::now() < limit, "the process did not end");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        child.wait().unwrap();
    }

    #[test]
    fn uuids_are_spelled_as_nvml_does() {
        let device = Device { pci: "0:1:0.0".parse().unwrap(), uuid: std::array::from_fn(|i| i as u8 * 17) };
        assert_eq!(device.uuid_text(), "GPU-00112233-4455-6677-8899-aabbccddeeff");
    }
}
