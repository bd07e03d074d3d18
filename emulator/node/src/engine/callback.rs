//! Functions of the program's, which may block for as long as they like.
//!
//! Each runs on a thread of its own while it runs, so that one that waits holds up its stream and nothing else. (The
//! real driver promises less: functions of different streams may be called one after the other.) A thread whose
//! function has returned is kept for the next one: there are as many as ever ran at the same time.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, PoisonError, Weak, mpsc},
};

use super::Shared;

/// Threads that have nothing to do. They end when this is dropped.
#[derive(Default)]
pub(super) struct Threads(Mutex<Vec<mpsc::Sender<Call>>>);

/// A function, and the way to the thread that runs it, for whoever has the next one.
struct Call {
    stream: u64,
    run: Box<dyn FnOnce() + Send>,
    thread: mpsc::Sender<Call>,
}

/// Runs a function for the operation that has begun in `stream`, which is done when it returns.
pub(super) fn start(shared: &Arc<Shared>, stream: u64, run: Box<dyn FnOnce() + Send>) {
    let idle = shared.callbacks.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
    let thread = idle.map_or_else(|| spawn(Arc::downgrade(shared)), Ok);
    let sent = thread.map(|thread| thread.send(Call { stream, run, thread: thread.clone() }));
    if let Err(error) = &sent {
        eprintln!("meshreduce emulator: no thread for callbacks: {error}");
    }
    if !matches!(sent, Ok(Ok(()))) {
        // There is no thread to call from; the program learns it by what the function did not do.
        finish(shared, stream);
    }
}

fn spawn(shared: Weak<Shared>) -> std::io::Result<mpsc::Sender<Call>> {
    let (sender, receiver) = mpsc::channel::<Call>();
    std::thread::Builder::new().name("emulated callback".to_owned()).spawn(move || {
        // An idle thread has no way to itself: when nobody else has one either, there will be no further call.
        for Call { stream, run, thread } in receiver {
            let _ = catch_unwind(AssertUnwindSafe(run));
            let Some(shared) = shared.upgrade() else { return };
            shared.callbacks.0.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
            finish(&shared, stream);
        }
    })?;
    Ok(sender)
}

fn finish(shared: &Arc<Shared>, stream: u64) {
    shared.lock().complete(stream);
    shared.done.notify_all();
    shared.nudge();
}
