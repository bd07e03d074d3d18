"""A torch client on a store of ours: every operation that this torch has. Arguments: host, port."""

import datetime
import sys
import threading

from torch.distributed import PrefixStore, TCPStore

SHORT = datetime.timedelta(milliseconds=200)


def client():
    return TCPStore(sys.argv[1], int(sys.argv[2]), None, False, datetime.timedelta(seconds=30))


def refused(act):
    try:
        act()
    except Exception as error:  # torch's own type differs between its versions
        return type(error).__name__
    raise AssertionError("it was not refused")


store, other = client(), client()
done = []


def check(name, found, wanted):
    assert found == wanted, f"{name}: {found!r}, not {wanted!r}"
    done.append(name)


store.set("k", "v1")
check("get", store.get("k"), b"v1")
check("add", (store.add("n", 5), store.add("n", -2)), (5, 3))
check("a number is text", store.get("n"), b"3")
check("compare_set creates", store.compare_set("cs", "", "a"), b"a")
check("compare_set of another value", store.compare_set("cs", "x", "b"), b"a")
check("compare_set exchanges", store.compare_set("cs", "a", "b"), b"b")
check("compare_set of an absent key", store.compare_set("zz", "x", "b"), b"x")
if hasattr(store, "check"):
    check("check", (store.check(["k", "n"]), store.check(["k", "nowhere"])), (True, False))
store.wait(["k"])
refused(lambda: store.wait(["nowhere"], SHORT))
check("wait gives up and the connection goes on", store.get("k"), b"v1")
check("delete_key", (store.delete_key("k"), store.delete_key("k")), (True, False))
waiter = threading.Thread(target=lambda: check("get waits", other.get("late"), b"come"))
waiter.start()
store.set("late", "come")
waiter.join()
check("a prefix", (PrefixStore("pre", store).set("x", "1"), store.get("pre/x"))[1], b"1")
if hasattr(store, "has_extended_api") and store.has_extended_api():
    store.append("ap", "x")
    store.append("ap", "y")
    check("append", store.get("ap"), b"xy")
    store.multi_set(["a", "b"], ["1", "2"])
    check("multi_get", store.multi_get(["a", "b"]), [b"1", b"2"])
if hasattr(store, "queue_push"):
    store.queue_push("q", "x")
    check("queue_len", store.queue_len("q"), 1)
    check("queue_pop", store.queue_pop("q"), b"x")
    refused(lambda: store.queue_pop("q", False))
if hasattr(store, "list_keys"):
    check("list_keys", {"n", "cs", "pre/x"} <= set(store.list_keys()), True)
if hasattr(store, "barrier"):
    peer = threading.Thread(target=lambda: other.barrier("both", 2))
    peer.start()
    store.barrier("both", 2)
    peer.join()
    done.append("barrier")
check("num_keys", store.num_keys() > 4, True)
store.set("big", "x" * (8 << 20))
check("eight mebibytes", len(store.get("big")), 8 << 20)
print(len(done))
