//! Mutations of what only the kernel of lists has: which tensor a unit belongs to, and lengths that are compared.

use std::mem::offset_of;

use anyhow::{Context, Result, ensure};
use meshreduce_wire::GroupParams;
use meshreduce_wire::launch::MAX_TENSORS;

use super::maker::Maker;
use super::roles::Failing;
use super::text::Edit;

/// What a record has behind its abort word, in the order of its stores.
const FIELDS: [&str; 8] =
    ["peer", "block", "tensor", "epoch-wanted", "epoch-seen", "count", "peer-count", "waited"];

impl<R> Maker<'_, R> {
    /// All of them. `counts` is what a rank does that finds another length.
    ///
    /// # Errors
    /// If a mutation does not apply.
    pub(super) fn lists(&mut self, counts: &Failing) -> Result<()> {
        self.tables_of_tensors()?;
        self.search()?;
        self.units()?;
        self.lengths_compared(counts)?;
        let prefix = "counts-";
        self.failing_orders(prefix, counts)?;
        self.records(prefix, counts);
        self.recorded(prefix, counts)?;
        self.spreading(prefix, counts);
        Ok(())
    }

    /// Another tensor's entry of a table.
    fn tables_of_tensors(&mut self) -> Result<()> {
        for (name, at, bytes) in [
            ("input", offset_of!(GroupParams, inputs), 8),
            ("output", offset_of!(GroupParams, outputs), 8),
            ("count", offset_of!(GroupParams, counts), 4),
            ("first", offset_of!(GroupParams, firsts), 4),
        ] {
            let places = self.constants(&["add.s64", "add.s32"], at);
            ensure!(!places.is_empty(), "no read of the table at {at}");
            self.turn(
                format!("{name}-of-next-tensor"),
                &places,
                &format!(", {at};"),
                &format!(", {};", at + bytes),
            )?;
        }
        Ok(())
    }

    /// The lines of these operations whose last operand is a constant.
    fn constants(&self, operations: &[&str], constant: usize) -> Vec<usize> {
        let all = self.entry.all(&format!(", {constant};")).into_iter();
        let is_one = |at: &usize| {
            let line = self.entry.lines[*at].trim_start();
            operations.iter().any(|operation| line.starts_with(operation))
        };
        all.filter(is_one).collect()
    }

    /// A step of the search for the tensor is not made.
    fn search(&mut self) -> Result<()> {
        let entry = self.entry;
        let selects = entry.all("\tselp.b32");
        let kept = |at: usize, from: &str| Edit {
            at,
            with: vec![format!("\tmov.b32 {}, {from};", entry.operands(at)[0])],
        };
        let half = MAX_TENSORS / 2;
        let first =
            selects.iter().copied().filter(|&at| entry.operands(at)[1..3] == ["0", &half.to_string()]);
        let first: Vec<Edit> = first.map(|at| kept(at, "0")).collect();
        ensure!(!first.is_empty(), "the first step of the search");
        self.add(format!("search-step-{half}-dropped"), first);
        let mut step = half / 2;
        while step > 0 {
            let mut edits = Vec::new();
            for next in self.constants(&["or.b32", "add.s32"], step) {
                let (to, from) = (entry.operands(next)[0], entry.operands(next)[1]);
                let taken = selects.iter().copied().filter(|&at| entry.operands(at)[1..3] == [from, to]);
                edits.extend(taken.map(|at| kept(at, from)));
            }
            ensure!(!edits.is_empty(), "the step of {step} of the search");
            self.add(format!("search-step-{step}-dropped"), edits);
            step /= 2;
        }
        Ok(())
    }

    /// What is taken for a whole unit, or for the units of lengths, and what ranks bring that do not exist.
    fn units(&mut self) -> Result<()> {
        let entry = self.entry;
        let rounded: Vec<usize> = entry
            .all("\tand.b32")
            .into_iter()
            .filter(|&at| entry.operands(at)[2] == "-32" && entry.lines[at - 1].contains(", 31;"))
            .collect();
        ensure!(!rounded.is_empty(), "the units of lengths in whole tiles");
        self.turn("lengths-in-no-whole-tiles", &rounded, ", -32;", ", -1;")?;
        let masks: Vec<usize> = ["7", "3"]
            .iter()
            .flat_map(|mask| entry.all(&format!(", {mask};")))
            .filter(|&at| entry.lines[at].contains("\tand.b64"))
            .collect();
        let aligned =
            |at: &usize| Edit { at: *at, with: vec![format!("\tmov.b64 {}, 0;", entry.operands(*at)[0])] };
        let last = self.last_read_of_inputs();
        let (outputs, inputs): (Vec<usize>, Vec<usize>) = masks.into_iter().partition(|&at| at > last);
        ensure!(!inputs.is_empty() && !outputs.is_empty(), "the alignment of inputs and outputs");
        self.add("input-alignment-ignored", inputs.iter().map(aligned).collect());
        self.add("output-alignment-ignored", outputs.iter().map(aligned).collect());
        let offset = offset_of!(GroupParams, neutral);
        let neutral = entry.one(&format!("_param_0+{}];", offset - offset % 8))?;
        let both = entry.operands(neutral)[0].to_owned();
        let taken = entry.one(&format!("}}, {both};"))?;
        let line = entry.lines[taken].clone();
        let register = line.split_once('}').and_then(|(list, _)| list.rsplit_once(' '));
        let (_, register) = register.context("the neutral element's register")?;
        let zero = [format!("\tmov.b32 {register}, 0;")];
        self.add("neutral-is-0", vec![entry.followed(taken, &zero)]);
        Ok(())
    }

    /// Where the address of a tensor's input is read last.
    fn last_read_of_inputs(&self) -> usize {
        let reads = self.constants(&["add.s64"], offset_of!(GroupParams, inputs));
        // Its alignment is looked at close behind.
        reads.last().map_or(0, |last| last + 60)
    }

    /// Lengths of some ranks are not compared.
    fn lengths_compared(&mut self, counts: &Failing) -> Result<()> {
        let entry = self.entry;
        // The first source that differs, of all that do: by a chain of choices, the last of which is the first source's.
        let is_end = |at: &usize| {
            let [_, chosen, end] = entry.operands(*at)[..] else { return false };
            let before = entry.operands(at - 1);
            let is_choice = entry.lines[at - 1].contains("\tselp.b32");
            end == "7" && is_choice && before[0] == chosen && before[2] == "0"
        };
        let mut ends = entry.all("\tsetp.gt.u32");
        ends.retain(is_end);
        let [end] = ends[..] else { anyhow::bail!("{} ends of comparing lengths", ends.len()) };
        let is_equal = entry.operands(end)[0].to_owned();
        let never = ["\tmov.u32 %mr0, 0;".to_owned(), format!("\tsetp.eq.u32 {is_equal}, %mr0, 0;")];
        self.add("counts-not-compared", vec![entry.followed(end, &never)]);
        let mut at = end - 1;
        for source in 0..self.ranks {
            let [_, before, number, same] = entry.operands(at)[..] else {
                anyhow::bail!("the choice of a source")
            };
            ensure!(number == source.to_string(), "the choice of source {source}");
            let made = entry.all(&format!("or.pred \t{same},"));
            ensure!(made.len() == 1, "the comparison of source {source}");
            let (same, before) = (same.to_owned(), before.to_owned());
            let equal = ["\tmov.u32 %mr0, 0;".to_owned(), format!("\tsetp.eq.u32 {same}, %mr0, 0;")];
            self.add(format!("count-of-source-{source}-not-compared"), vec![entry.followed(made[0], &equal)]);
            let chosen = entry.all(&format!("selp.b32 \t{before},"));
            ensure!(chosen.len() == 1 || source + 1 == self.ranks, "the choice behind source {source}");
            at = chosen.first().copied().unwrap_or(at);
        }
        ensure!(end < counts.claim, "lengths that differ are told behind their comparison");
        Ok(())
    }

    /// Fields of the record of lengths that differ are not written.
    fn recorded(&mut self, prefix: &str, counts: &Failing) -> Result<()> {
        let entry = self.entry;
        let stores = entry.all("st.global.u").into_iter();
        let stores: Vec<usize> = stores.filter(|at| (counts.record + 1..counts.valid).contains(at)).collect();
        ensure!(stores.len() == FIELDS.len(), "{} fields of a record", stores.len());
        for (name, at) in FIELDS.into_iter().zip(stores) {
            // The others are 0, or not looked at.
            if ["peer", "tensor", "count", "peer-count"].contains(&name) {
                self.add(format!("{prefix}record-{name}-dropped"), vec![entry.dropped(at)]);
            }
        }
        Ok(())
    }
}
