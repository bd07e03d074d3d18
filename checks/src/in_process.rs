//! Ranks as threads of the calling process, for tests that look at the library's own values.

use std::ffi::{CString, c_char};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use cust::context::Context;
use cust::device::Device;
use meshreduce::store::FileStore;
use meshreduce::{Communicator, Config, Error, Outcome};
use meshreduce_device::{Module, Stream};

use crate::emulated_node::EmulatedNode;

/// Opens the emulated node (an HGX H100, unless `MESHREDUCE_NODE` says otherwise) as this process's driver.
///
/// # Panics
/// If its libraries have not been built, or this process has opened another driver.
pub fn open_driver() {
    static OPENED: OnceLock<()> = OnceLock::new();
    OPENED.get_or_init(|| {
        let node = EmulatedNode::new("hgx-h100").unwrap_or_else(|error| panic!("{error}"));
        // SAFETY: it is the emulated node's driver, which this repository builds.
        unsafe { meshreduce_driver_loader::use_library(node.library()) }.expect("no driver is open yet");
    });
}

/// Keeps other tests of this process from the devices: freeing memory and waiting for a context wait for everybody's
/// kernels there, so that two communicators at a time could wait for each other in a ring.
pub fn alone() -> MutexGuard<'static, ()> {
    static DEVICES: Mutex<()> = Mutex::new(());
    // A panic elsewhere says nothing about this test.
    DEVICES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A configuration whose waits end only where something is broken, however slow the machine.
pub fn config() -> Config {
    Config::default().deadline(Some(Duration::from_secs(60))).timeout(Duration::from_secs(60))
}

/// For a deadline or a timeout that a test waits for, but that must not pass before the ranks have met: as short as it
/// may be on a machine that stands still for seconds now and then.
pub const BRIEF: Duration = Duration::from_secs(6);

/// Meets `world_size` ranks, rank r on device r, and runs `program` on each, its device's context current. Returns what
/// the programs return, by rank.
///
/// # Panics
/// If a rank panics, or the rendezvous is not ready.
pub fn ranks<T: Send>(
    world_size: usize,
    config: &Config,
    program: impl Fn(Communicator) -> T + Sync,
) -> Vec<T> {
    outcomes(world_size, config, |outcome| match outcome {
        Ok(Outcome::Ready(communicator)) => {
            let device = Device::get_device(communicator.device()).expect("the rank's device");
            let _context = Context::new(device).expect("its context");
            program(communicator)
        }
        other => panic!("the rendezvous came to {other:?}"),
    })
}

/// The same for programs that want the outcome itself. One call at a time in a process; others wait.
///
/// # Panics
/// If a rank panics.
pub fn outcomes<T: Send>(
    world_size: usize,
    config: &Config,
    program: impl Fn(Result<Outcome, Error>) -> T + Sync,
) -> Vec<T> {
    outcomes_each(world_size, |_| config.clone(), program)
}

/// The same with a configuration for every rank.
///
/// # Panics
/// If a rank panics.
pub fn outcomes_each<T: Send>(
    world_size: usize,
    config: impl Fn(usize) -> Config + Sync,
    program: impl Fn(Result<Outcome, Error>) -> T + Sync,
) -> Vec<T> {
    let _alone = alone();
    open_driver();
    let directory = tempfile::tempdir().expect("a temporary directory");
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..world_size)
            .map(|rank| {
                let (directory, config, program) = (directory.path(), &config, &program);
                scope.spawn(move || {
                    let store = FileStore::open(directory).expect("a store");
                    let config = config(rank);
                    program(meshreduce::rendezvous(&store, rank, world_size, rank as u32, &config))
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("no rank panics")).collect()
    })
}

/// Whether [`again_on`] has started this process to see `node`.
pub fn is_again_on(node: &str) -> bool {
    std::env::var("MESHREDUCE_NODE").as_deref() == Ok(node)
}

/// Runs one test of the calling test program in another process, which sees the emulated `node`. The test does nothing
/// unless [`is_again_on`] that node.
///
/// # Panics
/// If it fails.
pub fn again_on(node: &str, test: &str) {
    let program = std::env::current_exe().expect("this program's own file");
    let mut again = std::process::Command::new(program);
    let output = again.args(["--exact", test, "--nocapture"]).env("MESHREDUCE_NODE", node).output();
    let output = output.expect("the test program starts");
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, complaint) = (said(&output.stdout), said(&output.stderr));
    assert!(output.status.success() && out.contains("1 passed"), "{out}\n{complaint}");
}

