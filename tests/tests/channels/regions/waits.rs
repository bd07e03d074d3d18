//! How one waits for a counter: by the host, as a future, and by a kernel.

use super::*;

/// Waits at `word` until it is at least `expected`, and then tells what it has read there and what the data are.
pub(super) const WAITER: &str = "\
.version 7.0
.target sm_70
.address_size 64
.visible .entry waiter(.param .u64 word, .param .u64 expected, .param .u64 data, .param .u64 out) {
    .reg .pred %p<2>; .reg .b64 %rd<7>;
    ld.param.u64 %rd1, [word]; ld.param.u64 %rd2, [expected];
    ld.param.u64 %rd3, [data]; ld.param.u64 %rd4, [out];
$L_again:
    ld.acquire.sys.global.u64 %rd5, [%rd1];
    setp.lt.u64 %p1, %rd5, %rd2;
    @%p1 bra $L_again;
    ld.global.u64 %rd6, [%rd3];
    st.global.u64 [%rd4], %rd5;
    st.global.u64 [%rd4+8], %rd6;
    ret;
}";

/// A kernel that waits at a word.
pub(super) struct Waiting {
    stream: Stream,
    out: DeviceMemory,
    _module: Module,
}

impl Waiting {
    pub(super) fn new(gpu: &Gpu, word: u64, expected: u64, data: u64) -> Self {
        let module = Module::load(&gpu.context, WAITER).unwrap();
        let stream = Stream::new(&gpu.context).unwrap();
        let out = gpu.memory(&[0; 16]);
        let entered = gpu.context.enter().unwrap();
        let mut function = std::ptr::null_mut();
        let mut raw = std::ptr::null_mut();
        // SAFETY: both places outlive the calls, and the texts end with a zero.
        unsafe {
            let text = format!("{WAITER}\0");
            assert_eq!(
                sys::cuModuleLoadDataEx(
                    &mut raw,
                    text.as_ptr().cast(),
                    0,
                    std::ptr::null_mut(),
                    std::ptr::null_mut()
                ),
                sys::CUresult::SUCCESS
            );
            assert_eq!(
                sys::cuModuleGetFunction(&mut function, raw, c"waiter".as_ptr()),
                sys::CUresult::SUCCESS
            );
        }
        let parameters = [word, expected, data, out.address()];
        let mut places =
            parameters.each_ref().map(|value| std::ptr::from_ref(value).cast_mut().cast::<c_void>());
        // SAFETY: the kernel's parameters are four 64-bit values, of which the addresses stay valid until it has ended: whoever
        // makes it waits for that.
        let launched = unsafe {
            sys::cuLaunchKernel(
                function,
                1,
                1,
                1,
                1,
                1,
                1,
                0,
                stream.raw().get(),
                places.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        assert_eq!(launched, sys::CUresult::SUCCESS);
        drop(entered);
        Self { stream, out, _module: module }
    }

    fn runs(&self) -> bool {
        !self.stream.finish(Duration::ZERO).unwrap()
    }

    /// What it has read of the word and of the data.
    pub(super) fn end(self, gpu: &Gpu) -> (u64, u64) {
        self.stream.synchronize().unwrap();
        let read = gpu.read(self.out.address(), 16);
        let number = |at: usize| u64::from_le_bytes(read[at..at + 8].try_into().unwrap());
        (number(0), number(8))
    }
}

/// Runs a future to its end on this thread.
pub(super) fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(std::thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker: Waker = Arc::new(Unpark(std::thread::current())).into();
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut TaskContext::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}

pub(super) fn waits(peer: Peer, gpu: Gpu) {
    let word = |number: u64| u64::from_le_bytes(data(number, 8).try_into().unwrap());
    if peer.part.rank == 0 {
        let region = peer.context.register(gpu.memory(&[0; 8])).unwrap();
        let address = region.span().address;
        let counter = peer.endpoint.counter();
        show(&peer, &region.descriptor(), &counter);
        // Whoever only looks.
        peer.meet_at("look");
        eventually("the count is seen", || counter.value() == 1);
        gpu.assert_holds(address, 1, 8);
        // Whoever waits.
        assert!(matches!(counter.wait(2, BRIEF), Err(Error::TimedOut { .. })));
        peer.meet_at("wait");
        assert_eq!(counter.wait(2, LONG).unwrap(), 2);
        gpu.assert_holds(address, 2, 8);
        // A future.
        peer.meet_at("await");
        assert_eq!(block_on(counter.reached(3)).unwrap(), 3);
        gpu.assert_holds(address, 3, 8);
        // A kernel that runs already, and one that comes too late.
        let place = counter.word(gpu.device()).unwrap();
        assert_eq!(counter.word(gpu.device()).unwrap(), place, "it is always the same");
        let waiting = Waiting::new(&gpu, place, 4, address);
        std::thread::sleep(BRIEF);
        assert!(waiting.runs());
        peer.meet_at("kernel");
        assert_eq!(waiting.end(&gpu), (4, word(4)));
        assert_eq!(Waiting::new(&gpu, place, 2, address).end(&gpu), (4, word(4)));
        // A kernel whose count cannot be reached any more.
        let hopeless = Waiting::new(&gpu, place, 100, address);
        peer.meet_at("close");
        assert_eq!(hopeless.end(&gpu).0, POISON);
        match counter.wait(100, LONG) {
            Err(Error::CountUnreachable { peer, batches: 4, expected: 100, bytes: 32, why, .. }) => {
                assert!(peer.contains("rank 1"), "{peer}");
                assert!(matches!(*why, Error::ClosedByPeer { .. }), "{why}");
            }
            other => panic!("{other:?}"),
        }
        // And one whose counter is dropped.
        let late = peer.endpoint.counter();
        assert!(late.failure().is_some());
        peer.meet_at("closed");
        close(region);
    } else {
        let (to, counter) = shown(&peer);
        // Nothing is allocated or freed while a kernel waits: the driver may wait for it.
        let region = |number| peer.context.register(gpu.memory(&data(number, 8))).unwrap();
        let regions: Vec<_> = (1..5).map(region).collect();
        for (region, place) in regions.iter().zip(["look", "wait", "await", "kernel"]) {
            peer.meet_at(place);
            peer.endpoint.write(region, &to, Pages::range(0, 0, 8), &counter, None).wait(LONG).unwrap();
        }
        peer.meet_at("close");
        peer.endpoint.close();
        peer.meet_at("closed");
        regions.into_iter().for_each(|region| drop(close(region)));
    }
    peer.end();
}

pub(super) fn counts(peer: Peer, gpu: Gpu) {
    if peer.part.rank == 0 {
        let region = peer.context.register(gpu.memory(&[0; 100])).unwrap();
        let counters = [peer.endpoint.counter(), peer.endpoint.counter(), peer.endpoint.counter()];
        show(&peer, &region.descriptor(), &counters[0]);
        peer.part.tell("second", &counters[1].descriptor().to_bytes());
        let [one, other, third] = counters;
        peer.part.tell("third", &third.descriptor().to_bytes());
        // A batch without bytes counts too, in its turn.
        assert_eq!(one.wait(3, LONG).unwrap(), 3);
        assert_eq!((one.bytes(), other.value()), (20, 0));
        peer.meet_at("one");
        assert_eq!(other.wait(5, LONG).unwrap(), 5);
        assert_eq!((one.value(), other.bytes()), (3, 50));
        // The next round.
        assert_eq!(other.reset().unwrap(), 5);
        let word = other.word(gpu.device()).unwrap();
        peer.meet_at("other");
        assert_eq!(other.wait(2, LONG).unwrap(), 2);
        assert_eq!(Waiting::new(&gpu, word, 2, region.span().address).end(&gpu).0, 2);
        // Batches for a counter that is dropped count nowhere, and a kernel that waits there ends.
        let waiting = Waiting::new(&gpu, third.word(gpu.device()).unwrap(), 1, region.span().address);
        drop(third);
        assert_eq!(waiting.end(&gpu).0, POISON);
        peer.meet_at("dropped");
        assert_eq!(one.wait(4, LONG).unwrap(), 4);
        peer.meet_at("the end");
    } else {
        let (to, one) = shown(&peer);
        let other = CounterDescriptor::from_bytes(&peer.part.hear("second")).unwrap();
        let third = CounterDescriptor::from_bytes(&peer.part.hear("third")).unwrap();
        let region = peer.context.register(gpu.memory(&[1; 100])).unwrap();
        let write = |pages: Pages, counter: &CounterDescriptor| {
            peer.endpoint.write(&region, &to, pages, counter, None).wait(LONG).unwrap()
        };
        let ten = || Pages::range(3, 40, 10);
        assert_eq!([write(ten(), &one), write(Pages::default(), &one), write(ten(), &one)], [10, 0, 10]);
        peer.meet_at("one");
        (0..5).for_each(|_| assert_eq!(write(ten(), &other), 10));
        peer.meet_at("other");
        (0..2).for_each(|_| assert_eq!(write(ten(), &other), 10));
        peer.meet_at("dropped");
        write(ten(), &third);
        write(ten(), &one);
        peer.meet_at("the end");
    }
    peer.end();
}
