"""The authors' code as the other side of run.py: `path` is a clone of ruoqizzz/entropy-offlineRL.

    git clone https://github.com/ruoqizzz/entropy-offlineRL ~/entropy-offlineRL
    python results/studies/speed/run.py --other results/studies/speed/authors.py \
        --other-path ~/entropy-offlineRL

Only its agents and its sampler are used; neither gym nor d4rl has to be installed.
"""

import os
import sys
from collections.abc import Callable

import numpy as np
import torch


def make_agent(setting: dict, obs_dim: int, act_dim: int, path: str, device: str):
    """Their agent with the loss, the clamp and the coefficients that run.py gives ours."""
    sys.path.insert(0, os.path.expanduser(path))
    import agents.eql_diffusion as theirs

    theirs.tqdm = lambda iterations: iterations  # a progress bar of one update each
    return theirs.Diffusion_EQL(
        obs_dim,
        act_dim,
        1.0,
        device,
        0.99,
        0.005,
        max_q_backup=setting.get("max_q", False),
        n_timesteps=setting["T"],
        num_critics=setting["M"],
        loss_type="NML",
        action_clip=True,
        grad_norm=4.0,
        ent_coef=0.01,
    )


def make_update(setting: dict, data, path: str) -> Callable[[], object]:
    """One update of theirs on the same data, batch drawn by their sampler."""
    device = data.obs.device.type
    agent = make_agent(setting, data.obs.shape[1], data.action.shape[1], path, device)
    from utils.data_sampler import Data_Sampler

    names = ("observations", "actions", "rewards", "next_observations", "terminals")
    arrays = {name: x.cpu().numpy() for name, x in zip(names, data)}
    sampler = Data_Sampler(arrays, device)
    return lambda: agent.train(sampler, 1, setting["B"])


def make_act(setting: dict, path: str) -> Callable[[np.ndarray], np.ndarray]:
    """Their best of 50 for one observation of Hopper."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    agent = make_agent(setting, 11, 3, path, device)
    return lambda obs: agent.sample_action(np.asarray(obs, np.float32))
