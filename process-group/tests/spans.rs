//! What a program that traces sees of calls.
#![allow(clippy::unwrap_used, reason = "a test may end so")]

use std::fmt::Write;
use std::sync::{Arc, Mutex};

use meshreduce_process_group::store::MemoryStore;
use meshreduce_process_group::{Device, ProcessGroup, ReduceOp};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// Writes down every span that is opened, with its fields.
#[derive(Default)]
struct Listener(Arc<Mutex<Vec<String>>>);

struct Fields(String);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        write!(self.0, " {field}={value:?}").unwrap();
    }
}

impl Subscriber for Listener {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::DEBUG
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let mut fields = Fields(span.metadata().name().to_owned());
        span.record(&mut fields);
        let mut spans = self.0.lock().unwrap();
        spans.push(fields.0);
        Id::from_u64(spans.len() as u64)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, _: &Event<'_>) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

#[test]
fn every_call_has_a_span_with_group_operation_and_sequence_number() {
    let listener = Listener::default();
    let spans = Arc::clone(&listener.0);
    tracing::subscriber::with_default(listener, || {
        let group = ProcessGroup::builder(Arc::new(MemoryStore::new()), 0, 1).name("layers").build().unwrap();
        group.all_reduce(&mut [1.0_f32], ReduceOp::Sum).unwrap();
        group.barrier(Device::Cpu).unwrap();
        let pending = group.broadcast_owned(vec![1.0_f32], 0).unwrap();
        pending.wait().1.unwrap();
        group.shutdown().unwrap();
    });
    let spans = spans.lock().unwrap();
    let named = |name: &str| spans.iter().filter(|span| span.starts_with(name)).cloned().collect::<Vec<_>>();
    let text = |name: &str, operation: &str, sequence: u64, rest: &str| {
        format!("{name} group=\"layers\" rank=0 operation=\"{operation}\" sequence={sequence}{rest}")
    };
    let host = " backend=\"host\"";
    let calls = [("all_reduce", 1), ("barrier", 2), ("broadcast", 3)];
    assert_eq!(named("call"), calls.map(|(operation, at)| text("call", operation, at, host)));
    assert_eq!(named("wait"), [text("wait", "broadcast", 3, "")], "of those that go on when they are made");
}
