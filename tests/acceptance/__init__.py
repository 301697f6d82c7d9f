"""``make test-vpp VPP_SOCKET=...``: what maglevd needs of a VPP, tried on one that the user provides."""
