//! A backend that a program uses by itself, without a group. Ranks are threads.
#![allow(clippy::unwrap_used, reason = "a test may end so")]

use std::sync::Arc;
use std::time::Duration;

use meshreduce_process_group::store::{MemoryStore, Store as _};
use meshreduce_process_group::{
    Backend, BackendContext, BackendFactory, BufferMut as _, Call, Device, Error, HostFactory, ReduceOp,
    Request,
};

const FAR: Duration = Duration::from_secs(60);

fn all_reduce(backend: &dyn Backend, data: &mut [f64], sequence: u64) -> Result<(), Error> {
    let tensor = data.tensor_mut();
    let call = Call::AllReduce { input: tensor, output: tensor, op: ReduceOp::Sum };
    backend.supports(&call).unwrap();
    let mut request = Request::new();
    (request.sequence, request.deadline) = (sequence, Some(FAR));
    // SAFETY: nobody else uses the data before the call has ended.
    unsafe { backend.start(&call, &request) }?.wait(Some(FAR)).map(drop)
}

#[test]
fn ranks_use_a_backend_by_itself() {
    let store = Arc::new(MemoryStore::new());
    std::thread::scope(|scope| {
        for rank in 0..3 {
            let store = Arc::clone(&store);
            scope.spawn(move || {
                let mut context = BackendContext::new(store, rank, 3, Device::Cpu);
                context.timeout = FAR;
                let backend = HostFactory::new().create(context).unwrap();
                for sequence in 1..=3 {
                    let mut data = [rank as f64, sequence as f64];
                    all_reduce(&*backend, &mut data, sequence).unwrap();
                    assert_eq!(data, [3.0, 3.0 * sequence as f64]);
                }
                backend.shutdown(FAR).unwrap();
                assert!(matches!(all_reduce(&*backend, &mut [1.0], 4), Err(Error::ShutDown { .. })));
            });
        }
    });
    assert_eq!(store.list_keys().unwrap(), Vec::<String>::new());
}
