"""Learning for physical systems, on data from solvers that are part of the library.

``wing_pressure`` (surface pressure from Riemannian features) with ``_wings`` (surfaces, data) and ``_panel_method``
(potential flow). ``deep_conjugate_direction`` (Poisson systems along learned directions) with ``_poisson`` and
``_ritz`` (matrices, right-hand sides) and its network. ``hard_constraint_moe`` (networks that obey an equation) with
``_least_squares``, ``_pde``, ``_pde_solvers`` and ``_fourier_operator``. ``giorom`` (reduced simulation on few points)
with ``_gns``, its baseline, ``mpm`` (materials as moving points) and ``_upsampling`` (many points from few).
"""

from steepest.core.extras import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "wing_pressure": ["WingPressureModel", "train_wing_pressure"],
        "_wings": ["WingParameters", "make_wing_dataset", "sample_wings", "wing_surface"],
        "_panel_method": ["panel_method"],
        "deep_conjugate_direction": ["DeepConjugateDirection", "dcdm"],
        "_poisson": ["poisson_matrix", "random_obstacles", "read_dcdm_matrix"],
        "_ritz": ["ritz_right_hand_sides"],
        "_conjugate_direction_net": ["ConjugateDirectionNet", "dcdm_loss"],
        "hard_constraint_moe": ["HardConstraint", "HardConstraintMoE", "HardConstraintOutput"],
        "_least_squares": ["nonlinear_least_squares"],
        "_pde": ["PDE", "DiffusionSorption1D", "NavierStokes2D", "operator_input"],
        "_pde_solvers": ["load_pdebench", "solve_diffusion_sorption", "solve_navier_stokes_2d"],
        "_pde_training": ["fit_pde_operator", "operator_solution", "pde_loss"],
        "_fourier_operator": ["FNO"],
        "giorom": ["GIOROM"],
        "_gns": ["GNS"],
        "_particle_data": ["load_trajectories"],
        "mpm": ["MPM"],
        "_upsampling": ["Upsampler"],
        "_particle_graph": ["farthest_point_sample", "radius_graph"],
    },
)
