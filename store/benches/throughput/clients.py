"""Clients of torch's, a thread each. Arguments: address, how many. Every line of the input, a name for the keys and how they
are had, is a rendezvous; prints the seconds that it took."""

import datetime
import sys
import threading
import time

from torch.distributed import TCPStore

LONG = datetime.timedelta(seconds=60)
host, port = sys.argv[1].rsplit(":", 1)
stores = [TCPStore(host, int(port), None, False, LONG) for _ in range(int(sys.argv[2]))]
print("connected", flush=True)
for line in sys.stdin:
    name, way = line.split()
    keys = [f"{name}/{client}" for client in range(len(stores))]
    start, end = threading.Barrier(len(stores) + 1), threading.Barrier(len(stores) + 1)

    def meet(store, own):
        start.wait()
        store.set(own, "7" * 64)
        store.wait(keys, LONG)
        if way == "Together":
            store.multi_get(keys)
        else:
            for key in keys:
                store.get(key)
        end.wait()

    threads = [threading.Thread(target=meet, args=pair) for pair in zip(stores, keys)]
    for thread in threads:
        thread.start()
    start.wait()
    begin = time.perf_counter()
    end.wait()
    print(time.perf_counter() - begin, flush=True)
    for thread in threads:
        thread.join()
