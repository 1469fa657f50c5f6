"""Recorded policies: zips laid out as Stable-Baselines3's, our own runs, mixtures; and what is refused."""

import base64
import importlib.util
import io
import json
import math
import os
import pickle
import re
import signal
import subprocess
import sys
import time
import zipfile

import h5py
import minari
import numpy as np
import pytest
import torch
import tyro
from conftest import ROOT, hopper_episodes, load_script, run_script, write_dataset

SCRIPT = ROOT / "results" / "datasets" / "collect.py"
sys.path.insert(0, str(SCRIPT.parent))  # for the shared writer, as on the command line
spec = importlib.util.spec_from_file_location("datasets_collect", SCRIPT)
collect = sys.modules["datasets_collect"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(collect)
SIZES = {"PPO": ("mlp_extractor.policy_net.{}", "action_net"), "SAC": ("actor.latent_pi.{}", "actor.mu"),
         "TD3": ("actor.mu.{}", "actor.mu.4")}  # fmt: skip


@pytest.fixture(autouse=True)
def datasets(tmp_path, monkeypatch):
    """An empty folder of datasets."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    (tmp_path / "datasets").mkdir()
    return tmp_path / "datasets"


def weights_of(kind, obs_dim=11, act_dim=3, hidden=(16, 12), scale=0.7, seed=0):
    """Random weights under the names of Stable-Baselines3, those of critics among them."""
    rng, state = np.random.default_rng(seed), {}

    def layer(name, size_in, size_out):
        state[f"{name}.weight"] = torch.tensor(
            rng.normal(size=(size_out, size_in)) * scale / size_in**0.5
        ).float()
        state[f"{name}.bias"] = torch.tensor(rng.normal(size=size_out) * 0.3).float()

    body, head = SIZES[kind]
    for i, (size_in, size_out) in enumerate(zip((obs_dim, *hidden), hidden)):
        layer(body.format(2 * i), size_in, size_out)
    layer(head, hidden[-1], act_dim)
    if kind == "PPO":
        state["log_std"] = torch.tensor([-2.5, -2.0, -3.0])[:act_dim]
        layer("mlp_extractor.value_net.0", obs_dim, 8)
        layer("value_net", 8, 1)
    if kind == "SAC":
        layer("actor.log_std", hidden[-1], act_dim)
    if kind != "PPO":
        layer("critic.qf0.0", obs_dim + act_dim, 8)
        layer("critic_target.qf0.0", obs_dim + act_dim, 8)
    return state


def write_zip(path, state, data=None, **policy_kwargs):
    """A zip as Stable-Baselines3 saves it; `state` may be bytes already."""
    if not isinstance(state, bytes):
        torch.save(state, buffer := io.BytesIO())
        state = buffer.getvalue()
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(
            "data", json.dumps({"use_sde": False, "policy_kwargs": policy_kwargs} | (data or {}))
        )
        file.writestr("policy.pth", state)
        file.writestr("_stable_baselines3_version", "2.9.2")
    return path


def always(path, value, act_dim=3, obs_dim=11):
    """A TD3-like policy whose every action is `value` in all components."""
    state = {k: torch.zeros_like(v) for k, v in weights_of("TD3", obs_dim, act_dim).items()}
    state["actor.mu.4.bias"] += math.atanh(value)
    return write_zip(path, state)


def record(*flags, dataset="test/set-v0", env="Hopper-v5"):
    """Record in this process; returns the episodes as they are in the file, and the dataset."""
    flags = map(str, ("--env-id", env, "--dataset-id", dataset, *flags))
    collect.main(tyro.cli(collect.Args, args=list(flags)))
    made = minari.load_dataset(dataset)
    return list(made), made


def flat(episodes):
    """Observations before an action, and actions, of all episodes."""
    return np.concatenate([e.observations[:-1] for e in episodes]), np.concatenate(
        [e.actions for e in episodes]
    )


def forward(state, kind, x, activation):
    """The last hidden layer and the mean before any squashing, in NumPy."""
    body, head = SIZES[kind]
    x = x.astype(np.float64)
    for i in (0, 2):
        x = activation(
            x @ state[f"{body.format(i)}.weight"].numpy().T
            + state[f"{body.format(i)}.bias"].numpy()
        )
    return x, x @ state[f"{head}.weight"].numpy().T + state[f"{head}.bias"].numpy()


def relu(x):
    return np.maximum(x, 0)


def elu(x):
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


NAMED = "<class 'torch.nn.modules.activation.{}'>"


@pytest.mark.parametrize("kind, named, activation", [
    ("PPO", None, np.tanh), ("PPO", "ReLU", relu), ("SAC", None, relu), ("SAC", "Tanh", np.tanh),
    ("TD3", None, relu), ("TD3", "ELU", elu),
])  # fmt: skip
def test_means_of_all_kinds(kind, named, activation, tmp_path):
    state = weights_of(kind)
    kwargs = {"net_arch": [16, 12]} | (
        {"activation_fn": NAMED.format(named), ":serialized:": "x"} if named else {}
    )
    file = write_zip(tmp_path / "policy.zip", state, **kwargs)
    obs, actions = flat(record("--policy", file, "--deterministic", "--transitions", 300)[0])
    mean = forward(state, kind, obs, activation)[1]
    expected = mean.clip(-1, 1) if kind == "PPO" else np.tanh(mean)
    assert actions.dtype == obs.dtype == np.float32
    np.testing.assert_allclose(actions, expected, atol=1e-5)
    assert actions.std(0).min() > 1e-3  # they depend on the states, a hundred times the tolerance


def test_spread_of_ppo_and_sac(tmp_path):
    for kind, activation in (("PPO", np.tanh), ("SAC", relu)):
        state = weights_of(kind, scale=0.3)
        file = write_zip(tmp_path / f"{kind}.zip", state)
        obs, actions = flat(
            record("--policy", file, "--transitions", 3000, dataset=f"test/{kind}-v0")[0]
        )
        last, mean = forward(state, kind, obs, activation)
        if kind == "PPO":
            z = (actions - mean) / np.exp(state["log_std"].numpy())
            assert np.abs(actions).max() < 1  # nothing clipped, so z is the normal noise itself
        else:
            log_std = (
                last @ state["actor.log_std.weight"].numpy().T + state["actor.log_std.bias"].numpy()
            )
            kept = np.abs(actions) < 0.9999  # beyond, float32 cannot be inverted
            assert kept.mean() > 0.95
            z = np.where(
                kept,
                (np.arctanh(actions.clip(-0.9999, 0.9999)) - mean) / np.exp(log_std.clip(-20, 2)),
                np.nan,
            )
        assert np.abs(np.nanmean(z, 0)).max() < 0.08 and np.abs(np.nanstd(z, 0) - 1).max() < 0.08, (
            kind
        )
        assert (
            np.abs(np.corrcoef(np.nan_to_num(z).T) - np.eye(3)).max() < 0.1
        )  # own noise in each component


def test_wide_sac_is_no_wider_than_it_acts_in_training(tmp_path):
    state = weights_of("SAC", scale=0.1)
    state["actor.log_std.bias"] += 5  # clamped to 2 by Stable-Baselines3
    actions = flat(
        record("--policy", write_zip(tmp_path / "p.zip", state), "--transitions", 500)[0]
    )[1]
    inside = math.erf(
        math.atanh(0.999) / math.exp(2) / 2**0.5
    )  # share of |tanh(N(0, e^2))| below 0.999
    assert abs((np.abs(actions) < 0.999).mean() - inside) < 0.06


def test_unclipped_actions_are_not_stored(tmp_path):
    state = weights_of("PPO")
    state["action_net.bias"] += torch.tensor([3.0, -3.0, 0.0])
    actions = flat(
        record("--policy", write_zip(tmp_path / "p.zip", state), "--transitions", 100)[0]
    )[1]
    assert (
        (actions[:, 0] == 1).all()
        and (actions[:, 1] == -1).all()
        and np.abs(actions[:, 2]).max() < 1
    )


def test_normalised_observations(tmp_path):
    state, rng = weights_of("TD3"), np.random.default_rng(1)
    mean, var = rng.normal(size=11), rng.uniform(0.1, 2, 11)
    var[1] = 0.0  # so that the clip at 10 matters
    np.savez(tmp_path / "stats.npz", mean=mean, var=var)
    file = write_zip(tmp_path / "policy.zip", state)
    episodes, _ = record(
        "--policy", file, "--obs-stats", tmp_path / "stats.npz", "--transitions", 200
    )
    obs, actions = flat(episodes)
    seen = (obs - mean) / np.sqrt(var + 1e-8)
    assert np.abs(seen).max() > 100
    np.testing.assert_allclose(
        actions, np.tanh(forward(state, "TD3", seen.clip(-10, 10), relu)[1]), atol=1e-5
    )
    # one file for each policy: the second policy's own
    np.savez(tmp_path / "other.npz", mean=mean + 1, var=var + 1)
    both = ("--obs-stats", tmp_path / "stats.npz", tmp_path / "other.npz")
    episodes, _ = record("--policy", file, file, *both, "--transitions", 200, dataset="test/two-v0")
    for n, e in enumerate(episodes):
        seen = (e.observations[:-1] - mean - n % 2) / np.sqrt(var + n % 2 + 1e-8)
        expected = np.tanh(forward(state, "TD3", seen.clip(-10, 10), relu)[1])
        np.testing.assert_allclose(e.actions, expected, atol=1e-5)


def test_mixture_noise_and_random_actions(tmp_path, capsys):
    files = always(tmp_path / "a.zip", 0.2), always(tmp_path / "b.zip", -0.3)
    flags = ("--policy", *files, "--weights", 1, 3, "--noise", 0, 0.15, "--transitions", 4000)
    episodes, made = record(*flags)
    means = np.array([e.actions.mean() for e in episodes if len(e.actions) > 15])
    assert np.minimum(np.abs(means - 0.2), np.abs(means + 0.3)).max() < 0.15
    whole = len(episodes) // 4 * 4
    first = np.array([e.actions.mean() > -0.05 for e in episodes])[:whole]
    assert whole >= 24 and first.sum() * 4 == whole  # exactly a quarter of the episodes
    spread = np.array(
        [(e.actions - (0.2 if e.actions.mean() > -0.05 else -0.3)).std() for e in episodes]
    )
    quiet = spread < 1e-6
    assert (
        0.2 < quiet.mean() < 0.8 and np.abs(spread[~quiet] - 0.15).max() < 0.07
    )  # one std of the two an episode
    assert abs(np.mean(spread[~quiet]) - 0.15) < 0.02
    description = made.storage.metadata["description"]
    assert all(
        part in description for part in ("a.zip, b.zip", "weights 1, 3", "std 0, 0.15", "seed 0")
    )
    assert str(tmp_path) not in description
    shares = re.findall(
        r"(\w)\.zip \(TD3-like\): ([\d.]+)% of the episodes, ([\d.]+)% of the tr",
        capsys.readouterr().out,
    )
    steps = sum(len(e.rewards) for e in episodes if e.actions.mean() > -0.05) / 40
    assert [name for name, *_ in shares] == ["a", "b"] and abs(float(shares[0][2]) - steps) < 0.06
    assert abs(float(shares[0][1]) - 25) < 2 and abs(float(shares[1][1]) - 75) < 2
    _, actions = flat(
        record(
            "--policy", files[0], "--random-share", 0.25, "--transitions", 2000, dataset="test/r-v0"
        )[0]
    )
    replaced = (np.abs(actions - np.float32(0.2)) > 1e-6).all(1)
    assert abs(replaced.mean() - 0.25) < 0.04 and (np.abs(actions[~replaced] - 0.2) < 1e-6).all()
    assert abs(actions[replaced].std() - 1 / 3**0.5) < 0.05 and abs(actions[replaced].mean()) < 0.07


def test_exact_length_equal_arrays_and_printed_figures(tmp_path, capsys):
    file = write_zip(tmp_path / "p.zip", weights_of("PPO"))
    flags = ("--policy", file, "random", "--noise", 0.1)
    capsys.readouterr()
    long, made = record(*flags, "--transitions", 1001, dataset="test/long-v0")
    out = capsys.readouterr().out
    again, _ = record(*flags, "--transitions", 1001, dataset="test/again-v0")
    short, _ = record(*flags, "--transitions", 300, dataset="test/short-v0")
    other, _ = record(*flags, "--transitions", 300, "--seed", 1, dataset="test/other-v0")
    assert (
        made.total_steps == sum(len(e.rewards) for e in long) == 1001
        and sum(len(e.rewards) for e in short) == 300
    )
    for name in ("observations", "actions", "rewards", "terminations", "truncations"):
        assert all(
            np.array_equal(getattr(a, name), getattr(b, name))
            for a, b in zip(long, again, strict=True)
        )
    for a, b in zip(short[:-1], long):  # an episode does not depend on how many there are
        assert np.array_equal(a.observations, b.observations) and np.array_equal(
            a.actions, b.actions
        )
    assert not np.array_equal(short[0].observations[0], other[0].observations[0])
    assert not np.array_equal(short[0].observations[0], short[1].observations[0])
    for e in long[:-1]:
        assert e.terminations[-1] and not e.truncations.any() and not e.terminations[:-1].any()
    *_, last = short  # cut: 300 falls within an episode of this seed
    assert last.truncations[-1] and not last.terminations.any() and not last.truncations[:-1].any()
    assert all(len(e.observations) == len(e.actions) + 1 == len(e.rewards) + 1 for e in long)
    whole = [e for e in long if e.terminations[-1]]
    total, length = (
        np.mean([e.rewards.sum() for e in whole]),
        np.mean([len(e.rewards) for e in whole]),
    )
    std = np.std([e.rewards.sum() for e in whole])
    score = 100 * (total + 20.272305) / (3234.3 + 20.272305)
    assert f"{len(long)} episodes, 1001 transitions" in out
    assert (
        f"return {total:.1f} +- {std:.1f}, score {score:.1f}, length {length:.1f} over {len(whole)} episodes"
        in out
    )


def replay(made, episodes, numbers):
    """Largest difference between stored observations and those of the recovered environment; stored ends are met."""
    env, worst = made.recover_environment(), 0.0
    with h5py.File(made.storage.data_path / "main_data.hdf5") as file:
        seeds = [int(file[f"episode_{i}"].attrs["seed"]) for i in range(len(episodes))]
    assert len(set(seeds)) == len(seeds)
    for i in numbers:
        e = episodes[i]
        obs = [env.reset(seed=seeds[i])[0]]
        for action, reward, terminated in zip(e.actions, e.rewards, e.terminations):
            o, r, t, *_ = env.step(action)
            obs.append(o)
            assert abs(r - reward) < 1e-5 and t == terminated
        worst = max(worst, np.abs(np.array(obs) - e.observations).max())
    return worst


def test_replay_and_termination(tmp_path):
    file = write_zip(tmp_path / "p.zip", weights_of("SAC"))
    episodes, made = record("--policy", file, "--noise", 0.2, "--transitions", 1500)
    assert replay(made, episodes, range(0, len(episodes), 7)) < 1e-5
    assert (made.storage.metadata["ref_min_score"], made.storage.metadata["ref_max_score"]) == (
        -20.272305,
        3234.3,
    )
    assert made.recover_environment().spec.max_episode_steps == 1000


def test_time_limit_of_adroit_and_default_name():
    collect.main(
        tyro.cli(
            collect.Args, args="--env-id AdroitHandPen-v1 --policy random --transitions 230".split()
        )
    )
    made = minari.load_dataset("edq/pen/collected-v0")
    episodes = list(made)
    assert [len(e.rewards) for e in episodes] == [100, 100, 30]
    assert all(
        e.truncations[-1] and not e.terminations.any() and not e.truncations[:-1].any()
        for e in episodes
    )
    assert (
        made.recover_environment().spec.max_episode_steps == 100
        and made.storage.metadata["ref_max_score"] > 3076
    )
    actions = flat(episodes)[1]
    assert abs(actions.mean()) < 0.05 and abs(actions.std() - 1 / 3**0.5) < 0.02  # uniform
    assert replay(made, episodes, [1]) < 1e-5


def test_maze_with_dict_observations(capsys):
    episodes, _ = record(
        "--policy", "random", "--transitions", 1500, "--seed", 3, env="PointMaze_UMaze-v3"
    )
    assert set(episodes[0].observations) == {"observation", "achieved_goal", "desired_goal"}
    reached = np.array([e.rewards.max() for e in episodes])
    assert (
        0 < reached.mean() < 1 and max(e.rewards.sum() for e in episodes) > 1
    )  # arrivals last, and count once
    assert f"score {100 * reached.mean():.1f}," in capsys.readouterr().out


def test_run_of_our_own(tmp_path, datasets, capsys):
    run, script = tmp_path / "run", load_script("edq_mujoco")
    data = write_dataset(tmp_path / "set", hopper_episodes())
    flags = (
        "--num-critics",
        2,
        "--hidden-dim",
        16,
        "--batch-size",
        16,
        "--num-candidates",
        4,
        "--normalize-obs",
    )
    flags += (
        "--gradient-steps",
        20,
        "--eval-every",
        20,
        "--eval-episodes",
        1,
        "--precision",
        "fp32",
    )
    out = run_script(
        "edq_mujoco", "--env-id", "hopper-medium", "--dataset-id", data, "--run-dir", run, *flags
    )
    assert out.returncode == 0, out.stderr
    episodes, _ = record("--policy", run, "--transitions", 150, "--seed", 5)
    args, _ = script.parse_args(["--evaluate", str(run)])
    torch.manual_seed(123)  # other weights than the stored ones, until the checkpoint is loaded
    agent = script.Agent(11, 3, args)
    script.load_checkpoint(run, agent)
    assert float(agent.obs_std.sub(1).abs().max()) > 1e-3
    torch.set_num_threads(1)
    for number, e in enumerate(episodes[:3]):
        rng = np.random.default_rng([5, number])
        rng.integers(2**31), rng.choice([0.0])
        for obs, action in zip(e.observations, e.actions):
            noise = torch.from_numpy(rng.standard_normal((5, 1, 4, 3)).astype(np.float32))
            u = torch.tensor([rng.random()], dtype=torch.float32)
            expected = script.act(agent, torch.from_numpy(obs)[None], noise, u, args)[0]
            np.testing.assert_allclose(action, expected, atol=1e-4)
            rng.standard_normal(3), rng.random()
    # and what may not be: another environment, another script, no checkpoint, a mean action
    refused(capsys, datasets, "the run acts in Hopper", "--policy", run, env="Walker2d-v5")
    refused(capsys, datasets, "--deterministic means nothing", "--policy", run, "--deterministic")
    text = json.loads((run / "run.json").read_text())
    for file in run.glob("checkpoint_*.pt"):
        file.rename(tmp_path / file.name)
    refused(capsys, datasets, "no whole checkpoint", "--policy", run)
    (run / "run.json").write_text(json.dumps(text | {"script": "os.py"}))
    refused(capsys, datasets, "none of our scripts", "--policy", run)
    (run / "run.json").write_text("{")
    refused(capsys, datasets, "cannot be read as a policy", "--policy", run)


def refused(capsys, datasets, about, *flags, env="Hopper-v5", dataset="refused/set-v0"):
    """Exit code 2, one sentence that says what is wrong, and no new file in the folder of datasets."""
    before, _ = sorted(datasets.rglob("*")), capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        record("--transitions", 50, *flags, env=env, dataset=dataset)
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and said.startswith("error: ") and said.count("\n") == 1, said
    assert about.removeprefix("the run ") in said, said
    assert sorted(datasets.rglob("*")) == before


class Touch:
    """Unpickling this creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_no_pickle_is_executed(tmp_path, datasets, capsys):
    marker = tmp_path / "executed"
    state = weights_of("PPO")
    torch.save(state | {"log_std": Touch(marker)}, buffer := io.BytesIO())
    refused(
        capsys,
        datasets,
        "without unpickling",
        "--policy",
        write_zip(tmp_path / "bad.zip", buffer.getvalue()),
    )
    raw = pickle.dumps(Touch(marker))
    refused(
        capsys, datasets, "without unpickling", "--policy", write_zip(tmp_path / "raw.zip", raw)
    )
    np.savez(tmp_path / "stats.npz", mean=np.array([Touch(marker)], object), var=np.ones(11))
    good = write_zip(tmp_path / "good.zip", state)
    refused(capsys, datasets, "unpickling", "--policy", good, "--obs-stats", tmp_path / "stats.npz")
    blob = {
        ":serialized:": base64.b64encode(raw).decode()
    }  # beside good weights it is no obstacle, and left alone
    data = {
        "policy_class": blob,
        "policy_kwargs": blob,
        "observation_space": blob,
        "lr_schedule": blob,
    }
    record("--policy", write_zip(tmp_path / "blob.zip", state, data), "--transitions", 20)
    assert not marker.exists()
    torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)
    assert marker.exists()  # the trap is one


