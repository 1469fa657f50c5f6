"""What a process of run.py measures: an update, an evaluation, or one of several equal runs."""

import importlib.util
import math
import os
import resource
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from results.common.runs import script_of

DATA_ROWS = 100_000
WARM = 6  # calls before any is timed: they compile, capture and allocate


def other_side(path: str) -> ModuleType:
    """The other implementation's file as a module."""
    spec = importlib.util.spec_from_file_location("other_side", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# === The matmuls of an update, by themselves ==================================================
class Products(TorchDispatchMode):
    """Counts matmuls by kind, shapes, strides and type, while a function runs."""

    KINDS: ClassVar = {"mm": "mm", "addmm": "mm", "bmm": "bmm", "baddbmm": "bmm"}

    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kind = self.KINDS.get(func.overloadpacket.__name__)
        if kind:
            left, right = args[-2:]
            self.seen[kind, layout(left), layout(right)] += 1
        return func(*args, **(kwargs or {}))


def layout(x: Tensor) -> tuple:
    return tuple(x.shape), tuple(x.stride()), x.dtype


def random_like(shape: tuple, stride: tuple, dtype: torch.dtype, device: str) -> Tensor:
    """A random tensor of that layout. An expanded dimension cannot be written to, its storage
    can."""
    tensor = torch.empty_strided(shape, stride, dtype=dtype, device=device)
    values = torch.randn(tensor.untyped_storage().nbytes() // tensor.element_size(), device=device)
    return tensor.set_(values.to(dtype).untyped_storage(), 0, shape, stride)


def products_alone(seen: Counter, device: str) -> Callable[[], None]:
    """A function that makes the counted matmuls on random tensors, and nothing else."""
    calls = []
    for (kind, left, right), times in seen.items():
        a, b = random_like(*left, device), random_like(*right, device)
        calls += [(getattr(torch, kind), a, b)] * times

    def run():
        for product, a, b in calls:
            product(a, b)

    if device == "cpu":
        return run
    run()  # on a GPU captured, as our update is: one by one they would take longer than all of it
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return lambda: (graph.replay(), calls)  # keeps the tensors whose memory the graph reads


# === Clocks ===================================================================================
def peak_memory(device: str, reset: bool = False) -> float:
    """Largest memory in use since the last reset, in MiB; on a GPU what torch holds of its
    memory."""
    if device == "cuda":  # a captured update allocates nothing: its memory belongs to the graph
        torch.cuda.empty_cache()
        return torch.cuda.memory_reserved() / 2**20
    clear = Path("/proc/self/clear_refs")
    if reset and os.access(clear, os.W_OK):
        clear.write_text("5")
        return 0.0
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    lines = status.read_text().splitlines()
    return next(int(line.split()[1]) / 2**10 for line in lines if line.startswith("VmHWM"))


def wait_for_turn():
    """Tell the parent that all is compiled and warm, and wait; returns the words it sends."""
    print("READY", flush=True)
    return sys.stdin.readline().split()


def synchronise(device: str):
    if device == "cuda":
        torch.cuda.synchronize()


def alternate(sides, args, device: str):
    """Milliseconds a call of each side, in `rounds` turns of about `seconds` each, in
    alternation."""

    def turn(call: Callable, repeats: int) -> float:
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        synchronise(device)
        return (time.perf_counter() - start) / repeats * 1e3

    for call in sides.values():
        turn(call, WARM)
    wait_for_turn()
    repeats = {}
    for name, call in sides.items():
        repeats[name] = max(1, math.ceil(args.seconds * 1e3 / turn(call, 1)))
    times = {name: [] for name in sides}
    for _ in range(args.rounds):
        for name, call in sides.items():
            times[name].append(turn(call, repeats[name]))
    return times


def spread(name: str, values):
    """Median and range as three columns."""
    low, high = min(values), max(values)
    return {name: statistics.median(values), f"{name}_min": low, f"{name}_max": high}


# === What is measured =========================================================================
def set_precision(precision: str):
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")


def random_data(edq: ModuleType, obs_dim: int, act_dim: int, g: torch.Generator):
    """Transitions of these sizes on the generator's device."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, device=g.device)

    obs = normal(DATA_ROWS, obs_dim)
    action = normal(DATA_ROWS, act_dim).clamp(-1, 1)
    reward = normal(DATA_ROWS)
    next_obs = normal(DATA_ROWS, obs_dim)
    end = (normal(DATA_ROWS) > 2).float()
    return edq.Transitions(obs, action, reward, next_obs, end)


class Prepared:
    """Our update as a function of nothing, ready to be timed; its matmuls, operations and data."""

    def __init__(self, args, setting: dict, device: str):
        edq = script_of("edq_mujoco")
        g = torch.Generator(device).manual_seed(0)
        self.data = random_data(edq, args.obs_dim, args.act_dim, g)
        plain = edq.Args(
            num_critics=setting["M"],
            num_diffusion_steps=setting["T"],
            batch_size=setting["B"],
            max_q_backup=setting["max_q"],
            compile=False,
            precision=setting["precision"],
            entropy_estimator=setting["entropy"],
            diffusion_loss="noise",
            action_clip=True,
        )
        set_precision(setting["precision"])
        torch.manual_seed(0)
        agent = edq.Agent(args.obs_dim, args.act_dim, plain, device)
        self.step = edq.make_step(agent, self.data, plain, g, 0)
        with FlopCounterMode(display=False) as flops, Products() as products:
            self.step()
        self.operations = flops.get_total_flops()
        self.seen = products.seen
        if setting["compile"] == "on":
            compiled = replace(plain, compile=True)
            edq.compile_functions()
            self.step = edq.make_step(agent, self.data, compiled, g, 0)


def time_update(args, setting: dict, device: str) -> dict:
    """One row: our update, its matmuls alone, and the other side."""
    prepared = Prepared(args, setting, device)
    for _ in range(WARM):
        prepared.step()
    peak_memory(device, reset=True)
    for _ in range(3):
        prepared.step()
    peak = peak_memory(device)
    sides = {"ours": prepared.step, "products": products_alone(prepared.seen, device)}
    if args.other:
        other = other_side(args.other)
        sides["other"] = other.make_update(setting, prepared.data, args.other_path)
    times = alternate(sides, args, device)
    row = {**setting, "device": device, **spread("ms", times["ours"])}
    row["updates_per_second"] = 1e3 / row["ms"]
    row["gflop"] = prepared.operations / 1e9
    row["tflops"] = prepared.operations / row["ms"] / 1e9
    row["peak_mib"] = peak
    row |= spread("products_ms", times["products"])
    row["over_products"] = row["ms"] / row["products_ms"]
    row["share_of_product_rate"] = 1 / row["over_products"]  # of the FLOP/s of the matmuls alone
    if args.other:
        row |= spread("other_ms", times["other"])
        ratios = [ours / theirs for ours, theirs in zip(times["ours"], times["other"])]
        row |= spread("over_other", ratios)
    return row


def their_loop(args, setting: dict) -> Callable[[], None]:
    """One step of the other side's evaluation on Hopper."""
    import gymnasium as gym

    act = other_side(args.other).make_act(setting, args.other_path)
    env = gym.make("Hopper-v5")
    obs, _ = env.reset(seed=0)

    def step():
        nonlocal obs
        obs, _, terminated, truncated, _ = env.step(act(obs))
        if terminated or truncated:
            obs, _ = env.reset()

    return step


def time_acting(args, setting: dict, device: str) -> dict:
    """One row: environment steps a second of an evaluation on Hopper, and what takes the time."""
    edq = script_of("edq_mujoco")
    task = edq.Args(
        env_id="hopper-medium",
        num_critics=setting["M"],
        num_candidates=setting["K"],
        compile=setting["compile"] == "on",
        precision=setting["precision"],
    )
    set_precision(setting["precision"])
    torch.manual_seed(0)
    envs = edq.vector_env(task)
    n, act_dim = envs.num_envs, envs.single_action_space.shape[0]
    agent = edq.Agent(envs.single_observation_space.shape[0], act_dim, task, device)
    g = torch.Generator(device).manual_seed(0)
    shape = (task.num_diffusion_steps, n, task.num_candidates, act_dim)
    obs = torch.from_numpy(envs.reset(seed=0)[0])

    def actor():
        noise = torch.randn(shape, generator=g, device=device)
        u = torch.rand(n, generator=g, device=device)
        return edq.act(agent, obs.to(device), noise, u, task).numpy(force=True)

    def simulate(actions):
        nonlocal obs
        obs = torch.from_numpy(envs.step(actions)[0])

    with Products() as products:
        some = actor()
    if task.compile:
        edq.compile_functions()
    sides = {
        "evaluation": lambda: simulate(actor()),
        "actor": actor,
        "simulator": lambda: simulate(some),
        "products": products_alone(products.seen, device),
    }
    if args.other:
        sides["other"] = their_loop(args, setting)
    times = alternate(sides, args, device)
    row = {**setting, "device": device, "environments": n}
    for name in ("evaluation", "actor", "simulator", "products"):
        row |= spread(f"{name}_ms_per_step", [t / n for t in times[name]])
    row["steps_per_second"] = 1e3 / row["evaluation_ms_per_step"]
    row["actor_over_products"] = row["actor_ms_per_step"] / row["products_ms_per_step"]
    if args.other:
        row |= spread("other_ms_per_step", times["other"])
        pairs = zip(times["evaluation"], times["other"])
        row |= spread("times_faster_than_other", [theirs / (ours / n) for ours, theirs in pairs])
    return row


def time_together(args, setting: dict, device: str):
    """One of several processes: updates a second, as often as the parent says so."""
    step = Prepared(args, setting, device).step
    while threads := wait_for_turn():
        torch.set_num_threads(int(threads[0]))
        for _ in range(WARM):  # compiles, and does so again for another number of threads
            step()
        wait_for_turn()
        updates = 0
        start = time.perf_counter()
        while time.perf_counter() - start < args.rounds * args.seconds:
            step()
            updates += 1
            if updates % 100 == 0:
                synchronise(device)
        synchronise(device)
        print("ROW", updates / (time.perf_counter() - start), flush=True)


def hardware(device: str) -> dict:
    """Columns that say what a row was measured on."""
    path = Path("/proc/cpuinfo")
    cpuinfo = path.read_text() if path.exists() else ""
    lines = [line for line in cpuinfo.splitlines() if line.startswith("model name")]
    known = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
    return {
        "threads": torch.get_num_threads(),
        "cpu": lines[0].split(":")[1].strip() if lines else "unknown",
        "instructions": " ".join(name for name in known if f" {name}" in cpuinfo),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else "",
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "date": time.strftime("%Y-%m-%d"),
    }


MEASURES = {"update": time_update, "acting": time_acting, "together": time_together}
