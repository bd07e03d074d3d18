//! What is between GPUs: latency, and bandwidth for which messages queue, in each direction.

use crate::parameters::NvLink;
use crate::time::{Rate, Time, nanoseconds};

#[derive(Debug)]
pub(crate) struct Links {
    /// By sender and receiver: the way's rate, or nothing where there is none.
    rates: Vec<Option<Rate>>,
    /// Where a message queues to leave, and to arrive.
    leave: Vec<usize>,
    arrive: Vec<usize>,
    /// By queue: when it is free.
    free: Vec<Time>,
    devices: usize,
    one_way: Time,
    header: u64,
    unit: u64,
}

impl Links {
    pub(crate) fn new(parameters: &NvLink, devices: usize) -> Self {
        let rate =
            |links: u32| (links > 0).then(|| Rate::gb_per_s(parameters.link_gb_per_s * f64::from(links)));
        let switched = parameters.switched > 0;
        let pairs = || (0..devices).flat_map(|from| (0..devices).map(move |to| (from, to)));
        let rates = pairs().map(|(from, to)| match switched {
            true => rate(parameters.switched),
            false => rate(parameters.direct[from][to]),
        });
        // Behind switches all ways of a device share its links; else each pair has its own.
        let leave = pairs().map(|(from, to)| if switched { from } else { from * devices + to });
        let arrive =
            pairs().map(|(from, to)| devices * devices + if switched { to } else { from * devices + to });
        Self {
            rates: rates.collect(),
            leave: leave.collect(),
            arrive: arrive.collect(),
            free: vec![0; 2 * devices * devices],
            devices,
            one_way: nanoseconds(parameters.one_way_ns),
            header: u64::from(parameters.header_bytes),
            unit: u64::from(parameters.unit_bytes),
        }
    }

    /// When a message that leaves at `now` is there: one packet for each of `lines`, and the data. `None` without a way.
    pub(crate) fn send(&mut self, from: usize, to: usize, now: Time, lines: u64, data: u64) -> Option<Time> {
        let pair = from * self.devices + to;
        let rate = self.rates[pair]?;
        let takes = rate.takes(lines * self.header + data.next_multiple_of(self.unit));
        let out = &mut self.free[self.leave[pair]];
        let begins = now.max(*out);
        *out = begins + takes;
        let into = &mut self.free[self.arrive[pair]];
        *into = (begins + self.one_way).max(*into) + takes;
        Some(*into)
    }

    /// When the word is there that something has arrived; it is short, and goes beside the data.
    pub(crate) fn acknowledge(&self, now: Time) -> Time {
        now + self.one_way
    }
}
