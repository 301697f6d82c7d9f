"""The connection to VPP.

``messages`` (the codec of its binary API), ``transport`` (frames and replies on the socket), ``client`` (connecting,
calling, reconnecting), ``socketlock`` (one daemon for each VPP).
"""
