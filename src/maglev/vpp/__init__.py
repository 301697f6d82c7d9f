"""The dataplane: VPP's lb plugin, read and programmed over its binary API socket.

Five rooms, each of which imports only those after it:

- ``shown``: what the API and the metrics are shown;
- ``sync``: the tasks, and the way from an event to a call;
- ``state``: the memory between two plans;
- ``planning``: from wanted and found VIPs to an ordered plan; pure;
- ``wire``: the connection to VPP.
"""
