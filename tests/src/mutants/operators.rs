//! Mutations that follow from the role of an instruction, for every phase of every algorithm.

use anyhow::{Context, Result};
use meshreduce_wire::{Algorithm, LaneParams, LaunchParams, pad};
use std::mem::offset_of;

use super::roles::{Failing, Phase, Roles, pair};
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
            self.spreading(phase.prefix, &phase.failing);
        }
        self.descriptors()?;
        self.weaken("entry-poll", &[roles.entry_poll])?;
        self.weaken("exits", &[roles.exits])?;
        self.add("advance-dropped", vec![entry.dropped(roles.advance)]);
        let next = entry.operands(roles.advance)[1].to_owned();
        let twice = [format!("\tadd.s64 {next}, {next}, 1;")];
        self.add("advance-by-two", vec![entry.preceded(roles.advance, &twice)]);
        let last = entry.next(roles.exits, "setp.ne", 2)?;
        let operands = entry.operands(last);
        let (told, before, end) = (operands[0].to_owned(), operands[1].to_owned(), operands[2].to_owned());
        let early =
            vec![format!("\tsub.s32 %mr0, {end}, 1;"), format!("\tsetp.ne.b32 {told}, {before}, %mr0;")];
        self.add("exits-one-block-early", vec![Edit { at: last, with: early }]);
        let add = entry.lines[roles.exits].replacen(".inc.u32", ".add.u32", 1).replacen(
            &format!(", {end};"),
            ", 1;",
            1,
        );
        self.add("exits-never-reset", vec![Edit { at: roles.exits, with: vec![add] }]);
        // Before other threads of the block have read the counters.
        let count = vec![
            "\tmov.u32 %mr1, %nctaid.x;".to_owned(),
            "\tsub.s32 %mr1, %mr1, 1;".to_owned(),
            "\tmov.u32 %mr2, %tid.x;".to_owned(),
            "\tsetp.eq.u32 %mp0, %mr2, 0;".to_owned(),
            self.lane_param("%md1", offset_of!(LaneParams, counters)),
            "\t@%mp0 atom.acq_rel.gpu.global.inc.u32 %mr3, [%md1+32], %mr1;".to_owned(),
            "\tsetp.eq.and.u32 %mp0, %mr3, %mr1, %mp0;".to_owned(),
            format!("\tadd.s64 %md2, {}, 1;", roles.calls(entry)),
            "\t@%mp0 st.global.u64 [%md1], %md2;".to_owned(),
        ];
        self.add(
            "exits-before-the-barrier",
            vec![
                entry.preceded(roles.barriers[0], &count),
                Edit { at: last, with: vec![format!("\tsetp.ne.b32 {told}, {before}, {before};")] },
                Edit { at: roles.exits, with: Vec::new() },
                entry.dropped(roles.advance),
            ],
        );
        self.weaken("told", &[roles.told])?;
        self.add("told-dropped", vec![entry.constant(roles.told, "0")]);
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
            // Before the second phase's signals only a hybrid cube mesh has something to tell.
            if at == 2 && self.algorithm != Algorithm::HybridCubeMesh {
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
        self.weaken(&format!("{prefix}abort-poll"), &[phase.poll])?;
        self.weaken(&format!("{prefix}host-poll"), &[phase.host_poll])?;
        self.weaken(&format!("{prefix}claim"), &[phase.failing.claim])?;
        self.weaken(&format!("{prefix}spread"), &[phase.failing.spread])?;
        self.weaken(&format!("{prefix}own-abort"), &[phase.failing.own])?;
        self.weaken(&format!("{prefix}valid"), &[phase.failing.valid])
    }

    fn signals(&mut self, phase: &Phase) -> Result<()> {
        let (entry, roles) = (self.entry, self.roles);
        let name = |what: &str| format!("{}{what}", phase.prefix);
        let [first, again] = phase.looks;
        let word = entry.operands(phase.signal)[1].to_owned();
        let seen = |look: usize| entry.operands(look)[0].to_owned();
        let shifted = |look: usize, by: i64| {
            let (seen, step) = (seen(look), by << pad::TAG_BITS);
            entry.followed(look, &[format!("\tadd.s64 {seen}, {seen}, {step};")])
        };
        for (what, by) in [("behind", -1), ("ahead", 1)] {
            let with = vec![
                format!("\tadd.s64 %md0, {word}, {};", by << pad::TAG_BITS),
                entry.lines[phase.signal].replacen(&format!("{word};"), "%md0;", 1),
            ];
            self.add(name(&format!("signal-epoch-{what}")), vec![Edit { at: phase.signal, with }]);
            // What is seen seems to be another epoch.
            let edits = vec![shifted(first, -by), shifted(again, -by)];
            self.add(name(&format!("wait-epoch-{what}")), edits);
        }
        self.add(name("signal-dropped"), vec![entry.dropped(phase.signal)]);
        self.add(name("signal-to-next-source"), vec![entry.moved(phase.signal, 8)?]);
        self.add(name("signal-to-next-block"), vec![entry.moved(phase.signal, 64)?]);
        self.add(name("wait-on-next-source"), vec![entry.moved(first, 8)?, entry.moved(again, 8)?]);
        self.add(name("wait-on-next-block"), vec![entry.moved(first, 64)?, entry.moved(again, 64)?]);
        let skipped = || vec![entry.constant(first, "-1"), entry.constant(again, "-1")];
        self.add(name("wait-skipped"), skipped());
        // One thread of those that stand for peers takes its signal as given.
        let thread = if phase.prefix == "relay-" { RELAY_THREAD } else { 0 };
        let spare = |at| {
            let seen = seen(at);
            let lines = [
                "\tmov.u32 %mr0, %tid.x;".to_owned(),
                format!("\tsetp.eq.u32 %mp0, %mr0, {thread};"),
                format!("\tselp.b64 {seen}, -1, {seen}, %mp0;"),
            ];
            entry.followed(at, &lines)
        };
        self.add(name("wait-for-one-peer-less"), vec![spare(first), spare(again)]);
        let calls = roles.calls(entry);
        // A signal of a later call is taken for none.
        let equal = |at| {
            let seen = seen(at);
            let lines = [
                format!("\tshr.u64 %md0, {seen}, {};", pad::TAG_BITS),
                format!("\tadd.s64 %md1, {calls}, 1;"),
                "\tsetp.gt.u64 %mp0, %md0, %md1;".to_owned(),
                format!("\tselp.b64 {seen}, 0, {seen}, %mp0;"),
            ];
            entry.followed(at, &lines)
        };
        self.add(name("wait-for-equal-epoch"), vec![equal(first), equal(again)]);
        // A tag that differs is taken for one that does not; the epoch counts, or is beyond it.
        let untagged = |at| {
            let seen = seen(at);
            let lines = [
                format!("\tshr.u64 %md0, {seen}, {};", pad::TAG_BITS),
                format!("\tadd.s64 %md1, {calls}, 1;"),
                "\tsetp.eq.u64 %mp0, %md0, %md1;".to_owned(),
                format!("\tselp.b64 {seen}, -1, {seen}, %mp0;"),
            ];
            entry.followed(at, &lines)
        };
        self.add(name("tag-not-compared"), vec![untagged(first), untagged(again)]);
        // The tag of the next call is compared too.
        let strict = |at| {
            let seen = seen(at);
            let mask = (1u64 << pad::TAG_BITS) - 1;
            let lines = [
                format!("\txor.b64 %md0, {seen}, {word};"),
                format!("\tand.b64 %md0, %md0, {mask};"),
                "\tsetp.ne.u64 %mp0, %md0, 0;".to_owned(),
                format!("\tselp.b64 {seen}, 0, {seen}, %mp0;"),
            ];
            entry.followed(at, &lines)
        };
        if phase.prefix.is_empty() {
            self.add("tag-of-the-next-call-compared", vec![strict(first), strict(again)]);
        }
        if !phase.prefix.is_empty() {
            let back = vec![entry.moved(first, -4096)?, entry.moved(again, -4096)?];
            self.add(name("wait-in-phase-0"), back);
        }
        let slot = if phase.prefix.is_empty() { 0 } else { 4096 };
        // The peer is told at once, before anything is stored that it is to read.
        let mut signal = self.stands_for_a_peer();
        let address = entry.before(phase.signal, "add.s64", 8)?;
        let peer = entry.operands(address)[2].to_owned();
        signal.extend([
            "\tmov.u32 %mr1, %ctaid.x;".to_owned(),
            "\tmul.wide.u32 %md1, %mr1, 64;".to_owned(),
            self.lane_param("%mr2", offset_of!(LaneParams, position)),
            "\tmul.wide.u32 %md2, %mr2, 8;".to_owned(),
            "\tadd.s64 %md1, %md1, %md2;".to_owned(),
            format!("\tadd.s64 %md1, %md1, {peer};"),
            format!("\tadd.s64 %md2, {calls}, 1;"),
            format!("\tshl.b64 %md2, %md2, {};", pad::TAG_BITS),
            format!("\tld.param.u32 %mr2, [{}_param_0+{}];", entry.name(), offset_of!(LaunchParams, tag)),
            "\tcvt.u64.u32 %md3, %mr2;".to_owned(),
            "\tor.b64 %md2, %md2, %md3;".to_owned(),
            format!("\t@%mp0 st.release.sys.global.u64 [%md1+{slot}], %md2;"),
        ]);
        anyhow::ensure!(roles.parity < roles.barriers[0], "the half is known before the barrier");
        self.add(
            name("signal-before-data"),
            vec![entry.followed(roles.parity, &signal), entry.dropped(phase.signal)],
        );
        Ok(())
    }

    /// Loads a parameter of the lane.
    fn lane_param(&self, register: &str, offset: usize) -> String {
        let bits = if register.starts_with("%md") { "u64" } else { "u32" };
        let at = offset_of!(LaunchParams, lane) + offset;
        format!("\tld.param.{bits} {register}, [{}_param_0+{at}];", self.entry.name())
    }

    /// Whether the thread stands for a peer, in `%mp0`.
    fn stands_for_a_peer(&self) -> Vec<String> {
        let cube = self.algorithm == Algorithm::HybridCubeMesh;
        // Threads 0 to 3 stand for the quad, thread 4 for the relay.
        let (threads, mask) = if cube { (RELAY_THREAD as usize + 1, 3) } else { (self.ranks, 7) };
        vec![
            "\tmov.u32 %mr0, %tid.x;".to_owned(),
            self.lane_param("%mr1", offset_of!(LaneParams, position)),
            format!("\tand.b32 %mr1, %mr1, {mask};"),
            "\tsetp.ne.u32 %mp1, %mr0, %mr1;".to_owned(),
            format!("\tsetp.lt.and.u32 %mp0, %mr0, {threads}, %mp1;"),
        ]
    }

    /// What ranks say that they launch.
    fn descriptors(&mut self) -> Result<()> {
        let (entry, roles) = (self.entry, self.roles);
        let declared = roles.declared;
        self.weaken("descriptor-store", &[declared])?;
        self.weaken("descriptor-glance", &[roles.glance])?;
        self.weaken("descriptor-ask", &[roles.ask])?;
        self.add("ask-never", vec![entry.replaced(roles.ask_after, ", 100000,", ", -1,")?]);
        // What is read is taken for what the peer launches as this call, whatever call it is of.
        let ([b, p], [low, high]) = (roles.both_calls(entry), pair(entry, roles.ask));
        let mut believe = vec![
            format!("\tadd.s64 %md0, {b}, {p};"),
            "\tor.b64 %md0, %md0, 1;".to_owned(),
            "\tand.b64 %md0, %md0, 4294967295;".to_owned(),
        ];
        for word in [low, high] {
            believe.push(format!("\tand.b64 {word}, {word}, -4294967296;"));
            believe.push(format!("\tor.b64 {word}, {word}, %md0;"));
        }
        self.add("ask-of-any-call", vec![entry.followed(roles.ask, &believe)]);
        self.add("descriptor-dropped", vec![entry.dropped(declared)]);
        let late = [entry.lines[declared].clone()];
        let guard = vec![
            "\tmov.u32 %mr0, %tid.x;".to_owned(),
            "\tmov.u32 %mr1, %ntid.x;".to_owned(),
            "\tsub.s32 %mr1, %mr1, 1;".to_owned(),
            "\tsetp.eq.u32 %mp0, %mr0, %mr1;".to_owned(),
            "\tmov.u32 %mr1, %ctaid.x;".to_owned(),
            "\tsetp.eq.and.u32 %mp0, %mr1, 0, %mp0;".to_owned(),
            format!("\t@%mp0 {}", late[0].trim()),
        ];
        let moved = vec![entry.dropped(declared), entry.followed(roles.barriers[1], &guard)];
        self.add("descriptor-after-signal", moved);
        // Both parities in one place.
        let masks = entry.all(", 16;").into_iter().filter(|&at| entry.lines[at].contains("and.b64"));
        let masks: Vec<Edit> = masks.map(|at| entry.replaced(at, ", 16;", ", 0;")).collect::<Result<_>>()?;
        anyhow::ensure!(!masks.is_empty(), "the parity of descriptors");
        self.add("descriptor-one-slot", masks);
        // What was read seems to be what is launched here.
        let differs = entry.constant(roles.differs.claim, "1");
        self.add("descriptor-not-compared", vec![differs]);
        self.weaken("differs-claim", &[roles.differs.claim])?;
        self.weaken("differs-own-abort", &[roles.differs.own])?;
        self.weaken("differs-spread", &[roles.differs.spread])?;
        self.weaken("differs-valid", &[roles.differs.valid])
    }

    fn failures(&mut self, phase: &Phase) -> Result<()> {
        let entry = self.entry;
        let name = |what: &str| format!("{}{what}", phase.prefix);
        self.add(name("abort-poll-dropped"), vec![entry.constant(phase.poll, "0")]);
        self.add(name("host-poll-dropped"), vec![entry.constant(phase.host_poll, "0")]);
        let fixed = "\tmov.u32 %mr0, %laneid;".to_owned();
        let lowest = entry.before(phase.host_poll, "%lanemask_lt", 6)?;
        let lower = entry.operands(lowest)[0].to_owned();
        // Lane 7 alone looks at the host's word, whether it waits or not.
        let lane =
            [fixed, "\tsetp.eq.u32 %mp0, %mr0, 7;".to_owned(), format!("\tselp.b32 {lower}, 0, -1, %mp0;")];
        self.add(name("host-poll-by-a-fixed-lane"), vec![entry.followed(lowest, &lane)]);
        let failing = &phase.failing;
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
        Ok(())
    }

    /// When a wait ends, and what is told of it.
    fn deadlines(&mut self, phase: &Phase) -> Result<()> {
        let entry = self.entry;
        let name = |what: &str| format!("{}{what}", phase.prefix);
        let clock = entry.operands(phase.clock)[0].to_owned();
        let since = |at: &usize| entry.operands(*at)[1] == clock;
        let difference = entry.all("sub.s64").into_iter().find(since).context("what was waited")?;
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
            // As soon as in the first phase: with a ninth more than was waited, the eighth is over too.
            let sooner =
                [format!("\tshr.u64 %md0, {waited}, 3;"), format!("\tadd.s64 {waited}, {waited}, %md0;")];
            self.add(name("deadline-of-phase-0"), vec![entry.followed(difference, &sooner)]);
        }
        self.add(name("waited-dropped"), vec![entry.dropped(phase.failing.waited)]);
        Ok(())
    }

    /// Some of those that must hear of a failure do not.
    fn spreading(&mut self, prefix: &str, failing: &Failing) {
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
        let mut edits = vec![unless(phase.signal)];
        edits.extend(phase.looks.map(|look| taken(look, "-1")));
        self.add("relay-not-met-in-phase-0", edits);
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
        // Pads by position, as they are read: for staging, and for signals.
        let first = offset_of!(LaunchParams, lane) + offset_of!(LaneParams, pads);
        let of = |position: usize| match first + 8 * position {
            0 => "_param_0];".to_owned(),
            at => format!("_param_0+{at}];"),
        };
        for position in 0..self.ranks {
            let reads = entry.all(&of(position));
            let edits: Result<Vec<Edit>> = reads
                .into_iter()
                .map(|at| entry.replaced(at, &of(position), &of((position + 1) % self.ranks)))
                .collect();
            self.add(format!("pad-of-{position}-next"), edits?);
        }
        // Position and relay come in one load.
        let position = offset_of!(LaunchParams, lane) + offset_of!(LaneParams, position);
        let position = entry.one(&format!("_param_0+{position}];"))?;
        let register = entry.operands(position)[0].to_owned();
        let next = [format!("\tadd.s64 {register}, {register}, 1;")];
        self.add("position-next", vec![entry.followed(position, &next)]);
        Ok(())
    }
}
