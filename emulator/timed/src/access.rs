//! Loads, stores and atomics: on their way to memory, there, and back.
//!
//! What lies near a multiprocessor (parameters, shared memory, a hit in the L1 cache) is done at once. The rest is a
//! *request* for each allocation that a warp's threads access: it queues for the multiprocessor's port and perhaps for
//! NVLink, is done when it arrives, in the order in which requests arrive, and its answer queues on the way back.

use meshreduce_emulator_ptx::semantics::convert::extend;
use meshreduce_emulator_ptx::types::{Order, Space};
use meshreduce_emulator_ptx::{FaultKind, Load, Op, Store, window};

use crate::cache::LINE;
use crate::error::TimedError;
use crate::machine::{EventKind, Machine};
use crate::memory::{Owner, Place, scalar};
use crate::path::{NOBODY, Node, NodeId};
use crate::program::Instruction;
use crate::request::{Awaited, LANES, Request, SECTOR, Shape, Touched, Values, kind, results};
use crate::time::{Time, UNKNOWN};
use crate::warp::{Warp, lanes};

/// Bytes of a line of parameters or constants.
const CONSTANTS: u64 = 64;

impl Machine {
    /// Executes an access of the threads in `mask`.
    pub(crate) fn access(
        &mut self,
        warp: &mut Warp,
        instruction: &Instruction,
        at: u32,
        mask: u32,
    ) -> Result<(), TimedError> {
        let shape = Shape::of(&instruction.op);
        let mut addresses = [0; LANES];
        for lane in lanes(mask) {
            addresses[lane as usize] = shape.address(warp, lane);
        }
        let is_far = |lane: &u32| window::of(addresses[*lane as usize]) == Space::Global;
        let far = match shape.space {
            Space::Global => mask,
            Space::Generic => lanes(mask).filter(is_far).fold(0, |all, lane| all | 1 << lane),
            _ => 0,
        };
        let mut ready = self.now;
        if far != mask {
            ready = self.near(warp, instruction, &shape, mask & !far)?;
        }
        if far == 0 {
            warp.bring(&instruction.writes, ready, warp.cause);
            return Ok(());
        }
        let mut places = [None; LANES];
        let mut hint = None;
        for lane in lanes(far) {
            let found = self.memory.find(addresses[lane as usize], shape.bytes(), shape.access, hint);
            hint = Some(found.map_err(|kind| self.fault(warp, lane, instruction.line, kind))?);
            places[lane as usize] = hint;
        }
        let answers = !results(&instruction.op).is_empty();
        let awaited = answers.then(|| self.expect(ready));
        let mut left = far;
        while left != 0 {
            let first = left.trailing_zeros() as usize;
            let Some(place) = places[first] else { break };
            let same = |lane: &u32| places[*lane as usize].is_some_and(|other: Place| other.is(place));
            let part = lanes(left).filter(same).fold(0, |all, lane| all | 1 << lane);
            left &= !part;
            self.request(warp, instruction, &shape, (at, part), (place, &addresses), awaited)?;
        }
        if let Some(awaited) = awaited {
            if self.awaited[awaited as usize].parts == 0 {
                let Awaited { ready, cause, .. } = self.awaited[awaited as usize];
                self.spare_awaited.push(awaited);
                warp.bring(&instruction.writes, ready, cause);
                (warp.loaded, warp.loaded_by) = Self::later((warp.loaded, warp.loaded_by), (ready, cause));
            } else {
                warp.bring(&instruction.writes, UNKNOWN, NOBODY);
                warp.loads += 1;
            }
            if matches!(shape.order, Order::Acquire | Order::AcqRel | Order::SeqCst) {
                warp.holds = true;
                self.cores[warp.core as usize].l1.clear();
            }
        }
        Ok(())
    }

    fn expect(&mut self, ready: Time) -> u32 {
        let new = Awaited { parts: 0, ready, cause: NOBODY };
        match self.spare_awaited.pop() {
            Some(at) => {
                self.awaited[at as usize] = new;
                at
            }
            None => {
                self.awaited.push(new);
                self.awaited.len() as u32 - 1
            }
        }
    }

