"""maglevd with TLS checks: from the file to the verdict, the metrics and a reload that finds other authorities."""

from __future__ import annotations

import contextlib
import textwrap
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from maglev.pb import maglev_pb2 as pb
from tests.helpers.daemon import DaemonProcess, Watcher
from tests.helpers.tls import Certificate, Handshakes, server


def config(web: int, mail: int, ca: Path) -> str:
    """An https backend and one of tcp with TLS, on loopback."""
    return textwrap.dedent(f"""\
        maglev:
          vpp: {{lb: {{ipv4-src-address: 192.0.2.1}}}}
          healthchecks:
            web:
              type: https
              port: {web}
              params: {{host: www.example.org, ca-file: {ca}}}
              interval: 500ms
              rise: 1
              fall: 1
            mail:
              type: tcp
              port: {mail}
              params: {{tls: true, server-name: mail.example.org, ca-file: {ca}}}
              interval: 500ms
          backends:
            web: {{address: 127.0.0.1, healthcheck: web}}
            mail: {{address: 127.0.0.1, healthcheck: mail}}
          frontends:
            www:
              address: 192.0.2.80
              pools: [{{name: primary, backends: {{web: {{}}}}}}]
            mx:
              address: 192.0.2.25
              pools: [{{name: primary, backends: {{mail: {{}}}}}}]
        """)


async def test_tls_checks_of_a_running_daemon(tmp_path: Path) -> None:
    authority = Certificate(["authority"], ca=True)
    ca = authority.write(tmp_path / "ca.pem")
    web = Handshakes(Certificate(["www.example.org"], authority).context(tmp_path))
    mail = Handshakes(Certificate(["elsewhere.example.org"], authority).context(tmp_path))
    with server(web) as one, server(mail) as two:
        async with DaemonProcess(tmp_path, config(one.port, two.port, ca), "--vpp-api-addr=") as daemon:
            async with daemon.api() as stub:
                watcher = Watcher(stub)
                await watcher.states(web="up", mail="down")
                info = await stub.GetBackend(pb.GetBackendRequest(name="mail"))
                assert info.transitions[-1].code == pb.CHECK_CODE_L6RSP
                assert info.transitions[-1].detail == "certificate is not valid for mail.example.org"
                # The file's name is the same, what is in it is not: the certificates are verified anew.
                Certificate(["another authority"], ca=True).write(ca)
                await stub.ReloadConfig(pb.ReloadConfigRequest())
                await watcher.states(web="down")
                info = await stub.GetBackend(pb.GetBackendRequest(name="web"))
                assert [t.code for t in info.transitions][-2:] == [pb.CHECK_CODE_L7OK, pb.CHECK_CODE_L6RSP]
                assert info.transitions[-1].detail == "certificate signed by unknown authority"
            text = await daemon.metrics()
    found = {
        (sample.labels["backend"], sample.labels["type"], sample.labels["code"])
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "maglev_probe_total" and sample.value
    }
    assert found == {("web", "https", "L7OK"), ("web", "https", "L6RSP"), ("mail", "tcp", "L6RSP")}
    assert web.names[0] == "www.example.org"


async def test_what_is_wrong_with_a_certificate_is_told_by_the_api(tmp_path: Path) -> None:
    """An expired certificate, a wrong name and an unknown issuer are three different details of a transition."""
    authority = Certificate(["authority"], ca=True)
    ca = authority.write(tmp_path / "ca.pem")
    certificates = {
        "expired": Certificate(["www.example.org"], authority, days=(-2, -1)),
        "misnamed": Certificate(["elsewhere.example.org"], authority),
        "unknown": Certificate(["www.example.org"], Certificate(["another authority"], ca=True)),
    }
    details = {
        "expired": "certificate has expired",
        "misnamed": "certificate is not valid for www.example.org",
        "unknown": "certificate signed by unknown authority",
    }
    checks, backends = "", ""
    with contextlib.ExitStack() as stack:
        for name, certificate in certificates.items():
            port = stack.enter_context(server(Handshakes(certificate.context(tmp_path)))).port
            params = f"{{host: www.example.org, ca-file: {ca}}}"
            checks += f"    {name}: {{type: https, port: {port}, params: {params}, interval: 2s}}\n"
            backends += f"    {name}: {{address: 127.0.0.1, healthcheck: {name}}}\n"
        text = f"maglev:\n  healthchecks:\n{checks}  backends:\n{backends}"
        async with DaemonProcess(tmp_path, text, "--vpp-api-addr=") as daemon, daemon.api() as stub:
            await Watcher(stub).states(expired="down", misnamed="down", unknown="down")
            for name, detail in details.items():
                last = (await stub.GetBackend(pb.GetBackendRequest(name=name))).transitions[-1]
                assert (last.code, last.detail) == (pb.CHECK_CODE_L6RSP, detail)
