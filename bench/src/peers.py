"""Times the all-reduces of NCCL and of torch's symmetric memory the way the benchmark times its own.

Takes a job as JSON on standard input and says on standard output, one JSON object a line, what it measured and what it
could not measure, and why. Each rank is a process, as torch has it. Called with the arguments `rank WHAT RANK PORT` it is
one of them.
"""

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time

NCCL, SYMMETRIC = "NCCL", "torch symmetric memory"
# Several ranks on one GPU with NCCL.
SHARED_FROM = (2, 30)
# Launches, and replays of a graph, that are enqueued before the stream is waited for.
IN_FLIGHT, REPLAYS_IN_FLIGHT = 64, 16


def say(kind, **fields):
    print(json.dumps({"kind": kind, **fields}), flush=True)


def absent(what, reason):
    say("absent", what=what, reason=" ".join(str(reason).split())[:400])


def reasons(job):
    """Why each of the two cannot be measured here; nothing for one that perhaps can."""
    try:
        import torch
    except Exception as error:  # a library that torch needs may be missing too
        why = f"{sys.executable} cannot import torch: {error}"
        return {NCCL: why, SYMMETRIC: why}
    if not torch.cuda.is_available():
        why = f"torch {torch.__version__} sees no GPU"
        return {NCCL: why, SYMMETRIC: why}
    needed = 1 if job["shared"] else job["ranks"]
    if torch.cuda.device_count() < needed:
        why = f"torch sees {torch.cuda.device_count()} GPUs where {needed} are needed"
        return {NCCL: why, SYMMETRIC: why}
    why = {}
    import torch.distributed as dist

    if not dist.is_available() or not dist.is_nccl_available():
        why[NCCL] = why[SYMMETRIC] = f"torch {torch.__version__} was built without NCCL"
        return why
    version = nccl_version(torch)
    if job["shared"] and version < SHARED_FROM:
        found, wanted = ".".join(map(str, version)), ".".join(map(str, SHARED_FROM))
        why[NCCL] = f"NCCL {found} takes one rank a GPU; several from {wanted} on"
    try:
        import torch.distributed._symmetric_memory  # noqa: F401

        torch.ops.symm_mem.one_shot_all_reduce_out
        torch.ops.symm_mem.two_shot_all_reduce_
    except Exception as error:
        why[SYMMETRIC] = f"torch {torch.__version__} does not have it: {error}"
    return why


def nccl_version(torch):
    return tuple(torch.cuda.nccl.version())[:3]


def main():
    # Whoever waits for this script may be ended.
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    job = json.load(sys.stdin)
    why = reasons(job)
    for what in (NCCL, SYMMETRIC):
        if what in why:
            absent(what, why[what])
        else:
            launch(job, what)


