"""The cellar: what every room uses, and nothing about any one method.

``errors`` (argument checks and their wording), ``extras`` (optional packages), ``random`` (generators and child
seeds), ``linalg``, ``ode``, ``driver`` (the one solver loop), ``parallel`` (ordered maps), ``distributed``
(reductions over a process group), ``records`` (the result store). Import the module you need.
"""
