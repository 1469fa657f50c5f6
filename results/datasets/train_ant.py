"""Train the goal-reaching ant that records the AntMaze sets: PPO on an open floor, from nothing, on one core.

The ant is asked to run to a point 2 to 8 m away, in any direction, and to the next one when it arrives; half of the
episodes begin tilted, with legs anywhere, so that it learns to catch itself. 64 ants live in one process and are
stepped one after the other; the simulator takes most of the time.

    python results/datasets/train_ant.py --out my_ant.npz --record my_curve.csv

Writes the weights in the layout that antmaze.py loads from ant_goal.npz beside it. The file that comes with the
repository is another: trained for seven times as long, the second half of it among walls, a part that is not here.
After 1.2 million steps on the floor every ant finds its target there (results/records/train-ant.csv), but in the large
maze, with noise, 13 of 20 arrived where the other's all do, and a third of the steps were spent on the back.
"""

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import gymnasium.envs.mujoco
import mujoco
import numpy as np
import torch
import tyro
from antmaze import act, append_row, features, torques
from storage import fail
from torch import Tensor, nn
from tqdm import tqdm

FLOOR = Path(gymnasium.envs.mujoco.__file__).parent / "assets" / "ant.xml"
REACH, EPISODE, CONTROL = 0.45, 400, 0.05  # metres, steps, seconds of a step (five of the simulator's)


@dataclass
class Args:
    """Train a goal-reaching ant with PPO."""

    out: Path = Path("ant.npz")
    """file for the weights, written anew at every evaluation"""
    record: Path | None = None
    """CSV for the learning curve; rows are appended"""
    steps: int = 1_200_000
    """steps in all, rounded up to whole iterations"""
    ants: int = 64
    """how many ants run side by side"""
    rollout: int = 64
    """steps of each ant between two updates"""
    eval_every: int = 20
    """iterations between two evaluations"""
    seed: int = 0
    """seed of weights, starts, targets and exploration"""


