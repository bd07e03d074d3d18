//! What was wrong in known kernels of this family, done to ours.

use std::mem::offset_of;

use anyhow::{Context, Result};
use meshreduce_wire::{Algorithm, LaneParams, LaunchParams};

use super::maker::Maker;
use super::roles::Roles;
use super::text::Edit;

impl Maker<'_, Roles> {
    /// Subnormal numbers count as zero in one addition.
    ///
    /// # Errors
    /// If there is no addition.
    pub fn flushed(&mut self) -> Result<()> {
        let at = *self.entry.all("add.rn.f32").last().context("an addition")?;
        self.add("addition-flushes-subnormals", vec![self.entry.replaced(at, ".rn.f32", ".rn.ftz.f32")?]);
        Ok(())
    }

    /// The greater of two is what a comparison says, for which zeros of both signs are equal and NaN is not greater.
    ///
    /// # Errors
    /// If there is no such instruction.
    pub fn compared(&mut self) -> Result<()> {
        let at = *self.entry.all("max.f32").last().context("a maximum")?;
        let [d, a, b] = self.entry.operands(at)[..] else { anyhow::bail!("a maximum of two") };
        let with = [
            ("gt", "max-by-greater"),
            ("ge", "max-by-greater-or-equal"),
            ("gtu", "max-by-not-less-or-equal"),
        ];
        let made = with.map(|(compare, name)| {
            let lines = vec![
                format!("\tsetp.{compare}.f32 %mp0, {a}, {b};"),
                format!("\tselp.b32 {d}, {a}, {b}, %mp0;"),
            ];
            (name, vec![Edit { at, with: lines }])
        });
        made.into_iter().for_each(|(name, edits)| self.add(name, edits));
        Ok(())
    }

    /// The mutants by hand.
    ///
    /// # Errors
    /// If a mutation does not apply.
    pub fn by_hand(&mut self) -> Result<()> {
        self.atomics_without_order()?;
        self.hand_back()?;
        self.elements_for_bytes()?;
        self.flags()?;
        self.sentinel()?;
        self.grids()
    }

    /// Signals by atomics without order and volatile spinning, data through the non-coherent cache.
    fn atomics_without_order(&mut self) -> Result<()> {
        let (entry, roles) = (self.entry, self.roles);
        let mut edits = Vec::new();
        for phase in &roles.phases {
            let operands = entry.operands(phase.signal);
            let exchange =
                format!("\tatom.relaxed.sys.global.exch.b64 %md0, {}, {};", operands[0], operands[1]);
            edits.push(Edit { at: phase.signal, with: vec![exchange] });
            for look in phase.looks {
                edits.push(entry.replaced(look, ".acquire.sys", ".volatile")?);
            }
        }
        self.add("known-1-atomics-without-order", edits.clone());
        for &load in &roles.staging_loads {
            edits.push(entry.replaced(load, "ld.global.", "ld.global.nc.")?);
        }
        self.add("known-1-atomics-without-order-nc", edits);
        let relaxed = roles.phases.iter().flat_map(|phase| {
            let looks = phase.looks.into_iter().map(|at| (at, ".acquire"));
            looks.chain([(phase.signal, ".release")])
        });
        let relaxed: Result<Vec<Edit>> =
            relaxed.map(|(at, from)| entry.replaced(at, from, ".relaxed")).collect();
        self.add("known-6-relaxed-start", relaxed?);
        Ok(())
    }

    /// One-shot without a closing barrier, in one buffer.
    fn hand_back(&mut self) -> Result<()> {
        let (entry, roles) = (self.entry, self.roles);
        self.add("known-2-no-closing-barrier", vec![entry.constant(roles.half_distance, "0")]);
        for (at, &barrier) in roles.barriers.iter().enumerate().step_by(2) {
            self.add(format!("known-8-release-by-one-thread-{at}"), vec![entry.without_barrier(barrier)]);
        }
        Ok(())
    }

    /// On one rank the sum begins elsewhere. Of two summands it would be the same.
    ///
    /// # Errors
    /// If it does not apply.
    pub fn rotated(&mut self) -> Result<()> {
        let (entry, roles) = (self.entry, self.roles);
        let count = self.ranks;
        // Of slices there is a loop for each type and operation.
        let loops = if self.algorithm.is_of_slices() { roles.staging_loads.len() / count } else { 1 };
        let mut edits = Vec::new();
        for loads in roles.staging_loads.chunks_exact(count).take(loops) {
            // On rank 0 the last of the positions comes first, and all others one later.
            let words: Vec<Vec<String>> = loads
                .iter()
                .map(|&at| {
                    let list = entry.operands(at)[0].trim_matches(['{', '}']);
                    list.split(", ").map(str::to_owned).collect()
                })
                .collect();
            let last = *loads.last().context("loads of staging")?;
            let mut rotate = vec![self.rank(), "\tsetp.eq.u32 %mp0, %mr1, 0;".to_owned()];
            for lane in 0..4 {
                let registers: Vec<&String> = words.iter().map(|words| &words[lane]).collect();
                rotate.push(format!("\tmov.b32 %mr0, {};", registers[count - 1]));
                for at in (1..count).rev() {
                    rotate.push(format!(
                        "\tselp.b32 {}, {}, {}, %mp0;",
                        registers[at],
                        registers[at - 1],
                        registers[at]
                    ));
                }
                rotate.push(format!("\tselp.b32 {}, %mr0, {}, %mp0;", registers[0], registers[0]));
            }
            edits.push(entry.followed(last, &rotate));
        }
        self.add("known-3-order-rotated-by-rank", edits);
        Ok(())
    }

    /// An offset computed in elements, used in bytes.
    fn elements_for_bytes(&mut self) -> Result<()> {
        let (entry, roles) = (self.entry, self.roles);
        let load = roles.staging_loads[0];
        let scale = entry.before(load, "mul.wide.u32", 12)?;
        self.add("known-4-elements-for-bytes", vec![entry.replaced(scale, ", 16;", ", 8;")?]);
        if self.algorithm == Algorithm::HybridCubeMesh {
            let relayed = *roles.staging_loads.last().context("loads of staging")?;
            let scale = entry.before(relayed, "mul.wide.u32", 12)?;
            self.add("known-4-relay-elements-for-bytes", vec![entry.replaced(scale, ", 16;", ", 8;")?]);
        }
        Ok(())
    }

    /// Flags of another width than what is read, and flags that the reader clears.
    fn flags(&mut self) -> Result<()> {
        let (entry, roles) = (self.entry, self.roles);
        for phase in &roles.phases {
            let prefix = phase.wait.prefix;
            let operands = entry.operands(phase.signal);
            let byte = vec![
                format!("\tcvt.u32.u64 %mr0, {};", operands[1]),
                format!("\tst.release.sys.global.u32 {}, %mr0;", operands[0]),
            ];
            self.add(
                format!("known-5-{prefix}flag-part-of-a-word"),
                vec![Edit { at: phase.signal, with: byte }],
            );
            let slot = entry.operands(phase.looks[0])[1].to_owned();
            let cleared =
                ["\tmov.b64 %md0, 0;".to_owned(), format!("\tst.relaxed.sys.global.u64 {slot}, %md0;")];
            // Behind the wait, in each of the two places where one ends well.
            let waited = phase.looks.map(|look| -> Result<Edit> {
                let seen = entry.operands(look)[0];
                let word = entry.operands(phase.signal)[1];
                let lines = [
                    format!("\tsetp.eq.u64 %mp0, {seen}, {word};"),
                    cleared[0].clone(),
                    format!("\t@%mp0 {}", cleared[1].trim()),
                ];
                Ok(entry.followed(look, &lines))
            });
            self.add(
                format!("known-5-{prefix}flag-cleared-by-the-reader"),
                waited.into_iter().collect::<Result<_>>()?,
            );
        }
        Ok(())
    }

    /// No signals: data that is not zero has arrived.
    fn sentinel(&mut self) -> Result<()> {
        let (entry, roles) = (self.entry, self.roles);
        let mut edits = Vec::new();
        for look in roles.phases.iter().flat_map(|phase| phase.looks) {
            edits.push(entry.constant(look, "-1"));
        }
        for &store in roles.staging_stores.iter().chain(&roles.result_stores) {
            edits.push(entry.replaced(store, "st.global.", "st.volatile.global.")?);
        }
        for (number, &load) in roles.staging_loads.iter().enumerate() {
            let vector = entry.lines[load].replacen("ld.global.", "ld.volatile.global.", 1);
            let first = entry.operands(load)[0].trim_start_matches('{').split(',').next().unwrap_or_default();
            let with = vec![
                format!("$M_{number}:"),
                vector,
                format!("\tsetp.eq.b32 %mp0, {first}, 0;"),
                format!("\t@%mp0 bra \t$M_{number};"),
            ];
            edits.push(Edit { at: load, with });
        }
        self.add("known-7-sentinel", edits);
        Ok(())
    }

    /// Rank 0 goes through the message as if its grid had one block.
    fn grids(&mut self) -> Result<()> {
        let (entry, roles) = (self.entry, self.roles);
        // Blocks are counted as many as they are.
        let last = entry.before(roles.exits, "add.s32", 4)?;
        let counted = entry.operands(last)[1].to_owned();
        let mut edits = Vec::new();
        let grids = entry.all("%nctaid.x");
        for &grid in &grids {
            let register = entry.operands(grid)[0].to_owned();
            if register == counted && grids.len() > 1 {
                continue;
            }
            let alone = [
                format!("\tmov.u32 %mr3, {register};"),
                self.rank(),
                "\tsetp.eq.u32 %mp0, %mr1, 0;".to_owned(),
                format!("\tselp.b32 {register}, 1, {register}, %mp0;"),
            ];
            edits.push(entry.followed(grid, &alone));
            if register == counted {
                edits.push(entry.replaced(last, &format!("{register},"), "%mr3,")?);
            }
        }
        self.add("known-9-grids-differ", edits);
        Ok(())
    }

    /// Loads this rank's number to `%mr1`.
    fn rank(&self) -> String {
        let at = offset_of!(LaunchParams, lane) + offset_of!(LaneParams, rank);
        format!("\tld.param.u32 %mr1, [{}_param_0+{at}];", self.entry.name())
    }
}
