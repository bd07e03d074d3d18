"""torch's own analyser on a folder of dumps. Prints its words, then one line of JSON: what it made of the calls."""

import json
import pickle
import sys

sys.stderr = sys.stdout  # before the analyser's logger takes it
try:
    from torch.distributed.flight_recorder.fr_trace import main
except ImportError:
    print("no analyser in this torch")
    sys.exit()

folder, database = sys.argv[1:]
main([folder, "-p", "rank_", "-o", database])
with open(database, "rb") as file:
    _, found = pickle.load(file)
print(
    json.dumps(
        {
            "matched": [c.collective_name for c in found.collectives if c.pass_check and not c.missing_ranks],
            "not_matched": [c.collective_name for c in found.collectives if not c.pass_check or c.missing_ranks],
            "calls": len(found.ncclcalls),
        }
    )
)