    /// Accesses what lies in the multiprocessor, at once; when it is there.
    fn near(
        &mut self,
        warp: &mut Warp,
        instruction: &Instruction,
        shape: &Shape,
        mask: u32,
    ) -> Result<Time, TimedError> {
        let width = shape.ty.bytes() as usize;
        let bytes = shape.bytes();
        let mut ready = self.now;
        for lane in lanes(mask) {
            let (space, offset) = window::resolve(shape.space, shape.address(warp, lane));
            let wrong = |kind| Err(self.fault(warp, lane, instruction.line, kind));
            if !offset.is_multiple_of(u64::from(bytes)) {
                return wrong(FaultKind::Misaligned { access: shape.access, address: offset, bytes });
            }
            let size = self.near_memory(warp, lane, space).len();
            if offset.checked_add(u64::from(bytes)).is_none_or(|end| end > size as u64) {
                let nearest = format!("{space:?} memory has {size} bytes");
                return wrong(FaultKind::OutOfBounds {
                    access: shape.access,
                    address: offset,
                    bytes,
                    nearest,
                });
            }
            let at = offset as usize;
            let takes = match space {
                Space::Shared => self.costs.shared,
                Space::Param | Space::Const => self.constant(warp.core, (space, offset / CONSTANTS)),
                _ => self.costs.l1,
            };
            ready = ready.max(self.now + takes);
            match &instruction.op {
                Op::Load(load) => {
                    for (part, &slot) in load.d[..usize::from(load.lanes)].iter().enumerate() {
                        let value = scalar(self.near_memory(warp, lane, space), at + part * width, width);
                        warp.set(lane, slot, extend(value, load.ty));
                    }
                }
                Op::Store(store) => {
                    for (part, &slot) in store.a[..usize::from(store.lanes)].iter().enumerate() {
                        let value = warp.get(lane, slot);
                        self.near_store(warp, (lane, space), at + part * width, width, value);
                    }
                }
                Op::Atomic(atomic) => {
                    let old = scalar(self.near_memory(warp, lane, space), at, width);
                    let (a, b) = (warp.get(lane, atomic.a), warp.get(lane, atomic.b));
                    let new = atomic.op.apply(atomic.ty, old, a, b);
                    self.near_store(warp, (lane, space), at, width, new);
                    if let Some(d) = atomic.d {
                        warp.set(lane, d, extend(old, atomic.ty));
                    }
                }
                _ => {}
            }
        }
        Ok(ready)
    }

    /// What a look at a line of parameters or constants takes.
    fn constant(&mut self, core: u32, line: (Space, u64)) -> Time {
        let known = &mut self.cores[core as usize].constants;
        if known.contains(&line) {
            return 0;
        }
        known.push(line);
        self.costs.constant
    }

    fn near_memory<'a>(&'a self, warp: &'a Warp, lane: u32, space: Space) -> &'a [u8] {
        let block = &self.blocks[warp.block as usize];
        match space {
            Space::Shared => &block.shared,
            Space::Param => &block.launch.params,
            Space::Const => &block.launch.kernel.constant_memory,
            _ => {
                let each = block.launch.kernel.local_bytes as usize;
                &warp.local[each * lane as usize..][..each]
            }
        }
    }

    fn near_store(
        &mut self,
        warp: &mut Warp,
        (lane, space): (u32, Space),
        at: usize,
        width: usize,
        value: u64,
    ) {
        let block = &mut self.blocks[warp.block as usize];
        let bytes = &value.to_le_bytes()[..width];
        match space {
            Space::Shared => block.shared[at..at + width].copy_from_slice(bytes),
            // Parameters and constants cannot be stored to: the ISA has no such instruction.
            Space::Param | Space::Const => {}
            _ => {
                let each = block.launch.kernel.local_bytes as usize;
                warp.local[each * lane as usize + at..][..width].copy_from_slice(bytes);
            }
        }
    }

