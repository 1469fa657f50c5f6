"""Recorded policies: zips as Stable-Baselines3 lays them out, npz, our own runs, mixtures."""

import base64
import io
import json
import math
import os
import pickle
import signal
import subprocess
import sys
import time
import zipfile

import minari
import numpy as np
import pytest
import torch
import tyro
from conftest import ROOT, hopper_episodes, load_script, run_script, write_dataset

pytestmark = pytest.mark.study
SCRIPT = ROOT / "results" / "datasets" / "record_policy.py"
sys.path.insert(0, str(SCRIPT.parent))  # as the makers find each other
import record_policy  # noqa: E402

SIZES = {
    "PPO": ("mlp_extractor.policy_net.{}", "action_net"),
    "SAC": ("actor.latent_pi.{}", "actor.mu"),
    "TD3": ("actor.mu.{}", "actor.mu.4"),
}
MEAN = ("--temperature", 0)


@pytest.fixture(autouse=True)
def datasets(tmp_path, monkeypatch):
    """An empty folder of datasets; what signals do is put back."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    (tmp_path / "datasets").mkdir()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield tmp_path / "datasets"
    for number, handler in before.items():
        signal.signal(number, handler)


def weights_of(kind, obs_dim=11, act_dim=3, hidden=(16, 12), scale=0.7):
    """Random weights under the names of Stable-Baselines3, those of critics among them."""
    rng = np.random.default_rng(0)
    state = {}

    def layer(name, size_in, size_out):
        weight = rng.normal(size=(size_out, size_in)) * scale / size_in**0.5
        state[f"{name}.weight"] = torch.tensor(weight).float()
        state[f"{name}.bias"] = torch.tensor(rng.normal(size=size_out) * 0.3).float()

    body, head = SIZES[kind]
    for i, (size_in, size_out) in enumerate(zip((obs_dim, *hidden), hidden)):
        layer(body.format(2 * i), size_in, size_out)
    layer(head, hidden[-1], act_dim)
    if kind == "PPO":
        state["log_std"] = torch.tensor([-2.5, -2.0, -3.0])[:act_dim]
        layer("mlp_extractor.value_net.0", obs_dim, 8)
        layer("value_net", 8, 1)
    else:
        layer("critic.qf0.0", obs_dim + act_dim, 8)
        layer("critic_target.qf0.0", obs_dim + act_dim, 8)
    if kind == "SAC":
        layer("actor.log_std", hidden[-1], act_dim)
    return state


def write_zip(path, state, data=None, **policy_kwargs):
    """A zip as Stable-Baselines3 saves it; `state` may be bytes already."""
    if not isinstance(state, bytes):
        buffer = io.BytesIO()
        torch.save(state, buffer)
        state = buffer.getvalue()
    text = {"use_sde": False, "policy_kwargs": policy_kwargs} | (data or {})
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("data", json.dumps(text))
        file.writestr("policy.pth", state)
        file.writestr("_stable_baselines3_version", "2.9.2")
    return path


def always(path, value):
    """A TD3-like policy whose every action is `value` in all components."""
    state = {k: torch.zeros_like(v) for k, v in weights_of("TD3").items()}
    state["actor.mu.4.bias"] += math.atanh(value)
    return write_zip(path, state)


def run(*flags):
    record_policy.main(tyro.cli(record_policy.Args, args=[str(flag) for flag in flags]))


def record(*flags, dataset="test/set-v0", env="Hopper-v5"):
    """Record in this process; returns the dataset."""
    run("--env-id", env, "--dataset-id", dataset, *flags)
    return minari.load_dataset(dataset)


def flat(dataset):
    """Observations before an action, and actions, of all episodes."""
    obs = np.concatenate([e.observations[:-1] for e in dataset])
    return obs, np.concatenate([e.actions for e in dataset])


def forward(state, kind, x, activation):
    """The last hidden layer and the mean before any squashing, in NumPy."""
    body, head = SIZES[kind]
    arrays = {key: value.numpy() for key, value in state.items()}
    x = x.astype(np.float64)
    for name in (body.format(0), body.format(2)):
        x = activation(x @ arrays[f"{name}.weight"].T + arrays[f"{name}.bias"])
    return x, x @ arrays[f"{head}.weight"].T + arrays[f"{head}.bias"]


def relu(x):
    return np.maximum(x, 0)


def elu(x):
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


NAMED = "<class 'torch.nn.modules.activation.{}'>"
MEANS = [
    ("PPO", None, np.tanh),
    ("PPO", "ReLU", relu),
    ("SAC", None, relu),
    ("SAC", "Tanh", np.tanh),
    ("TD3", "ELU", elu),
]


@pytest.mark.parametrize("kind, named, activation", MEANS)
def test_means_of_all_kinds(kind, named, activation, tmp_path):
    state = weights_of(kind)
    kwargs = {"net_arch": [16, 12]}
    if named:
        kwargs |= {"activation_fn": NAMED.format(named), ":serialized:": "x"}
    file = write_zip(tmp_path / "policy.zip", state, **kwargs)
    obs, actions = flat(record("--policy", file, *MEAN, "--transitions", 300))
    mean = forward(state, kind, obs, activation)[1]
    expected = mean.clip(-1, 1) if kind == "PPO" else np.tanh(mean)
    assert actions.dtype == obs.dtype == np.float32
    np.testing.assert_allclose(actions, expected, atol=1e-5)
    assert actions.std(0).min() > 1e-3  # they depend on the states


@pytest.mark.parametrize("kind, temperature", [("PPO", 0.3), ("SAC", 1.0)])
def test_spread_of_ppo_and_sac(tmp_path, kind, temperature):
    state = weights_of(kind, scale=0.3)
    file = write_zip(tmp_path / "policy.zip", state)
    flags = ("--policy", file, "--transitions", 2000, "--temperature", temperature)
    obs, actions = flat(record(*flags))
    last, mean = forward(state, kind, obs, np.tanh if kind == "PPO" else relu)
    if kind == "PPO":
        log_std = state["log_std"].numpy()
        reached = actions
        assert np.abs(actions).max() < 1  # nothing clipped, so z is the normal noise itself
    else:
        log_std = last @ state["actor.log_std.weight"].numpy().T
        log_std = (log_std + state["actor.log_std.bias"].numpy()).clip(-20, 2)
        # Beyond, float32 cannot be inverted.
        reached = np.where(np.abs(actions) < 0.9999, actions, np.nan)
        assert np.isnan(reached).mean() < 0.05
        reached = np.arctanh(reached)
    z = (reached - mean) / np.exp(log_std) / temperature
    assert np.abs(np.nanmean(z, 0)).max() < 0.1
    assert np.abs(np.nanstd(z, 0) - 1).max() < 0.1
    correlation = np.corrcoef(np.nan_to_num(z).T)
    assert np.abs(correlation - np.eye(3)).max() < 0.15  # noise of its own in each component


def test_an_npz_acts_as_the_zip(tmp_path):
    for kind, activation in (("PPO", "Tanh"), ("SAC", "ReLU")):
        state = weights_of(kind)
        body, head = SIZES[kind]
        arrays = {"activation": activation, "squash": kind == "SAC"}
        for i, name in enumerate((body.format(0), body.format(2), head)):
            arrays[f"W{i}"] = state[f"{name}.weight"].numpy().T
            arrays[f"b{i}"] = state[f"{name}.bias"].numpy()
        if kind == "PPO":
            arrays["log_std"] = state["log_std"].numpy()
        else:
            arrays["std_W"] = state["actor.log_std.weight"].numpy().T
            arrays["std_b"] = state["actor.log_std.bias"].numpy()
        np.savez(tmp_path / "policy.npz", **arrays)
        file = write_zip(tmp_path / "policy.zip", state)
        size = ("--transitions", 300)
        one = record("--policy", file, *size, dataset=f"test/{kind}-zip-v0")
        two = record("--policy", tmp_path / "policy.npz", *size, dataset=f"test/{kind}-npz-v0")
        np.testing.assert_allclose(flat(one)[1], flat(two)[1], atol=1e-5)


def test_normalised_observations(tmp_path):
    """As VecNormalize does it, clip and all; one file for each policy."""
    state = weights_of("TD3")
    rng = np.random.default_rng(1)
    mean = rng.normal(size=11)
    var = rng.uniform(0.1, 2, 11)
    var[1] = 0.0  # so that the clip at 10 matters
    np.savez(tmp_path / "stats.npz", mean=mean, var=var)
    np.savez(tmp_path / "other.npz", mean=mean + 1, var=var + 1)
    file = write_zip(tmp_path / "policy.zip", state)
    both = ("--obs-stats", tmp_path / "stats.npz", tmp_path / "other.npz")
    dataset = record("--policy", file, file, *both, "--transitions", 200)
    for number, e in enumerate(dataset):
        of_policy = number % 2
        seen = (e.observations[:-1] - mean - of_policy) / np.sqrt(var + of_policy + 1e-8)
        assert of_policy or np.abs(seen).max() > 100
        expected = np.tanh(forward(state, "TD3", seen.clip(-10, 10), relu)[1])
        np.testing.assert_allclose(e.actions, expected, atol=1e-5)


def test_mixture_noise_and_random_actions(tmp_path, capsys):
    files = (always(tmp_path / "a.zip", 0.2), always(tmp_path / "b.zip", -0.3))
    flags = ("--policy", *files, "--weights", 1, 3, "--noise", 0, 0.15, "--transitions", 4000)
    dataset = record(*flags)
    episodes = list(dataset)
    whole = len(episodes) // 4 * 4
    of_a = np.array([e.actions.mean() > -0.05 for e in episodes])
    assert whole >= 24
    assert of_a[:whole].sum() * 4 == whole  # exactly a quarter of the episodes
    means = np.where(of_a, 0.2, -0.3)
    spread = np.array([(e.actions - mean).std() for e, mean in zip(episodes, means)])
    quiet = spread < 1e-6
    assert 0.2 < quiet.mean() < 0.8
    assert np.abs(spread[~quiet] - 0.15).max() < 0.07  # one of the two stds an episode
    description = dataset.storage.metadata["description"]
    for part in ("a.zip, b.zip", "weights 1, 3", "std 0, 0.15", "seed 0"):
        assert part in description
    assert str(tmp_path) not in description
    steps = sum(len(e.rewards) for e, of in zip(episodes, of_a) if of) / 4000
    said = capsys.readouterr().out
    assert f"a.zip (TD3-like): {of_a.mean():.1%} of the episodes, {steps:.1%} of the tr" in said
    flags = ("--policy", files[0], "--random-share", 0.25, "--transitions", 2000)
    _, actions = flat(record(*flags, dataset="test/random-v0"))
    replaced = (np.abs(actions - np.float32(0.2)) > 1e-6).all(1)
    assert abs(replaced.mean() - 0.25) < 0.04
    assert (np.abs(actions[~replaced] - 0.2) < 1e-6).all()
    assert abs(actions[replaced].std() - 1 / 3**0.5) < 0.05


def test_exact_length_equal_arrays_and_printed_figures(tmp_path, capsys):
    file = write_zip(tmp_path / "p.zip", weights_of("PPO"))
    flags = ("--policy", file, "random", "--noise", 0.1)
    capsys.readouterr()
    long = list(record(*flags, "--transitions", 1001, dataset="test/long-v0"))
    out = capsys.readouterr().out
    again = list(record(*flags, "--transitions", 1001, dataset="test/again-v0"))
    short = list(record(*flags, "--transitions", 300, dataset="test/short-v0"))
    other = list(record(*flags, "--transitions", 300, "--seed", 1, dataset="test/other-v0"))
    assert sum(len(e.rewards) for e in long) == 1001
    assert sum(len(e.rewards) for e in short) == 300
    for name in ("observations", "actions", "rewards", "terminations", "truncations"):
        for a, b in zip(long, again, strict=True):
            assert np.array_equal(getattr(a, name), getattr(b, name))
    for a, b in zip(short[:-1], long):  # an episode does not depend on how many there are
        assert np.array_equal(a.observations, b.observations)
    assert not np.array_equal(short[0].observations[0], other[0].observations[0])
    assert not np.array_equal(short[0].observations[0], short[1].observations[0])
    for e in long[:-1]:
        assert e.terminations.tolist() == [False] * (len(e.rewards) - 1) + [True]
        assert not e.truncations.any()
    last = short[-1]  # cut: 300 falls within an episode of this seed
    assert last.truncations.tolist() == [False] * (len(last.rewards) - 1) + [True]
    assert not last.terminations.any()
    whole = [e for e in long if e.terminations[-1]]
    total = np.array([e.rewards.sum() for e in whole])
    score = 100 * (total.mean() + 20.272305) / (3234.3 + 20.272305)
    assert f"{len(long)} episodes, 1001 transitions" in out
    assert f"return {total.mean():.1f} +- {total.std():.1f} (std), score {score:.1f}," in out


def replay(dataset, number):
    """The recovered environment gives what is stored of an episode."""
    env = dataset.recover_environment()
    metadata = next(iter(dataset.storage.get_episode_metadata([number])))
    e = dataset[number]
    obs, _ = env.reset(seed=int(metadata["seed"]))
    observations = [obs]
    for action, reward, terminated in zip(e.actions, e.rewards, e.terminations):
        obs, r, t, *_ = env.step(action)
        observations.append(obs)
        assert abs(r - reward) < 1e-5
        assert t == terminated
    assert np.abs(np.array(observations) - e.observations).max() < 1e-5
    env.close()


def test_replay_and_references(tmp_path, capsys):
    file = write_zip(tmp_path / "p.zip", weights_of("SAC"))
    flags = ("--policy", file, "--noise", 0.2, "--transitions", 500)
    dataset = record(*flags)
    for number in (0, 5):
        replay(dataset, number)
    metadata = dataset.storage.metadata
    assert (metadata["ref_min_score"], metadata["ref_max_score"]) == (-20.272305, 3234.3)
    capsys.readouterr()
    dataset = record(*flags, "--reference", 10, 60, dataset="test/other-v0")
    metadata = dataset.storage.metadata
    assert (metadata["ref_min_score"], metadata["ref_max_score"]) == (10, 60)
    total = np.mean([e.rewards.sum() for e in dataset if e.terminations[-1]])
    assert f"score {2 * (total - 10):.1f}," in capsys.readouterr().out


def test_time_limit_of_adroit_and_default_name():
    run("--env-id", "AdroitHandPen-v1", "--policy", "random", "--transitions", 230)
    dataset = minari.load_dataset("edq/pen/collected-v0")
    assert [len(e.rewards) for e in dataset] == [100, 100, 30]
    for e in dataset:
        assert e.truncations.tolist() == [False] * (len(e.rewards) - 1) + [True]
        assert not e.terminations.any()
    assert dataset.recover_environment().spec.max_episode_steps == 100
    assert abs(flat(dataset)[1].std() - 1 / 3**0.5) < 0.02  # uniform
    replay(dataset, 1)


def test_maze_with_dict_observations(capsys):
    flags = ("--policy", "random", "--transitions", 1500, "--seed", 3)
    episodes = list(record(*flags, env="PointMaze_UMaze-v3"))
    assert set(episodes[0].observations) == {"observation", "achieved_goal", "desired_goal"}
    reached = np.array([e.rewards.max() for e in episodes])
    assert 0 < reached.mean() < 1
    assert max(e.rewards.sum() for e in episodes) > 1  # arrivals last, and count once
    assert f"score {100 * reached.mean():.1f}," in capsys.readouterr().out


def test_run_of_our_own(tmp_path, datasets, capsys):
    run_dir = tmp_path / "run"
    data = write_dataset(tmp_path / "set", hopper_episodes())
    flags = "--num-critics 2 --hidden-dim 16 --batch-size 16 --num-candidates 4 --normalize-obs"
    flags += " --gradient-steps 20 --eval-every 20 --eval-episodes 1 --no-compile"
    task = ("--env-id", "hopper-medium", "--dataset-id", data, "--run-dir", run_dir)
    out = run_script("edq_mujoco", *task, *flags.split())
    assert out.returncode == 0, out.stderr
    dataset = record("--policy", run_dir, "--transitions", 150, "--seed", 5)
    # The same in the script's own words.
    script = load_script("edq_mujoco")
    args = script.parse_args(["--evaluate", str(run_dir)])
    torch.manual_seed(123)  # other weights than the stored ones, until the checkpoint is loaded
    agent = script.Agent(11, 3, args)
    script.load_checkpoint(run_dir, agent)
    torch.set_num_threads(1)
    for number in range(3):
        e = dataset[number]
        rng = np.random.default_rng([5, number])
        rng.integers(2**31)  # the seed
        rng.choice([0.0])
        for obs, action in zip(e.observations, e.actions):
            noise = torch.from_numpy(rng.standard_normal((5, 1, 4, 3)).astype(np.float32))
            u = torch.tensor([rng.random()], dtype=torch.float32)
            expected = script.act(agent, torch.from_numpy(obs)[None], noise, u, args)[0]
            np.testing.assert_allclose(action, expected, atol=1e-4)
            rng.standard_normal(3)
            rng.random()
    # And what may not be: another environment, another script, a damaged run.
    policy = ("--policy", run_dir)
    refused(capsys, datasets, "acts in Hopper", *policy, env="Walker2d-v5")
    refused(capsys, datasets, "--temperature means nothing", *policy, *MEAN)
    text = json.loads((run_dir / "run.json").read_text())
    (run_dir / "run.json").write_text(json.dumps(text | {"script": "os.py"}))
    refused(capsys, datasets, "none of our scripts", *policy)
    (run_dir / "run.json").write_text("{")
    refused(capsys, datasets, "cannot be read as a policy", *policy)


def refused(capsys, datasets, about, *flags, env="Hopper-v5", dataset="refused/set-v0"):
    """Exit code 2, one sentence that says what is wrong, and no new file."""
    before = sorted(datasets.rglob("*"))
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        record("--transitions", 50, *flags, env=env, dataset=dataset)
    said = capsys.readouterr().err
    assert stopped.value.code == 2
    assert said.startswith("error: ")
    assert said.count("\n") == 1, said
    assert about in said, said
    assert sorted(datasets.rglob("*")) == before


class Touch:
    """Unpickling this creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_no_pickle_is_executed(tmp_path, datasets, capsys):
    marker = tmp_path / "executed"
    trap = Touch(marker)
    state = weights_of("PPO")
    buffer = io.BytesIO()
    torch.save(state | {"log_std": trap}, buffer)
    raw = pickle.dumps(trap)
    for content in (buffer.getvalue(), raw):
        file = write_zip(tmp_path / "bad.zip", content)
        refused(capsys, datasets, "without unpickling", "--policy", file)
    objects = np.array([trap], object)
    np.savez(tmp_path / "bad.npz", W0=objects, b0=np.ones(11), activation="Tanh", squash=False)
    refused(capsys, datasets, "without unpickling", "--policy", tmp_path / "bad.npz")
    np.savez(tmp_path / "stats.npz", mean=objects, var=np.ones(11))
    good = write_zip(tmp_path / "good.zip", state)
    flags = ("--policy", good, "--obs-stats", tmp_path / "stats.npz")
    refused(capsys, datasets, "without unpickling", *flags)
    # Beside good weights a pickle is no obstacle, and left alone.
    blob = {":serialized:": base64.b64encode(raw).decode()}
    data = {"policy_class": blob, "policy_kwargs": blob, "lr_schedule": blob}
    record("--policy", write_zip(tmp_path / "blob.zip", state, data), "--transitions", 20)
    assert not marker.exists()
    torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)
    assert marker.exists()  # the trap is one


