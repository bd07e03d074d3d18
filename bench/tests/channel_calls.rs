//! How many driver calls a message costs on either side of a channel, counted by a driver that does nothing else.
//!
//! The driver counts by threads. So the kinds are wrapped in ones that look at the counts around every call of the progress
//! thread's.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Result;
use meshreduce_bench::noop_driver::{calls_of, open};
use meshreduce_channels::channel::{
    Activity, Channel, ChannelContext, ChannelFactory, Descriptor, Environment, Io, Message, Offer,
    Operation, OtherHalf, Reason, Rest, Side,
};
use meshreduce_channels::{Basic, Context, Device, Endpoint, Error, Links, Options, Registry, Xth};
use meshreduce_device::{DeviceMemory, PrimaryContext, Stream};

const SOON: Duration = Duration::from_secs(60);

type Counts = Arc<Mutex<BTreeMap<(bool, String), u64>>>;

/// A kind whose driver calls are counted; by whether it is the listening side that makes them.
#[derive(Debug)]
struct Counted<F> {
    kind: F,
    counts: Counts,
}

#[derive(Debug)]
struct CountedContext {
    context: Arc<dyn ChannelContext>,
    counts: Counts,
}

#[derive(Debug)]
struct CountedChannel {
    channel: Box<dyn Channel>,
    listens: bool,
    counts: Counts,
}

impl<F: ChannelFactory> ChannelFactory for Counted<F> {
    fn name(&self) -> &str {
        self.kind.name()
    }

    fn priority(&self) -> u32 {
        self.kind.priority()
    }

    fn context(&self, environment: &Environment) -> Result<Arc<dyn ChannelContext>, Reason> {
        let context = self.kind.context(environment)?;
        Ok(Arc::new(CountedContext { context, counts: Arc::clone(&self.counts) }))
    }
}

impl ChannelContext for CountedContext {
    fn name(&self) -> &str {
        self.context.name()
    }

    fn descriptors(&self) -> Vec<(Device, Descriptor)> {
        self.context.descriptors()
    }

    fn can_communicate(&self, local: &[u8], remote: &[u8]) -> Result<(), Reason> {
        self.context.can_communicate(local, remote)
    }

    fn connect(&self, offer: Offer<'_>) -> Result<Box<dyn Channel>, Error> {
        let (listens, counts) = (offer.side == Side::Listening, Arc::clone(&self.counts));
        Ok(Box::new(CountedChannel { channel: self.context.connect(offer)?, listens, counts }))
    }
}

impl CountedChannel {
    fn counted<T>(&mut self, call: impl FnOnce(&mut dyn Channel) -> T) -> T {
        let mut answer = None;
        let made = calls_of(|| {
            answer = Some(call(&mut *self.channel));
            Ok(())
        });
        let mut counts = self.counts.lock().expect("nobody panics");
        for (name, count) in made.expect("the no-op driver") {
            *counts.entry((self.listens, name)).or_default() += count;
        }
        answer.expect("it was called")
    }
}

impl Channel for CountedChannel {
    fn start(&mut self, operation: Operation, io: &mut Io<'_>) -> Result<(), Error> {
        self.counted(|channel| channel.start(operation, io))
    }

    fn heard(&mut self, message: Message<'_>, io: &mut Io<'_>) -> Result<(), Error> {
        self.counted(|channel| channel.heard(message, io))
    }

    fn poll(&mut self, io: &mut Io<'_>) -> Result<Activity, Error> {
        self.counted(|channel| channel.poll(io))
    }

    fn end(&mut self, cause: &Error) {
        self.channel.end(cause);
    }

    fn linger(&mut self, other: OtherHalf) -> Rest {
        self.channel.linger(other)
    }
}

/// One side.
struct Party {
    endpoint: Endpoint,
    _context: Context,
    memory: Arc<DeviceMemory>,
    stream: Stream,
    remote: Device,
}

/// Sends one message of 4096 bytes from the listening side to the other one, behind what both callers' streams have; the driver
/// calls of this thread.
fn message(from: &Party, to: &Party) -> Vec<(String, u64)> {
    calls_of(|| {
        let sent = from.endpoint.send(Arc::clone(&from.memory), from.remote, &from.stream);
        let received = to.endpoint.recv(Arc::clone(&to.memory), to.remote, &to.stream);
        received.wait(SOON)?;
        sent.wait(SOON)?;
        Ok(())
    })
    .expect("the message arrives")
}

