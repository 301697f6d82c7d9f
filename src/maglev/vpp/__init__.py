"""The dataplane: VPP's lb plugin, read and programmed over its binary API socket."""
