"""
Two batch sizes tell the sharpness of all others
================================================

The sharpest direction of a batch limits the learning rate, and small batches are sharper than the data. Measured at two
batch sizes, the excess is known at all others, and with it the learning rate: it grows with the batch until noise and
curvature balance, and hardly beyond.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.preprocessing import StandardScaler
from torch import nn

from steepest.landscape import BatchSpectrum

# %%
# Train a small network on digits for a moment.
X, y = load_digits(return_X_y=True)
X, y = torch.tensor(StandardScaler().fit_transform(X), dtype=torch.float32), torch.tensor(y)
torch.manual_seed(0)
model, loss_fn = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10)), nn.CrossEntropyLoss()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(150):
    index = torch.randint(len(X), (64,))
    optimizer.zero_grad()
    loss_fn(model(X[index]), y[index]).backward()
    optimizer.step()

# %%
# Calibrate at batches of 16 and 64, then measure batches that the fit has not seen.
spectrum = BatchSpectrum(model, loss_fn, X, y, batch_sizes=(16, 64), repeats=10).fit()
unseen = (4, 8, 32, 128, 256, 512)
measured = {B: spectrum.measure(B, 10) for B in unseen}
advice = spectrum.recommend(0.1, 32, 256)
print(advice)

# %%
# Left: largest eigenvalue against the batch size. Right: the largest stable learning rate that follows from it.
B = np.geomspace(2, len(X) - 1, 200)
predicted = np.array([spectrum.extreme(b) for b in B])
fig, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2))
left.loglog(B, predicted, color="C0", lw=2, label="predicted")
for k, (size, values) in enumerate(measured.items()):
    left.plot([size] * len(values), values, ".", color="0.7", label="single batches" if k == 0 else None)
    left.plot(size, values.mean(), "o", color="C1", label="mean of ten, unseen sizes" if k == 0 else None)
left.plot(list(spectrum.measured_), list(spectrum.measured_.values()), "s", color="C3", label="calibration")
left.axhline(spectrum.lambda_max_, color="0.4", ls="--", lw=1)
left.annotate("all data", (2, spectrum.lambda_max_), xytext=(0, 4), textcoords="offset points", color="0.4")
left.set(xlabel="batch size", ylabel="largest eigenvalue", title="small batches are sharper")
left.legend(frameon=False)
right.loglog(B, 2 / predicted, color="C0", lw=2, label="SGD: 2 / extreme")
right.loglog(
    B, 2 / predicted[0] * (predicted[0] / predicted) ** 0.5, color="C2", lw=2, label="adaptive: its root, scaled"
)
right.axvline(advice.saturation_batch, color="0.4", ls="--", lw=1)
note = {"xytext": (6, 0), "textcoords": "offset points", "color": "0.4"}
right.annotate("noise and curvature\nbalance", (advice.saturation_batch, 2 / predicted[0]), **note)
right.set(xlabel="batch size", ylabel="learning rate", title="how far the rate grows with the batch")
right.legend(frameon=False, loc="upper left")
plt.tight_layout()
plt.show()