def test_refused_files(tmp_path, datasets, capsys):
    good = weights_of("PPO")
    file = write_zip(tmp_path / "good.zip", good)
    content = file.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 255
    for wrong in (content[: len(content) // 2], flipped, b"not a zip"):
        (tmp_path / "wrong.zip").write_bytes(wrong)
        refused(capsys, datasets, "cannot be read", "--policy", tmp_path / "wrong.zip")
    refused(capsys, datasets, "no policy file", "--policy", tmp_path / "none.zip")
    words = "(11, 3) observations and actions, not (17, 6)"
    refused(capsys, datasets, words, "--policy", file, env="Walker2d-v5")
    refused(capsys, datasets, "not a vector in [-1, 1]", "--policy", file, env="Humanoid-v5")
    refused(capsys, datasets, "no vector", "--policy", file, env="PointMaze_UMaze-v3")
    bias = "mlp_extractor.policy_net.2.bias"
    states = {
        "features_extractor": good | {"features_extractor.cnn.0.weight": torch.zeros(8, 3, 8, 8)},
        "lstm": good | {"lstm_actor.weight_ih_l0": torch.zeros(8, 11)},
        "log_std": good | {"log_std": torch.zeros(12, 3)},  # gSDE's shape
        "action_net.bias": good | {"action_net.bias": torch.full((3,), math.nan)},
        bias: {k: v for k, v in good.items() if k != bias},
        "cannot be read": good | {"mlp_extractor.policy_net.2.weight": torch.zeros(12, 15)},
        "no actor": {"q_net.q_net.0.weight": torch.zeros(8, 11)},
    }
    for about, state in states.items():
        refused(capsys, datasets, about, "--policy", write_zip(tmp_path / "bad.zip", state))
    gsde = write_zip(tmp_path / "bad.zip", good, {"use_sde": True})
    refused(capsys, datasets, "gSDE", "--policy", gsde)
    for name in (NAMED.format("Hardshrink"), "<function f at 0x7>"):
        odd = write_zip(tmp_path / "bad.zip", good, activation_fn=name)
        refused(capsys, datasets, "unsupported", "--policy", odd)
    layers = {"W0": np.zeros((11, 3)), "b0": np.zeros(3)}
    npz = {
        "unsupported activation": layers | {"activation": "Softsign", "squash": True},
        "squash": layers | {"activation": "Tanh"},
        "a W0 that": layers
        | {"activation": "Tanh", "squash": True, "W0": np.full((11, 3), np.nan)},
        "a conv that": layers | {"activation": "Tanh", "squash": True, "conv": np.zeros(3)},
    }
    for about, arrays in npz.items():
        np.savez(tmp_path / "bad.npz", **arrays)
        refused(capsys, datasets, about, "--policy", tmp_path / "bad.npz")


RANDOM = ("--policy", "random")
REFUSED = [
    ("no registered environment", RANDOM, "trap:Hopper-v5"),
    ("no registered environment", RANDOM, "Hoper-v5"),
    ("cannot be made", RANDOM, "Hopper-v3"),
    ("--reference LOW HIGH", RANDOM, "Ant-v5"),
    ("a higher one", (*RANDOM, "--reference", 5, 5), "Hopper-v5"),
    ("there is no --policy", ("--policy",), "Hopper-v5"),
    ("--weights", (*RANDOM, "--weights", 1, 2), "Hopper-v5"),
    ("--weights", (*RANDOM, "--weights", 0), "Hopper-v5"),
    ("--noise", (*RANDOM, "--noise", "nan"), "Hopper-v5"),
    ("--temperature", (*RANDOM, "--temperature", -1), "Hopper-v5"),
    ("--temperature", (*RANDOM, "--temperature", 1, 1), "Hopper-v5"),
    ("--random-share", (*RANDOM, "--random-share", 1.1), "Hopper-v5"),
    ("--transitions", (*RANDOM, "--transitions", 0), "Hopper-v5"),
    ("--seed", (*RANDOM, "--seed", -1), "Hopper-v5"),
    ("--obs-stats", (*RANDOM, "--obs-stats", "few.npz"), "Hopper-v5"),
]


def test_refused_flags(tmp_path, datasets, capsys, monkeypatch):
    (tmp_path / "trap.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')")
    monkeypatch.syspath_prepend(str(tmp_path))
    for about, flags, env in REFUSED:
        refused(capsys, datasets, about, *flags, env=env)
    assert not (tmp_path / "imported").exists()
    good = write_zip(tmp_path / "good.zip", weights_of("PPO"))
    for mean, var in ((np.zeros(3), np.ones(3)), (np.zeros(11), -np.ones(11))):
        np.savez(tmp_path / "stats.npz", mean=mean, var=var)
        flags = ("--policy", good, "--obs-stats", tmp_path / "stats.npz")
        refused(capsys, datasets, "mean and var of 11", *flags)
    record(*RANDOM, "--transitions", 20)
    refused(capsys, datasets, "already", *RANDOM, dataset="test/set-v0")


def test_home_in_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_zip(tmp_path / "p.zip", weights_of("TD3"))
    np.savez(tmp_path / "stats.npz", mean=np.zeros(11), var=np.ones(11))
    flags = ("--policy", "~/p.zip", "--obs-stats", "~/stats.npz", "--transitions", 20)
    assert record(*flags).total_steps == 20


def test_command_line_and_a_stop_half_way(tmp_path, datasets):
    command = [sys.executable, str(SCRIPT), "--env-id", "Hopper-v5", "--policy", "random"]
    command += ["--transitions", "10000000", "--dataset-id", "edq/hopper/stopped-v0"]
    process = subprocess.Popen(command, cwd=tmp_path, env=dict(os.environ))
    deadline = time.time() + 60
    while not list(datasets.glob("edq/hopper/.unfinished-*/set/data/main_data.hdf5")):
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + signal.SIGTERM
    assert not [path for path in datasets.rglob("*") if path.is_file()]
