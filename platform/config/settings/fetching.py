"""What of callers' URLs is fetched. Nothing, unless the installation says from where."""

from __future__ import annotations

from config import ROOT, env

FETCH_HOSTS = [word.lower() for word in env.words("FETCH_HOSTS")]
"""Empty: nothing is fetched. ``*``: every public host. Else names, ``*.example.com`` for those below one."""
FETCH_PORTS = env.integers("FETCH_PORTS", "80,443", minimum=1, maximum=65_535)
FETCH_PRIVATE_NETWORKS = env.networks("FETCH_PRIVATE_NETWORKS")
"""Networks that may be reached although they are not public, for an object store of the installation's own."""
FETCH_SOURCE_ADDRESS = env.text("FETCH_SOURCE_ADDRESS", "")
"""Local address that fetches leave from, so that a firewall can tell them from everything else."""

ZOO_LIST = env.file("ZOO_LIST", ROOT / "platform" / "assets" / "data" / "zoo.json")
"""The models that the zoo offers; an installation may have a list of its own."""
