"""One file per paper: its claims as data, and the program that measures them beside the tools people use today.

What a study file holds (see ``claim.py`` for the types and ``context.py`` for ``ctx``):

========== =========================================================================================================
docstring  first line: one plain sentence that says what the method gives a user; then a paragraph: what it is for
PAPER      `Paper`
AREA       the room of its method
CLAIMS     list of `Claim`, one or more for each promise of the paper
PEERS      list of `Peer`: the tools it is measured beside
SNIPPET    ten lines that run as they stand
OPTIONS    mapping of its own ``--option`` names to one line of help
FIGURES    list of `Figure`: what is drawn from which series; the first one is the main figure
PICTURES   (optional) list of `Picture`: scientific images, drawn from arrays that the run kept (`ctx.arrays`)
REASONS    mapping of claim ids to the reason, found by experiment, why they fall short
WHEN_NOT   list of sentences: when another tool is the better choice; never empty
run(ctx)   the protocol: gets data, runs method and peers on the same work, reports numbers through ``ctx``;
           ends with ``ctx.against(best_peer, factor, interval)``, the one ratio that the index shows
========== =========================================================================================================
"""
