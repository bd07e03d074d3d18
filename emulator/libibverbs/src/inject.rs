//! Sets faults while adapters run: those of ports, and those that what waits is told of.

use crate::command::{self, Command};
use crate::fault;
use crate::process::Process;

/// Sets a fault. `None` if there is no such fault, or the argument is not one of its.
pub(crate) fn set(name: &str, argument: &str) -> Option<()> {
    match name {
        "port_down" | "port_up" => set_port(name == "port_up", argument),
        _ => {
            fault::set(name, argument)?;
            // What was held up, or may not go on.
            if matches!(name, "hold" | "cut" | "heal" | "late_visibility") {
                command::tell(Command::FaultsChanged);
            }
            Some(())
        }
    }
}

/// `NIC`, or to take it down later `NIC after BYTES`.
fn set_port(up: bool, argument: &str) -> Option<()> {
    let (nic, rest) = argument.split_once(' ').unwrap_or((argument, ""));
    let process = Process::get().ok()?;
    let adapter = process.nics.iter().find(|adapter| adapter.nic.name == nic)?;
    match rest.split_once(' ').unwrap_or((rest, "")) {
        ("after", bytes) if !up => adapter.go_down_after(bytes.trim().parse().ok()?),
        ("", "") => adapter.set_active(up),
        _ => return None,
    }
    Some(())
}
