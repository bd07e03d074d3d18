//! Who a rank is: its host and its process.
#![forbid(unsafe_code)]

use std::fmt;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::sync::{Mutex, OnceLock, PoisonError};

use rustix::io::Errno;
use rustix::process::{Pid, Resource, getrlimit, test_kill_process};

use crate::codec::{Malformed, Reader, Writer};

/// The system does not tell who a process is.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {path}: {}", explained(.source))]
pub struct Unreadable {
    /// What was to be read.
    pub path: String,
    /// The system's answer.
    pub r#source: std::io::Error,
}

/// What the system says, and how many descriptors this process may have if it is these that it lacks.
fn explained(error: &std::io::Error) -> String {
    let limit = getrlimit(Resource::Nofile).current;
    match (Errno::from_io_error(error), limit) {
        (Some(Errno::MFILE), Some(limit)) => {
            format!("out of file descriptors, of which this process may have {limit} (see ulimit -n)")
        }
        (Some(Errno::NFILE), _) => "the system is out of file descriptors (see fs.file-max)".to_owned(),
        _ => error.to_string(),
    }
}

/// The environment variable that says which host this is, in place of the kernel's boot id.
///
/// For tests that play several hosts on one machine, and for machines whose `/proc` does not tell a boot id. Any text; every
/// host must have its own, and all processes of a host the same.
pub const HOST_ID: &str = "MESHREDUCE_HOST_ID";

/// The system does not tell which host this is.
#[derive(Debug, thiserror::Error)]
#[error("{path} does not tell which host this is ({problem}): {}", self.advice())]
pub struct NoHostId {
    /// What was to be read.
    pub path: String,
    /// What is wrong with it.
    pub problem: String,
    /// It was not read at all: there was no descriptor left for that.
    pub is_shortage: bool,
}

impl NoHostId {
    fn advice(&self) -> String {
        match self.is_shortage {
            // An id that one process alone was given would make two hosts of one.
            true => "let it have more descriptors (see ulimit -n)".to_owned(),
            false => format!("set {HOST_ID} to a text of its own for every host"),
        }
    }
}

/// A host. Its id decides whether two are the same: names are given to containers too, and to many hosts at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// The host's name, for people.
    pub name: String,
    /// The kernel's boot id, which tells a host before a restart from the same one afterwards; or what [`HOST_ID`] says.
    pub id: String,
}

impl Host {
    /// This process's.
    ///
    /// # Errors
    ///
    /// [`NoHostId`] if neither [`HOST_ID`] nor `/proc` tells.
    pub fn current() -> Result<Self, NoHostId> {
        let given = std::env::var_os(HOST_ID).map(|id| id.to_string_lossy().trim().to_owned());
        // It stays as it is, and later there may be no descriptor to read it by.
        static BOOT_ID: OnceLock<String> = OnceLock::new();
        let given = given.filter(|id| !id.is_empty());
        let (is_given, known) = (given.is_some(), given.or_else(|| BOOT_ID.get().cloned()));
        let host = Self::from_id(known, "/proc/sys/kernel/random/boot_id")?;
        if !is_given {
            let _ = BOOT_ID.set(host.id.clone());
        }
        Ok(host)
    }

    fn from_id(given: Option<String>, path: &str) -> Result<Self, NoHostId> {
        let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
        if let Some(id) = given {
            return Ok(Self { name, id });
        }
        Self::from_text(name, path, std::fs::read_to_string(path))
    }

    fn from_text(name: String, path: &str, read: std::io::Result<String>) -> Result<Self, NoHostId> {
        let no_id = |problem: String, is_shortage| NoHostId { path: path.to_owned(), problem, is_shortage };
        let text = read.map_err(|error| {
            let short = [Some(Errno::MFILE), Some(Errno::NFILE)];
            no_id(explained(&error), short.contains(&Errno::from_io_error(&error)))
        })?;
        match text.trim() {
            "" => Err(no_id("it is empty".to_owned(), false)),
            id => Ok(Self { name, id: id.to_owned() }),
        }
    }

    /// Whether both are one host.
    pub fn is(&self, other: &Host) -> bool {
        self.id == other.id
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (host id {})", self.name, self.id)
    }
}

/// What can be told of a process from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// It runs, or is stopped, or dies at this moment.
    Running,
    /// It has certainly ended.
    Ended,
    /// It is on another host or in another namespace, or hidden from this user.
    Unknown,
}

/// A process and its host: who it is that has a rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The host.
    pub host: Host,
    /// The process.
    pub process: Process,
}

impl Member {
    /// This process.
    ///
    /// # Errors
    ///
    /// [`NoIdentity`] if the system does not tell.
    pub fn current() -> Result<Self, NoIdentity> {
        Ok(Self { host: Host::current()?, process: Process::current()? })
    }

