//! How groups on NCCL end, in order and otherwise: aborts, deadlines, ranks that are gone, ranks that do not come.

use std::sync::Arc;
use std::time::{Duration, Instant};

use meshreduce_checks::in_process::BRIEF;
use meshreduce_checks::latch::Latch;
use meshreduce_checks::stream::{NonBlocking, RawStream};
use meshreduce_process_group::nccl_loader::{self, LoadError, TooOld};
use meshreduce_process_group::store::{PrefixStore, Store};
use meshreduce_process_group::{DeviceType, Error, NcclFailure, ProcessGroup, Work};
use meshreduce_tests::here;
use meshreduce_tests::on_nccl::{FAR, Numbers, builder, groups, on, open, start, with_stores};
use meshreduce_tests::rank_process::{Part, Stage, heard};

const COUNT: usize = 1000;

/// Waits for the end of a call that must fail.
fn failure(work: &Work) -> Error {
    work.wait(Some(FAR)).expect_err("a call that has failed")
}

#[test]
fn an_abort_from_another_thread_fails_what_is_pending_with_its_cause_on_this_rank_and_soon_on_the_others() {
    let (made, told) = (Latch::new(2), Latch::new(1));
    groups(
        2,
        |builder| builder,
        |group| {
            // Rank 1 may still be making its communicators when rank 0 has made its own.
            made.meet();
            let numbers = Numbers::new(group.rank(), COUNT, 1.0);
            let other = Numbers::new(group.rank(), COUNT, 1.0);
            if group.rank() == 0 {
                // Of neither does rank 1 know.
                let works =
                    [start(&group, &numbers.all_reduce()).unwrap(), start(&group, &other.recv(1)).unwrap()];
                std::thread::scope(|scope| {
                    let waiting: Vec<_> = works.iter().map(|work| scope.spawn(|| failure(work))).collect();
                    group.abort("a test says so");
                    for thread in waiting {
                        let error = thread.join().unwrap();
                        assert!(
                            matches!(&error, Error::Aborted { cause, .. } if cause == "a test says so"),
                            "{error}"
                        );
                    }
                });
                for error in
                    [start(&group, &numbers.all_reduce()).unwrap_err(), group.shutdown().unwrap_err()]
                {
                    assert!(matches!(error, Error::Aborted { .. }), "{error}");
                }
                // Streams and memory are as good as before.
                assert_eq!(numbers.read().len(), COUNT);
                told.come();
            } else {
                told.wait();
                // Rank 0 may have sent its share of the first one before it was aborted, and of no other.
                let sum = |_| start(&group, &numbers.all_reduce()).and_then(|work| work.wait(None)).err();
                let error = (0..2).find_map(sum).expect("a call that rank 0 does not make");
                assert!(error.to_string().contains("ncclRemoteError"), "{error}");
                assert!(group.shutdown().is_err());
            }
            drop(group);
            numbers.read();
        },
    );
}

#[test]
fn any_number_of_groups_is_aborted_in_any_order() {
    const GROUPS: usize = 6;
    let (made, begun) = (Latch::new(2), Latch::new(2));
    with_stores(2, |store, rank| {
        let all: Vec<ProcessGroup> = (0..GROUPS)
            .map(|number| {
                let prefix = format!("group {number}");
                let store = PrefixStore::new(&prefix, Arc::clone(&store));
                let group = builder(Arc::new(store.unwrap()), rank, 2).build().unwrap();
                group.connect(DeviceType::Cuda).unwrap();
                group
            })
            .collect();
        made.meet();
        // Each on a stream of its own waits for the other rank, which begins at the other end.
        let mut order: Vec<usize> = (0..GROUPS).collect();
        if rank == 1 {
            order.reverse();
        }
        let streams: Vec<_> = all.iter().map(|_| NonBlocking::new().unwrap()).collect();
        let numbers: Vec<_> = all.iter().map(|_| Numbers::new(rank, COUNT, 1.0)).collect();
        let half = &order[..GROUPS / 2];
        let works: Vec<_> = half
            .iter()
            .map(|&at| start(&on(&all[at], streams[at].raw()), &numbers[at].all_reduce()).unwrap())
            .collect();
        begun.meet();
        let start = Instant::now();
        order.iter().for_each(|at| all[*at].abort("enough"));
        assert!(start.elapsed() < FAR, "{:?}", start.elapsed());
        for work in works {
            assert!(matches!(failure(&work), Error::Aborted { .. }));
        }
        streams.iter().for_each(|stream| stream.synchronize().unwrap());
    });
}

