//! `ncclGroupStart` and `ncclGroupEnd`: what a thread collects in between.
#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::sync::Arc;

use crate::comm::start::Start;
use crate::failure::{Code, NcclError, Result};
use crate::job::{self, Task};

#[derive(Default)]
struct Group {
    depth: u32,
    failure: Option<NcclError>,
    starts: Vec<Start>,
    tasks: Vec<Task>,
}

thread_local! {
    static GROUP: RefCell<Group> = RefCell::default();
}

/// `ncclGroupStart`.
pub(crate) fn start() {
    GROUP.with_borrow_mut(|group| group.depth += 1);
}

/// Makes the thread's group fail at its end, if there is one: nothing of it is done then.
pub(crate) fn fail(failure: &NcclError) {
    GROUP.with_borrow_mut(|group| {
        if group.depth > 0 {
            group.failure.get_or_insert_with(|| failure.clone());
        }
    });
}

/// Whether the thread is in a group.
pub(crate) fn is_open() -> bool {
    GROUP.with_borrow(|group| group.depth > 0)
}

/// Issues a task, or keeps it for the end of the group.
pub(crate) fn submit(task: Task) -> Result<()> {
    let now = GROUP.with_borrow_mut(|group| {
        if group.depth == 0 {
            return Some(task);
        }
        group.tasks.push(task);
        None
    });
    now.map_or(Ok(()), |task| job::launch(&[task]))
}

/// Starts a communicator: at the end of the group; or behind the call, or in it, as the communicator wants it.
pub(crate) fn begin(start: Start) -> Result<Code> {
    let blocking = start.communicator.blocking;
    if is_open() {
        GROUP.with_borrow_mut(|group| group.starts.push(start));
        return Ok(if blocking { Code::Success } else { Code::InProgress });
    }
    if blocking {
        return start.run().map(|()| Code::Success);
    }
    start.spawn().map(|()| Code::InProgress)
}

/// `ncclGroupEnd`.
pub(crate) fn end() -> Result<Code> {
    let group = GROUP.with_borrow_mut(|group| {
        let depth = group.depth.checked_sub(1);
        group.depth = depth.ok_or_else(|| NcclError::usage("ncclGroupEnd: not in a group call."))?;
        Ok(if group.depth == 0 { std::mem::take(group) } else { Group::default() })
    })?;
    if let Some(failure) = group.failure {
        group.starts.iter().for_each(|start| start.cancel(&failure));
        return Err(failure);
    }
    let code = start_all(group.starts)?;
    launch_all(group.tasks)?;
    Ok(code)
}

/// All at the same time, because each waits for its other ranks.
fn start_all(starts: Vec<Start>) -> Result<Code> {
    let (blocking, behind): (Vec<_>, Vec<_>) =
        starts.into_iter().partition(|start| start.communicator.blocking);
    let code = if behind.is_empty() { Code::Success } else { Code::InProgress };
    behind.into_iter().try_for_each(Start::spawn)?;
    let panicked = || Err(NcclError::internal("making a communicator panicked"));
    let outcomes: Vec<Result<()>> = std::thread::scope(|scope| {
        let threads: Vec<_> = blocking.into_iter().map(|start| scope.spawn(|| start.run())).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| panicked())).collect()
    });
    outcomes.into_iter().collect::<Result<Vec<()>>>()?;
    Ok(code)
}

/// The tasks of each communicator are one job.
fn launch_all(tasks: Vec<Task>) -> Result<()> {
    let mut by_communicator: Vec<Vec<Task>> = Vec::new();
    for task in tasks {
        let same = |group: &&mut Vec<Task>| Arc::ptr_eq(&group[0].communicator, &task.communicator);
        match by_communicator.iter_mut().find(same) {
            Some(group) => group.push(task),
            None => by_communicator.push(vec![task]),
        }
    }
    by_communicator.iter().try_for_each(|tasks| job::launch(tasks))
}
