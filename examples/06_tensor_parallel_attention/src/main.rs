//! Runs the sharded layers on several ranks, each of which compares its tokens with the plain layers'.

mod collective;

use anyhow::ensure;
use clap::Parser;
use tensor_parallel_attention::model::{HEADS, HIDDEN, Layer, WIDTH, add, normalised, tokens};
use tensor_parallel_attention::shard::{OWN_TOKENS, TOLERANCE, difference, own, share};

use collective::Ranks;

/// Layers one behind the other.
const LAYERS: u64 = 2;

/// A transformer's layers, sharded over several GPUs, real or emulated.
#[derive(Parser)]
struct Arguments {
    /// Number of ranks, 2 to 8, a GPU each, started by this program unless a launcher has; without it as many as there are devices
    #[arg(long, value_parser = clap::value_parser!(u8).range(2..=8))]
    ranks: Option<u8>,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    if !example_launch::is_rank() {
        let ranks = match arguments.ranks {
            Some(ranks) => ranks.into(),
            None => collective::device_count()?.min(8),
        };
        let place = |rank| example_launch::Place { local_rank: rank, environment: Vec::new() };
        return example_launch::launch(ranks, place);
    }

    let mut ranks = Ranks::meet()?;
    let (rank, world_size) = (ranks.rank(), ranks.world_size());
    let layers: Vec<Layer> = (0..LAYERS).map(Layer::drawn).collect();
    let all = tokens(OWN_TOKENS * world_size, LAYERS);

    // Between layers, and between the halves of a layer, a rank has its own tokens alone.
    let mut own_tokens = own(&all, rank).to_vec();
    for layer in &layers {
        let everyones = ranks.all_gather(&normalised(&own_tokens))?;
        let partials = layer.attention(&everyones, share(HEADS, rank, world_size));
        add(&mut own_tokens, &ranks.reduce_scatter(&partials)?);

        let everyones = ranks.all_gather(&normalised(&own_tokens))?;
        let partials = layer.feed_forward(&everyones, share(HIDDEN, rank, world_size));
        add(&mut own_tokens, &ranks.reduce_scatter(&partials)?);
    }

    let plain = layers.iter().fold(all, |tokens, layer| layer.whole(&tokens));
    let difference = difference(&own_tokens, own(&plain, rank));
    let heads = share(HEADS, rank, world_size);
    println!(
        "rank {rank} of {world_size}: heads {heads:?}, {OWN_TOKENS} tokens of {WIDTH}, max |difference| {difference:.1e}"
    );
    // Before any rank leaves: one that is wrong must not look to the others like one that has died.
    ranks.close()?;
    ensure!(
        difference <= TOLERANCE,
        "rank {rank} is {difference:e} from the plain layers, more than {TOLERANCE:e}"
    );
    Ok(())
}
