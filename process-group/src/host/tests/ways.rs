//! Whatever way collectives take between hosts, the bits are the same.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::super::collectives::ExchangePattern;
use super::collectives::{inputs, reduced};
use super::*;
use crate::tensor::Parts;
use crate::types::ReduceOp;

/// Two, four and eight islands, of one rank or more, and numbers of which neither way is by halves.
const PLACEMENTS: [&str; 10] =
    ["ab", "aabb", "abcd", "abcdefgh", "aabbccdd", "abcdabcd", "aaaabbbb", "abc", "aabbcc", "abcdef"];

/// A collective that all ranks make.
#[derive(Debug)]
struct Drawn {
    kind: u32,
    dtype: DType,
    op: ReduceOp,
    /// Elements of an input, or of a rank's part by rank.
    count: usize,
    counts: Vec<usize>,
    root: usize,
    tame: bool,
    in_place: bool,
    blocking: bool,
}

impl Drawn {
    fn from(random: &mut ChaCha8Rng, world: usize) -> Self {
        let mut below = |limit: usize| random.next_u32() as usize % limit;
        // Short ones, and such as are not sent at once, around multiples of lines and not.
        let count = match below(4) {
            0 => below(40),
            1 => below(3000),
            2 => 2 * below(20_000) + 1,
            _ => 64 * below(1000),
        };
        Self {
            kind: below(4) as u32,
            dtype: DType::ALL[below(DType::ALL.len())],
            op: ReduceOp::ALL[below(ReduceOp::ALL.len())],
            count,
            counts: (0..world).map(|_| below(3) * below(6000)).collect(),
            root: below(world),
            tame: below(4) > 0,
            in_place: below(2) == 0,
            blocking: below(2) == 0,
        }
    }

    fn make(&self, rank: &Rank, seed: usize, text: &str) {
        match self.kind {
            0 | 1 => self.reduce(rank, seed, text),
            _ => self.gather(rank, seed, text),
        }
    }

    /// All-reduce and reduce.
    fn reduce(&self, rank: &Rank, seed: usize, text: &str) {
        let Self { dtype, op, count, root, .. } = *self;
        let mut inputs = inputs(dtype, count, rank.world, seed);
        if self.tame {
            inputs = inputs.into_iter().map(Data::tamed).collect();
        }
        let expected = reduced(dtype, op, &inputs, count);
        let (mut data, mut output) = (inputs[rank.rank].clone(), Data::zeros(dtype, count));
        let input = data.tensor();
        let to = if self.in_place { input } else { output.tensor() };
        let has_it = self.kind == 0 || rank.rank == root;
        let call = match self.kind {
            0 => Call::AllReduce { input, output: to, op },
            _ => Call::Reduce { input, output: has_it.then_some(to), op, root },
        };
        rank.start(&call, self.blocking).and_then(ended).unwrap();
        let got = if self.in_place { &data } else { &output };
        if has_it {
            assert_eq!(*got, expected, "{text}");
        }
        if !self.in_place || !has_it {
            assert_eq!(data, inputs[rank.rank], "an input was changed: {text}");
        }
    }

    /// All-gather of equal parts and of others, one behind the other.
    fn gather(&self, rank: &Rank, seed: usize, text: &str) {
        let each = self.count / rank.world;
        let equal = vec![each; rank.world];
        let counts = if self.kind == 2 { &equal } else { &self.counts };
        let (total, first) = (counts.iter().sum(), counts[..rank.rank].iter().sum());
        let all = Data::any(self.dtype, total, seed as u64 + 1);
        let (mut source, mut output) = (all.clone(), Data::zeros(self.dtype, total));
        let mut input = source.tensor().slice(first, counts[rank.rank]);
        let tensor = output.tensor();
        if self.in_place {
            let own = tensor.slice(first, counts[rank.rank]);
            let (from, to) = (input.address as *const u8, own.address as *mut u8);
            // SAFETY: both are as long, and apart.
            unsafe { std::ptr::copy_nonoverlapping(from, to, own.bytes()) };
            input = own;
        }
        let outputs = match self.kind {
            2 => Parts::Whole(tensor),
            _ => Parts::Split { tensor, counts },
        };
        rank.start(&Call::AllGather { input, outputs }, self.blocking).and_then(ended).unwrap();
        assert_eq!(output, all, "{text}");
    }
}

