"""The chaos run: one daemon, real servers, and everything that can go wrong around it, judged by an independent model.

``facts`` (what was true when), ``plan`` (what a configuration means), ``oracle`` (was this write right?) are pure.
``standin`` and ``servers`` are processes of their own; ``processes``, ``world``, ``book`` and ``operators`` drive them,
``table`` holds the disturbances, and ``run`` plays them.
"""
