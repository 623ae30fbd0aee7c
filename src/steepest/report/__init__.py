"""The report: reads the store, draws figures, writes the site.

``text`` (how numbers, dates and ratios are written), ``theme`` (colours and markers, one table for the whole site),
``drawing`` (medians and bands of a run's series), ``figures`` (Vega-Lite specifications), ``sketch`` (the small
drawings of tables), ``markup`` (texts as markup), ``pages`` (what the templates show), ``site`` (`write_site`).
"""
