"""Score a policy of uniform actions on the evaluation seeds, for the column `random` of the README's first runs.

python results/chance.py        # writes results/records/chance.csv
"""

import csv
import importlib
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
TASKS = (
    ("edq_mujoco", "hopper-medium-expert", 10),
    ("edq_adroit", "door-human", 20),
    ("edq_antmaze", "antmaze-umaze", 20),
    ("edq_antmaze", "pointmaze-umaze-embedded", 20),
)

if __name__ == "__main__":
    rows = []
    for script, env_id, episodes in TASKS:
        edq = importlib.import_module(script)
        task, results = edq.TASKS[env_id], []
        env = edq.make_env(task)
        for episode in range(episodes):
            seed, rewards, done = 1_000_000 + episode, [], False  # those of --seed 0
            env.reset(seed=seed)
            env.action_space.seed(seed)
            while not done:
                _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
                rewards.append(float(reward))
                done = terminated or truncated
            results.append(
                {"episode": episode, "seed": seed, **edq.episode_result(rewards, task.reference)}
            )
        figures = edq.means(results)
        score, error = (round(figures[k], 1) for k in ("score", "standard_error"))
        rows.append({"task": env_id, "episodes": episodes, "score": score, "standard_error": error})
    with open(ROOT / "results" / "records" / "chance.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
