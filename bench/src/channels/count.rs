//! Calls of the emulated driver, which counts them.

/// Calls that all threads of the process have made to the emulated driver so far; `None`: the driver is another, or none.
pub(crate) fn driver_calls() -> Option<u64> {
    let address = meshreduce_driver_loader::symbol("meshreduceEmulatorAllCalls")?;
    // SAFETY: only the emulated node's driver exports this name, with this signature.
    let count: unsafe extern "C" fn(*mut u64) -> i32 = unsafe { std::mem::transmute(address) };
    let mut calls = 0;
    // SAFETY: the function writes one u64 to the address.
    (unsafe { count(&mut calls) } == 0).then_some(calls)
}
