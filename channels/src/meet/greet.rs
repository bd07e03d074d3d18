//! Two sides that are connected say who they are and agree on which kind of channel serves which pair of devices.
//!
//! Both say hello. The listening side chooses and tells; the connecting side computes the same and says whether it comes to the
//! same result. If so the listening side bids it welcome: before that the connecting side does not take itself for connected, so
//! one that was too slow for the listening side comes again.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use meshreduce_store::clock::Deadline;
use meshreduce_store::codec::{Malformed, Reader, Writer};

use super::hello::{Hello, device};
use crate::channel::{Pair, Side};
use crate::choice::{Judge, choose};
use crate::error::{Error, no_descriptors};
use crate::link::{Broken, Kind, Link, Outgoing, Queue};

/// How long one who has connected may take for all that it has to say. It says it at once, unless it was stopped just then; others
/// wait at the listener meanwhile. One who was too slow is not met, and comes again. It has as long also where the listener's time is
/// over, or one who listens for a moment at a time would meet nobody but by luck.
const SHARE: Duration = Duration::from_secs(2);

/// A side that one has met.
#[derive(Debug)]
pub(crate) struct Met {
    pub(crate) link: Link,
    pub(crate) hello: Hello,
    /// Who it is, for errors.
    pub(crate) peer: Arc<str>,
    /// The kind that serves a pair; those that none serves are not there.
    pub(crate) choices: HashMap<Pair, String>,
}

/// A link on which one waits for what is said.
struct Handshake {
    link: Link,
    queue: Queue,
    peer: Arc<str>,
    deadline: Deadline,
    begun: Instant,
}

impl Handshake {
    fn say(&mut self, kind: Kind, bytes: Vec<u8>) -> Result<(), Error> {
        self.queue.push(Outgoing::control(kind, 0, bytes));
        loop {
            self.link.flush(&mut self.queue).map_err(|broken| self.broken(broken))?;
            if self.queue.is_empty() {
                return Ok(());
            }
            self.sleep(true)?;
        }
    }

    fn hear<T>(&mut self, kind: Kind, read: impl FnOnce(&[u8]) -> Result<T, Malformed>) -> Result<T, Error> {
        let peer = Arc::clone(&self.peer);
        let protocol = |what: String| Error::Protocol { peer: Arc::clone(&peer), what: what.into() };
        loop {
            match self.link.next() {
                Ok(Some(message)) if message.kind == kind => {
                    return read(message.bytes).map_err(|error| protocol(error.to_string()));
                }
                Ok(Some(message)) => {
                    return Err(protocol(format!("{:?} was expected and {:?} has come", kind, message.kind)));
                }
                Ok(None) => {}
                Err(broken) => return Err(self.broken(broken)),
            }
            if !self.link.fill().map_err(|broken| self.broken(broken))? {
                self.sleep(false)?;
            }
        }
    }

    fn sleep(&mut self, writes: bool) -> Result<(), Error> {
        let left = self.deadline.left();
        if left.is_zero() {
            let last = "it does not answer".into();
            let waited = self.begun.elapsed();
            return Err(Error::NotConnected { with: Arc::clone(&self.peer), waited, last });
        }
        self.link.wait(writes, left.min(Duration::from_secs(3600))).map_err(|source| Error::System {
            what: format!("the connection with {}", self.peer).into(),
            source: source.into(),
        })
    }

    fn broken(&self, broken: Broken) -> Error {
        let peer = Arc::clone(&self.peer);
        match broken {
            Broken::Lost(how) => Error::PeerLost { peer, how: how.into(), received: 0, bytes: 0 },
            Broken::Malformed(what) => Error::Protocol { peer, what: what.into() },
            Broken::Short(source) => no_descriptors(&peer, source),
        }
    }
}

