"""The dataplane as the API and the metrics show it. Only a sync that an operator asks for changes anything.

``dataplane`` (the face), ``comparison`` (VPP beside what is wanted), ``forecast`` and ``whatif`` (dry runs), ``stats``
(VPP's counters), ``reconciler_api`` (what it asks of the reconciler).
"""
