//! Which kind of channel serves a pair of devices.
//!
//! A pure function of what both sides offer, so that each can compute it for itself: the first kind, in the own order, that both
//! offer for their device of the pair and whose descriptors can communicate. Where both sides have the same order, they come to
//! the same choice.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use meshreduce_device::Device;

use crate::channel::{Descriptor, Pair, Reason};

/// A kind of channel, as one side offers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Offered {
    pub(crate) name: String,
    pub(crate) descriptors: BTreeMap<Device, Descriptor>,
}

/// Whether two descriptors of a kind can communicate: the own one, the other side's.
pub(crate) type Judge<'a> = dyn Fn(&str, &[u8], &[u8]) -> Result<(), Reason> + 'a;

/// What one side offers, its favourites first, and what it knows of the rest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Offers {
    pub(crate) devices: Vec<Device>,
    pub(crate) kinds: Vec<Offered>,
    /// Kinds that are not viable there, or not allowed, with the reason.
    pub(crate) without: Vec<(String, String)>,
}

impl Offers {
    fn kind(&self, name: &str) -> Option<&Offered> {
        self.kinds.iter().find(|kind| kind.name == name)
    }

    /// Why a kind is not among these.
    fn why_without(&self, name: &str) -> String {
        let known = self.without.iter().find(|(without, _)| without == name);
        known.map_or_else(|| "it is not known".to_owned(), |(_, reason)| reason.clone())
    }
}

/// The name of the kind that serves the pair.
pub(crate) fn choose<'a>(here: &'a Offers, there: &Offers, pair: Pair, judge: &Judge<'_>) -> Option<&'a str> {
    let serves = |kind: &&Offered| verdict(kind, there, pair, judge).is_ok();
    here.kinds.iter().find(serves).map(|kind| kind.name.as_str())
}

/// Whether a kind of this side can serve the pair.
fn verdict(kind: &Offered, there: &Offers, pair: Pair, judge: &Judge<'_>) -> Result<(), Reason> {
    let Some(local) = kind.descriptors.get(&pair.local) else {
        return Err(format!("it does not serve {} here", pair.local).into());
    };
    let Some(theirs) = there.kind(&kind.name) else {
        return Err(format!("not viable there: {}", there.why_without(&kind.name)).into());
    };
    let Some(remote) = theirs.descriptors.get(&pair.remote) else {
        return Err(format!("it does not serve {} there", pair.remote).into());
    };
    judge(&kind.name, local, remote)
}

