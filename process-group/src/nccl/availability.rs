//! What ranks tell one another before they become a communicator of NCCL.
#![forbid(unsafe_code)]

use meshreduce_device::identity::{Device, PciAddress};
use meshreduce_nccl_loader::Version;
use meshreduce_nccl_loader::sys::ncclUniqueId;
use meshreduce_store::codec::{Malformed, Payload, Reader, Writer};
use meshreduce_store::identity::Member;

use super::failure::NcclFailure;

/// A rank that can take part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ready {
    pub(super) version: Version,
    pub(super) member: Member,
    pub(super) device: Device,
    /// Rank 0's: what NCCL's ranks find each other by.
    pub(super) id: Option<ncclUniqueId>,
}

/// What a rank tells the others: that it can take part, or why it cannot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Availability(pub(super) Result<Ready, String>);

impl Payload for Availability {
    const KIND: u8 = 40;

    fn write(&self, out: &mut Writer) {
        out.flag(self.0.is_ok());
        let Ready { version, member, device, id } = match &self.0 {
            Ok(ready) => ready,
            Err(problem) => return out.text(problem),
        };
        [version.major, version.minor, version.patch].into_iter().for_each(|part| out.u32(part));
        member.write(out);
        let PciAddress { domain, bus, device: slot, function } = device.pci;
        out.u32(domain);
        [bus, slot, function].into_iter().for_each(|part| out.u8(part));
        out.raw(&device.uuid);
        out.flag(id.is_some());
        if let Some(id) = id {
            out.raw(&id.internal);
        }
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        if !from.flag()? {
            return Ok(Self(Err(from.text()?)));
        }
        let version = Version::new(from.u32()?, from.u32()?, from.u32()?);
        let member = Member::read(from)?;
        let pci =
            PciAddress { domain: from.u32()?, bus: from.u8()?, device: from.u8()?, function: from.u8()? };
        let device = Device { pci, uuid: from.array()? };
        let id = match from.flag()? {
            true => Some(ncclUniqueId { internal: from.array()? }),
            false => None,
        };
        Ok(Self(Ok(Ready { version, member, device, id })))
    }
}

/// Reads what all ranks have told, by rank, and compares it: the id and who the ranks are. All ranks come to the same.
///
/// # Errors
///
/// [`NcclFailure::OnRank`], [`NcclFailure::BadMessage`], [`NcclFailure::VersionsDiffer`], [`NcclFailure::SameDevice`].
pub(super) fn compare(told: &[Vec<u8>]) -> Result<(ncclUniqueId, Vec<Member>), NcclFailure> {
    let mut ready = Vec::with_capacity(told.len());
    for (rank, bytes) in told.iter().enumerate() {
        match Availability::from_bytes(bytes) {
            Ok(Availability(Ok(one))) => ready.push(one),
            Ok(Availability(Err(problem))) => return Err(NcclFailure::OnRank { rank, problem }),
            Err(source) => return Err(NcclFailure::BadMessage { rank, source }),
        }
    }
    for (rank, one) in ready.iter().enumerate().skip(1) {
        if one.version != ready[0].version {
            return Err(NcclFailure::VersionsDiffer {
                ranks: (0, rank),
                versions: (ready[0].version, one.version),
            });
        }
        let is_same =
            |other: &&Ready| other.device.pci == one.device.pci && other.member.host.is(&one.member.host);
        if let Some(other) = ready[..rank].iter().position(|other| is_same(&other)) {
            return Err(NcclFailure::SameDevice {
                ranks: (other, rank),
                device: one.device,
                host: one.member.host.to_string(),
            });
        }
    }
    let id = ready.first().and_then(|first| first.id).ok_or_else(|| NcclFailure::BadMessage {
        rank: 0,
        source: Malformed::wrong("there is no unique id in it"),
    })?;
    Ok((id, ready.into_iter().map(|one| one.member).collect()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn ready(rank: u8) -> Ready {
        Ready {
            version: Version::new(2, 27, 3),
            member: Member::current().unwrap(),
            device: Device { pci: format!("0:{rank:x}:0.0").parse().unwrap(), uuid: [rank; 16] },
            id: (rank == 0).then_some(ncclUniqueId { internal: [7; 128] }),
        }
    }

    fn told(ranks: impl IntoIterator<Item = Result<Ready, String>>) -> Vec<Vec<u8>> {
        ranks.into_iter().map(|ready| Availability(ready).to_bytes()).collect()
    }

    #[test]
    fn ranks_that_fit_get_the_id_and_who_they_are() {
        let (id, members) = compare(&told([Ok(ready(0)), Ok(ready(1))])).unwrap();
        assert_eq!((id.internal, members), ([7; 128], vec![Member::current().unwrap(); 2]));
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let elsewhere = |mut ready: Ready| {
            ready.member.host.id = "another".to_owned();
            ready
        };
        let old = Ready { version: Version::new(2, 18, 0), ..ready(2) };
        for (ranks, text) in [
            (vec![Ok(ready(0)), Err("no such file".to_owned())], "rank 1 cannot use NCCL: no such file"),
            (vec![Ok(ready(0)), Ok(ready(1)), Ok(old)], "rank 0 has NCCL 2.27.3, rank 2 has 2.18.0"),
            (
                vec![Ok(ready(0)), Ok(ready(1)), Ok(ready(1))],
                "ranks 1 and 2 both use device 00000000:01:00.0",
            ),
            (vec![Ok(ready(1)), Ok(ready(2))], "what rank 0 tells is not understood: there is no unique id"),
        ] {
            let error = compare(&told(ranks)).unwrap_err().to_string();
            assert!(error.starts_with(text), "{error}");
        }
        let bad = [told([Ok(ready(0))]), vec![b"?".to_vec()]].concat();
        assert!(matches!(compare(&bad), Err(NcclFailure::BadMessage { rank: 1, .. })));
        // The same place in another host is another device.
        assert!(compare(&told([Ok(ready(0)), Ok(elsewhere(ready(0)))])).is_ok());
    }
}
