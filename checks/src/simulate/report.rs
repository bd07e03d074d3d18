//! The command: what a person or a program reads.
#![forbid(unsafe_code)]

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use meshreduce_arguments::Simulate;
use meshreduce_emulator_timed::{Parameters, Step};
use meshreduce_wire::{Algorithm, Collective, DType, Isa, Op};
use serde::Serialize;
use serde_json::json;

use super::{Absent, Named, Simulated, simulate, timeline};
use crate::curves::{Series, draw_lines};
use crate::one_call::{Subject, shipped};

/// The compute capability from which on the library takes the texts of a later ISA.
const LATER_TEXTS: u32 = 90;

/// A call's row. Times are simulated microseconds.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Which collective.
    pub collective: String,
    /// What the kernel's name begins with.
    pub kernel: String,
    /// Bytes of the message, or of each slice.
    pub bytes: usize,
    /// Elements of it.
    pub count: usize,
    /// A call in a stream: the kernel, and what a launch takes.
    pub stream_us: f64,
    /// A node of a graph, likewise.
    pub graph_us: f64,
    /// The kernel alone, until all its stores are acknowledged.
    pub kernel_us: f64,
    /// To the last store of a result.
    pub result_us: f64,
    /// Bytes by time in a stream.
    pub algbw_gbps: f64,
    /// The same by what each link has to carry.
    pub busbw_gbps: f64,
    /// Elements of the results that are wrong.
    pub wrong: usize,
}

/// Runs, and says whether all results are right.
///
/// # Errors
/// If there is no such machine or kernel, or a kernel goes wrong.
pub fn run(arguments: &Simulate) -> Result<bool> {
    let machine = machine(arguments)?;
    let most = machine.gpus;
    ensure!((2..=most).contains(&arguments.ranks), "{} has {most} GPUs: 2 to {most} ranks", machine.name);
    if !arguments.json {
        print!("{}", heading(&machine, arguments));
    }
    let (mut rows, mut described) = (Vec::new(), Vec::new());
    for (collective, subject) in subjects(arguments, &machine) {
        let outcome = simulate(&machine, subject, collective, arguments.path || arguments.svg.is_some())
            .with_context(|| {
                format!("{} over {} ranks, {} bytes", subject.algorithm, subject.ranks, subject.bytes)
            })?;
        let name = format!("{}{}", subject.algorithm.kernel_name(), subject.isa.suffix());
        match outcome {
            Ok(done) => {
                let row = row(&machine, subject, collective, &done);
                if !arguments.json {
                    print!("{}", line(&row, arguments.dtype, arguments.op));
                    let shown = if arguments.path { &done.path[..] } else { &[] };
                    shown
                        .iter()
                        .zip(gaps(&done.path))
                        .for_each(|(named, gap)| print!("{}", told(named, gap)));
                }
                draw_call(arguments, &machine, &row, &done)?;
                described.push(json!({ "call": &row, "path": path(&done.path) }));
                rows.push(row);
            }
            Err(_) if arguments.json => {}
            Err(absent) => println!("{:>12} {:>22} {}", subject.bytes, name, why(&absent)),
        }
    }
    ensure!(!rows.is_empty(), "there is no such kernel, or none that this machine can run");
    draw_all(arguments, &machine, &rows)?;
    if arguments.json {
        let all = json!({
            "simulated": true, "machine": machine.name, "ranks": arguments.ranks,
            "dtype": arguments.dtype.to_string(), "op": arguments.op.to_string(), "calls": described,
        });
        println!("{}", serde_json::to_string_pretty(&all)?);
    }
    Ok(rows.iter().all(|row| row.wrong == 0))
}

fn draw_call(arguments: &Simulate, machine: &Parameters, row: &Row, done: &Simulated) -> Result<()> {
    let Some(folder) = &arguments.svg else { return Ok(()) };
    let Row { collective, kernel, bytes, .. } = row;
    let title =
        format!("{collective} of {bytes} bytes by {kernel}, {} ranks of {}", arguments.ranks, machine.name);
    let Some(drawn) = timeline::draw(done, arguments.ranks, &title) else { return Ok(()) };
    write(folder, &format!("{}-{collective}-{kernel}-{bytes}.svg", machine.name), &drawn)
}

