//! The same as records: a line each, the summary last.

use serde_json::{Value, json};

use super::view::{Grade, View};

/// One record a line. Each has a `record` that says what it is of.
pub(super) fn records(view: &View) -> String {
    let mut lines = Vec::new();
    for channel in view.channels.iter().flatten() {
        let mut record = record("channel", channel);
        record["viable"] = channel.reason.is_none().into();
        lines.push(record);
    }
    lines.extend(view.gpus.iter().map(|gpu| record("gpu", gpu)));
    lines.push(record("host", &view.host));
    lines.extend(view.nics.iter().map(|nic| record("nic", nic)));
    lines.push(record("peermem", &view.peermem));
    lines.extend(view.system.iter().map(|system| record("system", system)));
    lines.extend(view.findings.iter().map(|finding| record("finding", finding)));
    lines.push(summary(view));
    lines.into_iter().map(|line| line.to_string() + "\n").collect()
}

fn record(kind: &str, of: &impl serde::Serialize) -> Value {
    let mut record = serde_json::to_value(of).unwrap_or_default();
    record["record"] = kind.into();
    record
}

fn summary(view: &View) -> Value {
    let named = |viable: bool| -> Option<Vec<&str>> {
        let channels = view.channels.as_ref()?.iter();
        Some(channels.filter(|one| one.reason.is_none() == viable).map(|one| one.name.as_str()).collect())
    };
    json!({
        "record": "summary",
        "title": view.title,
        "viable": named(true),
        "not_viable": named(false),
        "gpus": view.gpus.len(),
        "gpus_with_nic": view.gpus.iter().filter(|gpu| gpu.way.why_none.is_none()).count(),
        "nics": view.nics.len(),
        "faults": view.count(Grade::Fault),
        "warnings": view.count(Grade::Warning),
    })
}
