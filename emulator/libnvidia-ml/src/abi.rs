//! What the C signatures are made of. Contracts of the C API ("this pointer is null or valid") are relied on here and
//! nowhere else in the package.

use std::{
    ffi::{CStr, c_char},
    panic::{AssertUnwindSafe, catch_unwind},
};

use meshreduce_emulator_node::{
    node::PciBusId,
    nvml::{Error, Result},
};

/// `nvmlPciInfo_t`.
#[repr(C)]
pub(crate) struct PciInfo {
    bus_id_legacy: [u8; 16],
    domain: u32,
    bus: u32,
    device: u32,
    pci_device_id: u32,
    pci_subsystem_id: u32,
    bus_id: [u8; 32],
}

/// NVIDIA's vendor id, in the low half of a device id. The product's half is not emulated.
const VENDOR: u32 = 0x10de;

impl PciInfo {
    /// The place of a device.
    pub(crate) fn new(id: PciBusId) -> Self {
        Self {
            bus_id_legacy: text(&id.short()),
            domain: id.domain,
            bus: id.bus,
            device: id.device,
            pci_device_id: VENDOR,
            pci_subsystem_id: VENDOR,
            bus_id: text(&id.to_string()),
        }
    }

    /// What NVML answers for the far end of a link to an NVSwitch: a place where nothing is.
    pub(crate) fn none() -> Self {
        Self {
            bus_id_legacy: text("FFFF:FF:FF.0"),
            domain: 0xffff_ffff,
            bus: 0xff,
            device: 0xff,
            pci_device_id: 0,
            pci_subsystem_id: 0,
            bus_id: text("FFFFFFFF:FF:FF.0"),
        }
    }
}

fn text<const N: usize>(text: &str) -> [u8; N] {
    let mut bytes = [0; N];
    let taken = text.len().min(N - 1);
    bytes[..taken].copy_from_slice(&text.as_bytes()[..taken]);
    bytes
}

/// An out-parameter: null, or valid for a write.
#[repr(transparent)]
pub(crate) struct Out<T>(*mut T);

impl<T> Out<T> {
    pub(crate) fn set(self, value: T) -> Result<()> {
        if self.0.is_null() {
            return Err(Error::InvalidArgument);
        }
        // SAFETY: not null, and so valid for a write by the C API's contract. Unaligned, as callers in C may be.
        unsafe { self.0.write_unaligned(value) };
        Ok(())
    }
}

/// A string parameter: null, or zero-terminated and valid during the call.
#[repr(transparent)]
pub(crate) struct Text(*const c_char);

impl Text {
    pub(crate) fn get(&self) -> Result<&str> {
        if self.0.is_null() {
            return Err(Error::InvalidArgument);
        }
        // SAFETY: not null, and so zero-terminated by the C API's contract; the borrow ends with the call.
        unsafe { CStr::from_ptr(self.0) }.to_str().map_err(|_| Error::InvalidArgument)
    }
}

/// A buffer for a zero-terminated string, whose length is another parameter.
#[repr(transparent)]
pub(crate) struct TextBuffer(*mut c_char);

impl TextBuffer {
    pub(crate) fn set(self, text: &str, len: u32) -> Result<()> {
        if self.0.is_null() {
            return Err(Error::InvalidArgument);
        }
        if text.len() >= len as usize {
            return Err(Error::InsufficientSize);
        }
        // SAFETY: the C API's contract: the buffer has `len` bytes, which the text and its zero fit into.
        unsafe {
            std::ptr::copy_nonoverlapping(text.as_ptr(), self.0.cast(), text.len());
            self.0.add(text.len()).write(0);
        }
        Ok(())
    }
}

/// Runs a function's body: an error becomes its code, and a panic goes no further.
pub(crate) fn guard(name: &str, body: impl FnOnce() -> Result<()>) -> u32 {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => 0,
        Ok(Err(error)) => error.code(),
        Err(_) => {
            eprintln!("meshreduce emulator: {name} panicked (see above); answering NVML_ERROR_UNKNOWN");
            Error::Unknown.code()
        }
    }
}

/// Defines functions with C names.
macro_rules! exports {
    ($(fn $name:ident($($arg:ident: $type:ty),* $(,)?) $body:block)*) => {
        $(
            #[unsafe(no_mangle)]
            extern "C" fn $name($($arg: $type),*) -> u32 {
                $crate::abi::guard(stringify!($name), || $body)
            }
        )*
    };
}
pub(crate) use exports;
