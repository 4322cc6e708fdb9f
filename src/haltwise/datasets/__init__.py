"""Image data sets, read from a directory or downloaded on request.

Nothing is loaded before `load` is called, and nothing is downloaded before `download` is.
"""

from haltwise.datasets.store import DIRECTORY_VARIABLE, ImageData, default_directory, download, load

__all__ = ["DIRECTORY_VARIABLE", "ImageData", "default_directory", "download", "load"]