#[test]
fn a_rank_that_does_not_call_is_named_when_the_deadline_is_over() {
    let over = Latch::new(1);
    groups(
        3,
        |builder| builder.deadline(Some(BRIEF)),
        |group| {
            let numbers = Numbers::new(group.rank(), COUNT, 1.0);
            start(&group, &numbers.all_reduce()).unwrap().wait(None).unwrap();
            if group.rank() == 1 {
                over.wait();
            } else {
                let error = failure(&start(&group, &numbers.all_reduce()).unwrap());
                if group.rank() == 0 {
                    over.come();
                }
                // Who is told first aborts, and the other may hear of that instead.
                match &error {
                    Error::Timeout { sequence: 2, missing, waited, .. } => {
                        assert_eq!(*missing, [1], "{error}");
                        assert!(*waited >= BRIEF, "{error}");
                    }
                    error => assert!(error.to_string().contains("ncclRemoteError"), "{error}"),
                }
            }
            // The device is free again.
            numbers.read();
            assert!(group.shutdown().is_err() || group.rank() == 1);
        },
    );
}

#[test]
fn a_message_that_does_not_come_ends_by_its_deadline_also_if_nobody_waits_for_it() {
    let over = Latch::new(2);
    groups(
        2,
        |builder| builder,
        |group| {
            let numbers = Numbers::new(group.rank(), COUNT, 1.0);
            if group.rank() == 0 {
                let late = start(&group.with_deadline(Some(BRIEF)), &numbers.recv(1)).unwrap();
                let end = Instant::now() + 10 * BRIEF;
                while group.made(DeviceType::Cuda).unwrap().error().is_none() {
                    assert!(Instant::now() < end, "nobody has noticed");
                    std::thread::sleep(Duration::from_millis(10));
                }
                let error = failure(&late);
                assert!(matches!(&error, Error::Timeout { missing, .. } if *missing == [1]), "{error}");
            }
            over.meet();
            drop(group);
            numbers.read();
        },
    );
}

#[test]
fn a_wait_that_ends_early_changes_nothing() {
    let late = Latch::new(1);
    groups(
        2,
        |builder| builder,
        |group| {
            let numbers = Numbers::new(group.rank(), COUNT, 1.0);
            if group.rank() == 1 {
                late.wait();
            }
            let work = start(&group, &numbers.all_reduce()).unwrap();
            if group.rank() == 0 {
                let early = work.wait(Some(Duration::from_millis(20)));
                assert!(matches!(early, Err(Error::StillRunning { .. })), "{early:?}");
                assert!(!work.is_completed().unwrap());
                late.come();
            }
            work.wait(None).unwrap();
            assert_eq!(numbers.read(), [2.0; COUNT]);
            group.shutdown().unwrap();
        },
    );
}

#[test]
fn a_rank_that_does_not_come_to_the_end_is_named() {
    let over = Latch::new(2);
    groups(
        2,
        |builder| builder.timeout(BRIEF),
        |group| {
            if group.rank() == 0 {
                let error = group.shutdown().unwrap_err();
                assert!(error.to_string().contains("rank 1 did not come"), "{error}");
                assert!(group.shutdown().is_ok(), "it is over");
            }
            over.meet();
        },
    );
}

#[test]
fn no_keys_stay_after_an_end_that_fails_when_the_last_rank_has_left() {
    for second_shuts_down in [true, false] {
        let (begun, over) = (Latch::new(2), Latch::new(2));
        with_stores(2, |store, rank| {
            let group = builder(Arc::clone(&store), rank, 2).deadline(Some(BRIEF)).build().unwrap();
            group.connect(DeviceType::Cuda).unwrap();
            let numbers = Numbers::new(rank, COUNT, 1.0);
            // Rank 1 never makes it.
            let work = (rank == 0).then(|| start(&group, &numbers.all_reduce()).unwrap());
            begun.meet();
            if rank == 0 || second_shuts_down {
                let errors = [Some(group.shutdown().unwrap_err()), work.as_ref().map(failure)];
                let is_named = |error: &Error| matches!(error, Error::Timeout { sequence: 1, missing, .. } if *missing == [1]);
                // (A rank that drops its group may be seen first.)
                let all_named = errors.iter().flatten().all(is_named);
                assert!(rank == 1 || !second_shuts_down || all_named, "{errors:?}");
            }
            drop(work);
            drop(group);
            numbers.read();
            over.meet();
            // Who was in the middle of the meeting at the end may still be told.
            let end = Instant::now() + FAR;
            while !store.list_keys().unwrap().is_empty() {
                assert!(Instant::now() < end, "{:?}", store.list_keys());
                std::thread::sleep(Duration::from_millis(10));
            }
        });
    }
}

