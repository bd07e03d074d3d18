//! What goes wrong on purpose: what hardware and libraries do, and a test wants to see happen.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

/// The environment variable with faults that hold from the beginning: `NAME=ARGUMENT;NAME=ARGUMENT`.
const VARIABLE: &str = "MESHREDUCE_VERBS_FAULTS";

/// How a function that answers a number says that it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    /// The error's number.
    Positive,
    /// Its negative.
    Negative,
    /// -1, and the number in `errno`.
    MinusOne,
}

/// Calls of one function that are to fail.
struct InjectedFailure {
    errno: i32,
    skip: u32,
    times: u32,
}

/// All faults of the process.
struct Faults {
    style: AtomicU8,
    garbage_opcode: AtomicBool,
    receives_flushed_first: AtomicBool,
    duplicate_names: AtomicBool,
    /// Messages that are to find no receive.
    rnr: AtomicU32,
    /// Milliseconds until data of a device is seen without a flush; 0 for at once.
    late_visibility: AtomicU64,
    /// Whether nothing is sent.
    hold: AtomicBool,
    any_failure: AtomicBool,
    failures: Mutex<Option<HashMap<String, InjectedFailure>>>,
    /// Links that are cut: the local adapter, and the peer's GID in text, or all.
    cuts: Mutex<Vec<(String, Option<String>)>>,
}

static FAULTS: Faults = Faults {
    style: AtomicU8::new(0),
    garbage_opcode: AtomicBool::new(false),
    receives_flushed_first: AtomicBool::new(false),
    duplicate_names: AtomicBool::new(false),
    rnr: AtomicU32::new(0),
    late_visibility: AtomicU64::new(0),
    hold: AtomicBool::new(false),
    any_failure: AtomicBool::new(false),
    failures: Mutex::new(None),
    cuts: Mutex::new(Vec::new()),
};

/// How long data stays unseen when the fault does not say: long enough that no test waits it out by accident.
const LATE: Duration = Duration::from_secs(10);

pub(crate) fn style() -> Style {
    match FAULTS.style.load(Relaxed) {
        1 => Style::Negative,
        2 => Style::MinusOne,
        _ => Style::Positive,
    }
}

pub(crate) fn garbage_opcode() -> bool {
    FAULTS.garbage_opcode.load(Relaxed)
}

pub(crate) fn receives_flushed_first() -> bool {
    FAULTS.receives_flushed_first.load(Relaxed)
}

pub(crate) fn duplicate_names() -> bool {
    FAULTS.duplicate_names.load(Relaxed)
}

pub(crate) fn hold() -> bool {
    FAULTS.hold.load(Relaxed)
}

/// How long data that was written to a device stays unseen without a flush, if that is so.
pub(crate) fn late_visibility() -> Option<Duration> {
    Some(FAULTS.late_visibility.load(Relaxed)).filter(|&ms| ms > 0).map(Duration::from_millis)
}

/// Whether this message is to find no receive; each time it is asked, one less.
pub(crate) fn take_rnr() -> bool {
    FAULTS.rnr.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok()
}

/// Whether what adapter `nic` sends to `gid` is lost.
pub(crate) fn is_cut(nic: &str, gid: &str) -> bool {
    let cuts = FAULTS.cuts.lock().unwrap_or_else(PoisonError::into_inner);
    cuts.iter().any(|(local, peer)| local == nic && peer.as_ref().is_none_or(|peer| peer == gid))
}

/// What this call of `name` is to answer instead of being made, if anything.
pub(crate) fn next_failure(name: &str) -> Option<i32> {
    from_environment();
    if !FAULTS.any_failure.load(Relaxed) {
        return None;
    }
    let mut failures = FAULTS.failures.lock().unwrap_or_else(PoisonError::into_inner);
    let failures = failures.get_or_insert_default();
    let failure = failures.get_mut(name)?;
    if failure.skip > 0 {
        failure.skip -= 1;
        return None;
    }
    failure.times -= 1;
    let errno = failure.errno;
    if failure.times == 0 {
        failures.remove(name);
        FAULTS.any_failure.store(!failures.is_empty(), Relaxed);
    }
    Some(errno)
}