    /// Whether it has ended, as far as this process, which is on `host`, can tell.
    pub fn life(&self, host: &Host) -> Life {
        if self.host.is(host) { self.process.life() } else { Life::Unknown }
    }

    /// Whether it is stopped, as far as this process, which is on `host`, can tell.
    pub fn is_stopped(&self, host: &Host) -> bool {
        self.host.is(host) && self.process.is_stopped()
    }

    /// Writes what [`Member::read`] reads.
    pub fn write(&self, out: &mut Writer) {
        out.text(&self.host.name);
        out.text(&self.host.id);
        out.u32(self.process.pid);
        out.u64(self.process.namespace);
        out.u64(self.process.start_time);
        out.u64(self.process.clock);
    }

    /// Reads what [`Member::write`] wrote.
    ///
    /// # Errors
    ///
    /// [`Malformed`] if it is something else.
    pub fn read(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        let host = Host { name: from.text()?, id: from.text()? };
        let (pid, namespace) = (from.u32()?, from.u64()?);
        Ok(Self { host, process: Process { pid, namespace, start_time: from.u64()?, clock: from.u64()? } })
    }
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Process { pid, namespace, .. } = self.process;
        write!(f, "process {pid} (pid namespace {namespace}) on {}", self.host)
    }
}

/// The system does not tell who this process is.
#[derive(Debug, thiserror::Error)]
pub enum NoIdentity {
    /// Which host.
    #[error(transparent)]
    Host(#[from] NoHostId),
    /// Which process.
    #[error(transparent)]
    Process(#[from] Unreadable),
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
        // Once it was read: later there may be no descriptor for that.
        static OWN: Mutex<Option<Process>> = Mutex::new(None);
        let (pid, namespace, clock) = (std::process::id(), namespace("pid")?, clock());
        let mut own = OWN.lock().unwrap_or_else(PoisonError::into_inner);
        // A forked child is another one.
        let known = own.filter(|own| (own.pid, own.namespace, own.clock) == (pid, namespace, clock));
        let start_time = match known {
            Some(own) => own.start_time,
            None => {
                let read = read_stat("/proc/self");
                read.map_err(|source| Unreadable { path: "/proc/self/stat".to_owned(), source })?.1
            }
        };
        Ok(*own.insert(Self { pid, namespace, start_time, clock }))
    }

    /// Another one of this process's namespaces, if there is one of that number.
    pub fn of(pid: u32) -> Option<Self> {
        let (_, start_time) = is_own_proc().then(|| stat(&format!("/proc/{pid}")))??;
        Some(Self { pid, namespace: namespace("pid").ok()?, start_time, clock: clock() })
    }

    /// Whether the process has certainly ended: `false` where that cannot be told from here. One whose main thread has
    /// ended while others go on has not; a zombie has.
    pub fn has_ended(&self) -> bool {
        self.life() == Life::Ended
    }

    /// What can be told of it, if it is on this process's host.
    pub fn life(&self) -> Life {
        if namespace("pid").ok() != Some(self.namespace) || !is_own_proc() {
            return Life::Unknown;
        }
        match stat(&format!("/proc/{}", self.pid)) {
            // By another clock, times say nothing.
            Some(_) if clock() != self.clock => Life::Unknown,
            Some((_, start_time)) if start_time != self.start_time => Life::Ended,
            // A process whose main thread has ended looks like a zombie for as long as its other threads live.
            Some(('Z' | 'X', _)) if !self.has_thread(|state| !matches!(state, 'Z' | 'X')) => Life::Ended,
            Some(_) => Life::Running,
            // It has ended, or is hidden from this user (the mount option hidepid of proc(5)).
            None if self.is_there() => Life::Unknown,
            None => Life::Ended,
        }
    }

    /// Whether all of it is stopped for now, by a signal (SIGSTOP, job control) or by a debugger, as far as that can be told from here.
    pub fn is_stopped(&self) -> bool {
        let is_stopped = |state: char| matches!(state, 'T' | 't');
        if self.life() != Life::Running {
            return false;
        }
        match stat(&format!("/proc/{}", self.pid)) {
            Some(('Z' | 'X', _)) => self.has_thread(is_stopped),
            state => state.is_some_and(|(state, _)| is_stopped(state)),
        }
    }

    /// Whether the system knows a process of this number, whoever's it is (kill(2) with no signal).
    fn is_there(&self) -> bool {
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else { return false };
        test_kill_process(pid) != Err(Errno::SRCH)
    }

    /// Whether some thread of the process is in such a state.
    fn has_thread(&self, is_one: impl Fn(char) -> bool) -> bool {
        let Ok(threads) = std::fs::read_dir(format!("/proc/{}/task", self.pid)) else { return false };
        threads.flatten().any(|thread| {
            let state = thread.path().to_str().and_then(stat);
            state.is_some_and(|(state, _)| is_one(state))
        })
    }
}

/// Whether `/proc` counts processes as this one does. (That of another pid namespace is there where a container was made
/// without one of its own.)
fn is_own_proc() -> bool {
    let own = std::fs::read_link("/proc/self").ok();
    own.is_some_and(|own| own.to_str() == Some(&std::process::id().to_string()))
}

/// State and start time from the file `stat` of a process or thread. The command in it may contain blanks and parentheses,
/// so what counts begins behind the last parenthesis (proc(5): state is field 3, start time field 22).
fn read_stat(folder: &str) -> io::Result<(char, u64)> {
    let text = std::fs::read_to_string(format!("{folder}/stat"))?;
    let parse = || {
        let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace();
        let state = fields.next()?.chars().next()?;
        Some((state, fields.nth(18)?.parse().ok()?))
    };
    parse().ok_or_else(|| ErrorKind::InvalidData.into())
}

fn stat(folder: &str) -> Option<(char, u64)> {
    read_stat(folder).ok()
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

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
    fn members_elsewhere_are_never_taken_for_ended() {
        let own = Member::current().unwrap();
        assert_eq!(own.life(&own.host), Life::Running);
        let gone = Member { process: Process { start_time: 0, ..own.process }, ..own.clone() };
        assert_eq!(gone.life(&own.host), Life::Ended);
        let elsewhere = Host { id: "another".into(), ..own.host.clone() };
        assert_eq!(gone.life(&elsewhere), Life::Unknown);
        let mut out = Writer::new();
        gone.write(&mut out);
        assert_eq!(Member::read(&mut Reader::new(&out.into_bytes())), Ok(gone));
    }

    #[test]
    fn the_id_decides_which_host_it_is_and_not_the_name() {
        let host = |name: &str, id: &str| Host { name: name.into(), id: id.into() };
        assert!(host("a", "1").is(&host("b", "1")));
        assert!(!host("a", "1").is(&host("a", "2")));
    }

    #[test]
    fn a_host_without_an_id_says_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("boot_id");
        let path = path.to_str().unwrap();
        let problem = |problem: &str| match Host::from_id(None, path) {
            Err(error) => {
                assert!(error.problem.contains(problem), "{error}");
                assert!(error.to_string().contains(HOST_ID), "{error}");
            }
            other => panic!("{other:?}"),
        };
        problem("No such file");
        std::fs::write(path, " \n").unwrap();
        problem("empty");
        std::fs::write(path, "ab-cd\n").unwrap();
        assert_eq!(Host::from_id(None, path).unwrap().id, "ab-cd");
        assert_eq!(Host::from_id(Some("given".into()), path).unwrap().id, "given");
    }

