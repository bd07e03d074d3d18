//! What can be registered.

use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use meshreduce_verbs_loader::{Access, DmaBufSupport, Error, MemoryRegion, ProtectionDomain};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::RAILS;
use crate::endpoint::Endpoint;
use crate::gpu::Gpu;
use crate::memory::{PAGE, access, register_device};

const BYTES: usize = 1 << 20;
/// A user without privileges.
const NOBODY: u32 = 65534;
/// What such a user may lock.
const LOCKED: u64 = 64 << 10;

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Refused {
    /// As this process is, only that too much locked memory is refused
    #[arg(long, hide = true)]
    as_user: bool,
}

impl Refused {
    /// Without anything that knows the GPU's memory.
    pub(crate) fn check(&self) -> Result<()> {
        let end = Endpoint::open(RAILS[0][0])?;
        let domain = end.domain();
        if self.as_user {
            let mut memory = vec![0_u8; BYTES];
            expect(
                "more than may be locked",
                register(domain, memory.as_mut_ptr(), BYTES, access()),
                "ENOMEM",
            )?;
            register(domain, memory.as_mut_ptr(), LOCKED as usize / 2, access())
                .context("half of what may be locked")?;
            return Ok(());
        }
        let mut memory = vec![0_u8; BYTES];
        let address = memory.as_mut_ptr();
        register(domain, address, BYTES, access()).context("memory of this process")?;
        expect(
            "remote writes without local ones",
            register(domain, address, BYTES, Access::REMOTE_WRITE),
            "EINVAL",
        )?;
        expect("an address that is nobody's", register(domain, unmapped()?, BYTES, access()), "EFAULT")?;
        let gpu = Gpu::open(0)?;
        let device = gpu.allocate(BYTES)?;
        expect("memory of a GPU", register_device(domain, device.address(), BYTES), "EFAULT")?;
        match domain.dma_buf_support() {
            DmaBufSupport::Unsupported(error) => expect_error("dma-bufs", &error, "EOPNOTSUPP")?,
            other => bail!("dma-bufs: {other:?}"),
        }
        self.again_as_user()
    }

    /// The same program as a user without privileges.
    fn again_as_user(&self) -> Result<()> {
        let before = getrlimit(Resource::Memlock);
        setrlimit(Resource::Memlock, Rlimit { current: Some(LOCKED), maximum: before.maximum })?;
        let ended = Command::new(std::env::current_exe()?)
            .args(["refused", "--as-user"])
            .uid(NOBODY)
            .gid(NOBODY)
            .status()
            .context("as another user");
        setrlimit(Resource::Memlock, before)?;
        ensure!(ended?.success(), "the part of a user without privileges failed");
        Ok(())
    }
}

/// With a library that knows the GPU's memory.
pub(crate) fn granted() -> Result<()> {
    let end = Endpoint::open(RAILS[0][0])?;
    let domain = end.domain();
    let mut memory = vec![0_u8; BYTES];
    let address = memory.as_mut_ptr();
    let region = register(domain, address, BYTES, access()).context("memory of this process")?;
    ensure!(region.address() == address.addr() as u64, "it is known by another address");
    expect(
        "remote writes without local ones",
        register(domain, address, BYTES, Access::REMOTE_WRITE),
        "EINVAL",
    )?;
    expect("an address that is nobody's", register(domain, unmapped()?, BYTES, access()), "EFAULT")?;

    let gpu = Gpu::open(0)?;
    let device = gpu.allocate(BYTES)?;
    let base = device.address();
    for (what, offset, bytes) in
        [("all", 0, BYTES), ("its middle", 4099, 70_000), ("its last byte", BYTES - 1, 1)]
    {
        let region = register_device(domain, base + offset as u64, bytes).with_context(|| what.to_owned())?;
        ensure!(region.address() == base + offset as u64, "{what} is known by another address");
        region.deregister()?;
    }
    expect("more than the allocation has", register_device(domain, base + 1, BYTES), "EFAULT")?;
    let twice = [0, 1].map(|_| register_device(domain, base, BYTES));
    let [first, second] = twice;
    ensure!(first?.rkey() != second?.rkey(), "two regions have one key");

    match domain.dma_buf_support() {
        DmaBufSupport::Supported => {}
        other => bail!("dma-bufs: {other:?}"),
    }
    // Two pages, registered without the first of them.
    let first = base.next_multiple_of(PAGE as u64);
    let buffer = gpu.dma_buf(first, 2 * PAGE)?;
    let second = first + PAGE as u64;
    // SAFETY: the allocation outlives the region, whose keys nobody has.
    let region = unsafe { domain.register_dma_buf(buffer.as_fd(), PAGE as u64, PAGE, second, access()) }?;
    drop(buffer);
    ensure!(region.address() == second, "a dma-buf is known by another address");
    region.deregister()?;

    drop(device);
    expect("memory that was freed", register_device(domain, base, BYTES), "EFAULT")
}

fn register(
    domain: &ProtectionDomain,
    address: *mut u8,
    bytes: usize,
    access: Access,
) -> Result<MemoryRegion, Error> {
    // SAFETY: nobody has the keys, and nothing is posted.
    unsafe { domain.register(address, bytes, access) }
}

/// An address at which nothing is any more.
fn unmapped() -> Result<*mut u8> {
    // SAFETY: the kernel chooses a free range; nobody uses it before it is given back.
    unsafe {
        let range = mmap_anonymous(std::ptr::null_mut(), BYTES, ProtFlags::READ, MapFlags::PRIVATE)?;
        munmap(range, BYTES)?;
        Ok(range.cast())
    }
}

fn expect(what: &str, answer: Result<MemoryRegion, Error>, errno: &str) -> Result<()> {
    match answer {
        Ok(region) => bail!("{what}: {region:?} instead of {errno}"),
        Err(error) => expect_error(what, &error, errno),
    }
}

fn expect_error(what: &str, error: &Error, errno: &str) -> Result<()> {
    match error {
        Error::Verbs(error) if error.name() == Some(errno) => println!("{what}: {error}"),
        error => bail!("{what}: {error} instead of {errno}"),
    }
    Ok(())
}
