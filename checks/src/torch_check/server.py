"""A store of torch's. Argument: 1 for the libuv server, 0 for the plain one. Prints its port, or "none" and
why this torch has no such server; ends with its input."""

import sys

from torch.distributed import TCPStore

try:
    store = TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False, use_libuv=sys.argv[1] == "1")
except TypeError:  # a torch that has one server only
    store = TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
except RuntimeError as error:  # a torch that was built without this server
    print(f"none: {error}", flush=True)
    sys.exit()
print(store.port, flush=True)
sys.stdin.read()
