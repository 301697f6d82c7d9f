"""``maglevd``: the program and what puts its parts together.

``main`` has the first instructions, with ``signals``. ``program`` is the program, with its flags in ``options`` and its
statuses in ``exits``. It imports ``daemon`` only when a daemon is to run: ``--check`` answers without it. ``parts``
(makes and connects everything), ``tasks`` (recurring tasks), ``figures`` (the daemon's metrics), ``configfile``
(reloads), ``statefile`` (the memory over a restart), ``supervise`` (tasks that do not die silently), ``sdnotify``,
``receivequeue``, ``descriptors``, ``capabilities``, ``process``.
"""
