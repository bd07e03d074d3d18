"""A torch rank of two over gloo, and its dump. Arguments: rank, store's file, dump's file; calls: all_reduce, barrier, all_reduce."""

import datetime
import pickle
import sys

import torch
import torch.distributed as distributed
from torch._C import _distributed_c10d as c10d

rank, store, file = int(sys.argv[1]), *sys.argv[2:]
if not hasattr(c10d, "_dump_fr_trace"):
    print("no dumps of gloo groups in this torch")
    sys.exit()
minute = datetime.timedelta(seconds=60)
distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=minute)
distributed.all_reduce(torch.ones(4))
distributed.barrier()
distributed.all_reduce(torch.ones(6))
dump = pickle.loads(c10d._dump_fr_trace())
# Gloo's group is there without its name, on which torch's analyser fails: its entries know it.
if group := dump["pg_config"].pop("", None):
    name, desc = dump["entries"][0]["process_group"]
    dump["pg_config"][name] = {**group, "name": name, "desc": desc}
with open(file, "wb") as to:
    pickle.dump(dump, to)
distributed.barrier()
print(dump["version"])
