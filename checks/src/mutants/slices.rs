//! Mutations of what only kernels of slices have: the tables by position, and whom a rank meets that has nothing for it.

use std::mem::offset_of;

use anyhow::{Result, ensure};
use meshreduce_wire::{LaunchParams, SliceParams, Slices};

use super::maker::Maker;
use super::text::Edit;

impl<R> Maker<'_, R> {
    /// All of them. `looks` are those at a signal, in a call by barriers.
    ///
    /// # Errors
    /// If a mutation does not apply.
    pub(super) fn slices(&mut self, looks: Option<&[usize; 2]>) -> Result<()> {
        let (sent, received) = (offset_of!(SliceParams, sent), offset_of!(SliceParams, received));
        let addresses = offset_of!(Slices, addresses);
        for position in 0..self.ranks {
            let next = (position + 1) % self.ranks;
            let to = sent + addresses;
            self.table(format!("input-of-{position}-next"), to + 8 * position, to + 8 * next)?;
            // Of a reduction all have the same.
            if self.algorithm.moves() {
                let to = received + addresses;
                self.table(format!("output-of-{position}-next"), to + 8 * position, to + 8 * next)?;
            }
            let to = offset_of!(SliceParams, said);
            self.table(format!("said-to-{position}-next"), to + 8 * position, to + 8 * next)?;
        }
        for (name, at) in [("input", sent), ("output", received)] {
            let read = self.entry.one(&format!("_param_0+{}];", at + offset_of!(Slices, alignment)))?;
            self.add(format!("{name}-alignment-ignored"), vec![self.entry.constant(read, "16")]);
        }
        self.tables(
            "expected-is-said",
            offset_of!(SliceParams, expected)..offset_of!(SliceParams, tags_said),
            offset_of!(SliceParams, said),
        )?;
        // Tag and flags come in one load.
        let flags = self.entry.one(&format!("_param_0+{}];", offset_of!(LaunchParams, tag)))?;
        let register = self.entry.operands(flags)[0].to_owned();
        let masks = self.entry.all(&format!(", {register}, 4294967296;"));
        ensure!(!masks.is_empty(), "the flag of a call in place");
        let edits = masks.into_iter().map(|at| self.entry.constant(at, "0")).collect();
        self.add("in-place-ignored", edits);
        if let Some(looks) = looks {
            self.tables(
                "tag-expected-is-said",
                offset_of!(SliceParams, tags_expected)..size_of::<SliceParams>(),
                offset_of!(SliceParams, tags_said),
            )?;
            let stride = self.entry.one(&format!("_param_0+{}];", offset_of!(SliceParams, stride)))?;
            self.add("one-region-for-all", vec![self.entry.constant(stride, "0")]);
            self.met_by_data(looks);
        }
        Ok(())
    }

    /// A rank meets those alone who have data for it.
    fn met_by_data(&mut self, looks: &[usize; 2]) {
        let bytes = offset_of!(SliceParams, received) + offset_of!(Slices, bytes);
        let mut edits = Vec::new();
        for &at in looks {
            let seen = self.entry.operands(at)[0].to_owned();
            let mut lines = self.of_thread("%mr1", bytes);
            lines.push("\tsetp.eq.u32 %mp0, %mr1, 0;".to_owned());
            lines.push(format!("\tselp.b64 {seen}, -1, {seen}, %mp0;"));
            edits.push(self.entry.followed(at, &lines));
        }
        self.add("reader-without-data-not-met", edits);
    }

    /// What is read of the parameters at `from` is read at `to`.
    fn table(&mut self, name: String, from: usize, to: usize) -> Result<()> {
        let places = self.entry.all(&format!("_param_0+{from}];"));
        ensure!(!places.is_empty(), "no read of the parameters at {from}");
        self.turn(name, &places, &format!("+{from}];"), &format!("+{to}];"))
    }

    /// What is read of one table is read of another.
    fn tables(&mut self, name: &str, from: std::ops::Range<usize>, to: usize) -> Result<()> {
        let mut edits: Vec<Edit> = Vec::new();
        for at in from.clone() {
            let shape = format!("_param_0+{at}];");
            for place in self.entry.all(&shape) {
                let other = format!("_param_0+{}];", to + at - from.start);
                edits.push(self.entry.replaced(place, &shape, &other)?);
            }
        }
        ensure!(!edits.is_empty(), "no read of the parameters from {} on", from.start);
        self.add(name, edits);
        Ok(())
    }
}
