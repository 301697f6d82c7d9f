"""Prometheus metrics: what is exposed of the daemon, and the server that sends it.

``text`` writes samples in Prometheus' text format, ``exposition`` renders all families in slices, ``server`` answers
HTTP. ``checker``, ``engine`` and ``dataplane`` hold the families of one part each; those of the daemon itself are in
``maglev.daemon.figures``.
"""