/// Calls that this thread has made to the emulated driver so far, the one that asks among them.
///
/// # Panics
/// If the driver is not the emulated node's.
pub fn driver_calls() -> u64 {
    let address = meshreduce_driver_loader::symbol("meshreduceEmulatorCalls").expect("an emulated node");
    // SAFETY: only the emulated node's driver exports this name, with this signature.
    let count: unsafe extern "C" fn(*mut u64) -> i32 = unsafe { std::mem::transmute(address) };
    let mut calls = 0;
    // SAFETY: the function writes one u64 to the address.
    assert_eq!(unsafe { count(&mut calls) }, 0);
    calls
}

/// Calls that all threads of the process have made to the emulated driver so far.
///
/// # Panics
/// If the driver is not the emulated node's.
pub fn all_driver_calls() -> u64 {
    let address = meshreduce_driver_loader::symbol("meshreduceEmulatorAllCalls").expect("an emulated node");
    // SAFETY: only the emulated node's driver exports this name, with this signature.
    let count: unsafe extern "C" fn(*mut u64) -> i32 = unsafe { std::mem::transmute(address) };
    let mut calls = 0;
    // SAFETY: the function writes one u64 to the address.
    assert_eq!(unsafe { count(&mut calls) }, 0);
    calls
}

/// Makes calls of this thread to the emulated driver fail: of the function `name`, as it is exported, the next `skip` are
/// as usual, and the `times` after them answer `code` and do nothing else. 0 times ends what was asked for earlier.
///
/// # Panics
/// If the driver is not the emulated node's, or has no such function.
pub fn fail_driver_calls(name: &str, code: u32, skip: u32, times: u32) {
    let address = meshreduce_driver_loader::symbol("meshreduceEmulatorFail").expect("an emulated node");
    // SAFETY: only the emulated node's driver exports this name, with this signature.
    let fail: unsafe extern "C" fn(*const c_char, u32, u32, u32) -> i32 =
        unsafe { std::mem::transmute(address) };
    let name = CString::new(name).expect("a name without zeros");
    // SAFETY: the name is zero-terminated and outlives the call.
    assert_eq!(unsafe { fail(name.as_ptr(), code, skip, times) }, 0, "the driver has no function {name:?}");
}

/// `cuDevicePrimaryCtxReset`: what is of the device's context is gone, under whoever has it.
///
/// # Panics
/// If the driver refuses.
pub fn reset_context(ordinal: u32) {
    let address = meshreduce_driver_loader::symbol("cuDevicePrimaryCtxReset_v2").expect("the function");
    // SAFETY: the driver's function of this name has this signature.
    let reset: unsafe extern "C" fn(i32) -> i32 = unsafe { std::mem::transmute(address) };
    // SAFETY: nothing of the context is used after it but by what sees that it has gone.
    assert_eq!(unsafe { reset(ordinal as i32) }, 0, "resetting the context of device {ordinal}");
}

/// A kernel that writes where it must not.
const WILD: &str = "
.version 7.0
.target sm_70
.address_size 64
.visible .entry wild(.param .u64 to)
{
    .reg .b64 %to;
    ld.param.u64 %to, [to];
    st.global.u64 [%to], %to;
    ret;
}
";

/// Has the device lose the stream's context, when what was enqueued before is done: by a kernel that faults. The module is to be kept
/// for as long.
///
/// # Panics
/// If the driver refuses.
#[must_use]
pub fn lose_context(stream: &Stream) -> Module {
    let module = Module::load(stream.context(), WILD).unwrap_or_else(|(error, log)| panic!("{error}: {log}"));
    let wild = module.function("wild").expect("a function").expect("it is there");
    let address = 16_u64;
    // SAFETY: the module is loaded, and the function has one parameter of this type. Nobody has memory at the address.
    unsafe { wild.launch(1, 1, stream.raw(), &address) }.expect("a launch");
    module
}
