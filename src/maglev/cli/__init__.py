"""``maglevc``: the command line. It knows the daemon by its gRPC API only.

``main`` (the program), ``grammar`` (the command tree), ``commands`` (their actions), ``render`` with ``text`` and
``jsonout`` (their output), ``client`` (calls), ``shell`` with ``complete`` and ``context``, ``top``, ``errors``,
``docs``.
"""
