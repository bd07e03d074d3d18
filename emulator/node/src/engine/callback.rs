//! Functions of the program's, which may block for as long as they like.
//!
//! Each runs on a thread of its own while it runs, so that one that waits holds up its stream and nothing else. (The
//! real driver promises less: functions of different streams may be called one after the other.) A thread whose
//! function has returned is kept for the next one: there are as many as ever ran at the same time.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, PoisonError, Weak, mpsc},
};

/// Threads that have nothing to do. They end when this is dropped.
#[derive(Default)]
pub(super) struct Threads(Arc<Idle>);

type Idle = Mutex<Vec<mpsc::Sender<Call>>>;

/// A function with what follows its return, and the way to the thread that runs it, for whoever has the next one.
struct Call {
    run: Box<dyn FnOnce() + Send>,
    returned: Box<dyn FnOnce() + Send>,
    thread: mpsc::Sender<Call>,
}

impl Threads {
    /// Runs a function, and then `returned`, which is called in any case.
    pub(super) fn start(&self, run: Box<dyn FnOnce() + Send>, returned: Box<dyn FnOnce() + Send>) {
        let idle = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        match idle.map_or_else(|| spawn(Arc::downgrade(&self.0)), Ok) {
            Ok(thread) => {
                let sent = thread.send(Call { run, returned, thread: thread.clone() });
                if let Err(mpsc::SendError(call)) = sent {
                    (call.returned)();
                }
            }
            Err(error) => {
                eprintln!("meshreduce emulator: no thread for callbacks: {error}");
                // There is no thread to call from; the program learns it by what the function did not do.
                returned();
            }
        }
    }
}

fn spawn(threads: Weak<Idle>) -> std::io::Result<mpsc::Sender<Call>> {
    let (sender, receiver) = mpsc::channel::<Call>();
    std::thread::Builder::new().name("emulated callback".to_owned()).spawn(move || {
        // An idle thread has no way to itself: when nobody else has one either, there will be no further call.
        for Call { run, returned, thread } in receiver {
            let _ = catch_unwind(AssertUnwindSafe(run));
            let Some(threads) = threads.upgrade() else { return };
            threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
            returned();
        }
    })?;
    Ok(sender)
}
