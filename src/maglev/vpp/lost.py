"""Weights that VPP had and shows no longer: it was restarted, or a VIP was deleted, or is being created again.

What keeps the weight that VPP has (``on-all-down: keep``, a server without a verdict) would otherwise come back at
weight 0 where VPP was emptied halfway: whoever plans asks here first. All weights are on our scale, in units.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from maglev.vpp.messages import VipKey


class LostWeights:
    """At most what VPP held of the configured VIPs; whatever is written to VPP again is no longer kept here."""

    def __init__(self) -> None:
        self._weights: dict[VipKey, dict[bytes, int]] = {}
        self._recreated: set[VipKey] = set()

    def __len__(self) -> int:
        """How many VIPs there is something of."""
        return len(self._weights)

    @property
    def recreated(self) -> Collection[VipKey]:
        """VIPs that are being taken down, to be created again. What VPP shows of them is not what it had."""
        return self._recreated

    def recall(self, key: VipKey, address: bytes, *, present: bool) -> int | None:
        """The last weight of an AS, to go by instead of what VPP shows; None: what VPP shows counts.

        ``present``: whether VPP has the AS. But for what is created again, it is asked about those that it has not.
        """
        if not self._weights or (present and key not in self._recreated):
            return None
        return self._weights.get(key, {}).get(address)

    def lose(self, key: VipKey, weights: Mapping[bytes, int]) -> None:
        """VPP had these, and has lost them. What it had before, and was not given again, stays as it is known."""
        self._weights[key] = {**weights, **self._weights.get(key, {})}

    def restarted(self) -> None:
        """VPP was restarted: what it shows from now on is no longer what a recreation has left."""
        self._recreated.clear()

    def recreate(self, key: VipKey, weights: Mapping[bytes, int]) -> None:
        """A VIP with these weights is taken down from now on. One that is halfway down had others before."""
        if key not in self._recreated:
            self._recreated.add(key)
            self._weights[key] = {**self._weights.get(key, {}), **weights}

    def created(self, key: VipKey) -> None:
        """VPP has the new VIP; it is empty."""
        self._recreated.discard(key)

    def written(self, key: VipKey, address: bytes) -> None:
        """VPP has accepted a call about an AS. In a VIP that is being taken down that means nothing."""
        if key not in self._recreated and (weights := self._weights.get(key)) is not None:
            weights.pop(address, None)

    def restored(self, key: VipKey) -> None:
        """The VIP is as it should be."""
        self._recreated.discard(key)
        self._weights.pop(key, None)

    def forget_but(self, configured: Collection[VipKey]) -> None:
        """Only these VIPs are configured."""
        self._recreated.intersection_update(configured)
        self._weights = {key: weights for key, weights in self._weights.items() if key in configured}

    def settle(self, refused: Collection[tuple[VipKey, bytes]]) -> None:
        """A full sync is through: what VPP has by now is what counts. Only ASes that it ``refused`` are still lost."""
        for key, weights in list(self._weights.items()):
            if key in self._recreated:
                continue
            left = {address: weight for address, weight in weights.items() if (key, address) in refused}
            if left:
                self._weights[key] = left
            else:
                del self._weights[key]


NOTHING_LOST = LostWeights()
"""For those who plan for a VPP that has lost nothing."""
