"""
Pressure on a wing from Riemannian features
===========================================

A panel method computes the pressure on random wings. An attention network learns it, once from coordinates alone and
once with metric, connection and curvature of the surface as further channels; both then meet wings they have not seen.
"""

import matplotlib.pyplot as plt
import torch

from steepest.physics import WingPressureModel, make_wing_dataset, train_wing_pressure

torch.set_num_threads(1)
data = make_wing_dataset(26, seed=0, n_u=33, n_v=9, conditions_per_wing=2)
train, test = data.of_wings(range(20)), data.of_wings(range(20, 26))  # split by wing, never by condition

# %%
# The same network twice, the same first weights, the same batches; only the channels differ.

predictions = {}
for name, features in (("coordinates", "none"), ("with geometry", "intrinsic")):
    model = WingPressureModel(32, 8, features=features, d_model=32, n_layers=1, seed=0)
    train_wing_pressure(model, train, epochs=60, batch_size=16, seed=0)
    with torch.no_grad():
        predictions[name] = model(test.points, test.conditions)
    print(f"{name}: MSE on unseen wings {(predictions[name] - test.cp).square().mean():.4f}")

# %%
# Along the chord of one unseen wing, at the root, in the middle and near the tip. Suction points upwards.

k = int(test.conditions[:, 0].argmax())  # the largest angle of attack
figure, axes = plt.subplots(1, 3, figsize=(9, 3.4), sharey=True, layout="constrained")
for ax, strip in zip(axes, (0, 3, 6)):
    x = test.points[k, :, strip, 0]
    x = (x - x.min()) / (x.max() - x.min())
    ax.plot(x, test.cp[k, :, strip], "ko", ms=3, mfc="none", label="panel method")
    for name, cp in predictions.items():
        ax.plot(x, cp[k, :, strip], label=name)
    ax.set(title=f"y = {test.points[k, 0, strip, 1]:.2f} chords", xlabel="x / c")
axes[0].set_ylabel("pressure coefficient")
axes[0].invert_yaxis()
axes[-1].legend(frameon=False)
plt.show()
