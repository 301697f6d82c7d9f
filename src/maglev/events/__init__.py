"""What happened lately, so that operators see what led to the present state.

``ring`` remembers events in bounded memory and answers ``ListEvents``. ``notices`` names the log records that are
remembered beside the events of the bus.
"""
