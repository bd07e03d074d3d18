//! Mutations that follow from the role of an instruction, for every phase of every algorithm.

use anyhow::Result;
use meshreduce_wire::{Algorithm, LaneParams, LaunchParams, SliceParams, counters, pad};
use std::mem::offset_of;

use super::maker::Maker;
use super::packet_roles::{descriptor_parities, number};
use super::roles::{Phase, Roles, Wait, pair};
use super::text::Edit;

/// The thread that stands for the relay in a hybrid cube mesh; those before it stand for the quad.
const RELAY_THREAD: u32 = 4;

impl Maker<'_, Roles> {
    /// All of them.
    ///
    /// # Errors
    /// If a mutation does not apply.
    pub fn systematic(&mut self) -> Result<()> {
        let (entry, roles) = (self.entry, self.roles);
        for phase in &roles.phases {
            self.orders(phase)?;
            self.signals(phase)?;
            self.failures(&phase.wait)?;
            self.deadlines(&phase.wait)?;
            self.fields(&phase.wait)?;
            self.spreading(phase.wait.prefix, &phase.wait.failing);
        }
        self.descriptors()?;
        self.weaken("entry-poll", &[roles.entry_poll])?;
        self.counts(roles.exits, roles.advance, roles.barriers[0], counters::BARRIER_CALLS)?;
        self.weaken("told", &[roles.told])?;
        self.add("told-dropped", vec![entry.constant(roles.told, "0")]);
        self.add("entry-poll-dropped", vec![entry.constant(roles.entry_poll, "0")]);
        let staged = roles.stage_guards.iter().map(|&at| entry.constant(at, "0")).collect();
        self.add("stage-guard-dropped", staged);
        if self.algorithm == Algorithm::HybridCubeMesh {
            self.relay_late()?;
        }
        self.barriers()?;
        self.data()?;
        if self.algorithm.is_of_slices() { self.slices(Some(&roles.phases[0].looks)) } else { Ok(()) }
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
        let prefix = phase.wait.prefix;
        self.weaken(&format!("{prefix}signal-store"), &[phase.signal])?;
        self.weaken(&format!("{prefix}wait"), &phase.looks)?;
        self.weaken(&format!("{prefix}wait-first-look"), &phase.looks[..1])?;
        self.weaken(&format!("{prefix}wait-loop"), &phase.looks[1..])?;
        self.wait_orders(&phase.wait)
    }

    fn signals(&mut self, phase: &Phase) -> Result<()> {
        let (entry, roles) = (self.entry, self.roles);
        let name = |what: &str| format!("{}{what}", phase.wait.prefix);
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
        let thread = if phase.wait.prefix == "relay-" { RELAY_THREAD } else { 0 };
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
        self.widths(phase)?;
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
            let mut lines = self.tag("%md1", offset_of!(SliceParams, tags_expected));
            lines.extend([
                format!("\txor.b64 %md0, {seen}, %md1;"),
                format!("\tand.b64 %md0, %md0, {mask};"),
                "\tsetp.ne.u64 %mp0, %md0, 0;".to_owned(),
                format!("\tselp.b64 {seen}, 0, {seen}, %mp0;"),
            ]);
            entry.followed(at, &lines)
        };
        if phase.wait.prefix.is_empty() {
            self.add("tag-of-the-next-call-compared", vec![strict(first), strict(again)]);
        }
        if !phase.wait.prefix.is_empty() {
            let back = vec![entry.moved(first, -4096)?, entry.moved(again, -4096)?];
            self.add(name("wait-in-phase-0"), back);
        }
        let slot = if phase.wait.prefix.is_empty() { 0 } else { 4096 };
        // The peer is told at once, before anything is stored that it is to read.
        let is_of_slices = self.algorithm.is_of_slices();
        let mut signal = self.stands_for_a_peer();
        let peer = if is_of_slices {
            let pads = offset_of!(LaunchParams, lane) + offset_of!(LaneParams, pads);
            signal.extend(self.of_thread("%md4", pads));
            "%md4".to_owned()
        } else {
            let address = entry.before(phase.signal, "add.s64", 8)?;
            entry.operands(address)[2].to_owned()
        };
        signal.extend([
            "\tmov.u32 %mr1, %ctaid.x;".to_owned(),
            "\tmul.wide.u32 %md1, %mr1, 64;".to_owned(),
            self.lane_param("%mr2", offset_of!(LaneParams, position)),
            "\tmul.wide.u32 %md2, %mr2, 8;".to_owned(),
            "\tadd.s64 %md1, %md1, %md2;".to_owned(),
            format!("\tadd.s64 %md1, %md1, {peer};"),
            format!("\tadd.s64 %md2, {calls}, 1;"),
            format!("\tshl.b64 %md2, %md2, {};", pad::TAG_BITS),
        ]);
        signal.extend(self.tag("%md3", offset_of!(SliceParams, tags_said)));
        signal.extend([
            "\tor.b64 %md2, %md2, %md3;".to_owned(),
            format!("\t@%mp0 st.release.sys.global.u64 [%md1+{slot}], %md2;"),
        ]);
        // Of slices the half is known where there are some.
        let early = if is_of_slices { roles.counters } else { roles.parities[0] };
        anyhow::ensure!(early < roles.barriers[0], "the half is known before the barrier");
        let edits = vec![entry.followed(early, &signal), entry.dropped(phase.signal)];
        self.add(name("signal-before-data"), edits);
        Ok(())
    }

    /// Numbers are compared in fewer bits than they have, or as if they had a sign. What is behind then seems to have come.
    fn widths(&mut self, phase: &Phase) -> Result<()> {
        let (entry, calls) = (self.entry, self.roles.calls(self.entry));
        // Both numbers, in `%md0` and `%md1`, with what is cut away in their upper bits: of the word, or of the number in it.
        let ways: [(&str, &[&str]); 3] = [
            ("wait-number-in-32-bits", &["shr.u64 {}, {}, 20", "shl.b64 {}, {}, 32"]),
            ("wait-signal-in-32-bits", &["shl.b64 {}, {}, 32"]),
            ("wait-signal-signed", &[]),
        ];
        for (what, steps) in ways {
            let compared = |at: usize| {
                let seen = entry.operands(at)[0].to_owned();
                let mut lines = vec![
                    format!("\tmov.b64 %md0, {seen};"),
                    format!("\tadd.s64 %md1, {calls}, 1;"),
                    format!("\tshl.b64 %md1, %md1, {};", pad::TAG_BITS),
                ];
                for register in ["%md0", "%md1"] {
                    let tag = u64::MAX << pad::TAG_BITS;
                    lines.push(format!("\tand.b64 {register}, {register}, {};", tag as i64));
                    lines.extend(steps.iter().map(|step| format!("\t{};", step.replace("{}", register))));
                }
                lines.push("\tsetp.gt.s64 %mp0, %md0, %md1;".to_owned());
                lines.push(format!("\tselp.b64 {seen}, -1, {seen}, %mp0;"));
                entry.followed(at, &lines)
            };
            let edits = phase.looks.map(compared).to_vec();
            self.add(format!("{}{what}", phase.wait.prefix), edits);
        }
        Ok(())
    }

    /// Fields of the record that a wait leaves out: they stay 0.
    fn fields(&mut self, wait: &Wait) -> Result<()> {
        let (entry, failing) = (self.entry, &wait.failing);
        let within = |at: &usize| (failing.record..failing.valid).contains(at);
        let stores = |shape: &str| entry.all(shape).into_iter().filter(within).collect::<Vec<_>>();
        let (words, longs) = (stores("st.global.u32"), stores("st.global.u64"));
        let ([_, peer, ..], [wanted, seen, launched, ..]) = (&words[..], &longs[..]) else {
            anyhow::bail!("a record of {} words and {} long ones", words.len(), longs.len())
        };
        for (field, &at) in
            [("peer", peer), ("epoch-wanted", wanted), ("epoch-seen", seen), ("launched", launched)]
        {
            self.add(format!("{}record-{field}-dropped", wait.prefix), vec![entry.dropped(at)]);
        }
        Ok(())
    }

    /// Loads the launch's tag; of slices, for the peer that the thread stands for, from that table.
    fn tag(&self, register: &str, table: usize) -> Vec<String> {
        let mut lines = if self.algorithm.is_of_slices() {
            self.of_thread("%mr1", table)
        } else {
            let at = offset_of!(LaunchParams, tag);
            vec![format!("\tld.param.u32 %mr1, [{}_param_0+{at}];", self.entry.name())]
        };
        lines.push(format!("\tcvt.u64.u32 {register}, %mr1;"));
        lines
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
            format!("\tsub.s32 %mr1, %mr1, {};", self.ranks),
            "\tsetp.ge.u32 %mp0, %mr0, %mr1;".to_owned(),
            "\tmov.u32 %mr1, %ctaid.x;".to_owned(),
            "\tsetp.eq.and.u32 %mp0, %mr1, 0, %mp0;".to_owned(),
            format!("\t@%mp0 {}", late[0].trim()),
        ];
        let moved = vec![entry.dropped(declared), entry.followed(roles.barriers[1], &guard)];
        self.add("descriptor-after-signal", moved);
        // Both parities in one place.
        let masks = descriptor_parities(entry, &number(entry, roles.counters)?).into_iter();
        let masks: Vec<Edit> = masks.map(|at| entry.replaced(at, ", 8;", ", 0;")).collect::<Result<_>>()?;
        anyhow::ensure!(!masks.is_empty(), "the parity of descriptors");
        self.add("descriptor-one-slot", masks);
        // What was read seems to be what is launched here.
        let differs = entry.constant(roles.differs.claim, "1");
        self.add("descriptor-not-compared", vec![differs]);
        if !self.algorithm.is_of_slices() {
            // Only the lower half counts: the upper one seems to be as it is here.
            let own = format!("_param_0+{}];", offset_of!(LaunchParams, descriptor));
            let half = |at: usize| {
                let [_, high] = pair(entry, at);
                let lines = [
                    format!("\tld.param.u64 %md0, [{}{own}", entry.name()),
                    "\tand.b64 %md0, %md0, -4294967296;".to_owned(),
                    format!("\tand.b64 {high}, {high}, 4294967295;"),
                    format!("\tor.b64 {high}, {high}, %md0;"),
                ];
                entry.followed(at, &lines)
            };
            self.add("descriptor-of-half-compared", vec![half(roles.glance), half(roles.ask)]);
        }
        self.weaken("differs-claim", &[roles.differs.claim])?;
        self.weaken("differs-own-abort", &[roles.differs.own])?;
        self.weaken("differs-spread", &[roles.differs.spread])?;
        self.weaken("differs-valid", &[roles.differs.valid])
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
        let [b, p] = roles.both_calls(entry);
        let parity = |at: usize| entry.operands(at)[0].to_owned();
        let by_block = |&at: &usize| {
            let with = vec![
                "\tmov.u32 %mr1, %ctaid.x;".to_owned(),
                "\tcvt.u64.u32 %md1, %mr1;".to_owned(),
                format!("\tadd.s64 %md1, %md1, {b};"),
                format!("\tand.b64 {}, %md1, 1;", parity(at)),
            ];
            Edit { at, with }
        };
        let by_number = |&at: &usize| {
            let to = parity(at);
            Edit { at, with: vec![format!("\tadd.s64 {to}, {b}, {p};"), format!("\tand.b64 {to}, {to}, 1;")] }
        };
        self.add("half-by-all-calls", roles.parities.iter().map(by_number).collect());
        self.add("half-by-block", roles.parities.iter().map(by_block).collect());
        // Block 16 takes itself for block 0, and so on. (Of more ranks calls rarely have as many, and of slices that only move, which
        // are short, blocks so far behind have nothing to do.)
        if self.ranks <= 4 && !self.algorithm.moves() {
            let cut = |at: usize| {
                let block = entry.operands(at)[0];
                entry.followed(at, &[format!("\tand.b32 {block}, {block}, 15;")])
            };
            self.add("block-in-4-bits", entry.all(", %ctaid.x;").into_iter().map(cut).collect());
        }
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
