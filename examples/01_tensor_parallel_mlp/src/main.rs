//! Runs the sharded network on several ranks and compares their results with the unsharded network's.

mod collective;
mod ranks;

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use clap::Parser;
use comfy_table::{CellAlignment, Table, presets::NOTHING};
use half::bf16;
use tensor_parallel_mlp::{
    data::{CLASSES, Digits, PIXELS},
    model::{HIDDEN, Mlp},
    shard::{self, Difference},
};

/// A trained two-layer perceptron, sharded over several GPUs, real or emulated.
#[derive(Parser)]
struct Arguments {
    /// Number of ranks, 2 to 8; without it as many as there are devices
    #[arg(long, value_parser = clap::value_parser!(u8).range(2..=8))]
    ranks: Option<u8>,
    /// Every rank is a process of its own (the default)
    #[arg(long)]
    processes: bool,
    /// Every rank is a thread of one process
    #[arg(long, conflicts_with = "processes")]
    threads: bool,
    /// For the processes that this program starts: be this rank and write the result to standard output
    #[arg(long, hide = true, requires_all = ["ranks", "store"])]
    rank: Option<usize>,
    /// Directory where the ranks meet
    #[arg(long, hide = true)]
    store: Option<PathBuf>,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let world_size = match arguments.ranks {
        Some(ranks) => ranks.into(),
        None => collective::device_count()?.min(8),
    };
    if let (Some(rank), Some(store)) = (arguments.rank, &arguments.store) {
        let result = ranks::run_rank(rank, world_size, store).with_context(|| format!("rank {rank}"))?;
        let bytes: Vec<u8> = result.iter().flat_map(|value| value.to_le_bytes()).collect();
        return Ok(std::io::stdout().write_all(&bytes)?);
    }

    let store = tempfile::tempdir()?;
    let results = match arguments.threads {
        true => ranks::run_threads(world_size, store.path())?,
        false => ranks::run_processes(world_size, store.path())?,
    };
    judge(&results)
}

/// Prints what each rank arrived at; an error if any of it is wrong.
fn judge(results: &[Vec<bf16>]) -> anyhow::Result<()> {
    let (mlp, digits) = (Mlp::trained()?, Digits::held_out());
    let world_size = results.len();
    let unsharded = mlp.unsharded(&digits.pixels);
    let expected = mlp.classify(&unsharded);
    let partials: Vec<_> =
        (0..world_size).map(|rank| shard::partial(&mlp, &digits.pixels, rank, world_size)).collect();
    println!(
        "{PIXELS} -> {HIDDEN} -> {CLASSES} perceptron over {world_size} ranks, {} held-out digits; unsharded accuracy {}",
        digits.len(),
        percent(digits.accuracy(&expected)),
    );

    let mut table = Table::new();
    table.load_preset(NOTHING);
    let header =
        ["rank", "hidden units", "accuracy", "same class", "max |difference|", "of tolerance", "bits equal"];
    table.set_header(header);
    table.column_iter_mut().for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    let mut right = true;
    for (rank, result) in results.iter().enumerate() {
        ensure!(
            result.len() == unsharded.len(),
            "rank {rank} has {} values, not {}",
            result.len(),
            unsharded.len()
        );
        let tolerance = shard::tolerance(&mlp, &digits.pixels, &partials, result, &unsharded);
        let difference = Difference::between(result, &unsharded, &tolerance);
        let predicted = mlp.classify(result);
        let same =
            predicted.iter().zip(&expected).filter(|(predicted, expected)| predicted == expected).count();
        let bits_equal = result.iter().zip(&results[0]).all(|(a, b)| a.to_bits() == b.to_bits());
        let units = shard::units_of(rank, world_size);
        table.add_row([
            rank.to_string(),
            format!("{}..{}", units.start, units.end),
            percent(digits.accuracy(&predicted)),
            format!("{same}/{}", digits.len()),
            difference.greatest.to_string(),
            percent(difference.of_tolerance.into()),
            if bits_equal { "yes" } else { "NO" }.to_owned(),
        ]);
        right &= bits_equal && difference.is_within_tolerance();
    }
    println!("{table}");
    ensure!(right, "a rank has other bits than rank 0, or values beyond the tolerance");
    Ok(())
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `world_size` ranks would arrive at if sharding cost no rounding.
    fn results(world_size: usize) -> Vec<Vec<bf16>> {
        let (mlp, digits) = (Mlp::trained().unwrap(), Digits::held_out());
        vec![mlp.unsharded(&digits.pixels); world_size]
    }

    #[test]
    fn equal_results_within_tolerance_are_accepted() {
        judge(&results(2)).unwrap();
    }

    #[test]
    fn one_bit_that_differs_between_ranks_is_refused() {
        let mut results = results(3);
        let value = &mut results[2][100];
        *value = bf16::from_bits(value.to_bits() ^ 1);
        assert!(judge(&results).unwrap_err().to_string().contains("other bits"));
    }

    #[test]
    fn the_same_wrong_value_on_all_ranks_is_refused() {
        let mut results = results(2);
        results.iter_mut().for_each(|result| result[100] = bf16::from_f32(result[100].to_f32() * 1.5));
        assert!(judge(&results).unwrap_err().to_string().contains("beyond the tolerance"));
    }

    #[test]
    fn a_result_that_is_cut_short_is_refused() {
        let mut results = results(2);
        results[1].pop();
        assert!(judge(&results).unwrap_err().to_string().contains("rank 1 has 4969 values"));
    }
}
