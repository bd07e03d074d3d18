//! Who offers a device, and where: what a process must know of another one's in order to share memory with it.
#![forbid(unsafe_code)]

use std::fmt;

use meshreduce_device::identity::{Device as Identity, PciAddress};
use meshreduce_device::{DriverError, VisibleDevice};
use meshreduce_store::codec::{Malformed, Reader, Writer};
use meshreduce_store::identity::{Member, namespace};

use crate::channel::Reason;

/// The version of the layout, and of everything that two halves of a channel say to each other.
const VERSION: u16 = 1;

/// A process, as far as the driver minds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Party {
    pub(super) member: Member,
    /// The inode of its user namespace; 0 where the system does not tell.
    pub(super) users: u64,
    /// Its effective user, as that namespace counts.
    pub(super) user: u32,
}

impl Party {
    /// This process.
    pub(super) fn current() -> Result<Self, Reason> {
        let member = Member::current().map_err(|error| Reason(error.to_string()))?;
        let users = namespace("user").unwrap_or(0);
        Ok(Self { member, users, user: rustix::process::geteuid().as_raw() })
    }

    /// Why handles of one do not open in the other, if they do not.
    fn apart(&self, other: &Self) -> Option<Reason> {
        let (one, two) = (&self.member, &other.member);
        if !one.host.is(&two.host) {
            return Some(Reason(format!("{} and {} are two hosts", one.host, two.host)));
        }
        if one.process.namespace != two.process.namespace {
            // The driver looks for the process that made the handle by its number. The same number in another namespace is another
            // process, or even this one.
            return Some(Reason::from(
                "the processes are in different pid namespaces, and CUDA opens no memory across these: run both in one container, \
                 in containers that share it (docker run --pid=host), or in one pod (with shareProcessNamespace: true)",
            ));
        }
        if one.process == two.process {
            return Some(Reason::from("it is one process, and the driver opens no handle where it was made"));
        }
        if self.users != other.users {
            return Some(Reason::from(
                "the processes are in different user namespaces, so that the driver takes them for two users'",
            ));
        }
        (self.user != other.user).then(|| {
            Reason(format!(
                "the processes are users {} and {}, and CUDA shares no memory between users",
                self.user, other.user
            ))
        })
    }
}

/// A device of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) party: Party,
    pub(super) device: Identity,
    /// By UUID, the other devices that the process sees, and whether these two can access each other's memory.
    pub(super) others: Vec<([u8; 16], bool)>,
}

impl Place {
    /// A device of this process, beside all others that it sees.
    pub(super) fn of(
        party: &Party,
        device: VisibleDevice,
        all: &[(VisibleDevice, Identity)],
    ) -> Result<Self, Reason> {
        let identity = device.identity().map_err(|error| Reason(error.to_string()))?;
        let access = |one: &VisibleDevice, to: &Identity| one.can_access(to.pci).map(|can| can == Some(true));
        let others = all
            .iter()
            .filter(|(_, other)| other.uuid != identity.uuid)
            .map(|(raw, other)| Ok((other.uuid, access(&device, other)? && access(raw, &identity)?)));
        let others = others.collect::<Result<_, DriverError>>().map_err(|error| Reason(error.to_string()))?;
        Ok(Self { party: party.clone(), device: identity, others })
    }

    /// Whether this device and that of `other` can share memory. Symmetric.
    pub(super) fn can_reach(&self, other: &Self) -> Result<(), Reason> {
        if let Some(reason) = self.party.apart(&other.party) {
            return Err(reason);
        }
        let (one, two) = (&self.device, &other.device);
        if one.uuid == two.uuid {
            return Ok(());
        }
        if one.pci == two.pci {
            return Err(Reason(format!("{one} and {two} are parts of one GPU that share no memory (MIG)")));
        }
        let seen = |by: &Self, whom: &Identity| {
            by.others.iter().find(|(uuid, _)| *uuid == whom.uuid).map(|(_, can)| *can)
        };
        match (seen(self, two), seen(other, one)) {
            (Some(false), _) | (_, Some(false)) => {
                Err(Reason(format!("{one} and {two} cannot access each other's memory")))
            }
            (Some(true), _) | (_, Some(true)) => Ok(()),
            // The driver would perhaps open it, but whether the devices can reach each other it tells nobody who does not see both.
            (None, None) => Err(Reason(format!(
                "neither process sees both {one} and {two}: let CUDA_VISIBLE_DEVICES of one of them name both devices"
            ))),
        }
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut out = Writer::new();
        out.u16(VERSION);
        self.party.member.write(&mut out);
        out.u64(self.party.users);
        out.u32(self.party.user);
        let PciAddress { domain, bus, device, function } = self.device.pci;
        out.u32(domain);
        out.raw(&[bus, device, function]);
        out.raw(&self.device.uuid);
        out.list(&self.others, |out, (uuid, can)| {
            out.raw(uuid);
            out.flag(*can);
        });
        out.into_bytes()
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Result<Self, Malformed> {
        let from = &mut Reader::new(bytes);
        let version = from.u16()?;
        if version != VERSION {
            return Err(Malformed::wrong(format!(
                "version {version} of channel ipc there and {VERSION} here"
            )));
        }
        let member = Member::read(from)?;
        let party = Party { member, users: from.u64()?, user: from.u32()? };
        let domain = from.u32()?;
        let [bus, device, function] = from.array()?;
        let pci = PciAddress { domain, bus, device, function };
        let device = Identity { pci, uuid: from.array()? };
        let others = from.list(|from| Ok((from.array()?, from.flag()?)))?;
        from.end()?;
        Ok(Self { party, device, others })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.device, self.party.member)
    }
}