    /// Sends what threads access in one allocation on its way.
    fn request(
        &mut self,
        warp: &mut Warp,
        instruction: &Instruction,
        shape: &Shape,
        (at, mask): (u32, u32),
        (place, addresses): (Place, &[u64; LANES]),
        awaited: Option<u32>,
    ) -> Result<(), TimedError> {
        let (from, core) = (usize::from(warp.device), warp.core as usize);
        let touched = Touched::of(mask, addresses, shape.bytes());
        let (lines, data) = (touched.count as u64, touched.sectors * SECTOR);
        let is_load = matches!(instruction.op, Op::Load(_));
        // One line a cycle, and what is stored besides.
        let takes = self.costs.cycle * lines + if is_load { 0 } else { self.costs.port.takes(data) };
        let leaves = self.now.max(self.cores[core].out);
        self.cores[core].out = leaves + takes;
        let cached = is_load && shape.order == Order::Weak && place.owner != Owner::Host;
        let l1 = &mut self.cores[core].l1;
        let mut hits = cached;
        for line in touched.all() {
            match cached {
                true => hits &= l1.touch(line),
                false => l1.drop_line(line),
            }
        }
        let leaves = leaves + takes;
        let half = self.costs.l2 / 2;
        let values = self.values(warp, &instruction.op, mask);
        let arrives = match place.owner {
            _ if hits => self.now,
            Owner::Host => leaves + self.costs.host / 2,
            Owner::Device(to) if usize::from(to) == from => leaves + half,
            Owner::Device(to) => {
                let sent = if is_load { 0 } else { data };
                let arrives = self.links.send(from, usize::from(to), leaves + half, lines, sent);
                arrives.ok_or_else(|| self.no_link(warp, usize::from(to), instruction.line))?
            }
        };
        let request = Request {
            warp: warp.id,
            at,
            mask,
            place,
            addresses: *addresses,
            values,
            lines,
            sectors: touched.sectors,
            begin: self.now,
            cause: warp.cause,
            awaited,
        };
        if let Some(awaited) = awaited
            && hits
        {
            self.read(warp, instruction, &request);
            let ready = &mut self.awaited[awaited as usize].ready;
            *ready = (*ready).max(leaves + self.costs.l1);
            return Ok(());
        }
        if let Some(awaited) = awaited {
            self.awaited[awaited as usize].parts += 1;
        }
        if !is_load {
            // Whether it is a store or an atomic without a result: what a fence waits for.
            let back = match place.owner {
                Owner::Device(to) if usize::from(to) != from => self.links.acknowledge(arrives) + half,
                Owner::Host => arrives + self.costs.host / 2,
                Owner::Device(_) => arrives + half,
            };
            let kind = kind(&instruction.op, place.owner, warp.device);
            let (begin, address) = (self.now, addresses[mask.trailing_zeros() as usize]);
            let node = Node {
                kind,
                warp: warp.id,
                line: instruction.line,
                address,
                begin,
                end: arrives,
                cause: warp.cause,
            };
            if awaited.is_none() {
                let stored_by = self.graph.add(node);
                (warp.stored, warp.stored_by) = Self::later((warp.stored, warp.stored_by), (back, stored_by));
                let device = &mut self.devices[from];
                device.acknowledged = device.acknowledged.max(back);
                return self.send(Request { cause: stored_by, ..request }, arrives);
            }
        }
        self.send(request, arrives)
    }

    /// What is stored.
    fn values(&mut self, warp: &Warp, op: &Op, mask: u32) -> Option<Values> {
        let mut values = match op {
            Op::Load(_) => return None,
            _ => self.spare_values.pop().unwrap_or_default(),
        };
        for lane in lanes(mask) {
            let into = &mut values[lane as usize];
            match op {
                Op::Store(store) => {
                    let slots = &store.a[..usize::from(store.lanes)];
                    slots.iter().zip(into).for_each(|(&slot, into)| *into = warp.get(lane, slot));
                }
                Op::Atomic(atomic) => {
                    (into[0], into[1]) = (warp.get(lane, atomic.a), warp.get(lane, atomic.b));
                }
                _ => {}
            }
        }
        Some(values)
    }

