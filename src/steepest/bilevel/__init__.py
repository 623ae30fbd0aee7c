"""Optimization problems inside optimization problems: one description, three published methods and the usual baselines.

``problem`` (what every method takes, and what it returns), ``baselines`` and ``tasks`` are the room's own floor;
``_lv_hba`` (constrained lower levels), ``_bo_rep`` (smoothness that grows with the gradient) and ``_bsvrb`` (many lower
problems at once) stand on it.
"""

from steepest.core.extras import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "problem": ["BilevelProblem", "BilevelResult", "hypergradient", "solve_lower"],
        "baselines": ["aid_cg", "itd", "stocbio", "value_penalty"],
        "_lv_hba": ["lv_hba", "proximal_lagrangian_value"],
        "_bo_rep": ["bo_rep"],
        "_bsvrb": ["bsvrb", "msvr_gamma"],
    },
)
