"""Train the goal-reaching ant that records the AntMaze sets: PPO on an open floor, from nothing.

The ant is asked to run to a point 2 to 8 m away, in any direction, and to the next one when it
arrives; half of the episodes begin tilted, with legs anywhere, so that it learns to catch itself.
64 ants live in one process and are stepped one after the other; the simulator takes most of the
time.

    python results/datasets/train_ant.py --out my_ant.npz --record my_curve.csv

Writes the weights in the layout that make_antmaze.py loads from ant_goal.npz beside it. The file
that comes with the repository is another: trained for seven times as long, the second half of it
among walls, a part that is not here. After 1.2 million steps on the floor every ant finds its
target there (results/records/datasets/train-ant.csv), but in the large maze, with noise, 13 of 20
arrived where the other's all do, and a third of the steps were spent on the back.
"""

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import gymnasium.envs.mujoco
import mujoco
import numpy as np
import torch
import tyro
from make_antmaze import act, features, torques
from minari_writer import fail, new_file
from torch import Tensor, nn
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[2]
FLOOR = Path(gymnasium.envs.mujoco.__file__).parent / "assets" / "ant.xml"
REACH = 0.45  # metres
EPISODE = 400  # steps
CONTROL = 0.05  # seconds of a step, five of the simulator's
GAMMA = 0.985
LAMBDA = 0.95
CLIP = 0.2
EPOCHS = 5
MINIBATCH = 1024


