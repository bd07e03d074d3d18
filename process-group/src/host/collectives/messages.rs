//! Gather, scatter, all_to_all: what ranks know only their own lengths of. By messages, whose lengths are compared.

use super::exchange::Exchange;
use super::{Engine, copy, pointer};
use crate::error::Error;
use crate::host::wait::Wait;
use crate::tensor::{Parts, Tensor};

impl Engine {
    /// # Safety
    ///
    /// As [`Engine::run`].
    pub(super) unsafe fn gather(
        &mut self,
        input: &Tensor,
        outputs: Option<&Parts<'_>>,
        root: usize,
        wait: &Wait<'_>,
    ) -> Result<(), Error> {
        let exchange = Exchange::new(wait, &self.ticket);
        // SAFETY: the caller's promise; the exchange ends before this returns.
        unsafe {
            match outputs {
                Some(outputs) => {
                    for rank in 0..self.world_size {
                        let part = outputs.part(rank, self.world_size);
                        match rank == self.rank {
                            true => copy(pointer(input), pointer(&part), part.bytes()),
                            false => exchange.receive(rank, 0, pointer(&part), part.bytes())?,
                        }
                    }
                }
                None => exchange.send(root, 0, pointer(input), input.bytes())?,
            }
        }
        exchange.finish()
    }

    /// # Safety
    ///
    /// As [`Engine::run`].
    pub(super) unsafe fn scatter(
        &mut self,
        inputs: Option<&Parts<'_>>,
        output: &Tensor,
        root: usize,
        wait: &Wait<'_>,
    ) -> Result<(), Error> {
        let exchange = Exchange::new(wait, &self.ticket);
        // SAFETY: the caller's promise; the exchange ends before this returns.
        unsafe {
            match inputs {
                Some(inputs) => {
                    for rank in 0..self.world_size {
                        let part = inputs.part(rank, self.world_size);
                        match rank == self.rank {
                            true => copy(pointer(&part), pointer(output), part.bytes()),
                            false => exchange.send(rank, 0, pointer(&part), part.bytes())?,
                        }
                    }
                }
                None => exchange.receive(root, 0, pointer(output), output.bytes())?,
            }
        }
        exchange.finish()
    }

    /// # Safety
    ///
    /// As [`Engine::run`].
    pub(super) unsafe fn all_to_all(
        &mut self,
        inputs: &Parts<'_>,
        outputs: &Parts<'_>,
        wait: &Wait<'_>,
    ) -> Result<(), Error> {
        let exchange = Exchange::new(wait, &self.ticket);
        let others = || (1..self.world_size).map(|distance| (self.rank + distance) % self.world_size);
        // SAFETY: the caller's promise; the exchange ends before this returns.
        unsafe {
            for rank in others() {
                let part = outputs.part(rank, self.world_size);
                exchange.receive(rank, 0, pointer(&part), part.bytes())?;
            }
            for rank in others() {
                let part = inputs.part(rank, self.world_size);
                exchange.send(rank, 0, pointer(&part), part.bytes())?;
            }
            let (from, to) =
                (inputs.part(self.rank, self.world_size), outputs.part(self.rank, self.world_size));
            copy(pointer(&from), pointer(&to), to.bytes());
        }
        exchange.finish()
    }
}