fn draw_all(arguments: &Simulate, machine: &Parameters, rows: &[Row]) -> Result<()> {
    let Some(folder) = &arguments.svg else { return Ok(()) };
    for collective in &arguments.collective {
        let name = collective.to_string();
        let mut series = Series::new();
        for row in rows.iter().filter(|row| row.collective == name) {
            series.entry(row.kernel.clone()).or_default().push((row.bytes as f64, row.kernel_us));
        }
        let title = format!("{name}, {} ranks of {}, kernel time, simulated", arguments.ranks, machine.name);
        if let Some(drawn) = draw_lines(&series, &title, Some("SIMULATED, not measured")) {
            write(folder, &format!("{}-{name}.svg", machine.name), &drawn)?;
        }
    }
    Ok(())
}

fn machine(arguments: &Simulate) -> Result<Parameters> {
    let file = Path::new(&arguments.node);
    if file.extension().is_none() {
        return Ok(Parameters::shipped(&arguments.node)?);
    }
    let text = fs::read_to_string(file).with_context(|| format!("reading {}", arguments.node))?;
    Ok(Parameters::parse(&text, &arguments.node)?)
}

fn subjects(arguments: &Simulate, machine: &Parameters) -> Vec<(Collective, Subject)> {
    let later = capability(&machine.compute_capability) >= LATER_TEXTS;
    let wanted = |&(algorithm, ranks, isa): &(Algorithm, usize, Isa)| {
        ranks == arguments.ranks
            && (later || isa == Isa::V70)
            && (arguments.algorithm.is_empty() || arguments.algorithm.contains(&algorithm))
    };
    let kernels: Vec<_> = shipped().into_iter().filter(wanted).collect();
    let mut all = Vec::new();
    for &collective in &arguments.collective {
        // A barrier has no sizes.
        let sizes = if collective == Collective::Barrier { &[0] } else { &arguments.bytes[..] };
        for &bytes in sizes {
            for &(algorithm, ranks, isa) in kernels.iter().filter(|kernel| kernel.0.serves(collective)) {
                let (dtype, op) = (arguments.dtype, arguments.op);
                all.push((collective, Subject { algorithm, ranks, isa, dtype, op, bytes }));
            }
        }
    }
    all
}

fn write(folder: &Path, name: &str, text: &str) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    let file = folder.join(name);
    fs::write(&file, text).with_context(|| format!("writing {}", file.display()))
}

/// `9.0` as 90.
fn capability(text: &str) -> u32 {
    let (major, minor) = text.split_once('.').unwrap_or((text, "0"));
    10 * major.parse::<u32>().unwrap_or(0) + minor.parse::<u32>().unwrap_or(0)
}

fn row(machine: &Parameters, subject: Subject, collective: Collective, done: &Simulated) -> Row {
    let ranks = subject.ranks as f64;
    // As nccl-tests reckon: of what all ranks have together where each has a slice for each.
    let (slices, factor) = match collective {
        Collective::AllReduce => (1.0, 2.0 * (ranks - 1.0) / ranks),
        Collective::Broadcast | Collective::Reduce | Collective::Barrier => (1.0, 1.0),
        _ => (ranks, (ranks - 1.0) / ranks),
    };
    let stream_us = done.kernel_us + f64::from(machine.launch.stream_ns) / 1000.0;
    let algbw_gbps = subject.bytes as f64 * slices / stream_us / 1000.0;
    Row {
        collective: collective.to_string(),
        kernel: done.family.clone(),
        bytes: subject.bytes,
        count: subject.bytes / subject.dtype.size(),
        stream_us,
        graph_us: done.kernel_us + f64::from(machine.launch.graph_ns) / 1000.0,
        kernel_us: done.kernel_us,
        result_us: done.result_us,
        algbw_gbps,
        busbw_gbps: algbw_gbps * factor,
        wrong: done.wrong,
    }
}

