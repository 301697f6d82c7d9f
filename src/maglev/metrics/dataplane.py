"""The families about VPP and the calls to it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from maglev.metrics.text import Family, escape_label, labelled, single
from maglev.views.dataplane import DataplaneFigures, DataplaneInfo, VipFingerprint, VipTraffic


class DataplaneFiguresSource(Protocol):
    """Questions of the metrics to the dataplane (``maglev.vpp.shown.dataplane.Dataplane``). All answer from memory."""

    def figures(self) -> DataplaneFigures: ...
    def traffic(self) -> Iterable[VipTraffic]: ...
    def fingerprints(self) -> Iterable[VipFingerprint]: ...


VIP_KINDS = ("existing_session", "first_session", "untracked", "no_server")
LBSYNC_KINDS = ("vip_added", "vip_removed", "as_added", "as_removed", "as_weight_updated")


class VppFamilies:
    """The families about VPP.

    Families that describe the VPP at the other end are absent while it is away; counts of our own calls stay.
    """

    def __init__(self, dataplane: DataplaneFiguresSource) -> None:
        self._dataplane = dataplane

    def families(self) -> list[Family]:
        """All of them."""
        return [*self._at_the_other_end(), *self._calls(), *self._packets(), *self._syncs()]

    def _at_the_other_end(self) -> list[Family]:
        figures = self._dataplane.figures
        return [
            single(
                "maglev_vpp_connected",
                "gauge",
                "1 while the daemon is connected to VPP.",
                lambda: int(figures().vpp is not None),
            ),
            single(
                "maglev_vpp_lb_supported",
                "gauge",
                "0: this VPP lacks messages of the lb plugin that are needed, and is left alone.",
                self._supported,
            ),
            single(
                "maglev_vpp_unlocked",
                "gauge",
                "1 while VPP is driven without a lock, so that nothing keeps a second daemon off.",
                lambda: int(figures().unlocked) if figures().vpp is not None else None,
            ),
            single("maglev_vpp_uptime_seconds", "gauge", "How long VPP has been running.", self._uptime),
            single("maglev_vpp_connected_seconds", "gauge", "How long the connection stands.", self._connected),
            Family("maglev_vpp_info", "gauge", "1; the VPP at the other end.", self._info),
            single(
                "maglev_vpp_connects_total", "counter", "Connections to VPP that stood.", lambda: figures().connects
            ),
        ]

    def _calls(self) -> list[Family]:
        """Calls to VPP: their number, cost and results."""
        figures = self._dataplane.figures
        return [
            Family("maglev_vpp_api_total", "counter", "API messages by direction and result.", self._api),
            Family("maglev_vpp_lbsync_total", "counter", "Changes made to VPP by scope and kind.", self._lbsync),
            single("maglev_vpp_batches_total", "counter", "Batches of calls.", lambda: figures().batches),
            single(
                "maglev_vpp_refused_calls_total",
                "counter",
                "Calls that VPP refused.",
                lambda: figures().refused_calls,
            ),
            single(
                "maglev_vpp_cost_factor",
                "gauge",
                "What calls cost this VPP, measured, against the formula.",
                self._cost_factor,
            ),
            single(
                "maglev_vpp_mass_changes",
                "gauge",
                "Whether many servers may change by one command of VPP's CLI.",
                lambda: int(figures().mass_changes),
            ),
            single(
                "maglev_vpp_failed_commands_total",
                "counter",
                "Commands for many servers that VPP refused, or whose result it did not show.",
                lambda: figures().commands_failed,
            ),
            single(
                "maglev_vpp_estimated_work_seconds_total",
                "counter",
                "Estimated time that VPP's main thread spent on our calls.",
                lambda: figures().estimated_work_ns / 1e9,
            ),
        ]

    def _packets(self) -> list[Family]:
        return [
            Family(
                "maglev_vpp_vip_packets_total", "counter", "Packets of a VIP by what became of them.", self._vip_packets
            ),
            Family("maglev_vpp_vip_route_packets_total", "counter", "Packets of a VIP's route.", self._route_packets),
            Family("maglev_vpp_vip_route_bytes_total", "counter", "Bytes of a VIP's route.", self._route_bytes),
            Family(
                "maglev_vpp_vip_fingerprint",
                "gauge",
                "The high 53 bits of the fingerprint of a VIP's table in VPP: equal tables have equal numbers.",
                self._fingerprints,
            ),
        ]

    def _syncs(self) -> list[Family]:
        """Syncs, and the differences between VPP and the desired state."""
        figures = self._dataplane.figures
        return [
            labelled(
                "maglev_vpp_drift_total",
                "counter",
                "Changes in VPP that somebody else has made, as they were found.",
                "kind",
                lambda: figures().drift,
            ),
            single(
                "maglev_vpp_full_syncs_total", "counter", "Full syncs that were done.", lambda: figures().full_syncs
            ),
            single("maglev_vpp_failed_syncs_total", "counter", "Syncs that broke off.", lambda: figures().failed_syncs),
            single(
                "maglev_vpp_suppressed_syncs_total",
                "counter",
                "Syncs that the warm-up suppressed.",
                lambda: figures().suppressed_syncs,
            ),
            single(
                "maglev_vpp_recreations_given_up_total",
                "counter",
                "VIPs whose recreation was given up because drift causes it again and again.",
                lambda: figures().recreations_given_up,
            ),
            single(
                "maglev_vpp_bucket_mismatches_total",
                "counter",
                "VIPs read back with other bucket counts than their weights give.",
                lambda: figures().bucket_mismatches,
            ),
            single(
                "maglev_vpp_unmanaged_vips",
                "gauge",
                "VIPs in VPP that are not ours and are left alone.",
                self._unmanaged,
            ),
            single(
                "maglev_vpp_waiting_vips",
                "gauge",
                "VIPs that have left the configuration, and are not deleted before an operator agrees.",
                lambda: figures().waiting_vips,
            ),
        ]

    def _vips(self) -> Iterator[tuple[str, VipTraffic]]:
        """Labels and counters of every VIP, while VPP is there."""
        for vip in self._dataplane.traffic():
            yield _labels(vip), vip

    def _vip_packets(self) -> Iterator[str]:
        for labels, vip in self._vips():
            for kind in VIP_KINDS:
                yield f'maglev_vpp_vip_packets_total{{{labels},kind="{kind}"}} {getattr(vip, kind)}\n'

    def _route_packets(self) -> Iterator[str]:
        for labels, vip in self._vips():
            yield f"maglev_vpp_vip_route_packets_total{{{labels}}} {vip.route_packets}\n"

    def _route_bytes(self) -> Iterator[str]:
        for labels, vip in self._vips():
            yield f"maglev_vpp_vip_route_bytes_total{{{labels}}} {vip.route_bytes}\n"

    def _fingerprints(self) -> Iterator[str]:
        for one in self._dataplane.fingerprints():
            yield f"maglev_vpp_vip_fingerprint{{{_labels(one)}}} {one.value}\n"

    def _vpp(self) -> DataplaneInfo | None:
        return self._dataplane.figures().vpp

    def _supported(self) -> int | None:
        vpp = self._vpp()
        return None if vpp is None else int(vpp.lb_supported)

    def _uptime(self) -> float | None:
        vpp = self._vpp()
        return None if vpp is None else vpp.uptime_ns / 1e9

    def _connected(self) -> float | None:
        vpp = self._vpp()
        return None if vpp is None else vpp.connected_ns / 1e9

    def _cost_factor(self) -> float | None:
        figures = self._dataplane.figures()
        return None if figures.vpp is None else figures.cost_factor

    def _unmanaged(self) -> int | None:
        figures = self._dataplane.figures()
        return None if figures.vpp is None else figures.unmanaged_vips

    def _info(self) -> Iterator[str]:
        vpp = self._vpp()
        if vpp is not None:
            version, built = escape_label(vpp.version), escape_label(vpp.build_date)
            yield f'maglev_vpp_info{{version="{version}",build_date="{built}",pid="{vpp.pid}"}} 1\n'

    def _api(self) -> Iterator[str]:
        for (name, direction, result), count in self._dataplane.figures().api_total.items():
            yield f'maglev_vpp_api_total{{msg="{name}",direction="{direction}",result="{result}"}} {count}\n'

    def _lbsync(self) -> Iterator[str]:
        counts = dict.fromkeys(((scope, kind) for scope in ("all", "one") for kind in LBSYNC_KINDS), 0)
        counts.update(self._dataplane.figures().lbsync)
        for (scope, kind), count in counts.items():
            yield f'maglev_vpp_lbsync_total{{scope="{scope}",kind="{kind}"}} {count}\n'


def _labels(vip: VipTraffic | VipFingerprint) -> str:
    return f'frontend="{vip.frontend}",prefix="{vip.prefix}",protocol="{vip.protocol}",port="{vip.port}"'
