"""Image data sets: read from a directory of yours, or downloaded on request.

Nothing is loaded, let alone downloaded, before it is asked for.
"""

from haltwise.data.images import ImageData
from haltwise.data.store import DIRECTORY_VARIABLE, download, load, load_idx

__all__ = ["DIRECTORY_VARIABLE", "ImageData", "download", "load", "load_idx"]
