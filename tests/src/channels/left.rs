//! What a process has left of its channels when they are over.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How long a thread that is about to end may take.
const SOON: Duration = Duration::from_secs(20);

/// Sees that nothing is left: no thread, no mapping, no descriptor.
///
/// # Errors
///
/// What is left.
pub fn nothing() -> Result<()> {
    let begun = Instant::now();
    loop {
        let left = left()?;
        if left.is_empty() {
            return Ok(());
        }
        if begun.elapsed() > SOON {
            bail!("left behind: {}", left.join(", "));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn left() -> Result<Vec<String>> {
    let mut left = Vec::new();
    for task in std::fs::read_dir("/proc/self/task")?.flatten() {
        // A thread that has ended meanwhile has no name.
        let name = std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        if name.starts_with("meshreduce chan") || name.starts_with("meshreduce drop") {
            left.push(format!("the thread {:?}", name.trim()));
        }
    }
    for line in std::fs::read_to_string("/proc/self/maps")?.lines() {
        if line.contains("meshreduce-slots") {
            left.push(format!("the mapping {line}"));
        }
    }
    for entry in std::fs::read_dir("/proc/self/fd")?.flatten() {
        let target = std::fs::read_link(entry.path()).unwrap_or_default();
        let target = target.to_string_lossy();
        if ["socket:", "meshreduce-slots", "[eventpoll]", "[eventfd]"]
            .iter()
            .any(|part| target.contains(part))
        {
            left.push(format!("the descriptor {target}"));
        }
    }
    Ok(left)
}
