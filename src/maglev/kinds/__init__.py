"""The probe kinds: for each a file with everything that the configuration, the API and the books need of it.

``registry`` has the table of kinds; ``kind`` and ``params`` say what a kind and its parameters consist of; ``wire``
carries parameters to and from messages of the API. The other modules are one kind each (``http`` also has https), and
``tls`` is the block of parameters that several kinds share.

Two parts of a kind are elsewhere: the probe itself in ``ext/probe``, and the message of the API in
``proto/maglev.proto``.
"""
