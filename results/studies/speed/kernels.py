"""The GPU kernels of one update, longest first: where its time goes once it is a CUDA graph.

    python results/profile_update.py --env-id antmaze-large-diverse

Any flags of edq_antmaze.py; random data of an ant's sizes. Writes results/records/profile-gpu.csv.
"""

import sys
import time
from pathlib import Path

import torch
from record import RECORDS, write_record
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
ROWS, UPDATES = 100_000, 5


def main(flags: list[str]) -> None:
    import edq_antmaze as edq

    started, (args, _) = time.time(), edq.parse_args(flags)
    args, g = edq.resolve(args, "cuda"), torch.Generator("cuda").manual_seed(0)
    torch.set_float32_matmul_precision("high" if args.precision == "tf32" else "highest")
    obs, action, reward, next_obs = (
        torch.randn(ROWS, *n, generator=g, device="cuda") for n in ((31,), (8,), (), (31,))
    )
    data = edq.Transitions(obs, action.clamp(-1, 1), reward, next_obs, (reward > 2).float())
    torch.manual_seed(0)
    step = edq.make_step(edq.Agent(31, 8, args, "cuda"), data, args, g, 0, False)
    for _ in range(10):
        step()
    torch.cuda.synchronize()
    start = time.time()
    for _ in range(100):
        step()
    torch.cuda.synchronize()
    ms = (time.time() - start) * 10
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        for _ in range(UPDATES):
            step()
        torch.cuda.synchronize()
    kernels = sorted(trace.key_averages(), key=lambda e: -e.device_time_total)[:32]
    rows = [
        {
            "kernel": e.key[:110],
            "calls": e.count / UPDATES,
            "microseconds": e.device_time_total / UPDATES,
        }
        for e in kernels
    ]
    about = dict(ms_per_update=ms, precision=args.precision, gpu=torch.cuda.get_device_name())
    write_record(RECORDS / "profile-gpu.csv", rows, started, **about)


if __name__ == "__main__":
    main(sys.argv[1:])