    fn send(&mut self, request: Request, arrives: Time) -> Result<(), TimedError> {
        let number = match self.spare_requests.pop() {
            Some(number) => {
                self.requests[number as usize] = request;
                number
            }
            None => {
                self.requests.push(request);
                self.requests.len() as u32 - 1
            }
        };
        self.push(arrives, EventKind::Arrives(number));
        Ok(())
    }

    fn no_link(&self, warp: &Warp, to: usize, line: u32) -> TimedError {
        let text = self.blocks[warp.block as usize].launch.kernel.line_text(line).to_owned();
        TimedError::NoLink { from: usize::from(warp.device), to, line, text }
    }

    /// A request is where the memory is.
    pub(crate) fn arrives(&mut self, number: u32) -> Result<(), TimedError> {
        let mut request = std::mem::replace(&mut self.requests[number as usize], Request::none());
        self.spare_requests.push(number);
        let Some(mut warp) = self.warps[request.warp as usize].take() else { return Ok(()) };
        let code = self.blocks[warp.block as usize].code.clone();
        let instruction = &code.instructions[request.at as usize];
        match &instruction.op {
            Op::Load(_) => self.read(&mut warp, instruction, &request),
            Op::Store(store) => self.write(store, &request),
            _ => self.update(&mut warp, instruction, &request),
        }
        if let Some(awaited) = request.awaited {
            self.answer(&mut warp, instruction, &request, awaited);
        } else if let Owner::Device(owner) = request.place.owner {
            self.cached(owner, &request);
        }
        self.warps[request.warp as usize] = Some(warp);
        self.spare_values.extend(request.values.take());
        Ok(())
    }

    /// What the L2 cache, and the memory behind it, take for a request that arrives now.
    fn cached(&mut self, owner: u16, request: &Request) -> Time {
        let bytes = request.sectors * SECTOR;
        let device = &mut self.devices[usize::from(owner)];
        let begins = device.l2_free.max(self.now);
        device.l2_free = begins + self.costs.l2_rate.takes(bytes);
        let mut misses = 0;
        let mut last = u64::MAX;
        for lane in lanes(request.mask) {
            let line = request.addresses[lane as usize] / LINE;
            if line != last {
                misses += u64::from(!device.l2.touch(line));
                last = line;
            }
        }
        if misses == 0 {
            return device.l2_free;
        }
        let begins = device.dram_free.max(device.l2_free);
        device.dram_free = begins + self.costs.dram_rate.takes(misses * LINE);
        device.dram_free + self.costs.miss
    }

    /// The answer of a request that arrives now goes back.
    fn answer(&mut self, warp: &mut Warp, instruction: &Instruction, request: &Request, awaited: u32) {
        let data = request.sectors * SECTOR;
        let half = self.costs.l2 / 2;
        let is_atomic = matches!(instruction.op, Op::Atomic(_));
        let more = if is_atomic { self.costs.atomic } else { 0 };
        let back = match request.place.owner {
            Owner::Host => self.now + self.costs.host / 2,
            Owner::Device(owner) => {
                let read = self.cached(owner, request) + more;
                let (own, owner) = (usize::from(warp.device), usize::from(owner));
                let home = match own == owner {
                    true => Some(read),
                    // There is a way back where there was one here.
                    false => self.links.send(owner, own, read, request.lines, data),
                };
                home.unwrap_or(read) + half
            }
        };
        let core = &mut self.cores[warp.core as usize];
        core.back = core.back.max(back) + self.costs.port.takes(data);
        let ready = core.back;
        let cause = self.looked(warp, instruction, request, ready);
        let entry = &mut self.awaited[awaited as usize];
        (entry.ready, entry.cause) = Self::later((entry.ready, entry.cause), (ready, cause));
        entry.parts -= 1;
        if entry.parts > 0 {
            return;
        }
        let (ready, cause) = (entry.ready, entry.cause);
        self.spare_awaited.push(awaited);
        warp.bring(&instruction.writes, ready, cause);
        warp.loads -= 1;
        (warp.loaded, warp.loaded_by) = Self::later((warp.loaded, warp.loaded_by), (ready, cause));
        self.wake(warp, ready);
    }

