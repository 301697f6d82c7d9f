"""A stand-in for VPP's lb plugin on a real API socket: for trying, for demonstrations, and for tests.

``model`` is the plugin without any I/O, ``cli`` its command line, ``api`` its binary API, ``faults`` the faults that a
test asks for, ``server`` the socket. It shares VPP's codec (``maglev.vpp.wire.messages``) and the new-flow table
(``maglev._flowtable``) with the product, and nothing else.
"""
