"""From what is wanted and what VPP holds to an ordered plan of calls. Pure: no sockets, clocks or event loop.

``model`` (VIPs and ASes in VPP), ``desired`` (the wanted ones), ``diff`` with ``prefix``, ``context``, ``flushes``
and ``calls`` (the decisions, one after another), ``plan`` (the result), ``policy`` and ``cost`` (the limits of a
plan, and its price), ``scale`` and ``lost`` (weights that are kept), ``buckets`` (forecasts of tables).
"""