@dataclass
class Args:
    """Train a goal-reaching ant with PPO."""

    out: Path = Path("ant.npz")
    """new file for the weights, written anew at every evaluation"""
    record: Path | None = None
    """new CSV file for the learning curve"""
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
        self.model = mujoco.MjModel.from_xml_path(str(FLOOR))
        self.rng = rng
        self.data = [mujoco.MjData(self.model) for _ in range(ants)]
        self.state = np.zeros((ants, 29))  # qpos and qvel
        self.target = np.zeros((ants, 2))
        self.age = np.zeros(ants, int)
        for i in range(ants):
            self.reset(i, rng.random() < 0.5)

    def reset(self, i: int, tilted: bool) -> None:
        """Put ant i at the origin, standing, or tilted by up to 80 degrees with legs anywhere."""
        rng = self.rng
        data = self.data[i]
        mujoco.mj_resetData(self.model, data)
        heading = rng.uniform(-np.pi, np.pi)
        tilt = tilted * rng.uniform(0, np.radians(80))
        towards = rng.uniform(0, 2 * np.pi)
        half = heading / 2
        upright = np.array([np.cos(half), 0, 0, np.sin(half)])
        axis = np.array([np.cos(towards), np.sin(towards), 0])
        half = tilt / 2
        lean = np.array([np.cos(half), *np.sin(half) * axis])
        mujoco.mju_mulQuat(data.qpos[3:7], lean, upright)
        if tilted:
            low, high = self.model.jnt_range[1:].T
            data.qpos[7:] = rng.uniform(low, high)
            data.qvel[:] = rng.normal(size=14)
        mujoco.mj_forward(self.model, data)
        self.state[i, :15] = data.qpos
        self.state[i, 15:] = data.qvel
        self.age[i] = 0
        self.aim(i, rng.uniform(2, 8))

    def aim(self, i: int, distance: float) -> None:
        """A new target for ant i, in any direction."""
        angle = self.rng.uniform(-np.pi, np.pi)
        way = np.array([np.cos(angle), np.sin(angle)])
        self.target[i] = self.state[i, :2] + distance * way

    def view(self) -> tuple[np.ndarray, np.ndarray]:
        """Observations `[ants, 27]` and the ways to the targets `[ants, 2]`."""
        obs = self.state[:, 2:]
        way = self.target - self.state[:, :2]
        return obs, way

    def distance(self) -> np.ndarray:
        way = self.target - self.state[:, :2]
        return np.hypot(*way.T)

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Act `[ants, 8]`; rewards, who has arrived, who has fallen on its back, `[ants]` each."""
        before = self.distance()
        for i, data in enumerate(self.data):
            data.ctrl[:] = actions[i]
            mujoco.mj_step(self.model, data, nstep=5)
            self.state[i, :15] = data.qpos
            self.state[i, 15:] = data.qvel
        self.age += 1
        after = self.distance()
        height = self.state[:, 2]
        tilt = np.square(self.state[:, 4:6]).sum(1)
        up = 1 - 2 * tilt  # vertical part of its own z axis
        arrived = after <= REACH
        fallen = up < -0.3
        speed = (before - after) / CONTROL
        speed = np.minimum(speed, 3.5)
        upright = up > 0.5
        stands = upright & (height > 0.25) & (height < 1)
        effort = np.square(actions).sum(1)
        reward = speed + 0.3 * stands + 3 * arrived - 0.05 * effort
        return np.where(fallen, -5.0, reward), arrived, fallen


def evaluate(
    ant: dict[str, np.ndarray],
    ants: int = 64,
    seed: int = 1,
) -> tuple[float, float]:
    """Walk 4 m in 200 steps without noise: share that arrives, and speed towards it (m/s)."""
    floor = Floor(ants, np.random.default_rng(seed))
    for i in range(ants):
        floor.reset(i, tilted=False)
        floor.aim(i, 4.0)
    steps = np.full(ants, 200)  # until the arrival
    left = np.full(ants, np.nan)  # distance then, or at the end
    for step in range(1, 201):
        obs, way = floor.view()
        _, arrived, _ = floor.step(act(ant, obs, way))
        new = arrived & np.isnan(left)
        steps[new] = step
        left[new] = REACH
    reached = ~np.isnan(left)
    left = np.where(reached, left, floor.distance())
    speed = (4 - left) / (steps * CONTROL)
    return float(reached.mean()), float(speed.mean())


class Net(nn.Sequential):
    """Two hidden layers of 256 with SiLU."""

    def __init__(self, size_out: int, scale: float):
        super().__init__(
            nn.Linear(30, 256),
            nn.SiLU(),
            nn.Linear(256, 256),
            nn.SiLU(),
            nn.Linear(256, size_out),
        )
        self[4].weight.data *= scale
        self[4].bias.data *= scale


class Normaliser:
    """Running mean and variance of everything seen so far."""

    def __init__(self, size: int):
        self.mean = np.zeros(size)
        self.var = np.ones(size)
        self.count = 1e-4

    def update(self, x: np.ndarray) -> None:
        """x `[N, size]`."""
        new = len(x)
        total = self.count + new
        gap = x.mean(0) - self.mean
        spread = gap**2 * self.count * new / total
        within = self.var * self.count + x.var(0) * new
        self.var = (within + spread) / total
        self.mean = self.mean + gap * new / total
        self.count = total

    def __call__(self, x: np.ndarray) -> Tensor:
        standard = (x - self.mean) / np.sqrt(self.var + 1e-8)
        standard = np.clip(standard, -10, 10)
        return torch.tensor(standard, dtype=torch.float32)


class Rows(NamedTuple):
    """One step of all ants."""

    inputs: Tensor  # [ants, 30], standardised features
    u: Tensor  # [ants, 8], the network's output with noise
    logp: Tensor
    reward: np.ndarray  # scaled
    value: np.ndarray
    following: np.ndarray  # features after the step, with the target it had
    late: np.ndarray  # cut off, not over: its value counts on
    ends: np.ndarray


class Learner:
    """The networks, what they have seen, and the PPO update."""

    def __init__(self):
        self.actor = Net(8, 0.1)
        self.critic = Net(1, 1.0)
        self.logstd = nn.Parameter(torch.full((8,), -0.5))
        self.parameters = [
            *self.actor.parameters(),
            *self.critic.parameters(),
            self.logstd,
        ]
        self.lr = 3e-4
        self.optimizer = torch.optim.Adam(self.parameters, self.lr)
        self.seen = Normaliser(30)

    def log_prob(self, mean: Tensor, u: Tensor) -> Tensor:
        """Of u `[N, 8]` under the Gaussian, but for a constant; `[N]`."""
        z = (u - mean) / self.logstd.exp()
        each = -0.5 * z.square() - self.logstd
        return each.sum(-1)

    @torch.no_grad()
    def explore(self, x: np.ndarray) -> tuple[Tensor, Tensor, Tensor, np.ndarray]:
        """Features -> inputs, action with noise, its log-probability, value."""
        inputs = self.seen(x)
        mean = self.actor(inputs)
        noise = self.logstd.exp() * torch.randn_like(mean)
        u = mean + noise
        return inputs, u, self.log_prob(mean, u), self.value(x)

    @torch.no_grad()
    def value(self, x: np.ndarray) -> np.ndarray:
        return self.critic(self.seen(x))[:, 0].numpy()

    def advantages(self, rows: list[Rows], after: np.ndarray) -> np.ndarray:
        """GAE, backwards; after a cut-off the value of the last state stands for the rest."""
        result = np.zeros((len(rows), len(after)), np.float32)
        ahead = np.zeros(len(after))
        for t in reversed(range(len(rows))):
            row = rows[t]
            if row.late.any():
                after = np.where(row.late, self.value(row.following), after)
            over = row.ends & ~row.late
            delta = row.reward + GAMMA * after * ~over - row.value
            ahead = delta + GAMMA * LAMBDA * ahead * ~row.ends
            result[t] = ahead
            after = row.value
        return result

    def update(self, rows: list[Rows], after: np.ndarray) -> None:
        """Five epochs of PPO on the rollout; `after` is the value of the states behind it."""
        advantages = self.advantages(rows, after).reshape(-1)
        advantages = torch.from_numpy(advantages)
        following = np.concatenate([row.following for row in rows])
        self.seen.update(following)
        inputs = torch.cat([row.inputs for row in rows])
        u = torch.cat([row.u for row in rows])
        old = torch.cat([row.logp for row in rows])
        value = np.concatenate([row.value for row in rows])
        returns = advantages + torch.from_numpy(value)
        centred = advantages - advantages.mean()
        advantages = centred / (advantages.std() + 1e-8)
        size = min(MINIBATCH, len(old))
        for _ in range(EPOCHS):
            kls = []
            for pick in torch.randperm(len(old)).split(size):
                x = inputs[pick]
                advantage = advantages[pick]
                logp = self.log_prob(self.actor(x), u[pick])
                ratio = (logp - old[pick]).exp()
                clipped = ratio.clamp(1 - CLIP, 1 + CLIP)
                gain = torch.min(ratio * advantage, clipped * advantage)
                error = self.critic(x)[:, 0] - returns[pick]
                loss = error.square().mean() - gain.mean()
                self.optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(self.parameters, 1.0)
                self.optimizer.step()
                kl = ratio - 1 - ratio.log()
                kls.append(kl.mean().item())
            self.adapt_rate(np.mean(kls))

    def adapt_rate(self, kl: float) -> None:
        """The step size follows how far the policy has moved."""
        if kl > 0.03:
            self.lr = self.lr / 1.5
        elif kl < 0.0075:
            self.lr = self.lr * 1.5
        self.lr = float(np.clip(self.lr, 1e-5, 1e-3))
        self.optimizer.param_groups[0]["lr"] = self.lr

    def weights(self) -> dict[str, np.ndarray]:
        """The policy as plain arrays, matrices `[in, out]`."""
        ant = {
            "mean": self.seen.mean,
            "std": np.sqrt(self.seen.var + 1e-8),
            "logstd": self.logstd.detach().numpy().copy(),
        }
        for i in range(3):
            layer = self.actor[2 * i]
            weight = layer.weight.detach().numpy()
            bias = layer.bias.detach().numpy()
            ant[f"W{i}"] = weight.T.copy()
            ant[f"b{i}"] = bias.copy()
        return ant


def save_weights(path: Path, ant: dict[str, np.ndarray]) -> None:
    """In one step."""
    unfinished = path.with_name(f".unfinished-{path.name}")
    with unfinished.open("wb") as file:
        np.savez(file, **ant)
    os.replace(unfinished, path)


def train(args: Args) -> tuple[dict[str, np.ndarray], list[dict]]:
    """Returns the weights and the learning curve, a row an evaluation."""
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    floor = Floor(args.ants, rng)
    floor.age[:] = rng.integers(EPISODE, size=args.ants)  # so that they do not all end together
    learner = Learner()
    scale = Normaliser(1)  # of discounted returns
    running = np.zeros(args.ants)
    total = np.zeros(args.ants)  # return of the episode so far
    ended = []  # returns of the episodes since the last evaluation
    curve = []
    size = args.ants * args.rollout
    iterations = -(-args.steps // size)
    bar = tqdm(total=iterations * size, unit="step", disable=None)
    began = time.time()
    x, k = features(*floor.view())
    learner.seen.update(x)
    for iteration in range(1, iterations + 1):
        rows = []
        for _ in range(args.rollout):
            inputs, u, logp, value = learner.explore(x)
            out = u.clamp(-1, 1).numpy()
            reward, arrived, fallen = floor.step(torques(out, k))
            late = (floor.age >= EPISODE) & ~fallen
            ends = late | fallen
            following, _ = features(*floor.view())
            running = GAMMA * running + reward
            total = total + reward
            scale.update(running[:, None])
            scaled = reward / np.sqrt(scale.var + 1e-8)
            row = Rows(
                inputs=inputs,
                u=u,
                logp=logp,
                reward=scaled,
                value=value,
                following=following,
                late=late,
                ends=ends,
            )
            rows.append(row)
            ended += list(total[ends])
            running = running * ~ends
            total = total * ~ends
            for i in np.flatnonzero(ends):
                floor.reset(i, rng.random() < 0.5)
            for i in np.flatnonzero(arrived & ~ends):
                floor.aim(i, rng.uniform(2, 8))
            x, k = features(*floor.view())
        learner.update(rows, learner.value(x))
        bar.update(size)
        if iteration % args.eval_every == 0 or iteration == iterations:
            ant = learner.weights()
            success, speed = evaluate(ant)
            save_weights(args.out, ant)
            seconds = time.time() - began
            mean = float(np.mean(ended)) if ended else np.nan
            point = {
                "steps": iteration * size,
                "seconds": round(seconds, 1),
                "success": round(success, 3),
                "closing_speed": round(speed, 3),
                "return": round(mean, 1),
            }
            curve.append(point)
            cells = [f"{name} {value}" for name, value in point.items()]
            tqdm.write("  ".join(cells))
            ended = []
    bar.close()
    return ant, curve


def main(args: Args) -> None:
    """Check the arguments, train, and record the curve."""
    counts = (args.steps, args.ants, args.rollout, args.eval_every)
    if min(counts) < 1 or args.seed < 0:
        fail("steps, ants, rollout and eval-every start at 1, the seed at 0")
    args.out = new_file(args.out)
    record = new_file(args.record) if args.record else None
    torch.set_num_threads(1)  # the networks are small, and the simulator has one thread anyway
    started = time.time()
    try:
        _, curve = train(args)
    except KeyboardInterrupt:
        print(f"stopped; {args.out} holds the weights of the last evaluation, if there was one")
        sys.exit(130)
    if record:
        sys.path.append(str(ROOT))
        from results.common.records import write_record

        write_record(record, curve, started, seeds=[args.seed])


if __name__ == "__main__":
    main(tyro.cli(Args))
