"""``maglevd``: the program, its flags, the messages to systemd, and the file that survives a restart.

``main`` is the program. It imports ``daemon``, which connects all parts, only when a daemon is to run: ``--check``
answers without them.
"""
