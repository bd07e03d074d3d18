//! Which entries of two ports' GID tables a connection goes between.
//!
//! A table has an entry for every address of the port and for every version of the protocol, in an order that depends on when
//! addresses came and went, so no index means anything from one boot to the next. Over Ethernet only RoCE v2 is used (v1 is not
//! routed and its packets are another protocol). Of its entries an IPv4 address comes first, then a global IPv6 one; a link-local
//! one is the last resort, because it is there on every port and says nothing about which ports reach one another.
#![forbid(unsafe_code)]

use std::fmt;

use meshreduce_verbs_loader::{Gid, GidEntry, GidType};

/// How far an address reaches. In the order of preference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Family {
    /// An IPv4 address, mapped.
    V4,
    /// A global IPv6 address.
    V6,
    /// An address that is good on its link alone.
    LinkLocal,
}

impl Family {
    /// The family of a RoCE v2 address; `None` if it is none.
    pub(crate) fn of(gid: &Gid) -> Option<Self> {
        match gid.0 {
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, _, _, _] => match a {
                0 => None,
                // 169.254.0.0/16 is as link-local as fe80::/10, and is there when nobody has set up anything.
                169 if gid.0[13] == 254 => Some(Self::LinkLocal),
                _ => Some(Self::V4),
            },
            [0xfe, second, ..] if second & 0xc0 == 0x80 => Some(Self::LinkLocal),
            raw if raw == [0; 16] => None,
            _ => Some(Self::V6),
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
            Self::LinkLocal => "link-local",
        })
    }
}

/// An address of a port, and where it stands in the port's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Address {
    /// Its index in the table of its port.
    pub(crate) index: u8,
    /// The address.
    pub(crate) gid: Gid,
}

/// How many addresses of a port are told to others.
pub(crate) const MOST: usize = 8;

/// The addresses of a RoCE port that a connection can use, the preferred ones first, at most [`MOST`] of them.
pub(crate) fn roce_addresses(table: &[GidEntry]) -> Vec<Address> {
    let mut found: Vec<(Family, Address)> = Vec::new();
    for entry in table.iter().filter(|entry| entry.kind == GidType::RoceV2) {
        // A queue pair's address has a byte for the index.
        let (Some(family), Ok(index)) = (Family::of(&entry.gid), u8::try_from(entry.index)) else { continue };
        if found.iter().all(|(_, address)| address.gid != entry.gid) {
            found.push((family, Address { index, gid: entry.gid }));
        }
    }
    found.sort_by_key(|(family, address)| (*family, address.index));
    found.into_iter().map(|(_, address)| address).take(MOST).collect()
}

/// The address of an InfiniBand port: the first of its table, which the subnet manager has set.
pub(crate) fn ib_address(table: &[GidEntry]) -> Option<Address> {
    let entry = table.iter().filter(|entry| entry.gid.0 != [0; 16]).min_by_key(|entry| entry.index)?;
    Some(Address { index: u8::try_from(entry.index).ok()?, gid: entry.gid })
}

/// Whether an address that others were told stands at this entry of its port's table.
pub(crate) fn stands_at(entry: &GidEntry, gid: &Gid, ethernet: bool) -> bool {
    entry.gid == *gid && (!ethernet || entry.kind == GidType::RoceV2)
}

/// Where an address that others were told stands in its port's table now. `None`: it has gone.
pub(crate) fn index_of(gid: &Gid, table: &[GidEntry], ethernet: bool) -> Option<u8> {
    let entry = table.iter().find(|entry| stands_at(entry, gid, ethernet))?;
    u8::try_from(entry.index).ok()
}

/// The entry of a port's GID table that other processes are told first: the port's address. `None`: no connection can be made by it.
///
/// Over Ethernet, what two ports connect between is chosen from all the RoCE v2 addresses of both; it is this one where the other
/// side has one like it.
pub fn preferred(table: &[GidEntry], ethernet: bool) -> Option<(u8, Gid)> {
    let address = if ethernet { roce_addresses(table).first().copied() } else { ib_address(table) };
    address.map(|Address { index, gid }| (index, gid))
}