    #[test]
    fn a_process_without_descriptors_is_told_of_these_and_of_no_id() {
        for short in [Errno::MFILE, Errno::NFILE] {
            let error = Host::from_text("host".into(), "boot_id", Err(short.into())).unwrap_err().to_string();
            assert!(error.contains("ulimit -n") && !error.contains(HOST_ID), "{error}");
        }
    }

    #[test]
    fn what_cannot_be_read_for_want_of_descriptors_says_how_many_there_may_be() {
        let limit = getrlimit(Resource::Nofile).current.unwrap().to_string();
        let error = Unreadable { path: "/proc/self/stat".to_owned(), source: Errno::MFILE.into() };
        let text = error.to_string();
        assert!(text.contains("out of file descriptors") && text.contains(&limit), "{text}");
        let error = Unreadable { source: Errno::NOENT.into(), ..error };
        assert!(error.to_string().starts_with("cannot read /proc/self/stat: No such file"), "{error}");
    }

    #[test]
    fn a_stopped_process_is_seen_to_be_and_a_killed_one_has_ended_before_it_is_reaped() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let (_, start_time) = stat(&format!("/proc/{}", child.id())).unwrap();
        let process =
            Process { pid: child.id(), namespace: namespace("pid").unwrap(), start_time, clock: clock() };
        assert!(!process.has_ended() && !process.is_stopped());
        let limit = std::time::Instant::now() + std::time::Duration::from_secs(10);
        let comes_to = |is_there: &dyn Fn() -> bool| {
            while !is_there() {
                assert!(std::time::Instant::now() < limit);
                std::thread::yield_now();
            }
        };
        let send = |signal| rustix::process::kill_process(Pid::from_child(&child), signal).unwrap();
        send(rustix::process::Signal::STOP);
        comes_to(&|| process.is_stopped());
        let reused = Process { start_time: start_time + 1, ..process };
        assert!(!process.has_ended() && !reused.is_stopped(), "another process had this number");
        send(rustix::process::Signal::CONT);
        comes_to(&|| !process.is_stopped());
        child.kill().unwrap();
        comes_to(&|| process.has_ended());
        child.wait().unwrap();
        assert!(process.has_ended() && !process.is_stopped());
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
}
