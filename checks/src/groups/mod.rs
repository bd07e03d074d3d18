//! What every backend of a process group must do, whichever it is: each collective against a plain reference.
//!
//! [`case`] says what a call is without memory, [`values`] what must come out of it, [`arena`] puts it into memory between
//! guards, [`runner`] has all ranks make it. [`profile`] is what is expected of a backend by name. [`plain`] is a backend
//! over a store, slow and simple, with faults that it can be given: it shows that the suite passes and that it can fail.

pub mod arena;
pub mod case;
pub mod plain;
pub mod profile;
pub mod runner;
pub mod values;
