"""
Minimizing what can only be evaluated
=====================================

Five parties hold a black box each; the boxes want different things. FZooS finds the minimizer of their mean with a
fraction of the queries of finite differences, because it forgets nothing that it has asked.
"""

import matplotlib.pyplot as plt
import numpy as np

from steepest.federated import FedZO, FZooS

d, n = 30, 5
rng = np.random.default_rng(0)
shares = rng.dirichlet(np.full(n, 1 / n), (2, d)) - 1 / n
a, b = 1 + 5 * np.moveaxis(shares, 2, 1)
fs = [lambda X, a=a, b=b: ((20 * X - 10) ** 2 @ a + (20 * X - 10) @ b) / (10 * d) for a, b in zip(a, b, strict=True)]
start, least = rng.uniform(size=d), -0.25 / 10

# %%
# All methods take the same local steps. The correction pulls the clients in the common direction.

rules = {
    "FZooS": FZooS(bounds=(0, 1)),
    "FZooS, not corrected": FZooS(bounds=(0, 1), correction="none"),
    "differences": FedZO(bounds=(0, 1)),
    "differences, scaffold": FedZO(bounds=(0, 1), correction="scaffold1"),
}
figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for name, rule in rules.items():
    history = rule.minimize(fs, start, rounds=9, max_queries=9_000, vectorized=True).history
    axes.plot([row["queries"] for row in history], [row["fun"] - least for row in history], "o-", label=name)
axes.set(xlabel="queries of all clients", ylabel="F less its least value", yscale="log",
         title="What was asked before need not be asked again")  # fmt: skip
axes.legend()
plt.show()