/// The driver calls of a message: the callers' (of both), the sender's and the receiver's.
fn calls_by(kind: impl ChannelFactory + 'static, links: Links) -> [Vec<(String, u64)>; 3] {
    open().expect("the no-op driver");
    let counts = Counts::default();
    let mut registry = Registry::empty();
    registry.register(Counted { kind, counts: Arc::clone(&counts) }).expect("it is the only one");
    let options = Options { links, ..Options::default() };
    let contexts: [Context; 2] = [0, 1].map(|ordinal| {
        Context::with_options(&registry, &[Device::Cuda(ordinal)], options.clone()).expect("a context")
    });
    let listener = contexts[0].listener().expect("a listener");
    let endpoints = std::thread::scope(|scope| {
        let connecting = scope.spawn(|| contexts[1].connect_to(listener.address(), SOON).expect("they meet"));
        [listener.accept(SOON).expect("they meet"), connecting.join().expect("they meet")]
    });
    let mut ordinal = 0;
    let parties = endpoints.into_iter().zip(contexts).map(|(endpoint, _context)| {
        let own = PrimaryContext::retain(ordinal).expect("a device");
        let memory = Arc::new(DeviceMemory::new(&own, 4096).expect("memory"));
        let stream = Stream::new(&own).expect("a stream");
        let remote = Device::Cuda(1 - ordinal);
        ordinal += 1;
        Party { endpoint, _context, memory, stream, remote }
    });
    let parties: Vec<Party> = parties.collect();
    // What is made once is made now.
    message(&parties[0], &parties[1]);
    counts.lock().expect("nobody panics").clear();
    let callers = message(&parties[0], &parties[1]);
    // The sender may still be told; that costs no calls.
    let counts = counts.lock().expect("nobody panics");
    let of = |listens| {
        counts
            .iter()
            .filter(|((side, _), _)| *side == listens)
            .map(|((_, name), count)| (name.clone(), *count))
            .collect()
    };
    // An event is made where none has come back yet from the message before.
    let made =
        ["cuCtxPushCurrent_v2", "cuCtxPopCurrent_v2", "cuThreadExchangeStreamCaptureMode", "cuEventCreate"];
    let callers = callers.into_iter().filter(|(name, _)| !made.contains(&&**name)).collect();
    [callers, of(true), of(false)]
}

fn named(calls: &[(&str, u64)]) -> Vec<(String, u64)> {
    calls.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
}

#[test]
fn a_message_by_xth_costs_one_call_for_the_sender_and_four_for_the_receiver() {
    let [callers, sender, receiver] = calls_by(Xth, Links::default());
    assert_eq!(callers, named(&[("cuStreamWriteValue32_v2", 1), ("cuEventRecord", 1)]));
    assert_eq!(sender, named(&[]));
    assert_eq!(
        receiver,
        named(&[("cuMemcpyPeerAsync", 1), ("cuStreamWaitEvent", 1), ("cuStreamWriteValue32_v2", 1)])
    );
}

#[test]
fn a_message_by_basic_that_fits_a_slot_costs_five_calls_to_send_and_three_to_receive() {
    for links in [
        Links { memory: true, unix: false, tcp: false },
        Links { memory: false, unix: true, tcp: false },
        Links { memory: false, unix: false, tcp: true },
    ] {
        let [callers, sender, receiver] = calls_by(Basic::default(), links);
        assert_eq!(callers, named(&[("cuStreamWriteValue32_v2", 1), ("cuEventRecord", 1)]));
        let copied = [("cuMemcpyAsync", 1), ("cuStreamWriteValue32_v2", 1)];
        // The stream's work is waited for before anything is enqueued behind it: a wait and a word more.
        let behind = [copied[0], ("cuStreamWaitEvent", 1), ("cuStreamWriteValue32_v2", 2)];
        assert_eq!((sender, receiver), (named(&behind), named(&copied)));
    }
}
