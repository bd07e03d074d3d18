//! What ranks tell one another before they make a mesh.
#![forbid(unsafe_code)]

use meshreduce_store::codec::{Malformed, Payload, Reader, Writer};

/// Why ranks make no mesh of a group. It is the source of [`crate::Error::NotMade`], to be had by [`crate::Cause::downcast_ref`]. (What
/// is wrong with a mesh that they have agreed to make is a [`meshreduce::Error`] there.)
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MeshFailure {
    /// Another rank cannot take part; its own error says more.
    #[error("rank {rank} cannot use the mesh: {problem}")]
    OnRank {
        /// The rank.
        rank: usize,
        /// Its error, as text.
        problem: String,
    },
    /// A rank has told something else than what this backend's ranks tell one another.
    #[error("what rank {rank} tells is not understood, is it of another version?: {source}")]
    BadMessage {
        /// The rank.
        rank: usize,
        /// What is wrong with it.
        r#source: Malformed,
    },
    /// Two ranks were made with different wishes: they would not leave the same calls to the backend behind the mesh.
    #[error(
        "rank {} was made for {}, rank {} for {}: MeshFactory::only and parts_up_to must be alike on all ranks",
        .ranks.0, .wishes.0, .ranks.1, .wishes.1
    )]
    WishesDiffer {
        /// Two ranks.
        ranks: (usize, usize),
        /// What was said to each of them.
        wishes: (String, String),
    },
}

/// A rank that can take part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ready {
    /// A number that no other process, and this one at no other time, comes upon.
    pub(super) nonce: u64,
    /// Where it is.
    pub(super) host: String,
    /// [`super::choice::Wishes::text`].
    pub(super) wishes: String,
}

/// What a rank tells the others: that it can take part, or why it cannot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Availability(pub(super) Result<Ready, String>);

impl Payload for Availability {
    const KIND: u8 = 41;

    fn write(&self, out: &mut Writer) {
        out.flag(self.0.is_ok());
        match &self.0 {
            Ok(Ready { nonce, host, wishes }) => {
                out.u64(*nonce);
                out.text(host);
                out.text(wishes);
            }
            Err(problem) => out.text(problem),
        }
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self(match from.flag()? {
            true => Ok(Ready { nonce: from.u64()?, host: from.text()?, wishes: from.text()? }),
            false => Err(from.text()?),
        }))
    }
}

/// Reads what all ranks have told, by rank, and compares it. All ranks come to the same.
pub(super) fn compare(told: &[Vec<u8>]) -> Result<Vec<Ready>, MeshFailure> {
    let mut ready = Vec::with_capacity(told.len());
    for (rank, bytes) in told.iter().enumerate() {
        match Availability::from_bytes(bytes) {
            Ok(Availability(Ok(one))) => ready.push(one),
            Ok(Availability(Err(problem))) => return Err(MeshFailure::OnRank { rank, problem }),
            Err(source) => return Err(MeshFailure::BadMessage { rank, source }),
        }
    }
    let wishes = |rank: usize| ready[rank].wishes.clone();
    match (1..ready.len()).find(|rank| ready[*rank].wishes != ready[0].wishes) {
        Some(rank) => Err(MeshFailure::WishesDiffer { ranks: (0, rank), wishes: (wishes(0), wishes(rank)) }),
        None => Ok(ready),
    }
}

#[cfg(test)]
mod tests {
    use super::super::choice::Wishes;
    use super::*;
    use crate::types::{DType, ReduceOp};

    fn with(wishes: &Wishes) -> Vec<u8> {
        Availability(Ok(Ready { nonce: 7, host: "here".to_owned(), wishes: wishes.text() })).to_bytes()
    }

    #[test]
    fn ranks_that_were_made_with_different_wishes_are_named() {
        let only = |dtypes: &[DType], ops: &[ReduceOp]| Wishes {
            only: Some((dtypes.to_vec(), ops.to_vec())),
            promised: None,
        };
        let (none, some) = (Wishes::default(), Wishes { promised: Some(64), only: None });
        let one = only(&[DType::F32, DType::F16], &[ReduceOp::Sum]);
        let same = only(&[DType::F16, DType::F32, DType::F16], &[ReduceOp::Sum]);
        assert_eq!(compare(&[with(&one), with(&same)]).unwrap().len(), 2, "in whatever order they are named");
        let differ = |told: &[Vec<u8>]| compare(told).unwrap_err().to_string();
        let expected = "rank 0 was made for nothing in particular, rank 2 for parts of at most 64 bytes: \
                        MeshFactory::only and parts_up_to must be alike on all ranks";
        assert_eq!(differ(&[with(&none), with(&none), with(&some)]), expected);
        let text = differ(&[with(&one), with(&none)]);
        assert!(
            text.starts_with("rank 0 was made for no reductions but (sum) of (f32, f16), rank 1"),
            "{text}"
        );
    }

    #[test]
    fn a_rank_that_cannot_take_part_or_is_not_understood_is_named() {
        let none = with(&Wishes::default());
        let cannot = Availability(Err("no such device".to_owned())).to_bytes();
        let text = compare(&[none.clone(), cannot]).unwrap_err().to_string();
        assert_eq!(text, "rank 1 cannot use the mesh: no such device");
        let bad = compare(&[none, b"?".to_vec()]);
        assert!(matches!(bad, Err(MeshFailure::BadMessage { rank: 1, .. })), "{bad:?}");
    }
}
