//! Groups of some ranks.

use super::*;

#[test]
fn parts_are_sorted_and_named_by_their_ranks() {
    let (group, _) = group(2, 4, "cpu:done");
    let options = GroupOptions::default();
    let part = group.new_group(&[3, 0, 2], &options).unwrap().member().unwrap();
    assert_eq!((part.name(), part.rank(), part.ranks()), ("world/0,2-3#1", 1, &[0, 2, 3][..]));
    let again = group.new_group(&[0, 2, 3], &options).unwrap().member().unwrap();
    assert_eq!(again.name(), "world/0,2-3#2");
    let nested = again.new_group(&[1, 2], &options.clone().name("pair")).unwrap().member().unwrap();
    assert_eq!((nested.name(), nested.rank(), nested.ranks()), ("world/0,2-3#2/pair", 0, &[2, 3][..]));
    match group.new_group(&[0, 1], &options).unwrap() {
        Membership::NotAMember { group, rank } => assert_eq!((&*group, rank), ("world/0-1#1", 2)),
        Membership::Member(group) => panic!("{group:?}"),
    }
    let error = group.new_group(&[0, 1], &options).unwrap().member().unwrap_err();
    assert_eq!(error.to_string(), "rank 2 is not a member of group world/0-1#2");
}

#[test]
fn a_group_of_ranks_that_are_not_there_is_refused() {
    let (group, _) = group(0, 2, "cpu:done");
    for (ranks, problem) in [
        (vec![], "there are none"),
        (vec![0, 0], "rank 0 is there twice"),
        (vec![0, 2], "rank 2 is not one of 2 ranks"),
    ] {
        let error = group.new_group(&ranks, &GroupOptions::default()).unwrap_err().to_string();
        assert!(error.contains(problem) && error.contains(&format!("{ranks:?}")), "{error}");
    }
    let unknown = GroupOptions::default().backend("cpu:none".parse().unwrap());
    assert!(matches!(group.new_group(&[0], &unknown), Err(Error::Config(_))));
}

#[test]
fn a_part_has_the_groups_backends_and_deadline_or_its_own_and_the_group_keeps_its() {
    let (group, notes) = group(0, 2, "cpu:done,cuda:open");
    let group = group.with_deadline(Some(LONG * 2));
    let said = |group: &ProcessGroup| {
        let name = |kind| group.backend(kind).map(|name| name.to_string());
        (group.backend_config().to_string(), name(DeviceType::Cpu), name(DeviceType::Cuda))
    };
    let of = |config: &str, cpu: Option<&str>, cuda: Option<&str>| {
        (config.to_owned(), cpu.map(str::to_owned), cuda.map(str::to_owned))
    };
    let parent = of("cpu:done,cuda:open", Some("done"), Some("open"));
    let part = |options: &GroupOptions| group.new_group(&[0, 1], options).unwrap().member().unwrap();
    let heir = part(&GroupOptions::default());
    assert_eq!(said(&heir), parent);
    let own = part(&GroupOptions::default().backend("cpu:open".parse().unwrap()));
    assert_eq!(said(&own), of("cpu:open", Some("open"), None));
    // What it makes is its own configuration's, and a part of it inherits that.
    let before = notes.made.load(SeqCst);
    own.connect(DeviceType::Cpu).unwrap();
    assert_eq!((notes.made.load(SeqCst) - before, &**own.made(DeviceType::Cpu).unwrap().name()), (1, "open"));
    let nested = own.new_group(&[0], &GroupOptions::default()).unwrap().member().unwrap();
    assert_eq!(said(&nested), of("cpu:open", Some("open"), None));
    assert_eq!(said(&group), parent);
}

#[test]
fn a_split_sorts_ranks_by_color_and_key() {
    let store = Arc::<MemoryStore>::default();
    let seen = ranks(5, |rank| {
        let (group, _) = group_over(&store, rank, 5, "cpu:done");
        // Even ranks in reverse order; rank 3 in none.
        let color = (rank != 3).then_some((rank % 2) as u32);
        match group.split(color, -(rank as i64), &GroupOptions::default()).unwrap() {
            Membership::Member(part) => Some((part.name().to_owned(), part.rank(), part.ranks().to_vec())),
            Membership::NotAMember { .. } => None,
        }
    });
    let even = |rank| Some(("world/split 1/0".to_owned(), rank, vec![4, 2, 0]));
    let odd = Some(("world/split 1/1".to_owned(), 0, vec![1]));
    assert_eq!(seen, [even(2), odd, even(1), None, even(0)]);
    assert_eq!(store.list_keys().unwrap(), Vec::<String>::new());
}

#[test]
fn hundreds_of_groups_come_and_go_in_any_order() {
    let (group, _) = group(0, 2, "cpu:done");
    let mut parts = Vec::new();
    for number in 0..300 {
        let ranks: &[usize] = if number % 2 == 0 { &[0] } else { &[0, 1] };
        let part = group.new_group(ranks, &GroupOptions::default()).unwrap().member().unwrap();
        part.barrier(Device::Cpu).unwrap();
        parts.push(part);
        if number % 3 == 0 {
            parts.swap_remove(0).shutdown().unwrap();
        }
    }
    let watched = group.shared.family.groups().len();
    parts.clear();
    assert_eq!((watched, group.shared.family.groups().len()), (1 + 200, 1));
}

#[test]
fn what_a_split_leaves_that_has_failed_goes_with_the_last_rank() {
    for has_backend in [false, true] {
        let store = Arc::<MemoryStore>::default();
        let groups: Vec<_> = (0..3).map(|rank| group_over(&store, rank, 3, "cpu:open").0).collect();
        if has_backend {
            groups.iter().for_each(|group| group.connect(DeviceType::Cpu).unwrap());
        }
        let split = |group: &ProcessGroup| group.split(Some(0), 0, &GroupOptions::default());
        // Rank 2 never comes.
        std::thread::scope(|scope| {
            let waits: Vec<_> = groups[..2].iter().map(|group| scope.spawn(|| split(group))).collect();
            super::ends::until(|| {
                store.list_keys().unwrap().iter().filter(|key| key.contains("/first/")).count() == 2
            });
            groups.iter().for_each(|group| group.abort("on purpose"));
            for waits in waits {
                assert!(matches!(waits.join().unwrap(), Err(Error::Aborted { .. })));
            }
        });
        groups.into_iter().for_each(drop);
        assert_eq!(store.list_keys().unwrap(), Vec::<String>::new(), "{has_backend}");
    }
}
