//! Regions of host memory between two contexts, by `basic` over every kind of link, and by `xth`.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use meshreduce_channels::{
    Basic, CounterDescriptor, Error, HostMemory, Links, Page, Pages, Region, RegionDescriptor, Registry, Xth,
};
use support::{LINKS, SOON, Side, bytes, context, pair_of};

/// Few and short slots, so that batches wait for them.
fn registry() -> Registry {
    let mut registry = Registry::empty();
    registry.register(Basic::with_slots(3, 4096).unwrap()).unwrap();
    registry
}

fn pairs() -> impl Iterator<Item = (&'static str, Side, Side)> {
    let mut within = Registry::empty();
    within.register(Xth).unwrap();
    let all = LINKS.map(|(name, links)| (name, registry(), links));
    all.into_iter().chain([("xth", within, LINKS[0].1)]).map(|(name, registry, links)| {
        let (owner, writer) = pair_of(&registry, links);
        (name, owner, writer)
    })
}

/// As whoever is told of them has them.
fn told(region: &RegionDescriptor, counter: &CounterDescriptor) -> (RegionDescriptor, CounterDescriptor) {
    let region = RegionDescriptor::from_bytes(&region.to_bytes()).unwrap();
    (region, CounterDescriptor::from_bytes(&counter.to_bytes()).unwrap())
}

fn close(region: Region<Vec<u8>>) -> Vec<u8> {
    region.close().wait(SOON).unwrap_or_else(|_| panic!("nobody lets go of the region"))
}

#[test]
fn pages_rows_and_stretches_arrive_byte_for_byte() {
    const BYTES: usize = 300_000;
    for (name, owner, writer) in pairs() {
        let region = owner.context.register(vec![0_u8; BYTES]).unwrap();
        let counter = owner.endpoint.counter();
        let (to, counter_there) = told(&region.descriptor(), &counter.descriptor());
        let source = bytes(1, BYTES);
        let own = writer.context.register(source.clone()).unwrap();
        let mut expected = vec![0_u8; BYTES];
        // Blocks in every place once, rows further apart than they are long, and a stretch longer than all slots.
        let blocks: Vec<Page> =
            (0..1000).map(|block| Page::new(block * 100, block * 7919 % 1000 * 100, 100)).collect();
        let rows: Vec<Page> =
            (0..50).map(|row| Page::new(150_000 + row * 300, 120_001 + row * 1000, 300)).collect();
        let stretch = vec![Page::new(3, 190_000, 100_000)];
        for (at, pages) in [blocks, rows, stretch].into_iter().enumerate() {
            for page in &pages {
                let (from, to, bytes) = (page.from as usize, page.to as usize, page.bytes as usize);
                expected[to..to + bytes].copy_from_slice(&source[from..from + bytes]);
            }
            let total: u64 = pages.iter().map(|page| page.bytes).sum();
            let write = writer.endpoint.write(&own, &to, pages, &counter_there, None);
            assert_eq!(write.wait(SOON).unwrap(), total, "{name}");
            assert_eq!(counter.wait(at as u64 + 1, SOON).unwrap(), at as u64 + 1);
        }
        assert_eq!(close(own), source);
        assert!(close(region) == expected, "{name}");
    }
}

#[test]
fn batches_count_in_order_and_one_without_bytes_counts_too() {
    for (name, owner, writer) in pairs() {
        let region = owner.context.register(vec![0_u8; 10_000]).unwrap();
        let counter = owner.endpoint.counter();
        let (to, counter_there) = told(&region.descriptor(), &counter.descriptor());
        let own = writer.context.register(bytes(2, 10_000)).unwrap();
        let writes: Vec<_> = (0..200_u64)
            .map(|at| {
                let pages = if at % 10 == 9 { Pages::default() } else { Pages::range(at, at, 9000) };
                writer.endpoint.write(&own, &to, pages, &counter_there, None)
            })
            .collect();
        assert_eq!(counter.wait(200, SOON).unwrap(), 200, "{name}");
        assert_eq!(counter.bytes(), 180 * 9000);
        assert!(writes.into_iter().all(|write| write.wait(SOON).is_ok()));
        // Sends that nobody receives hold up no batch.
        let unmatched = writer.endpoint.send(bytes(3, 1 << 20), meshreduce_channels::Device::Cpu, None);
        writer.endpoint.write(&own, &to, Pages::range(0, 0, 9000), &counter_there, None).wait(SOON).unwrap();
        assert!(!unmatched.poll().unwrap());
    }
}

