//! Which launches and blocks there were, for the reports.

use std::sync::Arc;

use super::history::Who;
use super::view::{Event, Knowledge};
use meshreduce_emulator_ptx::Launch;

#[derive(Debug, Default)]
pub(super) struct Book {
    launches: Vec<Entry>,
    blocks: Vec<[u32; 3]>,
}

#[derive(Debug)]
struct Entry {
    launch: Arc<Launch>,
    /// Number among the device's launches, from 0.
    number: u32,
    start: Knowledge,
    end: Event,
}

impl Book {
    pub(super) fn launch(&mut self, launch: Arc<Launch>, number: u32, start: Knowledge, end: Event) -> u32 {
        self.launches.push(Entry { launch, number, start, end });
        self.launches.len() as u32 - 1
    }

    pub(super) fn block(&mut self, index: [u32; 3]) -> u32 {
        self.blocks.push(index);
        self.blocks.len() as u32 - 1
    }

    /// What every thread of a launch knows at its beginning.
    pub(super) fn start_of(&self, launch: u32) -> &Knowledge {
        &self.launches[launch as usize].start
    }

    /// The event at which a launch ends, or will.
    pub(super) fn end_of(&self, launch: u32) -> Event {
        self.launches[launch as usize].end
    }

    pub(super) fn number_of(&self, launch: u32) -> u32 {
        self.launches[launch as usize].number
    }

    /// "device 1, launch 2, block 0, thread 5".
    pub(super) fn name(&self, who: &Who) -> String {
        let [x, y, z] = self.blocks[who.block as usize];
        let block = if y == 0 && z == 0 { x.to_string() } else { format!("({x}, {y}, {z})") };
        let number = self.launches[who.launch as usize].number;
        format!("device {}, launch {number}, block {block}, thread {}", who.device, who.thread)
    }

    /// The line number and text of the instruction.
    pub(super) fn line(&self, who: &Who) -> (u32, &str) {
        let kernel = &self.launches[who.launch as usize].launch.kernel;
        let line = kernel.code.get(who.pc as usize).map_or(0, |step| step.line);
        (line, kernel.line_text(line))
    }

    /// "line 225: `st.release...`".
    pub(super) fn place(&self, who: &Who) -> String {
        let (line, text) = self.line(who);
        format!("line {line}: `{text}`")
    }
}