class Floor:
    """Ants on an open floor, each on its way to a target of its own."""

    def __init__(self, ants: int, rng: np.random.Generator):
        self.model, self.rng = mujoco.MjModel.from_xml_path(str(FLOOR)), rng
        self.data = [mujoco.MjData(self.model) for _ in range(ants)]
        self.state, self.target, self.age = np.zeros((ants, 29)), np.zeros((ants, 2)), np.zeros(ants, int)
        for i in range(ants):
            self.reset(i, rng.random() < 0.5)

    def reset(self, i: int, tilted: bool) -> None:
        """Put ant i at the origin, standing or tilted by up to 80 degrees with its legs anywhere."""
        rng, data = self.rng, self.data[i]
        mujoco.mj_resetData(self.model, data)
        heading, tilt, towards = (
            rng.uniform(-np.pi, np.pi),
            tilted * rng.uniform(0, np.radians(80)),
            rng.uniform(0, 2 * np.pi),
        )
        upright = np.array([np.cos(heading / 2), 0, 0, np.sin(heading / 2)])
        lean = np.array([np.cos(tilt / 2), *np.sin(tilt / 2) * np.array([np.cos(towards), np.sin(towards), 0])])
        mujoco.mju_mulQuat(data.qpos[3:7], lean, upright)
        if tilted:
            low, high = self.model.jnt_range[1:].T
            data.qpos[7:], data.qvel[:] = rng.uniform(low, high), rng.normal(size=14)
        mujoco.mj_forward(self.model, data)
        self.state[i], self.age[i] = np.concatenate([data.qpos, data.qvel]), 0
        self.aim(i, rng.uniform(2, 8))

    def aim(self, i: int, distance: float) -> None:
        """A new target for ant i, in any direction."""
        angle = self.rng.uniform(-np.pi, np.pi)
        self.target[i] = self.state[i, :2] + distance * np.array([np.cos(angle), np.sin(angle)])

    def view(self) -> tuple[np.ndarray, np.ndarray]:
        """Observations `[ants, 27]` and the ways to the targets `[ants, 2]`."""
        return self.state[:, 2:], self.target - self.state[:, :2]

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Act `[ants, 8]`; rewards, which ants have arrived, and which have fallen on their backs, `[ants]` each."""
        before = np.hypot(*(self.target - self.state[:, :2]).T)
        for i, data in enumerate(self.data):
            data.ctrl[:] = actions[i]
            mujoco.mj_step(self.model, data, nstep=5)
            self.state[i, :15], self.state[i, 15:] = data.qpos, data.qvel
        self.age += 1
        after = np.hypot(*(self.target - self.state[:, :2]).T)
        height, up = self.state[:, 2], 1 - 2 * np.square(self.state[:, 4:6]).sum(1)  # up: its axis's vertical part
        arrived, fallen = after <= REACH, up < -0.3
        reward = np.minimum((before - after) / CONTROL, 3.5) + 0.3 * ((up > 0.5) & (height > 0.25) & (height < 1))
        return np.where(fallen, -5.0, reward + 3 * arrived - 0.05 * np.square(actions).sum(1)), arrived, fallen


def evaluate(ant: dict[str, np.ndarray], ants: int = 64, seed: int = 1) -> tuple[float, float]:
    """Share of ants that reach a target 4 m away within 200 steps, without noise, and how fast they close in (m/s)."""
    floor = Floor(ants, np.random.default_rng(seed))
    for i in range(ants):
        floor.reset(i, tilted=False)
        floor.aim(i, 4.0)
    steps, left = (
        np.full(ants, 200),
        np.full(ants, np.nan),
    )  # until the arrival, and the distance left then or at the end
    for step in range(1, 201):
        new = floor.step(act(ant, *floor.view()))[1] & np.isnan(left)
        steps[new], left[new] = step, REACH
    reached, left = ~np.isnan(left), np.where(np.isnan(left), np.hypot(*floor.view()[1].T), left)
    return float(reached.mean()), float(((4 - left) / (steps * CONTROL)).mean())


class Net(nn.Sequential):
    """Two hidden layers of 256 with SiLU."""

    def __init__(self, size_out: int, scale: float):
        super().__init__(nn.Linear(30, 256), nn.SiLU(), nn.Linear(256, 256), nn.SiLU(), nn.Linear(256, size_out))
        self[4].weight.data *= scale
        self[4].bias.data *= scale


class Normaliser:
    """Running mean and variance of everything seen so far."""

    def __init__(self, size: int):
        self.mean, self.var, self.count = np.zeros(size), np.ones(size), 1e-4

    def update(self, x: np.ndarray) -> None:
        """x `[N, size]`."""
        total, gap = self.count + len(x), x.mean(0) - self.mean
        self.var = (self.var * self.count + x.var(0) * len(x) + gap**2 * self.count * len(x) / total) / total
        self.mean, self.count = self.mean + gap * len(x) / total, total

    def __call__(self, x: np.ndarray) -> Tensor:
        return torch.tensor(np.clip((x - self.mean) / np.sqrt(self.var + 1e-8), -10, 10), dtype=torch.float32)


def weights_of(actor: Net, logstd: Tensor, seen: Normaliser) -> dict[str, np.ndarray]:
    """The policy as plain arrays, matrices `[in, out]`."""
    ant = {"mean": seen.mean, "std": np.sqrt(seen.var + 1e-8), "logstd": logstd.detach().numpy().copy()}
    for i in range(3):
        ant[f"W{i}"] = actor[2 * i].weight.detach().numpy().T.copy()
        ant[f"b{i}"] = actor[2 * i].bias.detach().numpy().copy()
    return ant


def log_prob(mean: Tensor, logstd: Tensor, u: Tensor) -> Tensor:
    """Of u `[N, 8]` under the Gaussian, but for a constant; `[N]`."""
    return (-0.5 * ((u - mean) / logstd.exp()).square() - logstd).sum(-1)


def train(args: Args) -> dict[str, np.ndarray]:
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    floor, seen, scale = Floor(args.ants, rng), Normaliser(30), Normaliser(1)
    floor.age[:] = rng.integers(EPISODE, size=args.ants)  # so that the episodes don't all end together
    actor, critic, logstd = Net(8, 0.1), Net(1, 1.0), nn.Parameter(torch.full((8,), -0.5))
    parameters, lr, gamma, lam = [*actor.parameters(), *critic.parameters(), logstd], 3e-4, 0.985, 0.95
    optimizer = torch.optim.Adam(parameters, lr)
    running, total, ended, began = np.zeros(args.ants), np.zeros(args.ants), [], time.time()
    size, iterations = args.ants * args.rollout, -(-args.steps // (args.ants * args.rollout))
    bar = tqdm(total=iterations * size, unit="step", disable=None)
    x, k = features(*floor.view())
    seen.update(x)
    for iteration in range(1, iterations + 1):
        rows = []  # of input, u, log-probability, reward, value, features that followed, cut off, over
        for _ in range(args.rollout):
            with torch.no_grad():
                inputs = seen(x)
                mean, value = actor(inputs), critic(inputs)[:, 0].numpy()
                u = mean + logstd.exp() * torch.randn_like(mean)
                logp = log_prob(mean, logstd, u)
            reward, arrived, fallen = floor.step(torques(u.clamp(-1, 1).numpy(), k))
            late = (floor.age >= EPISODE) & ~fallen  # cut off, not over: its value counts on
            following = features(*floor.view())[0]  # with the target it had, before an arrival moves that
            running, total = gamma * running + reward, total + reward
            scale.update(running[:, None])
            ends = late | fallen
            rows.append((inputs, u, logp, reward / np.sqrt(scale.var + 1e-8), value, following, late, ends))
            ended += list(total[ends])
            running, total = running * ~ends, total * ~ends
            for i in np.flatnonzero(ends):
                floor.reset(i, rng.random() < 0.5)
            for i in np.flatnonzero(arrived & ~ends):
                floor.aim(i, rng.uniform(2, 8))
            x, k = features(*floor.view())
        # Advantages (GAE), backwards; after a cut-off the value of the last state stands for the rest.
        with torch.no_grad():
            after = critic(seen(x))[:, 0].numpy()
        advantages, ahead = np.zeros((args.rollout, args.ants), np.float32), np.zeros(args.ants)
        for t in reversed(range(args.rollout)):
            *_, reward, value, following, late, ends = rows[t]
            if late.any():
                with torch.no_grad():
                    after = np.where(late, critic(seen(following))[:, 0].numpy(), after)
            delta = reward + gamma * after * ~(ends & ~late) - value
            advantages[t] = ahead = delta + gamma * lam * ahead * ~ends
            after = value
        seen.update(np.concatenate([row[5] for row in rows]))
        inputs, u, old = (torch.cat([row[j] for row in rows]) for j in range(3))
        advantages = torch.from_numpy(advantages.reshape(-1))
        returns = advantages + torch.from_numpy(np.concatenate([row[4] for row in rows]))
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        for _ in range(5):
            kls = []
            for pick in torch.randperm(size).split(min(1024, size)):
                logp = log_prob(actor(inputs[pick]), logstd, u[pick])
                ratio = (logp - old[pick]).exp()
                gain = torch.min(ratio * advantages[pick], ratio.clamp(0.8, 1.2) * advantages[pick]).mean()
                loss = (critic(inputs[pick])[:, 0] - returns[pick]).square().mean() - gain
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                kls.append((ratio - 1 - ratio.log()).mean().item())
            kl = np.mean(kls)  # the step size follows how far the policy has moved
            lr = float(np.clip(lr / 1.5 if kl > 0.03 else lr * 1.5 if kl < 0.0075 else lr, 1e-5, 1e-3))
            optimizer.param_groups[0]["lr"] = lr
        bar.update(size)
        if iteration % args.eval_every == 0 or iteration == iterations:
            ant = weights_of(actor, logstd, seen)
            report(args, ant, iteration * size, time.time() - began, float(np.mean(ended)) if ended else np.nan)
            ended = []
    bar.close()
    return ant


def report(args: Args, ant: dict[str, np.ndarray], steps: int, seconds: float, score: float) -> None:
    """Evaluate, save the weights, and note where training stands."""
    success, speed = evaluate(ant)
    unfinished = args.out.with_name(f".unfinished-{args.out.name}")
    with unfinished.open("wb") as file:
        np.savez(file, **ant)
    os.replace(unfinished, args.out)
    row = {"steps": steps, "seconds": round(seconds, 1), "success": round(success, 3)}
    row |= {"closing_speed": round(speed, 3), "return": round(score, 1)}
    tqdm.write("  ".join(f"{key} {value}" for key, value in row.items()))
    if args.record:
        append_row(args.record, row)


if __name__ == "__main__":
    args = tyro.cli(Args)
    if min(args.steps, args.ants, args.rollout, args.eval_every) < 1 or args.seed < 0:
        fail("steps, ants, rollout and eval-every start at 1, the seed at 0")
    for path in filter(None, (args.out, args.record)):
        if not path.absolute().parent.is_dir():
            fail(f"there is no folder {path.absolute().parent}")
    torch.set_num_threads(1)  # the networks are small, and the simulator has one thread anyway
    try:
        train(args)
    except KeyboardInterrupt:
        print(f"stopped; {args.out} holds the weights of the last evaluation, if there was one")
        sys.exit(130)
