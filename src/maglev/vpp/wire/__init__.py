"""The connection to VPP: the codec of its binary API (``messages``), the socket (``transport``), the ``client``."""
