"""Why training behaves as it does, as tools: stability limits, learning rates, low-rank recovery, separation.

``stability`` (how near a run is to the limits of gradient descent and of SGD), ``batch_spectrum`` (extreme curvature
and learning rates as functions of the batch size), both attached to training loops by ``_training``;
``matrix_sensing`` (low-rank recovery by factored descent); ``separable`` (a linear classifier by large steps).
"""

from steepest.core.extras import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "stability": [
            "DiagonalLinear",
            "StabilityMonitor",
            "StabilityReport",
            "TwoLayerReLU",
            "linear_stability",
            "stability_of_factors",
        ],
        "batch_spectrum": [
            "BatchSpectrum",
            "LearningRate",
            "LearningRateAdvice",
            "batch_extreme_eigenvalue",
            "effective_batch",
            "learning_rate_from_spectrum",
            "scale_learning_rate",
        ],
        "matrix_sensing": ["MatrixSensing", "factored_descent"],
        "separable": ["LargeStepLogisticRegression", "perceptron_bound", "worst_case_data"],
    },
)
