//! One of two processes that a test has started and that have an endpoint to each other: its devices' memory, and how they wait for
//! each other beside the endpoint.

use std::sync::Arc;
use std::time::{Duration, Instant};

use meshreduce_channels::{Context, Endpoint, Options, Registry};
use meshreduce_device::{Device, DeviceMemory, PrimaryContext, Stream, Word, Words};
use meshreduce_driver_loader::sys;

use crate::rank_process::Part;

/// A deadline that nothing but a defect lets pass.
pub const LONG: Duration = Duration::from_secs(120);

/// One of the two.
pub struct Peer {
    /// What the test has told it.
    pub part: Part,
    /// Its channels.
    pub context: Context,
    /// To the other one.
    pub endpoint: Endpoint,
}

impl Peer {
    /// Meets the other one, with these channels and devices.
    ///
    /// # Panics
    /// If they do not meet.
    pub fn meet(part: Part, channels: &Registry, devices: &[Device]) -> Self {
        Self::meet_with(part, channels, devices, Options::default().silence)
    }

    /// The same with another limit of silence.
    ///
    /// # Panics
    /// If they do not meet.
    pub fn meet_with(part: Part, channels: &Registry, devices: &[Device], silence: Duration) -> Self {
        Self::meet_by(part, channels, devices, Options { silence, ..Options::default() })
    }

    /// The same with these options, but for the name.
    ///
    /// # Panics
    /// If they do not meet.
    pub fn meet_by(part: Part, channels: &Registry, devices: &[Device], options: Options) -> Self {
        let options = Options { name: Some(format!("rank {}", part.rank)), ..options };
        let context = Context::with_options(channels, devices, options).expect("a context");
        let endpoint = Self::endpoint(&part, &context, "peers");
        Self { part, context, endpoint }
    }

    /// A further endpoint between the two, of this name.
    ///
    /// # Panics
    /// If they do not meet.
    pub fn endpoint(part: &Part, context: &Context, name: &str) -> Endpoint {
        let met = match part.rank {
            0 => context.listen(&*part.store, name, LONG),
            _ => context.connect(&*part.store, name, LONG),
        };
        met.unwrap_or_else(|error| panic!("rank {}: {error}", part.rank))
    }

    /// Waits until both have come here.
    ///
    /// # Panics
    /// If the other one does not come.
    pub fn meet_at(&self, place: &str) {
        self.part.meet_at(place);
    }

    /// Closes endpoint and context, and waits until both are over.
    ///
    /// # Panics
    /// If that takes for ever.
    pub fn end(self) {
        self.endpoint.close();
        self.endpoint.join(LONG).expect("the endpoint ends");
        self.context.close();
        self.context.join(LONG).expect("the context ends");
    }
}

impl Part {
    /// Waits until both of two parts have come here.
    ///
    /// # Panics
    /// If the other one does not come.
    pub fn meet_at(&self, place: &str) {
        let key = |rank| format!("at {place} is {rank}");
        self.store.set(&key(self.rank), b"").expect("the store");
        self.store.wait(&[&key(1 - self.rank)], LONG).expect("the other one comes");
    }

    /// Tells the other one.
    ///
    /// # Panics
    /// If the store is lost.
    pub fn tell(&self, what: &str, bytes: &[u8]) {
        self.store.set(&format!("{what} of {}", self.rank), bytes).expect("the store");
    }

    /// What the other one has told, or will.
    ///
    /// # Panics
    /// If it does not.
    pub fn hear(&self, what: &str) -> Vec<u8> {
        self.store.get(&format!("{what} of {}", 1 - self.rank), LONG).expect("the other one tells")
    }
}

/// What this process has open, without numbers: those of inodes say nothing.
///
/// # Panics
/// If the system does not tell.
pub fn descriptors() -> Vec<String> {
    let files = std::fs::read_dir("/proc/self/fd").expect("this process's files").flatten();
    let targets = files.filter_map(|file| std::fs::read_link(file.path()).ok());
    let mut targets: Vec<String> = targets
        .map(|target| target.display().to_string().chars().filter(|c| !c.is_ascii_digit()).collect())
        .collect();
    targets.sort();
    targets
}