#[test]
fn every_way_gives_the_bits_of_the_plain_reference() {
    const CASES: usize = 40;
    for way in [ExchangePattern::Direct, ExchangePattern::Recursive] {
        let factory = HostFactory { way: Some(way), ..HostFactory::new() };
        for (at, hosts) in PLACEMENTS.into_iter().enumerate() {
            on_hosts_with(&factory, hosts, |rank| {
                // All ranks draw the same.
                let mut random = ChaCha8Rng::seed_from_u64(at as u64);
                for case in 0..CASES {
                    let drawn = Drawn::from(&mut random, rank.world);
                    drawn.make(rank, at * CASES + case, &format!("{way:?} {hosts} {drawn:?}"));
                }
            });
        }
    }
}

#[test]
fn ranks_that_gather_into_a_list_and_others_into_one_tensor_take_one_way() {
    // By itself too: eight ranks double what is short.
    for way in [None, Some(ExchangePattern::Direct), Some(ExchangePattern::Recursive)] {
        let factory = HostFactory { way, ..HostFactory::new() };
        on_hosts_with(&factory, "abcdefgh", |rank| {
            for lists in [0x55_u32, 0x0f, 0x80, 0xff] {
                let counts: Vec<usize> = (0..rank.world).map(|rank| rank * 700 % 1900).collect();
                let first = |of: usize| counts[..of].iter().sum();
                let all = Data::any(DType::U8, first(rank.world), u64::from(lists));
                let (mut source, mut whole) = (all.clone(), Data::zeros(DType::U8, first(rank.world)));
                let mut apart: Vec<_> = counts.iter().map(|count| Data::zeros(DType::U8, *count)).collect();
                let list: Vec<_> = apart.iter_mut().map(Data::tensor).collect();
                let input = source.tensor().slice(first(rank.rank), counts[rank.rank]);
                let has_list = lists >> rank.rank & 1 == 1;
                let outputs = match has_list {
                    true => Parts::List(&list),
                    false => Parts::Split { tensor: whole.tensor(), counts: &counts },
                };
                rank.call(&Call::AllGather { input, outputs }).unwrap();
                match has_list {
                    false => assert_eq!(whole, all),
                    true => apart.iter().enumerate().for_each(|(of, part)| {
                        assert_eq!(part.elements(0, counts[of]), all.elements(first(of), counts[of]));
                    }),
                }
            }
        });
    }
}

#[test]
fn chunks_of_a_long_reduction_are_halved_one_after_the_other() {
    let factory = HostFactory { way: Some(ExchangePattern::Recursive), ..HostFactory::new() };
    for (hosts, dtype) in [("abcd", DType::F32), ("abcd", DType::Bf16), ("aabbccdd", DType::F16)] {
        on_hosts_with(&factory, hosts, |rank| {
            let count = (9 << 20) / dtype.size() + 3;
            let inputs = inputs(dtype, count, rank.world, 5);
            let mut data = inputs[rank.rank].clone();
            let tensor = data.tensor();
            rank.call(&Call::AllReduce { input: tensor, output: tensor, op: ReduceOp::Avg }).unwrap();
            assert!(data == reduced(dtype, ReduceOp::Avg, &inputs, count), "{hosts} {dtype}");
        });
    }
}

#[test]
fn ranks_that_disagree_are_told_so_by_every_way() {
    let factory = HostFactory { way: Some(ExchangePattern::Recursive), ..HostFactory::new() };
    for length in [8, 40_000] {
        let errors = on_hosts_with(&factory, "abcd", |rank| {
            let mut data = Data::zeros(DType::F32, length + usize::from(rank.rank == 2));
            let tensor = data.tensor();
            let call = Call::AllReduce { input: tensor, output: tensor, op: ReduceOp::Sum };
            rank.call(&call).and_then(|_| rank.barrier()).unwrap_err()
        });
        for error in errors {
            assert!(matches!(error, Error::Mismatch { .. }), "{error}");
        }
    }
}
