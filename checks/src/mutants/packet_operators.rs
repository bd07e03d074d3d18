//! Mutations of calls by packets, by the role of an instruction.

use std::mem::offset_of;

use anyhow::Result;
use meshreduce_wire::{LaneParams, LaunchParams, SliceParams, Slices, counters};

use super::maker::{Maker, Place};
use super::packet_roles::{PacketRoles, Poll, descriptor_parities, pair_of};
use super::roles::pair;
use super::text::Edit;

impl Maker<'_, PacketRoles> {
    /// All of them.
    ///
    /// # Errors
    /// If a mutation does not apply.
    pub fn packets(&mut self) -> Result<()> {
        self.pushes()?;
        for at in 0..self.roles.polls.len() {
            let roles = self.roles;
            self.polls(&roles.polls[at])?;
        }
        self.flags()?;
        self.slots()?;
        self.refreshes()?;
        self.headers()?;
        self.descriptors()?;
        let PacketRoles { exits, advance, barrier, .. } = *self.roles;
        self.counts(exits, advance, barrier, counters::PACKET_CALLS)?;
        self.add("barrier-dropped", vec![self.entry.without_barrier(barrier)]);
        self.aborts()?;
        match &self.roles.counts {
            Some(counts) => self.lists(counts),
            None if self.algorithm.is_of_slices() => self.slices(None),
            None => Ok(()),
        }
    }

    /// How packets are stored, and to whom.
    fn pushes(&mut self) -> Result<()> {
        let (entry, roles) = (self.entry, self.roles);
        for (phase, stores) in roles.pushes.iter().enumerate() {
            let prefix = if phase == 0 { "" } else { "second-" };
            self.weaken(&format!("{prefix}push"), stores)?;
            for (number, &store) in stores.iter().take(self.ways(stores)).enumerate() {
                self.add(format!("{prefix}push-{number}-dropped"), vec![entry.dropped(store)]);
                self.add(format!("{prefix}push-{number}-next-unit"), vec![entry.moved(store, 16)?]);
            }
            let address = |at: usize| entry.operands(at)[0].trim_matches(['[', ']']).to_owned();
            let words = |at: usize| {
                let [low, high] = pair_of(entry, at);
                let mut with = vec![
                    format!("\tmov.b64 {{%mr0, %mr1}}, {low};"),
                    format!("\tmov.b64 {{%mr2, %mr3}}, {high};"),
                ];
                with.push(format!(
                    "\tst.relaxed.sys.global.v4.u32 [{}], {{%mr0, %mr1, %mr2, %mr3}};",
                    address(at)
                ));
                Edit { at, with }
            };
            self.add(format!("{prefix}push-v4-u32"), stores.iter().map(|&at| words(at)).collect());
            // The flag is there before its data.
            let torn = |at: usize| {
                let [low, high] = pair_of(entry, at);
                let mut with = Vec::new();
                let mut packets = vec![(low, 0), (high, 8)];
                if roles.polls[0].seen[0].len() == 1 {
                    // One flag, above both.
                    packets.reverse();
                }
                for (packet, place) in packets {
                    with.push(format!("\tmov.b64 {{%mr0, %mr1}}, {packet};"));
                    with.push(format!("\tst.relaxed.sys.global.u32 [{}+{}], %mr1;", address(at), place + 4));
                    with.push(format!("\tst.relaxed.sys.global.u32 [{}+{place}], %mr0;", address(at)));
                }
                Edit { at, with }
            };
            self.add(format!("{prefix}flag-before-data"), stores.iter().map(|&at| torn(at)).collect());
        }
        Ok(())
    }

    /// How many of these are run: in a text for any number of ranks there is one for each that may be.
    fn ways<T>(&self, places: &[T]) -> usize {
        match self.algorithm.is_of_lists() {
            true => self.ranks,
            false => places.len(),
        }
    }

    /// How packets are awaited.
    fn polls(&mut self, poll: &Poll) -> Result<()> {
        let entry = self.entry;
        let name = |what: &str| format!("{}{what}", poll.wait.prefix);
        self.weaken(&name("poll"), &poll.loads)?;
        let flag = &poll.flag;
        let taken = |at: &(usize, String)| entry.followed(at.0, &[format!("\tmov.b32 {}, {flag};", at.1)]);
        for (source, halves) in poll.seen.iter().take(self.ways(&poll.seen)).enumerate() {
            self.add(name(&format!("source-{source}-not-awaited")), halves.iter().map(taken).collect());
        }
        if poll.seen.iter().all(|packets| packets.len() == 2) {
            for half in 0..2 {
                let halves = poll.seen.iter().map(|halves| taken(&halves[half])).collect();
                self.add(name(&format!("half-{half}-not-awaited")), halves);
            }
        }
        let all = || poll.seen.iter().flatten();
        self.add(name("nothing-awaited"), all().map(taken).collect());
        let or_later = |at: &(usize, String)| {
            let lines = [
                format!("\tsetp.ge.u32 %mp0, {}, {flag};", at.1),
                format!("\tselp.b32 {0}, {flag}, {0}, %mp0;", at.1),
            ];
            entry.followed(at.0, &lines)
        };
        self.add(name("flag-or-later"), all().map(or_later).collect());
        let part = |at: &(usize, String)| {
            let lines = [
                format!("\txor.b32 %mr0, {}, {flag};", at.1),
                "\tand.b32 %mr0, %mr0, 255;".to_owned(),
                "\tsetp.eq.u32 %mp0, %mr0, 0;".to_owned(),
                format!("\tselp.b32 {0}, {flag}, {0}, %mp0;", at.1),
            ];
            entry.followed(at.0, &lines)
        };
        self.add(name("flag-of-eight-bits"), all().map(part).collect());
        let words = |&load: &usize| {
            let [low, high] = pair_of(entry, load);
            let [to, address] = entry.operands(load)[..] else { return Edit { at: load, with: Vec::new() } };
            let guard = entry.guard(load);
            let load_words = "ld.relaxed.sys.global.v4.u32 {%mr0, %mr1, %mr2, %mr3}";
            let mut with = vec![format!("\t{guard}{load_words}, {address};")];
            let is_pair = to.starts_with('{');
            let (low, high) = if is_pair { (low.as_str(), high.as_str()) } else { ("%md0", "%md1") };
            with.push(format!("\t{guard}mov.b64 {low}, {{%mr0, %mr1}};"));
            with.push(format!("\t{guard}mov.b64 {high}, {{%mr2, %mr3}};"));
            if !is_pair {
                with.push(format!("\t{guard}mov.b128 {to}, {{{low}, {high}}};"));
            }
            Edit { at: load, with }
        };
        self.add(name("poll-v4-u32"), poll.loads.iter().map(words).collect());
        self.wait_orders(&poll.wait)?;
        self.failures(&poll.wait)?;
        self.deadlines(&poll.wait)?;
        self.spreading(poll.wait.prefix, &poll.wait.failing);
        Ok(())
    }

    fn flags(&mut self) -> Result<()> {
        let (entry, roles) = (self.entry, self.roles);
        let zero = roles.flags.iter().map(|&at| entry.replaced(at, ", 1;", ", 0;"));
        self.add("flag-may-be-0", zero.collect::<Result<_>>()?);
        let constant = roles.flags.iter().map(|&at| {
            let operands = entry.operands(at);
            Edit { at, with: vec![format!("\tmov.b32 {}, 1;", operands[0])] }
        });
        self.add("flag-of-every-call", constant.collect());
        let short = roles.flags.iter().map(|&at| {
            let flag = entry.operands(at)[0].to_owned();
            entry.followed(at, &[format!("\tand.b32 {flag}, {flag}, 1;")])
        });
        self.add("flag-of-one-bit", short.collect());
        Ok(())
    }

    /// Where packets lie.
    fn slots(&mut self) -> Result<()> {
        let (entry, roles) = (self.entry, self.roles);
        let none = roles.parities.iter().map(|&at| {
            let parity = entry.operands(at)[0].to_owned();
            Edit { at, with: vec![format!("\tmov.b32 {parity}, 0;")] }
        });
        self.add("parity-dropped", none.collect());
        if roles.pushes.len() > 1 {
            let one = roles.parities.iter().flat_map(|&at| self.one_region(at));
            let one: Vec<Edit> = one.collect();
            anyhow::ensure!(!one.is_empty(), "the second phase's region");
            self.add("phases-in-one-region", one);
        }
        let at = offset_of!(LaunchParams, lane) + offset_of!(LaneParams, position);
        let position = entry.one(&format!("_param_0+{at}];"))?;
        let register = entry.operands(position)[0].to_owned();
        let next = [format!("\tadd.s64 {register}, {register}, 1;")];
        self.add("position-next", vec![entry.followed(position, &next)]);
        let first = offset_of!(LaunchParams, lane) + offset_of!(LaneParams, pads);
        let of = |position: usize| match first + 8 * position {
            0 => "_param_0];".to_owned(),
            at => format!("_param_0+{at}];"),
        };
        for position in 0..self.ranks {
            let reads = entry.all(&of(position)).into_iter();
            let next = of((position + 1) % self.ranks);
            let edits: Result<Vec<Edit>> = reads.map(|at| entry.replaced(at, &of(position), &next)).collect();
            self.add(format!("pad-of-{position}-next"), edits?);
        }
        Ok(())
    }

    /// What adds the second phase's region, of as many places as there are ranks, to the parity at `at`.
    fn one_region(&self, at: usize) -> Vec<Edit> {
        let (entry, ranks) = (self.entry, self.ranks);
        let parity = entry.operands(at)[0].to_owned();
        let ends = |shape: &str| {
            let lines = entry.all(shape).into_iter();
            lines.filter(|&at| entry.lines[at].ends_with(shape)).collect::<Vec<_>>()
        };
        let as_it_is = |places: Vec<usize>, from: &str| -> Vec<Edit> {
            let first = |at| entry.operands(at)[0].to_owned();
            places
                .into_iter()
                .map(|at| Edit { at, with: vec![format!("\tmov.b32 {}, {from};", first(at))] })
                .collect()
        };
        let mut edits = as_it_is(ends(&format!(", {parity}, {ranks};")), &parity);
        edits.retain(|edit| entry.lines[edit.at].contains("\tor.b32"));
        // Where the number of ranks is no power of two, the parity is multiplied.
        for product in ends(&format!(", {parity}, {ranks};")) {
            if entry.lines[product].contains("\tmul.lo.s32") {
                let product = entry.operands(product)[0].to_owned();
                edits.extend(as_it_is(ends(&format!(", {product}, {ranks};")), &product));
            }
        }
        for sum in ends(&format!(", {parity}, {ranks}, {ranks};")) {
            let with = vec![format!("\tmul.lo.s32 {}, {parity}, {ranks};", entry.operands(sum)[0])];
            edits.push(Edit { at: sum, with });
        }
        edits
    }

    fn refreshes(&mut self) -> Result<()> {
        let (entry, roles) = (self.entry, self.roles);
        let never = roles.refreshing.iter().map(|&[_, at]| entry.replaced(at, ", 1073741822;", ", -1;"));
        self.add("refresh-never", never.collect::<Result<_>>()?);
        let mut masks: Vec<usize> = roles.refreshing.iter().map(|&[at, _]| at).collect();
        masks.dedup();
        let one = masks.iter().map(|&at| entry.replaced(at, ", 1073741822;", ", 1073741823;"));
        self.add("refresh-of-one-parity", one.collect::<Result<_>>()?);
        let by_all = masks.iter().map(|&at| {
            let packets = entry.operands(at)[1].to_owned();
            entry.replaced(at, &format!("{packets}, 1073741822;"), &format!("{}, 1073741822;", roles.number))
        });
        self.add("refresh-by-all-calls", by_all.collect::<Result<_>>()?);
        for (number, &store) in roles.refreshes.iter().take(self.ways(&roles.refreshes)).enumerate() {
            self.add(format!("refresh-push-{number}-dropped"), vec![entry.dropped(store)]);
        }
        Ok(())
    }

    fn headers(&mut self) -> Result<()> {
        let (entry, roles) = (self.entry, self.roles);
        let given = |at: usize, descriptor: &str, by_table: &[String]| {
            let [low, high] = pair(entry, at);
            let mut lines = by_table.to_vec();
            let descriptor = if lines.is_empty() { descriptor } else { "%md1" };
            lines.extend([
                format!("\tor.b32 %mr0, {}, 1;", roles.packets),
                "\tcvt.u64.u32 %md0, %mr0;".to_owned(),
                format!("\tshl.b64 {low}, {descriptor}, 32;"),
                format!("\tor.b64 {low}, {low}, %md0;"),
                format!("\tand.b64 {high}, {descriptor}, -4294967296;"),
                format!("\tor.b64 {high}, {high}, %md0;"),
            ]);
            entry.followed(at, &lines)
        };
        let mut missing = Vec::new();
        for header in &roles.headers {
            let name = |what: &str| format!("{}{what}", header.wait.prefix);
            self.weaken(&name("store"), &[header.store])?;
            self.add(name("dropped"), vec![entry.dropped(header.store)]);
            self.add(name("to-next-source"), vec![entry.moved(header.store, 16)?]);
            self.weaken(&name("look"), &header.looks)?;
            let [told, seen, descriptor] = entry.operands(header.compare)[..] else {
                anyhow::bail!("the comparison of a header")
            };
            let equal = vec![format!("\tsetp.eq.b64 {told}, {seen}, {seen};")];
            self.add(name("not-compared"), vec![Edit { at: header.compare, with: equal }]);
            let by_table = self.awaited_by_table(header.wait.prefix);
            let awaited = || header.looks.iter().map(|&at| given(at, descriptor, &by_table));
            self.add(name("not-awaited"), awaited().collect());
            missing.extend(awaited().chain([entry.dropped(header.store)]));
            self.weaken(&name("ask"), &[header.ask])?;
            self.add(name("ask-never"), vec![entry.replaced(header.ask_after, ", 100000;", ", -1;")?]);
            let [low, high] = pair(entry, header.ask);
            let mut believe =
                vec![format!("\tor.b32 %mr0, {}, 1;", roles.number), "\tcvt.u64.u32 %md0, %mr0;".to_owned()];
            for word in [low, high] {
                believe.push(format!("\tand.b64 {word}, {word}, -4294967296;"));
                believe.push(format!("\tor.b64 {word}, {word}, %md0;"));
            }
            self.add(name("ask-of-any-call"), vec![entry.followed(header.ask, &believe)]);
            self.wait_orders(&header.wait)?;
            self.failures(&header.wait)?;
            self.deadlines(&header.wait)?;
            self.spreading(header.wait.prefix, &header.wait.failing);
        }
        self.add("headers-missing", missing);
        if self.algorithm.is_of_slices() {
            self.headers_by_data();
        }
        self.weaken("told", &[roles.told])?;
        self.add("told-dropped", vec![entry.constant(roles.told, "0")]);
        Ok(())
    }

    /// Of slices: loads what the header must say that the thread awaits, to `%md1`.
    fn awaited_by_table(&self, prefix: &str) -> Vec<String> {
        let expected = offset_of!(SliceParams, expected);
        match prefix {
            _ if !self.algorithm.is_of_slices() => Vec::new(),
            "relayed-header-" => self.of_place("%md1", expected, Place::OfOtherQuad),
            // What a rank of the quad has for the relay neighbour is what this one has for it.
            "header-for-relay-" => {
                self.of_place("%md1", offset_of!(SliceParams, said), Place::RelayNeighbour)
            }
            _ => self.of_thread("%md1", expected),
        }
    }

    /// A header is awaited from those alone who send data, and sent to those alone who get some: nobody hears of a reader that
    /// has nothing to send.
    fn headers_by_data(&mut self) {
        let (entry, roles) = (self.entry, self.roles);
        // In a hybrid cube mesh those of the quad alone, whose data are also those that are pushed on.
        let headers = if self.algorithm.is_of_cube_mesh() { &roles.headers[..1] } else { &roles.headers };
        let received = offset_of!(SliceParams, received) + offset_of!(Slices, bytes);
        let sent = offset_of!(SliceParams, sent) + offset_of!(Slices, bytes);
        let mut edits = Vec::new();
        for header in headers {
            for at in header.looks {
                let [low, high] = pair(entry, at);
                let mut lines = self.of_thread("%mr1", received);
                if self.algorithm.is_of_cube_mesh() {
                    lines.push("\tcvt.u64.u32 %md1, %mr1;".to_owned());
                    lines.extend(match self.algorithm.moves() {
                        true => self.of_place("%mr1", received, Place::OfOtherQuad),
                        false => self.of_place("%mr1", sent, Place::Opposite),
                    });
                    lines.push("\tcvt.u32.u64 %mr2, %md1;".to_owned());
                    lines.push("\tor.b32 %mr1, %mr1, %mr2;".to_owned());
                }
                lines.extend(self.awaited_by_table(header.wait.prefix));
                lines.extend([
                    "\tsetp.eq.u32 %mp0, %mr1, 0;".to_owned(),
                    format!("\tor.b32 %mr0, {}, 1;", roles.packets),
                    "\tcvt.u64.u32 %md0, %mr0;".to_owned(),
                    "\tshl.b64 %md2, %md1, 32;".to_owned(),
                    "\tor.b64 %md2, %md2, %md0;".to_owned(),
                    format!("\tselp.b64 {low}, %md2, {low}, %mp0;"),
                    "\tand.b64 %md2, %md1, -4294967296;".to_owned(),
                    "\tor.b64 %md2, %md2, %md0;".to_owned(),
                    format!("\tselp.b64 {high}, %md2, {high}, %mp0;"),
                ]);
                edits.push(entry.followed(at, &lines));
            }
        }
        let unheard = edits.clone();
        self.add("acknowledgement-not-awaited-without-data", unheard);
        for header in headers {
            let mut lines = self.of_thread("%mr1", sent);
            if self.algorithm.is_of_cube_mesh() {
                lines.push("\tcvt.u64.u32 %md1, %mr1;".to_owned());
                lines.extend(match self.algorithm.moves() {
                    true => self.of_place("%mr1", received, Place::Opposite),
                    false => self.of_place("%mr1", sent, Place::OfOtherQuad),
                });
                lines.push("\tcvt.u32.u64 %mr2, %md1;".to_owned());
                lines.push("\tor.b32 %mr1, %mr1, %mr2;".to_owned());
            }
            lines.push("\tsetp.ne.u32 %mp0, %mr1, 0;".to_owned());
            lines.push(format!("\t@%mp0 {}", entry.lines[header.store].trim()));
            edits.push(Edit { at: header.store, with: lines });
        }
        self.add("acknowledgement-by-data-alone", edits);
    }

    /// What ranks say that they launch.
    fn descriptors(&mut self) -> Result<()> {
        let (entry, roles) = (self.entry, self.roles);
        self.weaken("descriptor-store", &[roles.declared])?;
        self.add("descriptor-dropped", vec![entry.dropped(roles.declared)]);
        let masks = descriptor_parities(entry, &roles.number);
        anyhow::ensure!(!masks.is_empty(), "the parity of descriptors");
        let one = masks.iter().map(|&at| entry.replaced(at, ", 8;", ", 0;"));
        self.add("descriptor-one-slot", one.collect::<Result<_>>()?);
        Ok(())
    }

    /// What a lane that has failed must not do, and must be seen to have.
    fn aborts(&mut self) -> Result<()> {
        let (entry, roles) = (self.entry, self.roles);
        self.weaken("entry-poll", &[roles.entry_poll])?;
        self.add("entry-poll-dropped", vec![entry.constant(roles.entry_poll, "0")]);
        let operands = entry.operands(roles.barrier);
        let (told, asked) = (operands[0], operands[2]);
        let alone = vec!["\tbar.sync \t0;".to_owned(), format!("\tmov.pred {told}, {asked};")];
        self.add("agreement-dropped", vec![Edit { at: roles.barrier, with: alone }]);
        self.add("agreement-of-all", vec![entry.replaced(roles.barrier, ".or.", ".and.")?]);
        let never = ["\tmov.u32 %mr0, 0;".to_owned(), format!("\tsetp.ne.u32 {told}, %mr0, 0;")];
        self.add("agreement-never", vec![entry.followed(roles.barrier, &never)]);
        Ok(())
    }
}
