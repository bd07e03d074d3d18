//! Mutations that follow from the role of an instruction, for every phase of every algorithm.

use anyhow::{Context, Result};
use meshreduce_wire::{Algorithm, LaneContext, LaunchParams, pad};
use std::mem::offset_of;

use super::roles::{Phase, Roles};
use super::text::{Edit, Entry, Mutant};

/// The thread that stands for the relay in a hybrid cube mesh; those before it stand for the quad.
const RELAY_THREAD: u32 = 4;

/// Mutants in the making.
pub struct Maker<'a> {
    /// The entry.
    pub entry: &'a Entry,
    /// Its places.
    pub roles: &'a Roles,
    /// What it is.
    pub algorithm: Algorithm,
    /// Ranks.
    pub ranks: usize,
    /// What was made.
    pub made: Vec<Mutant>,
}

impl Maker<'_> {
    /// Adds a mutant.
    pub fn add(&mut self, name: impl AsRef<str>, edits: Vec<Edit>) {
        let name = format!("{}/{}", self.algorithm.kernel_name(), name.as_ref());
        self.made.push(Mutant { name, edits });
    }

    /// Adds a mutant in which `from` becomes `to` at every one of `places`.
    fn turn(&mut self, name: impl AsRef<str>, places: &[usize], from: &str, to: &str) -> Result<()> {
        let edits: Result<Vec<Edit>> = places.iter().map(|&at| self.entry.replaced(at, from, to)).collect();
        let edits = edits.with_context(|| name.as_ref().to_owned())?;
        self.add(name, edits);
        Ok(())
    }

    /// Weaker orders and narrower scopes of a strong access.
    fn weaken(&mut self, role: &str, places: &[usize]) -> Result<()> {
        let line = self.entry.lines[places[0]].clone();
        for (order, weaker) in [
            (".release", &["relaxed"][..]),
            (".acquire", &["relaxed", "volatile"]),
            (".acq_rel", &["relaxed", "acquire", "release"]),
        ] {
            for weaker in weaker.iter().filter(|_| line.contains(order)) {
                let (from, to) = match *weaker {
                    "volatile" => (format!("{order}.sys"), ".volatile".to_owned()),
                    weaker => (order.to_owned(), format!(".{weaker}")),
                };
                self.turn(format!("{role}-{weaker}"), places, &from, &to)?;
            }
        }
        self.turn(format!("{role}-gpu"), places, ".sys", ".gpu")?;
        self.turn(format!("{role}-cta"), places, ".sys", ".cta")?;
        if !line.contains("atom") {
            let order = ["release", "acquire", "relaxed"].into_iter().find(|order| line.contains(order));
            let order = order.with_context(|| format!("no strong access in '{}'", line.trim()))?;
            self.turn(format!("{role}-weak"), places, &format!(".{order}.sys"), "")?;
        }
        Ok(())
    }

    /// All of them.
    ///
    /// # Errors
    /// If a mutation does not apply.
    pub fn systematic(&mut self) -> Result<()> {
        let (entry, roles) = (self.entry, self.roles);
        for phase in &roles.phases {
            self.orders(phase)?;
            self.signals(phase)?;
            self.failures(phase)?;
            self.deadlines(phase)?;
            self.spreading(phase);
        }
        self.weaken("entry-poll", &[roles.entry_poll])?;
        self.weaken("exits", &[roles.exits])?;
        self.weaken("exits-reset", &[roles.exits_reset])?;
        self.add("exits-reset-dropped", vec![entry.dropped(roles.exits_reset)]);
        self.add("advance-dropped", vec![entry.dropped(roles.advance)]);
        let next = entry.operands(roles.advance)[1].to_owned();
        let twice = [format!("\tadd.s64 {next}, {next}, 1;")];
        self.add("advance-by-two", vec![entry.preceded(roles.advance, &twice)]);
        let last = entry.next(roles.exits, "add.s32", 3)?;
        self.add("exits-one-block-early", vec![entry.replaced(last, ", -1;", ", -2;")?]);
        self.add("entry-poll-dropped", vec![entry.constant(roles.entry_poll, "0")]);
        let staged = roles.stage_guards.iter().map(|&at| entry.constant(at, "0")).collect();
        self.add("stage-guard-dropped", staged);
        if self.algorithm == Algorithm::HybridCubeMesh {
            self.relay_late()?;
        }
        self.barriers()?;
        self.data()
    }

    /// Barriers that do not wait, do not ask, or do not tell.
    fn barriers(&mut self) -> Result<()> {
        let (entry, roles) = (self.entry, self.roles);
        for (at, &barrier) in roles.barriers.iter().enumerate() {
            // Those before signals are left out by hand.
            if at % 2 == 1 {
                self.add(format!("barrier-{at}-dropped"), vec![entry.without_barrier(barrier)]);
            }
            if !entry.lines[barrier].contains(".red.") {
                continue;
            }
            let operands = entry.operands(barrier);
            let (told, asked) = (operands[0], operands[2]);
            let alone = vec!["\tbar.sync \t0;".to_owned(), format!("\tmov.pred {told}, {asked};")];
            self.add(format!("agreement-{at}-dropped"), vec![Edit { at: barrier, with: alone }]);
            self.add(format!("agreement-{at}-of-all"), vec![entry.replaced(barrier, ".or.", ".and.")?]);
            let never = ["\tmov.u32 %mr0, 0;".to_owned(), format!("\tsetp.ne.u32 {told}, %mr0, 0;")];
            self.add(format!("agreement-{at}-never"), vec![entry.followed(barrier, &never)]);
        }
        Ok(())
    }

    fn orders(&mut self, phase: &Phase) -> Result<()> {
        let prefix = phase.prefix;
        self.weaken(&format!("{prefix}signal-store"), &[phase.signal])?;
        self.weaken(&format!("{prefix}wait"), &phase.looks)?;
        self.weaken(&format!("{prefix}wait-first-look"), &phase.looks[..1])?;
        self.weaken(&format!("{prefix}wait-loop"), &phase.looks[1..])?;
        if let (Some(store), Some(read)) = (phase.descriptor, phase.descriptor_read) {
            self.weaken(&format!("{prefix}descriptor-store"), &[store])?;
            self.weaken(&format!("{prefix}descriptor-read"), &[read])?;
        }
        self.weaken(&format!("{prefix}abort-poll"), &[phase.poll])?;
        self.weaken(&format!("{prefix}host-poll"), &[phase.host_poll])?;
        self.weaken(&format!("{prefix}claim"), &[phase.claim])?;
        self.weaken(&format!("{prefix}spread"), &[phase.spread])?;
        self.weaken(&format!("{prefix}valid"), &[phase.valid])
    }

    fn signals(&mut self, phase: &Phase) -> Result<()> {
        let (entry, roles) = (self.entry, self.roles);
        let name = |what: &str| format!("{}{what}", phase.prefix);
        let [first, again] = phase.looks;
        let epoch = entry.operands(phase.signal)[1].to_owned();
        let other = |by: &str, at: usize| {
            vec![
                format!("\tadd.s64 %md0, {epoch}, {by};"),
                entry.lines[at].replacen(&format!("{epoch};"), "%md0;", 1),
            ]
        };
        for (what, by) in [("behind", "-1"), ("ahead", "1")] {
            let edit = Edit { at: phase.signal, with: other(by, phase.signal) };
            self.add(name(&format!("signal-epoch-{what}")), vec![edit]);
            let compare = |look| {
                let at = entry.next(look, &format!(", {epoch};"), 3)?;
                Ok(Edit { at, with: other(by, at) })
            };
            let edits: Result<Vec<Edit>> = phase.looks.into_iter().map(compare).collect();
            self.add(name(&format!("wait-epoch-{what}")), edits?);
        }
        self.add(name("signal-dropped"), vec![entry.dropped(phase.signal)]);
        self.add(name("signal-to-next-source"), vec![entry.moved(phase.signal, 8)?]);
        self.add(name("signal-to-next-block"), vec![entry.moved(phase.signal, 64)?]);
        self.add(name("wait-on-next-source"), vec![entry.moved(first, 8)?, entry.moved(again, 8)?]);
        self.add(name("wait-on-next-block"), vec![entry.moved(first, 64)?, entry.moved(again, 64)?]);
        let skipped = || vec![entry.constant(first, "-1"), entry.constant(again, "-1")];
        self.add(name("wait-skipped"), skipped());
        let seen = entry.operands(first)[0].to_owned();
        // One thread of those that stand for peers takes its signal as given.
        let thread = if phase.prefix == "relay-" { RELAY_THREAD } else { 0 };
        let spare = |at| {
            let lines = [
                "\tmov.u32 %mr0, %tid.x;".to_owned(),
                format!("\tsetp.eq.u32 %mp0, %mr0, {thread};"),
                format!("\tselp.b64 {seen}, -1, {seen}, %mp0;"),
            ];
            entry.followed(at, &lines)
        };
        self.add(name("wait-for-one-peer-less"), vec![spare(first), spare(again)]);
        let equal = |look| {
            let at = entry.next(look, &format!(", {epoch};"), 3)?;
            let (from, to) = if entry.lines[at].contains("setp.lt") {
                ("setp.lt", "setp.ne")
            } else {
                ("setp.ge", "setp.eq")
            };
            entry.replaced(at, from, to)
        };
        self.add(name("wait-for-equal-epoch"), vec![equal(first)?, equal(again)?]);
        if !phase.prefix.is_empty() {
            let back = vec![entry.moved(first, -4096)?, entry.moved(again, -4096)?];
            self.add(name("wait-in-phase-0"), back);
        }
        if let (Some(store), Some(read)) = (phase.descriptor, phase.descriptor_read) {
            self.add(name("descriptor-dropped"), vec![entry.dropped(store)]);
            let late = [entry.lines[store].clone()];
            let swapped = vec![entry.dropped(store), entry.followed(phase.signal, &late)];
            self.add(name("descriptor-after-signal"), swapped);
            self.add(name("descriptor-to-next-source"), vec![entry.moved(store, 8)?]);
            let own = entry.operands(store)[1].to_owned();
            let got = entry.operands(read)[0].to_owned();
            let believed = [format!("\tmov.b64 {got}, {own};")];
            self.add(name("descriptor-not-compared"), vec![entry.followed(read, &believed)]);
            // Both parities in one slot.
            let masks = entry.all(", 4096;").into_iter().filter(|&at| entry.lines[at].contains("and.b64"));
            let masks: Vec<Edit> =
                masks.map(|at| entry.replaced(at, ", 4096;", ", 0;")).collect::<Result<_>>()?;
            anyhow::ensure!(!masks.is_empty(), "the parity of descriptors");
            if phase.prefix.is_empty() {
                self.add("descriptor-one-slot", masks);
            }
        }
        let early = roles.barriers[2 * usize::from(!phase.prefix.is_empty())];
        let pad = roles.peer_pad;
        let peer = entry.operands(pad)[0].to_owned();
        let number = entry.operands(roles.call_number)[0].to_owned();
        let rank = entry.operands(roles.rank)[0].to_owned();
        let slot = if phase.prefix.is_empty() { 0 } else { 4096 };
        // The peer is told at once, before anything is stored that it is to read.
        let signal = [
            "\tmov.u32 %mr1, %ctaid.x;".to_owned(),
            "\tmul.wide.u32 %md1, %mr1, 64;".to_owned(),
            format!("\tmul.wide.u32 %md2, {rank}, 8;"),
            "\tadd.s64 %md1, %md1, %md2;".to_owned(),
            format!("\tadd.s64 %md1, %md1, {peer};"),
            format!("\tadd.s64 %md2, {number}, 1;"),
            format!("\tst.release.sys.global.u64 [%md1+{slot}], %md2;"),
        ];
        anyhow::ensure!(pad < early, "the peer's pad is known before the barrier");
        self.add(name("signal-before-data"), vec![entry.followed(pad, &signal), entry.dropped(phase.signal)]);
        Ok(())
    }

    fn failures(&mut self, phase: &Phase) -> Result<()> {
        let entry = self.entry;
        let name = |what: &str| format!("{}{what}", phase.prefix);
        self.add(name("abort-poll-dropped"), vec![entry.constant(phase.poll, "0")]);
        self.add(name("host-poll-dropped"), vec![entry.constant(phase.host_poll, "0")]);
        self.add(name("claim-dropped"), vec![entry.constant(phase.claim, "0")]);
        let operands = entry.operands(phase.claim);
        let (got, slot, value) = (operands[0], operands[1], operands[3]);
        let torn = vec![
            format!("\tld.relaxed.sys.global.u32 {got}, {slot};"),
            format!("\tst.relaxed.sys.global.u32 {slot}, {value};"),
        ];
        self.add(name("claim-not-atomic"), vec![Edit { at: phase.claim, with: torn }]);
        self.add(name("valid-dropped"), vec![entry.dropped(phase.valid)]);
        self.add(name("record-dropped"), vec![entry.dropped(phase.record)]);
        let late = [entry.lines[phase.record].clone()];
        self.add(
            name("record-after-valid"),
            vec![entry.dropped(phase.record), entry.followed(phase.valid, &late)],
        );
        Ok(())
    }

    /// When a wait ends, and what is told of it.
    fn deadlines(&mut self, phase: &Phase) -> Result<()> {
        let entry = self.entry;
        let name = |what: &str| format!("{}{what}", phase.prefix);
        let clock = entry.operands(phase.clock)[0].to_owned();
        let difference = entry.next(phase.clock, "sub.s64", 2)?;
        let [waited, _, begin] = entry.operands(difference)[..] else {
            anyhow::bail!("no difference in '{}'", entry.lines[difference].trim())
        };
        let still = Edit { at: phase.clock, with: vec![format!("\tmov.u64 {clock}, {begin};")] };
        self.add(name("deadline-dropped"), vec![still]);
        let halved = [format!("\tshr.u64 {waited}, {waited}, 1;")];
        self.add(name("deadline-doubled"), vec![entry.followed(difference, &halved)]);
        let twice = [format!("\tadd.s64 {waited}, {waited}, {waited};")];
        self.add(name("deadline-halved"), vec![entry.followed(difference, &twice)]);
        if !phase.prefix.is_empty() {
            let compare = entry.next(difference, "setp.lt.u64", 2)?;
            let patience = entry.operands(compare)[2].to_owned();
            let deadline = entry.one(&format!("_param_0+{}];", offset_of!(LaunchParams, deadline_ns)))?;
            let deadline = entry.operands(deadline)[0].to_owned();
            let early = entry.replaced(compare, &format!("{patience};"), &format!("{deadline};"))?;
            self.add(name("deadline-of-phase-0"), vec![early]);
        }
        self.add(name("waited-dropped"), vec![entry.dropped(phase.waited)]);
        Ok(())
    }

    /// Some of those that must hear of a failure do not.
    fn spreading(&mut self, phase: &Phase) {
        let (entry, roles) = (self.entry, self.roles);
        let told = entry.operands(phase.told_pad)[0].to_owned();
        let own = entry.operands(roles.own_pad)[0].to_owned();
        let place = entry.operands(phase.spread)[0].trim_matches(['[', ']']).to_owned();
        self.add(format!("{}spread-dropped", phase.prefix), vec![entry.dropped(phase.spread)]);
        // Whether the pad is one of another lane, or of another rank: `ne`; of this one: `eq`.
        for (what, lane, rank) in [
            ("own-pad", "eq", Some("eq")),
            ("peers", "eq", Some("ne")),
            ("lanes", "ne", None),
            ("own-lanes", "ne", Some("eq")),
            ("peers-lanes", "ne", Some("ne")),
        ] {
            let mut lines = vec![
                format!("\tadd.s64 %md0, {told}, {};", pad::ABORT),
                format!("\tsetp.{lane}.s64 %mp0, {place}, %md0;"),
            ];
            if let Some(rank) = rank {
                lines.push(format!("\tsetp.{rank}.s64 %mp1, {told}, {own};"));
                lines.push("\tand.pred %mp0, %mp0, %mp1;".to_owned());
            }
            lines.push(format!("\t@!%mp0 {}", entry.lines[phase.spread].trim()));
            let edit = Edit { at: phase.spread, with: lines };
            self.add(format!("{}spread-not-to-{what}", phase.prefix), vec![edit]);
        }
    }

    /// The relay is met in the second phase only: neither signal nor wait nor descriptor in the first.
    fn relay_late(&mut self) -> Result<()> {
        let (entry, phase) = (self.entry, &self.roles.phases[0]);
        let is_relay = || {
            let thread = "\tmov.u32 %mr0, %tid.x;".to_owned();
            [thread, format!("\tsetp.eq.u32 %mp0, %mr0, {RELAY_THREAD};")]
        };
        let unless = |at: usize| {
            let lines = [&is_relay()[..], &[format!("\t@!%mp0 {}", entry.lines[at].trim())]].concat();
            Edit { at, with: lines }
        };
        let taken = |at: usize, value: &str| {
            let got = entry.operands(at)[0];
            let given = format!("\tselp.b64 {got}, {value}, {got}, %mp0;");
            entry.followed(at, &[&is_relay()[..], &[given]].concat())
        };
        let descriptor = phase.descriptor.zip(phase.descriptor_read).context("descriptors")?;
        let own = entry.operands(descriptor.0)[1].to_owned();
        let mut edits = vec![unless(descriptor.0), unless(phase.signal), taken(descriptor.1, &own)];
        edits.extend(phase.looks.map(|look| taken(look, "-1")));
        self.add("relay-not-met-in-phase-0", edits);
        // It is met, but what it launched is not looked at.
        self.add("relay-descriptor-not-compared", vec![taken(descriptor.1, &own)]);
        Ok(())
    }

    /// Staging and what is read from it.
    fn data(&mut self) -> Result<()> {
        let (entry, roles) = (self.entry, self.roles);
        for (at, &load) in roles.staging_loads.iter().enumerate() {
            self.add(format!("load-{at}-nc"), vec![entry.replaced(load, "ld.global.", "ld.global.nc.")?]);
            self.add(format!("load-{at}-next-vector"), vec![entry.moved(load, 16)?]);
        }
        let stores = roles.staging_stores.iter().map(|store| ("staging", store));
        let results = roles.result_stores.iter().map(|store| ("result", store));
        let stores: Vec<(&str, usize)> = stores.chain(results).map(|(role, &at)| (role, at)).collect();
        for (at, (role, store)) in stores.into_iter().enumerate() {
            self.add(format!("{role}-store-{at}-dropped"), vec![entry.dropped(store)]);
            self.add(format!("{role}-store-{at}-next-vector"), vec![entry.moved(store, 16)?]);
        }
        let block = entry.operands(roles.parity)[1].to_owned();
        let parity = entry.operands(roles.parity)[0].to_owned();
        let by_block = vec![
            "\tmov.u32 %mr1, %ctaid.x;".to_owned(),
            "\tcvt.u64.u32 %md1, %mr1;".to_owned(),
            format!("\tadd.s64 %md1, %md1, {block};"),
            format!("\tand.b64 {parity}, %md1, 1;"),
        ];
        self.add("half-by-block", vec![Edit { at: roles.parity, with: by_block }]);
        // Positions of staging, as they are read at constant offsets.
        let first = offset_of!(LaneContext, staging);
        for position in 0..self.ranks {
            let shape = format!("+{}];", first + 8 * position);
            let reads: Vec<usize> = entry
                .all(&shape)
                .into_iter()
                .filter(|&at| entry.lines[at].contains("ld.global.nc.u64"))
                .collect();
            let other = format!("+{}];", first + 8 * ((position + 1) % self.ranks));
            for (at, &read) in reads.iter().enumerate() {
                if self.algorithm == Algorithm::HybridCubeMesh {
                    // One address for each member of the quad, and the relay's.
                    let next = format!("+{}];", first + 8);
                    self.add(format!("staging-table-{at}-next"), vec![entry.replaced(read, &shape, &next)?]);
                } else {
                    self.add(
                        format!("staging-table-{position}-{at}-next"),
                        vec![entry.replaced(read, &shape, &other)?],
                    );
                }
            }
        }
        if self.algorithm == Algorithm::TwoShot {
            let position = entry.one(&format!("+{}];", offset_of!(LaneContext, position)))?;
            let register = entry.operands(position)[0].to_owned();
            let next = [format!("\tadd.s32 {register}, {register}, 1;")];
            self.add("slice-of-next-position", vec![entry.followed(position, &next)]);
            let rank = format!("+{}];", offset_of!(LaneContext, rank));
            let at = format!("+{}];", offset_of!(LaneContext, position));
            self.add("slice-by-rank", vec![entry.replaced(position, &at, &rank)?]);
        }
        Ok(())
    }
}
