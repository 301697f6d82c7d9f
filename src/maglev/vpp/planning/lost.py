"""Weights that VPP had and does not show: it was restarted, or a VIP was deleted, or is being created again.

An AS that keeps the weight it has in VPP (``on-all-down: keep``, a server without a verdict) would otherwise come back
at weight 0 where VPP was emptied halfway: a plan asks here first. All weights are on the daemon's scale, in units.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from maglev.vpp.wire.messages import VipKey


class LostWeights:
    """Weights of configured VIPs only. A weight that is written to VPP again is dropped here."""

    def __init__(self) -> None:
        self._weights: dict[VipKey, dict[bytes, int]] = {}
        self._recreated: set[VipKey] = set()

    def __len__(self) -> int:
        """The number of VIPs with lost weights."""
        return len(self._weights)

    @property
    def recreated(self) -> Collection[VipKey]:
        """VIPs that are being taken down, to be created again: VPP shows only a part of the weights they had."""
        return self._recreated

    def recall(self, key: VipKey, address: bytes, *, present: bool) -> int | None:
        """The last weight of an AS, which counts instead of the one that VPP shows; None: the one in VPP counts.

        ``present``: whether VPP has the AS. If it has, a lost weight counts only in a VIP that is being created again.
        """
        if not self._weights or (present and key not in self._recreated):
            return None
        return self._weights.get(key, {}).get(address)

    def weights(self, key: VipKey) -> Mapping[bytes, int]:
        """The lost weights of a VIP, by address."""
        return self._weights.get(key, {})

    def lose(self, key: VipKey, weights: Mapping[bytes, int]) -> None:
        """VPP had these weights and has lost them. Weights that it lost before, and did not get again, stay."""
        self._weights[key] = {**weights, **self._weights.get(key, {})}

    def restarted(self) -> None:
        """VPP was restarted: it does not show the rest of a recreation from now on."""
        self._recreated.clear()

    def recreate(self, key: VipKey, weights: Mapping[bytes, int]) -> None:
        """A VIP with these weights is taken down from now on. If it is halfway down already, its first weights stay."""
        if key not in self._recreated:
            self._recreated.add(key)
            self._weights[key] = {**self._weights.get(key, {}), **weights}

    def created(self, key: VipKey) -> None:
        """VPP has the new VIP; it is empty."""
        self._recreated.discard(key)

    def written(self, key: VipKey, address: bytes) -> None:
        """VPP has accepted a call about an AS. In a VIP that is being taken down, the lost weight stays."""
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
        """A full sync has ended: the weights in VPP count from now on, except those of ASes that it ``refused``."""
        for key, weights in list(self._weights.items()):
            if key in self._recreated:
                continue
            left = {address: weight for address, weight in weights.items() if (key, address) in refused}
            if left:
                self._weights[key] = left
            else:
                del self._weights[key]


NOTHING_LOST = LostWeights()
"""For plans for a VPP that has lost nothing."""