/// Why no kind serves the pair, for people: every kind that one of the sides knows, and its reason, a line each.
pub(crate) fn reasons(here: &Offers, there: &Offers, pair: Pair, judge: &Judge<'_>) -> String {
    let mut all = Vec::new();
    for kind in &here.kinds {
        if let Err(reason) = verdict(kind, there, pair, judge) {
            all.push(format!("{}: {reason}", kind.name));
        }
    }
    all.extend(here.without.iter().map(|(name, reason)| format!("{name}: not viable here: {reason}")));
    let is_known =
        |name: &String| here.kind(name).is_some() || here.without.iter().any(|(own, _)| own == name);
    let others = there.kinds.iter().map(|kind| &kind.name).filter(|name| !is_known(name));
    all.extend(others.map(|name| format!("{name}: it is known there only")));
    if all.is_empty() {
        return "there are no channels".to_owned();
    }
    // A reason is others' text.
    let lines = all.into_iter().map(|reason| reason.lines().collect::<Vec<_>>().join(" "));
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NAMES: [&str; 4] = ["xth", "ipc", "gdr", "basic"];

    /// Descriptors can communicate if they are of the same group.
    fn same_group(_: &str, local: &[u8], remote: &[u8]) -> Result<(), Reason> {
        if local == remote { Ok(()) } else { Err("another group".into()) }
    }

    fn offers() -> impl Strategy<Value = Offers> {
        let devices = prop::collection::btree_set(0_u32..4, 1..4);
        let kinds = prop::collection::btree_map(
            0_usize..4,
            prop::collection::vec(prop::option::of(0_u8..2), 4),
            0..5,
        );
        (devices, kinds).prop_map(|(devices, kinds)| {
            let devices: Vec<_> = devices.into_iter().map(Device::Cuda).collect();
            let kind = |(name, groups): (usize, Vec<Option<u8>>)| {
                let served = devices.iter().zip(groups);
                let descriptors =
                    served.filter_map(|(device, group)| Some((*device, vec![group?]))).collect();
                Offered { name: NAMES[name].to_owned(), descriptors }
            };
            Offers {
                kinds: kinds.into_iter().map(kind).collect(),
                devices: devices.clone(),
                without: Vec::new(),
            }
        })
    }

    fn turned(pair: Pair) -> Pair {
        Pair { local: pair.remote, remote: pair.local }
    }

    proptest! {
        #[test]
        fn both_sides_choose_the_same(one in offers(), other in offers()) {
            for local in &one.devices {
                for remote in &other.devices {
                    let pair = Pair { local: *local, remote: *remote };
                    let here = choose(&one, &other, pair, &same_group);
                    prop_assert_eq!(here, choose(&other, &one, turned(pair), &same_group));
                }
            }
        }

        #[test]
        fn the_first_that_can_is_chosen_and_none_only_if_none_can(one in offers(), other in offers()) {
            for local in &one.devices {
                for remote in &other.devices {
                    let pair = Pair { local: *local, remote: *remote };
                    let serves = |name: &&str| {
                        let descriptor = |side: &Offers, device| side.kind(name)?.descriptors.get(device).cloned();
                        let local = descriptor(&one, local);
                        local.is_some() && local == descriptor(&other, remote)
                    };
                    prop_assert_eq!(choose(&one, &other, pair, &same_group), NAMES.iter().find(|name| serves(name)).copied());
                }
            }
        }

        #[test]
        fn a_side_that_allows_fewer_gets_one_of_those(one in offers(), other in offers(), allowed in 0_usize..4) {
            let few = Offers {
                kinds: one.kinds.iter().filter(|kind| kind.name == NAMES[allowed]).cloned().collect(),
                ..one.clone()
            };
            for local in &one.devices {
                for remote in &other.devices {
                    let pair = Pair { local: *local, remote: *remote };
                    let here = choose(&few, &other, pair, &same_group);
                    prop_assert!(here.is_none() || here == Some(NAMES[allowed]));
                    prop_assert_eq!(here, choose(&other, &few, turned(pair), &same_group));
                }
            }
        }
    }

    #[test]
    fn reasons_name_every_kind() {
        let pair = Pair { local: Device::Cuda(0), remote: Device::Cuda(1) };
        let offered = |name: &str, device, group| Offered {
            name: name.to_owned(),
            descriptors: [(device, vec![group])].into(),
        };
        let here = Offers {
            devices: vec![Device::Cuda(0)],
            kinds: vec![offered("xth", Device::Cuda(0), 0), offered("basic", Device::Cpu, 0)],
            without: vec![("gdr".into(), "no NIC".into())],
        };
        let there = Offers {
            devices: vec![Device::Cuda(1)],
            kinds: vec![offered("xth", Device::Cuda(1), 1), offered("pigeon", Device::Cuda(1), 0)],
            without: vec![],
        };
        assert_eq!(choose(&here, &there, pair, &same_group), None);
        assert_eq!(
            reasons(&here, &there, pair, &same_group),
            "xth: another group\nbasic: it does not serve cuda:0 here\ngdr: not viable here: no NIC\n\
             pigeon: it is known there only"
        );
    }

    #[test]
    fn a_reason_of_several_lines_is_one() {
        let pair = Pair { local: Device::Cpu, remote: Device::Cpu };
        let here =
            Offers { without: vec![("gdr".into(), "no NIC,\nnone at all".into())], ..Offers::default() };
        let reasons = reasons(&here, &Offers::default(), pair, &same_group);
        assert_eq!(reasons, "gdr: not viable here: no NIC, none at all");
    }
}