#[test]
fn what_is_wrong_is_refused_and_later_batches_go() {
    for (name, owner, writer) in pairs() {
        let region = owner.context.register(vec![7_u8; 5000]).unwrap();
        let (good, bad) = (owner.endpoint.counter(), owner.endpoint.counter());
        let (to, good_there) = told(&region.descriptor(), &good.descriptor());
        let (_, bad_there) = told(&region.descriptor(), &bad.descriptor());
        let own = writer.context.register(vec![1_u8; 50_000]).unwrap();
        // What a descriptor says that is greater than the region, its owner knows better.
        let mut lying = to.to_bytes();
        lying[8..16].copy_from_slice(&40_000_u64.to_le_bytes());
        let lying = RegionDescriptor::from_bytes(&lying).unwrap();
        let write = writer.endpoint.write(&own, &lying, Pages::range(0, 0, 40_000), &bad_there, None);
        let error = write.wait(SOON).unwrap_err();
        match &error {
            // The first part of the page that is not in the region.
            Error::OutOfRegion { whose, offset, length, bytes: 5000 } => {
                assert_eq!(whose, writer.endpoint.peer_name(), "{name}");
                assert!(*offset <= 5000 && offset + length > 5000, "{name}: {error}");
            }
            other => panic!("{name}: {other}"),
        }
        assert!(matches!(bad.wait(1, SOON), Err(Error::CountUnreachable { batches: 0, .. })));
        // One that was given up.
        let other = owner.context.register(vec![0_u8; 5000]).unwrap();
        let (gone, _) = told(&other.descriptor(), &bad.descriptor());
        close(other);
        let write = writer.endpoint.write(&own, &gone, Pages::range(0, 0, 5000), &bad_there, None);
        assert!(matches!(write.wait(SOON), Err(Error::RegionGone { .. })), "{name}");
        writer.endpoint.write(&own, &to, Pages::range(0, 4000, 1000), &good_there, None).wait(SOON).unwrap();
        assert_eq!(good.wait(1, SOON).unwrap(), 1);
        let memory = close(region);
        assert!(memory[4000..] == [1; 1000], "{name}");
    }
}

#[test]
fn a_batch_that_is_refused_before_it_begins_fails_the_counter_that_waits_for_it() {
    for (name, owner, writer) in pairs() {
        let region = owner.context.register(vec![0_u8; 5000]).unwrap();
        let own = writer.context.register(vec![1_u8; 5000]).unwrap();
        let others = context(&registry(), Links::default(), "another").register(vec![1_u8; 5000]).unwrap();
        let most = Pages::MOST as u64;
        let refused = [
            ("a page beyond its region", &own, Pages::range(4999, 0, 2)),
            ("a page beyond the other region", &own, Pages::range(0, 4999, 2)),
            ("too many pages", &own, Pages::strided(0, 0, 0, 0, 1, most + 1)),
            ("another context's region", &others, Pages::range(0, 0, 1)),
        ];
        for (what, from, pages) in refused {
            let counter = owner.endpoint.counter();
            let (to, there) = told(&region.descriptor(), &counter.descriptor());
            let error = writer.endpoint.write(from, &to, pages, &there, None).wait(SOON).unwrap_err();
            match counter.wait(1, SOON) {
                Err(Error::CountUnreachable { batches: 0, why, .. }) => {
                    assert!(why.to_string().contains(&error.to_string()), "{name}, {what}: {why}");
                }
                other => panic!("{name}, {what}: {other:?}"),
            }
        }
        // The endpoint, and other counters, go on.
        let counter = owner.endpoint.counter();
        let (to, there) = told(&region.descriptor(), &counter.descriptor());
        writer.endpoint.write(&own, &to, Pages::range(0, 0, 5000), &there, None).wait(SOON).unwrap();
        assert_eq!(counter.wait(1, SOON).unwrap(), 1, "{name}");
    }
}

