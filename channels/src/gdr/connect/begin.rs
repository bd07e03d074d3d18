//! Making queue pairs and connecting them, by threads of their own.
#![forbid(unsafe_code)]

use std::sync::Arc;

use meshreduce_verbs_loader::QueuePair;

use super::{Connections, Making};
use crate::error::Error;
use crate::gdr::job::Job;
use crate::gdr::making::{End, connect_queue_pair, make_queue_pair};
use crate::gdr::rails::Pairing;

impl Connections {
    /// Begins to make a queue pair, and to connect it if the other `end` is known.
    pub(super) fn make(&self, pairing: Pairing, sequence: u32, end: Option<End>) -> Result<Making, Error> {
        let nic = self.nic(pairing.0);
        let hub = Arc::clone(&self.hub);
        let connect = end.map(|end| self.connecting(pairing, sequence, end)).transpose()?;
        self.job(move || {
            let made = make_queue_pair(&hub, nic)?;
            if let Some(connect) = connect {
                connect(&made)?;
            }
            Ok(Arc::new(made))
        })
    }

    pub(super) fn job(
        &self,
        work: impl FnOnce() -> Result<Arc<QueuePair>, String> + Send + 'static,
    ) -> Result<Making, Error> {
        Job::begin(&self.hub.waker, work).map_err(|source| {
            let what = "a thread that connects queue pairs".into();
            Error::System { what, source: Arc::new(source) }
        })
    }

    /// What connects a queue pair to another one.
    pub(super) fn connecting(
        &self,
        (here, there): Pairing,
        sequence: u32,
        end: End,
    ) -> Result<impl FnOnce(&QueuePair) -> Result<(), String> + Send + use<>, Error> {
        let (local, remote) = (&self.local.ports[here], &self.remote.ports[there]);
        let route = local.route_to(remote).map_err(|why| Error::Verbs { what: why.into() })?;
        let (nic, hub) = (self.nic(here), Arc::clone(&self.hub));
        Ok(move |queue_pair: &QueuePair| connect_queue_pair(&hub, nic, queue_pair, route, sequence, end))
    }
}
