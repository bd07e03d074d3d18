//! Mutants in the making, and those of what all kernels have: waits that are given up.

use std::mem::offset_of;

use anyhow::{Context, Result};
use meshreduce_wire::{Algorithm, Isa, LaneParams, LaunchParams, counters, pad};

use super::roles::{Failing, Wait};
use super::text::{Edit, Entry, Mutant};

/// Whose entry of a table a thread takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// That at the thread's number.
    Thread,
    /// In a hybrid cube mesh: that of the own quad.
    OfQuad,
    /// That of the other one.
    OfOtherQuad,
    /// That which differs from the own one in the bit of 4.
    Opposite,
    /// That of the relay neighbour.
    RelayNeighbour,
}

/// Mutants in the making.
pub struct Maker<'a, R> {
    /// The entry.
    pub entry: &'a Entry,
    /// Its places.
    pub roles: &'a R,
    /// What it is.
    pub algorithm: Algorithm,
    /// Ranks.
    pub ranks: usize,
    /// The ISA of the text.
    pub isa: Isa,
    /// What was made.
    pub made: Vec<Mutant>,
}

impl<R> Maker<'_, R> {
    /// Adds a mutant.
    pub fn add(&mut self, name: impl AsRef<str>, edits: Vec<Edit>) {
        let name = format!("{}{}/{}", self.algorithm.kernel_name(), self.isa.suffix(), name.as_ref());
        self.made.push(Mutant { name, edits });
    }

    /// Adds a mutant in which `from` becomes `to` at every one of `places`.
    pub(super) fn turn(
        &mut self,
        name: impl AsRef<str>,
        places: &[usize],
        from: &str,
        to: &str,
    ) -> Result<()> {
        let edits: Result<Vec<Edit>> = places.iter().map(|&at| self.entry.replaced(at, from, to)).collect();
        let edits = edits.with_context(|| name.as_ref().to_owned())?;
        self.add(name, edits);
        Ok(())
    }

    /// Weaker orders and narrower scopes of a strong access.
    pub(super) fn weaken(&mut self, role: &str, places: &[usize]) -> Result<()> {
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
        for narrower in [".gpu", ".cta"] {
            let wide = if line.contains(".sys") { ".sys" } else { ".gpu" };
            if wide != narrower {
                self.turn(format!("{role}{}", narrower.replace('.', "-")), places, wide, narrower)?;
            }
        }
        if !line.contains("atom") {
            let order = ["release", "acquire", "relaxed"].into_iter().find(|order| line.contains(order));
            let order = order.with_context(|| format!("no strong access in '{}'", line.trim()))?;
            self.turn(format!("{role}-weak"), places, &format!(".{order}.sys"), "")?;
        }
        Ok(())
    }

    /// Loads a parameter of the lane.
    pub(super) fn lane_param(&self, register: &str, offset: usize) -> String {
        let bits = if register.starts_with("%md") { "u64" } else { "u32" };
        let at = offset_of!(LaunchParams, lane) + offset;
        format!("\tld.param.{bits} {register}, [{}_param_0+{at}];", self.entry.name())
    }

    /// Loads what a table of launch parameters has for the place that the thread stands for. Uses `%mr2`, `%mr3` and `%mp3`, and
    /// perhaps `%md7`.
    pub(super) fn of_thread(&self, register: &str, table: usize) -> Vec<String> {
        let place = if self.algorithm.is_of_cube_mesh() { Place::OfQuad } else { Place::Thread };
        self.of_place(register, table, place)
    }

    /// The same of any place.
    pub(super) fn of_place(&self, register: &str, table: usize, place: Place) -> Vec<String> {
        let (bits, other) = if register.starts_with("%md") { (64, "%md7") } else { (32, "%mr2") };
        let load = |to: &str, position: usize| {
            format!(
                "\tld.param.u{bits} {to}, [{}_param_0+{}];",
                self.entry.name(),
                table + bits / 8 * position
            )
        };
        let position = self.lane_param("%mr2", offset_of!(LaneParams, position));
        let of_thread = "\tmov.u32 %mr3, %tid.x;".to_owned();
        let quad = "\tand.b32 %mr2, %mr2, 4;".to_owned();
        let flipped = "\txor.b32 %mr2, %mr2, 4;".to_owned();
        let sum = "\tadd.s32 %mr3, %mr3, %mr2;".to_owned();
        let mut lines = match place {
            Place::Thread => vec![of_thread],
            Place::OfQuad => vec![of_thread, position, quad, sum],
            Place::OfOtherQuad => vec![of_thread, position, quad, flipped, sum],
            Place::Opposite => vec![position, flipped, "\tmov.b32 %mr3, %mr2;".to_owned()],
            Place::RelayNeighbour => vec![self.lane_param("%mr3", offset_of!(LaneParams, relay))],
        };
        lines.push(load(register, 0));
        for position in 1..self.ranks {
            lines.push(load(other, position));
            lines.push(format!("\tsetp.eq.u32 %mp3, %mr3, {position};"));
            lines.push(format!("\tselp.b{bits} {register}, {other}, {register}, %mp3;"));
        }
        lines
    }

    /// The accesses of a wait that end it, and what it leaves behind.
    pub(super) fn wait_orders(&mut self, wait: &Wait) -> Result<()> {
        let prefix = wait.prefix;
        self.weaken(&format!("{prefix}abort-poll"), &[wait.poll])?;
        self.weaken(&format!("{prefix}host-poll"), &[wait.host_poll])?;
        self.failing_orders(prefix, &wait.failing)
    }

    /// The accesses by which it is told that a call has failed.
    pub(super) fn failing_orders(&mut self, prefix: &str, failing: &Failing) -> Result<()> {
        self.weaken(&format!("{prefix}claim"), &[failing.claim])?;
        self.weaken(&format!("{prefix}spread"), &[failing.spread])?;
        self.weaken(&format!("{prefix}own-abort"), &[failing.own])?;
        self.weaken(&format!("{prefix}valid"), &[failing.valid])
    }

    /// What a wait that is given up does, and does not.
    pub(super) fn failures(&mut self, wait: &Wait) -> Result<()> {
        let entry = self.entry;
        let name = |what: &str| format!("{}{what}", wait.prefix);
        self.add(name("abort-poll-dropped"), vec![entry.constant(wait.poll, "0")]);
        self.add(name("host-poll-dropped"), vec![entry.constant(wait.host_poll, "0")]);
        let fixed = "\tmov.u32 %mr0, %laneid;".to_owned();
        let lowest = entry.before(wait.host_poll, "%lanemask_lt", 6)?;
        let lower = entry.operands(lowest)[0].to_owned();
        // Lane 7 alone looks at the host's word, whether it waits or not.
        let lane =
            [fixed, "\tsetp.eq.u32 %mp0, %mr0, 7;".to_owned(), format!("\tselp.b32 {lower}, 0, -1, %mp0;")];
        self.add(name("host-poll-by-a-fixed-lane"), vec![entry.followed(lowest, &lane)]);
        self.records(wait.prefix, &wait.failing);
        Ok(())
    }

    /// What a call that has failed does not record, or not as it should.
    pub(super) fn records(&mut self, prefix: &str, failing: &Failing) {
        let entry = self.entry;
        let name = |what: &str| format!("{prefix}{what}");
        self.add(name("claim-dropped"), vec![entry.constant(failing.claim, "0")]);
        let operands = entry.operands(failing.claim);
        let (got, slot, value) = (operands[0], operands[1], operands[3]);
        let torn = vec![
            format!("\tld.relaxed.sys.global.u32 {got}, {slot};"),
            format!("\tst.relaxed.sys.global.u32 {slot}, {value};"),
        ];
        self.add(name("claim-not-atomic"), vec![Edit { at: failing.claim, with: torn }]);
        self.add(name("valid-dropped"), vec![entry.dropped(failing.valid)]);
        self.add(name("record-dropped"), vec![entry.dropped(failing.record)]);
        let late = [entry.lines[failing.record].clone()];
        self.add(
            name("record-after-valid"),
            vec![entry.dropped(failing.record), entry.followed(failing.valid, &late)],
        );
    }

    /// When a wait ends, and what is told of it.
    pub(super) fn deadlines(&mut self, wait: &Wait) -> Result<()> {
        let entry = self.entry;
        let name = |what: &str| format!("{}{what}", wait.prefix);
        let clock = entry.operands(wait.clock)[0].to_owned();
        let since = |at: &usize| entry.operands(*at)[1] == clock;
        let difference = entry.all("sub.s64").into_iter().find(since).context("what was waited")?;
        let [waited, _, begin] = entry.operands(difference)[..] else {
            anyhow::bail!("no difference in '{}'", entry.lines[difference].trim())
        };
        let still = Edit { at: wait.clock, with: vec![format!("\tmov.u64 {clock}, {begin};")] };
        self.add(name("deadline-dropped"), vec![still]);
        let halved = [format!("\tshr.u64 {waited}, {waited}, 1;")];
        self.add(name("deadline-doubled"), vec![entry.followed(difference, &halved)]);
        let twice = [format!("\tadd.s64 {waited}, {waited}, {waited};")];
        self.add(name("deadline-halved"), vec![entry.followed(difference, &twice)]);
        if !wait.prefix.is_empty() {
            // As soon as in the first phase: with a ninth more than was waited, the eighth is over too.
            let sooner =
                [format!("\tshr.u64 %md0, {waited}, 3;"), format!("\tadd.s64 {waited}, {waited}, %md0;")];
            self.add(name("deadline-of-phase-0"), vec![entry.followed(difference, &sooner)]);
        }
        self.add(name("waited-dropped"), vec![entry.dropped(wait.failing.waited)]);
        Ok(())
    }

    /// Some of those that must hear of a failure do not.
    pub(super) fn spreading(&mut self, prefix: &str, failing: &Failing) {
        let entry = self.entry;
        self.add(format!("{prefix}spread-dropped"), vec![entry.dropped(failing.spread)]);
        self.add(format!("{prefix}own-abort-dropped"), vec![entry.dropped(failing.own)]);
        // Whether the place is in this lane, and whether it is this rank's; what is left out is guarded by both.
        let counters = entry.operands(failing.own)[0].trim_matches(['[', ']']).to_owned();
        let same_lane = || {
            vec![
                self.lane_param("%md0", offset_of!(LaneParams, counters)),
                format!("\tadd.s64 %md0, %md0, {};", meshreduce_wire::counters::ABORT),
                format!("\tsetp.eq.s64 %mp0, {counters}, %md0;"),
            ]
        };
        // A rank's pads lie as far from one another as its counters, times a number.
        let pad = entry.operands(failing.spread)[0].trim_matches(['[', ']']).to_owned();
        let (pad, offset) = pad.split_once('+').unwrap_or((&pad, "0"));
        let own_pad = vec![
            format!("\tsub.s64 %md0, {counters}, %md0;"),
            format!("\tmul.lo.s64 %md0, %md0, {};", pad::BYTES / meshreduce_wire::counters::BYTES),
            self.lane_param("%md1", offset_of!(LaneParams, own_pad)),
            "\tadd.s64 %md0, %md0, %md1;".to_owned(),
            format!("\tadd.s64 %md1, {pad}, {offset};"),
            format!("\tsub.s64 %md1, %md1, {};", pad::ABORT),
            "\tsetp.eq.s64 %mp1, %md1, %md0;".to_owned(),
        ];
        let mut made = Vec::new();
        for (what, join) in [
            ("own-pad", "and.pred %mp2, %mp0, %mp1"),
            ("peers", "not.pred %mp1, %mp1;\tand.pred %mp2, %mp0, %mp1"),
            ("lanes", "not.pred %mp2, %mp0"),
            ("own-lanes", "not.pred %mp0, %mp0;\tand.pred %mp2, %mp0, %mp1"),
            ("peers-lanes", "or.pred %mp2, %mp0, %mp1;\tnot.pred %mp2, %mp2"),
        ] {
            let mut with = [same_lane(), own_pad.clone()].concat();
            with.push(format!("\t{join};"));
            with.push(format!("\t@!%mp2 {}", entry.lines[failing.spread].trim()));
            made.push((format!("{prefix}spread-not-to-{what}"), vec![Edit { at: failing.spread, with }]));
        }
        made.push((
            format!("{prefix}own-abort-not-to-lanes"),
            vec![Edit {
                at: failing.own,
                with: [same_lane(), vec![format!("\t@%mp0 {}", entry.lines[failing.own].trim())]].concat(),
            }],
        ));
        for (name, edits) in made {
            self.add(name, edits);
        }
    }

    /// Calls are counted by the last of the blocks to exit; `which` is the counter, and `barrier` comes before.
    pub(super) fn counts(&mut self, exits: usize, advance: usize, barrier: usize, which: u64) -> Result<()> {
        let entry = self.entry;
        self.weaken("exits", &[exits])?;
        self.add("advance-dropped", vec![entry.dropped(advance)]);
        let next = entry.operands(advance)[1].to_owned();
        let twice = [format!("\tadd.s64 {next}, {next}, 1;")];
        self.add("advance-by-two", vec![entry.preceded(advance, &twice)]);
        let last = entry.next(exits, "setp.ne", 2)?;
        let operands = entry.operands(last);
        let (told, before, end) = (operands[0].to_owned(), operands[1].to_owned(), operands[2].to_owned());
        let early =
            vec![format!("\tsub.s32 %mr0, {end}, 1;"), format!("\tsetp.ne.b32 {told}, {before}, %mr0;")];
        self.add("exits-one-block-early", vec![Edit { at: last, with: early }]);
        let add = entry.lines[exits].replacen(".inc.u32", ".add.u32", 1);
        let add = add.replacen(&format!(", {end};"), ", 1;", 1);
        self.add("exits-never-reset", vec![Edit { at: exits, with: vec![add] }]);
        let counter = self.lane_param("%md1", offset_of!(LaneParams, counters));
        let exited = counters::EXITED;
        // Before other threads of the block have read the counters.
        let count = vec![
            "\tmov.u32 %mr1, %nctaid.x;".to_owned(),
            "\tsub.s32 %mr1, %mr1, 1;".to_owned(),
            "\tmov.u32 %mr2, %tid.x;".to_owned(),
            "\tsetp.eq.u32 %mp0, %mr2, 0;".to_owned(),
            counter,
            format!("\t@%mp0 atom.acq_rel.gpu.global.inc.u32 %mr3, [%md1+{exited}], %mr1;"),
            "\tsetp.eq.and.u32 %mp0, %mr3, %mr1, %mp0;".to_owned(),
            format!("\t@%mp0 ld.relaxed.sys.global.u64 %md2, [%md1+{which}];"),
            "\tadd.s64 %md2, %md2, 1;".to_owned(),
            format!("\t@%mp0 st.relaxed.sys.global.u64 [%md1+{which}], %md2;"),
        ];
        self.add(
            "exits-before-the-barrier",
            vec![
                entry.preceded(barrier, &count),
                Edit { at: last, with: vec![format!("\tsetp.ne.b32 {told}, {before}, {before};")] },
                Edit { at: exits, with: Vec::new() },
                entry.dropped(advance),
            ],
        );
        Ok(())
    }
}
