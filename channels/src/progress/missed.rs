//! What an endpoint says of batches that do not come: they were refused, or their channel is over.
#![forbid(unsafe_code)]

use meshreduce_store::codec::{Malformed, Reader, Writer};

/// Counters of one message.
const MOST: usize = 4096;

/// `count u32 | counters u32 ... | why`: batches for these counters of the other side's do not come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Missed {
    pub(crate) counters: Vec<u32>,
    pub(crate) why: String,
}

impl Missed {
    /// The bodies of the messages that say it.
    pub(crate) fn encode(&self) -> impl Iterator<Item = Vec<u8>> {
        self.counters.chunks(MOST).map(|counters| {
            let mut out = Writer::new();
            out.u32(counters.len() as u32);
            counters.iter().for_each(|counter| out.u32(*counter));
            out.raw(self.why.as_bytes());
            out.into_bytes()
        })
    }

    /// # Errors
    ///
    /// What cannot be.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let from = &mut Reader::new(bytes);
        let count = from.u32()? as usize;
        if count > MOST {
            return Err(Malformed::wrong(format!(
                "batches for {count} counters are missed, {MOST} are the most"
            )));
        }
        let counters = (0..count).map(|_| from.u32()).collect::<Result<_, _>>()?;
        Ok(Self { counters, why: String::from_utf8_lossy(from.rest()).into_owned() })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_missed_comes_back(counters in prop::collection::vec(any::<u32>(), 0..3 * MOST), why in ".{0,40}") {
            let said = Missed { counters, why };
            let mut heard = Vec::new();
            for body in said.encode() {
                let Missed { counters, why } = Missed::decode(&body).unwrap();
                prop_assert_eq!(&why, &said.why);
                heard.extend(counters);
            }
            prop_assert_eq!(heard, said.counters);
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(missed) = Missed::decode(&bytes) {
                prop_assert!(missed.counters.len() * 4 + 4 <= bytes.len());
            }
        }
    }

    #[test]
    fn more_than_a_message_holds_is_refused() {
        let mut body = vec![0xff; 4 * (MOST + 2)];
        body[..4].copy_from_slice(&(MOST as u32 + 1).to_le_bytes());
        assert!(Missed::decode(&body).unwrap_err().to_string().contains("4097 counters"));
    }
}
