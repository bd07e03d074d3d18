//! Stream memory operations.

use meshreduce_emulator_node::driver::{Error, Handle, MemoryOp, Operand, Result, driver};

use crate::abi::exports;

/// `CUstreamBatchMemOpParams`: a union of 48 bytes. That of a wait or a write is the longest that is used, and the others
/// begin alike.
#[repr(C)]
struct BatchOp {
    operation: u32,
    address: u64,
    value: u64,
    flags: u32,
    _alias: u64,
    _rest: u64,
}

const _: () = assert!(size_of::<BatchOp>() == 48);

/// `CUstreamBatchMemOpType`.
const WAIT_32: u32 = 1;
const WRITE_32: u32 = 2;
const FLUSH: u32 = 3;
const WAIT_64: u32 = 4;
const WRITE_64: u32 = 5;
const BARRIER: u32 = 6;

impl BatchOp {
    fn read(&self) -> Result<MemoryOp> {
        let &Self { operation, address, value, flags, .. } = self;
        // A union: a word is the low half.
        let (word, double) = (Operand::Word(value as u32), Operand::Double(value));
        match operation {
            WAIT_32 => MemoryOp::wait(address, word, flags),
            WAIT_64 => MemoryOp::wait(address, double, flags),
            WRITE_32 => MemoryOp::write(address, word, flags),
            WRITE_64 => MemoryOp::write(address, double, flags),
            BARRIER => Ok(MemoryOp::barrier()),
            FLUSH => Err(Error::NotSupported),
            _ => Err(Error::InvalidValue),
        }
    }
}

exports! {
    fn cuStreamWaitValue32_v2(stream: Handle, address: u64, value: u32, flags: u32) {
        driver()?.stream_memory_ops(stream, &[MemoryOp::wait(address, Operand::Word(value), flags)?])
    }

    fn cuStreamWaitValue64_v2(stream: Handle, address: u64, value: u64, flags: u32) {
        driver()?.stream_memory_ops(stream, &[MemoryOp::wait(address, Operand::Double(value), flags)?])
    }

    fn cuStreamWriteValue32_v2(stream: Handle, address: u64, value: u32, flags: u32) {
        driver()?.stream_memory_ops(stream, &[MemoryOp::write(address, Operand::Word(value), flags)?])
    }

    fn cuStreamWriteValue64_v2(stream: Handle, address: u64, value: u64, flags: u32) {
        driver()?.stream_memory_ops(stream, &[MemoryOp::write(address, Operand::Double(value), flags)?])
    }

    fn cuStreamBatchMemOp_v2(stream: Handle, count: u32, ops: *const BatchOp, flags: u32) {
        if flags != 0 || (count > 0 && ops.is_null()) {
            return Err(Error::InvalidValue);
        }
        // SAFETY: the C API's contract: the array has `count` elements.
        let ops = (0..count as usize).map(|index| unsafe { &*ops.add(index) }.read());
        driver()?.stream_memory_ops(stream, &ops.collect::<Result<Vec<_>>>()?)
    }

    // The first forms, which the real driver has too and refuses, unless it is started with an option (attributes 92 to 94).
    fn cuStreamWaitValue32(_stream: Handle, _address: u64, _value: u32, _flags: u32) {
        driver()?;
        Err(Error::NotSupported)
    }

    fn cuStreamWaitValue64(_stream: Handle, _address: u64, _value: u64, _flags: u32) {
        driver()?;
        Err(Error::NotSupported)
    }

    fn cuStreamWriteValue32(_stream: Handle, _address: u64, _value: u32, _flags: u32) {
        driver()?;
        Err(Error::NotSupported)
    }

    fn cuStreamWriteValue64(_stream: Handle, _address: u64, _value: u64, _flags: u32) {
        driver()?;
        Err(Error::NotSupported)
    }

    fn cuStreamBatchMemOp(_stream: Handle, _count: u32, _ops: *const BatchOp, _flags: u32) {
        driver()?;
        Err(Error::NotSupported)
    }
}
