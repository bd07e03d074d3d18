//! Parts of what errors say.
#![forbid(unsafe_code)]

use std::fmt;

use meshreduce_wire::{LaunchDescriptor, RecordKind};

use crate::lane::ExchangeKind;

/// Ranks as errors list them: "rank 3", "ranks 1, 2 and 5", "no rank".
#[derive(Clone, Copy, Debug)]
pub struct Ranks<'a>(pub &'a [usize]);

impl fmt::Display for Ranks<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            [] => f.write_str("no rank"),
            [rank] => write!(f, "rank {rank}"),
            [head @ .., last] => {
                let head: Vec<_> = head.iter().map(ToString::to_string).collect();
                write!(f, "ranks {} and {last}", head.join(", "))
            }
        }
    }
}

pub(super) struct Launch<'a>(pub(super) &'a Option<LaunchDescriptor>);

impl fmt::Display for Launch<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            // As an all-to-all it would be told as what it is launched as.
            Some(launch) => match ExchangeKind::of(launch) {
                Some(kind) => {
                    let LaunchDescriptor { algorithm, element, count, .. } = launch;
                    write!(f, "{kind} ({algorithm}) of {count} {element} to this peer")
                }
                None => launch.fmt(f),
            },
            None => f.write_str("something unreadable"),
        }
    }
}

pub(super) fn kind_text(kind: RecordKind) -> &'static str {
    match kind {
        RecordKind::PeerTimeout => "it gave up waiting",
        RecordKind::LaunchMismatch => "it saw a different launch",
        RecordKind::TensorMismatch => "it saw a tensor of another length",
        RecordKind::HostAbort => "its host aborted",
        _ => "it failed",
    }
}
