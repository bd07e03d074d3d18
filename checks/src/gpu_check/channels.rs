//! Channels between two devices, or on one: the scenarios of every kind that is viable here.
#![forbid(unsafe_code)]

use anyhow::{Result, anyhow};
use meshreduce_channels::{Device, Registry};

use super::part::Done;
use super::{Common, begin};
use crate::channels::Cast;

/// Scenarios that a quick run plays too.
const QUICK: [&str; 7] = [
    "descriptors",
    "both_directions_at_once",
    "empty_and_not",
    "offsets_in_allocations",
    "lengths_that_differ",
    "streams_are_waited_for_and_wait",
    "memory_freed_and_allocated_again",
];
/// The others.
const WHOLE: [&str; 9] = [
    "one_way_and_back",
    "many_tensors",
    "receiver_first",
    "sender_first",
    "across_devices_and_back",
    "lengths_from_a_byte_to_many",
    "ten_thousand_transfers",
    "dropped_transfers",
    "closed_during_transfers",
];

/// Runs the part.
///
/// # Errors
/// If it cannot be recorded.
pub fn run(common: &Common) -> Result<bool> {
    let (mut recorder, place) = begin(common, "channels", "Channels")?;
    let devices = place.devices(2);
    let named: Vec<Device> = devices.iter().map(|device| Device::Cuda(*device)).collect();
    let report = Registry::default().report(&named);
    let text = |device: u32| Device::Cuda(device).to_string();
    let (a, b, cpu) = (text(devices[0]), text(devices[1]), Device::Cpu.to_string());
    let casts = [
        ("xth", "threads", Cast::new("xth", &a, &b)),
        ("ipc", "processes", Cast::new("ipc", &a, &b).in_processes()),
        ("gdr", "processes", Cast::new("gdr", &a, &b).in_processes()),
        ("basic", "threads", Cast::new("basic", &a, &b)),
        ("basic", "processes", Cast::new("basic", &a, &b).in_processes()),
        ("basic", "processes, from host memory", Cast::new("basic", &cpu, &b).in_processes()),
    ];
    for (kind, how, cast) in casts {
        recorder.check(&format!("{kind}, {how}"), || {
            let report = report.as_ref().map_err(|error| anyhow!("{error}"))?;
            let row = report.rows.iter().find(|row| row.name == kind);
            let reason = match row {
                None => Some("it is not in the registry".to_owned()),
                Some(row) => row.reason.clone(),
            };
            if let Some(reason) = reason {
                return Ok(Done::NotApplicable(reason));
            }
            let more = if common.quick { &[][..] } else { &WHOLE };
            let scenarios = QUICK.iter().chain(more);
            let count = scenarios.clone().count();
            for scenario in scenarios {
                cast.stage(scenario).outcome().map_err(|said| anyhow!(said))?;
            }
            Ok(Done::Well(format!("{count} scenarios")))
        })?;
    }
    recorder.finish()
}