/// Waits until `holds`.
///
/// # Panics
/// If it does not come to that: with what was waited for.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let limit = Instant::now() + LONG;
    while !holds() {
        assert!(Instant::now() < limit, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The byte at `index` of the data with this number: no two runs of them are alike.
pub fn byte(number: u64, index: u64) -> u8 {
    let mixed = (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ index.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (mixed ^ (mixed >> 29) ^ (index >> 3)) as u8
}

/// As many bytes.
pub fn data(number: u64, bytes: u64) -> Vec<u8> {
    (0..bytes).map(|index| byte(number, index)).collect()
}

/// Memory of a device, with a stream to fill and read it.
pub struct Gpu {
    /// Its primary context.
    pub context: Arc<PrimaryContext>,
    /// A stream.
    pub stream: Stream,
}

impl Gpu {
    /// The device with this ordinal.
    ///
    /// # Panics
    /// If there is none.
    pub fn new(ordinal: u32) -> Self {
        meshreduce_device::initialise().expect("a driver");
        let context = PrimaryContext::retain(ordinal).expect("a device");
        let stream = Stream::new(&context).expect("a stream");
        Self { context, stream }
    }

    /// As a device.
    pub fn device(&self) -> Device {
        Device::Cuda(self.context.ordinal())
    }

    /// Memory with these bytes in it.
    ///
    /// # Panics
    /// If the driver refuses.
    pub fn memory(&self, bytes: &[u8]) -> DeviceMemory {
        let memory = self.empty(bytes.len() as u64);
        memory.write(0, bytes, &self.stream).expect("a copy");
        memory
    }

    /// Memory of as many bytes, at least one.
    ///
    /// # Panics
    /// If the driver refuses.
    pub fn empty(&self, bytes: u64) -> DeviceMemory {
        DeviceMemory::new(&self.context, bytes.max(1)).expect("memory")
    }

    /// What is in memory.
    ///
    /// # Panics
    /// If the driver refuses.
    pub fn read(&self, address: u64, bytes: u64) -> Vec<u8> {
        let mut into = vec![0_u8; bytes as usize];
        if bytes > 0 {
            let _entered = self.context.enter().expect("a context");
            // SAFETY: the vector has the length and outlives the copy, which is waited for; what the address is of the driver
            // checks.
            let answer = unsafe {
                sys::cuMemcpyDtoHAsync_v2(
                    into.as_mut_ptr().cast(),
                    address,
                    into.len(),
                    self.stream.raw().get(),
                )
            };
            assert_eq!(answer, sys::CUresult::SUCCESS, "a copy from {address:#x}");
            self.stream.synchronize().expect("a copy");
        }
        into
    }

    /// That memory holds the data with this number.
    ///
    /// # Panics
    /// If not: with the first byte that differs.
    pub fn assert_holds(&self, address: u64, number: u64, bytes: u64) {
        let found = self.read(address, bytes);
        let wrong = (0..bytes).find(|index| found[*index as usize] != byte(number, *index));
        assert_eq!(wrong, None, "data {number} of {bytes} bytes");
    }
}

/// Stops a device's stream until it is told to go on, at the latest when this is dropped, also if the test fails.
pub struct Gate(Word);

impl Gate {
    /// Stops a stream.
    ///
    /// # Panics
    /// If the driver refuses.
    pub fn shut(gpu: &Gpu) -> Self {
        let word = Words::new(&gpu.context).expect("words").take().expect("a word");
        // SAFETY: the stream is alive and not captured.
        unsafe { word.enqueue_wait(1, gpu.stream.raw()) }.expect("a wait");
        Self(word)
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.0.set(1);
    }
}
