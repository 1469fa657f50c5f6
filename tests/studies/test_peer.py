"""The peer: its data and its scores are the script's own. The learner is faked."""

import json
import sys

import numpy as np
import pytest
import torch

import edq_antmaze
from results.studies.benchmark import peer

pytestmark = pytest.mark.study


class Still:
    """Acts with zeros; keeps the batches it is given and the observations it is shown."""

    def __init__(self, args, obs_dim, act_dim):
        self.act_dim = act_dim
        self.batches = []
        self.shown = []

    def update(self, batch):
        self.batches.append(batch)

    def predict(self, obs):
        self.shown.append(obs)
        return np.zeros((len(obs), self.act_dim), np.float32)


def two_episodes():
    """Episodes of three and two steps; the second one reaches its end."""
    obs = torch.tensor([[0.0], [1.0], [2.0], [10.0], [11.0]])
    next_obs = torch.tensor([[1.0], [2.0], [3.0], [11.0], [12.0]])
    action = torch.tensor([[0.1], [0.2], [0.3], [0.4], [0.5]])
    reward = torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0])
    end = torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0])
    return edq_antmaze.Transitions(obs, action, reward, next_obs, end)


def test_next_action_stays_within_an_episode():
    data = peer.arrays_of(two_episodes())
    assert data.next_action[:, 0] == pytest.approx([0.2, 0.3, 0.3, 0.5, 0.5])
    assert data.reward.shape == data.end.shape == (5, 1)


def test_a_batch_holds_whole_transitions():
    data = peer.arrays_of(two_episodes())
    batch = peer.draw(data, 64, np.random.default_rng(0))
    assert np.array_equal(batch["next_observations"], batch["observations"] + 1)
    at_end = batch["observations"][:, 0] == 11
    assert np.array_equal(batch["terminals"][:, 0], at_end.astype(np.float32))
    assert {array.dtype for array in batch.values()} == {np.dtype(np.float32)}


def test_every_learner_has_settings_for_every_family():
    for algorithm in ("iql", "td3bc", "rebrac", "bc"):
        for family in ("adroit", "antmaze", "mujoco"):
            assert (algorithm, family) in peer.SETTINGS


def test_a_run_is_scored_by_our_own_evaluation(tmp_path):
    made = []

    def learner(*sizes):
        made.append(Still(*sizes))
        return made[0]

    args = peer.Args(
        script="edq_antmaze",
        env_id="pointmaze-rare-embedded",
        run_dir=tmp_path / "run",
        gradient_steps=4,
        batch_size=8,
        eval_every=2,
        eval_episodes=2,
    )
    own_act = edq_antmaze.act
    summary = peer.main(args, learner)
    assert edq_antmaze.act is own_act
    assert len(made[0].batches) == 4
    assert summary["last"]["step"] == 4
    assert summary["last"]["score"] == 0  # who stands still never arrives
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["dataset"]["hash"] == summary["data"]["hash"]
    lines = (tmp_path / "run" / "evaluations.csv").read_text().splitlines()
    assert len(lines) == 1 + 2 * 2
    shown = np.concatenate(made[0].shown)
    assert np.abs(shown).max() < 20  # observations come as in training, in units of their std


THEIRS = """
import torch


class Diffusion_EQL:
    def __init__(self, obs_dim, act_dim, max_action, device, gamma, tau, **settings):
        self.made_with = (obs_dim, act_dim, gamma, tau, settings)
        self.trained_on = None

    def train(self, buffer, iterations, batch_size):
        self.trained_on = (iterations, *buffer.sample(batch_size))

    def actor(self, obs):
        return torch.rand(len(obs), 2)

    def critic_target(self, obs, action):  # the mean says x, the spread says y
        x, y = action.T
        return torch.stack([x - y, x + y, x - y, x + y], 1)
"""


def test_the_authors_agent_learns_from_the_batch_and_acts_by_its_lcb(tmp_path, monkeypatch):
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents" / "eql_diffusion.py").write_text(THEIRS)
    monkeypatch.setattr("sys.path", list(sys.path))
    args = peer.Args("edq_antmaze", "antmaze-umaze-fixed", tmp_path, "authors", gamma=0.9)
    args.authors = tmp_path
    learner = peer.Authors(args, obs_dim=1, act_dim=2)
    *sizes, gamma, tau, settings = learner.agent.made_with
    assert (*sizes, gamma, tau) == (1, 2, 0.9, args.tau)
    assert settings["num_critics"] == 4

    batch = peer.draw(peer.arrays_of(two_episodes()), 64, np.random.default_rng(0))
    learner.update(batch)
    iterations, obs, _, next_obs, _, not_done = learner.agent.trained_on
    assert iterations == 1
    assert torch.equal(next_obs, obs + 1)
    assert torch.equal(not_done[:, 0] == 0, obs[:, 0] == 11)

    torch.manual_seed(0)
    drawn = torch.rand(3 * peer.CANDIDATES, 2).view(3, -1, 2)
    torch.manual_seed(0)
    found = learner.predict(np.zeros((3, 1), np.float32))
    for r in range(3):
        by_hand = [float(x - y * (4 / 3) ** 0.5) for x, y in drawn[r]]  # std of -y, y, -y, y
        best = int(np.argmax(by_hand))
        assert found[r] == pytest.approx(drawn[r, best].numpy())


@pytest.mark.parametrize("script", ["edq_antmaze", "edq_adroit"])
def test_the_authors_agent_without_their_code_or_a_row_is_one_sentence(script, tmp_path, capsys):
    args = peer.Args(script, "antmaze-umaze-fixed", tmp_path / "run", "authors", authors=tmp_path)
    with pytest.raises(SystemExit, match="2"):
        peer.main(args)
    assert capsys.readouterr().err.startswith("error: --algorithm authors")
    assert not (tmp_path / "run").exists()
