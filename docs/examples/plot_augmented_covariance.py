"""
Timing in EEG that a covariance does not see
============================================

Imagined movements of the left and the right hand change the power of the mu rhythm over the opposite hemisphere. They
also change its frequency and the delay between the hemispheres. A spatial covariance holds the first; an augmented
covariance, that of the delay-embedded trial, holds all three. Here a simulated subject is classified by both.
"""

import matplotlib.pyplot as plt
import numpy as np
from scipy.signal import butter, sosfiltfilt
from sklearn.model_selection import cross_val_score

from steepest.manifold import AugmentedCovariance, augmented_covariance_pipeline, mutual_information
from steepest.studies.simulators import motor_imagery

# %%
# Filter first, embed afterwards. The ends of the trials, where the filter rings, are cut.

trials = motor_imagery(80, random_state=1)
band = butter(4, [8, 35], "bandpass", fs=trials.sfreq, output="sos")
X, y = sosfiltfilt(band, trials.X, axis=-1)[:, :, 80:-80], trials.y

# %%
# The lag can be read off the signals: the first minimum of their mutual information with themselves.

information = np.mean([mutual_information(x, 20) for x in X[:, 2]], axis=0)

# %%
# The matrix of order 4: the plain covariance is its first block, the others hold the lagged covariances.

matrices = AugmentedCovariance(order=4, lag=8, normalise="corr").fit_transform(X)

# %%
# Everything made for covariances applies: here the tangent space and a support vector machine.

orders = [1, 2, 3, 4]
scores = [
    cross_val_score(augmented_covariance_pipeline(order=p, lag=8), X, y, cv=5, scoring="roc_auc").mean() for p in orders
]

# %%
# The information at C3, the matrix of one class, and what the order is worth to this subject.

figure, (left, middle, right) = plt.subplots(1, 3, figsize=(10, 3.2), layout="constrained")
left.plot(1e3 * np.arange(21) / trials.sfreq, information)
left.set(xlabel="lag (ms)", ylabel="mutual information (nats)", title="C3")
image = middle.imshow(matrices[y == 1].mean(axis=0), cmap="RdBu_r", vmin=-1, vmax=1)
figure.colorbar(image, ax=middle, shrink=0.8, label="correlation")
middle.set(title="right hand", xticks=[], yticks=[])
right.plot(orders, scores, "o-")
right.set(xlabel="order", ylabel="ROC-AUC", xticks=orders, title="5 folds")
plt.show()