/// The addresses, of the same family, between which two RoCE ports talk: of the best family that both have, those two that are
/// alike for longest, because they are most likely to be in one subnet.
pub(crate) fn between<'a>(local: &'a [Address], remote: &'a [Address]) -> Option<(&'a Address, &'a Address)> {
    let pairs = local.iter().flat_map(|here| remote.iter().map(move |there| (here, there)));
    let alike = pairs.filter_map(|(here, there)| {
        let (family, other) = (Family::of(&here.gid)?, Family::of(&there.gid)?);
        (family == other).then(|| (family, 128 - shared_bits(&here.gid, &there.gid), here, there))
    });
    // Ties go to the lowest indices, here first: the side that connects chooses for both, so that the sides need not agree.
    alike
        .min_by_key(|(family, apart, here, there)| (*family, *apart, here.index, there.index))
        .map(|(_, _, here, there)| (here, there))
}

/// How many leading bits two addresses share.
pub(crate) fn shared_bits(a: &Gid, b: &Gid) -> u32 {
    (u128::from_be_bytes(a.0) ^ u128::from_be_bytes(b.0)).leading_zeros()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn v4(a: u8, b: u8, c: u8, d: u8) -> Gid {
        Gid([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d])
    }

    fn v6(first: u8, second: u8, last: u8) -> Gid {
        let mut raw = [0; 16];
        (raw[0], raw[1], raw[15]) = (first, second, last);
        Gid(raw)
    }

    fn entry(index: u32, gid: Gid, kind: GidType) -> GidEntry {
        GidEntry { index, gid, kind, netdev: None }
    }

    /// The table of a port with two addresses, as the kernel fills it: every address in either version, link-local first.
    fn table() -> Vec<GidEntry> {
        let gids = [v6(0xfe, 0x80, 1), v6(0x20, 0x01, 1), v4(10, 0, 1, 7), Gid([0; 16])];
        let both = |gid| [(gid, GidType::RoceV1), (gid, GidType::RoceV2)];
        let rows = gids.into_iter().flat_map(both).enumerate();
        rows.map(|(index, (gid, kind))| entry(index as u32, gid, kind)).collect()
    }

    #[test]
    fn an_ipv4_address_of_the_second_version_comes_first_wherever_it_stands() {
        let found = roce_addresses(&table());
        assert_eq!(found.iter().map(|address| address.index).collect::<Vec<_>>(), [5, 3, 1]);
        assert_eq!(found[0].gid, v4(10, 0, 1, 7));
    }

    #[test]
    fn link_local_addresses_are_the_last_resort_of_both_families() {
        for gid in [v6(0xfe, 0x80, 1), v6(0xfe, 0xbf, 1), v4(169, 254, 3, 4)] {
            assert_eq!(Family::of(&gid), Some(Family::LinkLocal), "{gid}");
        }
        assert_eq!(Family::of(&v6(0xfe, 0xc0, 1)), Some(Family::V6));
        assert_eq!(Family::of(&v4(169, 253, 3, 4)), Some(Family::V4));
        assert_eq!(Family::of(&v4(0, 0, 0, 0)), None);
    }

    #[test]
    fn a_port_that_speaks_the_first_version_alone_has_no_address() {
        let old: Vec<_> = table().into_iter().filter(|entry| entry.kind == GidType::RoceV1).collect();
        assert!(roce_addresses(&old).is_empty());
    }

    #[test]
    fn an_infiniband_port_has_its_first_address_and_an_empty_table_none() {
        let ib = [entry(1, v6(0xfe, 0x80, 9), GidType::Ib), entry(0, v6(0xfe, 0x80, 3), GidType::Ib)];
        assert_eq!(ib_address(&ib).unwrap().gid, v6(0xfe, 0x80, 3));
        assert_eq!(ib_address(&[entry(0, Gid([0; 16]), GidType::Ib)]), None);
    }

    #[test]
    fn two_ports_talk_in_the_subnet_that_both_are_in() {
        let at = |index, gid| Address { index, gid };
        let here = [at(3, v4(10, 0, 1, 7)), at(5, v4(192, 168, 9, 7))];
        let there = [at(2, v4(192, 168, 9, 8)), at(7, v4(172, 16, 0, 1)), at(9, v6(0x20, 1, 1))];
        let (a, b) = between(&here, &there).unwrap();
        assert_eq!((a.index, b.index), (5, 2));
        assert_eq!(between(&here, &there[2..]), None, "no family is common");
    }

    #[test]
    fn an_address_that_has_moved_is_found_and_one_that_has_gone_is_not() {
        let told = roce_addresses(&table())[0];
        // An interface went down and came back: its entries are free, then filled anew by whoever comes first.
        let mut changed = table();
        changed[5] = entry(5, v4(10, 0, 9, 9), GidType::RoceV2);
        assert_eq!(index_of(&told.gid, &changed, true), None, "the first version's entry is none");
        changed.push(entry(9, told.gid, GidType::RoceV2));
        assert!(!stands_at(&changed[5], &told.gid, true));
        assert_eq!(index_of(&told.gid, &changed, true), Some(9));
        changed[8].index = 256;
        assert_eq!(index_of(&told.gid, &changed, true), None, "a queue pair cannot name it");
        let ib = [entry(0, v6(0xfe, 0x80, 3), GidType::Ib)];
        assert_eq!(index_of(&ib[0].gid, &ib, false), Some(0));
    }

    prop_compose! {
        fn any_table()(rows in prop::collection::vec((any::<[u8; 4]>(), 0..5_u8, 0..3_u8), 0..12)) -> Vec<GidEntry> {
            let kinds = [GidType::Ib, GidType::RoceV1, GidType::RoceV2];
            rows.into_iter().enumerate().map(|(index, ([a, b, c, d], family, kind))| {
                let gid = match family {
                    0 => v4(a, b, c, d),
                    1 => v6(0xfe, 0x80, d),
                    2 => v6(0x20 | (a & 0xf), b, d),
                    3 => v4(169, 254, c, d),
                    _ => Gid([0; 16]),
                };
                entry(index as u32, gid, kinds[kind as usize])
            }).collect()
        }
    }

    proptest! {
        #[test]
        fn what_is_found_stands_in_the_table_and_nothing_better_was_passed_over(table in any_table()) {
            let found = roce_addresses(&table);
            for address in &found {
                let row = &table[address.index as usize];
                prop_assert!(row.gid == address.gid && row.kind == GidType::RoceV2);
            }
            let family = |address: &Address| Family::of(&address.gid).unwrap();
            prop_assert!(found.is_sorted_by_key(family));
            let usable = table.iter().filter(|row| row.kind == GidType::RoceV2 && Family::of(&row.gid).is_some());
            let best = usable.clone().filter_map(|row| Family::of(&row.gid)).min();
            prop_assert_eq!(found.first().map(family), best);
            let mut all: Vec<_> = usable.map(|row| row.gid.0).collect();
            all.sort();
            all.dedup();
            prop_assert_eq!(found.len(), all.len().min(MOST));
        }

        #[test]
        fn the_two_ends_are_of_one_family_the_best_that_both_have(a in any_table(), b in any_table()) {
            let (here, there) = (roce_addresses(&a), roce_addresses(&b));
            let families = |all: &[Address]| all.iter().filter_map(|one| Family::of(&one.gid)).collect::<Vec<_>>();
            let common = families(&here).into_iter().filter(|one| families(&there).contains(one)).min();
            match between(&here, &there) {
                None => prop_assert_eq!(common, None),
                Some((x, y)) => {
                    prop_assert_eq!(Family::of(&x.gid), common);
                    prop_assert_eq!(Family::of(&y.gid), common);
                }
            }
        }
    }
}
