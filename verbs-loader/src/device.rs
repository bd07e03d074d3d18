//! The devices of this machine.

use std::fmt;
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::Arc;

use crate::context::Context;
use crate::sys::ibv_device;
use crate::{Error, Library, result};

/// The devices that there were when it was made; in the library's order, which need not be the same next time.
#[derive(Debug)]
pub struct DeviceList(Vec<Device>);

/// A device. Cheap to clone.
#[derive(Clone)]
pub struct Device {
    device: NonNull<ibv_device>,
    list: Arc<List>,
}

/// The library's list, which keeps its devices alive.
struct List {
    list: NonNull<*mut ibv_device>,
    library: Library,
}

// SAFETY: a list is read-only between its making and its freeing, and the library's functions may be called from any
// thread.
unsafe impl Send for List {}
// SAFETY: as above.
unsafe impl Sync for List {}
// SAFETY: the pointer is to something that lives as long as the list, and is read-only.
unsafe impl Send for Device {}
// SAFETY: as above.
unsafe impl Sync for Device {}

impl Drop for List {
    fn drop(&mut self) {
        // SAFETY: nothing has a pointer into it any more; the devices that are open have references of their own.
        unsafe { result::free_device_list(&self.library, self.list) };
    }
}

impl DeviceList {
    pub(crate) fn new(library: &Library) -> Result<Self, Error> {
        let (list, count) = result::get_device_list(library)?;
        let list = Arc::new(List { list, library: library.clone() });
        let devices = (0..count).map_while(|index| {
            // SAFETY: the list has `count` entries before its last, which is null.
            let device = NonNull::new(unsafe { *list.list.as_ptr().add(index) })?;
            Some(Device { device, list: list.clone() })
        });
        Ok(Self(devices.collect()))
    }

    /// The devices of this name. A name should be one device's; containers have been seen where it is not.
    pub fn named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Device> {
        self.0.iter().filter(move |device| device.name() == name)
    }
}

impl Deref for DeviceList {
    type Target = [Device];

    fn deref(&self) -> &[Device] {
        &self.0
    }
}

impl Device {
    /// The kernel's name, `mlx5_0` for instance. Empty if the library gives one that is no UTF-8.
    pub fn name(&self) -> &str {
        // SAFETY: the device lives as long as the list, and so as long as `self`.
        unsafe { result::get_device_name(self.library(), self.device) }.to_str().unwrap_or_default()
    }

    /// Its GUID; 0 where it has none.
    pub fn guid(&self) -> u64 {
        // SAFETY: as above.
        unsafe { result::get_device_guid(self.library(), self.device) }
    }

    /// Opens it.
    ///
    /// # Errors
    ///
    /// [`Error::Verbs`] when the device is gone, or this process may not.
    pub fn open(&self) -> Result<Context, Error> {
        // SAFETY: as above.
        let context = unsafe { result::open_device(self.library(), self.device) }?;
        Ok(Context::new(context, self.clone()))
    }

    /// The library that it is of.
    pub fn library(&self) -> &Library {
        &self.list.library
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Device({} {:016x})", self.name(), self.guid())
    }
}