def test_refused_zips(tmp_path, datasets, capsys):
    good = weights_of("PPO")
    file = write_zip(tmp_path / "good.zip", good)
    content = file.read_bytes()
    (tmp_path / "cut.zip").write_bytes(content[: len(content) // 2])
    middle = bytearray(content)
    middle[len(content) // 2] ^= 255
    (tmp_path / "flipped.zip").write_bytes(middle)
    (tmp_path / "text.zip").write_text("not a zip")
    for name in ("cut", "flipped", "text"):
        refused(capsys, datasets, "cannot be read", "--policy", tmp_path / f"{name}.zip")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as empty:
        empty.writestr("data", "{}")
    refused(capsys, datasets, "cannot be read", "--policy", tmp_path / "empty.zip")
    refused(capsys, datasets, "no policy file", "--policy", tmp_path / "none.zip")
    refused(
        capsys,
        datasets,
        "(11, 3) observations and actions, not (17, 6)",
        "--policy",
        file,
        env="Walker2d-v5",
    )
    refused(capsys, datasets, "not a vector in [-1, 1]", "--policy", file, env="Humanoid-v5")
    refused(capsys, datasets, "no vector", "--policy", file, env="PointMaze_UMaze-v3")
    states = {
        "features_extractor": good | {"features_extractor.cnn.0.weight": torch.zeros(8, 3, 8, 8)},
        "shared_net": good | {"mlp_extractor.shared_net.0.weight": torch.zeros(11, 11)},
        "lstm": good | {"lstm_actor.weight_ih_l0": torch.zeros(8, 11)},
        "log_std": {k: v for k, v in good.items() if k != "log_std"},
        "log_std ": good | {"log_std": torch.zeros(12, 3)},  # gSDE's shape
        "action_net.bias": good | {"action_net.bias": torch.full((3,), math.nan)},
        "policy_net.2.bias": {
            k: v for k, v in good.items() if k != "mlp_extractor.policy_net.2.bias"
        },
        "cannot be read": good | {"mlp_extractor.policy_net.2.weight": torch.zeros(12, 15)},
        "no actor": {"q_net.q_net.0.weight": torch.zeros(8, 11)},
        "cannot be read ": {"action_net.weight": [1, 2]},
    }
    for about, state in states.items():
        refused(capsys, datasets, about.strip(), "--policy", write_zip(tmp_path / "bad.zip", state))
    sde = write_zip(tmp_path / "sde.zip", good, {"use_sde": True})
    refused(capsys, datasets, "gSDE", "--policy", sde)
    for kwargs in ({"activation_fn": NAMED.format("Hardshrink")}, {"activation_fn": "<function f at 0x7>"},
                   {"features_extractor_class": "<class 'torch_layers.NatureCNN'>"}):  # fmt: skip
        bad = write_zip(tmp_path / "bad.zip", good, **kwargs)
        refused(capsys, datasets, "unsupported", "--policy", bad)


def test_refused_flags(tmp_path, datasets, capsys, monkeypatch):
    (tmp_path / "trap.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')")
    monkeypatch.syspath_prepend(str(tmp_path))
    refused(
        capsys, datasets, "no registered environment", "--policy", "random", env="trap:Hopper-v5"
    )
    assert not (tmp_path / "imported").exists() and "trap" not in sys.modules
    refused(capsys, datasets, "no registered environment", "--policy", "random", env="Hoper-v5")
    refused(capsys, datasets, "cannot be made", "--policy", "random", env="Hopper-v3")
    refused(capsys, datasets, "--reference LOW HIGH", "--policy", "random", env="Ant-v5")
    refused(capsys, datasets, "a higher one", "--policy", "random", "--reference", 5, 5)
    refused(capsys, datasets, "there is no --policy", "--policy")
    refused(capsys, datasets, "--weights", "--policy", "random", "--weights", 1, 2)
    refused(capsys, datasets, "--weights", "--policy", "random", "random", "--weights", 1, 0)
    refused(capsys, datasets, "--noise", "--policy", "random", "--noise", "0.1", "-0.1")
    refused(capsys, datasets, "--noise", "--policy", "random", "--noise", "nan")
    refused(capsys, datasets, "--random-share", "--policy", "random", "--random-share", 1.1)
    refused(capsys, datasets, "--transitions", "--policy", "random", "--transitions", 0)
    refused(capsys, datasets, "--seed", "--policy", "random", "--seed", -1)
    refused(capsys, datasets, "no dataset id", "--policy", "random", dataset="no version")
    refused(capsys, datasets, "no dataset id", "--policy", "random", dataset="../outside-v0")
    good = write_zip(tmp_path / "good.zip", weights_of("PPO"))
    np.savez(tmp_path / "few.npz", mean=np.zeros(3), var=np.ones(3))
    np.savez(tmp_path / "negative.npz", mean=np.zeros(11), var=-np.ones(11))
    for name in ("few", "negative"):
        refused(
            capsys,
            datasets,
            "mean and var of 11",
            "--policy",
            good,
            "--obs-stats",
            tmp_path / f"{name}.npz",
        )
    refused(
        capsys, datasets, "--obs-stats", "--policy", "random", "--obs-stats", tmp_path / "few.npz"
    )
    refused(
        capsys, datasets, "cannot be read", "--policy", good, "--obs-stats", tmp_path / "absent.npz"
    )
    record("--policy", "random", "--transitions", 20)
    refused(capsys, datasets, "already", "--policy", "random", dataset="test/set-v0")


def test_other_references(tmp_path, capsys):
    episodes, made = record(
        "--policy", always(tmp_path / "a.zip", 0.1), "--transitions", 200, "--reference", 10, 60
    )
    total = np.mean([e.rewards.sum() for e in episodes[:-1]])
    assert f"score {100 * (total - 10) / 50:.1f}," in capsys.readouterr().out
    assert (made.storage.metadata["ref_min_score"], made.storage.metadata["ref_max_score"]) == (
        10,
        60,
    )


def test_command_line_and_a_stop_half_way(tmp_path, datasets):
    def start(*flags):
        command = [
            sys.executable,
            str(SCRIPT),
            "--env-id",
            "Hopper-v5",
            "--policy",
            "random",
            *map(str, flags),
        ]
        return subprocess.Popen(
            command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, env=dict(os.environ)
        )

    out, _ = (run := start("--transitions", 100)).communicate(timeout=60)
    assert run.returncode == 0 and "100 transitions" in out and "random (random): 100.0%" in out
    assert minari.load_dataset("edq/hopper/collected-v0").total_steps == 100
    run = start("--transitions", 10_000_000, "--dataset-id", "edq/hopper/stopped-v0")
    for _ in range(600):
        if list(datasets.glob("edq/hopper/.unfinished-*/set/data/main_data.hdf5")):
            break
        time.sleep(0.05)
    else:
        pytest.fail("it never began to write")
    run.send_signal(signal.SIGTERM)
    try:
        run.communicate(timeout=60)
    finally:
        run.kill()
    assert run.returncode == 128 + signal.SIGTERM
    assert sorted(p.name for p in (datasets / "edq" / "hopper").iterdir()) == [
        "collected-v0",
        "namespace_metadata.json",
    ]