    /// The step that a load or an atomic is, and what it waited for: for what was stored where it looked, if that came
    /// after its thread had looked there before.
    fn looked(&mut self, warp: &mut Warp, instruction: &Instruction, request: &Request, end: Time) -> NodeId {
        if !self.graph.on {
            return NOBODY;
        }
        let shape = Shape::of(&instruction.op);
        let before = match warp.looks.iter_mut().find(|(at, _)| *at == request.at) {
            Some((_, last)) => std::mem::replace(last, self.now),
            None => {
                warp.looks.push((request.at, self.now));
                request.begin
            }
        };
        let mut latest = (before, request.cause);
        let mut address = request.addresses[request.mask.trailing_zeros() as usize];
        for lane in lanes(request.mask) {
            let looked = request.addresses[lane as usize];
            for &writer in self.memory.writers(request.place, looked, shape.bytes()) {
                if let Some(node) = self.graph.get(writer)
                    && node.end > latest.0
                {
                    latest = (node.end, writer);
                    address = looked;
                }
            }
        }
        let kind = kind(&instruction.op, request.place.owner, warp.device);
        let (line, begin, cause) = (instruction.line, request.begin, latest.1);
        self.graph.add(Node { kind, warp: warp.id, line, address, begin, end, cause })
    }

    fn read(&self, warp: &mut Warp, instruction: &Instruction, request: &Request) {
        let Op::Load(Load { ty, lanes: parts, d, .. }) = &instruction.op else { return };
        let width = ty.bytes() as usize;
        for lane in lanes(request.mask) {
            let address = request.addresses[lane as usize];
            for (part, &slot) in d[..usize::from(*parts)].iter().enumerate() {
                let value = self.memory.load(request.place, address + (part * width) as u64, width);
                warp.set(lane, slot, extend(value, *ty));
            }
        }
    }

    fn write(&mut self, store: &Store, request: &Request) {
        let Some(values) = &request.values else { return };
        let width = store.ty.bytes() as usize;
        for lane in lanes(request.mask) {
            let address = request.addresses[lane as usize];
            for part in 0..usize::from(store.lanes) {
                let value = values[lane as usize][part];
                self.memory.store(request.place, address + (part * width) as u64, width, value);
            }
            self.written(request.place, address, store.ty.bytes() * u32::from(store.lanes), request.cause);
        }
    }

    fn update(&mut self, warp: &mut Warp, instruction: &Instruction, request: &Request) {
        let (Op::Atomic(atomic), Some(values)) = (&instruction.op, &request.values) else { return };
        let width = atomic.ty.bytes() as usize;
        for lane in lanes(request.mask) {
            let address = request.addresses[lane as usize];
            let [a, b, ..] = values[lane as usize];
            let old = self.memory.load(request.place, address, width);
            let new = atomic.op.apply(atomic.ty, old, a, b);
            self.memory.store(request.place, address, width, new);
            if let Owner::Device(owner) = request.place.owner {
                let device = &mut self.devices[usize::from(owner)];
                let at = (address / 4) as usize % device.atomics.len();
                device.atomics[at] = device.atomics[at].max(self.now) + self.costs.same_address;
                device.l2_free = device.l2_free.max(device.atomics[at].min(self.now + self.costs.atomic));
            }
            if let Some(d) = atomic.d {
                warp.set(lane, d, extend(old, atomic.ty));
            }
            self.written(request.place, address, atomic.ty.bytes(), request.cause);
        }
    }

    /// A store is there.
    fn written(&mut self, place: Place, address: u64, bytes: u32, by: NodeId) {
        if self.graph.on {
            self.memory.set_writer(place, address, bytes, by);
        }
        let is_result = self.results.iter().any(|range| range.contains(&address));
        if is_result && self.result.is_none_or(|(last, _)| self.now >= last) {
            self.result = Some((self.now, by));
        }
    }
}
