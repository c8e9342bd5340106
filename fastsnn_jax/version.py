"""The version of the package, read at build time too."""

__version__ = '0.1.0'
