"""Learning for physical systems, on data from solvers that are part of the library.

``wing_pressure`` (surface pressure from Riemannian features) with ``_wings`` (surfaces, data) and ``_panel_method``
(potential flow).
"""

from steepest.core.extras import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "wing_pressure": ["WingPressureModel", "train_wing_pressure"],
        "_wings": ["WingParameters", "make_wing_dataset", "sample_wings", "wing_surface"],
        "_panel_method": ["panel_method"],
    },
)
