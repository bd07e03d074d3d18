//! Final states.

/// A final state.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Outcome {
    /// Registers, by thread.
    pub registers: Vec<Vec<u64>>,
    /// Locations.
    pub memory: Vec<u64>,
}

impl Outcome {
    /// The value of `what`.
    ///
    /// # Panics
    ///
    /// If the test of this outcome has no such register or location.
    pub fn value(&self, what: Observable) -> u64 {
        match what {
            Observable::Register { thread, register } => self.registers[thread][register],
            Observable::Location(location) => self.memory[location],
        }
    }
}

/// Something with a final value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Observable {
    /// A register.
    Register {
        /// Index of the thread.
        thread: usize,
        /// Index of the register within the thread.
        register: usize,
    },
    /// A location, by index.
    Location(usize),
}
