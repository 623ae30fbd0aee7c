"""Bilevel problems of machine learning, ready to be handed to any method of the room.

Each function returns ``(problem, evaluate)``: a `BilevelProblem`, and ``evaluate(x, y=None)``, which gives the score of
y on test data as it stands (``own``) and of y retrained to convergence at x (``retrained``). The second says how good
the hyper-parameters are, the first whether the method solved the lower problem on the way.

==========================  ==========================================  ============================================
task                        upper variable x                            lower variable y
==========================  ==========================================  ============================================
`hyper_cleaning`            a weight for each training sample           softmax regression
`svm_selection`             a penalty for each training sample          support vector machine, under constraints
`rnn_representation`        recurrent encoder                           linear heads of several tasks
`multi_block_weighting`     a weight for each training sample           m logistic heads, each its own lower problem
`block_auc`                 scales of the features                      m linear scores, each its own lower problem
==========================  ==========================================  ============================================
"""

from steepest.bilevel._tasks_blocks import block_auc, multi_block_weighting
from steepest.bilevel._tasks_recurrent import rnn_representation
from steepest.bilevel._tasks_supervised import hyper_cleaning, svm_selection

__all__ = ["block_auc", "hyper_cleaning", "multi_block_weighting", "rnn_representation", "svm_selection"]
