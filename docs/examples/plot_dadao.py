"""
How often each link of a network should talk
============================================

Twenty machines in two groups, one link between the groups. If all links talk equally often, nearly all conversations
are wasted: the bridge is the bottleneck. The best rates keep the speed and save four conversations out of five.
"""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.collections import LineCollection

from steepest.federated import dadao, optimal_gossip_rates, uniform_gossip_rates

# %%
# Two complete graphs of ten nodes and a bridge, drawn as two circles.
half = [(i, j) for i in range(10) for j in range(i + 1, 10)]
edges = [*half, *((i + 10, j + 10) for i, j in half), (0, 10)]
turn = 2 * np.pi * np.arange(10) / 10
left = np.stack([-1.7 + np.cos(turn), np.sin(turn)], axis=1)
places = np.concatenate([left, left * [-1, 1]])
best = optimal_gossip_rates((20, edges), method="barrier")
equal = uniform_gossip_rates((20, edges))
print(f"{equal.total:.0f} conversations per unit of time with equal rates, {best.total:.0f} with the best")

# %%
# Each node knows its own quadratic; the network looks for the minimum of the sum.
rng = np.random.default_rng(0)
A = np.diag(np.geomspace(0.1, 1, 10))
b = rng.standard_normal((20, 10))
x_star = np.linalg.solve(20 * A, b.sum(0))
options = {"graph": (20, edges), "L": 1.0, "mu": 0.1, "t_max": 260, "x_star": x_star, "record_every": 2.0}
runs = {
    name: dadao(lambda i, x: A @ x - b[i], np.zeros(10), rates=rates, **options)
    for name, rates in (("equal rates", equal.rates), ("best rates", best.rates))
}

# %%
# Width and color of a link are its rate.
figure, (network, curve) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained", width_ratios=(1.25, 1))
order = np.argsort(best.rates)
width = 0.5 + 5 * best.rates[order] / best.rates.max()
links = LineCollection(places[best.edges[order]], linewidths=width, cmap="viridis_r")
links.set_array(best.rates[order])
network.add_collection(links)
network.scatter(*places.T, s=40, color="black", zorder=2)
network.set(aspect="equal", title=f"Best rates: {best.gain:.1f} times fewer conversations")
network.axis("off")
figure.colorbar(links, ax=network, label="conversations per unit of time", shrink=0.8)
for name, run in runs.items():
    rows = run.history
    curve.semilogy([r["communications"] / 1000 for r in rows], [r["distance"] for r in rows], label=name, lw=2)
curve.set(xlabel="conversations (thousands)", ylabel="mean squared distance", title="Four out of five were wasted")
curve.spines[["top", "right"]].set_visible(False)
curve.legend(frameon=False)
plt.show()
