"""A stand-in for VPP's lb plugin on a real API socket: for trying, for demonstrations, and for tests.

``model`` is the plugin without any I/O, ``cli`` its command line, ``api`` its binary API, ``faults`` the ways in which
all of it can misbehave, ``server`` the socket. It shares VPP's codec with the product (``maglev.vpp.messages``) and the
new-flow table (``maglev._flowtable``), and nothing else.
"""
