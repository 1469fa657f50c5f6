"""draft"""
import numpy as np

FLIP = np.array([[1, 1], [1, -1], [1, -1], [1, 1]])  # [leg, (hip, ankle)]: the middle legs' ankles bend the other way


def features(obs: np.ndarray, rel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the ant's network sees `[B, 30]` of observations `[B, 27]` and the way to the target `[B, 2]`, and quarter turns.

    An ant looks the same after a quarter turn about its own axis. So all is told in the body's frame, and the legs are
    renumbered by k quarter turns `[B]` such that the target lies within 45 degrees of the front: one gait is enough.
    """
    w, x, y, z = obs[:, 1:5].T
    world = 2 * np.array([[0.5 - y * y - z * z, x * y - w * z, x * z + w * y],
                          [x * y + w * z, 0.5 - x * x - z * z, y * z - w * x],
                          [x * z - w * y, y * z + w * x, 0.5 - x * x - y * y]])  # [3, 3, B], body to world  # fmt: skip
    distance = np.maximum(np.hypot(*rel.T), 1e-9)
    ahead, flat = rel.T / distance, np.zeros(len(obs))
    seen = np.array([[flat, flat, flat + 1], [*ahead, flat], obs[:, 13:16].T])  # up, target, velocity: [3, 3, B]
    seen = np.concatenate([np.einsum("ijb,vib->vjb", world, seen), obs[None, :, 16:19].mT])  # and spin, of the body
    k = np.rint(np.arctan2(seen[1, 1], seen[1, 0]) / (np.pi / 2)).astype(int) % 4
    c, s = np.array([1, 0, -1, 0])[k], np.array([0, 1, 0, -1])[k]
    up, ahead, velocity, spin = np.stack([c * seen[:, 0] + s * seen[:, 1], c * seen[:, 1] - s * seen[:, 0], seen[:, 2]], 2).mT
    legs = np.stack([obs[:, 5:13], obs[:, 19:27]], 1).reshape(-1, 2, 4, 2) * FLIP  # [B, (angle, speed), leg, (hip, ankle)]
    legs = legs[np.arange(len(obs))[:, None], :, (np.arange(4) + k[:, None]) % 4]  # [B, part, (angle, speed), (hip, ankle)]
    return legs, k