#[test]
fn a_rank_that_drops_its_group_is_an_error_for_the_others() {
    let made = Latch::new(2);
    groups(
        2,
        |builder| builder,
        |group| {
            made.meet();
            let numbers = Numbers::new(group.rank(), COUNT, 1.0);
            if group.rank() == 1 {
                drop(group);
            } else {
                let error =
                    start(&group, &numbers.all_reduce()).and_then(|work| work.wait(None)).unwrap_err();
                assert!(error.to_string().contains("ncclRemoteError"), "{error}");
            }
            numbers.read();
        },
    );
}

#[test]
fn two_ranks_on_one_device_are_told_so() {
    let errors = with_stores(2, |store, rank| {
        let group = builder(store, rank, 2).cuda_device(0).build().unwrap();
        group.connect(DeviceType::Cuda).unwrap_err()
    });
    for error in errors {
        let Error::NotMade { source, .. } = &error else { panic!("{error:?}") };
        let failure = source.downcast_ref::<NcclFailure>();
        assert!(matches!(failure, Some(NcclFailure::SameDevice { ranks: (0, 1), .. })), "{error}");
    }
}

#[test]
fn a_rank_that_does_not_come_to_the_beginning_is_named() {
    with_stores(2, |store, rank| {
        if rank == 0 {
            let group = builder(store, rank, 2).timeout(Duration::from_millis(300)).build().unwrap();
            let error = group.connect(DeviceType::Cuda).unwrap_err().to_string();
            assert!(
                error.contains("backend nccl of group world cannot be made") && error.contains("rank 1"),
                "{error}"
            );
        }
    });
}

/// What an error says as a value of why a rank has no NCCL.
fn typed(error: &Error) -> String {
    let Error::NotMade { backend, source, .. } = error else { return format!("not typed: {error:?}") };
    assert_eq!(&**backend, "nccl");
    match source.downcast_ref::<NcclFailure>() {
        Some(NcclFailure::Nccl(nccl_loader::Error::Load(LoadError::Open { tried }))) => {
            let tried: Vec<String> =
                tried.iter().map(|attempt| attempt.library.display().to_string()).collect();
            format!("[tried {}]", tried.join(", "))
        }
        Some(NcclFailure::Nccl(nccl_loader::Error::TooOld(TooOld { found, needed }))) => {
            format!("[found {found}, needed {needed}]")
        }
        Some(NcclFailure::OnRank { rank, .. }) => format!("[rank {rank}'s]"),
        _ => format!("not typed: {error:?}"),
    }
}

/// Not a test of its own: what the tests below run as processes.
#[test]
fn rank() {
    let Some(part) = Part::of_this_process() else { return };
    open();
    let (rank, world_size) = (part.rank, part.world_size);
    let _context = meshreduce_tests::on_nccl::enter(rank);
    let store: Arc<dyn Store> = Arc::from(part.store);
    let group = builder(Arc::clone(&store), rank, world_size).build().unwrap();
    let say = |text: &str| println!("rank {rank} says: {text}");
    if let Err(error) = group.connect(DeviceType::Cuda) {
        return say(&format!("{error} {}", typed(&error)));
    }
    // All ranks but the one that dies have come so far.
    let survivors: Vec<usize> = (0..world_size).filter(|rank| *rank != 1).collect();
    let all_survivors = |place: &str| {
        let key = |rank: usize| format!("{place} {rank}");
        if rank != 1 {
            store.set(&key(rank), b"").unwrap();
        }
        for rank in &survivors {
            store.get(&key(*rank), FAR).unwrap();
        }
    };
    let numbers = Numbers::new(rank, COUNT, 1.0);
    let sum = || start(&group, &numbers.all_reduce()).and_then(|work| work.wait(None));
    sum().unwrap();
    assert_eq!(numbers.read(), [world_size as f32; COUNT]);
    if part.name == "work" {
        group.shutdown().unwrap();
        return say("done");
    }
    all_survivors("before");
    if rank == 1 {
        std::process::abort();
    }
    let error = match part.name.as_str() {
        "die" => sum(),
        _ => start(&group, &numbers.recv(1)).and_then(|work| work.wait(None)),
    };
    let error = error.unwrap_err();
    let Error::RankDied { rank: dead, .. } = &error else { panic!("{error:?}") };
    say(&format!("rank {dead} died"));
    // Whoever is told first must not be dead itself before the others are.
    all_survivors("after");
}

