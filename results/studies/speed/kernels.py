"""The GPU kernels of one update, longest first: where its time goes once it is a CUDA graph.

    python results/studies/speed/kernels.py --env-id antmaze-large-diverse

Any flags of edq_antmaze.py; random data of an ant's sizes. Writes
results/records/speed/gpu-kernels.csv.
"""

import sys
import time
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
from results.common.records import RECORDS, write_record
from results.common.runs import script_of
from results.studies.speed.measure import random_data, set_precision

OBS_DIM, ACT_DIM = 31, 8  # of an ant in a maze
TIMED, TRACED = 100, 5  # updates
LONGEST = 32  # kernels that are recorded


def main(flags):
    edq = script_of("edq_antmaze")
    started = time.time()
    args = edq.parse_args(flags)
    g = torch.Generator("cuda").manual_seed(0)
    set_precision(args.precision)
    data = random_data(edq, OBS_DIM, ACT_DIM, g)
    torch.manual_seed(0)
    agent = edq.Agent(OBS_DIM, ACT_DIM, args, "cuda")
    edq.compile_functions()
    step = edq.make_step(agent, data, args, g, 0)
    for _ in range(10):
        step()
    torch.cuda.synchronize()
    start = time.time()
    for _ in range(TIMED):
        step()
    torch.cuda.synchronize()
    ms = 1000 * (time.time() - start) / TIMED
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        for _ in range(TRACED):
            step()
        torch.cuda.synchronize()
    events = sorted(trace.key_averages(), key=lambda event: -event.device_time_total)
    rows = []
    for event in events[:LONGEST]:
        microseconds = event.device_time_total / TRACED
        row = {"kernel": event.key[:110], "calls": event.count / TRACED}
        rows.append(row | {"microseconds": microseconds})
    about = {"ms_per_update": ms, "precision": args.precision}
    gpu = torch.cuda.get_device_name()
    write_record(RECORDS / "speed" / "gpu-kernels.csv", rows, started, gpu=gpu, **about)


if __name__ == "__main__":
    main(sys.argv[1:])
