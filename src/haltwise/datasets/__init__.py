"""Image data sets: read from a directory of yours, or downloaded on request.

Nothing is loaded, let alone downloaded, before it is asked for.
"""

from haltwise.datasets.images import ImageData
from haltwise.datasets.store import DIRECTORY_VARIABLE, download, load, load_idx

__all__ = ["DIRECTORY_VARIABLE", "ImageData", "download", "load", "load_idx"]