#[cfg(test)]
mod tests {
    use meshreduce_store::identity::{Host, Process};

    use super::*;

    fn place(pid: u32, bus: u8) -> Place {
        let host = Host { name: "host".into(), id: "boot".into() };
        let process = Process { pid, namespace: 1, start_time: 2, clock: 3 };
        Place {
            party: Party { member: Member { host, process }, users: 5, user: 1000 },
            device: Identity { pci: PciAddress { domain: 0, bus, device: 0, function: 0 }, uuid: [bus; 16] },
            others: Vec::new(),
        }
    }

    /// The reason, the same from both sides.
    fn refused(one: &Place, two: &Place) -> String {
        let [there, back] = [one.can_reach(two), two.can_reach(one)].map(|answer| answer.unwrap_err().0);
        assert_eq!(there.len(), back.len(), "{there} / {back}");
        there
    }

    #[test]
    fn places_come_back_and_other_versions_do_not() {
        let place = Place { others: vec![([4; 16], true), ([5; 16], false)], ..place(1, 1) };
        let mut bytes = place.to_bytes();
        assert_eq!(Place::from_bytes(&bytes), Ok(place));
        bytes[0] = 9;
        let error = Place::from_bytes(&bytes).unwrap_err().to_string();
        assert_eq!(error, "version 9 of channel ipc there and 1 here");
    }

    #[test]
    fn two_processes_share_a_device_whatever_else_they_see() {
        assert_eq!(place(1, 1).can_reach(&place(2, 1)), Ok(()));
    }

    #[test]
    fn one_process_is_left_to_xth_and_other_hosts_users_and_namespaces_to_others() {
        let one = place(1, 1);
        assert!(refused(&one, &place(1, 2)).contains("one process"));
        let change = |change: &dyn Fn(&mut Party)| {
            let mut other = place(2, 1);
            change(&mut other.party);
            refused(&one, &other)
        };
        assert!(change(&|party| party.member.host.id = "later".into()).contains("two hosts"));
        assert!(change(&|party| party.member.process.namespace = 9).contains("--pid=host"));
        assert!(change(&|party| party.users = 9).contains("user namespaces"));
        assert!(change(&|party| party.user = 0).contains("users 1000 and 0"));
        // The same number in another namespace is another process.
        let mut twin = place(1, 1);
        twin.party.member.process.namespace = 9;
        assert!(refused(&one, &twin).contains("pid namespaces"));
    }

    #[test]
    fn access_is_known_to_whoever_sees_both_devices() {
        let (one, two) = (place(1, 1), place(2, 2));
        assert!(refused(&one, &two).contains("CUDA_VISIBLE_DEVICES"));
        let seeing = |can: bool| Place { others: vec![([9; 16], !can), ([2; 16], can)], ..one.clone() };
        assert_eq!((seeing(true).can_reach(&two), two.can_reach(&seeing(true))), (Ok(()), Ok(())));
        assert!(refused(&seeing(false), &two).contains("cannot access"));
        // One that says no is believed more than one that says yes.
        let other = Place { others: vec![([1; 16], true)], ..two.clone() };
        assert!(refused(&seeing(false), &other).contains("cannot access"));
    }

    #[test]
    fn parts_of_one_gpu_are_apart() {
        let mut part = place(2, 1);
        part.device.uuid = [7; 16];
        assert!(refused(&place(1, 1), &part).contains("MIG"));
    }
}