fn heading(machine: &Parameters, args: &Simulate) -> String {
    format!(
        "# SIMULATED, not measured: {} ranks of {}; parameters in emulator/timed/machines, see docs/simulate.md\n\
         # kernel: until all its stores are acknowledged; result: until the last store of a result; stream, graph: the kernel\n\
         # and what a launch adds; algbw, busbw: of a call in a stream\n\
         #     size        count   type  redop                  kernel   stream    graph   kernel   result   algbw   busbw  #wrong\n\
         #      (B)   (elements)                                           (us)     (us)     (us)     (us)  (GB/s)  (GB/s)\n",
        args.ranks, machine.name
    )
}

fn line(row: &Row, dtype: DType, op: Op) -> String {
    let Row { collective, kernel, bytes, count, stream_us, graph_us, kernel_us, result_us, .. } = row;
    let name = if collective == "all-reduce" { kernel.clone() } else { format!("{collective} {kernel}") };
    let (dtype, op) = (dtype.to_string(), op.to_string());
    format!(
        "{bytes:>10} {count:>12} {dtype:>6} {op:>6} {name:>23} {stream_us:>8.2} {graph_us:>8.2} {kernel_us:>8.2} \
         {result_us:>8.2} {:>7.2} {:>7.2} {:>7}\n",
        row.algbw_gbps, row.busbw_gbps, row.wrong
    )
}

fn why(absent: &Absent) -> String {
    match absent {
        Absent::NoLink(from, to) => format!("not possible: rank {from} has no NVLink to rank {to}"),
        Absent::Packets => "left out: its packets need more memory than is set up here".to_owned(),
    }
}

/// By step: microseconds since the end of the one before, which is what it adds.
fn gaps(path: &[Named]) -> Vec<f64> {
    let ends = path.iter().map(|named| named.step.end);
    let before = std::iter::once(0).chain(ends.clone());
    ends.zip(before).map(|(end, before)| end.saturating_sub(before) as f64 / 1e6).collect()
}

fn told(Named { step, place }: &Named, gap: f64) -> String {
    let Step { kind, device, block, warp, line, text, begin, end, .. } = step;
    let place = if place.is_empty() { String::new() } else { format!(" of {place}") };
    let (begin, end) = (*begin as f64 / 1e6, *end as f64 / 1e6);
    format!(
        "    {end:>8.3} us  +{gap:.3}  {kind:<18} rank {device}, block {block}, warp {warp}, issued at {begin:.3}{place}\n\
         \x20                              line {line}: {text}\n"
    )
}

fn path(path: &[Named]) -> Vec<serde_json::Value> {
    let told = |(Named { step, place }, gap): (&Named, f64)| {
        let Step { kind, device, block, warp, line, text, begin, end, .. } = step;
        json!({
            "kind": kind.to_string(), "place": place, "device": device, "block": block, "warp": warp, "line": line,
            "text": text, "issued_us": *begin as f64 / 1e6, "done_us": *end as f64 / 1e6, "adds_us": gap,
        })
    };
    path.iter().zip(gaps(path)).map(told).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_says_what_it_is_and_bandwidths_are_reckoned_as_nccl_tests_do() {
        let machine = Parameters::shipped("hgx-h100").unwrap();
        let done = Simulated {
            family: "one_shot".to_owned(),
            result_us: 3.0,
            kernel_us: 4.0,
            wrong: 0,
            instructions: 1,
            path: Vec::new(),
            steps: Vec::new(),
        };
        let subject = Subject {
            algorithm: Algorithm::OneShot,
            ranks: 8,
            isa: Isa::V70,
            dtype: DType::Bf16,
            op: Op::Sum,
            bytes: 8000,
        };
        let reduced = row(&machine, subject, Collective::AllReduce, &done);
        let time = 4.0 + f64::from(machine.launch.stream_ns) / 1000.0;
        assert_eq!((reduced.stream_us, reduced.count), (time, 4000));
        assert!((reduced.busbw_gbps - 8.0 / time * 1.75).abs() < 1e-9);
        let gathered = row(&machine, subject, Collective::AllGather, &done);
        assert!((gathered.busbw_gbps - 64.0 / time * 7.0 / 8.0).abs() < 1e-9);
        assert!(line(&reduced, DType::Bf16, Op::Sum).contains("one_shot"));
    }

    #[test]
    fn capabilities_compare_as_numbers() {
        assert!(capability("10.0") > capability("9.0") && capability("8.6") < LATER_TEXTS);
    }
}