#[test]
fn ranks_may_be_processes() {
    for stage in [Stage::new(here!("rank"), 3), Stage::over_tcp(here!("rank"), 3)] {
        let ranks: Vec<_> = (0..3).map(|rank| stage.start(rank, "work")).collect();
        for rank in ranks {
            assert_eq!(heard(rank), (vec!["done".to_owned()], true));
        }
        assert_eq!(stage.keys(), [] as [String; 0]);
    }
}

#[test]
fn a_rank_whose_process_ends_is_named() {
    for (part, world_size) in [("die", 3), ("die with a message under way", 2)] {
        let stage = Stage::new(here!("rank"), world_size);
        let ranks: Vec<_> = (0..world_size).map(|rank| stage.start(rank, part)).collect();
        for (rank, child) in ranks.into_iter().enumerate() {
            match (rank, heard(child)) {
                (1, (_, well)) => assert!(!well),
                (_, heard) => assert_eq!(heard, (vec!["rank 1 died".to_owned()], true)),
            }
        }
    }
}

#[test]
fn without_nccl_all_ranks_say_what_was_tried_or_who_lacks_it() {
    let stage = Stage::new(here!("rank"), 2);
    let nowhere = "/nowhere/libnccl.so.2";
    let mut without = stage.command_as(0, "work");
    let without = without.env("MESHREDUCE_NCCL", nowhere).spawn().unwrap();
    let other = stage.start(1, "work");
    let (said, _) = heard(without);
    assert!(said[0].contains("cannot be made: cannot open NCCL: /nowhere/libnccl.so.2: "), "{said:?}");
    assert!(said[0].ends_with("[tried /nowhere/libnccl.so.2]"), "{said:?}");
    let (said, _) = heard(other);
    assert!(said[0].contains("rank 0 cannot use NCCL: cannot open NCCL: /nowhere/libnccl.so.2"), "{said:?}");
    assert!(said[0].ends_with("[rank 0's]"), "{said:?}");
}

/// A library with all functions that every NCCL has, that says it is 2.17.1 and can do nothing.
fn old_nccl(folder: &std::path::Path) -> std::path::PathBuf {
    let functions = meshreduce_process_group::nccl_loader::functions();
    let mut source = String::from("#![allow(non_snake_case, improper_ctypes_definitions)]\n");
    for function in
        functions.iter().filter(|function| function.required() && function.name != "ncclGetVersion")
    {
        source += &format!("#[unsafe(no_mangle)] pub extern \"C\" fn {}() -> i32 {{ 3 }}\n", function.name);
    }
    source += "#[unsafe(no_mangle)] pub extern \"C\" fn ncclGetVersion(version: *mut i32) -> i32 {\n";
    source += "    unsafe { *version = 21701 };\n    0\n}\n";
    let (file, library) = (folder.join("old.rs"), folder.join("libnccl.so.2"));
    std::fs::write(&file, source).unwrap();
    let compiler = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let mut compile = std::process::Command::new(compiler);
    compile
        .args(["--edition", "2024", "--crate-type", "cdylib", "-C", "panic=abort", "-o"])
        .arg(&library)
        .arg(&file);
    assert!(compile.status().unwrap().success());
    library
}

#[test]
fn an_old_nccl_is_refused_with_both_versions() {
    let folder = tempfile::tempdir().unwrap();
    let old = old_nccl(folder.path());
    let stage = Stage::new(here!("rank"), 2);
    let mut with_old = stage.command_as(1, "work");
    let with_old = with_old.env("MESHREDUCE_NCCL", old).spawn().unwrap();
    let other = stage.start(0, "work");
    let words = "NCCL 2.18.0 or later is needed; this is 2.17.1";
    let (said, _) = heard(with_old);
    assert!(said[0].ends_with(&format!("cannot be made: {words} [found 2.17.1, needed 2.18.0]")), "{said:?}");
    let (said, _) = heard(other);
    assert!(said[0].ends_with(&format!("rank 1 cannot use NCCL: {words} [rank 1's]")), "{said:?}");
}
