"""Domains of StopBench, one file each: a frozen dataclass and `DOMAINS`, from name to instance."""

import sys
from collections.abc import Mapping

from haltwise._core import discovery
from haltwise.bench.domain import Domain

__all__ = ["domains"]


def domains() -> Mapping[str, Domain]:
    """Every named domain.

    Examples:
        >>> domains()["kmeans"].title
        "Lloyd's k-means"
    """
    return discovery.collect(sys.modules[__name__], "DOMAINS")
