"""The ensemble study: closed forms against Monte Carlo, groups of members against a plain loop."""

import numpy as np
import pytest
import torch

from results.studies.ensemble import run, tables

pytestmark = pytest.mark.study


@pytest.mark.parametrize("members", [2, 4, 16])
def test_pessimism_in_closed_form_is_what_samples_show(members):
    x = np.random.default_rng(0).standard_normal((200_000, members))
    assert tables.minimum_as_beta(members) == pytest.approx(-x.min(1).mean(), abs=0.01)
    for beta in (1, 4):
        lcb = x.mean(1) - beta * x.std(1, ddof=1)
        assert tables.lcb_noise(members, beta) == pytest.approx(lcb.std(), rel=0.01)


def test_groups_of_members_choose_as_a_plain_loop_does():
    g = torch.Generator().manual_seed(0)
    q = torch.randn(4, 20, 5, generator=g)  # members, states, candidates
    found = run.compare_groups(q, 4.0, [torch.tensor([2, 0]), torch.tensor([1, 3])])
    x = q.numpy()
    same = []
    lost = []
    for group, others in (([0, 2], [1, 3]), ([1, 3], [0, 2])):
        for state in range(20):
            whole = x[others, state].mean(0) - 4 * x[others, state].std(0, ddof=1)
            part = x[group, state].mean(0) - 4 * x[group, state].std(0, ddof=1)
            choice = int(np.argmax(part))
            same.append(choice == int(np.argmax(whole)))
            lost.append((whole.max() - whole[choice]) / whole.std(ddof=1))
    assert found["same_choice"] == pytest.approx(np.mean(same))
    assert found["loss_in_std"] == pytest.approx(np.mean(lost), rel=1e-3)


def test_how_often_members_differ_more_on_a_random_action():
    """Stds 1 to 2 on data, 1.5 to 2.5 on random actions: three pairs of four."""
    data = torch.tensor([[0.0, 0.0], [1.0, 2.0]])
    random = torch.tensor([[0.0, 0.0], [1.5, 2.5]])
    assert run.random_seen(data, random) == 0.75