def launch(job, what):
    """Runs the ranks; says so if they do not come to an end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "TORCH_SYMM_MEM_ALLOW_OVERLAPPING_DEVICES": "1", "NCCL_MULTI_RANK_GPU_ENABLE": "1"}
    ranks, complaints = [], []
    for rank in range(job["ranks"]):
        complaints.append(tempfile.TemporaryFile("w+"))
        process = subprocess.Popen(
            [sys.executable, __file__, "rank", what, str(rank), str(port)],
            stdin=subprocess.PIPE,
            stdout=None if rank == 0 else subprocess.DEVNULL,
            stderr=complaints[-1],
            env=environment,
            text=True,
        )
        process.stdin.write(json.dumps(job))
        process.stdin.close()
        ranks.append(process)
    deadline = time.monotonic() + job["seconds"]
    failed = None
    while failed is None and any(process.poll() is None for process in ranks):
        failed = next((rank for rank, process in enumerate(ranks) if process.poll()), None)
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    late = [rank for rank, process in enumerate(ranks) if process.poll() is None]
    for process in ranks:
        process.kill()
        process.wait()
    if failed is None:
        failed = next((rank for rank, process in enumerate(ranks) if process.returncode > 0), None)
    if failed is not None:
        complaints[failed].seek(0)
        lines = [line for line in complaints[failed].read().splitlines() if line.strip()]
        absent(what, f"rank {failed} ended: {lines[-1] if lines else 'it did not say why'}")
    elif late:
        absent(what, f"not run: ranks {late} did not end within {job['seconds']:g} s (--peer-seconds)")


def rank_main(what, rank, port):
    # A rank whose parent is killed goes with it.
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    job = json.load(sys.stdin)
    import torch
    import torch.distributed as dist

    device = torch.device("cuda", 0 if job["shared"] else rank)
    torch.cuda.set_device(device)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=job["ranks"]
    )
    bench = Bench(torch, dist, job, rank, device)
    if what == NCCL:
        bench.nccl()
    else:
        bench.symmetric()
    dist.barrier(group=bench.host)
    # Tearing down communicators may wait for ever; nothing is left to be done.
    sys.stdout.flush()
    os._exit(0)


class Bench:
    def __init__(self, torch, dist, job, rank, device):
        self.torch, self.dist, self.job, self.rank, self.device = torch, dist, job, rank, device
        self.host = dist.new_group(backend="gloo")
        self.dtypes = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
        self.stream = torch.cuda.Stream(device)
        self.events = [torch.cuda.Event(enable_timing=True) for _ in range(IN_FLIGHT + 1)]

    def nccl(self):
        dist = self.dist
        ops = {"sum": dist.ReduceOp.SUM, "avg": dist.ReduceOp.AVG, "min": dist.ReduceOp.MIN, "max": dist.ReduceOp.MAX}
        version = ".".join(map(str, nccl_version(self.torch)))
        for case in self.job["cases"]:
            buffer = self.torch.empty(case["count"], dtype=self.dtypes[case["dtype"]], device=self.device)
            op = ops[case["op"]]
            self.row(NCCL, version, case, buffer, buffer, lambda: dist.all_reduce(buffer, op=op))

    def symmetric(self):
        import torch.distributed._symmetric_memory as symmetric_memory

        group = self.dist.group.WORLD.group_name
        ops = self.torch.ops.symm_mem
        name = f"torch {self.torch.__version__} symm_mem"
        for dtype in dict.fromkeys(case["dtype"] for case in self.job["cases"]):
            cases = [case for case in self.job["cases"] if case["dtype"] == dtype]
            longest = max(case["count"] for case in cases)
            whole = symmetric_memory.empty(longest, dtype=self.dtypes[dtype], device=self.device)
            symmetric_memory.rendezvous(whole, group)
            result = self.torch.empty_like(whole)
            for case in cases:
                if case["op"] != "sum" or case["bytes"] % 16:
                    if self.rank == 0:
                        absent(f"{name} {case['op']} {case['bytes']} bytes", "sums of multiples of 16 bytes only")
                    continue
                buffer, out = whole[: case["count"]], result[: case["count"]]
                one = lambda: ops.one_shot_all_reduce_out(buffer, "sum", group, out)
                two = lambda: ops.two_shot_all_reduce_(buffer, "sum", group)
                self.row(name, "one-shot", case, buffer, out, one)
                self.row(name, "two-shot", case, buffer, buffer, two)

    def row(self, implementation, algorithm, case, buffer, target, call):
        """Measures a case, launched and replayed; what all ranks refuse alike is said and left out."""
        try:
            self.modes(implementation, algorithm, case, buffer, target, call)
        except RuntimeError as error:
            if self.rank == 0:
                absent(f"{implementation} {algorithm} {case['dtype']} {case['bytes']} bytes", error)

    def modes(self, implementation, algorithm, case, buffer, target, call):
        torch, calls = self.torch, self.job["graph_calls"]
        with torch.cuda.stream(self.stream):
            wrong = self.check(case, buffer, target, call)
            self.say_row(implementation, algorithm, case, buffer is target, "plain", 1, self.time(call, IN_FLIGHT, 1), wrong)
            if not calls:
                return
            graph, single = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
            for executable, count in ((graph, calls), (single, 1)):
                self.stream.synchronize()
                self.dist.barrier(group=self.host)
                with torch.cuda.graph(executable, stream=self.stream, capture_error_mode="thread_local"):
                    for _ in range(count):
                        call()
            wrong = self.check(case, buffer, target, single.replay)
            times = self.time(graph.replay, REPLAYS_IN_FLIGHT, calls)
            self.say_row(implementation, algorithm, case, buffer is target, "graph", calls, times, wrong)

    def check(self, case, buffer, target, call):
        """Elements that are wrong, on all ranks. Every number on the way is a small integer or a half, exact in any type."""
        torch, ranks = self.torch, self.job["ranks"]
        base = torch.arange(case["count"], device=self.device) % 4
        buffer.copy_((base + self.rank).to(buffer.dtype))
        want = {
            "sum": base * ranks + ranks * (ranks - 1) // 2,
            "avg": base + (ranks - 1) / 2,
            "min": base,
            "max": base + ranks - 1,
        }[case["op"]].to(buffer.dtype)
        self.stream.synchronize()
        self.dist.barrier(group=self.host)
        call()
        self.stream.synchronize()
        wrong = torch.tensor([int((target != want).sum())])
        self.dist.all_reduce(wrong, group=self.host)
        return int(wrong.item())

    def time(self, launch, in_flight, calls):
        """Batches between two events; an event behind every launch; the host's clock around launch and synchronisation."""
        job, stream, events = self.job, self.stream, self.events
        chunks = lambda total: [min(in_flight, total - done) for done in range(0, total, in_flight)]
        self.dist.barrier(group=self.host)
        for chunk in chunks(job["warmup"]):
            for _ in range(chunk):
                launch()
            stream.synchronize()
        batch, device, host = 0.0, [], []
        for chunk in chunks(job["iterations"]):
            launch()
            events[0].record(stream)
            for _ in range(chunk):
                launch()
            events[1].record(stream)
            stream.synchronize()
            batch += events[0].elapsed_time(events[1]) * 1e3
        for chunk in chunks(job["iterations"]):
            launch()
            events[0].record(stream)
            for event in events[1 : chunk + 1]:
                launch()
                event.record(stream)
            stream.synchronize()
            device += [events[i].elapsed_time(events[i + 1]) * 1e3 / calls for i in range(chunk)]
        for _ in range(job["iterations"]):
            start = time.perf_counter()
            launch()
            stream.synchronize()
            host.append((time.perf_counter() - start) * 1e6 / calls)
        return self.slowest([batch / job["iterations"] / calls]), self.slowest(device), self.slowest(host)

    def slowest(self, values):
        values = self.torch.tensor(values, dtype=self.torch.float64)
        self.dist.all_reduce(values, op=self.dist.ReduceOp.MAX, group=self.host)
        return values.tolist()

    def say_row(self, implementation, algorithm, case, in_place, mode, calls, times, wrong):
        if self.rank == 0:
            batch, device, host = times
            say(
                "samples",
                implementation=implementation,
                algorithm=algorithm,
                mode=mode,
                graph_calls=calls,
                place="in" if in_place else "out",
                dtype=case["dtype"],
                op=case["op"],
                bytes=case["bytes"],
                count=case["count"],
                batch_us=batch[0],
                device_us=device,
                host_us=host,
                wrong=wrong,
            )


if __name__ == "__main__":
    if sys.argv[1:2] == ["rank"]:
        rank_main(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        main()