/// Greets the other side of a link. The deadline is the connecting side's; the listening one has [`SHARE`].
///
/// # Errors
///
/// What the link or the other side does wrong; [`Error::ChoicesDiffer`] on both sides.
pub(crate) fn greet(
    link: Link,
    side: Side,
    own: &Hello,
    judge: &Judge<'_>,
    deadline: Deadline,
) -> Result<Met, Error> {
    let queue = Queue::new(link.carries_files());
    let mut talk =
        Handshake { link, queue, peer: "whoever has connected".into(), deadline, begun: Instant::now() };
    let read = |bytes: &[u8]| Hello::decode(bytes);
    let hello = match side {
        Side::Connecting => {
            talk.say(Kind::Hello, own.encode())?;
            talk.hear(Kind::Hello, read)?
        }
        Side::Listening => {
            talk.deadline = Deadline::after(SHARE);
            let hello = talk.hear(Kind::Hello, read)?;
            talk.say(Kind::Hello, own.encode())?;
            hello
        }
    };
    talk.peer = hello.label().into();
    let mut choices = HashMap::new();
    for local in &own.offers.devices {
        for remote in &hello.offers.devices {
            let pair = Pair { local: *local, remote: *remote };
            if let Some(name) = choose(&own.offers, &hello.offers, pair, judge) {
                choices.insert(pair, name.to_owned());
            }
        }
    }
    match side {
        Side::Listening => {
            talk.say(Kind::Choices, encode_choices(&choices))?;
            let difference = talk.hear(Kind::Verdict, decode_verdict)?;
            if let Some(Difference { pair, here, there }) = difference {
                return Err(differ(&talk.peer, turned(pair), there, here));
            }
            talk.say(Kind::Welcome, Vec::new())?;
        }
        Side::Connecting => {
            let theirs = talk.hear(Kind::Choices, decode_choices)?;
            let theirs: HashMap<_, _> = theirs.into_iter().map(|(pair, name)| (turned(pair), name)).collect();
            let mut pairs: Vec<_> = choices.keys().chain(theirs.keys()).copied().collect();
            pairs.sort_unstable();
            let difference = pairs.into_iter().find(|pair| choices.get(pair) != theirs.get(pair));
            let name = |choices: &HashMap<Pair, String>, pair| {
                choices.get(&pair).cloned().unwrap_or_else(|| "none".to_owned())
            };
            let difference = difference.map(|pair| Difference {
                pair,
                here: name(&choices, pair),
                there: name(&theirs, pair),
            });
            talk.say(Kind::Verdict, encode_verdict(difference.as_ref()))?;
            if let Some(Difference { pair, here, there }) = difference {
                return Err(differ(&talk.peer, pair, here, there));
            }
            talk.hear(Kind::Welcome, |bytes| Reader::new(bytes).end())?;
        }
    }
    Ok(Met { link: talk.link, hello, peer: talk.peer, choices })
}

/// Where the two sides differ, as the connecting side sees it.
#[derive(Debug, PartialEq, Eq)]
struct Difference {
    pair: Pair,
    here: String,
    there: String,
}

fn turned(pair: Pair) -> Pair {
    Pair { local: pair.remote, remote: pair.local }
}

fn differ(peer: &Arc<str>, pair: Pair, here: String, there: String) -> Error {
    let Pair { local, remote } = pair;
    Error::ChoicesDiffer { local, remote, peer: Arc::clone(peer), here: here.into(), there: there.into() }
}

fn write_pair(out: &mut Writer, pair: &Pair) {
    out.text(&pair.local.to_string());
    out.text(&pair.remote.to_string());
}

fn read_pair(from: &mut Reader<'_>) -> Result<Pair, Malformed> {
    Ok(Pair { local: device(from)?, remote: device(from)? })
}

fn encode_choices(choices: &HashMap<Pair, String>) -> Vec<u8> {
    let mut sorted: Vec<_> = choices.iter().collect();
    sorted.sort_unstable();
    let mut out = Writer::new();
    out.list(&sorted, |out, (pair, name)| {
        write_pair(out, pair);
        out.text(name);
    });
    out.into_bytes()
}

fn decode_choices(bytes: &[u8]) -> Result<Vec<(Pair, String)>, Malformed> {
    let mut from = Reader::new(bytes);
    let choices = from.list(|from| Ok((read_pair(from)?, from.text()?)))?;
    from.end()?;
    Ok(choices)
}

fn encode_verdict(difference: Option<&Difference>) -> Vec<u8> {
    let mut out = Writer::new();
    out.flag(difference.is_some());
    if let Some(Difference { pair, here, there }) = difference {
        write_pair(&mut out, pair);
        out.text(here);
        out.text(there);
    }
    out.into_bytes()
}

fn decode_verdict(bytes: &[u8]) -> Result<Option<Difference>, Malformed> {
    let mut from = Reader::new(bytes);
    let difference = match from.flag()? {
        true => Some(Difference { pair: read_pair(&mut from)?, here: from.text()?, there: from.text()? }),
        false => None,
    };
    from.end()?;
    Ok(difference)
}