#[test]
fn a_dropped_batch_and_one_whose_owner_goes_are_errors_that_say_so() {
    for (name, owner, writer) in pairs() {
        let region = owner.context.register(vec![0_u8; 1 << 20]).unwrap();
        let counter = owner.endpoint.counter();
        let (to, counter_there) = told(&region.descriptor(), &counter.descriptor());
        let own = writer.context.register(bytes(4, 1 << 20)).unwrap();
        let write = || writer.endpoint.write(&own, &to, Pages::range(0, 0, 1 << 20), &counter_there, None);
        let dropped = write();
        dropped.abort();
        // It may have been whole by then.
        match dropped.wait(SOON) {
            Ok(_) | Err(Error::Dropped) => {}
            Err(other) => panic!("{name}: {other}"),
        }
        let (endpoint, under_way) = (owner.endpoint, [write(), write(), write()]);
        endpoint.close();
        for write in under_way {
            match write.wait(SOON) {
                Ok(_) | Err(Error::ClosedByPeer { .. }) => {}
                Err(other) => panic!("{name}: {other}"),
            }
        }
        assert!(matches!(counter.wait(100, SOON), Err(Error::CountUnreachable { .. })));
        endpoint.join(Duration::from_secs(20)).unwrap();
        close(own);
        close(region);
    }
}

#[test]
fn a_counter_of_another_endpoint_or_of_this_side_is_refused_and_an_empty_region_too() {
    for (name, owner, writer) in pairs() {
        let region = owner.context.register(vec![0_u8; 10]).unwrap();
        let own = writer.context.register(vec![1_u8; 10]).unwrap();
        let (other_owner, _other_writer) = pair_of(&registry(), LINKS[0].1);
        let (theirs, others, mine) =
            (owner.endpoint.counter(), other_owner.endpoint.counter(), writer.endpoint.counter());
        for wrong in [&others, &mine] {
            let write = writer.endpoint.write(
                &own,
                &region.descriptor(),
                Pages::range(0, 0, 10),
                &wrong.descriptor(),
                None,
            );
            let error = write.wait(SOON).unwrap_err();
            assert!(matches!(error, Error::OtherCounter { .. }), "{name}: {error}");
        }
        let write = writer.endpoint.write(
            &own,
            &region.descriptor(),
            Pages::range(0, 0, 10),
            &theirs.descriptor(),
            None,
        );
        write.wait(SOON).unwrap();
        assert_eq!(theirs.wait(1, SOON).unwrap(), 1, "{name}");
        let failed = owner.context.register(Vec::new()).unwrap_err();
        assert!(failed.to_string().contains("it is empty"), "{failed}");
    }
}

#[test]
fn a_region_is_read_and_written_by_its_owner_while_peers_write_to_it() {
    const BYTES: usize = 100_000;
    for (name, owner, writer) in pairs() {
        let region = owner.context.register(HostMemory::new(BYTES).unwrap()).unwrap();
        let own = writer.context.register(HostMemory::new(BYTES).unwrap()).unwrap();
        let counter = owner.endpoint.counter();
        let (to, there) = told(&region.descriptor(), &counter.descriptor());
        let mut found = vec![0; BYTES];
        for round in 1..=20_u8 {
            own.write(0, &[round; BYTES]).unwrap();
            let write = writer.endpoint.write(&own, &to, Pages::range(0, 0, BYTES as u64), &there, None);
            // Meanwhile every byte is what it was or what it becomes.
            region.read(0, &mut found).unwrap();
            assert!(found.iter().all(|byte| [round - 1, round].contains(byte)), "{name}, round {round}");
            assert_eq!(counter.wait(round.into(), SOON).unwrap(), u64::from(round));
            region.read(0, &mut found).unwrap();
            assert!(found.iter().all(|byte| *byte == round), "{name}, round {round}");
            write.wait(SOON).unwrap();
        }
        region.write(BYTES as u64 - 3, &[1, 2, 3]).unwrap();
        for (offset, length) in [(BYTES as u64, 1), (1, BYTES), (u64::MAX, 2)] {
            let error = region.read(offset, &mut found[..length]).unwrap_err();
            match &error {
                Error::OutOfRegion { whose, offset: at, bytes, .. } => {
                    assert_eq!((&**whose, *at, *bytes), ("this side", offset, BYTES as u64));
                }
                other => panic!("{other}"),
            }
            assert!(region.write(offset, &found[..length]).is_err());
        }
        let memory = region.close().wait(SOON).unwrap_or_else(|_| panic!("nobody lets go of the region"));
        assert_eq!((memory[0], &memory[BYTES - 3..]), (20, &[1, 2, 3][..]), "{name}");
    }
}
