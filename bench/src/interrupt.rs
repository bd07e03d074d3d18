//! The end of the process by SIGINT or SIGTERM, with something to be done first.

use std::ffi::c_int;
use std::io::Read;
use std::os::fd::{AsRawFd, IntoRawFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicI32, Ordering};

use anyhow::{Context, Result, ensure};

/// Where the handler writes the signal's number.
static PIPE: AtomicI32 = AtomicI32::new(-1);

extern "C" fn on_signal(signal: c_int) {
    let byte = signal as u8;
    // SAFETY: write(2) is allowed in a handler; the byte outlives the call. The socket does not block, and a byte that does not
    // fit is one of many.
    unsafe { libc::write(PIPE.load(Ordering::Relaxed), (&raw const byte).cast(), 1) };
}

/// At the first SIGINT or SIGTERM does this, on a thread of its own, and ends the process with 128 plus the signal's number, as
/// shells do; at the second ends it at once. Once in a process.
///
/// # Errors
/// If the system refuses a socket, a handler or a thread.
pub fn then(act: impl FnOnce() + Send + 'static) -> Result<()> {
    let (mut listen, tell) = UnixStream::pair().context("a socket for signals")?;
    tell.set_nonblocking(true)?;
    let previous = PIPE.compare_exchange(-1, tell.as_raw_fd(), Ordering::Relaxed, Ordering::Relaxed);
    ensure!(previous.is_ok(), "signals are handled already");
    // The handler has it for as long as the process lives.
    let _ = tell.into_raw_fd();
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        let mut byte = [0];
        if listen.read_exact(&mut byte).is_err() {
            return;
        }
        for signal in [libc::SIGINT, libc::SIGTERM] {
            // SAFETY: the default is a valid disposition.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        act();
        std::process::exit(128 + i32::from(byte[0]));
    })?;
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let handler: extern "C" fn(c_int) = on_signal;
        // SAFETY: the handler only does what a handler may.
        let before = unsafe { libc::signal(signal, handler as libc::sighandler_t) };
        ensure!(before != libc::SIG_ERR, "signal {signal} cannot be handled");
    }
    Ok(())
}
