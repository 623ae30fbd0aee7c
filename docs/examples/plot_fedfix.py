"""
How long should the server wait?
================================

Ten clients hold few of the ten digits each, and the slowest takes five times as long as the fastest. The four rules
below differ in when the server aggregates; all of them are weighted so that every client counts the same in the end.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from steepest.federated import (
    AsyncFedAvg,
    FedAvg,
    FedFix,
    SimulatedEngine,
    dirichlet_partition,
    expected_weights,
    linear_speeds,
    make_clients,
)

X, y = map(torch.as_tensor, load_digits(return_X_y=True))
X = X.float() / 16
parts = dirichlet_partition(y, n_clients=10, alpha=0.1, seed=1)
torch.manual_seed(1)
net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
clients = make_clients(net, (X, y), parts, F.cross_entropy, optimizer=lambda p: torch.optim.SGD(p, 0.02), steps=5)


def loss(state):
    with torch.no_grad():
        logits = torch.func.functional_call(net, state, (X,))
        return {"loss": sum(float(F.cross_entropy(logits[part], y[part])) for part in parts) / len(parts)}


speeds = linear_speeds(10, slowest=1.0, spread=0.8)
engine = SimulatedEngine(clients, speeds=speeds, seed=1)

# %%
# Simulated time: the clients' work is real, the seconds are not. The same seed gives the same curves, bit for bit.

rules = {
    "FedAvg": (FedAvg(importance="uniform"), 1),
    "FedFix, window 0.5 s": (FedFix(0.5, importance="uniform"), 2),
    "FedFix, window 0.2 s": (FedFix(0.2, importance="uniform"), 4),
    "asynchronous": (AsyncFedAvg(importance="uniform"), 20),
}
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
for name, (rule, every) in rules.items():
    history = engine.run(rule, net, until=30.0, evaluate=loss, evaluate_every=every).history
    left.plot([row["time"] for row in history], [row["loss"] for row in history], label=name)
left.set(xlabel="simulated seconds", ylabel="loss, each client counted the same", yscale="log",
         title="Waiting less is learning faster")  # fmt: skip
left.legend()

# %%
# Without correction, a rule minimises another objective: fast clients take part more often and pull the model to
# their data.

for name, rule in {
    "asynchronous": AsyncFedAvg(weights="identical"),
    "FedFix, window 0.5 s": FedFix(0.5, weights="identical"),
    "either, corrected": AsyncFedAvg(),
}.items():
    right.plot(speeds, expected_weights(rule, speeds, "uniform"), "o-", label=name)
right.set(
    xlabel="seconds that a client's task takes",
    ylabel="weight of the client in what is minimised",
    title="Equal factors favor fast clients",
    ylim=(0, None),
)
right.legend()
plt.show()
