//! Faults that tests ask for: calls of one thread that fail as if the driver had.

use std::cell::{Cell, RefCell};

/// The calls of one function that are to fail.
struct Fault {
    name: String,
    /// A `CUresult`.
    code: u32,
    skip: u32,
    times: u32,
}

thread_local! {
    /// Whether the thread has faults, to be asked at every call: unlike the list, it has no destructor, so that calls
    /// from destructors of the thread's other variables find it.
    static ANY: Cell<bool> = const { Cell::new(false) };
    static FAULTS: RefCell<Vec<Fault>> = const { RefCell::new(Vec::new()) };
}

/// Replaces the calling thread's fault of the function `name`; with `times` 0 there is none any more.
pub(crate) fn set(name: &str, code: u32, skip: u32, times: u32) {
    FAULTS.with_borrow_mut(|faults| {
        faults.retain(|fault| fault.name != name);
        if times > 0 {
            faults.push(Fault { name: name.to_owned(), code, skip, times });
        }
        ANY.set(!faults.is_empty());
    });
}

/// What this call of `name` is to answer instead of being made, if anything.
pub(crate) fn next(name: &str) -> Option<u32> {
    if ANY.get() { take(name) } else { None }
}

#[cold]
fn take(name: &str) -> Option<u32> {
    // In a thread that ends the list may be gone already; so are its faults then.
    let taken = FAULTS.try_with(|faults| {
        let mut faults = faults.borrow_mut();
        let at = faults.iter().position(|fault| fault.name == name)?;
        let fault = &mut faults[at];
        if fault.skip > 0 {
            fault.skip -= 1;
            return None;
        }
        fault.times -= 1;
        let code = fault.code;
        if fault.times == 0 {
            faults.swap_remove(at);
            ANY.set(!faults.is_empty());
        }
        Some(code)
    });
    taken.ok().flatten()
}