/// Takes the variable once, before the first call does anything.
fn from_environment() {
    static TAKEN: OnceLock<()> = OnceLock::new();
    TAKEN.get_or_init(|| {
        for part in std::env::var(VARIABLE).unwrap_or_default().split(';').map(str::trim) {
            let (name, argument) = part.split_once('=').unwrap_or((part, ""));
            // What takes an adapter that runs cannot be set from here.
            if !part.is_empty() && set_quietly(name.trim(), argument.trim()).is_none() {
                eprintln!("{VARIABLE}: `{part}` is no fault");
            }
        }
    });
}

/// Sets a fault that needs no adapter. `None` if there is no such fault, or the argument is not one of its.
pub(crate) fn set(name: &str, argument: &str) -> Option<()> {
    from_environment();
    set_quietly(name, argument)
}

fn set_quietly(name: &str, argument: &str) -> Option<()> {
    let switch = |place: &AtomicBool| {
        place.store(on_or_off(argument)?, Relaxed);
        Some(())
    };
    match name {
        "errno" => {
            let style = match argument {
                "positive" => 0,
                "negative" => 1,
                "minus_one" => 2,
                _ => return None,
            };
            FAULTS.style.store(style, Relaxed);
        }
        "garbage_opcode" => switch(&FAULTS.garbage_opcode)?,
        "receives_flushed_first" => switch(&FAULTS.receives_flushed_first)?,
        "duplicate_names" => switch(&FAULTS.duplicate_names)?,
        "hold" => switch(&FAULTS.hold)?,
        "rnr" => FAULTS.rnr.store(argument.parse().ok()?, Relaxed),
        "late_visibility" => {
            let ms = match on_or_off(argument) {
                Some(true) => LATE.as_millis() as u64,
                Some(false) => 0,
                None => argument.parse().ok()?,
            };
            FAULTS.late_visibility.store(ms, Relaxed);
        }
        "fail" => fail(argument)?,
        "cut" | "heal" => {
            let (nic, gid) = match argument.split_once(' ') {
                Some((nic, gid)) => (nic, Some(gid.trim().parse::<std::net::Ipv6Addr>().ok()?.to_string())),
                None => (argument, None),
            };
            let mut cuts = FAULTS.cuts.lock().unwrap_or_else(PoisonError::into_inner);
            if name == "cut" {
                cuts.push((nic.to_owned(), gid));
            } else {
                cuts.retain(|(local, peer)| local != nic || gid.is_some() && *peer != gid);
            }
        }
        _ => return None,
    }
    Some(())
}

fn on_or_off(argument: &str) -> Option<bool> {
    match argument {
        "on" => Some(true),
        "off" => Some(false),
        _ => None,
    }
}

/// `FUNCTION ERRNO [SKIP [TIMES]]`: after `SKIP` calls, `TIMES` calls fail. `off` for the errno ends it.
fn fail(argument: &str) -> Option<()> {
    let mut fields = argument.split_whitespace();
    let function = fields.next()?;
    let errno = match fields.next()? {
        "off" => 0,
        "EOPNOTSUPP" => libc::EOPNOTSUPP,
        "EPROTONOSUPPORT" => libc::EPROTONOSUPPORT,
        "EINVAL" => libc::EINVAL,
        "ENOMEM" => libc::ENOMEM,
        "EFAULT" => libc::EFAULT,
        "EPERM" => libc::EPERM,
        "ENOSYS" => libc::ENOSYS,
        "EAGAIN" => libc::EAGAIN,
        "EBUSY" => libc::EBUSY,
        "ENODEV" => libc::ENODEV,
        "EIO" => libc::EIO,
        other => other.parse().ok()?,
    };
    let skip = fields.next().map_or(Ok(0), str::parse).ok()?;
    let times = fields.next().map_or(Ok(u32::MAX), str::parse).ok()?;
    if fields.next().is_some() {
        return None;
    }
    let mut failures = FAULTS.failures.lock().unwrap_or_else(PoisonError::into_inner);
    let failures = failures.get_or_insert_default();
    failures.remove(function);
    if errno != 0 && times > 0 {
        failures.insert(function.to_owned(), InjectedFailure { errno, skip, times });
    }
    FAULTS.any_failure.store(!failures.is_empty(), Relaxed);
    Some(())
}
